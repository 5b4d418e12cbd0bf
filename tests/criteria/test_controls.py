"""Controls: each changes what it says, and nothing else."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from three_layers import TOTAL, of_layers, of_round
from torch import nn

from lit_prune import Connectivity, LitPruneError, Masks, Probe, Ranking, Target, prune
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
from lit_prune.prune import prune_by_rounds
from lit_prune.quotas import ERK, FromCriterion, Uniform

pytestmark = [
    pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed"),
    pytest.mark.filterwarnings("ignore::lit_prune.errors.LitPruneWarning"),
]


small = partial(of_layers, nn.Tanh)


def pruned(criterion, target, seed=1, net=0, **asked):
    draw = torch.Generator().manual_seed(seed)
    asked = {"batches": of_round, "example": (1, 6)} | asked
    return prune(small(net), criterion, target, generator=draw, **asked)


def steps_of(criterion, target, seed=1, **asked):
    draw, model = torch.Generator().manual_seed(seed), small()
    asked = {"batches": of_round, "example": (1, 6)} | asked
    return list(
        prune_by_rounds(model, Masks.dense(model), criterion, target, generator=draw, **asked)
    )


def counts(masks):
    return {row.name: row.kept for row in masks.layers()}


def effective(masks, net=0):
    return Connectivity(small(net), (1, 6), include=list(masks)).effective(masks).kept


class Recorder(Criterion):
    """Notes all that it is shown, and scores by chance, a little by the masks."""

    def __init__(self):
        self.seen = []

    def __call__(self, probe):
        batches = [x.sum().item() for x, _ in probe.batches]
        state = probe.generator.get_state().tolist()
        masks = {name: mask.tolist() for name, mask in probe.masks.items()}
        numbers = (probe.keep, probe.round, probe.counts and dict(probe.counts))
        self.seen.append((numbers, batches, state, masks, [p.tolist() for p in probe.inputs()]))
        return Random()(probe)


class QuickForce(FORCE):
    rounds = 4


EVERY = [Random(), Magnitude(), LAMP(), SNIP(), GraSP(), SynFlow(), QuickForce(), Taylor(), Wanda()]
EVERY_CRITERION = pytest.mark.parametrize("criterion", EVERY, ids=lambda c: type(c).__name__)


# --- what all controls take over


@pytest.mark.parametrize("control", [Shuffled, Inverted])
def test_a_control_prunes_in_the_way_of_its_criterion(control):
    class Own(Criterion):
        rounds = 7

        def __call__(self, probe):
            return Random()(probe)

        @property
        def quota(self):
            return ERK()

    for criterion in (Own(), Random(), SynFlow(), FORCE(), L1Filter()):
        for wrapped in (control(criterion), control(control(criterion))):
            assert wrapped.rounds == criterion.rounds
            assert wrapped.regrows == criterion.regrows
            assert wrapped.whole_filters == criterion.whole_filters
            assert wrapped.quota == criterion.quota
    assert len(steps_of(control(Own()), 20)) == 7
    shapes = {name: mask.shape for name, mask in Masks.dense(small()).items()}
    assert counts(pruned(control(Own()), 20)) == ERK()(shapes, 20)


@pytest.mark.parametrize("control", [Shuffled, Inverted, SameQuotaRandom])
def test_controls_are_values(control):
    assert control(SNIP()) == control(SNIP()) != control(Magnitude())
    assert hash(control(SNIP())) == hash(control(SNIP()))
    assert control(control(SNIP())) != control(SNIP())
    assert repr(control(SNIP())) == f"{control.__name__}(criterion=SNIP())"


@pytest.mark.parametrize("control", [Shuffled, Inverted, SameQuotaRandom])
def test_a_control_of_a_criterion_that_needs_data_says_so(control):
    with pytest.raises(LitPruneError, match="SNIP needs training data: pass batches="):
        prune(small(), control(SNIP()), "50%")


@pytest.mark.parametrize("control", [Shuffled, Inverted, SameQuotaRandom])
def test_a_plain_function_may_stand_where_a_criterion_may(control):
    def by_size(probe):
        return Magnitude()(probe)

    assert pruned(control(by_size), 30) == pruned(control(Magnitude()), 30)


# --- shuffled


@EVERY_CRITERION
@pytest.mark.parametrize("rounds", [1, 5])
def test_shuffled_masks_have_the_counts_of_the_criterion_at_other_places(criterion, rounds):
    before = steps_of(criterion, 20, rounds=rounds)
    after = steps_of(Shuffled(criterion), 20, rounds=rounds)
    assert [counts(masks) for masks in after] == [counts(masks) for masks in before]
    assert all(one != other for one, other in zip(before, after, strict=True))


@given(st.integers(0, TOTAL), st.sampled_from([None, Uniform()]))
def test_shuffled_masks_have_the_counts_at_every_target(keep, quota):
    plain = pruned(LAMP(), keep, quota=quota)
    assert counts(pruned(Shuffled(LAMP()), keep, quota=quota)) == counts(plain)


def test_the_shuffled_criterion_sees_what_it_would_see_by_itself():
    for asked in ({"rounds": 1}, {"rounds": 4}, {"rounds": 3, "quota": ERK()}, {"floor": 3}):
        alone, inside = Recorder(), Recorder()
        plain = pruned(alone, 20, **asked)
        assert pruned(Shuffled(inside), 20, **asked) != plain
        assert inside.seen == alone.seen
        assert len(alone.seen) == asked.get("rounds", 1)


def test_a_shuffle_is_one_permutation_a_layer_for_all_rounds_and_targets():
    criterion = SynFlow()
    before, after = (steps_of(c, 5, rounds=12) for c in (criterion, Shuffled(criterion)))
    assert all(later <= earlier for earlier, later in pairwise(after))
    # A single permutation takes all of one chain to the other: the times of removal are permuted.
    for name in before[0]:
        ages = [sum(masks[name].int() for masks in chain).flatten() for chain in (before, after)]
        assert torch.equal(ages[0].sort().values, ages[1].sort().values)
        assert not torch.equal(*ages)
    # Other targets of the same seed: nested too.
    chain = [pruned(Shuffled(Magnitude()), keep) for keep in range(0, TOTAL + 1, 5)]
    assert all(smaller <= larger for smaller, larger in pairwise(chain))


def test_a_shuffle_stays_among_what_was_kept_before():
    model, draw = small(), torch.Generator().manual_seed(4)
    dense = Masks.dense(model)
    start = Masks({n: torch.rand(m.shape, generator=draw) < 0.5 for n, m in dense.items()})
    for criterion in (Magnitude(), SynFlow(), FORCE()):
        asked = {"rounds": 3, "batches": of_round, "example": (1, 6)}
        steps = prune_by_rounds(model, start, Shuffled(criterion), 10, **asked)
        for masks in steps:
            assert masks <= start
        assert masks.kept == 10


def test_every_place_is_as_likely_as_any_other():
    """Of a layer that keeps 4 of 16, over many seeds: each place a quarter of the time."""
    model = nn.Linear(8, 2, bias=False)
    seen = torch.zeros(16)
    for seed in range(600):
        draw = torch.Generator().manual_seed(seed)
        seen += prune(model, Shuffled(Magnitude()), 4, generator=draw)["weight"].flatten()
    assert seen.sum() == 2400
    assert ((seen - 150).abs() < 4.5 * (600 * 0.25 * 0.75) ** 0.5).all()


def test_layers_of_equal_shape_are_permuted_apart():
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(2)))
    for layer in model:
        layer.weight.data.copy_(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    masks = prune(model, Shuffled(Magnitude()), "50%", quota=Uniform())
    plain = prune(model, Magnitude(), "50%", quota=Uniform())
    assert torch.equal(plain["0.weight"], plain["1.weight"])
    assert not torch.equal(masks["0.weight"], masks["1.weight"])


def test_the_generator_decides_the_shuffle():
    def seeded(seed):
        return pruned(Shuffled(Magnitude()), 30, seed)

    assert seeded(1) == seeded(1) != seeded(2)


def test_a_generator_that_goes_on_gives_another_shuffle():
    generator = torch.Generator().manual_seed(1)
    first, second = (
        prune(small(), Shuffled(Random()), 30, quota=Uniform(), generator=generator)
        for _ in range(2)
    )
    assert first != second  # Random's own masks differ
    first, second = (
        prune(small(), Shuffled(Magnitude()), 30, generator=generator) for _ in range(2)
    )
    assert first != second


def test_two_shuffles_are_a_shuffle():
    twice = pruned(Shuffled(Shuffled(SNIP())), 30)
    assert counts(twice) == counts(pruned(SNIP(), 30))
    assert twice not in (pruned(Shuffled(SNIP()), 30), pruned(SNIP(), 30))


def test_what_is_shuffled_are_the_rearranged_masks():
    class Turned(LAMP):
        """LAMP by a detour: the scores are turned around, and then the masks are."""

        def __call__(self, probe):
            return {name: score.flip(0, 1) for name, score in super().__call__(probe).items()}

        def places(self, masks, generator):
            return {name: torch.arange(mask.numel()).flip(0) for name, mask in masks.items()}

    assert pruned(Turned(), 30) == pruned(LAMP(), 30)
    for control in (Shuffled, Inverted):
        assert pruned(control(Turned()), 30) == pruned(control(LAMP()), 30)


def test_shuffled_filters_are_no_filters():
    plain, shuffled = pruned(L1Filter(), 40), pruned(Shuffled(L1Filter()), 40)
    assert counts(plain) == counts(shuffled)
    assert plain["0.weight"].any(1).sum() < shuffled["0.weight"].any(1).sum()


def test_a_floor_holds_for_shuffled_masks():
    plain = pruned(Magnitude(), 20, floor=5)
    assert min(counts(plain).values()) == 5
    assert counts(pruned(Shuffled(Magnitude()), 20, floor=5)) == counts(plain)


def chain_of(criterion, keep, rounds, seed):
    """The masks of a criterion at every count from ``keep`` up, each by the scores of its round."""
    shown = []

    class Watched(Criterion):
        def __call__(self, probe):
            shown.append((criterion(probe), probe.masks))
            return shown[-1][0]

    steps, found = steps_of(Watched(), keep, seed, rounds=rounds), {}
    for (scores, among), after in zip(shown, steps, strict=True):
        ranking = Ranking(scores, among=among)
        found |= {k: ranking.keep(k) for k in range(after.kept, among.kept + 1)}
    return found


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("asked", [{}, {"quota": ERK()}, {"floor": 6}], ids=["", "quota", "floor"])
@pytest.mark.parametrize("rounds", [1, 5])
@pytest.mark.parametrize("criterion", [Random(), SynFlow(), SNIP()], ids=str)
def test_an_effective_target_is_met_by_the_shuffled_masks(criterion, rounds, asked, search):
    wanted = Target.parse("3x").count(TOTAL)
    for seed in range(3):
        asked = {"rounds": rounds, "search": search, **asked}
        masks = pruned(Shuffled(criterion), "3x effective", seed, **asked)
        assert effective(masks) >= wanted
        if rounds == 1:  # of many rounds the next smaller masks depend on where they end
            fewer = pruned(Shuffled(criterion), masks.kept - 1, seed, **asked)
            assert effective(fewer) < wanted
            assert masks == pruned(Shuffled(criterion), masks.kept, seed, **asked)


@pytest.mark.parametrize("rounds", [1, 5])
def test_on_the_way_to_an_effective_target_layers_have_the_counts_of_the_criterion(rounds):
    wanted = Target.parse("3x").count(TOTAL)
    for seed in range(4):
        masks = pruned(Shuffled(SynFlow()), "3x effective", seed, rounds=rounds)
        own = chain_of(SynFlow(), wanted, rounds, seed)
        assert len(own) == TOTAL + 1 - wanted
        assert counts(masks) == counts(own[masks.kept])


# --- inverted


def probe_of(model, masks=None, turn=0):
    return Probe(model, masks or Masks.dense(model), of_round(turn), example=(1, 6))


@given(st.integers(0, TOTAL), st.sampled_from([None, Uniform()]))
def test_inverted_in_one_round_keeps_the_lowest_scores(keep, quota):
    masks = pruned(Inverted(LAMP()), keep, quota=quota)
    assert masks.kept == keep
    scores = LAMP()(probe_of(small()))
    groups = [[name] for name in masks] if quota else [list(masks)]
    for names in groups:
        kept = torch.cat([scores[n][masks[n]] for n in names])
        gone = torch.cat([scores[n][~masks[n]] for n in names])
        if len(kept) and len(gone):
            assert kept.max() <= gone.min()


@pytest.mark.parametrize("criterion", [Magnitude(), SNIP(), LAMP(), GraSP()], ids=str)
def test_inverted_in_one_round_keeps_what_the_criterion_removes(criterion):
    for keep in (0, 17, 60, TOTAL):
        best, worst = pruned(criterion, keep), pruned(Inverted(criterion), TOTAL - keep)
        for name, mask in best.items():  # no two of these scores are equal
            assert torch.equal(mask, ~worst[name])


@EVERY_CRITERION
def test_inverted_scores_are_the_negative_ones(criterion):
    scores, inverted = (c(probe_of(small())) for c in (criterion, Inverted(criterion)))
    assert all(torch.equal(inverted[name], -scores[name]) for name in scores)


def test_inverted_in_rounds_keeps_the_lowest_of_every_round():
    model, masks = small(), Masks.dense(small())
    for turn, after in enumerate(steps_of(Inverted(SNIP()), 10, rounds=5)):
        scores = SNIP()(probe_of(model, masks, turn))
        kept = torch.cat([scores[n][m] for n, m in after.items()])
        gone = torch.cat([scores[n][masks[n] & ~m] for n, m in after.items()])
        assert kept.max() <= gone.min() * (1 + 1e-5)
        masks = after
    assert masks.kept == 10


def test_inverted_twice_is_the_criterion():
    for criterion in (SNIP(), SynFlow(), FORCE()):
        twice = Inverted(Inverted(criterion))
        assert pruned(twice, 20, rounds=4) == pruned(criterion, 20, rounds=4)


def test_inverted_sees_the_same_first_probe():
    alone, inside = Recorder(), Recorder()
    pruned(alone, 20, rounds=3)
    pruned(Inverted(inside), 20, rounds=3)
    assert len(inside.seen) == 3
    assert inside.seen[0] == alone.seen[0]


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("criterion", [Magnitude(), SynFlow(), FORCE()], ids=str)
def test_inverted_meets_an_effective_target(criterion, search):
    masks = pruned(Inverted(criterion), "2x effective", rounds=3, search=search)
    assert effective(masks) >= Target.parse("2x").count(TOTAL)


# --- random, with the counts of another


@EVERY_CRITERION
def test_same_quota_random_has_the_counts_of_the_criterion(criterion):
    masks = pruned(SameQuotaRandom(criterion), 20)
    assert counts(masks) == counts(pruned(criterion, 20))
    assert masks == pruned(Random(), 20, quota=FromCriterion(criterion))


@given(st.integers(0, TOTAL), st.integers(1, 3))
def test_same_quota_random_has_the_counts_at_every_target(keep, rounds):
    masks = pruned(SameQuotaRandom(LAMP()), keep, rounds=rounds)
    assert counts(masks) == counts(pruned(LAMP(), keep))


def test_same_quota_random_takes_nothing_but_the_counts():
    masks = pruned(SameQuotaRandom(Magnitude()), 40)
    assert masks != pruned(Magnitude(), 40)
    random = pruned(Random(), 40, quota=lambda shapes, keep: counts(pruned(Magnitude(), keep)))
    assert masks == random  # the random numbers of Random itself


def test_a_quota_that_is_given_takes_the_place_of_the_criterion_s():
    masks = pruned(SameQuotaRandom(SNIP()), 40, quota=ERK())
    assert masks == pruned(Random(), 40, quota=ERK())


def test_the_counts_of_filters_are_no_quota():
    line = r"no quota can be taken from L1Filter: its masks keep \d+ connections where 41 are asked"
    with pytest.raises(LitPruneError, match=line):
        pruned(SameQuotaRandom(L1Filter()), 41)


def test_a_floor_beside_the_counts_of_a_criterion_is_an_error():
    with pytest.raises(LitPruneError, match="a floor and a quota both fix what a layer keeps"):
        pruned(SameQuotaRandom(SNIP()), 41, floor=3)


# --- one in another


@pytest.mark.parametrize(
    "criterion",
    [
        Shuffled(Inverted(SNIP())),
        Inverted(Shuffled(SNIP())),
        SameQuotaRandom(Inverted(SNIP())),
        SameQuotaRandom(Shuffled(Inverted(SNIP()))),
        Shuffled(SameQuotaRandom(Inverted(SNIP()))),
        SameQuotaRandom(SameQuotaRandom(Inverted(SNIP()))),
    ],
    ids=str,
)
def test_controls_in_controls_have_the_counts_of_the_innermost(criterion):
    assert counts(pruned(criterion, 25)) == counts(pruned(Inverted(SNIP()), 25))


def test_the_order_of_shuffling_and_inverting_does_not_matter():
    one, other = pruned(Shuffled(Inverted(SNIP())), 25), pruned(Inverted(Shuffled(SNIP())), 25)
    assert one == other


def test_the_counts_of_force_are_met_at_an_effective_target():
    wanted = Target.parse("3x").count(TOTAL)
    for seed in range(2):
        masks = pruned(SameQuotaRandom(QuickForce()), "3x effective", seed)
        assert effective(masks) >= wanted
        fewer = pruned(SameQuotaRandom(QuickForce()), masks.kept - 1, seed)
        assert effective(fewer) < wanted


def test_the_counts_of_force_behind_two_controls_are_met_at_an_effective_target():
    wanted, criterion = (
        Target.parse("3x").count(TOTAL),
        SameQuotaRandom(SameQuotaRandom(QuickForce())),
    )
    for seed in range(4):
        masks = pruned(criterion, "3x effective", seed)
        assert effective(masks) >= wanted
        assert masks == pruned(criterion, masks.kept, seed)
        assert effective(pruned(criterion, masks.kept - 1, seed)) < wanted


def test_the_model_comes_back(untouched):
    model = small()
    asked = {"batches": of_round, "rounds": 3}
    with untouched(model):
        for control in (Shuffled(FORCE()), Inverted(SynFlow()), SameQuotaRandom(SNIP())):
            prune(model, control, 20, **asked)
            prune(model, control, "3x effective", **asked)
