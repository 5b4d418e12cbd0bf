"""FORCE: dense weights, gradients of the pruned network, and connections that come back."""

from copy import deepcopy
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from three_layers import TOTAL, of_layers, of_round
from torch import nn
from torch.func import functional_call, grad

from lit_prune import Connectivity, LitPruneError, Masks, Probe, Target, prune
from lit_prune.criteria import FORCE, SNIP
from lit_prune.prune import prune_by_rounds
from lit_prune.quotas import ERK
from lit_prune.spine import budgets

pytestmark = pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed")


small = partial(of_layers, nn.ReLU)


def half_of(model, share=0.5):
    draw = torch.Generator().manual_seed(7)
    dense = Masks.dense(model)
    return Masks({n: torch.rand(mask.shape, generator=draw) < share for n, mask in dense.items()})


def reference(model, masks, batches):
    """|w * dL/dw|: the weight as it is, the gradient where the pruned are zero."""
    model = deepcopy(model)
    parameters = dict(model.named_parameters())
    at = {name: p * masks[name] if name in masks else p for name, p in parameters.items()}

    def loss(at):
        losses = [F.cross_entropy(functional_call(model, at, (x,)), y) for x, y in batches]
        return sum(losses) / len(losses)

    gradients = grad(loss)({name: p.detach() for name, p in at.items()})
    return {name: (parameters[name].detach() * gradients[name]).abs() for name in masks}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_scores_are_dense_weights_times_gradients_of_the_pruned_network(share):
    model = small().double()
    batches = [(x.double(), y) for x, y in of_round(0)]
    masks = half_of(model, share)
    scores = FORCE()(Probe(model, masks, batches))
    expected = reference(model, masks, batches)
    assert list(scores) == list(expected) == list(masks)
    for name, score in scores.items():
        assert expected[name].any()
        torch.testing.assert_close(score, expected[name], rtol=1e-9, atol=1e-15)
    if share < 1:
        removed = [scores[name][~mask] for name, mask in masks.items()]
        assert torch.cat(removed).any()


def test_the_dense_network_has_the_scores_of_snip():
    model, batches = small(), of_round(0)
    force, snip = (c(Probe(model, Masks.dense(model), batches)) for c in (FORCE(), SNIP()))
    assert all(torch.equal(force[name], snip[name]) for name in snip)
    assert prune(model, FORCE(), 10, rounds=1, batches=batches) == prune(
        model, SNIP(), 10, batches=batches
    )


def sum_of_outputs(model, batch):
    return model(batch).sum()


def test_a_removed_connection_comes_back_where_snip_s_never_does():
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    inputs = {0: [1.0, 2.0, 3.0], 1: [9.0, 1.0, 2.0]}  # which are the gradients too

    def given(turn):
        return [torch.tensor([inputs[turn]])]

    def steps(criterion):
        dense, asked = Masks.dense(model), {"batches": given, "loss": sum_of_outputs}
        found = prune_by_rounds(model, dense, criterion, 1, rounds=2, **asked)
        return [masks["weight"].tolist()[0] for masks in found]

    assert steps(FORCE()) == [[False, True, True], [True, False, False]]
    assert steps(SNIP()) == [[False, True, True], [False, False, True]]


def test_over_many_rounds_connections_come_back_where_snip_s_never_do():
    dense = Masks.dense(small())

    def steps(criterion):
        found = prune_by_rounds(small(), dense, criterion, 12, rounds=10, batches=of_round)
        return [dense, *found]

    force, snip = steps(FORCE()), steps(SNIP())
    expected = [TOTAL, *budgets(TOTAL, 12, 10)]
    assert [masks.kept for masks in force] == [masks.kept for masks in snip] == expected
    assert all(later <= earlier for earlier, later in pairwise(snip))
    assert not all(later <= earlier for earlier, later in pairwise(force))


def test_every_round_is_the_best_of_all_connections_by_the_scores_of_that_round():
    model, masks = small(), Masks.dense(small())
    steps = prune_by_rounds(model, masks, FORCE(), 12, rounds=5, batches=of_round)
    for turn, after in enumerate(steps):
        scores = reference(model, masks, of_round(turn))
        kept = torch.cat([scores[n][m] for n, m in after.items()])
        gone = torch.cat([scores[n][~m] for n, m in after.items()])
        assert kept.min() >= gone.max() * (1 - 1e-4)
        masks = after
    assert turn == 4


def test_it_runs_in_sixty_rounds_of_its_own():
    turns = []

    def noting(turn):
        turns.append(turn)
        return of_round(turn)

    assert prune(small(), FORCE(), 12, batches=noting).kept == 12
    assert turns == list(range(60))


def test_what_was_gone_before_the_first_round_never_comes_back():
    model, start = small(), half_of(small(), 0.6)
    for masks in prune_by_rounds(model, start, FORCE(), 10, rounds=6, batches=of_round):
        assert masks <= start
    assert masks.kept == 10


def test_a_quota_and_a_floor_hold_in_every_round():
    dense, shapes = Masks.dense(small()), {n: m.shape for n, m in Masks.dense(small()).items()}
    steps = prune_by_rounds(small(), dense, FORCE(), 12, ERK(), rounds=6, batches=of_round)
    for masks in steps:
        assert {row.name: row.kept for row in masks.layers()} == ERK()(shapes, masks.kept)
    steps = prune_by_rounds(small(), dense, FORCE(), 12, rounds=6, batches=of_round, floor=4)
    for masks in steps:
        assert min(row.kept for row in masks.layers()) >= 4
    assert masks.kept == 12


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("seed", range(4))
def test_an_effective_target_is_met_by_pruning_anew(seed, search):
    model, wanted = small(seed), Target.parse("4x").count(TOTAL)
    asked = {"rounds": 8, "batches": of_round}
    masks = prune(model, FORCE(), "4x effective", search=search, **asked)
    connectivity = Connectivity(model, (1, 6))
    assert connectivity.effective(masks).kept >= wanted
    # They are those of the plain count, and one connection less would have been too few.
    assert masks == prune(model, FORCE(), masks.kept, **asked)
    fewer = prune(model, FORCE(), masks.kept - 1, **asked)
    assert connectivity.effective(fewer).kept < wanted


def test_the_model_comes_back(untouched):
    model = small()
    with untouched(model):
        prune(model, FORCE(), 12, rounds=4, batches=of_round)
        prune(model, FORCE(), "4x effective", rounds=3, batches=of_round)


def test_without_batches_there_is_nothing_to_score():
    with pytest.raises(LitPruneError, match="FORCE needs training data: pass batches="):
        prune(small(), FORCE(), "50%")
