"""Rounds: fresh batches, connections that return, whole filters, and masks that are rearranged."""

import math
import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from three_layers import TOTAL, of_layers, of_round
from torch import nn
from torch.func import functional_call, grad

from lit_prune import Connectivity, LitPruneError, Masks, Probe, Ranking, Target, prune
from lit_prune.callbacks.training_batches import TrainingBatches
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
from lit_prune.errors import LitPruneWarning, NonFiniteScores
from lit_prune.prune import prune_by_rounds
from lit_prune.quotas import ERK, IGQ, FromCriterion, PerLayer, Uniform, UniformPlus
from lit_prune.search import Trail
from lit_prune.spine import budgets

pytestmark = pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed")


small = partial(of_layers, nn.Tanh)


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def counts(masks):
    return [row.kept for row in masks.layers()]


def effective(masks):
    return Connectivity(small(), (1, 6), include=list(masks)).effective(masks).kept


def steps_of(criterion, target, rounds, start=None, **asked):
    model = small()
    asked = {"batches": of_round, "example": (1, 6), "generator": seeded()} | asked
    dense = start or Masks.dense(model)
    return list(prune_by_rounds(model, dense, criterion, target, rounds=rounds, **asked))


# --- fresh batches


class Reader(Criterion):
    """Ranks by size; reads its batches as often as it is told to, and notes what it is shown."""

    def __init__(self, times=1):
        self.times = times
        self.rounds_seen, self.batches_seen, self.masks_seen = [], [], []

    def __call__(self, probe):
        self.rounds_seen.append(probe.round)
        self.masks_seen.append(probe.masks)
        for _ in range(self.times):
            self.batches_seen.append([float(x.sum()) for x, _ in probe.batches])
        return Magnitude()(probe)


class Source:
    """A function of the round that notes which it is asked for."""

    def __init__(self):
        self.turns = []

    def __call__(self, turn):
        self.turns.append(turn)
        yield from of_round(turn)


def test_every_round_has_the_batches_of_its_number():
    reader, source = Reader(), Source()
    steps_of(reader, 10, rounds=4, batches=source)
    assert source.turns == reader.rounds_seen == [0, 1, 2, 3]
    assert reader.batches_seen == [[float(x.sum()) for x, _ in of_round(n)] for n in range(4)]


def test_the_batches_of_a_round_are_read_once_however_often_they_are_looked_at():
    reader, source = Reader(times=3), Source()
    steps_of(reader, 10, rounds=2, batches=source)
    assert source.turns == [0, 1]
    assert reader.batches_seen[0] == reader.batches_seen[1] == reader.batches_seen[2]
    assert reader.batches_seen[2] != reader.batches_seen[3] == reader.batches_seen[5]


def test_batches_that_nobody_looks_at_are_not_read():
    source = Source()
    steps_of(Reader(times=0), 10, rounds=4, batches=source)
    assert source.turns == []
    assert prune(small(), Reader(), "1x", batches=source).kept == TOTAL
    assert source.turns == []


def test_the_shape_of_an_input_is_taken_from_the_first_batch_alone():
    source = Source()
    steps_of(SynFlow(), 10, rounds=4, batches=source, example=None)
    assert source.turns in ([0], [0, 1, 2, 3])
    expected = steps_of(SynFlow(), 10, rounds=4)
    assert steps_of(SynFlow(), 10, rounds=4, batches=of_round, example=None) == expected


def test_a_list_of_batches_serves_every_round_anew():
    reader = Reader()
    steps_of(reader, 10, rounds=3, batches=of_round(5))
    assert reader.batches_seen == [[float(x.sum()) for x, _ in of_round(5)]] * 3


def test_pruning_anew_starts_with_the_first_batches_and_the_same_numbers():
    reader, source = Reader(), Source()
    steps_of(reader, "4x effective", 3, batches=source, search="reprune")
    times = len(reader.rounds_seen) // 3
    assert times > 1
    assert reader.rounds_seen == source.turns == [0, 1, 2] * times
    masks = steps_of(Random(), "4x effective", 3, search="reprune")[-1]
    assert masks == steps_of(Random(), masks.kept, 3)[-1]


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_function_of_the_round_serves_an_effective_target(search, rounds):
    wanted = Target.parse("4x").count(TOTAL)
    masks = steps_of(SNIP(), "4x effective", rounds, search=search, example=None)[-1]
    assert effective(masks) >= wanted
    assert masks == steps_of(SNIP(), "4x effective", rounds, search=search)[-1]


def test_errors_inside_of_the_function_come_through():
    def broken(turn):
        raise ZeroDivisionError(turn)

    with pytest.raises(ZeroDivisionError):
        prune(small(), SNIP(), 10, batches=broken)


def test_batches_of_a_trainer_are_such_a_function():
    assert callable(TrainingBatches)
    assert not hasattr(TrainingBatches, "__iter__")


# --- iterative SNIP


def gradients(model, masks, batches):
    """Of the mean loss, at the weights that the masks leave."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    at = {name: p * masks[name] if name in masks else p for name, p in parameters.items()}

    def loss(at):
        losses = [F.cross_entropy(functional_call(model, at, (x,)), y) for x, y in batches]
        return sum(losses) / len(losses)

    return {name: (at[name], grad(loss)(at)[name]) for name in masks}


def best_of(scores, among, keep):
    """The ``keep`` highest scores of what is among, by a plain sort."""
    rows = [
        (-float(scores[n].flatten()[i]), n, i)
        for n, mask in among.items()
        for i in mask.flatten().nonzero().flatten().tolist()
    ]
    masks = {name: torch.zeros(mask.numel(), dtype=torch.bool) for name, mask in among.items()}
    for _, name, i in sorted(rows)[:keep]:
        masks[name][i] = True
    return Masks({name: masks[name].view(mask.shape) for name, mask in among.items()})


def test_snip_in_rounds_is_iterative_snip():
    model = small()
    masks, steps = Masks.dense(model), []
    for turn, keep in enumerate(budgets(TOTAL, 10, 6)):
        found = gradients(model, masks, of_round(turn))
        masks = best_of({n: (w * g).abs() for n, (w, g) in found.items()}, masks, keep)
        steps.append(masks)
    assert steps_of(SNIP(), 10, rounds=6) == steps
    assert all(later <= earlier for earlier, later in pairwise(steps))
    same_batches = steps_of(SNIP(), 10, rounds=6, batches=of_round(0))
    assert same_batches[0] == steps[0]
    assert same_batches != steps


def test_force_in_rounds_ranks_all_connections_again():
    model = small()
    dense = masks = Masks.dense(model)
    steps = []
    for turn, keep in enumerate(budgets(TOTAL, 10, 6)):
        found = gradients(model, masks, of_round(turn))
        scores = {n: (model.get_parameter(n).detach() * g).abs() for n, (_, g) in found.items()}
        masks = best_of(scores, dense, keep)
        steps.append(masks)
    assert steps_of(FORCE(), 10, rounds=6) == steps
    assert not all(later <= earlier for earlier, later in pairwise(steps))


# --- connections that return


class Fickle(Criterion):
    """Other scores in every round, of all connections, and removed ones may return."""

    regrows = True

    def __call__(self, probe):
        draw = seeded(probe.round)
        return {n: torch.rand(mask.shape, generator=draw) for n, mask in probe.masks.items()}


def test_what_returns_is_ranked_by_the_scores_of_the_round_alone():
    steps = steps_of(Fickle(), 12, rounds=5)
    shapes = Masks.dense(small())
    for turn, (masks, keep) in enumerate(zip(steps, budgets(TOTAL, 12, 5), strict=True)):
        draw = seeded(turn)
        scores = {n: torch.rand(mask.shape, generator=draw) for n, mask in shapes.items()}
        assert masks == Ranking(scores).keep(keep)


def test_every_round_sees_the_masks_of_the_round_before():
    seen = []

    class Watched(Fickle):
        def __call__(self, probe):
            seen.append(probe.masks)
            return super().__call__(probe)

    steps = steps_of(Watched(), 12, rounds=4)
    assert seen == [Masks.dense(small()), *steps[:-1]]


def test_nothing_returns_that_was_gone_at_the_start():
    start = Masks(
        {n: torch.rand(m.shape, generator=seeded(3)) < 0.5 for n, m in Masks.dense(small()).items()}
    )
    for quota in (None, Uniform()):
        steps = steps_of(Fickle(), 8, 4, start, quota=quota)
        assert all(masks <= start for masks in steps)
        assert [masks.kept for masks in steps] == list(budgets(start.kept, 8, 4))


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("quota", [None, ERK()])
def test_what_does_not_nest_is_pruned_anew_for_an_effective_target(quota, search):
    wanted = Target.parse("3x").count(TOTAL)
    masks = steps_of(Fickle(), "3x effective", 4, quota=quota, search=search)[-1]
    assert effective(masks) >= wanted
    assert masks == steps_of(Fickle(), masks.kept, 4, quota=quota)[-1]
    assert effective(steps_of(Fickle(), masks.kept - 1, 4, quota=quota)[-1]) < wanted


# --- whole filters


class Rows(Criterion):
    """The same random score for a whole row."""

    whole_filters = True

    def __call__(self, probe):
        draw = seeded(0)
        return {
            n: torch.rand(len(mask), 1, generator=draw).expand(mask.shape)
            for n, mask in probe.masks.items()
        }


@pytest.mark.filterwarnings("ignore::lit_prune.errors.LitPruneWarning")
@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("keep", [0, 1, 20, 50, 102, TOTAL])
def test_a_criterion_of_whole_filters_keeps_whole_rows(keep, rounds):
    masks = prune(small(), Rows(), keep, rounds=rounds)
    rows = torch.cat([mask.all(1) == mask.any(1) for mask in masks.values()])
    assert rows.all()
    assert keep <= masks.kept < keep + 8


def test_only_what_is_rounded_is_said_and_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        masks = prune(small(), Rows(), 50, rounds=4)
    assert masks.kept > 50
    assert [str(w.message) for w in caught] == [
        f"whole filters are kept: {masks.kept} connections instead of 50"
    ]
    assert caught[0].category is LitPruneWarning


# --- masks that are rearranged


class Turned(Criterion):
    """Ranks by chance, a little by what is left, and turns the final masks around."""

    def __init__(self, rounds=1):
        self.number = rounds
        self.seen = []

    def __call__(self, probe):
        self.seen.append(probe.masks)
        draw = seeded(probe.masks.kept)
        return {n: torch.rand(mask.shape, generator=draw) for n, mask in probe.masks.items()}

    def places(self, masks, generator):
        return {name: torch.arange(mask.numel()).flip(0) for name, mask in masks.items()}


class Straight(Turned):
    def places(self, masks, generator):
        return None


def flipped(masks):
    return Masks({name: mask.flip(0, 1) for name, mask in masks.items()})


@pytest.mark.parametrize("rounds", [1, 5])
@pytest.mark.parametrize("quota", [None, ERK()])
def test_the_masks_of_every_round_are_rearranged_and_the_criterion_does_not_know(rounds, quota):
    turned, straight = Turned(), Straight()
    after = steps_of(turned, 12, rounds, quota=quota)
    before = steps_of(straight, 12, rounds, quota=quota)
    assert after == [flipped(masks) for masks in before]
    assert turned.seen == straight.seen


def test_elements_are_taken_from_the_places():
    class Cycled(Magnitude):
        def places(self, masks, generator):
            return {name: torch.arange(mask.numel()).roll(1) for name, mask in masks.items()}

    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 4.0, 3.0, 2.0]]))
    assert prune(model, Magnitude(), 2)["weight"].tolist() == [[False, True, True, False]]
    assert prune(model, Cycled(), 2)["weight"].tolist() == [[False, False, True, True]]


def test_places_are_drawn_once_a_prune_from_numbers_of_their_own():
    calls = []

    class Drawing(Random):
        def places(self, masks, generator):
            calls.append(torch.rand(3, generator=generator).tolist())
            return None

    plain = steps_of(Random(), 12, 4)
    assert steps_of(Drawing(), 12, 4) == plain
    assert steps_of(Drawing(), 12, 4) == plain
    assert len(calls) == 2
    assert calls[0] == calls[1]
    steps_of(Drawing(), 12, 4, generator=seeded(2))
    assert calls[2] != calls[0]


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("rounds", [1, 2, 6])
@pytest.mark.parametrize("quota", [None, ERK()])
def test_a_rearranged_chain_is_searched_as_any_other(quota, rounds, search):
    """All masks on the way to the direct count, turned around, and tried one by one."""
    wanted, straight = Target.parse("3x").count(TOTAL), Straight()
    steps = steps_of(straight, wanted, rounds, quota=quota)
    chain = {}
    for among, after in zip(straight.seen, steps, strict=True):
        draw = seeded(among.kept)
        scores = {n: torch.rand(mask.shape, generator=draw) for n, mask in among.items()}
        ranking = Ranking(scores, quota, among=among)
        chain |= {k: flipped(ranking.keep(k)) for k in range(after.kept, among.kept + 1)}
    expected = next(k for k in sorted(chain) if effective(chain[k]) >= wanted)
    found = steps_of(Turned(), "3x effective", rounds, quota=quota, search=search)[-1]
    assert effective(found) >= wanted
    if search == "curve":
        assert found == chain[expected]


def test_a_rearranged_ranking_keeps_the_places_of_what_it_kept():
    draw = seeded()
    scores = {"a": torch.rand(5, 4, generator=draw), "b": torch.rand(2, 5, generator=draw)}
    among = Masks({n: torch.rand(s.shape, generator=draw) < 0.6 for n, s in scores.items()})
    places = {n: torch.randperm(s.numel(), generator=draw) for n, s in scores.items()}
    for quota in (None, Uniform()):
        ranking = Ranking(scores, quota, among if quota is None else None)
        rearranged = ranking.rearranged(places)
        for k in range(ranking.total + 1):
            for name, mask in rearranged.keep(k).items():
                before = ranking.keep(k)[name].flatten()
                assert torch.equal(mask.flatten(), before[places[name]])


# --- the whole order of a run in rounds


def test_a_trail_has_the_masks_of_every_count_and_goes_on_below_its_end():
    model, dense = small(), Masks.dense(small())
    for quota in (None, ERK()):
        straight, masks, trail = Straight(), dense, Trail(dense, quota)
        expected = {}
        for turn, keep in enumerate((60, 60, 25)):
            scores = straight(Probe(model, masks, round=turn))
            ranking = Ranking(scores, quota, among=masks)
            after = ranking.keep(keep)
            expected |= {k: ranking.keep(k) for k in range(keep, masks.kept + 1)}
            trail.add(masks, after, ranking)
            masks = after
        expected |= {k: ranking.keep(k) for k in range(25)}
        assert sorted(expected) == list(range(TOTAL + 1))
        assert all(trail.keep(k) == masks for k, masks in expected.items())


# --- scores that rank nothing


def constant(value):
    def same_for_all(probe):
        return {n: torch.full(mask.shape, value) for n, mask in probe.masks.items()}

    return same_for_all


@pytest.mark.parametrize("value", [0.0, 0.25, -1.0])
def test_equal_scores_are_said_once_with_the_name_and_the_value(value):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        masks = prune(small(), constant(value), 20, rounds=3)
    assert masks.kept == 20
    (said,) = caught
    assert said.category is LitPruneWarning
    line = f"same_for_all gives every connection the same score, {value:g}: which are kept is left"
    assert str(said.message).startswith(line)


def test_a_network_without_a_gradient_is_said_to_have_equal_scores():
    def nothing(model, batch):
        return 0 * model(batch[0]).sum()

    for criterion in (SNIP(), FORCE(), Taylor(), GraSP()):
        name = type(criterion).__name__
        with pytest.warns(LitPruneWarning, match=f"{name} gives every connection the same score"):
            masks = prune(small(), criterion, 20, rounds=1, batches=of_round, loss=nothing)
        assert masks.kept == 20


@pytest.mark.parametrize("where", [("0.weight", 0), ("0.weight", 47), ("4.weight", 14)])
def test_one_score_that_differs_is_enough(where):
    def nearly_constant(probe):
        scores = constant(1.0)(probe)
        scores[where[0]].view(-1)[where[1]] = 2
        return scores

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = prune(small(), nearly_constant, 1)
    assert masks[where[0]].flatten()[where[1]]


# --- data and networks that are out of the ordinary

WITH_DATA = [SNIP(), GraSP(), FORCE(), Taylor(), Wanda(False)]
WITHOUT = [Magnitude(), Random(), LAMP(), SynFlow(), L1Filter(), Wanda()]
CONTROLS = [Shuffled(SNIP()), Inverted(SNIP()), SameQuotaRandom(SNIP())]


@pytest.mark.parametrize("criterion", [*WITH_DATA, Shuffled(SNIP()), Inverted(SNIP())], ids=repr)
@pytest.mark.parametrize("turn", [0, 1])
def test_data_with_nan_is_an_error_that_names_a_layer(criterion, turn):
    def broken(at):
        batches = of_round(at)
        if at == turn:
            batches[1][0][3, 2] = math.nan
        return batches

    with pytest.raises(NonFiniteScores, match=r"the scores of 0\.weight hold NaN"):
        prune(small(), criterion, 20, rounds=2, batches=broken)


def nan_in(model, name):
    with torch.no_grad():
        model.get_parameter(name)[1, 1] = math.nan
    return model


@pytest.mark.parametrize("criterion", [*WITH_DATA, Magnitude(), LAMP(), SynFlow(), L1Filter()],
                         ids=repr)  # fmt: skip
def test_a_weight_of_nan_is_an_error_that_names_a_layer(criterion):
    with pytest.raises(NonFiniteScores, match=r"(scores|weights) of \d\.weight"):
        prune(nan_in(small(), "4.weight"), criterion, 20, batches=of_round, example=(1, 6))


@pytest.mark.filterwarnings("ignore::lit_prune.errors.LitPruneWarning")
@pytest.mark.parametrize("criterion", [*WITH_DATA, *WITHOUT, *CONTROLS], ids=repr)
def test_a_layer_of_zero_weights_is_pruned_exactly_or_named(criterion):
    model = small()
    nn.init.zeros_(model[4].weight)
    asked = {"batches": of_round, "example": (1, 6)}
    if criterion == LAMP():
        with pytest.raises(LitPruneError, match=r"the weights of 4\.weight are all zero"):
            prune(model, criterion, 20, **asked)
        return
    for rounds in (1, 3):
        masks = prune(model, criterion, 20, rounds=rounds, **asked)
        assert 20 <= masks.kept < 20 + (8 if criterion == L1Filter() else 1)


class Beside(nn.Module):
    """A network beside which lies a layer without any weight."""

    def __init__(self, empty):
        super().__init__()
        self.net, self.empty = small(), empty

    def forward(self, x):
        return self.net(x)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("criterion", [*WITH_DATA, *WITHOUT, *CONTROLS], ids=repr)
def test_a_layer_without_weights_is_no_hindrance_to_a_criterion(criterion):
    asked = {"batches": of_round, "example": (1, 6)}
    for rounds in (1, 2):
        masks = prune(Beside(nn.Linear(0, 3)), criterion, 20, rounds=rounds, **asked)
        assert masks.kept == 20 or (criterion.whole_filters and 20 < masks.kept < 30)
        assert counts(masks)[3] == 0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "quota",
    [
        *(IGQ(), Uniform(), UniformPlus(), PerLayer(), FromCriterion(LAMP())),
        ERK(),
    ],
    ids=repr,
)
def test_a_layer_without_weights_is_no_hindrance_to_a_quota(quota):
    model = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 4), nn.Linear(4, 3))
    masks = prune(model, Magnitude(), 12, quota)
    assert masks.kept == 12
    assert counts(masks)[0] == 0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_weights_is_no_hindrance_to_a_floor():
    masks = prune(Beside(nn.Linear(0, 3)), Magnitude(), 20, floor=4)
    assert masks.kept == 20
    assert min(counts(masks)[:3]) >= 4
