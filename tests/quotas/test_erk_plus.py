"""ERK+ against ERK of what the dense last layer leaves."""

import re
from math import prod

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Size, nn

from lit_prune import prune
from lit_prune.criteria import Magnitude
from lit_prune.errors import QuotaOutOfRange
from lit_prune.quotas import ERK, ERKPlus

LENET = {"fc1": Size((300, 784)), "fc2": Size((100, 300)), "fc3": Size((10, 100))}
CONVNET = {
    "conv1": Size((16, 3, 3, 3)),
    "conv2": Size((32, 16, 3, 3)),
    "conv3": Size((64, 32, 3, 3)),
    "fc": Size((10, 64)),
}
LAYERS = st.one_of(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3), st.just(3)),
)
NETWORKS = st.lists(LAYERS, min_size=1, max_size=5)


def densities(shapes, keep):
    """Fix the last; make the densest of the rest dense while any is more; solve epsilon."""
    names = list(shapes)
    dense = {names[-1]}
    while True:
        free = [name for name in names if name not in dense]
        rest = keep - sum(prod(shapes[name]) for name in dense)
        epsilon = rest / sum(sum(shapes[name]) for name in free) if free else 0
        found = {name: epsilon * sum(shapes[name]) / prod(shapes[name]) for name in free}
        if not free or max(found.values()) <= 1:
            return {name: found.get(name, 1.0) for name in names}
        dense.add(max(found, key=lambda name: found[name]))


@given(NETWORKS, st.floats(0, 1))
def test_counts_follow_the_formula(layers, share):
    shapes = {f"layer{i}.weight": Size(layer) for i, layer in enumerate(layers)}
    sizes = [prod(layer) for layer in layers]
    keep = sizes[-1] + int(share * sum(sizes[:-1]))
    counts, wanted = ERKPlus()(shapes, keep), densities(shapes, keep)
    assert sum(counts.values()) == keep
    assert counts[f"layer{len(layers) - 1}.weight"] == sizes[-1]
    # Each layer rounds by half a connection, and one layer may have to make up for all others.
    allowed = 1 + (len(layers) - 1) / 2
    for (name, count), size in zip(counts.items(), sizes, strict=True):
        assert abs(count - wanted[name] * size) <= allowed


@given(NETWORKS, st.floats(0, 1))
def test_it_is_erk_of_all_layers_but_the_last(layers, share):
    assume(len(layers) > 1)
    shapes = {f"layer{i}.weight": Size(layer) for i, layer in enumerate(layers)}
    (last, shape), before = list(shapes.items())[-1], dict(list(shapes.items())[:-1])
    keep = int(share * sum(prod(shape) for shape in before.values()))
    expected = ERK()(before, keep) | {last: prod(shape)}
    assert ERKPlus()(shapes, keep + prod(shape)) == expected


def test_the_table_made_by_hand():
    # Epsilon is 1: the counts are the sums of the dimensions, and the last layer's size.
    assert ERKPlus()(LENET, 1084 + 400 + 1000) == {"fc1": 1084, "fc2": 400, "fc3": 1000}
    counts = ERKPlus()(CONVNET, 2 * (25 + 54 + 102) + 640)
    assert counts == {"conv1": 50, "conv2": 108, "conv3": 204, "fc": 640}
    # A first layer that would be more than dense gives the rest to the second.
    shapes = {"a": Size((2, 3)), "b": Size((100, 100)), "c": Size((4, 5))}
    assert ERKPlus()(shapes, 420) == {"a": 6, "b": 394, "c": 20}


def test_fewer_than_the_last_layer_are_out_of_reach():
    assert ERKPlus()(LENET, 1000) == {"fc1": 0, "fc2": 0, "fc3": 1000}
    line = "ERKPlus keeps between 1000 and 266200 connections of this network, not 999"
    with pytest.raises(QuotaOutOfRange, match=re.escape(line)):
        ERKPlus()(LENET, 999)


def test_a_network_of_one_layer_is_dense_or_out_of_reach():
    assert ERKPlus()({"a": Size((3, 4))}, 12) == {"a": 12}
    with pytest.raises(QuotaOutOfRange, match="between 12 and 12"):
        ERKPlus()({"a": Size((3, 4))}, 11)


def test_prune_leaves_the_last_layer_dense_in_every_round():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10), nn.Linear(10, 4))
    for rounds in (1, 4):
        masks = prune(model, Magnitude(), 100, ERKPlus(), rounds=rounds)
        assert masks.kept == 100
        assert masks["2.weight"].all()


@pytest.mark.parametrize("quota", [ERK(), ERKPlus()])
def test_a_layer_without_connections_keeps_none(quota):
    shapes = {"none": Size((3, 0)), "a": Size((4, 3)), "b": Size((2, 4))}
    counts = quota(shapes, 14)
    assert counts.pop("none") == 0
    assert sum(counts.values()) == 14
