"""FromCriterion: the layer counts of another criterion, pruned by itself."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from three_layers import TOTAL, asked, of_layers
from torch import Size, nn

from lit_prune import Connectivity, LitPruneError, Masks, Target, prune
from lit_prune.criteria import (
    FORCE,
    LAMP,
    SNIP,
    Criterion,
    GraSP,
    Inverted,
    L1Filter,
    Magnitude,
    Random,
    SameQuotaRandom,
    Shuffled,
    SynFlow,
    Taylor,
    Wanda,
)
from lit_prune.errors import QuotaOutOfRange
from lit_prune.prune import prune_by_rounds
from lit_prune.quotas import ERK, FromCriterion, UniformPlus

pytestmark = [
    pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed"),
    pytest.mark.filterwarnings("ignore::lit_prune.errors.LitPruneWarning"),
]


small = partial(of_layers, nn.ReLU)


def counts(masks):
    return {row.name: row.kept for row in masks.layers()}


def effective(masks):
    return Connectivity(small(), (1, 6), include=list(masks)).effective(masks).kept


class QuickForce(FORCE):
    rounds = 4


class QuickSynFlow(SynFlow):
    rounds = 6


CRITERIA = [SNIP(), QuickSynFlow(), LAMP(), QuickForce(), GraSP(), Taylor(), Wanda(), Magnitude()]
CRITERIA += [Shuffled(QuickSynFlow()), Inverted(SNIP()), SameQuotaRandom(SNIP())]


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("keep", [10, 47, TOTAL])
def test_layers_keep_as_many_as_when_the_criterion_prunes_alone(criterion, keep):
    quota = FromCriterion(criterion)
    for seed in (1, 2):
        alone = prune(small(), criterion, keep, **asked(seed))
        masks = prune(small(), Random(), keep, quota=quota, **asked(seed))
        assert masks.kept == keep
        assert counts(masks) == counts(alone)
        if keep == 47 and criterion != SameQuotaRandom(SNIP()):  # which draws Random's numbers
            assert masks != alone


@given(st.integers(0, TOTAL), st.sampled_from([LAMP(), SNIP(), QuickSynFlow(), QuickForce()]))
def test_layers_keep_as_many_at_any_total(keep, criterion):
    masks = prune(small(), Magnitude(), keep, quota=FromCriterion(criterion), **asked())
    assert counts(masks) == counts(prune(small(), criterion, keep, **asked()))


def test_inside_the_layers_the_criterion_at_hand_ranks():
    model = small()
    masks = prune(model, Magnitude(), 40, quota=FromCriterion(SNIP()), **asked())
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach().abs()
        assert weight[mask].min() > weight[~mask].max()


def test_the_criterion_at_hand_draws_the_same_numbers_as_without_the_quota():
    fixed = counts(prune(small(), SynFlow(), 40, **asked()))
    expected = prune(small(), Random(), 40, quota=lambda shapes, keep: fixed, **asked())
    assert prune(small(), Random(), 40, quota=FromCriterion(SynFlow()), **asked()) == expected


def test_the_criterion_draws_what_it_would_draw_alone():
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    for generator in generators:
        torch.rand(9, generator=generator)
    quota = FromCriterion(Random())
    masks = prune(small(), Magnitude(), 40, quota=quota, **asked(generator=generators[0]))
    alone = prune(small(), Random(), 40, **asked(generator=generators[1]))
    assert counts(masks) == counts(alone)


class Counting(Criterion):
    """Ranks by size, and counts how often it is asked."""

    rounds = 5

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, probe):
        self.seen.append(probe.round)
        return Magnitude()(probe)


def test_the_criterion_runs_its_rounds_once_for_all_counts():
    seen = []
    quota = FromCriterion(Counting(seen))
    prune(small(), Random(), 20, quota=quota, rounds=4, **asked())
    assert seen == [0, 1, 2, 3, 4]
    seen.clear()
    prune(small(), Random(), "3x effective", quota=quota, rounds=4, **asked())
    assert seen == [0, 1, 2, 3, 4]
    seen.clear()
    assert prune(small(), Random(), "1x", quota=quota, **asked()).kept == TOTAL
    assert seen == []


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("criterion", [SNIP(), LAMP(), QuickSynFlow(), Shuffled(QuickSynFlow())],
                         ids=repr)  # fmt: skip
def test_counts_rise_with_the_total_and_rounds_follow_them(criterion, rounds):
    dense = Masks.dense(small())
    steps = [dense, *prune_by_rounds(
        small(), dense, Random(), 12, FromCriterion(criterion), rounds=rounds, **asked()
    )]  # fmt: skip
    assert len(steps) == rounds + 1
    assert all(later <= earlier for earlier, later in pairwise(steps))
    assert counts(steps[-1]) == counts(prune(small(), criterion, 12, **asked()))


def quota_of(criterion, keep, seed):
    """The bound quota of a prune, as a user's own criterion of many rounds would meet it."""
    found = {}

    class Asking(Criterion):
        def __call__(self, probe):
            found[probe.keep] = dict(probe.counts)
            return Random()(probe)

    quota = FromCriterion(criterion)
    prune(small(), Asking(), keep, quota=quota, rounds=8, **asked(seed))
    return found


@pytest.mark.parametrize("criterion", [SNIP(), QuickSynFlow(), Shuffled(QuickSynFlow())], ids=repr)
def test_a_criterion_of_one_run_gives_rising_counts(criterion):
    for seed in range(3):
        found = quota_of(criterion, 9, seed)
        assert all(sum(c.values()) == keep for keep, c in found.items())
        in_order = [found[keep] for keep in sorted(found)]
        for fewer, more in pairwise(in_order):
            assert all(fewer[name] <= more[name] for name in fewer)


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("criterion", [SNIP(), LAMP(), QuickSynFlow(), QuickForce()], ids=repr)
def test_an_effective_target_is_met_and_one_connection_less_is_too_few(criterion, search):
    wanted, quota = Target.parse("3x").count(TOTAL), FromCriterion(criterion)
    for seed in range(3):
        masks = prune(small(), Random(), "3x effective", quota=quota, search=search, **asked(seed))
        assert effective(masks) >= wanted
        if criterion.rounds == 1 or criterion.regrows:
            alone = prune(small(), criterion, masks.kept, **asked(seed))
            assert counts(masks) == counts(alone)
            fewer = prune(small(), Random(), masks.kept - 1, quota=quota, **asked(seed))
            assert effective(fewer) < wanted


@pytest.mark.parametrize("criterion", [QuickSynFlow(), SNIP(), Random()], ids=repr)
def test_the_counts_of_force_go_with_one_round_only(criterion):
    quota = FromCriterion(QuickForce())
    for seed in range(5):
        masks = prune(small(), criterion, 20, quota=quota, rounds=1, **asked(seed))
        assert counts(masks) == counts(prune(small(), QuickForce(), 20, **asked(seed)))
    with pytest.raises(LitPruneError, match="goes with one round only, not with rounds=20"):
        prune(small(), criterion, 20, quota=quota, rounds=20, **asked())


def test_what_was_gone_before_is_not_counted():
    draw, dense = torch.Generator().manual_seed(4), Masks.dense(small())
    start = Masks({n: torch.rand(m.shape, generator=draw) < 0.5 for n, m in dense.items()})
    for criterion in (SNIP(), QuickSynFlow(), QuickForce()):
        (masks,) = prune_by_rounds(
            small(), start, Random(), 12, FromCriterion(criterion), **asked()
        )
        *_, alone = prune_by_rounds(small(), start, criterion, 12, **asked())
        assert masks <= start
        assert counts(masks) == counts(alone)


def test_its_own_quota_goes_with_the_criterion():
    class Own(Magnitude):
        @property
        def quota(self):
            return ERK()

    masks = prune(small(), Random(), 40, quota=FromCriterion(Own()), **asked())
    assert counts(masks) == ERK()({n: m.shape for n, m in masks.items()}, 40)


def test_a_criterion_whose_own_quota_ends_says_so():
    class Own(Magnitude):
        @property
        def quota(self):
            return UniformPlus()

    quota = FromCriterion(Own())
    for target in (2, "2 effective"):
        with pytest.raises(QuotaOutOfRange, match="UniformPlus keeps between 3 and 103"):
            prune(small(), Random(), target, quota=quota, **asked())


@pytest.mark.parametrize("wrap", [lambda c: c, Shuffled, Inverted])
@pytest.mark.parametrize("target", [41, "3x effective"])
def test_whole_filters_are_no_quota(wrap, target):
    line = r"no quota can be taken from \w+: its masks keep \d+ connections where \d+ are asked for"
    with pytest.raises(LitPruneError, match=line):
        prune(small(), Random(), target, quota=FromCriterion(wrap(L1Filter())), **asked())


def test_without_a_network_there_are_no_counts():
    with pytest.raises(LitPruneError, match=r"FromCriterion\(SNIP\) needs a network: pass it to"):
        FromCriterion(SNIP())({"a": Size((2, 3))}, 3)


@pytest.mark.parametrize("criterion", [SNIP(), GraSP(), FORCE(), Taylor(), Wanda()], ids=repr)
@pytest.mark.parametrize("wrap", [lambda c: c, Shuffled, Inverted, SameQuotaRandom])
def test_a_criterion_that_needs_data_says_so_by_its_name(criterion, wrap):
    line = f"{type(criterion).__name__} needs training data: pass batches="
    with pytest.raises(LitPruneError, match=line):
        prune(small(), Random(), 20, quota=FromCriterion(wrap(criterion)))


def test_a_criterion_that_needs_an_input_says_so():
    with pytest.raises(LitPruneError, match="pass example= or batches="):
        prune(small(), Random(), 20, quota=FromCriterion(SynFlow()))


def test_a_plain_function_may_stand_where_a_criterion_may():
    def by_size(probe):
        return Magnitude()(probe)

    masks = prune(small(), Random(), 40, quota=FromCriterion(by_size), **asked())
    assert counts(masks) == counts(prune(small(), Magnitude(), 40))


def test_quotas_from_criteria_are_values():
    assert FromCriterion(SNIP()) == FromCriterion(SNIP()) != FromCriterion(LAMP())
    assert hash(FromCriterion(SNIP())) == hash(FromCriterion(SNIP()))


def test_the_model_and_the_generators_are_untouched(untouched):
    model = small()
    with untouched(model):
        prune(model, SNIP(), 20, quota=FromCriterion(QuickForce()), **asked())
        prune(model, Random(), "3x effective", quota=FromCriterion(QuickSynFlow()), **asked())
