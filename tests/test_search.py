"""Effective targets: the least count of a ranking that is enough, and not one less."""

import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_prune import Connectivity, LitPruneError, Masks, Ranking, Target, prune
from lit_prune.backbones import LeNet300100
from lit_prune.criteria import SNIP, Magnitude, Random, SynFlow
from lit_prune.errors import QuotaOutOfRange, TargetMissed
from lit_prune.prune import prune_by_rounds
from lit_prune.quotas import ERK, IGQ, Uniform, UniformPlus
from lit_prune.quotas.quota import apportion
from lit_prune.search import Trail, first_enough, walk_back
from lit_prune.spine import last

pytestmark = pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed")


def mlp(*widths):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def convnet():
    """Paddings, strides and small maps, so that channels and elements part."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=2, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1, stride=2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


NETS = {"mlp": (mlp(6, 7, 5, 3), (1, 6)), "conv": (convnet(), (1, 2, 6, 6))}
QUOTAS = [None, Uniform(), ERK(), IGQ()]


def least_count(connectivity, ranking, wanted):
    """The definition, by trying all counts from below."""
    for k in range(ranking.total + 1):
        if connectivity.effective(ranking.keep(k)).kept >= wanted:
            return k
    return None


def random_scores(masks, seed, values):
    source = torch.Generator().manual_seed(seed)
    if values is None:
        return {n: torch.randn(m.shape, generator=source) for n, m in masks.items()}
    return {n: torch.randint(values, m.shape, generator=source).float() for n, m in masks.items()}


@settings(max_examples=60)
@given(
    net=st.sampled_from(list(NETS)),
    quota=st.sampled_from(QUOTAS),
    seed=st.integers(0, 10**6),
    values=st.sampled_from([None, 1, 2, 5]),
    share=st.floats(0.01, 0.9),
    resolution=st.sampled_from(["element", "channel"]),
)
def test_what_is_found_is_enough_and_the_next_less_is_not(
    net, quota, seed, values, share, resolution
):
    model, shape = NETS[net]
    connectivity = Connectivity(model, shape, resolution)
    dense = Masks.dense(model)
    ranking = Ranking(random_scores(dense, seed, values), quota)
    most = connectivity.effective(dense).kept
    wanted = max(1, int(share * most))
    found = first_enough(connectivity, ranking, wanted)
    least = least_count(connectivity, ranking, wanted)
    assert found.masks == ranking.keep(least)
    assert found.effective == connectivity.effective(found.masks).kept >= wanted
    less = connectivity.effective(ranking.keep(least - 1)).kept
    assert less < wanted
    assert found.next_effective == (None if found.effective == wanted else less)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("quota", QUOTAS)
@pytest.mark.parametrize("criterion", [Random(), Magnitude()])
@pytest.mark.parametrize("target", ["2x effective", "60% effective", "30 effective"])
def test_both_searches_agree_for_one_round(net, quota, criterion, target):
    model, shape = NETS[net]

    def masks(search):
        source = torch.Generator().manual_seed(3)
        return prune(
            model, criterion, target, quota, example=shape, generator=source, search=search
        )

    found = masks("curve")
    wanted = Target.parse(target).count(found.total)
    assert Connectivity(model, shape).effective(found).kept >= wanted
    assert masks("reprune") == found


def half_of_every_layer(shapes, keep):
    least = [shape.numel() // 2 for shape in shapes.values()]
    return apportion("half", shapes, keep, lambda d: np.full(len(shapes), d), least)


@pytest.mark.parametrize("search", ["curve", "reprune"])
def test_a_quota_with_a_floor_is_met_above_it_and_refused_below(search):
    model, shape = NETS["mlp"]
    pruned = partial(
        prune, model, Random(), quota=half_of_every_layer, example=shape, search=search
    )
    connectivity = Connectivity(model, shape)
    masks = pruned(target="60 effective", generator=torch.Generator().manual_seed(0))
    assert connectivity.effective(masks).kept >= 60
    assert masks.kept >= 45
    with pytest.raises(QuotaOutOfRange, match=r"half keeps between 45 and 92 .* not 10"):
        pruned(target="10 effective")


@pytest.mark.parametrize("search", ["curve", "reprune"])
def test_a_count_below_the_quota_s_own_may_still_be_effective(search):
    # UniformPlus keeps 80 of these connections or more; of the 80 none is effective.
    model, shape = NETS["conv"]
    masks = prune(
        model, Random(), "10 effective", UniformPlus(), example=shape, search=search,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert masks.kept > 80
    assert Connectivity(model, shape).effective(masks).kept >= 10


def test_snip_agrees_too_on_the_same_batches():
    model, shape = NETS["conv"]
    batches = [(torch.randn(8, *shape[1:]), torch.randint(3, (8,))) for _ in range(2)]
    by_curve, by_pruning = (
        prune(model, SNIP(), "3x effective", batches=batches, search=search)
        for search in ("curve", "reprune")
    )
    assert by_curve == by_pruning


@pytest.mark.parametrize("quota", [None, ERK()])
@pytest.mark.parametrize("rounds", [2, 5, 30])
def test_walking_back_along_rounds_is_exact(rounds, quota):
    """The nested masks of all rounds and of all counts between them, tried one by one."""
    model, shape = NETS["mlp"]
    connectivity, dense = Connectivity(model, shape), Masks.dense(model)

    class Moody:
        """Other scores in every round."""

        def __call__(self, probe):
            source = probe.generator
            return {n: torch.rand(m.shape, generator=source) for n, m in probe.masks.items()}

    for wanted in (5, 15, 40):
        source = torch.Generator().manual_seed(wanted)
        masks = prune(
            model, Moody(), Target(keep=wanted, measure="effective"), quota, rounds, example=shape,
            generator=source,
        )  # fmt: skip
        source = torch.Generator().manual_seed(wanted)
        steps = [dense, *prune_by_rounds(model, dense, Moody(), wanted, quota, rounds,
                                         generator=source)]  # fmt: skip
        assert all(after <= before for before, after in pairwise(steps))
        enough = [s for s in steps if connectivity.effective(s).kept >= wanted]
        # Between the last step that is enough and the first that is not.
        assert masks <= enough[-1]
        assert connectivity.effective(masks).kept >= wanted
        if len(enough) < len(steps):
            assert steps[len(enough)] <= masks


def test_the_order_inside_of_a_round_is_the_round_s_own():
    model, shape = NETS["conv"]
    connectivity, dense = Connectivity(model, shape), Masks.dense(model)
    first = Ranking(random_scores(dense, 0, None), among=dense)
    middle = first.keep(150)
    second = Ranking(random_scores(dense, 1, 3), among=middle)
    end = second.keep(40)
    trail = Trail(dense, None)
    trail.add(dense, middle, first)
    trail.add(middle, end, second)
    assert (trail.masks(0), trail.masks(1), trail.masks(2)) == (dense, middle, end)
    for k in (40, 41, 60, 149, 150):
        assert trail.ranking(2).keep(k) == second.keep(k)
    for k in (150, 151, 200, dense.total):
        assert trail.ranking(1).keep(k) == first.keep(k)
    chain = [second.keep(k) for k in range(40, 150)]
    chain += [first.keep(k) for k in range(150, dense.total + 1)]
    sizes = [connectivity.effective(masks).kept for masks in chain]
    for wanted in (1, 20, 39, 60, 140, 160):
        least = next(n for n, size in enumerate(sizes) if size >= wanted)
        assert walk_back(connectivity, trail, wanted).masks == chain[least]


def test_synflow_s_rounds_end_at_an_effective_count():
    model, shape = NETS["conv"]
    masks = prune(model, SynFlow(), "20 effective", example=shape)
    assert Connectivity(model, shape).effective(masks).kept >= 20
    direct = prune(model, SynFlow(), "20", example=shape)
    assert direct <= masks


def test_ineffective_connections_go_on_request():
    model, shape = NETS["mlp"]
    source = torch.Generator().manual_seed(0)
    kept = prune(model, Random(), "4x effective", example=shape, generator=source)
    source.manual_seed(0)
    bare = prune(
        model, Random(), "4x effective", example=shape, generator=source, prune_ineffective=True
    )
    connectivity = Connectivity(model, shape)
    assert bare == connectivity.effective(kept) == connectivity.effective(bare)
    assert bare.kept < kept.kept
    source.manual_seed(0)
    direct = prune(model, Random(), "8x", example=shape, generator=source, prune_ineffective=True)
    assert direct == connectivity.effective(direct)


def test_a_target_between_two_masks_keeps_the_denser_and_says_so():
    # Two separate paths of two connections each: three effective ones do not exist.
    model = mlp(2, 2, 1)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0, 0.1], [0.2, 6.0]]))
        model[1].weight.copy_(torch.tensor([[7.0, 5.0]]))
    expected = r"3 of 6 .* 4 are effective, a sparsity of 33.333333%; .* 66.666667%, with 2"
    with pytest.warns(TargetMissed, match=expected):
        masks = prune(model, Magnitude(), "3 effective", example=(1, 2))
    assert masks.kept == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prune(model, Magnitude(), "4 effective", example=(1, 2)) == masks


@pytest.mark.parametrize("search", ["curve", "reprune"])
def test_more_effective_connections_than_the_dense_network_has_is_an_error(search):
    # Of a 3x3 kernel on a single pixel only the middle is ever used.
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(1, 1))
    with pytest.raises(LitPruneError, match=r"cannot keep 5 effective .* of the 10 .*, 2 lie"):
        prune(model, Magnitude(), "2x effective", example=(1, 1, 1, 1), search=search)
    assert prune(model, Magnitude(), "2 effective", example=(1, 1, 1, 1), search=search).kept >= 2


def test_nothing_effective_is_an_error_unless_allowed():
    model, shape = NETS["mlp"]
    with pytest.raises(LitPruneError, match=r"nothing effective is left.*allow_collapse"):
        prune(model, Magnitude(), "100% effective", example=shape)
    masks = prune(model, Magnitude(), "100% effective", example=shape, allow_collapse=True)
    assert masks.kept == 0


def test_an_unknown_search_is_named():
    model, shape = NETS["mlp"]
    with pytest.raises(LitPruneError, match=r"unknown search 'fast'; known: curve, reprune"):
        prune(model, Magnitude(), "2x effective", example=shape, search="fast")


def test_an_effective_target_needs_an_example():
    model, _ = NETS["mlp"]
    with pytest.raises(LitPruneError, match="example"):
        prune(model, Magnitude(), "2x effective")


def test_a_tied_weight_and_left_out_layers_count_as_present():
    model, shape = NETS["mlp"]
    masks = prune(model, Random(), "3x effective", example=shape, exclude="1.weight")
    assert set(masks) == {"0.weight", "2.weight"}
    connectivity = Connectivity(model, shape, exclude="1.weight")
    assert connectivity.effective(masks).kept >= Target.parse("3x").count(masks.total)


def test_lenet_at_a_hundred_times_has_exactly_what_is_asked_for():
    model = LeNet300100()
    source = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = prune(
            model, Random(), "100x effective", Uniform(), example=(1, 1, 28, 28), generator=source
        )
    effective = Connectivity(model, (1, 1, 28, 28)).effective(masks).kept
    # Random uniform masks have to keep several times what shall be effective.
    assert 2662 <= effective <= 2670
    assert masks.kept > 2 * effective


def test_steps_are_yielded_while_an_effective_target_is_searched():
    model, shape = NETS["mlp"]
    steps = list(
        prune_by_rounds(model, Masks.dense(model), SynFlow(), "20 effective", rounds=7,
                        example=shape)
    )  # fmt: skip
    assert len(steps) == 8
    assert last(iter(steps), Masks.dense(model)) == steps[-1]
