"""PerLayer: densities as they are written, or in proportion."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, nn

from lit_prune import LitPruneError, prune
from lit_prune.criteria import Magnitude
from lit_prune.errors import QuotaOutOfRange
from lit_prune.quotas import PerLayer, Uniform

SHAPES = {
    "layer1.0.weight": Size((10, 10)),
    "layer1.1.weight": Size((20, 10)),
    "layer2.0.weight": Size((40, 20)),
    "fc.weight": Size((5, 40)),
}
SIZES = {name: shape.numel() for name, shape in SHAPES.items()}
SHARES = st.lists(st.integers(0, 100), min_size=4, max_size=4)


def densities_of(shares):
    return {name: share / 100 for name, share in zip(SHAPES, shares, strict=True)}


@given(SHARES)
def test_densities_whose_counts_sum_to_the_total_are_taken_as_they_are(shares):
    densities = densities_of(shares)  # every size is a multiple of 100
    counts = {name: share * SIZES[name] // 100 for name, share in zip(SHAPES, shares, strict=True)}
    assert PerLayer(densities)(SHAPES, sum(counts.values())) == counts


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_densities_of_any_number_are_rounded_to_the_nearest_count(given):
    densities = dict(zip(SHAPES, given, strict=True))
    counts = {name: math.floor(SIZES[name] * d + 0.5) for name, d in densities.items()}
    assert PerLayer(densities)(SHAPES, sum(counts.values())) == counts


def solved(densities, keep):
    """The real-valued counts at the factor, bisected, at which they sum to the total."""
    sizes, given = np.array(list(SIZES.values())), np.array(list(densities.values()))
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        below = (np.minimum(middle * given, 1) * sizes).sum() < keep
        low, high = (middle, high) if below else (low, middle)
    return np.minimum(high * given, 1) * sizes


@given(SHARES, st.floats(0, 1))
def test_for_any_other_total_the_proportions_are_kept_up_to_dense(shares, part):
    densities = densities_of(shares)
    most = sum(SIZES[name] for name, density in densities.items() if density)
    keep = int(part * most)
    counts = PerLayer(densities)(SHAPES, keep)
    assert sum(counts.values()) == keep
    for count, wanted in zip(counts.values(), solved(densities, keep), strict=True):
        assert abs(count - wanted) <= 1 + 3 / 2


def test_the_table_made_by_hand():
    quota = PerLayer({"layer1.*": 0.5, "layer2.*": 0.25, "fc.weight": 1.0})
    assert list(quota(SHAPES, 50 + 100 + 200 + 200).values()) == [50, 100, 200, 200]
    # The last is dense already, the others double; at a half all halve.
    assert list(quota(SHAPES, 100 + 200 + 400 + 200).values()) == [100, 200, 400, 200]
    assert list(quota(SHAPES, 25 + 50 + 100 + 100).values()) == [25, 50, 100, 100]


def test_the_default_is_uniform():
    for keep in (0, 13, 650, 1300):
        assert PerLayer()(SHAPES, keep) == Uniform()(SHAPES, keep)
    assert PerLayer({"*": 0.01})(SHAPES, 700) == Uniform()(SHAPES, 700)


def test_a_layer_goes_by_the_first_pattern_that_matches_it():
    quota = PerLayer({"layer1.0.*": 1.0, "layer1.*": 0.5, "*": 0.1})
    assert list(quota(SHAPES, 100 + 100 + 80 + 20).values()) == [100, 100, 80, 20]
    turned = PerLayer({"*": 0.1, "layer1.*": 0.5, "layer1.0.*": 1.0})
    assert turned(SHAPES, 130) == Uniform()(SHAPES, 130)


def test_a_density_of_zero_keeps_nothing_and_limits_the_total():
    quota = PerLayer({"fc.*": 0, "*": 0.5})
    assert quota(SHAPES, 1100)["fc.weight"] == 0
    with pytest.raises(QuotaOutOfRange, match=r"PerLayer keeps between 0 and 1100 .* not 1101"):
        quota(SHAPES, 1101)
    with pytest.raises(QuotaOutOfRange, match=r"PerLayer keeps between 0 and 0 .* not 1"):
        PerLayer({"*": 0.0})(SHAPES, 1)


@pytest.mark.parametrize(
    ("densities", "line"),
    [
        ({"*": 1.0, "layer3.*": 0.5}, "the pattern 'layer3.*' matches no layer"),
        ({"fc.wieght": 1, "*": 0.5}, "'fc.wieght' matches no layer; did you mean 'fc.weight'?"),
        ({"FC.weight": 1, "*": 0.5}, "the pattern 'FC.weight' matches no layer"),
        ({"layer1.*": 1.0, "fc*": 0.5}, "gives layer2.0.weight no density; its patterns are "
                                        "'layer1.*', 'fc*'"),
    ],
    ids=["matches nothing", "misspelt", "other case", "a layer without"],
)  # fmt: skip
def test_patterns_and_layers_without_each_other_are_errors(densities, line):
    with pytest.raises(LitPruneError, match=re.escape(line)):
        PerLayer(densities)(SHAPES, 100)


@pytest.mark.parametrize("bad", [-0.1, 1.01, 100, math.nan, math.inf, True, "0.5", None, [0.5]])
def test_a_density_is_a_number_of_zero_to_one(bad):
    with pytest.raises(LitPruneError, match=r"PerLayer: the density .* of 'fc\.\*' is not 0 to 1"):
        PerLayer({"*": 0.5, "fc.*": bad})


@pytest.mark.parametrize("good", [0, 1, 0.0, 1.0, np.float64(0.3)])
def test_zero_and_one_and_numbers_of_numpy_are_densities(good):
    assert PerLayer({"*": good}).densities == {"*": good}


def test_no_density_at_all_is_an_error():
    with pytest.raises(LitPruneError, match="PerLayer needs a density for every layer"):
        PerLayer({})


def test_prune_keeps_the_densities_in_every_round():
    model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 10), nn.Linear(10, 3))
    quota = PerLayer({"0.*": 0.1, "1.*": 0.2, "2.*": 1.0})
    masks = prune(model, Magnitude(), 70, quota, rounds=3)
    assert [row.kept for row in masks.layers()] == [20, 20, 30]
    with pytest.raises(LitPruneError, match=r"the pattern '2\.\*' matches no layer"):
        prune(model, Magnitude(), 70, quota, exclude="2.weight")


def test_a_layer_without_connections_keeps_none():
    shapes = {"none": Size((3, 0)), "a": Size((4, 3)), "b": Size((2, 4))}
    assert PerLayer({"*": 0.5})(shapes, 10) == {"none": 0, "a": 6, "b": 4}
