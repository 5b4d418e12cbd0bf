"""NPB on SynFlow: which rounds are random, and what a random round does."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_prune import LitPruneError, Masks, Probe, prune
from lit_prune.criteria import NPBSynFlow, SynFlow
from lit_prune.prune import prune_by_rounds


def network():
    torch.manual_seed(0)
    layers = (nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))
    return nn.Sequential(*layers)


def scores_of(criterion, model, number, masks=None, generator=None):
    masks = masks or Masks.dense(model)
    probe = Probe(model, masks, example=(1, 20), generator=generator, round=number)
    return criterion(probe)


def is_random(criterion, number):
    """Whether a round has scores below zero, which no flow has."""
    scores = scores_of(criterion, nn.Sequential(nn.Linear(20, 3)), number)
    return any(bool((score < 0).any()) for score in scores.values())


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        ({}, [0, 10, 20, 30, 40]),
        ({"every": 1, "until": 3}, [0, 1, 2]),
        ({"every": 4, "until": 8}, [0, 4]),
        ({"every": 4, "until": 9}, [0, 4, 8]),
        ({"every": 30, "until": 1}, [0]),
        ({"every": 3, "until": 0}, []),
        ({"every": 33, "until": 100}, [0, 33, 66, 99]),
    ],
    ids=str,
)
def test_the_random_rounds_are_those_of_the_code(settings, rounds):
    criterion = NPBSynFlow(**settings)
    assert [number for number in range(criterion.rounds) if is_random(criterion, number)] == rounds


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
def test_no_round_after_the_last_is_random(every, until, more):
    assert not is_random(NPBSynFlow(every, until), until + more)


def test_every_other_round_is_one_of_synflow():
    model = network()
    masks = prune(model, SynFlow(), "50%", rounds=2, example=(1, 20))
    expected = scores_of(SynFlow(), model, 1, masks)
    for number in (1, 9, 11, 50, 99):
        scores = scores_of(NPBSynFlow(), model, number, masks)
        for name, mask in masks.items():
            assert torch.equal(scores[name][mask], expected[name][mask])
            assert (scores[name][~mask] == -1).all()


def test_a_random_round_knows_neither_the_weights_nor_the_masks():
    model, other = network(), network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-3)
    pruned = Masks({n: torch.rand(m.shape) < 0.3 for n, m in Masks.dense(model).items()})
    first = scores_of(NPBSynFlow(), model, 10, generator=torch.Generator().manual_seed(1))
    again = scores_of(NPBSynFlow(), other, 10, pruned, torch.Generator().manual_seed(1))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_random_scores_are_standard_normal_and_new_in_every_round():
    model, generator = network(), torch.Generator().manual_seed(1)
    both = [scores_of(NPBSynFlow(), model, n, None, generator) for n in (0, 10)]
    both = torch.stack([torch.cat([s.flatten() for s in scores.values()]) for scores in both])
    count = both[0].numel()
    assert both.mean(1).abs().max() < 5 / count**0.5
    assert (both.std(1) - 1).abs().max() < 5 / (2 * count) ** 0.5
    assert torch.corrcoef(both)[0, 1].abs() < 5 / count**0.5


def steps_of(criterion, rounds, keep=100):
    model = network()
    generator = torch.Generator().manual_seed(3)
    steps = prune_by_rounds(
        model, Masks.dense(model), criterion, keep, rounds=rounds, example=(1, 20),
        generator=generator,
    )  # fmt: skip
    return list(steps)


def test_removed_connections_return_in_random_rounds_only():
    criterion = NPBSynFlow(every=4, until=9)
    steps = steps_of(criterion, rounds=12)
    nested = [after <= before for before, after in pairwise(steps)]
    assert [n for n, is_nested in enumerate(nested, 1) if not is_nested] == [4, 8]
    assert [masks.kept for masks in steps] == [masks.kept for masks in steps_of(SynFlow(), 12)]


def test_the_mask_of_a_random_round_is_drawn_from_all_connections():
    *_, last = steps_of(NPBSynFlow(every=5, until=6), rounds=6, keep=800)
    before = steps_of(NPBSynFlow(every=5, until=5), rounds=6, keep=800)[4]
    # Hypergeometric: how many of those that were kept before are drawn again.
    share, total = before.density, last.total
    again = (last & before).kept
    spread = (800 * share * (1 - share) * (1 - 800 / total)) ** 0.5
    assert abs(again - 800 * share) < 5 * spread


def test_without_random_rounds_it_prunes_as_synflow_does():
    model = network()
    ours = prune(model, NPBSynFlow(until=0), "90%", rounds=10, example=(1, 20))
    assert ours == prune(model, SynFlow(), "90%", rounds=10, example=(1, 20))


def test_after_the_last_random_round_every_layer_of_a_chain_lives_on():
    masks = prune(network(), NPBSynFlow(), 60, example=(1, 20))
    assert masks.kept == 60
    assert all(row.kept for row in masks.layers())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, r"every=0 is out of range: a whole number from 1 up"),
        ({"every": -2}, r"every=-2 is out of range"),
        ({"every": 2.5}, r"every=2.5 is out of range"),
        ({"until": -1}, r"until=-1 is out of range: a whole number from 0 up"),
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_an_error_that_names_it(settings, message):
    with pytest.raises(LitPruneError, match=message):
        NPBSynFlow(**settings)


def test_it_has_a_hundred_rounds_that_rank_all_connections_and_end_on_the_flow():
    assert NPBSynFlow().rounds == SynFlow().rounds == 100
    assert NPBSynFlow().regrows
    assert not is_random(NPBSynFlow(), 99)
