"""Ranks: many processes prune as one would on all their data; and one process as ever."""

import hashlib
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad

from lit_prune import LitPruneError, Masks, Probe, prune
from lit_prune.criteria import (
    FORCE,
    LAMP,
    PHEW,
    SNIP,
    Criterion,
    GraSP,
    Inverted,
    L1Filter,
    Magnitude,
    Random,
    SameQuotaRandom,
    Shuffled,
    SynFlow,
    Taylor,
    Wanda,
)
from lit_prune.errors import RanksDiffer
from lit_prune.probe import cross_entropy
from lit_prune.prune import prune_by_rounds
from lit_prune.quotas import ERK, FromCriterion
from lit_prune.ranks import ALONE, DistributedRanks
from lit_prune.spine import last

pytestmark = pytest.mark.filterwarnings("ignore::lit_prune.errors.LitPruneWarning")

LOOKING = [SNIP(), FORCE(), GraSP(), Taylor(), Wanda(), Wanda(per_output=False), Inverted(SNIP())]
BLIND = [Random(), Magnitude(), LAMP(), SynFlow(), PHEW(), L1Filter()]
named = partial(pytest.mark.parametrize, ids=lambda x: getattr(x, "__name__", repr(x)))


# --- two processes that stay for all tests of this file, since they take seconds to start


def join(rank, store):
    torch.set_num_threads(1)
    address = {"init_method": f"file://{store}", "timeout": timedelta(seconds=30)}
    dist.init_process_group("gloo", rank=rank, world_size=2, **address)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """``pair(function, *args)`` gives what ``function(rank, *args)`` returns on either rank."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    spawn = get_context("spawn")
    pools = [ProcessPoolExecutor(1, spawn, join, (rank, str(store))) for rank in (0, 1)]

    def on_both(function, *args):
        futures = [pool.submit(function, rank, *args) for rank, pool in enumerate(pools)]
        return [future.result(timeout=60) for future in futures]

    yield on_both
    for pool in pools:
        pool.shutdown()


def arrays(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def complaint(function, *args):
    """What an error says; functions that run on the ranks return it."""
    try:
        function(*args)
    except LitPruneError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


# --- networks without batch norm, and batches of which each rank has its half


def mlp():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    return net.double()


def conv():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.Softplus()),
        *(nn.Conv2d(4, 3, 2, groups=1), nn.Flatten(), nn.Linear(18, 3)),
    )
    return net.double()


def whole(turn=0, count=2):
    draw = torch.Generator().manual_seed(turn)
    kinds = {"generator": draw, "dtype": torch.float64}
    return [
        (torch.randn(8, 6, **kinds), torch.randint(3, (8,), generator=draw)) for _ in range(count)
    ]


def share(rank, turn=0, count=2):
    """This rank's half of every batch."""
    return [(x[rank::2], y[rank::2]) for x, y in whole(turn, count)]


def thinned(model):
    draw = torch.Generator().manual_seed(3)
    dense = Masks.dense(model)
    return Masks({n: torch.rand(m.shape, generator=draw) < 0.7 for n, m in dense.items()})


def scores(criterion, build, batches, ranks=ALONE, loss=cross_entropy):
    model = build()
    return criterion(Probe(model, thinned(model), batches, loss, ranks=ranks))


def scores_of_share(rank, criterion, build, loss=cross_entropy):
    return arrays(scores(criterion, build, share(rank), DistributedRanks(), loss))


@named("build", [mlp, conv])
@named("criterion", LOOKING)
def test_scores_are_those_of_one_process_with_the_whole_batch(pair, criterion, build):
    ours, theirs = pair(scores_of_share, criterion, build)
    expected = arrays(scores(criterion, build, whole()))
    own = arrays(scores(criterion, build, share(0)))
    for name, score in expected.items():
        assert ours[name].tobytes() == theirs[name].tobytes()
        largest = abs(score).max()
        assert largest > 0
        np.testing.assert_allclose(ours[name], score, rtol=1e-9, atol=1e-12 * largest)
    assert any(not np.allclose(own[n], expected[n], rtol=1e-3) for n in expected), (
        "half of the data would have done"
    )


def rise(model, batch):
    """A loss whose gradient is the sum of the inputs."""
    return model(batch).sum()


GRADIENTS = [[1.0, -1.0, -3.0, 0.5], [-1.0, 1.0, -1.0, 0.0]]


def scores_of_opposites(rank, criterion):
    model = nn.Linear(4, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    batches = [torch.tensor([GRADIENTS[rank]])]
    probe = Probe(model, Masks.dense(model), batches, rise, ranks=DistributedRanks())
    return criterion(probe)["weight"].tolist()[0]


@named(
    ("criterion", "expected"),
    [(SNIP(), [0, 0, 4, 0.5]), (FORCE(), [0, 0, 4, 0.5]), (Taylor(), [0, 0, 16, 0.25])],
)
def test_the_mean_is_taken_before_absolute_values_and_squares(pair, criterion, expected):
    # The means of the ranks' own scores are (2, 2, 4, 0.5), and (4, 4, 20, 0.5) of squares.
    assert pair(scores_of_opposites, criterion) == [expected, expected]


def test_grasp_takes_both_means_over_all_ranks(pair):
    model = mlp()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    masks = thinned(model)

    def mean_loss(prunable):
        masked = {n: w * masks[n] if n in masks else w for n, w in (weights | prunable).items()}
        each = [
            nn.functional.cross_entropy(functional_call(model, masked, (x,)) / 200, y)
            for x, y in whole()
        ]
        return sum(each) / len(each)

    start = {n: weights[n] * masks[n] for n in masks}
    vector = grad(mean_loss)(start)

    def inner(at):
        return sum((g * vector[n]).sum() for n, g in grad(mean_loss)(at).items())

    product = grad(inner)(start)
    for found in pair(scores_of_share, GraSP(), mlp):
        for name, w in start.items():
            wanted = (w * product[name]).numpy()
            np.testing.assert_allclose(found[name], wanted, rtol=1e-8, atol=1e-20)


# --- whole prunes


def pruned(criterion, target, data, seed, ranks=ALONE, **asked):
    model, generator = mlp(), torch.Generator().manual_seed(seed)
    asked = {"batches": data, "example": (1, 6), "generator": generator, "ranks": ranks} | asked
    dense = Masks.dense(model)
    return last(prune_by_rounds(model, dense, criterion, target, **asked), dense)


def pruned_share(rank, criterion, target, asked):
    """Prune with half of the data, and a seed of one's own."""
    ranks = DistributedRanks()
    return arrays(pruned(criterion, target, partial(share, rank), 5 + rank, ranks, **asked))


def assert_same_masks(found, expected):
    for masks in found:
        assert list(masks) == list(expected)
        assert all(np.array_equal(masks[name], mask.numpy()) for name, mask in expected.items())


@named("criterion", [*BLIND, *LOOKING, Shuffled(SNIP()), SameQuotaRandom(Taylor())])
def test_masks_are_those_of_one_process(pair, criterion):
    found = pair(pruned_share, criterion, "3x", {})
    assert_same_masks(found, pruned(criterion, "3x", whole, 5))


@named(
    "asked",
    [
        {"rounds": 4},
        {"quota": ERK()},
        {"quota": FromCriterion(SNIP())},
        {"floor": 2},
        {"target": "3x effective"},
        {"target": "3x effective", "search": "reprune"},
        {"target": "3x effective", "rounds": 4, "prune_ineffective": True},
    ],
)
def test_masks_are_those_of_one_process_whatever_is_asked_for(pair, asked):
    asked = dict(asked)
    target = asked.pop("target", "3x")
    found = pair(pruned_share, SNIP(), target, asked)
    assert_same_masks(found, pruned(SNIP(), target, whole, 5, **asked))


class OfOnesOwn(Criterion):
    """Scores that have nothing to do with those of another rank."""

    def __init__(self, seed=0):
        self.seed = seed

    def __call__(self, probe):
        draw = torch.Generator().manual_seed(self.seed)
        return {n: torch.rand(mask.shape, generator=draw) for n, mask in probe.masks.items()}


def pruned_by_ones_own(rank):
    return pruned_share(rank, OfOnesOwn(rank), "3x", {"rounds": 2})


def test_scores_that_differ_are_those_of_rank_0(pair):
    assert_same_masks(pair(pruned_by_ones_own), pruned(OfOnesOwn(0), "3x", whole, 5, rounds=2))


def pruned_alone(rank):
    """Prune on rank 0 only, as a user might."""
    if rank == 1:
        return None
    return arrays(prune(mlp(), SNIP(), "3x", batches=share(0)))


def test_prune_on_one_rank_waits_for_nobody(pair):
    found, nothing = pair(pruned_alone)
    assert nothing is None
    assert_same_masks([found], prune(mlp(), SNIP(), "3x", batches=share(0)))


# --- what goes wrong, goes wrong everywhere


def asked_whether_same(rank, layers):
    masks = {n: torch.tensor(rows[min(rank, len(rows) - 1)]) for n, rows in layers.items()}
    masks = {name: mask.bool() for name, mask in masks.items() if mask.dim()}
    return complaint(DistributedRanks().require_same, masks)


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ({"a": [[1, 0]], "b": [[0, 1], [1, 0]], "c": [[0], [1]]}, "b"),
        ({"a": [[1, 0], [1, 1]], "b": [[0, 1]]}, "a"),
        ({"a": [[1, 0]], "b": [[[0, 1]], [[0], [1]]]}, "b"),
        ({"a": [[1, 0]], "b": [[0, 1], 0], "c": [[0], [1]]}, "b"),
        ({"a": [[1, 0]], "b": [0, [0, 1]]}, "b"),
    ],
    ids=["one", "first", "shape", "missing", "more"],
)
def test_masks_that_differ_are_named_on_both_ranks(pair, layers, named):
    ours, theirs = pair(asked_whether_same, layers)
    assert ours == theirs
    assert ours.startswith(f"RanksDiffer: the masks of {named} differ between rank 0 and rank 1")
    assert "\n" not in ours


def test_equal_masks_are_accepted_and_the_ranks_go_on_after_a_complaint(pair):
    layers = {"a": [[1, 0], [0, 1]]}
    assert pair(asked_whether_same, layers)[0].startswith("RanksDiffer")
    assert pair(asked_whether_same, {"a": [[1, 0]], "b": [[]]}) == ["nothing", "nothing"]


def pruned_with_counts(rank, criterion, counts):
    data = partial(share, rank, count=counts[rank])
    ask = partial(pruned, criterion, "3x", data, 5, DistributedRanks())
    return complaint(ask)


@named("criterion", [SNIP(), Taylor(), GraSP(), Wanda()])
@pytest.mark.parametrize("counts", [(2, 3), (1, 0)])
def test_ranks_with_fewer_batches_end_it_for_all(pair, criterion, counts):
    ours, theirs = pair(pruned_with_counts, criterion, counts)
    assert ours == theirs
    least = counts.index(min(counts))
    assert f"rank {least} has {min(counts)}, and rank {1 - least} more" in ours


@named("criterion", [SNIP(), Taylor(), GraSP(), Wanda()])
def test_a_criterion_that_misses_its_data_says_so_on_all(pair, criterion):
    for said in pair(pruned_with_counts, criterion, (0, 0)):
        assert "needs training data" in said


# --- the methods themselves

KINDS = {
    "float16": (torch.float16, 1e-3),
    "bfloat16": (torch.bfloat16, 8e-3),
    "float32": (torch.float32, 1e-6),
    "float64": (torch.float64, 1e-14),
}


def of_rank(rank, shape, kind, seed):
    draw = torch.Generator().manual_seed(2 * seed + rank)
    numbers = torch.randn(shape, generator=draw, dtype=torch.float64).to(KINDS[kind][0])
    if rank == 0 or not shape:
        return numbers
    # The same numbers may lie in another order there.
    return numbers.transpose(0, -1).contiguous().transpose(0, -1)


def reduced(rank, method, shapes, kind, seed):
    given = [of_rank(rank, shape, kind, seed) for shape in shapes]
    before = [x.clone() for x in given]
    found = getattr(DistributedRanks(), method)(given)
    assert all(torch.equal(x, y) for x, y in zip(before, given, strict=True))
    return [(str(x.dtype), x.double().numpy()) for x in found]


SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=3)


@given(SHAPES, st.sampled_from(list(KINDS)), st.sampled_from(["mean", "sum"]), st.integers(0, 99))
def test_reductions_are_those_of_numpy_and_of_the_same_bits(pair, shapes, kind, method, seed):
    ours, theirs = pair(reduced, method, shapes, kind, seed)
    assert len(ours) == len(theirs) == len(shapes)
    for shape, (dtype, found), (_, other) in zip(shapes, ours, theirs, strict=True):
        each = [of_rank(rank, shape, kind, seed).double().numpy() for rank in (0, 1)]
        expected = getattr(np, method)(each, axis=0)
        assert dtype == str(KINDS[kind][0])
        assert found.shape == expected.shape
        assert found.tobytes() == other.tobytes()
        np.testing.assert_allclose(found, expected, rtol=KINDS[kind][1], atol=KINDS[kind][1])


def mean_of_largest(rank, kind):
    largest = torch.tensor(torch.finfo(KINDS[kind][0]).max, dtype=KINDS[kind][0])
    return torch.equal(DistributedRanks().mean([largest])[0], largest)


def mean_of_tiny(rank):
    tiny = torch.tensor(2.0**-24, dtype=torch.float16)
    return DistributedRanks().mean([tiny])[0].item()


def test_the_mean_of_half_precision_is_taken_in_float32(pair):
    assert pair(mean_of_tiny) == [2.0**-24] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_in_range_where_its_numbers_are(pair, kind):
    assert pair(mean_of_largest, kind) == [True, True]


def first_of_all(rank):
    given = {
        "a": torch.full((2, 3), float(rank)),
        "b": torch.full((3,), rank, dtype=torch.uint8),
        "c": torch.tensor([[rank, 1 - rank]] * 2).bool().T,
        "d": torch.empty(0),
        "e": torch.tensor(float(rank)).expand(4),
    }
    found = DistributedRanks().first(given)
    found["a"] += 7
    assert (given["a"] == rank).all()
    assert list(found) == list(given)
    return {name: x.tolist() for name, x in found.items()}


def test_first_gives_the_values_of_rank_0(pair):
    expected = {
        "a": [[7.0] * 3] * 2,
        "b": [0] * 3,
        "c": [[False, False], [True, True]],
        "d": [],
        "e": [0.0] * 4,
    }
    assert pair(first_of_all) == [expected, expected]


def in_a_group_of_ones_own(rank, criterion):
    """Score in a group of one rank each, that knows nothing of the other."""
    groups = [dist.new_group([0]), dist.new_group([1])]
    ranks = DistributedRanks(groups[rank])
    assert ranks.count == 1
    found, alone = (scores(criterion, mlp, share(rank), r) for r in (ranks, ALONE))
    assert all(torch.equal(alone[name], score) for name, score in found.items())
    names = [name for name, first in ranks.first(alone).items() if torch.equal(first, alone[name])]
    assert names == list(alone)
    ranks.require_same({"a": torch.tensor([bool(rank)])})
    return hashlib.sha256(b"".join(score.numpy().tobytes() for score in found.values())).digest()


@named("criterion", [SNIP(), GraSP(), Taylor(), Wanda(per_output=False)])
def test_a_group_is_asked_and_not_the_world(pair, criterion):
    ours, theirs = pair(in_a_group_of_ones_own, criterion)
    assert ours != theirs


def count_of_all(rank):
    return DistributedRanks().count


def test_the_count_is_that_of_the_group(pair):
    assert pair(count_of_all) == [2, 2]


# --- one process


@given(st.lists(st.floats(width=32), max_size=5))
def test_alone_everything_is_as_it_came(numbers):
    tensors = [torch.tensor(x) for x in numbers]
    by_name = {str(number): x for number, x in enumerate(tensors)}
    for found in (ALONE.mean(tensors), ALONE.sum(tensors), ALONE.first(by_name).values()):
        assert all(x is y for x, y in zip(found, tensors, strict=True))
    assert ALONE.in_step(tensors) is tensors
    assert ALONE.count == 1
    assert ALONE.require_same(by_name) is None


@given(st.integers(0, 50), st.integers(1, 4))
def test_alone_snip_scores_by_the_plain_formula_to_the_bit(seed, count):
    model, batches = mlp(), whole(seed, count)
    masks = Masks.dense(model)
    weights = masks.parameters(model)
    sums = [torch.zeros_like(w) for w in weights.values()]
    for x, y in batches:
        loss = nn.functional.cross_entropy(model(x), y)
        for total, g in zip(sums, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total += g
    found = SNIP()(Probe(model, masks, batches))
    for (name, w), total in zip(weights.items(), sums, strict=True):
        assert torch.equal(found[name], (w.detach() * (total / count)).abs())


def test_a_difference_is_a_mistake_of_one_line():
    assert issubclass(RanksDiffer, LitPruneError)


def test_a_probe_is_alone_unless_told_otherwise():
    model = mlp()
    assert Probe(model, Masks.dense(model)).ranks is ALONE
