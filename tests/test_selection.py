"""The k largest of many numbers, against a plain sort by (value, place)."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_prune import selection
from lit_prune.selection import at_least, count, kth_largest, larger, largest, ordered, rising

LIMIT = 1 << 17  # above it a sample brackets the selection


def places(many):
    """The stated rule for ties: multiply, xorshift, multiply, and read as signed numbers."""
    place = np.arange(many, dtype=np.uint32) * np.uint32(0x85EBCA6B)
    place ^= place >> np.uint32(16)
    return (place * np.uint32(0xC2B2AE35)).view(np.int32)


def flat(parts):
    return np.concatenate([part.numpy().ravel() for part in parts])


def ascending(parts, among=None):
    """All candidates, the smallest first: by value, then by place."""
    values = flat(parts)
    order = np.lexsort((places(values.size), values))
    return order if among is None else order[flat(among)[order]]


def marked(order, k, total):
    marks = np.zeros(total, dtype=bool)
    marks[order[len(order) - k :]] = True
    return marks


def assert_is_the_sort(parts, ks, among=None):
    order = ascending(parts, among)
    for k in ks:
        found = largest(parts, k, among)
        assert [mark.shape for mark in found] == [part.shape for part in parts]
        assert all(mark.dtype == torch.bool for mark in found)
        marks = flat(found)
        assert marks.sum() == k
        assert np.array_equal(marks, marked(order, k, marks.size)), f"k={k}"


# --- small: every k


KINDS_OF_NUMBER = {
    torch.float32: st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 1e-45, 0.5, 1.0, 3e38, np.inf]),
    torch.float64: st.one_of(st.floats(allow_nan=False), st.sampled_from([0.0, 1.0])),
    torch.int32: st.integers(-3, 3),
    torch.int64: st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-1, 1)),
}


@st.composite
def parts_and_candidates(draw):
    dtype = draw(st.sampled_from(list(KINDS_OF_NUMBER)))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    numbers = KINDS_OF_NUMBER[dtype]
    parts = [
        torch.tensor(draw(st.lists(numbers, min_size=n, max_size=n)), dtype=dtype) for n in sizes
    ]
    among = None
    if draw(st.booleans()):
        among = [torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n))) for n in sizes]
    return parts, among


def every_k(parts, among):
    return range(int(sum(m.sum() for m in among or [torch.ones_like(p) > 0 for p in parts])) + 1)


@given(parts_and_candidates())
def test_any_k_of_few_numbers_is_that_of_the_sort(drawn):
    parts, among = drawn
    assert_is_the_sort(parts, every_k(parts, among), among)


@given(parts_and_candidates(), st.integers(0, 6), st.integers(1, 8))
def test_an_unlucky_sample_costs_time_and_not_exactness(drawn, limit, sample):
    parts, among = drawn
    with (
        mock.patch.object(selection, "_SMALL", limit),
        mock.patch.object(selection, "_SAMPLE", sample),
    ):
        assert_is_the_sort(parts, every_k(parts, among), among)


@given(parts_and_candidates())
def test_smaller_selections_nest_in_larger_ones(drawn):
    parts, among = drawn
    smaller = np.zeros(sum(part.numel() for part in parts), dtype=bool)
    for k in every_k(parts, among):
        larger = flat(largest(parts, k, among))
        assert not (smaller & ~larger).any()
        smaller = larger


@given(parts_and_candidates())
def test_what_is_given_is_only_read(drawn):
    parts, among = drawn
    before = [tensor.clone() for tensor in [*parts, *(among or [])]]
    for k in every_k(parts, among):
        for mark in largest(parts, k, among):
            mark.logical_not_()
    after = [*parts, *(among or [])]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- comparing and counting


@given(parts_and_candidates())
def test_comparisons_and_counts_are_those_of_torch(drawn):
    parts, _ = drawn
    for bound in torch.cat(parts):
        for given_as in (bound, bound.item()):
            marks = [at_least(part, given_as) for part in parts]
            assert all(map(torch.equal, marks, [part >= bound for part in parts]))
            assert count(marks) == sum(int((part >= bound).sum()) for part in parts)
            marks = [larger(part, given_as) for part in parts]
            assert all(map(torch.equal, marks, [part > bound for part in parts]))


@pytest.mark.parametrize("shape", [(), (0, 3), (5, 4), (2, 3, 4, 5)])
def test_what_is_compared_may_have_any_shape_and_layout(shape):
    numbers = (
        torch.arange(float(np.prod(shape, dtype=int))).view(shape).mT if shape else torch.ones(())
    )
    for mark in (at_least(numbers, 1.0), larger(numbers, torch.tensor(0.5))):
        assert (mark.shape, mark.dtype) == (numbers.shape, torch.bool)
        assert torch.equal(mark, numbers >= 1)
        mark.logical_not_()  # a tensor of its own, that may be written to


# --- the k-th largest, and all in order


def assert_is_the_kth(parts, ks):
    descending = np.sort(flat(parts))[::-1]
    for k in ks:
        found = kth_largest(parts, k)
        assert (found.shape, found.dtype) == ((), parts[0].dtype)
        assert found.item() == descending[k - 1], f"k={k}"


@given(parts_and_candidates())
def test_the_kth_of_few_numbers_is_that_of_the_sort(drawn):
    parts, _ = drawn
    assert_is_the_kth(parts, list(every_k(parts, None))[1:])


@given(parts_and_candidates(), st.integers(0, 6), st.integers(1, 8))
def test_the_kth_is_exact_with_an_unlucky_sample(drawn, limit, sample):
    parts, _ = drawn
    with (
        mock.patch.object(selection, "_SMALL", limit),
        mock.patch.object(selection, "_SAMPLE", sample),
    ):
        assert_is_the_kth(parts, list(every_k(parts, None))[1:])


@given(parts_and_candidates())
def test_the_kth_is_the_threshold_of_the_k_largest(drawn):
    parts, _ = drawn
    for k in list(every_k(parts, None))[1:]:
        threshold = kth_largest(parts, k)
        enough = np.concatenate([(part >= threshold).numpy() for part in parts])
        more = np.concatenate([(part > threshold).numpy() for part in parts])
        assert more.sum() < k <= enough.sum()
        marks = flat(largest(parts, k))
        assert not (more & ~marks).any()
        assert not (marks & ~enough).any()


@given(parts_and_candidates())
def test_the_order_of_what_is_marked_is_that_of_the_sort(drawn):
    parts, among = drawn
    marks = among or [torch.ones_like(part, dtype=torch.bool) for part in parts]
    assert ordered(parts, marks).tolist() == ascending(parts, among)[::-1].tolist()


@given(parts_and_candidates())
def test_the_k_largest_are_the_first_k_of_the_order(drawn):
    parts, among = drawn
    marks = among or [torch.ones_like(part, dtype=torch.bool) for part in parts]
    order = ordered(parts, marks)
    assert len(order) == len(every_k(parts, among)) - 1
    for k in every_k(parts, among):
        found = np.flatnonzero(flat(largest(parts, k, among)))
        assert np.array_equal(np.sort(order[:k].numpy()), found)


@given(parts_and_candidates())
def test_to_order_is_only_to_read(drawn):
    parts, among = drawn
    marks = among or [torch.ones_like(part, dtype=torch.bool) for part in parts]
    before = [tensor.clone() for tensor in [*parts, *marks]]
    ordered(parts, marks).zero_()
    for k in list(every_k(parts, None))[1:]:
        kth_largest(parts, k).zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, [*parts, *marks], strict=True))


@pytest.mark.parametrize("many", [3, 400])
def test_any_shape_and_layout_has_the_order_of_its_indices(many):
    numbers = torch.arange(many * many * 4.0).view(many, many, 2, 2)
    parts = [numbers.permute(1, 0, 2, 3), numbers.to(memory_format=torch.channels_last)]
    parts = [part % (many * many) for part in parts] + [torch.zeros(0, 2)]
    marks = [part > part.numel() // 10 for part in parts]
    assert np.array_equal(ordered(parts, marks), ascending(parts, marks)[::-1])
    n = parts[0].numel()
    assert_is_the_kth(parts[:2], [1, 2, n, 2 * n])


def test_numbers_of_different_precision_are_ordered_by_value():
    parts = [torch.full((2,), 0.1, dtype=torch.float64), torch.full((2,), 0.1), torch.ones(1).int()]
    marks = [torch.ones_like(part, dtype=torch.bool) for part in parts]
    order = ordered(parts, marks).tolist()
    assert order[0] == 4
    assert {*order[1:3]} == {2, 3}
    assert [kth_largest(parts, k).item() for k in range(1, 6)] == [
        1,
        *[float(parts[1][0])] * 2,
        *[0.1] * 2,
    ]


# --- large: around the sampled bracket

SIZES = [(300, 400), (77, 1100), (9,), (3, 3, 3, 111)]  # 207,706 numbers in all


def normal(n, draw):
    return draw.standard_normal(n)


LARGE = {
    "constant": lambda n, draw: np.full(n, 0.1),
    "half zeros": lambda n, draw: np.where(draw.random(n) < 0.5, 0, abs(normal(n, draw))),
    "nearly all zeros": lambda n, draw: np.where(draw.random(n) < 0.9999, 0, normal(n, draw)),
    "one above and one below": lambda n, draw: np.r_[2.0, np.ones(n - 2), 0.0],
    "three integers": lambda n, draw: draw.integers(0, 3, n),
    "many integers": lambda n, draw: draw.integers(-9999, 9999, n),
    "all different": normal,
    "sorted": lambda n, draw: np.arange(n),
    "steep": lambda n, draw: np.exp(20 * normal(n, draw)),
    "tiny": lambda n, draw: normal(n, draw) * 1e-42,
    "half gone": lambda n, draw: np.where(draw.random(n) < 0.5, -np.inf, normal(n, draw)),
    "infinite both ways": lambda n, draw: np.where(
        draw.random(n) < 0.3, np.inf, np.where(draw.random(n) < 0.5, -np.inf, 0)
    ),
}


def split(numbers, sizes=SIZES, dtype=torch.float32):
    pieces = np.split(numbers, np.cumsum([np.prod(size) for size in sizes])[:-1])
    return [torch.from_numpy(p).to(dtype).reshape(s) for p, s in zip(pieces, sizes, strict=True)]


@pytest.mark.parametrize("share", [None, 0.6, 0.001], ids=["all", "most", "few"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", LARGE)
def test_any_k_of_many_numbers_is_that_of_the_sort(kind, dtype, share):
    draw = np.random.default_rng(0)
    total = sum(int(np.prod(size)) for size in SIZES)
    assert total > LIMIT
    parts = split(LARGE[kind](total, draw), dtype=dtype)
    among = None if share is None else split(draw.random(total) < share, dtype=torch.bool)
    n = total if among is None else int(flat(among).sum())
    assert_is_the_sort(parts, [0, 1, 2, n // 100, n // 3, n // 2, n - n // 50, n - 1, n], among)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", LARGE)
def test_the_kth_of_many_numbers_and_their_order_are_those_of_the_sort(kind, dtype):
    draw = np.random.default_rng(0)
    n = sum(int(np.prod(size)) for size in SIZES)
    parts = split(LARGE[kind](n, draw), dtype=dtype)
    assert_is_the_kth(parts, [1, 2, n // 100, n // 3, n // 2, n - n // 50, n - 1, n])
    marks = split(draw.random(n) < 0.3, dtype=torch.bool)
    assert np.array_equal(ordered(parts, marks), ascending(parts, marks)[::-1])


@pytest.mark.parametrize("total", [LIMIT - 1, LIMIT, LIMIT + 1])
def test_nothing_changes_at_the_limit_of_sampling(total):
    numbers = torch.from_numpy(np.random.default_rng(0).integers(0, 50, total).astype(np.float32))
    assert_is_the_sort([numbers], [1, total // 7, total - 1])


def test_large_selections_of_ties_nest():
    scores = [torch.zeros(300, 400), torch.zeros(77, 1100)]
    smaller = largest(scores, 50_000)
    larger = largest(scores, 51_000)
    fewer = largest(scores, 20_000, among=smaller)
    assert not any((s & ~m).any() for s, m in zip(smaller, larger, strict=True))
    assert not any((f & ~m).any() for f, m in zip(fewer, smaller, strict=True))
    assert np.array_equal(flat(fewer), flat(largest(scores, 20_000)))


def test_the_only_candidate_of_many_is_found():
    scores = torch.zeros(LIMIT + 1)
    for index in range(0, LIMIT, LIMIT // 64):
        among = torch.zeros(LIMIT + 1, dtype=torch.bool)
        among[index] = True
        (found,) = largest([scores], 1, [among])
        assert torch.equal(found, among)


def test_the_best_of_few_candidates_of_many_is_found():
    scores = torch.arange(LIMIT + 1.0)
    for index in range(10, LIMIT, LIMIT // 64):
        among = torch.zeros(LIMIT + 1, dtype=torch.bool)
        among[[0, 1, index]] = True
        assert_is_the_sort([scores], [1, 2, 3], [among])


@pytest.mark.parametrize("many", [100, LIMIT])
def test_parts_of_different_precision_are_compared_by_value(many):
    parts = [torch.full((many,), 0.1, dtype=torch.float64), torch.full((many,), 0.1)]
    assert float(parts[1][0]) > float(parts[0][0])  # 0.1 rounds up in float32
    counts = [int(mark.sum()) for mark in largest(parts, many + many // 2)]
    assert counts == [many // 2, many]


@pytest.mark.parametrize("many", [8, 400])
def test_any_memory_layout(many):
    draw = torch.Generator().manual_seed(0)
    transposed = torch.randint(0, many**2, (many, many), generator=draw).float().T
    channels_last = torch.randint(0, many**2, (many, many, 2, 2), generator=draw).float()
    channels_last = channels_last.to(memory_format=torch.channels_last)
    expanded = torch.ones(1, many).expand(many, many)
    parts = [transposed, channels_last, expanded]
    among = [part > 1 for part in parts[:2]] + [torch.ones(1, many).expand(many, many) > 0]
    assert_is_the_sort(parts, [1, 3 * many])
    assert_is_the_sort(parts, [1, 3 * many], among)


@pytest.mark.parametrize("many", [10, LIMIT + 1])
def test_a_part_without_numbers_takes_no_part(many):
    parts = [torch.zeros(0, 3), torch.arange(float(many))]
    assert [int(mark.sum()) for mark in largest(parts, 5)] == [0, 5]


# --- ties are spread


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(40, 50), (100, 100), (300, 784), (64, 16, 3, 3), (512, 512)])
def test_ties_favour_no_region_no_row_and_no_column(shape, share):
    total = int(np.prod(shape))
    (kept,) = largest([torch.zeros(shape)], int(share * total))
    kept = kept.view(shape[0], -1).numpy()
    lines = [*np.array_split(kept.ravel(), 10), *kept, *kept.T]
    spread = np.sqrt(share * (1 - share))
    worst = max(abs(line.mean() - share) * np.sqrt(line.size) for line in lines) / spread
    assert worst < 4.5  # standard deviations of independent coins; some 1,000 lines at most


@pytest.mark.parametrize("count", [3, 30])
def test_ties_favour_no_part(count):
    parts = [torch.zeros(1000) for _ in range(count)]
    kept = [int(mark.sum()) for mark in largest(parts, 300 * count)]
    assert max(abs(k - 300) for k in kept) < 4.5 * np.sqrt(1000 * 0.3 * 0.7)


@given(
    st.lists(st.floats(0, 2.0**99, width=32), max_size=40),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_rising_numbers_come_with_their_places_and_ties_in_order(numbers, dtype):
    given = torch.tensor([*numbers, *numbers[:5], -0.0, 0.0], dtype=dtype)
    values, places = rising(given)
    order = sorted(range(len(given)), key=lambda i: (float(given[i]), i))
    assert places.tolist() == order
    assert values.tolist() == [float(given[i]) for i in order]


def test_nan_comes_last_among_rising_numbers():
    values, places = rising(torch.tensor([2.0, math.nan, 1.0]))
    assert places.tolist() == [2, 0, 1]
    assert math.isnan(values[-1])
