"""The minimum threshold, ``floor=``: what every layer keeps before the rest is ranked together."""

import math
import re
from itertools import pairwise

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from three_layers import asked, of_round
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import Connectivity, LitPruneError, MaskManager, Masks, Ranking, Target, prune
from lit_prune.criteria import (
    FORCE,
    LAMP,
    SNIP,
    GraSP,
    Inverted,
    Magnitude,
    Random,
    Shuffled,
    SynFlow,
    Taylor,
    Wanda,
)
from lit_prune.prune import prune_by_rounds
from lit_prune.quotas import ERK
from lit_prune.ranking import floor_count, least_kept, require_floor

pytestmark = pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed")


def drawn(sizes, seed, ties=False):
    """Layers of scores of very different scale, so that some would be emptied first."""
    draw = np.random.default_rng(seed)
    layers = {}
    for i, size in enumerate(sizes):
        numbers = draw.standard_normal(size) * 10.0 ** draw.integers(-3, 3)
        layers[f"layer{i}.weight"] = torch.from_numpy(numbers.round(1) if ties else numbers)
    return layers


def reference(layers, least, keep):
    """The best of each layer are put aside, and the best of the rest fill up what is left."""
    arrays = {name: layer.numpy() for name, layer in layers.items()}
    reserved = {name: set(np.argsort(-a)[:least].tolist()) for name, a in arrays.items()}
    rest = sorted(
        ((-score, name, i) for name, a in arrays.items() for i, score in enumerate(a)
         if i not in reserved[name]),
    )  # fmt: skip
    for _, name, i in rest[: keep - sum(map(len, reserved.values()))]:
        reserved[name].add(i)
    return {
        name: torch.tensor([i in reserved[name] for i in range(len(a))], dtype=torch.bool)
        for name, a in arrays.items()
    }


SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@given(SIZES, st.integers(0, 99), st.integers(0, 8), st.floats(0, 1))
def test_masks_are_those_of_the_reference(sizes, seed, least, share):
    layers = drawn(sizes, seed)
    reserved = sum(min(least, size) for size in sizes)
    keep = reserved + int(share * (sum(sizes) - reserved))
    masks = Ranking(layers, floor=least).keep(keep)
    assert masks == Masks(reference(layers, least, keep))
    assert masks.kept == keep
    assert all(row.kept >= min(least, row.total) for row in masks.layers())


@pytest.mark.parametrize("ties", [False, True])
@given(sizes=SIZES, seed=st.integers(0, 99), least=st.integers(0, 5))
def test_masks_nest_and_ties_are_counted_exactly(sizes, seed, least, ties):
    ranking = Ranking(drawn(sizes, seed, ties), floor=least)
    reserved = sum(min(least, size) for size in sizes)
    chain = [ranking.keep(k) for k in range(reserved, sum(sizes) + 1)]
    assert [masks.kept for masks in chain] == list(range(reserved, sum(sizes) + 1))
    assert all(smaller <= larger for smaller, larger in pairwise(chain))
    assert all(row.kept == min(least, row.total) for row in chain[0].layers())


@given(SIZES, st.integers(0, 99), st.integers(0, 5), st.integers(0, 9))
def test_among_masks_the_floor_is_of_what_is_left(sizes, seed, least, which):
    layers, draw = drawn(sizes, seed), torch.Generator().manual_seed(which)
    among = Masks({n: torch.rand(s.shape, generator=draw) < 0.6 for n, s in layers.items()})
    ranking = Ranking(layers, among=among, floor=least)
    reserved = sum(min(least, row.kept) for row in among.layers())
    assert least_kept(least, among) == reserved
    left = {name: layer[among[name]] for name, layer in layers.items()}
    for keep in range(reserved, among.kept + 1):
        masks = ranking.keep(keep)
        assert masks <= among
        inside = {name: mask[among[name]] for name, mask in masks.items()}
        assert Masks(inside) == Masks(reference(left, least, keep))


@given(SIZES, st.integers(0, 99), st.booleans())
def test_a_floor_of_zero_is_none(sizes, seed, ties):
    layers = drawn(sizes, seed, ties)
    plain, none, no_share = (Ranking(layers, floor=floor) for floor in (None, 0, "0.0%"))
    for keep in range(0, sum(sizes) + 1, 3):
        assert plain.keep(keep) == none.keep(keep) == no_share.keep(keep)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float64])
def test_scores_of_any_type_have_a_floor(dtype):
    draw = torch.Generator().manual_seed(0)
    layers = {n: torch.randint(0, 200, (9,), generator=draw) // d for n, d in (("a", 1), ("b", 50))}
    ranking = Ranking({name: layer.to(dtype) for name, layer in layers.items()}, floor=3)
    assert {row.name: row.kept for row in ranking.keep(10).layers()} == {"a": 7, "b": 3}
    plain = Ranking({name: layer.double() for name, layer in layers.items()}, floor=3)
    for keep in range(6, 19):
        assert ranking.keep(keep) == plain.keep(keep)


@given(SIZES, st.integers(0, 99), st.integers(0, 4), st.booleans())
def test_levels_hold_the_masks_of_every_count(sizes, seed, least, ties):
    ranking = Ranking(drawn(sizes, seed, ties), floor=least)
    counts = range(sum(min(least, size) for size in sizes), sum(sizes) + 1)
    levels = ranking.levels(counts)
    for j, count in enumerate(counts):
        assert Masks({name: level >= -j for name, level in levels.items()}) == ranking.keep(count)


# --- how it is written


@pytest.mark.parametrize(
    ("floor", "count"),
    [
        (0, 0), (20, 20), ("20", 20), (" 20 ", 20), ("0.05%", 133), ("0.05 %", 133), ("5e-2%", 133),
        ("0.0075%", 19), ("0.0003%", 0), ("100%", 266_200), ("50%", 133_100), ("0%", 0),
    ],
)  # fmt: skip
def test_a_floor_is_a_number_or_a_share_of_the_whole_network(floor, count):
    assert floor_count(floor, 266_200) == count


@example(10_000, 2_900)  # in floating point, 28.999999999999996
@given(st.integers(0, 10**8), st.integers(0, 10**6))
def test_a_share_is_rounded_down_in_exact_arithmetic(total, millionths):
    share = f"{millionths // 10_000}.{millionths % 10_000:04}%"
    assert floor_count(share, total) == total * millionths // 10**6


BAD = [
    "",
    "%",
    "a lot",
    "-1",
    "-0.1%",
    "100.1%",
    "nan%",
    "inf%",
    "1/2%",
    "0.5",
    -1,
    0.05,
    True,
    [3],
]


@pytest.mark.parametrize("floor", BAD, ids=repr)
def test_what_is_no_floor_is_an_error(floor):
    line = rf"floor={re.escape(repr(floor))} is out of range: a whole number of connections, or"
    with pytest.raises(LitPruneError, match=line):
        prune(small(), Magnitude(), 20, floor=floor)
    with pytest.raises(LitPruneError, match=line):
        prune(small(), Magnitude(), "20 effective", floor=floor, example=(1, 6))


# --- what cannot be


@given(SIZES, st.integers(1, 20), st.floats(0, 1))
def test_a_floor_that_is_too_high_names_the_highest_that_is_not(sizes, least, share):
    layers = {f"layer{i}": torch.ones(size) for i, size in enumerate(sizes)}
    reserved = sum(min(least, size) for size in sizes)
    keep = int(share * (reserved - 1))
    with pytest.raises(LitPruneError) as raised:
        Ranking(layers, floor=least).keep(keep)
    words = rf"floor={least} keeps at least {reserved} connections in {len(sizes)} layers, but"
    line = re.fullmatch(rf"{words} {keep} are to be kept; the largest floor for that is (\d+)",
                        str(raised.value))  # fmt: skip
    largest = int(line[1])
    assert largest < least
    assert Ranking(layers, floor=largest).keep(keep).kept == keep
    with pytest.raises(LitPruneError, match="the largest floor"):
        Ranking(layers, floor=largest + 1).keep(keep)


def small(seed=0):
    """A network whose last layers magnitude empties first: its weights are of fan-in 40."""
    torch.manual_seed(seed)
    layers = (nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 5), nn.ReLU(), nn.Linear(5, 3))
    return nn.Sequential(*layers)


TOTAL = 240 + 200 + 15


def counts(masks):
    return [row.kept for row in masks.layers()]


def effective(masks):
    return Connectivity(small(), (1, 6), include=list(masks)).effective(masks).kept


def failing(probe):
    raise AssertionError("nothing should be scored")


@pytest.mark.parametrize("target", [20, {"keep": 20}])
def test_prune_says_so_before_anything_is_scored(target):
    line = "floor=7 keeps at least 21 connections in 3 layers, but 20 are to be kept; .* is 6"
    with pytest.raises(LitPruneError, match=line):
        prune(small(), failing, target, floor=7)


def test_a_share_of_the_network_is_named_as_it_was_written():
    line = r"floor=5% keeps at least 59 connections .* 45 are .* largest floor for that is 15"
    with pytest.raises(LitPruneError, match=line):
        prune(small(), Magnitude(), 45, floor="5%")


@pytest.mark.parametrize("target", [100, "100 effective"])
def test_a_floor_and_a_quota_are_one_too_many(target):
    line = "a floor and a quota both fix what a layer keeps: give one of them"
    with pytest.raises(LitPruneError, match=line):
        prune(small(), failing, target, quota=ERK(), floor=3, example=(1, 6))
    with pytest.raises(LitPruneError, match=line):
        Ranking({"a": torch.ones(9)}, quota=ERK(), floor=3)


def test_a_dense_target_needs_no_floor():
    assert prune(small(), failing, "1x", floor="50%").kept == TOTAL


# --- every criterion, rounds and targets


class QuickForce(FORCE):
    rounds = 6


class QuickSynFlow(SynFlow):
    rounds = 6


CRITERIA = [Magnitude(), Random(), LAMP(), SNIP(), GraSP(), QuickSynFlow(), QuickForce(), Taylor()]
CRITERIA += [Wanda(), Shuffled(SNIP()), Inverted(QuickSynFlow())]
EVERY_CRITERION = pytest.mark.parametrize("criterion", CRITERIA, ids=repr)


@EVERY_CRITERION
@pytest.mark.parametrize("rounds", [None, 1, 4])
@pytest.mark.parametrize("floor", [6, "2%"])
def test_every_layer_keeps_its_floor_in_every_round(criterion, rounds, floor):
    dense, least = Masks.dense(small()), floor_count(floor, TOTAL)
    steps = prune_by_rounds(small(), dense, criterion, 32, rounds=rounds, floor=floor, **asked())
    for masks in steps:
        assert min(counts(masks)) >= least
    assert masks.kept == 32


def test_a_floor_helps_where_a_layer_would_be_emptied():
    plain = prune(small(), Magnitude(), 40, **asked())
    assert counts(plain)[1] < 6
    masks = prune(small(), Magnitude(), 40, floor=6, **asked())
    assert counts(masks)[1] == 6
    weight = small()[2].weight.detach().abs()
    assert weight[masks["2.weight"]].min() > weight[~masks["2.weight"]].max()


def test_a_floor_that_all_layers_exceed_anyway_changes_nothing():
    for criterion in (LAMP(), SNIP()):
        plain = prune(small(), criterion, 200, **asked())
        assert prune(small(), criterion, 200, floor=min(counts(plain)), **asked()) == plain
        assert prune(small(), criterion, 200, floor=0, **asked()) == plain


def test_a_layer_smaller_than_the_floor_is_dense():
    masks = prune(small(), Magnitude(), 60, floor=20, **asked())
    assert masks["4.weight"].all()
    assert masks.kept == 60


@pytest.mark.parametrize("search", ["curve", "reprune"])
@EVERY_CRITERION
def test_an_effective_target_keeps_the_floor_and_one_connection_less_is_too_few(criterion, search):
    wanted = Target.parse("40 effective").count(TOTAL)
    masks = prune(small(), criterion, "40 effective", search=search, floor=8, **asked())
    assert min(counts(masks)) >= 8
    assert effective(masks) >= wanted
    if criterion.rounds == 1 or criterion.regrows:
        assert masks == prune(small(), criterion, masks.kept, floor=8, **asked())
        if masks.kept > 24:
            fewer = prune(small(), criterion, masks.kept - 1, floor=8, **asked())
            assert effective(fewer) < wanted


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("rounds", [1, 3])
@settings(max_examples=20)
@given(seed=st.integers(0, 20), wanted=st.integers(1, 250), floor=st.integers(0, 15))
def test_effective_targets_are_met_by_the_fewest_that_keep_the_floor(seed, wanted, floor, rounds,
                                                                     search):  # fmt: skip
    """All that a floor leaves to choose from, tried one by one by the scores of one round."""
    least = least_kept(floor, Masks.dense(small()))
    smallest = prune(small(), Random(), least, rounds=rounds, **asked(seed, floor=floor))
    target = Target(keep=wanted, measure="effective")
    options = asked(seed, floor=floor, rounds=rounds, search=search)
    if least > wanted and effective(smallest) > wanted:
        with pytest.raises(LitPruneError, match="the largest floor for that is"):
            prune(small(), Random(), target, **options)
        return
    masks = prune(small(), Random(), target, **options)
    assert masks.kept >= max(wanted, least)
    assert min(counts(masks)) >= floor
    assert effective(masks) >= wanted
    if rounds == 1 and masks.kept > max(wanted, least):
        fewer = prune(small(), Random(), masks.kept - 1, **asked(seed, floor=floor))
        assert effective(fewer) < wanted


def test_an_effective_target_below_the_floor_is_named_as_it_was_asked_for():
    with pytest.raises(LitPruneError, match=r"but 10 are to be kept; the largest floor .* is 3"):
        prune(small(), SynFlow(), "10 effective", rounds=1, floor=15, **asked())


def test_an_effective_target_below_the_floor_is_named_after_rounds_and_by_pruning_anew():
    for search, rounds in (("curve", 4), ("reprune", 1), ("reprune", 4)):
        with pytest.raises(
            LitPruneError, match=r"but 10 are to be kept; the largest floor .* is 3"
        ):
            prune(small(), SynFlow(), "10 effective", rounds=rounds, search=search, floor=15,
                  **asked())  # fmt: skip


def test_an_effective_target_of_nothing_does_not_keep_a_floor():
    with pytest.raises(LitPruneError, match="the largest floor for that is 0"):
        prune(small(), Random(), "0 effective", floor=5, allow_collapse=True, **asked())


def test_what_is_ineffective_may_go_below_the_floor():
    plain = prune(small(), Magnitude(), 30, floor=6, **asked())
    bare = prune(small(), Magnitude(), 30, floor=6, prune_ineffective=True, **asked())
    assert bare == Connectivity(small(), (1, 6)).effective(plain)


def test_a_network_of_which_some_is_gone_keeps_what_it_has_up_to_the_floor():
    draw, dense = torch.Generator().manual_seed(4), Masks.dense(small())
    start = Masks({n: torch.rand(m.shape, generator=draw) < 0.3 for n, m in dense.items()})
    assert 0 < counts(start)[2] < 12
    for criterion in (Magnitude(), SNIP(), QuickForce()):
        steps = prune_by_rounds(small(), start, criterion, 40, rounds=3, floor=12, **asked())
        for masks in steps:
            assert masks <= start
            assert counts(masks)[2] == counts(start)[2]
            assert min(counts(masks)[:2]) >= 12
        assert masks.kept == 40
    require_floor(12, start, 24 + counts(start)[2])
    with pytest.raises(LitPruneError, match=f"at least {24 + counts(start)[2]} connections"):
        require_floor(12, start, 23 + counts(start)[2])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_weights_is_no_hindrance():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 0))
    masks = prune(model, Magnitude(), 8, floor=3)
    assert masks.kept == 8
    assert counts(masks)[2] == 0
    assert min(counts(masks)[:2]) >= 3


def test_nan_and_infinity_stay_errors():
    for bad in (math.nan, math.inf):
        model = small()
        with torch.no_grad():
            model[2].weight[0, 0] = bad
        with pytest.raises(LitPruneError, match=r"2\.weight"):
            prune(model, Magnitude(), 60, floor=5)


def test_a_mask_manager_keeps_the_floor():
    class Own(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return self(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = DataLoader(TensorDataset(*of_round(0)[0]), 3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
             "enable_model_summary": False, "accelerator": "cpu"}  # fmt: skip
    manager = MaskManager(Magnitude(), 40, floor="2%")
    pl.Trainer(max_epochs=1, callbacks=[manager], **quiet).fit(Own(), batches)
    assert manager.masks.kept == 40
    assert list(manager.masks.values())[1].sum() == 9
    manager = MaskManager(Magnitude(), 40, floor=20)
    with pytest.raises(LitPruneError, match="floor=20 keeps at least"):
        pl.Trainer(max_epochs=1, callbacks=[manager], **quiet).fit(Own(), batches)
