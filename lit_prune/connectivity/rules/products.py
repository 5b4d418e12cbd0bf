"""Linear layers, convolutions, matrix products, attention, embeddings and recurrent layers."""

from collections.abc import Sequence
from typing import Any

from torch import Size
from torch.utils._pytree import tree_leaves

from lit_prune.connectivity.rule import Wire, rule
from lit_prune.connectivity.wiring import Weight

__all__: list[str] = []

_SCALAR = Size([])


@rule("linear")
def linear(wire: Wire, x: Any, weight: Any, bias: Any = None) -> Any:
    """``x W^T + b``; a path runs through a weight or bias only if the input computes it."""
    if len(weight.shape) == 1:
        return product(wire, x, weight)
    return wire.merge(wire.dense(x, weight), _computed(wire, weight, 1), bias)


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot")
def product(wire: Wire, left: Any, right: Any, *rest: Any, **options: Any) -> Any:
    """A layer if one side is a weight; else a path runs through either side."""
    if isinstance(left, Weight):
        return wire.dense_from_left(left, right)
    if isinstance(right, Weight):
        return wire.dense(left, wire.turned(right))
    return wire.merge(*_factors(wire, left, right))


def _factors(wire: Wire, left: Any, right: Any) -> tuple[Any, Any]:
    """Return what the factors of a product reach; a vector makes its dimension vanish."""
    is_row, is_column = len(left.shape) == 1, len(right.shape) == 1
    lines = wire.over(left, -1, keep_dims=not (is_row or is_column))
    columns = wire.over(right, -1 if is_column else -2, keep_dims=not (is_row or is_column))
    return lines, columns


@rule("addmm", "baddbmm", "addmv")
def added_product(wire: Wire, start: Any, left: Any, right: Any, *_: Any, **options: Any) -> Any:
    """A product and a summand."""
    return wire.merge(start, product(wire, left, right))


@rule("addbmm")
def added_sum_of_products(wire: Wire, start: Any, left: Any, right: Any, **options: Any) -> Any:
    """The sum of products of matrices, and a summand."""
    return wire.merge(start, *(wire.over(factor, 0) for factor in _factors(wire, left, right)))


@rule("addr")
def added_outer_product(wire: Wire, start: Any, column: Any, row: Any, **options: Any) -> Any:
    """The product of a column and a row, and a summand."""
    column = wire.reshaped(column, (*column.shape, 1))
    return wire.merge(start, column, row)


@rule("_trilinear")
def trilinear(wire: Wire, *operands: Any) -> Any:
    """Products of three tensors, each spread along new dimensions, summed over some of them."""
    factors, new_dims, summed, spread = operands[:3], operands[3:6], operands[6], []
    for factor, dims in zip(factors, new_dims, strict=True):
        shape = list(factor.shape)
        for dim in dims:
            shape.insert(dim, 1)
        spread.append(wire.over(wire.reshaped(factor, shape), summed))
    return wire.merge(*spread)


@rule("_cdist_forward", "_euclidean_dist")
def distances(wire: Wire, left: Any, right: Any, *rest: Any) -> Any:
    """The distance of every row from every row."""
    rows = wire.over(right, -1)
    columns = wire.reshaped(rows, (*right.shape[:-2], 1, right.shape[-2]))
    return wire.merge(wire.over(left, -1, keep_dims=True), columns)


@rule("linalg_cross")
def crossed(wire: Wire, left: Any, right: Any, *, dim: int = -1) -> Any:
    """Products of the other coordinates (which others, is not looked at: sound, not tight)."""
    return wire.merge(wire.mixed(left, dim), wire.mixed(right, dim))


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    wire: Wire,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Padding by name is told apart by PyTorch: ``same`` may pad one side more."""
    if isinstance(padding, str):
        return NotImplemented
    found = wire.conv(x, weight, stride, padding, dilation, groups)
    return _with_computed(wire, found, weight, bias)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    wire: Wire,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """A convolution from its output to its input."""
    found = wire.conv(x, weight, stride, padding, dilation, groups, transposed=True)
    return _with_computed(wire, found, weight, bias, transposed=True)


@rule("convolution", "_convolution")
def any_convolution(
    wire: Wire,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *rest: Any,
) -> Any:
    """The one that all convolutions come to."""
    found = wire.conv(x, weight, stride, padding, dilation, groups, transposed)
    return _with_computed(wire, found, weight, bias, transposed)


def _with_computed(wire: Wire, found: Any, weight: Any, bias: Any, transposed: bool = False) -> Any:
    """Add the paths through a kernel or bias that the input computes, a channel each.

    A computed kernel of a transposed convolution counts for all channels (sound, not tight).
    """
    rank = len(weight.shape)
    kernel = _computed(wire, weight, None if transposed else range(1, rank))
    each = [x for x in (kernel, bias) if wire.marks(x)]
    ones = [1] * (rank - 2)
    return wire.merge(found, *(wire.reshaped(x, (*x.shape, *ones)) for x in each))


@rule("scaled_dot_product_attention")
def attention(
    wire: Wire, query: Any, key: Any, value: Any, mask: Any = None, *rest: Any, **options: Any
) -> Any:
    """A path runs through queries, keys and values alike (sound, not tight).

    A constant mask is not looked at, so that of a causal attention every token sees every other.
    """
    parts = [
        wire.over(query, -1, keep_dims=True),
        wire.over(key, (-2, -1), keep_dims=True),
        wire.over(value, -2, keep_dims=True),
        wire.over(mask, -1, keep_dims=True),
    ]
    if options.get("enable_gqa"):
        # Several heads of queries share one of keys; which, is not looked at.
        heads = len(wire.shape) - 3
        parts[1:3] = [wire.over(part, heads, keep_dims=True) for part in parts[1:3]]
    return wire.merge(*parts)


@rule("embedding")
def embedding(wire: Wire, table: Any, places: Any, *rest: Any) -> Any:
    """A token's number decides on all of its features; a computed table is looked up.

    If the table and the numbers are both computed, any row may be meant (sound, not tight).
    """
    if isinstance(table, Weight):
        raise wire.refuse(f"looks {table.name} up, which is prunable, like a table")
    if not wire.marks(places):
        return wire.copied()
    rows = wire.reshaped(places, (*places.shape, 1))
    return wire.merge(rows, wire.over(table, 0))


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(wire: Wire, *operands: Any) -> Any:
    """All tokens of all bags (sound, not tight)."""
    return _all_of_all(wire, operands)


@rule(
    *("lstm", "gru", "rnn_tanh", "rnn_relu"),
    *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
)
def recurrent(wire: Wire, *operands: Any) -> Any:
    """Their weights are not prunable: everything depends on everything (sound, not tight)."""
    return _all_of_all(wire, operands)


@rule("grid_sampler_2d", "grid_sampler_3d")
def sampled(wire: Wire, x: Any, grid: Any, *rest: Any) -> Any:
    """Any place of a channel may come to any place (sound, not tight); the grid says which."""
    steering = wire.over(grid, -1)
    if steering is not None:
        batch, *positions = steering.shape
        steering = wire.reshaped(steering, (batch, 1, *positions))
    return wire.merge(wire.over(x, range(2, len(x.shape)), keep_dims=True), steering)


@rule("affine_grid_generator")
def affine_grid(wire: Wire, theta: Any, *rest: Any) -> Any:
    """Each coordinate of the grid is a product with one row of the matrix."""
    batch, coordinates, _ = theta.shape
    ones = [1] * (len(wire.shape) - 2)
    return wire.merge(wire.reshaped(wire.over(theta, -1), (batch, *ones, coordinates)))


def _computed(wire: Wire, weight: Any, dims: Any) -> Any:
    """Return what a weight that the input computes reaches; nothing for any other."""
    return None if isinstance(weight, Weight) else wire.over(weight, dims)


def _all_of_all(wire: Wire, operands: Any) -> Any:
    marked = [x for x in tree_leaves(operands) if wire.marks(x)]
    every = wire.merge(*(wire.over(x, None) for x in marked), shape=_SCALAR)
    if not isinstance(wire.result, tuple | list):
        return wire.merge(every)
    return [wire.merge(every, shape=r.shape) for r in wire.result]
