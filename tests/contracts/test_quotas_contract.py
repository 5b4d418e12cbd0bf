"""One battery over every quota that lies in the folder."""

import re
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Size

from lit_prune import quotas
from lit_prune.errors import QuotaOutOfRange
from lit_prune.quotas import Quota
from lit_prune.shelf import members

ALL = members(quotas.__name__, quotas.__path__, Quota)
# Taken from a criterion on a network, which these tests do not have (see tests/test_prune.py).
QUOTAS = {name: quota for name, quota in ALL.items() if name != "FromCriterion"}
EVERY_QUOTA = pytest.mark.parametrize("quota", [q() for q in QUOTAS.values()], ids=list(QUOTAS))

LAYERS = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(Size)
NETWORKS = st.one_of(
    st.lists(LAYERS, min_size=1, max_size=6),
    st.tuples(LAYERS, st.integers(1, 6)).map(lambda equal: [equal[0]] * equal[1]),
)
REAL = {
    "LeNet-300-100": [(300, 784), (100, 300), (10, 100)],
    "VGG-16": [
        *[(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3)],
        *[(256, 256, 3, 3)] * 2,
        *[(512, 256, 3, 3), *[(512, 512, 3, 3)] * 5, (10, 512)],
    ],
    "a transformer": [*[(384, 128), (128, 128), (512, 128), (128, 512)] * 6, (1000, 128)],
    "equal layers": [(64, 64)] * 20,
}


def named(layers):
    return {f"layer{i}.weight": Size(layer) for i, layer in enumerate(layers)}


def reach(quota, shapes):
    """The smallest and the largest total, as the error for an impossible one names them."""
    with pytest.raises(QuotaOutOfRange) as raised:
        quota(shapes, -1)
    least, most = re.search(r"between (\d+) and (\d+)", str(raised.value)).groups()
    return int(least), int(most)


def assert_lawful(counts, shapes, keep):
    assert list(counts) == list(shapes)
    assert all(type(count) is int for count in counts.values())
    assert all(0 <= counts[name] <= prod(shape) for name, shape in shapes.items())
    assert sum(counts.values()) == keep


def test_every_file_of_the_folder_gives_a_quota_to_the_package():
    files = {path.stem for path in Path(quotas.__path__[0]).glob("*.py")} - {"__init__", "quota"}
    assert {q.__module__.rpartition(".")[2] for q in ALL.values()} == files
    assert all(getattr(quotas, name) is quota for name, quota in ALL.items())
    assert set(ALL) <= set(quotas.__all__)


@EVERY_QUOTA
@given(layers=NETWORKS)
def test_the_range_that_the_error_names_is_the_range_that_can_be_reached(quota, layers):
    shapes = named(layers)
    least, most = reach(quota, shapes)
    assert 0 <= least <= most == sum(prod(shape) for shape in layers)
    assert_lawful(quota(shapes, least), shapes, least)
    assert_lawful(quota(shapes, most), shapes, most)
    for outside in (least - 1, most + 1):
        with pytest.raises(QuotaOutOfRange, match=rf"between {least} and {most} .*not {outside}"):
            quota(shapes, outside)


@EVERY_QUOTA
@given(layers=NETWORKS, data=st.data())
def test_sums_exactly_within_sizes_and_grows_with_the_total(quota, layers, data):
    shapes = named(layers)
    least, most = reach(quota, shapes)
    fewer = data.draw(st.integers(least, most))
    more = data.draw(st.integers(fewer, most))
    small, large = quota(shapes, fewer), quota(shapes, more)
    assert_lawful(small, shapes, fewer)
    assert_lawful(large, shapes, more)
    assert all(small[name] <= large[name] for name in shapes)


@EVERY_QUOTA
@pytest.mark.parametrize(
    "layers",
    [[(3, 4), (2, 2, 3, 3), (4, 3)], [(3, 3)] * 4, [(1, 1), (9, 9), (1, 50)], [(2, 1, 5, 5), (7,)]],
    ids=str,
)
def test_one_connection_more_is_one_more_in_one_layer(quota, layers):
    shapes = named(layers)
    least, most = reach(quota, shapes)
    for before, after in pairwise(quota(shapes, keep) for keep in range(least, most + 1)):
        assert sorted(after[name] - before[name] for name in shapes) == [0] * (len(layers) - 1) + [
            1
        ]


@EVERY_QUOTA
@pytest.mark.parametrize("layers", REAL.values(), ids=REAL)
def test_real_networks(quota, layers):
    shapes = named(layers)
    least, most = reach(quota, shapes)
    before = quota(shapes, least)
    for percent in (1e-3, 0.1, 1, 5, 37, 80, 99.9, 100):
        keep = least + round((most - least) * percent / 100)
        counts = quota(shapes, keep)
        assert_lawful(counts, shapes, keep)
        assert all(before[name] <= counts[name] for name in shapes)
        before = counts


@EVERY_QUOTA
@given(layers=NETWORKS, data=st.data())
def test_the_same_counts_every_time_and_the_shapes_stay(quota, layers, data):
    shapes = named(layers)
    keep = data.draw(st.integers(*reach(quota, shapes)))
    first = quota(shapes, keep)
    first_again = dict(first)
    first.clear()
    assert shapes == named(layers)
    assert quota(shapes, keep) == first_again
    assert type(quota)() == quota
