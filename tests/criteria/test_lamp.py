"""LAMP against numpy, and against exact fractions where floats would give out."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_prune import LitPruneError, Masks, Probe, prune
from lit_prune.criteria import LAMP, Magnitude
from lit_prune.errors import NonFiniteScores
from lit_prune.quotas import Uniform


def network(*weights):
    """One linear layer without bias for every tensor of weights; they are not run."""
    layers = []
    for weight in weights:
        # Made small, since torch warns of an initialisation without elements.
        layer = nn.Linear(1, 1, bias=False).to(weight.dtype)
        layer.weight = nn.Parameter(weight.clone())
        layers.append(layer)
    return nn.Sequential(*layers)


def drawn(*shapes, seed=0, dtype=torch.float32):
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source).to(dtype) for shape in shapes]


def scores_of(model, masks=None):
    return LAMP()(Probe(model, masks or Masks.dense(model)))


def reference(weight, mask=None):
    """w^2 over the cumulative sum from the largest down, in float64."""
    squares = weight.detach().double().numpy().ravel() ** 2
    squares = squares if mask is None else squares * mask.numpy().ravel()
    order = np.argsort(squares, kind="stable")
    tails = np.cumsum(squares[order][::-1])[::-1]
    found = np.empty_like(squares)
    found[order] = squares[order] / tails
    return found.reshape(weight.shape)


def exactly(weight):
    """The definition, pair by pair: v counts where it is larger, or as large at a later place."""
    squares = [Fraction(w) ** 2 for w in weight.detach().double().flatten().tolist()]
    tails = [
        sum(b for j, b in enumerate(squares) if (b, j) >= (a, i)) for i, a in enumerate(squares)
    ]
    found = [float(a / tail) for a, tail in zip(squares, tails, strict=True)]
    return torch.tensor(found, dtype=torch.float64).view(weight.shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_are_those_of_numpy(dtype):
    weights = drawn((30, 40), (7, 30), (3, 7), dtype=dtype)
    scores = scores_of(network(*weights))
    assert list(scores) == ["0.weight", "1.weight", "2.weight"]
    for score, weight in zip(scores.values(), weights, strict=True):
        assert score.dtype == torch.float64
        np.testing.assert_allclose(score.numpy(), reference(weight), rtol=1e-12)


def test_convolutions_are_scored_layer_by_layer_whatever_their_memory_format():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 2, 2))
    plain = scores_of(model)
    for name, weight in Masks.dense(model).parameters(model).items():
        np.testing.assert_allclose(plain[name].numpy(), reference(weight), rtol=1e-12)
    turned = scores_of(model.to(memory_format=torch.channels_last))
    assert all(torch.equal(plain[name], turned[name]) for name in plain)


def test_a_large_layer_sums_to_one_at_its_largest():
    # Where a difference in float32 from the total gives 0.9995.
    (weight,) = drawn((600, 784))
    score = scores_of(network(weight))["0.weight"]
    assert score.max() == 1
    assert score.argmax() == weight.abs().argmax()
    np.testing.assert_allclose(score.numpy(), reference(weight), rtol=1e-9)


NUMBERS = st.floats(-3, 3, width=32).map(lambda x: x or 0.5)
LAYERS = st.lists(NUMBERS, min_size=1, max_size=9).map(lambda xs: torch.tensor([xs]))
NETWORKS = st.lists(LAYERS, min_size=1, max_size=5)


@given(NETWORKS)
def test_the_largest_of_every_layer_scores_one_and_all_others_at_most_a_half(weights):
    for score, weight in zip(scores_of(network(*weights)).values(), weights, strict=True):
        in_order = score.flatten().sort(descending=True).values
        assert in_order[0] == 1
        assert (in_order[1:] <= 0.5).all()
        assert weight.abs().flatten()[score.argmax()] == weight.abs().max()
        assert torch.allclose(score, exactly(weight), rtol=1e-12, atol=0)


@given(NETWORKS, st.floats(0, 1), st.integers(1, 4))
def test_every_layer_keeps_a_connection_while_one_each_fits(weights, share, rounds):
    model, total = network(*weights), sum(weight.numel() for weight in weights)
    keep = len(weights) + int(share * (total - len(weights)))
    masks = prune(model, LAMP(), keep, rounds=rounds)
    assert masks.kept == keep
    assert min(row.kept for row in masks.layers()) >= 1


@given(NETWORKS)
def test_as_many_connections_as_layers_are_the_largest_of_each(weights):
    masks = prune(network(*weights), LAMP(), len(weights))
    for mask, weight in zip(masks.values(), weights, strict=True):
        assert weight[mask].abs().tolist() == [float(weight.abs().max())]


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        (torch.float32, [3e38, 2e38, -1e-45, 1.0, 1e-38]),
        (torch.float32, [1e-45, 3e-45, -2.8e-45, 1.4e-45]),
        (torch.float64, [1e308, -1.7e308, 1e308, 1e170]),
        (torch.float64, [5e-324, -5e-324, 1.5e-323]),
        (torch.float16, [65504.0, -65504.0, 6e-8, 300.0]),
        (torch.bfloat16, [3e38, 1e-38, -3e38]),
    ],
    ids=["wide", "denormal", "huge doubles", "denormal doubles", "half", "bfloat16"],
)
def test_huge_and_tiny_weights_neither_overflow_nor_vanish(dtype, numbers):
    weight = torch.tensor([numbers], dtype=dtype)
    score = scores_of(network(weight))["0.weight"]
    assert (score > 0).all()
    assert score.max() == 1
    assert torch.allclose(score, exactly(weight), rtol=1e-12, atol=0)


@given(LAYERS, st.integers(-40, 40), st.booleans())
def test_the_scale_and_the_sign_of_a_layer_do_not_matter(weight, power, flipped):
    scaled = weight * 2.0**power * (-1 if flipped else 1)
    both = scores_of(network(weight, scaled))
    assert torch.equal(both["0.weight"], both["1.weight"])


def test_equal_weights_are_counted_one_after_the_other():
    score = scores_of(network(torch.full((2, 3), -0.7)))["0.weight"]
    expected = 1 / torch.arange(6, 0, -1, dtype=torch.float64)
    assert torch.allclose(score.flatten(), expected)
    model = network(torch.ones(5, 5), torch.ones(2, 5), torch.ones(1, 2))
    for keep in range(3, 37):
        masks = prune(model, LAMP(), keep)
        assert masks.kept == keep
        assert min(row.kept for row in masks.layers()) >= 1


def test_a_zero_and_a_minus_zero_are_the_same_smallest_weight():
    score = scores_of(network(torch.tensor([[2.0, -0.0, 0.0, 1.0]])))["0.weight"]
    assert score.tolist() == [[1.0, 0.0, 0.0, 0.2]]


def test_inside_a_layer_the_order_is_that_of_the_magnitudes():
    model = network(*drawn((9, 11), (4, 9), seed=3))
    for keep in (5, 40, 100):
        lamp = prune(model, LAMP(), keep, quota=Uniform())
        assert lamp == prune(model, Magnitude(), keep, quota=Uniform())
    assert prune(model, LAMP(), 40) != prune(model, Magnitude(), 40)


# --- masked networks


def test_pruned_weights_take_no_part_and_score_nothing():
    weights = drawn((6, 8), (5, 6))
    draw = torch.Generator().manual_seed(2)
    model = network(*weights)
    dense = Masks.dense(model)
    masks = Masks({n: torch.rand(m.shape, generator=draw) < 0.5 for n, m in dense.items()})
    for (name, score), weight in zip(scores_of(model, masks).items(), weights, strict=True):
        np.testing.assert_allclose(score.numpy(), reference(weight, masks[name]), rtol=1e-12)
        assert not score[~masks[name]].any()
        assert score.max() == 1


def test_rounds_give_what_one_round_gives():
    # The sums of the largest weights are the same however many of the smallest are gone.
    model = network(*drawn((6, 8), (5, 6), (3, 5)))
    for keep in (3, 10, 50):
        assert prune(model, LAMP(), keep, rounds=6) == prune(model, LAMP(), keep)


def test_a_layer_of_zeros_is_an_error_that_names_it():
    model = network(torch.ones(2, 2), torch.zeros(3, 2), torch.ones(1, 3))
    with pytest.raises(LitPruneError, match=r"LAMP: the weights of 1\.weight are all zero"):
        prune(model, LAMP(), 5)
    assert prune(model, LAMP(), 3, exclude="1.weight").kept == 3


def test_a_layer_whose_kept_weights_are_zeros_is_an_error_too():
    model = network(torch.tensor([[1.0, 0.0, 2.0]]), torch.ones(1, 2))
    masks = Masks(
        {"0.weight": torch.tensor([[False, True, False]]), "1.weight": torch.ones(1, 2) > 0}
    )
    with pytest.raises(LitPruneError, match=r"0\.weight are all zero"):
        scores_of(model, masks)


def test_a_layer_that_is_gone_scores_nothing_and_is_no_error():
    model = network(*drawn((3, 2), (1, 3)))
    masks = Masks({"0.weight": torch.zeros(3, 2) > 0, "1.weight": torch.ones(1, 3) > 0})
    scores = scores_of(model, masks)
    assert scores["0.weight"].shape == (3, 2)
    assert not scores["0.weight"].any()
    assert scores["1.weight"].max() == 1


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_a_layer_without_weights_is_no_hindrance(shape):
    model = network(torch.ones(2, 3), torch.empty(shape), torch.ones(1, 2))
    masks = prune(model, LAMP(), 4)
    assert [row.kept for row in masks.layers()] == [2, 0, 2]
    assert masks["1.weight"].shape == shape


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_weight_that_is_not_finite_is_an_error_that_names_the_layer(bad, dtype):
    weights = drawn((2, 3), (4, 2), (1, 4), dtype=dtype)
    weights[1][2, 1] = bad
    with pytest.raises(NonFiniteScores, match=r"1\.weight"):
        prune(network(*weights), LAMP(), 5)


def test_neither_data_nor_generator_is_used(untouched):
    def unread(turn):
        raise AssertionError("no batch is needed")

    model = network(*drawn((6, 8), (5, 6)))
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    with untouched(model):
        prune(model, LAMP(), 10, batches=unread, generator=generator)
    assert torch.equal(generator.get_state(), before)
