"""Order derives from (seed, epoch, rank), and shares the samples out fairly."""

from collections import Counter
from math import ceil

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lit_prune.data.order import Order

totals = st.integers(1, 60)
sizes = st.integers(1, 20)
ranks = st.integers(1, 4)
seeds = st.integers(0, 2**31 - 1)
epochs = st.integers(0, 50)


def batches(total, batch_size, shuffle, seed=0, epoch=0, rank=0, of=1) -> list[list[int]]:
    order = Order(total, batch_size, shuffle, seed, rank, of)
    order.set_epoch(epoch)
    return [batch.tolist() for batch in order]


def samples(*args, **kwargs) -> list[int]:
    return [index for batch in batches(*args, **kwargs) for index in batch]


@given(totals, sizes, st.booleans(), seeds, epochs)
def test_one_process_sees_each_sample_exactly_once_an_epoch(total, size, shuffle, seed, epoch):
    assert sorted(samples(total, size, shuffle, seed, epoch)) == list(range(total))


@given(totals, sizes, ranks)
def test_unshuffled_shards_are_disjoint_complete_and_in_order(total, size, of):
    shards = [samples(total, size, False, rank=rank, of=of) for rank in range(of)]
    assert sorted(index for shard in shards for index in shard) == list(range(total))
    assert all(shard == sorted(shard) for shard in shards)


@given(totals, sizes, ranks, seeds, epochs)
@example(1, 2, 4, 0, 0)
def test_shuffled_shards_are_equally_long_and_repeat_no_more_than_needed(
    total, size, of, seed, epoch
):
    shards = [batches(total, size, True, seed, epoch, rank, of) for rank in range(of)]
    lengths = [[len(batch) for batch in shard] for shard in shards]
    assert all(shard == lengths[0] for shard in lengths)
    assert sum(lengths[0]) == ceil(total / of)
    counts = Counter(index for shard in shards for batch in shard for index in batch)
    assert sorted(counts) == list(range(total))
    assert sum(counts.values()) - total == -total % of
    assert max(counts.values()) == ceil(of * ceil(total / of) / total)


@given(totals, st.integers(2, 20), st.booleans(), ranks)
def test_batches_are_full_but_for_the_last(total, size, shuffle, of):
    for rank in range(of):
        lengths = [len(batch) for batch in batches(total, size, shuffle, rank=rank, of=of)]
        assert all(length == size for length in lengths[:-1])
        assert all(1 <= length <= size + shuffle for length in lengths)
        if shuffle and len(lengths) > 1:
            assert lengths[-1] > 1, "batch norm cannot take a single sample"


def test_a_last_batch_of_one_is_joined_to_the_one_before_when_shuffled():
    assert [len(batch) for batch in batches(9, 4, True)] == [4, 5]
    assert [len(batch) for batch in batches(9, 4, False)] == [4, 4, 1]
    assert [len(batch) for batch in batches(10, 4, True)] == [4, 4, 2]
    assert [len(batch) for batch in batches(1, 4, True)] == [1]


@given(totals, sizes, st.booleans(), ranks)
def test_the_length_is_the_number_of_batches(total, size, shuffle, of):
    for rank in range(of):
        order = Order(total, size, shuffle, 0, rank, of)
        assert len(order) == len(list(order))


@given(seeds, epochs, ranks)
def test_the_same_seed_and_epoch_give_the_same_order_again(seed, epoch, of):
    args = (40, 7, True, seed, epoch, of - 1, of)
    order = Order(40, 7, True, seed, of - 1, of)
    order.set_epoch(epoch)
    first, second = ([b.tolist() for b in order] for _ in range(2))
    assert first == second == batches(*args)


@given(seeds, epochs)
def test_another_epoch_or_seed_is_another_order(seed, epoch):
    here = samples(40, 7, True, seed, epoch)
    assert here != samples(40, 7, True, seed, epoch + 1)
    assert here != samples(40, 7, True, seed + 1, epoch)
    assert here != list(range(40))


@given(seeds)
def test_unshuffled_order_never_changes(seed):
    assert samples(40, 7, False, seed, epoch=3) == list(range(40))


@given(seeds, epochs)
def test_the_order_does_not_look_at_the_global_generator(seed, epoch):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = samples(40, 7, True, seed, epoch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert samples(40, 7, True, seed, epoch) == first


def test_every_epoch_and_rank_draws_its_own_random_numbers():
    def number(seed, epoch, rank):
        order = Order(40, 7, True, seed, rank, 4)
        order.set_epoch(epoch)
        return torch.rand((), generator=order.generator(), dtype=torch.float64).item()

    places = [(seed, epoch, rank) for seed in range(3) for epoch in range(9) for rank in range(4)]
    assert len({number(*place) for place in places}) == len(places)
    assert number(2, 8, 3) == number(2, 8, 3)


def test_lightning_finds_set_epoch_where_it_looks():
    order = Order(40, 7, True)
    order.sampler.set_epoch(5)
    assert [b.tolist() for b in order] == batches(40, 7, True, epoch=5)


@pytest.mark.parametrize("of", [2, 3])
def test_all_ranks_together_see_the_order_of_a_single_process(of):
    shards = [samples(12, 3, True, 8, 4, rank, of) for rank in range(of)]
    together = [index for turn in zip(*shards, strict=True) for index in turn]
    assert together == samples(12, 3, True, 8, 4)
