"""Rankings: exactly k, nested, with quotas and among what is left."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from lit_prune import LitPruneError, Masks, Ranking
from lit_prune.errors import NonFiniteScores, QuotaOutOfRange
from lit_prune.quotas import ERK, Uniform

SHAPES = {"a": (300, 400), "b": (7,), "c": (16, 8, 3, 3), "d": (100, 10)}
NUMBERS = st.sampled_from([-math.inf, -3.0, -0.5, 0.0, 0.0, 1.0, 1.0, 2.5, math.inf])


@st.composite
def scores(draw, numbers=NUMBERS):
    shapes = draw(st.lists(array_shapes(max_dims=3, max_side=3), min_size=1, max_size=4))
    layers = {}
    for i, shape in enumerate(shapes):
        n = math.prod(shape)
        layer = torch.tensor(draw(st.lists(numbers, min_size=n, max_size=n)))
        layers[f"layer{i}.weight"] = layer.view(shape)
    return layers


def candidates(layers, seed):
    draw = torch.Generator().manual_seed(seed)
    return Masks({n: torch.rand(layer.shape, generator=draw) < 0.6 for n, layer in layers.items()})


def in_order(shapes, keep):
    """A quota that fills the layers one after the other: exact, monotone, and lopsided."""
    counts = {}
    for name, shape in shapes.items():
        counts[name] = min(keep, shape.numel())
        keep -= counts[name]
    return counts


def sizes(masks):
    return [int(mask.sum()) for mask in masks.values()]


def best_and_worst(layer, mask):
    """The lowest score that is kept and the highest that is not."""
    kept, gone = layer[mask], layer[~mask]
    lowest = float(kept.min()) if kept.numel() else math.inf
    return lowest, float(gone.max()) if gone.numel() else -math.inf


@given(scores())
def test_keeps_exactly_k_of_the_highest_and_nests(layers):
    ranking = Ranking(layers)
    masks = [ranking.keep(k) for k in range(ranking.total + 1)]
    assert ranking.total == sum(layer.numel() for layer in layers.values())
    assert [m.kept for m in masks] == list(range(ranking.total + 1))
    assert all(smaller <= larger for smaller, larger in pairwise(masks))
    everything = torch.cat([layer.flatten() for layer in layers.values()])
    for mask in masks:
        kept = torch.cat([m.flatten() for m in mask.values()])
        lowest, highest_gone = best_and_worst(everything, kept)
        assert lowest >= highest_gone
        assert list(mask) == list(layers)


@pytest.mark.parametrize("quota", [Uniform(), in_order])
@given(layers=scores())
def test_a_quota_fixes_the_layers_and_scores_rank_inside(quota, layers):
    ranking, shapes = Ranking(layers, quota), {n: layer.shape for n, layer in layers.items()}
    masks = [ranking.keep(k) for k in range(ranking.total + 1)]
    assert all(smaller <= larger for smaller, larger in pairwise(masks))
    for k, mask in enumerate(masks):
        assert sizes(mask) == list(quota(shapes, k).values())
        for name, layer in layers.items():
            lowest, highest_gone = best_and_worst(layer, mask[name])
            assert lowest >= highest_gone


@given(scores(), st.integers(0, 9))
def test_only_what_is_left_is_ranked(layers, seed):
    among = candidates(layers, seed)
    ranking = Ranking(layers, among=among)
    masks = [ranking.keep(k) for k in range(ranking.total + 1)]
    assert ranking.total == among.kept
    assert [m.kept for m in masks] == list(range(among.kept + 1))
    assert all(smaller <= larger for smaller, larger in pairwise([*masks, among]))
    assert masks[-1] == among


@given(scores(), st.integers(0, 9))
def test_what_is_left_is_ranked_as_before(layers, seed):
    among = candidates(layers, seed)
    whole, rest = Ranking(layers), Ranking(layers, among=among)
    for k in range(whole.total + 1):
        survivors = whole.keep(k) & among
        assert rest.keep(survivors.kept) == survivors


@pytest.mark.parametrize("quota", [Uniform(), in_order])
@given(layers=scores())
def test_rounds_inside_a_monotone_quota_end_where_one_round_ends(quota, layers):
    ranking = Ranking(layers, quota)
    for k in range(0, ranking.total + 1, 3):
        wider = ranking.keep((k + ranking.total) // 2)
        assert Ranking(layers, quota, among=wider).keep(k) == ranking.keep(k)


# --- many masks as one tensor of levels


@st.composite
def rankings(draw):
    """A ranking of any scores, with ties and infinities, and rising counts to tell apart."""
    layers = draw(scores())
    quota = draw(st.sampled_from([None, Uniform(), ERK(), in_order]))
    among = None
    if quota is None and draw(st.booleans()):
        among = candidates(layers, draw(st.integers(0, 9)))
    elif quota is not None and draw(st.booleans()):
        # What rounds with this quota leave, so that it can go on.
        whole = Ranking(layers, quota)
        among = whole.keep(draw(st.integers(0, whole.total)))
    ranking = Ranking(layers, quota, among)
    numbers = st.integers(0, ranking.total)
    counts = draw(st.lists(numbers, min_size=1, max_size=12, unique=True))
    return ranking, sorted(counts)


@given(rankings())
def test_a_level_holds_the_masks_of_its_count(drawn):
    ranking, counts = drawn
    levels = ranking.levels(counts)
    assert list(levels) == list(ranking.scores)
    assert all(values.dtype == torch.float32 for values in levels.values())
    for j, count in enumerate(counts):
        assert Masks({name: values >= -j for name, values in levels.items()}) == ranking.keep(count)
    values = torch.cat([values.flatten() for values in levels.values()])
    assert set(values.tolist()) <= {*map(float, range(-len(counts) + 1, 1)), -math.inf}
    assert int((values > -math.inf).sum()) == counts[-1]


@given(rankings())
def test_all_counts_in_one_have_as_many_levels_as_connections(drawn):
    ranking, _ = drawn
    levels = ranking.levels(range(ranking.total + 1))
    values = torch.cat([values.flatten() for values in levels.values()])
    assert sorted(-values[values > -math.inf]) == list(range(1, ranking.total + 1))


@pytest.mark.parametrize("quota", [None, Uniform()])
def test_levels_of_a_large_ranking_of_ties(quota):
    draw = torch.Generator().manual_seed(0)
    layers = {n: torch.randint(3, s, generator=draw) for n, s in SHAPES.items()}
    ranking = Ranking(layers, quota)
    counts = [0, 1, 7_000, 7_001, 60_000, ranking.total]
    levels = ranking.levels(counts)
    for j, count in enumerate(counts):
        assert Masks({name: values >= -j for name, values in levels.items()}) == ranking.keep(count)


def test_counts_that_repeat_have_a_level_each():
    levels = Ranking({"a": torch.tensor([3.0, 1.0, 2.0])}).levels([1, 1, 2])
    assert levels["a"].tolist() == [0, -math.inf, -2]


@pytest.mark.parametrize("counts", [[-1, 2], [0, 4]])
def test_levels_of_more_than_there_are_are_an_error(counts):
    with pytest.raises(LitPruneError, match="of 3 connections"):
        Ranking({"a": torch.ones(3)}).levels(counts)


def test_scores_of_what_is_not_ranked_are_minus_infinity():
    among = Masks({"a": torch.tensor([True, False, True])})
    ranking = Ranking({"a": torch.tensor([1.0, 2.0, -3.0])}, among=among)
    assert ranking.scores["a"].tolist() == [1, -math.inf, -3]
    assert Ranking({"a": torch.tensor([1.0, 2.0])}).scores["a"].tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_whole_scores_of_what_is_not_ranked_are_lower_than_any_other(dtype):
    scores = torch.tensor([torch.iinfo(dtype).min, 7, torch.iinfo(dtype).max]).to(dtype)
    among = Masks({"a": torch.tensor([True, False, True])})
    found = Ranking({"a": scores}, among=among).scores["a"]
    assert found[1] < found[0] < found[2]


# --- ties


@given(scores())
def test_ties_are_broken_alike_every_time(layers):
    first, again = Ranking(layers), Ranking({n: layer.clone() for n, layer in layers.items()})
    for k in range(first.total + 1):
        assert first.keep(k) == first.keep(k) == again.keep(k)


def test_ties_ignore_the_global_generator():
    torch.manual_seed(1)
    one = Ranking({"a": torch.zeros(30, 30)}).keep(100)
    torch.manual_seed(2)
    assert Ranking({"a": torch.zeros(30, 30)}).keep(100) == one


def test_ties_leave_no_region_empty():
    kept = Ranking({"a": torch.zeros(50, 40), "b": torch.zeros(500)}).keep(500)
    assert int(kept["b"].sum()) == pytest.approx(100, abs=35)
    assert int(kept["a"].any(1).sum()) > 45  # 8 kept in each of 50 rows on average
    assert int(kept["a"].any(0).sum()) > 36


@given(scores(), st.floats(0.1, 5))
def test_only_the_order_of_scores_matters(layers, scale):
    doubled = {n: layer.double() * scale for n, layer in layers.items()}
    for k in range(0, Ranking(layers).total + 1, 2):
        assert Ranking(layers).keep(k) == Ranking(doubled).keep(k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(layers=scores(numbers=st.floats(-4, 4, width=16)))
def test_half_types_rank_as_the_numbers_that_they_are(dtype, layers):
    half = {n: layer.to(dtype) for n, layer in layers.items()}
    full = {n: layer.double() for n, layer in half.items()}
    for k in range(0, Ranking(half).total + 1, 2):
        assert Ranking(half).keep(k) == Ranking(full).keep(k)


def test_half_scores_whose_sum_overflows_are_ranked():
    scores = torch.full((3, 3), 6e4, dtype=torch.float16)
    scores[1, 1] = 0
    assert torch.equal(Ranking({"a": scores}).keep(8)["a"], scores > 0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
@pytest.mark.parametrize("side", [5, 400])
def test_whole_numbers_rank_too(dtype, side):
    scores = (torch.arange(side * side) % 7).to(dtype).view(side, side)
    kept = int((scores == 6).sum())
    assert torch.equal(Ranking({"a": scores}).keep(kept)["a"], scores == 6)


def test_scores_with_a_gradient_or_another_layout_are_ranked():
    scores = torch.arange(12.0, requires_grad=True).view(3, 4)
    assert torch.equal(Ranking({"a": scores}).keep(5)["a"], scores > 6)
    assert torch.equal(Ranking({"a": scores.T}).keep(5)["a"], scores.T > 6)


def test_the_scores_given_stay():
    scores = torch.tensor([1.0, 0.0, 1.0])
    ranking = Ranking({"a": scores})
    ranking.keep(1)
    ranking.keep(3)
    assert scores.tolist() == [1, 0, 1]


# --- errors


def test_a_nan_is_an_error_that_names_the_layer():
    good, bad = torch.ones(3), torch.tensor([1.0, math.nan, 2.0])
    with pytest.raises(NonFiniteScores, match=r"'?fc2\.weight.*NaN"):
        Ranking({"fc1.weight": good, "fc2.weight": bad})
    with pytest.raises(NonFiniteScores, match="b"):
        Ranking({"a": good.half(), "b": bad.half()})


def test_infinities_that_cancel_are_no_nan():
    scores = torch.tensor([math.inf, -math.inf, 0.0])
    assert Ranking({"a": scores}).keep(2)["a"].tolist() == [True, False, True]


@pytest.mark.parametrize("k", [-1, 7])
@pytest.mark.parametrize("quota", [None, Uniform()])
def test_no_more_than_there_are_and_no_less_than_none(k, quota):
    with pytest.raises(LitPruneError, match=f"{k} of 6"):
        Ranking({"a": torch.ones(2, 3)}, quota).keep(k)


def test_no_more_than_are_left():
    among = Masks({"a": torch.tensor([True, True, False])})
    with pytest.raises(LitPruneError, match="3 of 2"):
        Ranking({"a": torch.ones(3)}, among=among).keep(3)


@pytest.mark.parametrize(
    ("counts", "difference"),
    [
        ({"a": 4, "b": 0}, r"4 of 3 connections of a"),
        ({"a": 5, "b": -1}, r"of a"),
        ({"a": -1, "b": 5}, r"-1 of 3 connections of a"),
        ({"a": 1, "b": 2}, r"3 connections in all instead of 4"),
        ({"a": 3, "b": 3}, r"6 connections in all instead of 4"),
        ({"a": 3}, r"see b"),
        ({"a": 1, "b": 2, "c": 1}, r"\bc\b|3 connections in all"),
        ({}, r"see a"),
        ({"a": 1.5, "b": 2.5}, r"1\.5"),
    ],
    ids=str,
)
def test_a_quota_that_is_wrong_is_an_error(counts, difference):
    ranking = Ranking({"a": torch.ones(3), "b": torch.ones(5)}, quota=lambda shapes, keep: counts)
    with pytest.raises(LitPruneError, match=difference):
        ranking.keep(4)


def test_a_quota_may_count_in_numpy():
    quota = Ranking(
        {"a": torch.ones(3), "b": torch.ones(5)},
        quota=lambda shapes, keep: dict(zip(shapes, np.array([1, 3]), strict=True)),
    )
    assert sizes(quota.keep(4)) == [1, 3]


def test_a_quota_that_asks_for_more_than_is_left_in_a_layer_is_an_error():
    among = Masks({"a": torch.tensor([True, False, False]), "b": torch.ones(5).bool()})
    scores = {"a": torch.ones(3), "b": torch.ones(5)}
    ranking = Ranking(scores, quota=lambda shapes, keep: {"a": 2, "b": 2}, among=among)
    with pytest.raises(LitPruneError, match="a"):
        ranking.keep(4)


def test_the_error_of_a_quota_comes_through():
    def impossible(shapes, keep):
        raise QuotaOutOfRange("impossible keeps between 1 and 2")

    with pytest.raises(QuotaOutOfRange, match="between 1 and 2"):
        Ranking({"a": torch.ones(3)}, impossible).keep(3)


def test_what_is_left_of_another_model_is_an_error():
    among = Masks({"b": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(LitPruneError, match=r"\ba\b"):
        Ranking({"a": torch.ones(3)}, among=among).keep(1)
