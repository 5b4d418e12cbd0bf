"""Every quota against a table made by hand and an independent solver of its formula."""

from math import ceil, prod

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Size

from lit_prune.errors import QuotaOutOfRange
from lit_prune.quotas import ERK, IGQ, Uniform, UniformPlus

LENET = {"fc1": Size((300, 784)), "fc2": Size((100, 300)), "fc3": Size((10, 100))}
CONVNET = {"conv": Size((4, 1, 3, 3)), "middle": Size((8, 4, 3, 3)), "last": Size((10, 8))}
PYRAMID = {"a": Size((100, 100)), "b": Size((50, 100)), "c": Size((10, 50))}
CLIPPED = {"small": Size((2, 3)), "large": Size((100, 100))}
COLUMNS = {"a": Size((30, 30)), "b": Size((30, 10)), "c": Size((10, 10))}

TABLE = [
    # quota, shapes, keep, counts; the sum of all is keep
    (Uniform(), PYRAMID, 1550, [1000, 500, 50]),
    (Uniform(), LENET, 26620, [23520, 3000, 100]),
    (Uniform(), CONVNET, 101, [9, 72, 20]),
    # The last layer keeps a fifth, the others share the rest at one density.
    (UniformPlus(), PYRAMID, 1600, [1000, 500, 100]),
    (UniformPlus(), PYRAMID, 100, [0, 0, 100]),
    (UniformPlus(), PYRAMID, 7750, [5000, 2500, 250]),
    (UniformPlus(), LENET, 26720, [23520, 3000, 200]),
    (UniformPlus(), {"a": Size((10, 10)), "b": Size((3, 4))}, 3, [0, 3]),  # a fifth of 12 is 2.4
    # A convolution in front is dense.
    (UniformPlus(), CONVNET, 52, [36, 0, 16]),
    (UniformPlus(), CONVNET, 80, [36, 28, 16]),
    (UniformPlus(), CONVNET, 200, [36, 128, 36]),
    (UniformPlus(), CONVNET, 220, [36, 144, 40]),
    # ERK: the counts are epsilon times the sums of dimensions: 4 + 3 + 3 + 3 for a kernel.
    (ERK(), {"a": Size((10, 10)), "b": Size((10, 100))}, 65, [10, 55]),
    (
        ERK(),
        {"a": Size((4, 3, 3, 3)), "b": Size((8, 4, 3, 3)), "c": Size((10, 8))},
        49,
        [13, 18, 18],
    ),
    (ERK(), LENET, 1594, [1084, 400, 110]),
    # Here epsilon is 1.95, so that the small layer is dense and the large one takes the rest.
    (ERK(), CLIPPED, 400, [6, 394]),
    (ERK(), CLIPPED, 205, [5, 200]),
    # IGQ with F = 0.01: 1 / (F + 1/n) are kept of n.
    (IGQ(), {"a": Size((30, 10)), "b": Size((10, 10))}, 125, [75, 50]),
    (IGQ(), COLUMNS, 215, [90, 75, 50]),
    (IGQ(), {"a": Size((7, 7)), "b": Size((7, 7))}, 30, [15, 15]),
    # Layers that are due at the same moment are served in order.
    *((quota, {"a": Size((7, 7)), "b": Size((7, 7))}, 31, [16, 15]) for quota in (IGQ(), ERK())),
    (Uniform(), {"a": Size((7, 7)), "b": Size((7, 7)), "c": Size((7, 7))}, 32, [11, 11, 10]),
]


@pytest.mark.parametrize(("quota", "shapes", "keep", "counts"), TABLE, ids=str)
def test_the_table_made_by_hand(quota, shapes, keep, counts):
    assert sum(counts) == keep
    assert list(quota(shapes, keep).values()) == counts
    assert list(quota(shapes, keep)) == list(shapes)


# --- independent solvers of real-valued densities


def uniform_densities(shapes, keep):
    sizes = [prod(shape) for shape in shapes.values()]
    return [keep / sum(sizes)] * len(sizes)


def uniform_plus_densities(shapes, keep):
    """Fix the first, then the last where it would get too little, and share out what remains."""
    sizes = [prod(shape) for shape in shapes.values()]
    fixed = {0: sizes[0]} if len(next(iter(shapes.values()))) > 2 else {}
    while True:
        free = [i for i in range(len(sizes)) if i not in fixed]
        if not free:
            return [1.0]
        rest = (keep - sum(fixed.values())) / sum(sizes[i] for i in free)
        last = len(sizes) - 1
        if last in fixed or rest >= 0.2:
            return [fixed[i] / sizes[i] if i in fixed else rest for i in range(len(sizes))]
        fixed[last] = ceil(sizes[last] / 5)


def erk_densities(shapes, keep):
    """Make the densest layer dense and solve epsilon anew, while any is more than dense."""
    sums = [sum(shape) for shape in shapes.values()]
    sizes = [prod(shape) for shape in shapes.values()]
    dense = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in dense]
        if not free:
            return [1.0] * len(sizes)
        epsilon = (keep - sum(sizes[i] for i in dense)) / sum(sums[i] for i in free)
        densest = max(free, key=lambda i: sums[i] / sizes[i])
        if epsilon * sums[densest] <= sizes[densest]:
            raw = [epsilon * s / n for s, n in zip(sums, sizes, strict=True)]
            return [1.0 if i in dense else d for i, d in enumerate(raw)]
        dense.add(densest)


def igq_densities(shapes, keep):
    """Bisect the logarithm of the force F until s_l = 1 - 1/(F n_l + 1) leaves keep."""
    sizes = [prod(shape) for shape in shapes.values()]

    def densities(log_force):
        return [1 / (10**log_force * n + 1) for n in sizes]

    low, high = -40.0, 40.0
    for _ in range(300):
        middle = (low + high) / 2
        kept = sum(n * d for n, d in zip(sizes, densities(middle), strict=True))
        low, high = (middle, high) if kept > keep else (low, middle)
    return densities(low)


SOLVERS = {
    Uniform: uniform_densities,
    UniformPlus: uniform_plus_densities,
    ERK: erk_densities,
    IGQ: igq_densities,
}
LAYERS = st.one_of(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3), st.just(3)),
)
NETWORKS = st.lists(LAYERS, min_size=1, max_size=5)


def network(layers):
    return {f"layer{i}.weight": Size(layer) for i, layer in enumerate(layers)}


@pytest.mark.parametrize("quota", SOLVERS, ids=lambda quota: quota.__name__)
@given(layers=NETWORKS, share=st.floats(0, 1))
def test_counts_follow_the_formula(quota, layers, share):
    shapes = network(layers)
    total = sum(prod(layer) for layer in layers)
    keep = int(share * total)
    try:
        counts = quota()(shapes, keep)
    except QuotaOutOfRange:
        assume(False)
    densities = SOLVERS[quota](shapes, keep)
    # Each layer rounds by half a connection, and one layer may have to make up for all others.
    allowed = 1 + (len(shapes) - 1) / 2
    for count, density, layer in zip(counts.values(), densities, layers, strict=True):
        assert abs(count - density * prod(layer)) <= allowed


REAL = {
    "LeNet-300-100": LENET,
    "a small conv net": {
        "conv1": Size((16, 3, 3, 3)),
        "conv2": Size((32, 16, 3, 3)),
        "conv3": Size((64, 32, 3, 3)),
        "fc": Size((10, 64)),
    },
}


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("shapes", REAL.values(), ids=REAL)
@pytest.mark.parametrize("quota", SOLVERS, ids=lambda quota: quota.__name__)
def test_counts_of_real_networks_are_within_one_of_the_formula(quota, shapes, sparsity):
    sizes = [prod(shape) for shape in shapes.values()]
    keep = round((1 - sparsity) * sum(sizes))
    densities = SOLVERS[quota](shapes, keep)
    for count, density, n in zip(quota()(shapes, keep).values(), densities, sizes, strict=True):
        assert count == pytest.approx(density * n, abs=1)


def test_igq_solves_its_equation():
    counts = IGQ()(LENET, 2662)
    forces = []
    for name, shape in LENET.items():
        density = counts[name] / shape.numel()
        forces.append((1 / density - 1) / shape.numel())  # s = 1 - 1/(F n + 1), solved for F
    assert forces == pytest.approx([forces[0]] * 3, rel=2e-3)


def test_erk_solves_epsilon_anew_for_what_is_not_dense():
    shapes = {"a": Size((3, 3)), "b": Size((30, 30)), "c": Size((90, 90))}
    counts = ERK()(shapes, 909)
    assert counts["a"] == 9  # epsilon 3.65 would give 22
    assert counts["c"] / counts["b"] == pytest.approx(180 / 60, rel=0.01)


# --- uniform+'s two rules


def test_uniform_plus_has_only_the_last_rule_on_an_mlp():
    counts = UniformPlus()(LENET, 2662)
    assert counts["fc3"] == 200
    assert counts["fc1"] / 235_200 == pytest.approx(counts["fc2"] / 30_000, rel=0.01)


def test_uniform_plus_keeps_the_first_convolution_and_a_fifth_of_the_last_layer():
    counts = UniformPlus()(REAL["a small conv net"], 2000)
    assert counts["conv1"] == 432
    assert counts["fc"] == 128
    assert counts["conv2"] / 4608 == pytest.approx(counts["conv3"] / 18432, rel=0.01)


def test_uniform_plus_goes_by_the_order_of_the_layers():
    backwards = dict(reversed(list(CONVNET.items())))
    assert UniformPlus()(backwards, 100)["conv"] < 36  # a last convolution is not dense
    assert UniformPlus()(backwards, 100)["conv"] >= 8


def test_uniform_plus_of_one_layer():
    assert UniformPlus()({"fc": Size((10, 10))}, 30) == {"fc": 30}
    assert UniformPlus()({"conv": Size((4, 1, 3, 3))}, 36) == {"conv": 36}


@pytest.mark.parametrize(
    ("quota", "shapes", "keep", "line"),
    [
        (UniformPlus(), CONVNET, 51, "UniformPlus keeps between 52 and 404 connections .*not 51"),
        (UniformPlus(), PYRAMID, 99, "between 100 and 15500 connections .*not 99"),
        (UniformPlus(), CONVNET, 405, "between 52 and 404 connections .*not 405"),
        (Uniform(), PYRAMID, 15501, "Uniform keeps between 0 and 15500 .*not 15501"),
        (ERK(), PYRAMID, -1, "ERK keeps between 0 and 15500 .*not -1"),
        (IGQ(), COLUMNS, 1301, "IGQ keeps between 0 and 1300 .*not 1301"),
    ],
    ids=str,
)
def test_a_total_out_of_range_names_the_range(quota, shapes, keep, line):
    with pytest.raises(QuotaOutOfRange, match=line):
        quota(shapes, keep)
