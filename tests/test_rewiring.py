"""Rewiring against a brute force in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_prune import LitPruneError, Masks
from lit_prune.rewiring import rewired
from lit_prune.selection import largest

SHAPES = st.lists(
    st.sampled_from([(1,), (7,), (3, 4), (2, 3, 2, 2), (5, 5), (0,)]), min_size=1, max_size=3
)


@st.composite
def layers(draw, distinct=True):
    """Masks, weights and growth of a few layers; numbers without ties, or with many."""
    seed = draw(st.integers(0, 10**6))
    numbers = np.random.default_rng(seed)
    masks, weights, growth = {}, {}, {}
    for n, shape in enumerate(draw(SHAPES)):
        size, name = int(np.prod(shape)), f"layer{n}"
        share = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
        masks[name] = torch.from_numpy(numbers.random(shape) < share)
        most = size if distinct else 2
        draws = [
            numbers.permutation(size) if distinct else numbers.integers(0, most, size)
            for _ in range(2)
        ]
        signs = numbers.choice([-1, 1], size)
        weights[name] = torch.from_numpy(((draws[0] + 1.0) * signs).reshape(shape))
        growth[name] = torch.from_numpy((draws[1] + 0.0).reshape(shape))
    return Masks(masks), weights, growth


SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])


def by_force(mask: Tensor, weight: Tensor, growth: Tensor, share: float) -> np.ndarray:
    """Drop the smallest one by one, then grow the best one by one."""
    mask = mask.numpy().copy().reshape(-1)
    weight, growth = weight.numpy().reshape(-1), growth.numpy().reshape(-1)
    number = round(share * mask.sum())
    for _ in range(number):
        kept = np.flatnonzero(mask)
        mask[kept[np.argmin(np.abs(weight[kept]))]] = False
    for _ in range(number):
        free = np.flatnonzero(~mask)
        mask[free[np.argmax(growth[free])]] = True
    return mask


@given(layers(), SHARES)
def test_the_brute_force_finds_the_same(case, share):
    masks, weights, growth = case
    found = rewired(masks, weights, growth, share)
    assert list(found) == list(masks)
    for name, mask in found.items():
        expected = by_force(masks[name], weights[name], growth[name], share)
        assert mask.shape == masks[name].shape
        assert mask.numpy().reshape(-1).tolist() == expected.tolist()


@given(layers(distinct=False), st.floats(0, 1))
def test_every_layer_keeps_as_many_whatever_the_ties(case, share):
    masks, weights, growth = case
    before = {name: mask.clone() for name, mask in masks.items()}
    found = rewired(masks, weights, growth, share)
    for name, mask in found.items():
        assert mask.sum() == masks[name].sum()
        assert mask.dtype == torch.bool
        assert torch.equal(masks[name], before[name])


@given(layers(distinct=False), SHARES)
def test_ties_go_by_the_fixed_permutation(case, share):
    """Zeros everywhere: what stays and what grows is what `largest` marks among equals."""
    masks, weights, growth = case
    flat = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    found = rewired(masks, flat, flat, share)
    again = rewired(masks, flat, {n: torch.ones_like(g) for n, g in growth.items()}, share)
    assert found == again
    for name, mask in masks.items():
        number = round(share * int(mask.sum()))
        if not number:
            assert torch.equal(found[name], mask)
            continue
        [stays] = largest([flat[name]], int(mask.sum()) - number, [mask])
        [grown] = largest([flat[name]], number, [~stays])
        assert torch.equal(found[name], stays | grown)


def test_what_is_dropped_may_grow_at_once():
    masks = Masks({"w": torch.tensor([True, True, False])})
    weights = {"w": torch.tensor([5.0, -1.0, 0.0])}
    growth = {"w": torch.tensor([0.0, 0.9, 0.1])}
    assert rewired(masks, weights, growth, 0.5) == masks
    growth = {"w": torch.tensor([0.9, 0.05, 0.1])}
    assert rewired(masks, weights, growth, 0.5)["w"].tolist() == [True, False, True]


def test_what_stays_is_not_grown_again():
    masks = Masks({"w": torch.tensor([True, True, True, False, False])})
    weights = {"w": torch.tensor([5.0, -4.0, 1.0, 0.0, 0.0])}
    growth = {"w": torch.tensor([9.0, 9.0, 0.0, 0.1, 0.2])}
    found = rewired(masks, weights, growth, 1 / 3)["w"]
    assert found.tolist() == [True, True, False, False, True]


@given(layers())
def test_nothing_is_replaced_by_a_share_of_nothing(case):
    masks, weights, growth = case
    found = rewired(masks, weights, growth, 0.0)
    assert found == masks
    assert all(found[name] is not masks[name] for name in masks)


@given(layers())
def test_all_is_replaced_by_what_grows_most(case):
    masks, weights, growth = case
    for name, mask in rewired(masks, weights, growth, 1.0).items():
        kept = int(mask.sum())
        best = growth[name].flatten().argsort(descending=True)[:kept]
        assert set(mask.flatten().nonzero().flatten().tolist()) == set(best.tolist())


@pytest.mark.parametrize("kept", [True, False])
def test_a_full_layer_and_an_empty_one_stay(kept):
    masks = Masks({"w": torch.full((3, 4), kept)})
    numbers = {"w": torch.arange(12.0).view(3, 4)}
    for share in (0.0, 0.5, 1.0):
        assert rewired(masks, numbers, numbers, share) == masks


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_an_error(share):
    with pytest.raises(LitPruneError, match=f"share={share} is out of range: 0 to 1"):
        rewired(Masks({"w": torch.ones(2, dtype=torch.bool)}), {}, {}, share)


def test_parameters_with_gradients_are_only_read():
    weight = torch.nn.Parameter(torch.tensor([3.0, 1.0, 2.0]))
    masks = Masks({"w": torch.tensor([True, True, False])})
    found = rewired(masks, {"w": weight}, {"w": torch.tensor([0.0, 0.0, 1.0])}, 0.5)
    assert found["w"].tolist() == [True, False, True]
    assert weight.tolist() == [3.0, 1.0, 2.0]
    assert not found["w"].requires_grad
