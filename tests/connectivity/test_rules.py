"""Every rule against what its operation really depends on, found by moving its inputs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dependence import dependence, start_of, wiring
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils import parametrizations, prune

from lit_prune import Connectivity, LitPruneError, Masks, UnsupportedOp
from lit_prune.connectivity import rule
from lit_prune.connectivity.rule import _RULES

aten = torch.ops.aten
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{start}")
    for start in ("The reduce argument", "index_reduce", "Using padding='same'")
]


@dataclass(frozen=True)
class Case:
    """An operation on inputs of some shapes.

    ``covers`` is the rule that it is about. ``tight``: the wiring says what is true and no more.
    """

    covers: str
    run: Callable[..., Any]
    shapes: Sequence[tuple[int, ...]]
    values: tuple[float, float] = (-3.0, 3.0)
    tight: bool = True
    extremes: Sequence[float] = field(default=())
    starts: int = 4

    def __str__(self) -> str:
        return self.covers


def check(case: Case) -> None:
    """All true dependencies are in the wiring, and no others where it is tight."""
    if isinstance(case.run, nn.Module):
        case.run.double().eval()
    start = start_of(case.shapes, case.values)
    true = dependence(case.run, case.shapes, case.values, case.extremes, case.starts)
    ahead, back = wiring(case.run, case.shapes, start)
    assert torch.equal(ahead, back)
    assert bool((true <= ahead).all()), "a dependency is missing"
    if case.tight:
        assert torch.equal(true, ahead), "it says more than is true"
    for of_channels in wiring(case.run, case.shapes, start, "channel"):
        assert bool((ahead <= of_channels).all())


def parametrised(cases: Sequence[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=str)


def each(
    names: str, run: Callable[..., Any], shapes: Sequence[Any], *rest: Any, **options: Any
) -> list[Case]:
    """A case for each of several operations of aten; ``run`` gets the operation first."""
    return [
        Case(name, partial(run, getattr(aten, name)), shapes, *rest, **options)
        for name in names.split()
    ]


def ones(names: str, *values: Any, **options: Any) -> list[Case]:
    """Functions of one number."""
    return each(names, lambda op, x: op(x), [(2, 3)], *values, **options)


def twos(names: str, *values: Any, **options: Any) -> list[Case]:
    """Functions of two numbers, with broadcasting."""
    return each(names, lambda op, x, y: op(x, y), [(2, 1), (2, 3)], *values, **options)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=_GENERATOR)


_GENERATOR = torch.Generator().manual_seed(0)


def given(run: Callable[..., Any], *shapes: tuple[int, ...]) -> Callable[..., Any]:
    """``run`` with constants as its last arguments."""
    constants = [numbers(*shape) for shape in shapes]
    return lambda *operands: run(*operands, *constants)


def whole(x: Tensor) -> Tensor:
    return x.round().long()


MASK = torch.tensor([[True, False, True], [False, False, True]])
ELEMENTWISE = [
    *ones("relu leaky_relu rrelu elu celu gelu silu mish hardswish hardsigmoid hardtanh"),
    *ones("hardshrink softshrink softplus sigmoid tanh abs neg exp exp2 expm1"),
    *ones("log log2 log10 log1p sqrt rsqrt reciprocal lgamma digamma", (0.3, 4.0)),
    *ones("sin cos tan atan sinh cosh asinh sinc erf erfc angle sign sgn signbit floor ceil round"),
    *ones("asin acos atanh erfinv logit", (0.1, 0.9)),
    *ones("bernoulli", (0.0, 1.0)),
    Case("log_sigmoid_forward", lambda x: aten.log_sigmoid_forward(x)[0], [(3,)]),
    *ones("acosh", (1.1, 4.0)),
    *ones("trunc frac nan_to_num"),
    *ones("isnan isinf", extremes=(float("nan"), float("inf"))),
    *ones("alias alias_copy detach detach_copy clone _neg_view"),
    Case("logical_not", lambda x: aten.logical_not(x > 0), [(3,)]),
    Case("bitwise_not", lambda x: aten.bitwise_not(x > 0), [(3,)]),
    Case("_to_copy", lambda x: aten._to_copy(x, dtype=torch.float32), [(3,)]),
    Case("_prelu_kernel", aten._prelu_kernel, [(2, 3), (1, 3)], starts=9),
    Case("_prelu_kernel", F.prelu, [(2, 3, 2), (3,)]),
    Case("threshold", lambda x: aten.threshold(x, 0.5, 7.0), [(3,)]),
    *twos("add sub rsub mul div maximum minimum fmax fmin atan2 logaddexp logaddexp2"),
    *twos("pow hypot xlogy", (0.2, 3.0)),
    *twos("remainder fmod floor_divide", (1.0, 9.0)),
    *twos("lt le gt ge clamp_min clamp_max copysign"),
    *each(
        "complex polar",
        lambda op, x, y: op(x, y).angle(),
        [(2, 1), (2, 3)],
        (0.5, 1.5),
        tight=False,
    ),
    Case("complex", lambda x, y: torch.complex(x, y.expand_as(x)).angle(), [(2, 3), (2, 1)]),
    Case("polar", lambda x, y: torch.polar(x, y).imag, [(2, 3), (2, 3)]),
    Case("eq", lambda x, y: aten.eq(whole(x), whole(y)), [(2, 1), (2, 3)], (-1, 1)),
    Case("ne", lambda x, y: aten.ne(whole(x), whole(y)), [(2, 1), (2, 3)], (-1, 1)),
    Case("heaviside", lambda x, y: aten.heaviside(x.round(), y), [(2, 1), (2, 3)], (-1, 1)),
    *each(
        "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor",
        lambda op, x, y: op(x > 0, y > 0),
        [(2, 1), (2, 3)],
    ),
    *each(
        "bitwise_left_shift bitwise_right_shift",
        lambda op, x, y: op(whole(x), whole(y)),
        [(2,), (2,)],
        (1, 6),
        starts=9,
    ),
    Case("lerp", aten.lerp, [(2, 1), (2, 3), (3,)]),
    Case("addcmul", aten.addcmul, [(2, 1), (2, 3), (3,)]),
    Case("addcdiv", aten.addcdiv, [(2, 1), (2, 3), (3,)], (1, 2)),
    Case("clamp", lambda x: aten.clamp(x, -1, 1), [(3,)]),
    Case("clamp", aten.clamp, [(2, 3), (3,), (2, 1)], starts=9),
    Case(
        "masked_fill",
        lambda x: aten.masked_fill(x, torch.tensor([True, False]), 7.0),
        [(3, 2)],
        tight=False,
    ),
    Case("masked_fill", lambda x, y, z: aten.masked_fill(x, y > 0, z), [(3, 2), (2,), ()]),
    Case("where", lambda x, y: torch.where(MASK, x, y), [(3,), (2, 3)], tight=False),
    Case("where", lambda x, y, z: torch.where(x > 0, y, z), [(2, 1), (2, 3), (3,)]),
    Case("where", lambda x: torch.where(x > -9), [(2, 2)], tight=False),
    *each("_conj _conj_physical", lambda op, x, y: op(torch.complex(x, y)).angle(), [(2,), (2,)]),
    *each("zeros_like ones_like rand_like randn_like", lambda op, x: (op(x), x), [(3,)]),
    Case("full_like", lambda x: (aten.full_like(x, 7), x), [(3,)]),
    Case("randint_like", lambda x: (aten.randint_like(x, 7), x), [(3,)]),
    Case("empty_like", lambda x: (aten.empty_like(x).zero_(), x), [(3,)]),
    Case("new_zeros", lambda x: (x.new_zeros(3), x), [(3,)]),
    Case("new_ones", lambda x: (x.new_ones(3), x), [(3,)]),
    Case("new_full", lambda x: (x.new_full((3,), 7), x), [(3,)]),
    Case("new_empty", lambda x: (x.new_empty(3).zero_(), x), [(3,)]),
    Case("new_empty_strided", lambda x: (x.new_empty_strided((3,), (1,)).zero_(), x), [(3,)]),
    *[
        Case(
            call.__name__,
            partial(call, p=0.5, training=training),
            [(2, 3, 2)],
            starts=9,
            tight=not training,
        )
        for call in (F.dropout, F.dropout1d, F.alpha_dropout, F.feature_alpha_dropout)
        for training in (False, True)
    ],
    Case("native_dropout", lambda x: aten.native_dropout(x, 0.5, False)[0], [(2, 3)]),
    Case("copy", aten.copy, [(2, 3), (3,)]),
    Case("fill", lambda x: (x.clone().fill_(7), x), [(3,)]),
    Case("fill", lambda x, y: x.clone().fill_(y), [(3,), ()]),
    Case("zero", lambda x: (x.clone().zero_(), x), [(3,)]),
    Case("uniform", lambda x: (x.clone().uniform_(), x), [(3,)]),
    Case("normal", lambda x: (x.clone().normal_(), x), [(3,)]),
    Case("random", lambda x: (x.clone().random_(), x), [(3,)]),
    Case("exponential", lambda x: (x.clone().exponential_(), x), [(3,)]),
    Case("glu", lambda x: aten.glu(x, 1), [(2, 4, 2)]),
    Case("glu", lambda x: aten.glu(x), [(2, 4)]),
]


def index(*places: int) -> Tensor:
    return torch.tensor(places)


SHAPES = [
    Case("view", lambda x: aten.view(x, [3, -1]), [(2, 3)]),
    Case("_unsafe_view", lambda x: aten._unsafe_view(x, [3, 2]), [(2, 3)]),
    Case("reshape", lambda x: x.t().reshape(2, 3), [(2, 3)]),
    Case("_reshape_alias", lambda x: aten._reshape_alias(x, [3, 2], [2, 1]), [(2, 3)]),
    Case("_reshape_copy", lambda x: aten._reshape_copy(x.t(), [6]), [(2, 3)]),
    Case("squeeze", lambda x: (x.squeeze(), x.squeeze(1), x.squeeze((0, 1))), [(1, 1, 2)]),
    Case("unsqueeze", lambda x: x.unsqueeze(-1) + x, [(3,)]),
    Case("view_copy", lambda x: aten.view_copy(x, [3, 2]), [(2, 3)]),
    Case("squeeze_copy", lambda x: aten.squeeze_copy(x, 0), [(1, 3)]),
    Case("unsqueeze_copy", lambda x: aten.unsqueeze_copy(x, 1), [(2, 3)]),
    Case("view", lambda x: torch.arange(6.0).view(2, 3).flatten() + x, [(6,)]),
    Case("expand", lambda x: x.expand(2, 3, -1), [(3, 1)]),
    Case("expand_copy", lambda x: aten.expand_copy(x, [2, 3, 2]), [(3, 1)]),
    Case("permute", lambda x: x.permute(2, 0, -2), [(2, 3, 2)]),
    Case("permute_copy", lambda x: aten.permute_copy(x, [2, 0, 1]), [(2, 3, 2)]),
    Case("transpose", lambda x: x.transpose(-1, 0), [(2, 3, 2)]),
    Case("transpose_copy", lambda x: aten.transpose_copy(x, 0, 1), [(2, 3, 2)]),
    Case("t", lambda x: x.t(), [(2, 3)]),
    Case("t", lambda x: x.t(), [(3,)]),
    Case("t_copy", lambda x: aten.t_copy(x), [(2, 3)]),
    Case("select", lambda x: (x[1], x[:, -2], x.select(2, -1)), [(2, 3, 2)]),
    Case("select_copy", lambda x: aten.select_copy(x, 1, -1), [(2, 3)]),
    Case("slice", lambda x: (x[1:], x[:, ::2], x[:, -2:-1], x[:, 1:99], x[5:]), [(3, 4)]),
    Case("slice_copy", lambda x: aten.slice_copy(x, 1, 1, 4, 2), [(2, 5)]),
    Case("split", lambda x: x.split(2, -1)[::2], [(2, 5)]),
    Case("split_with_sizes", lambda x: x.split((1, 0, 3), 1)[2], [(2, 4)]),
    Case("split_copy", lambda x: aten.split_copy(x, 2, 1)[1], [(2, 5)]),
    Case("split_with_sizes_copy", lambda x: aten.split_with_sizes_copy(x, [1, 3], 1), [(2, 4)]),
    Case("unsafe_split", lambda x: aten.unsafe_split(x, 2, 1)[0], [(2, 5)]),
    Case("unsafe_split_with_sizes", lambda x: aten.unsafe_split_with_sizes(x, [1, 3], 1), [(2, 4)]),
    Case("unbind", lambda x: x.unbind(-1)[1:], [(2, 3)]),
    Case("unbind_copy", lambda x: aten.unbind_copy(x, 1)[1], [(2, 3)]),
    Case("cat", lambda x, y: torch.cat([x, y, torch.ones(2, 1), x], -1), [(2, 1), (2, 2)]),
    Case("cat", lambda x, y: torch.cat([x, torch.ones(0), y]), [(2, 1), (1, 1)]),
    Case("stack", lambda x, y: torch.stack([x, torch.ones(3), y], -1), [(3,), (3,)]),
    Case("_stack", lambda x, y: aten._stack([x, torch.ones(3), y], 1), [(3,), (3,)]),
    Case("block_diag", torch.block_diag, [(2, 1), (1, 2), (2,)]),
    Case("diagonal", lambda x: x.diagonal(1, 0, 2), [(2, 2, 3)]),
    Case("diagonal_copy", lambda x: aten.diagonal_copy(x), [(2, 3)]),
    Case("unfold", lambda x: x.unfold(1, 3, 2), [(2, 5)]),
    Case("unfold_copy", lambda x: aten.unfold_copy(x, 1, 2, 1), [(2, 4)]),
    Case("roll", lambda x: (x.roll(1), x.roll((1, -1), (0, 1))), [(2, 3)]),
    Case("flip", lambda x: x.flip(0, -1), [(2, 3)]),
    Case("rot90", lambda x: x.rot90(), [(2, 3)]),
    Case("repeat", lambda x: x.repeat(2, 1, 2), [(2, 3)]),
    Case("tril", lambda x: x.tril(), [(3, 3)]),
    Case("triu", lambda x: x.triu(1), [(3, 3)]),
    Case("diag_embed", lambda x: x.diag_embed(1), [(2, 2)]),
    Case("im2col", lambda x: F.unfold(x, (2, 3), padding=1, stride=2), [(1, 2, 4, 3)]),
    Case("pixel_shuffle", lambda x: aten.pixel_shuffle(x, 2), [(1, 4, 2, 1)]),
    Case("pixel_unshuffle", lambda x: aten.pixel_unshuffle(x, 2), [(1, 1, 2, 4)]),
    Case("channel_shuffle", lambda x: aten.channel_shuffle(x, 2), [(1, 4, 2, 1)]),
    Case("as_strided", lambda x: x.clone().as_strided((2, 2), (1, 2), 1), [(2, 3)]),
    Case("as_strided_copy", lambda x: aten.as_strided_copy(x.clone(), [3, 2], [1, 1]), [(2, 3)]),
    Case(
        "view_as_real",
        lambda x, y: torch.view_as_real(torch.complex(x, y)),
        [(2,), (2,)],
        tight=False,
    ),
    Case(
        "view_as_real_copy",
        lambda x, y: aten.view_as_real_copy(torch.complex(x, y)),
        [(2,), (2,)],
        tight=False,
    ),
    Case("view_as_complex", lambda x: torch.view_as_complex(x).abs(), [(3, 2)]),
    Case("view_as_complex_copy", lambda x: aten.view_as_complex_copy(x).abs(), [(3, 2)]),
    Case("select_scatter", lambda x, y: x.select_scatter(y, 1, -1), [(2, 3), (2,)]),
    Case("slice_scatter", lambda x, y: x.slice_scatter(y, 1, 0, 3, 2), [(2, 3), (2, 2)]),
    Case("diagonal_scatter", lambda x, y: x.diagonal_scatter(y, 1), [(2, 3), (2,)]),
    Case("select_scatter", lambda y: torch.ones(2, 3).select_scatter(y, 0, 1), [(3,)]),
    # what PyTorch composes of others
    Case("movedim", lambda x: x.movedim((0, 1), (-1, 0)), [(2, 3, 2)]),
    Case("chunk", lambda x: x.chunk(2, 1)[0], [(2, 5)]),
    Case("tensor_split", lambda x: x.tensor_split((1, 3, 2), 1), [(2, 5)]),
    Case("narrow", lambda x: x.narrow(1, -3, 2), [(2, 4)]),
    Case("flatten", lambda x: x.flatten(1).unflatten(1, (2, 3)), [(2, 3, 2)]),
    Case("mT", lambda x: (x.mT, x.adjoint(), x.swapaxes(0, 1)), [(2, 2, 3)]),
    Case("tile", lambda x: x.tile(2, 2), [(3,)]),
    Case("meshgrid", lambda x, y: torch.meshgrid(x, y, indexing="xy"), [(2,), (3,)]),
    Case("diff", lambda x: x.diff(), [(2, 4)]),
    Case("fliplr", lambda x: (x.fliplr(), torch.atleast_3d(x), x.ravel()), [(2, 3)]),
    Case("repeat_interleave", lambda x: x.repeat_interleave(2, 1), [(2, 3)]),
    Case("repeat_interleave", lambda x: x.repeat_interleave(index(2, 0, 1), 1), [(2, 3)]),
]

INDICES = [
    Case(
        "index",
        lambda x: (x[index(1, 0, 1)], x[:, index(2)], x[index(0, 1), index(2, 0)]),
        [(2, 3)],
    ),
    Case("index", lambda x: (x[MASK], x[:, None, [0, 0]]), [(2, 3)]),
    Case("index", lambda x, y: x[whole(y)], [(2, 2), (2,)], (0, 1), tight=False),
    Case("index", lambda y: torch.eye(3)[whole(y)], [(2,)], (0, 2), tight=False),
    Case("_unsafe_index", lambda x: aten._unsafe_index(x, [None, index(2, 0)]), [(2, 3)]),
    Case("index_select", lambda x: x.index_select(1, index(2, 2, 0)), [(2, 3)]),
    Case("gather", lambda x: x.gather(1, index(2, 0)[None]), [(2, 3)]),
    Case("gather", lambda x, y: x.gather(1, whole(y)), [(2, 2), (2, 2)], (0, 1), tight=False),
    Case("take", lambda x: x.take(index(5, 0, 0)), [(2, 3)]),
    Case("masked_select", lambda x: x.masked_select(MASK), [(2, 3)]),
    Case("index_copy", lambda x, y: x.index_copy(1, index(2, 0), y), [(2, 3), (2, 2)]),
    Case("masked_scatter", lambda x, y: x.masked_scatter(MASK, y), [(2, 3), (4,)]),
    Case("masked_scatter", lambda x, y: x.masked_scatter(x > 0, y), [(2, 2), (4,)], tight=False),
    Case("index_fill", lambda x: x.index_fill(1, index(0, 2), 7), [(2, 3)]),
    Case("index_fill", lambda x, y: x.index_fill(1, index(0, 2), y), [(2, 3), ()], tight=False),
    Case("index_put", lambda x, y: x.index_put((MASK,), y), [(2, 3), (3,)]),
    Case("index_put", lambda x, y: aten.index_put(x, [None, index(2, 0)], y), [(2, 3), (2, 1)]),
    Case("index_put", lambda x, y: x.index_put((index(1, 1),), y, True), [(2, 3), (2, 3)]),
    Case("index_put", lambda x, y: x.index_put((index(1, 1, 0),), y, True), [(2, 3), (3,)]),
    Case("index_put", lambda x, y: x.index_put((whole(y),), y), [(2,), (2,)], (0, 1), tight=False),
    Case("_index_put_impl", lambda x, y: aten._index_put_impl(x, [index(1)], y), [(2, 3), (3,)]),
    Case(
        "_unsafe_index_put", lambda x, y: aten._unsafe_index_put(x, [index(1)], y), [(2, 3), (3,)]
    ),
    Case("put", lambda x, y: x.put(index(4, 0), y), [(2, 3), (2,)]),
    Case("put", lambda x, y: x.put(index(4, 4), y, True), [(2, 3), (2,)]),
    Case("scatter", lambda x, y: x.scatter(1, index(2, 0)[None], y), [(2, 3), (2, 3)]),
    Case("scatter", lambda x: x.scatter(1, index(2, 0)[None], 3.0), [(2, 3)]),
    Case(
        "scatter", lambda x, y: x.scatter(1, index(2, 2)[None], y, reduce="add"), [(2, 3), (1, 2)]
    ),
    Case("scatter", lambda x: x.scatter(1, index(2)[None], 3.0, reduce="multiply"), [(2, 3)]),
    Case(
        "scatter",
        lambda y: torch.zeros(2, 3).double().scatter(0, whole(y), 1.0),
        [(1, 3)],
        (0, 1),
        tight=False,
    ),
    Case("scatter_add", lambda x, y: x.scatter_add(1, index(2, 2)[None], y), [(2, 3), (2, 2)]),
    Case("scatter_add", lambda y: y.new_zeros(1, 3).scatter_add(1, index(2, 2)[None], y), [(2, 2)]),
    *[
        Case(
            "scatter_reduce",
            lambda x, y, how=how: x.scatter_reduce(
                1, index(2, 2)[None], y, how, include_self=how != "mean"
            ),
            [(1, 3), (1, 2)],
            tight=how != "mean",
            starts=9,
        )
        for how in ("sum", "prod", "mean", "amax", "amin")
    ],
    Case("index_add", lambda x, y: x.index_add(1, index(2, 2), y), [(2, 3), (2, 2)]),
    Case(
        "index_add",
        lambda x, y: x.index_add(0, whole(y[:, 0]), y),
        [(2, 2), (2, 2)],
        (0, 1),
        tight=False,
    ),
    Case("index_reduce", lambda x, y: x.index_reduce(1, index(2, 2), y, "prod"), [(2, 3), (2, 2)]),
    Case("col2im", lambda x: F.fold(x, (3, 4), 2, padding=1), [(2, 4, 20)], starts=1),
    Case("col2im", lambda x: F.fold(x, (3, 3), (2, 1), dilation=(2, 1)), [(4, 3)]),
    Case(
        "bucketize",
        lambda x: torch.bucketize(x, torch.arange(-3.0, 3).double()),
        [(3,)],
        tight=False,
    ),
    Case(
        "searchsorted", lambda x, y: torch.searchsorted(x.sort()[0], y), [(3,), (2,)], tight=False
    ),
    Case("nonzero", lambda x: x.nonzero(), [(2, 2)], tight=False),
    Case("_unique2", lambda x: x.unique(return_inverse=True), [(3,)]),
    Case("unique_consecutive", lambda x: x.unique_consecutive(), [(3,)], tight=False),
    Case("unique_dim", lambda x: x.unique(dim=0), [(2, 2)], tight=False),
    Case("bincount", lambda x: torch.bincount(whole(x), minlength=4), [(3,)], (0, 3)),
    Case("histc", lambda x: x.histc(3, -3, 3), [(3,)]),
    Case("one_hot", lambda x: F.one_hot(whole(x), 3), [(2,)], (0, 2), tight=False),
    Case("take_along_dim", lambda x: x.take_along_dim(index(2, 0)[None], 1), [(2, 3)]),
]


def dims(name: str, **options: Any) -> list[Case]:
    """Reductions: over all, over one dimension, over two, kept or not."""
    cases = []
    for n in name.split():
        op = getattr(torch, n)
        runs = [lambda x, op=op: op(x), lambda x, op=op: op(x, 1), lambda x, op=op: op(x, -3, True)]
        cases += [Case(n, run, [(2, 3, 2)], **options) for run in runs]
    return cases


REDUCTIONS = [
    *dims("sum mean nansum amax amin var std var_mean std_mean prod argmax argmin"),
    *dims("max min median nanmedian mode", starts=16),
    Case("sum", lambda x: (x.sum((0, 2)), x.sum((1, -1), keepdim=True), x.sum(())), [(2, 3, 2)]),
    Case("sum", lambda x: x.sum(), [()]),
    Case("var", lambda x: (x.var((0, 1), correction=0), x.std(False)), [(2, 3, 2)]),
    Case("all", lambda x: (torch.all(x > -1), torch.all(x > 0, 1)), [(2, 2)], starts=16),
    Case("any", lambda x: (torch.any(x > 1), torch.any(x > 0, 1, True)), [(2, 2)], starts=16),
    Case("count_nonzero", lambda x: torch.count_nonzero(x > 0, 1), [(2, 3)]),
    Case("logsumexp", lambda x: (x.logsumexp(1), x.logsumexp((0, 1), True)), [(2, 3)]),
    Case("trace", lambda x: x.trace(), [(2, 3)]),
    Case("linalg_vector_norm", lambda x: (x.norm(), x.norm(1, 1), x.norm(dim=(0, 1))), [(2, 3)]),
    Case("norm", lambda x: (aten.norm(x, 2), aten.norm(x, 2, [1], True)), [(2, 3)]),
    Case("aminmax", lambda x: (*x.aminmax(), *x.aminmax(dim=1)), [(2, 3)]),
    Case("max", torch.max, [(2, 3), (3,)]),
    Case("min", lambda x: torch.min(x, torch.zeros(3).double()), [(2, 3)]),
    Case("_softmax", lambda x: (x.softmax(1), x.softmax(-1)), [(2, 3, 2)]),
    Case("_log_softmax", lambda x: x.log_softmax(0), [(2, 3)]),
    Case("_safe_softmax", lambda x: aten._safe_softmax(x, -1), [(2, 3)]),
    *each("cumsum cumprod logcumsumexp", lambda op, x: op(x, 1), [(2, 3, 2)], (0.5, 3.0)),
    *each("cummax cummin", lambda op, x: op(x, 1)[0], [(2, 3, 2)], starts=9),
    *each("cummax cummin", lambda op, x: op(x, 1), [(2, 3, 2)], tight=False),
    Case("cumsum", lambda x: x.cumsum(0), [()]),
    Case("sort", lambda x: (*x.sort(1), *x.sort(dim=0, stable=True)), [(3, 3)], starts=9),
    Case("sort", lambda x: (x.argsort(0), x.msort()), [(3, 2)], starts=9),
    Case("topk", lambda x: x.topk(2, 1), [(2, 3)], starts=9),
    Case("kthvalue", lambda x: (*x.kthvalue(2), *x.kthvalue(1, 0, True)), [(3, 3)], starts=16),
    Case("_fft_r2c", lambda x: torch.fft.rfft2(x), [(2, 3, 2)], tight=False),
    Case(
        "_fft_c2c", lambda x, y: torch.fft.fft(torch.complex(x, y), dim=0).angle(), [(3, 2), (3, 2)]
    ),
    Case(
        "_fft_c2r", lambda x, y: torch.fft.irfft(torch.complex(x, y)), [(2, 3), (2, 3)], tight=False
    ),
    Case("quantile", lambda x: x.quantile(0.3, 1), [(2, 4)], tight=False),
    Case("cosine_similarity", F.cosine_similarity, [(2, 3, 2), (2, 3, 2)]),
    Case("normalize", lambda x: F.normalize(x, dim=1), [(2, 3)]),
]

LSTM, GRU = nn.LSTM(2, 2).double(), nn.GRU(2, 2).double()
TANH, RELU = nn.RNN(2, 2).double(), nn.RNN(2, 2, nonlinearity="relu").double()
HOW = (True, 1, 0.0, False, False, False)
PRODUCTS = [
    Case("linear", given(F.linear, (4, 3)), [(2, 3)]),
    Case("linear", F.linear, [(2, 2, 3), (4, 3), (4,)]),
    Case("linear", F.linear, [(2, 3), (3,)]),
    *[
        Case("matmul", torch.matmul, shapes)
        for shapes in (
            [(2, 3), (3, 2)],
            [(3,), (3,)],
            [(2, 3), (3,)],
            [(3,), (3, 2)],
            [(2, 1, 3), (2, 3, 2)],
            [(3,), (2, 3, 2)],
            [(2, 2, 3), (3,)],
        )
    ],
    Case("matmul", given(torch.matmul, (3, 2)), [(2, 3)]),
    Case("matmul", given(lambda x, w: w @ x, (3, 2)), [(2, 3)]),
    Case("mm", aten.mm, [(2, 3), (3, 2)]),
    Case("bmm", aten.bmm, [(2, 1, 3), (2, 3, 2)]),
    Case("mv", aten.mv, [(2, 3), (3,)]),
    Case("dot", aten.dot, [(3,), (3,)]),
    Case("vdot", aten.vdot, [(3,), (3,)]),
    Case("addmm", torch.addmm, [(2,), (2, 3), (3, 2)]),
    Case("addmv", torch.addmv, [(2,), (2, 3), (3,)]),
    Case("baddbmm", torch.baddbmm, [(2, 2, 2), (2, 2, 3), (2, 3, 2)]),
    Case("addbmm", torch.addbmm, [(2, 2), (2, 2, 3), (2, 3, 2)]),
    Case("addr", torch.addr, [(2, 3), (2,), (3,)]),
    Case("_trilinear", given(F.bilinear, (2, 3, 2)), [(2, 3), (2, 2)]),
    Case("_trilinear", F.bilinear, [(1, 3), (1, 2), (2, 3, 2), (2,)]),
    Case("_cdist_forward", torch.cdist, [(2, 2, 3), (2, 3, 3)]),
    Case("_euclidean_dist", aten._euclidean_dist, [(2, 3), (3, 3)], tight=False),
    Case(
        "linalg_cross", lambda x, y: torch.linalg.cross(x, y, dim=0), [(3, 2), (3, 2)], tight=False
    ),
    *[
        Case(
            f"conv{n}d",
            given(partial(call, stride=2, padding=1), (2, 2, *[2] * n)),
            [(1, 2, *[3, 2, 2][:n])],
            starts=1,
        )
        for n, call in enumerate((F.conv1d, F.conv2d, F.conv3d), 1)
    ],
    *[
        Case(
            f"conv_transpose{n}d",
            given(partial(call, stride=2, padding=1, output_padding=1), (2, 2, *[2] * n)),
            [(1, 2, *[3, 2, 2][:n])],
            starts=1,
        )
        for n, call in enumerate((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1)
    ],
    Case("conv1d", lambda x: F.conv1d(x, x[:, :, :2], x[0, :, 0]), [(2, 2, 4)]),
    Case("conv2d", F.conv2d, [(1, 2, 3, 3), (3, 2, 2, 2), (3,)], starts=1),
    Case(
        "conv_transpose2d",
        F.conv_transpose2d,
        [(1, 2, 2, 2), (2, 3, 2, 2), (3,)],
        starts=1,
        tight=False,
    ),
    Case(
        "convolution",
        given(lambda x, w: aten.convolution(x, w, None, [1], [0], [1], False, [0], 1), (2, 2, 2)),
        [(1, 2, 4)],
    ),
    Case(
        "_convolution",
        given(
            lambda x, w: aten._convolution(
                x, w, None, [2], [0], [1], True, [0], 1, False, False, False, False
            ),
            (2, 2, 2),
        ),
        [(1, 2, 4)],
    ),
    Case(
        "scaled_dot_product_attention",
        F.scaled_dot_product_attention,
        [(1, 2, 2, 2), (1, 2, 3, 2), (1, 2, 3, 3)],
    ),
    Case(
        "scaled_dot_product_attention",
        F.scaled_dot_product_attention,
        [(1, 2, 2), (1, 3, 2), (1, 3, 2), (2, 3)],
    ),
    Case(
        "scaled_dot_product_attention",
        lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True),
        [(1, 2, 2), (1, 2, 2)],
        tight=False,
    ),
    Case(
        "scaled_dot_product_attention",
        lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True),
        [(1, 4, 1, 2), (1, 2, 3, 2)],
        tight=False,
    ),
    Case("embedding", given(lambda x, w: F.embedding(whole(x), w), (4, 2)), [(2, 2)], (0, 3)),
    Case("embedding", lambda w: F.embedding(index(1, 1, 3), w), [(4, 2)]),
    Case("embedding", lambda x, w: F.embedding(whole(x), w), [(2,), (4, 2)], (0, 3), starts=9),
    Case(
        "_embedding_bag",
        given(lambda x, w: aten._embedding_bag(w, whole(x), index(0, 2))[0], (4, 2)),
        [(4,)],
        (0, 3),
        tight=False,
    ),
    Case(
        "_embedding_bag_forward_only",
        given(lambda x, w: F.embedding_bag(whole(x), w), (4, 2)),
        [(2, 2)],
        (0, 3),
        tight=False,
    ),
    Case(
        "lstm",
        lambda x, h, c: aten.lstm(x, [h, c], LSTM._flat_weights, *HOW),
        [(2, 1, 2), (1, 1, 2), (1, 1, 2)],
        tight=False,
    ),
    Case(
        "gru",
        lambda x, h: aten.gru(x, h, GRU._flat_weights, *HOW),
        [(2, 1, 2), (1, 1, 2)],
        tight=False,
    ),
    Case(
        "rnn_tanh",
        lambda x, h: aten.rnn_tanh(x, h, TANH._flat_weights, *HOW),
        [(2, 1, 2), (1, 1, 2)],
        tight=False,
    ),
    Case(
        "rnn_relu",
        lambda x, h: aten.rnn_relu(x, h, RELU._flat_weights, *HOW),
        [(2, 1, 2), (1, 1, 2)],
        tight=False,
    ),
    Case(
        "lstm_cell",
        lambda x, h, c: aten.lstm_cell(x, [h, c], *LSTM._flat_weights),
        [(2, 2), (2, 2), (2, 2)],
        tight=False,
    ),
    *each("gru_cell", lambda op, x, h: op(x, h, *GRU._flat_weights), [(2, 2), (2, 2)], tight=False),
    *each(
        "rnn_tanh_cell rnn_relu_cell",
        lambda op, x, h: op(x, h, *TANH._flat_weights),
        [(2, 2), (2, 2)],
        tight=False,
    ),
    Case(
        "grid_sampler_2d",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        [(1, 2, 3, 2), (1, 2, 2, 2)],
        (-1, 1),
        starts=16,
    ),
    Case(
        "grid_sampler_3d",
        lambda x, g: F.grid_sample(x, g, align_corners=True),
        [(1, 1, 2, 2, 2), (1, 1, 1, 2, 3)],
        (-1, 1),
        starts=9,
    ),
    Case(
        "affine_grid_generator",
        lambda t: F.affine_grid(t, [2, 1, 2, 4], align_corners=False),
        [(2, 2, 3)],
    ),
    Case(
        "affine_grid_generator",
        lambda t: F.affine_grid(t, [1, 1, 2, 2, 2], align_corners=False),
        [(1, 3, 4)],
    ),
    # what PyTorch composes of others
    Case("einsum", lambda x, y: torch.einsum("bij,bkj->bik", x, y), [(2, 2, 3), (2, 3, 3)]),
    Case("einsum", lambda x, y: torch.einsum("ii,ij->j", x, y), [(3, 3), (3, 2)]),
    Case("einsum", lambda x, y: torch.einsum("...i,...i", x, y), [(2, 3), (2, 3)]),
    Case("tensordot", lambda x, y: torch.tensordot(x, y, 1), [(2, 3), (3, 2)]),
    Case("outer", lambda x, y: (torch.outer(x, y), torch.inner(x, y)), [(3,), (3,)]),
    Case("kron", torch.kron, [(2, 1), (1, 3)]),
]

PADS = ("constant", "reflect", "replicate", "circular")
NEAREST = ("nearest", "nearest-exact")
SIZES = {1: (5,), 2: (4, 5), 3: (2, 4, 3)}
WINDOWS = [
    Case("avg_pool1d", lambda x: F.avg_pool1d(x, 3, 2, 1), [(2, 5)]),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, (3, 2), 2, (1, 0), True), [(1, 2, 4, 5)]),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 2, divisor_override=7), [(2, 4, 5)]),
    Case("avg_pool3d", lambda x: F.avg_pool3d(x, 2, 1, 1), [(1, 1, 2, 3, 2)]),
    Case("_adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (3, 2)), [(1, 2, 5, 4)]),
    Case("_adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (None, 1)), [(2, 3, 4)]),
    Case("_adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 3), [(1, 1, 2, 2)]),
    Case("_adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, (1, 2, 3)), [(1, 1, 2, 3, 4)]),
    Case("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 3), [(1, 2, 5)]),
    Case("max_pool1d", lambda x: F.max_pool1d(x, 3, 2, 1), [(1, 2, 5)], starts=16),
    Case(
        "max_pool2d_with_indices",
        lambda x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True),
        [(1, 2, 4, 5)],
        starts=16,
    ),
    Case(
        "max_pool2d_with_indices",
        lambda x: F.max_pool2d(x, 2, 1, dilation=2),
        [(1, 4, 4)],
        starts=16,
    ),
    Case(
        "max_pool2d_with_indices",
        lambda x: F.max_pool2d(x, 2, return_indices=True),
        [(1, 4, 4)],
        starts=16,
    ),
    Case("max_pool3d_with_indices", lambda x: F.max_pool3d(x, 2, 1), [(1, 1, 2, 3, 3)], starts=16),
    Case(
        "adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, (3, 2)), [(1, 1, 4, 5)], starts=16
    ),
    Case(
        "adaptive_max_pool3d",
        lambda x: F.adaptive_max_pool3d(x, (1, 2, 2)),
        [(1, 2, 3, 2)],
        starts=24,
    ),
    Case(
        "max_unpool2d",
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        [(1, 1, 4, 4)],
        tight=False,
    ),
    Case(
        "max_unpool3d",
        lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2),
        [(1, 1, 2, 2, 4)],
        tight=False,
    ),
    Case(
        "fractional_max_pool2d",
        lambda x: F.fractional_max_pool2d(x, 2, (2, 2)),
        [(1, 1, 4, 4)],
        tight=False,
    ),
    Case(
        "fractional_max_pool3d",
        lambda x: F.fractional_max_pool3d(x, 2, (1, 2, 2)),
        [(1, 1, 3, 4, 4)],
        starts=1,
        tight=False,
    ),
    Case("lp_pool2d", lambda x: F.lp_pool2d(x, 2, 2), [(1, 2, 4, 4)]),
    *[
        Case(
            f"{'upsample_nearest' if mode == 'nearest' else '_upsample_nearest_exact'}{n}d",
            lambda x, mode=mode, factor=factor: F.interpolate(x, None, factor, mode),
            [(1, 1, *SIZES[n])],
            starts=1,
        )
        for mode in NEAREST
        for n in SIZES
        for factor in (1.5, 0.6)
    ],
    *[
        Case(
            name,
            lambda x, mode=mode, size=size, corners=corners: F.interpolate(
                x, size, None, mode, corners
            ),
            [(1, 1, *SIZES[len(size)])],
            starts=1,
        )
        for name, mode, sizes in (
            ("upsample_linear1d", "linear", [(7,), (3,), (5,)]),
            ("upsample_bilinear2d", "bilinear", [(7, 2), (2, 9)]),
            ("upsample_bicubic2d", "bicubic", [(7, 2), (2, 9), (4, 5)]),
            ("upsample_trilinear3d", "trilinear", [(3, 2, 4)]),
        )
        for size in sizes
        for corners in (True, False)
    ],
    *[
        Case(
            name,
            lambda x, mode=mode, size=size: F.interpolate(x, size, None, mode, antialias=True),
            [(1, 1, 5, 6)],
            starts=1,
        )
        for name, mode in (
            ("_upsample_bilinear2d_aa", "bilinear"),
            ("_upsample_bicubic2d_aa", "bicubic"),
        )
        for size in ((2, 3), (7, 4))
    ],
    Case(
        "_upsample_lanczos2d_aa",
        lambda x: aten._upsample_lanczos2d_aa(x, [3, 2], False),
        [(1, 1, 5, 6)],
        starts=1,
    ),
    *[
        Case(
            f"{name}_pad{n}d",
            lambda x, mode=mode, n=n: F.pad(x, (1, 2, 0, 1, 1, 0)[: 2 * n], mode),
            [(1, 1, *[3, 3, 2][:n][::-1])],
            starts=1,
        )
        for name, mode in (("reflection", "reflect"), ("replication", "replicate"))
        for n in SIZES
    ],
    Case("constant_pad_nd", lambda x: F.pad(x, (1, -1, 0, 2), value=3.0), [(2, 3)]),
    Case("constant_pad_nd", lambda x: F.pad(x, (-1, -1, -1, 1)), [(3, 4)]),
    Case("_pad_circular", lambda x: F.pad(x, (1, 2, 0, 1), "circular"), [(1, 1, 2, 3)]),
    Case("reflection_pad2d", lambda x: F.pad(x, (1, 2, 0, 1), "reflect"), [(1, 2, 3)]),
]

CASES = [*ELEMENTWISE, *SHAPES, *INDICES, *REDUCTIONS, *PRODUCTS, *WINDOWS]


@parametrised(CASES)
def test_a_rule_says_what_its_operation_depends_on(case: Case) -> None:
    check(case)


NORMS = {
    "batch_norm": lambda x: F.batch_norm(x, torch.zeros(2).double(), torch.ones(2).double()),
    "instance_norm": F.instance_norm,
    "layer_norm": lambda x: F.layer_norm(x, (3,)),
    "native_layer_norm": lambda x: aten.native_layer_norm(x, [3], None, None, 1e-5)[0],
    "group_norm": lambda x: F.group_norm(x, 2),
    "native_group_norm": lambda x: aten.native_group_norm(x, None, None, 2, 2, 3, 2, 1e-5)[0],
    "rms_norm": lambda x: F.rms_norm(x, (3,)),
    "native_batch_norm": lambda x: aten.native_batch_norm(
        x, None, None, torch.zeros(2).double(), torch.ones(2).double(), False, 0.1, 1e-5
    )[0],
    "_native_batch_norm_legit_no_training": lambda x: aten._native_batch_norm_legit_no_training(
        x, None, None, torch.zeros(2).double(), torch.ones(2).double(), 0.1, 1e-5
    )[0],
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_elementwise_by_convention(name: str) -> None:
    ahead, back = wiring(NORMS[name], [(2, 2, 3)], start_of([(2, 2, 3)], (-3, 3)))
    assert torch.equal(ahead, torch.eye(12).bool())
    assert torch.equal(back, ahead)


@parametrised(
    [
        Case(
            "factors",
            lambda x, w, b: F.layer_norm(torch.ones(2, 3).double() * x, (3,), w, b),
            [(2, 1), (3,), (3,)],
            tight=False,
        ),
        Case(
            "statistics",
            lambda x: aten.native_layer_norm(x, [3], None, None, 1e-5)[1:],
            [(2, 3)],
            tight=False,
        ),
        Case(
            "running statistics",
            lambda x, m: F.batch_norm(x, m, torch.ones(2).double()),
            [(2, 2), (2,)],
            tight=False,
        ),
    ]
)
def test_what_steers_a_norm_counts(case: Case) -> None:
    check(case)


def test_every_rule_is_tested() -> None:
    known = {name.removeprefix("aten::") for name in _RULES if name.startswith("aten::")}
    assert known - {case.covers for case in CASES} - set(NORMS) == set()


# Writing in place.


def changed(write: Callable[..., object]) -> Callable[..., Tensor]:
    """A function that writes to copies of its operands, and returns all of them."""

    def run(*operands: Tensor) -> Any:
        copies = [x.clone() for x in operands]
        return [*copies, write(*copies)]

    return run


def loop(x: Tensor, y: Tensor) -> None:
    for n in range(1, len(x)):
        x[n] += x[n - 1] * y[n]


def buffer(x: Tensor, y: Tensor) -> Tensor:
    found = torch.zeros(3, 3).double()
    before = found[1:]
    found[:2, :2] = x
    found.view(-1)[4:6].copy_(y)
    found[0, 0] = 7
    return before + 1


def shared(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = x.unbind(0), x.unbind(1)
    rows[0].copy_(y)
    columns[1].zero_()
    return rows[1] + columns[0]


def out(write: Callable[..., object], *shape: int) -> Callable[..., Any]:
    """A function that writes to ``out``."""

    def run(*operands: Tensor) -> Tensor:
        target = torch.zeros(shape).double()
        write(*operands, target)
        return target

    return run


X, XY = [(2, 3)], [(2, 2), (2,)]
WRITES = [
    Case("x[:, :2] += y", changed(lambda x, y: x[:, :2].add_(y)), [(2, 3), (2, 1)]),
    Case(
        "an augmented assignment",
        changed(lambda x, y: x.__setitem__((slice(None), slice(2)), x[:, :2] * y)),
        [(2, 3), (2, 1)],
    ),
    Case("view then relu_", changed(lambda x: x.view(-1)[1:4].relu_()), X),
    Case("x[0] = y", changed(lambda x, y: x.__setitem__(0, y)), XY),
    Case("x[1, 0] = 5", changed(lambda x: x.__setitem__((1, 0), 5.0)), X),
    Case("x[mask] = y", changed(lambda x, y: x.__setitem__(MASK, y)), [(2, 3), (3,)]),
    Case("x[mask] = 5", changed(lambda x: x.__setitem__(MASK, 5.0)), X, tight=False),
    Case("x[x > 0] = 0", changed(lambda x: x.__setitem__(x > 0, 0.0)), X, tight=False),
    Case("x[[1, 0]] = y", changed(lambda x, y: x.__setitem__([1, 0], y)), XY),
    Case("x.t()[0] = y", changed(lambda x, y: x.t()[0].copy_(y)), XY),
    Case("x.diagonal() += y", changed(lambda x, y: x.diagonal().add_(y)), XY),
    Case("x.fill_diagonal_", changed(lambda x: x.diagonal(1).fill_(3)), X),
    Case("x.zero_()", changed(lambda x, y: x.zero_()), XY),
    Case("x[:, ::2].zero_()", changed(lambda x: x[:, ::2].zero_()), X),
    Case("x.copy_(y)", changed(lambda x, y: x.copy_(y)), XY),
    Case("x.mul_(y).add_(y)", changed(lambda x, y: x.mul_(y).add_(y)), XY),
    Case("x.addmm_", changed(lambda x, y, z: x.addmm_(y, z)), [(2, 2), (2, 3), (3, 2)]),
    Case("x.index_add_", changed(lambda x, y: x.index_add_(0, index(1), y[None])), XY),
    Case("x.scatter_", changed(lambda x, y: x.scatter_(1, index(1, 0)[None], y[None])), XY),
    Case("x.index_fill_", changed(lambda x: x.index_fill_(1, index(0), 7)), X),
    Case("x.masked_fill_", changed(lambda x: x.masked_fill_(MASK, 7)), X, tight=False),
    Case("x.squeeze_().t_()", changed(lambda x: x.unsqueeze_(1).squeeze_(1).t_()), X),
    Case("x.transpose_ and write", changed(lambda x, y: x.transpose_(0, 1)[0].copy_(y)), XY),
    Case("x.cumsum_", changed(lambda x: x.cumsum_(1)), X),
    Case("x.tril_", changed(lambda x: x.tril_()), X),
    Case("x += x.t()", changed(lambda x: x.add_(x.t().clone())), [(2, 2)]),
    Case("x.flip(0) is a copy", changed(lambda x, y: x.flip(0).copy_(y)), XY),
    Case("x.detach().zero_()", changed(lambda x: x.detach()[0].zero_()), X),
    Case("a loop", changed(loop), [(3, 2), (3, 2)]),
    Case("a buffer", changed(buffer), [(2, 2), (2,)]),
    Case("shared memory", changed(shared), [(2, 2), (2,)]),
    Case("F.relu(inplace)", changed(lambda x: F.relu(x[1:], inplace=True)), X),
    Case("F.dropout(inplace)", changed(lambda x: F.dropout(x, 0.5, False, inplace=True)), X),
    Case("x.unfold", changed(lambda x: x.unfold(1, 2, 1)[0, 1].mul_(2)), X),
    Case("as_strided", changed(lambda x, y: x.as_strided((2,), (3,), 1).copy_(y)), [(2, 3), (2,)]),
    Case("out= add", out(lambda x, y, z: torch.add(x, y, out=z), 2, 2), XY),
    Case("out= cat", out(lambda x, y, z: torch.cat([x, y[None]], out=z), 3, 2), XY),
    Case("out= matmul", out(lambda x, y, z: torch.matmul(x, y, out=z), 2), XY),
    Case("out= sum", out(lambda x, z: torch.sum(x, 1, out=z), 2), X),
    Case("out= gather", out(lambda x, z: torch.gather(x, 1, index(2)[None], out=z), 1, 1), X),
    Case("out= avg_pool", out(lambda x, z: aten.avg_pool2d(x, 2, out=z), 1, 1, 1), [(1, 2, 3)]),
    Case("out= in a view", out(lambda x, y, z: torch.mul(x, y, out=z[1:]), 3, 2), XY),
    Case(
        "out= two",
        out(lambda x, z: torch.max(x, 1, out=(z[0], torch.zeros(2, dtype=torch.long))), 2, 2),
        X,
        starts=16,
    ),
    Case("out= over a signal", changed(lambda x, y: torch.neg(y, out=x[0])), XY),
]


@parametrised(WRITES)
def test_writing_in_place_reaches_all_that_share_the_memory(case: Case) -> None:
    check(case)


# Modules.


class Cell(nn.Module):
    """A recurrent cell of linear layers, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        state, found = x.new_zeros(1, 2), []
        for step in x:
            state = torch.tanh(self.inner(torch.cat([step[None], state], 1)))
            found.append(self.outer(state))
        return torch.stack(found)


class Attend(nn.Module):
    def __init__(self, shapes: Sequence[tuple[int, ...]], **options: Any) -> None:
        super().__init__()
        weights = options.pop("need_weights", True)
        self.attention, self.options = nn.MultiheadAttention(4, 2, **options), weights

    def forward(self, *tokens: Tensor) -> Any:
        query, *others = tokens
        key, value = others if len(others) == 2 else (query, query)
        return self.attention(query, key, value, need_weights=self.options)


def attention(name: str, shapes: Sequence[tuple[int, ...]], **options: Any) -> Case:
    return Case(f"MultiheadAttention {name}", Attend(shapes, **options), shapes, starts=1)


ONE, THREE = [(3, 1, 4)], [(2, 1, 4), (3, 1, 4), (3, 1, 4)]
MODULES = [
    Case("Conv1d unbatched", nn.Conv1d(2, 3, 2), [(2, 4)]),
    Case("Conv2d unbatched", nn.Conv2d(2, 2, 2, stride=2), [(2, 4, 3)]),
    Case("Conv3d unbatched", nn.Conv3d(1, 2, 2, padding=1), [(1, 2, 2, 1)], starts=1),
    Case("Conv2d of a batch", nn.Conv2d(1, 1, 2), [(2, 1, 3, 2)]),
    Case("Conv1d same", nn.Conv1d(2, 2, 3, padding="same"), [(1, 2, 4)]),
    Case("Conv1d same, even", nn.Conv1d(1, 2, 4, padding="same"), [(1, 1, 5)]),
    Case(
        "Conv2d same, dilated", nn.Conv2d(1, 1, (2, 3), padding="same", dilation=2), [(1, 1, 4, 4)]
    ),
    Case("Conv1d valid", nn.Conv1d(2, 2, 3, padding="valid"), [(2, 4)]),
    *[
        Case(f"Conv2d {mode}", nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode), [(1, 1, 3, 4)])
        for mode in ("zeros", "reflect", "replicate", "circular")
    ],
    Case("Conv2d of groups", nn.Conv2d(4, 6, (1, 2), groups=2), [(1, 4, 1, 3)]),
    Case("Conv2d depthwise", nn.Conv2d(2, 4, 2, groups=2, dilation=(1, 2)), [(1, 2, 2, 4)]),
    Case("ConvTranspose1d unbatched", nn.ConvTranspose1d(2, 2, 3, stride=2), [(2, 3)]),
    Case(
        "ConvTranspose2d", nn.ConvTranspose2d(4, 2, (3, 2), 2, 1, (1, 0), groups=2), [(1, 4, 2, 2)]
    ),
    Case("Bilinear", nn.Bilinear(2, 3, 2), [(2, 2), (2, 3)]),
    Case("Linear of a vector", nn.Linear(3, 2), [(3,)]),
    attention("", ONE),
    attention("of three", THREE),
    attention("without weights", THREE, need_weights=False),
    attention("batch first", [(1, 2, 4), (1, 3, 4), (1, 3, 4)], batch_first=True),
    attention("unbatched", [(2, 4), (3, 4), (3, 4)]),
    attention("kdim and vdim", [(2, 1, 4), (3, 1, 3), (3, 1, 2)], kdim=3, vdim=2),
    attention("with biases", THREE, add_bias_kv=True, add_zero_attn=True),
    *[
        Case(
            f"TransformerEncoderLayer {first} {batch}",
            nn.TransformerEncoderLayer(4, 2, 3, norm_first=first, batch_first=batch),
            ONE,
            starts=1,
        )
        for first in (True, False)
        for batch in (True, False)
    ],
    Case("TransformerDecoderLayer", nn.TransformerDecoderLayer(4, 2, 3), ONE * 2, starts=1),
    Case(
        "TransformerEncoder",
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, activation="gelu"), 2
        ),
        ONE,
        starts=1,
    ),
    Case("Transformer", nn.Transformer(4, 2, 1, 1, 4, batch_first=True), ONE * 2, starts=1),
    Case("LSTM", nn.LSTM(2, 3, 2, batch_first=True, bidirectional=True), [(1, 3, 2)], tight=False),
    Case("LSTM with projection", nn.LSTM(2, 3, proj_size=1), [(3, 2)], tight=False),
    Case("GRU", nn.GRU(2, 3), [(3, 1, 2), (1, 1, 3)], tight=False),
    Case("RNN", nn.RNN(2, 3, nonlinearity="relu"), [(3, 1, 2)], tight=False),
    Case("LSTMCell", nn.LSTMCell(2, 3), [(2, 2)], tight=False),
    Case("GRUCell", nn.GRUCell(2, 3), [(2, 2), (2, 3)], tight=False),
    Case("RNNCell", nn.RNNCell(2, 3), [(2, 2)], tight=False),
    Case("a cell of linear layers", Cell(), [(3, 2)]),
    Case("PixelShuffle", nn.PixelShuffle(2), [(1, 4, 1, 2)]),
    Case("Fold", nn.Fold((3, 3), 2), [(1, 4, 4)]),
    Case("Softmax2d", nn.Softmax2d(), [(1, 2, 2, 1)]),
    Case("LPPool1d", nn.LPPool1d(2, 2), [(1, 2, 4)]),
]


@parametrised(MODULES)
def test_a_module_depends_on_what_its_wiring_says(case: Case) -> None:
    check(case)


class Mixer(nn.Module):
    """Mixes tokens, then features, and returns the first of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.features = nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.tokens(x.mT).mT)[0]


def test_only_what_leads_to_a_part_of_the_batch_is_effective() -> None:
    tokens = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    features = torch.tensor([[True, False], [False, False]])
    found = Connectivity(Mixer(), (5, 4, 2)).effective(
        Masks({"tokens.weight": tokens, "features.weight": features})
    )
    assert torch.equal(found["tokens.weight"], tokens)
    assert torch.equal(found["features.weight"], features)


@pytest.mark.parametrize("embedding", [nn.Embedding, nn.EmbeddingBag])
def test_numbers_of_tokens_are_an_input(embedding: type[nn.Module]) -> None:
    model = nn.Sequential(embedding(5, 4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    mask = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    last = torch.tensor([[True, True, False], [True, True, False]])
    found = Connectivity(model, torch.tensor([[1, 2, 3], [4, 4, 0]])).effective(
        Masks({"1.weight": mask, "3.weight": last})
    )
    assert torch.equal(found["1.weight"], mask & torch.tensor([[True], [False], [False]]))
    assert torch.equal(found["3.weight"], last & torch.tensor([True, False, False]))


# Weights that are not there as they are.


@pytest.mark.parametrize(
    "made",
    [
        parametrizations.weight_norm(nn.Linear(3, 2)),
        parametrizations.spectral_norm(nn.Linear(3, 2)),
        parametrizations.orthogonal(nn.Linear(3, 2)),
        prune.random_unstructured(nn.Linear(3, 2), "weight", 0.5),
        prune.ln_structured(nn.Conv1d(3, 2, 1), "weight", 0.5, 2, 0),
    ],
    ids=["weight norm", "spectral norm", "orthogonal", "pruned", "pruned by channels"],
)
def test_reparametrised_weights_must_be_excluded_and_then_count_as_present(made: nn.Module) -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 3, 1) if isinstance(made, nn.Conv1d) else nn.Linear(3, 3), made
    )
    shape = (1, 3, 2) if isinstance(made, nn.Conv1d) else (2, 3)
    with pytest.raises(LitPruneError, match=r"1\.weight is reparametrised.*exclude='1\.weight'"):
        Connectivity(model, shape)
    connectivity = Connectivity(model, shape, exclude="1.weight")
    mask = torch.zeros_like(model[0].weight, dtype=torch.bool)
    mask[0] = True
    assert torch.equal(connectivity.effective(Masks({"0.weight": mask}))["0.weight"], mask)


class Uses(nn.Module):
    """A network that uses the weights of two layers by a function."""

    def __init__(self, use: Callable[..., Tensor]) -> None:
        super().__init__()
        self.use = use
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.first.weight, self.last.weight)


W = torch.rand(4, 4) + 1
TWICE = nn.BatchNorm1d(4, affine=False)
USES = {
    "transposed": lambda x, v, w: x @ v.t() @ w.T,
    "from the left": lambda x, v, w: (w @ (v @ x.mT)).mT,
    "in pieces": lambda x, v, w: F.linear(torch.cat([F.linear(x, p) for p in v.chunk(2)], -1), w),
    "in slices": lambda x, v, w: F.linear(F.linear(x, v), w[:3]) + F.linear(F.linear(x, v), w[3:]),
    "by heads": lambda x, v, w: F.linear(
        torch.einsum("bti,hdi->bthd", x, v.view(2, 2, 4)).flatten(2), w
    ),
    "as a kernel": lambda x, v, w: F.conv1d(F.conv1d(x.mT, v[:, :, None]), w.unsqueeze(2)).mT,
    "scaled in place": lambda x, v, w: F.linear(F.linear(x, v.clone().mul_(2)), w),
    "scaled": lambda x, v, w: F.linear(F.linear(x, v * 2), w / W),
    "in half precision": lambda x, v, w: F.linear(F.linear(x.half(), v.half()), w.half()),
    "detached": lambda x, v, w: F.linear(F.linear(x, v.detach()), w.data.clone()),
    "of a vector": lambda x, v, w: torch.stack([w.mv(v.mv(row)) for row in x[0]])[None],
}


@pytest.mark.parametrize("name", USES)
def test_a_weight_is_known_however_it_is_used(name: str) -> None:
    plain = Connectivity(Uses(lambda x, v, w: F.linear(F.linear(x, v), w)), (1, 3, 4))
    other = Connectivity(Uses(USES[name]), (1, 3, 4))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        masks = Masks(
            {
                n: torch.rand(4, 4, generator=generator) < 0.3
                for n in ("first.weight", "last.weight")
            }
        )
        expected, found = plain.effective(masks), other.effective(masks)
        assert all(torch.equal(expected[n], found[n]) for n in masks)


def test_a_normed_weight_keeps_its_connections_by_convention() -> None:
    def standardised(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        v = F.batch_norm(v.reshape(1, 4, -1), None, None, training=True).reshape_as(v)
        return F.linear(F.linear(x, v), w)

    model = Uses(standardised)
    mask = torch.eye(4).bool()
    found = Connectivity(model, (2, 4)).effective(Masks({"last.weight": mask & (W > 0)}))
    assert torch.equal(found["last.weight"], mask)


def zeroed(x: Tensor) -> Tensor:
    x[0] = 0
    return x


REFUSED = {
    "turns zeros of the prunable weight first.weight into other numbers": [
        lambda x, v, w: F.linear(F.linear(x, v.sigmoid()), w),
        lambda x, v, w: F.linear(F.linear(x, v + 1), w),
        lambda x, v, w: F.linear(F.linear(x, torch.where(W > 1.5, v, 1.0)), w),
        lambda x, v, w: F.linear(F.linear(x, torch.addmm(v, W, W)), w),
    ],
    "multiplies the prunable weight first.weight": [lambda x, v, w: F.linear(x, w @ v)],
    "takes the prunable weight first.weight in a way without a rule": [
        lambda x, v, w: F.linear(F.linear(x, v.flip(0)), w),
        lambda x, v, w: F.linear(F.linear(x, v * x.mean()), w),
        lambda x, v, w: F.linear(F.linear(x, v - v.mean()), w),
    ],
    "copies the prunable weight first.weight in another order": [
        lambda x, v, w: F.linear(torch.einsum("bhd,ehd->be", x.view(-1, 2, 2), v.view(4, 2, 2)), w),
        lambda x, v, w: F.linear(F.linear(x, v.t().reshape(8, 2).view(4, 4)), w),
    ],
    "looks first.weight up": [lambda x, v, w: F.embedding(torch.tensor(1), v) + x],
    "writes to a part of a copy of the prunable first.weight": [
        lambda x, v, w: F.linear(F.linear(x, zeroed(v.clone())), w),
        lambda x, v, w: F.linear(F.linear(x, changed(lambda y: y[1:].copy_(v[1:]))(W)[0]), w),
    ],
}


@pytest.mark.parametrize(
    ("why", "use"), [(why, use) for why, uses in REFUSED.items() for use in uses]
)
def test_what_is_not_understood_of_a_weight_is_refused(why: str, use: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedOp, match=why):
        Connectivity(Uses(use), (2, 4))


# What no rule describes.


class Inside(nn.Module):
    """A module of a given function, somewhere in a network."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


@torch.library.custom_op("lit_prune_tests::swap_halves", mutates_args=())
def swap_halves(x: Tensor) -> Tensor:
    return torch.cat(x.chunk(2, -1)[::-1], -1)


def test_an_operation_without_a_rule_is_named_with_its_shapes_and_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Inside(swap_halves)))
    with pytest.raises(UnsupportedOp) as caught:
        Connectivity(model, (2, 4))
    for part in (
        "lit_prune_tests::swap_halves",
        "(2, 4)",
        "in 1.0 (Inside)",
        '@rule("lit_prune_tests::swap_halves")',
    ):
        assert part in str(caught.value)


def test_a_rule_of_ones_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_RULES, "lit_prune_tests::swap_halves", None)

    @rule("lit_prune_tests::swap_halves")
    def swapped(wire: Any, x: Any) -> Any:
        half = x.shape[-1] // 2
        return wire.joined(wire.cut(x, -1, [(half, half, 1), (0, half, 1)]), -1)

    check(Case("swap_halves", swap_halves, [(2, 4)]))


def test_a_rule_that_leads_to_another_shape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_RULES, "lit_prune_tests::swap_halves", None)

    @rule("lit_prune_tests::swap_halves")
    def swapped(wire: Any, x: Any) -> Any:
        return wire.over(x, -1)

    with pytest.raises(UnsupportedOp, match=r"has a rule that leads to \(2,\).*returned \(2, 4\)"):
        Connectivity(nn.Sequential(nn.Linear(4, 4), Inside(swap_halves)), (2, 4))


UNKNOWN = {
    "aten::_to_sparse": lambda x: x.to_sparse().to_dense(),
    "aten::linalg_qr": lambda x: torch.linalg.qr(x)[0],
    "aten::_foreach_add_": lambda x: (torch._foreach_add_([x], [x]), x)[1],
    "aten::resize_": lambda x: x.clone().resize_(1, 4),
    "aten::view": lambda x: x.view(torch.uint8).view(torch.float32),
    "aten::as_strided": lambda x: x.t().as_strided((2, 2), (1, 1)),
    "flex_attention": lambda x: flex_attention(*[x[None, None]] * 3),
    "cond": lambda x: torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,)),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", UNKNOWN)
def test_nothing_is_guessed(name: str) -> None:
    with pytest.raises(UnsupportedOp, match=rf"^{name} on shapes \(.*\) in 1 \(Inside\) "):
        Connectivity(nn.Sequential(nn.Linear(4, 4), Inside(UNKNOWN[name])), (2, 4))


@pytest.mark.parametrize(
    "leave",
    [lambda x: torch.from_numpy(x.numpy()), lambda x: torch.tensor(x.tolist())],
    ids=["numpy", "tolist"],
)
def test_an_output_that_is_on_no_path_is_an_error(leave: Callable[..., Any]) -> None:
    with pytest.raises(LitPruneError, match="no output of Sequential depends on its input"):
        Connectivity(nn.Sequential(nn.Linear(4, 4), Inside(leave)), (2, 4))


def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_RULES, "mylib::gate", None)
    page = Path(__file__).parents[2] / "docs" / "connectivity.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    space: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(page), "exec"), space)
    check(Case("gate", space["gate"], [(2, 4)]))
