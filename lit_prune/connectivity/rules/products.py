"""Linear layers, convolutions, matrix products, attention, embeddings and recurrent layers."""

from collections.abc import Sequence
from typing import Any

from torch import Size

from lit_prune.connectivity.rule import Wire, rule
from lit_prune.connectivity.wiring import Weight

__all__: list[str] = []

_SCALAR = Size([])


@rule("linear")
def linear(wire: Wire, x: Any, weight: Any, bias: Any = None) -> Any:
    """``x W^T``; the bias starts no path."""
    return wire.dense(x, weight)


@rule("matmul", "mm", "bmm", "mv", "dot")
def product(wire: Wire, left: Any, right: Any, *rest: Any, **options: Any) -> Any:
    """A layer if one side is a weight; else a path runs through either side."""
    if isinstance(left, Weight):
        return wire.dense_from_left(left, right)
    if isinstance(right, Weight):
        return wire.dense(left, wire.turned(right))
    if len(left.shape) == 1 or len(right.shape) == 1:
        return wire.merge(*(wire.over(s, None) for s in (left, right)))
    return wire.merge(wire.over(left, -1, keep_dims=True), wire.over(right, -2, keep_dims=True))


@rule("addmm", "addbmm", "baddbmm", "addmv")
def added_product(wire: Wire, start: Any, left: Any, right: Any, **options: Any) -> Any:
    """A product and a summand."""
    found = product(wire, left, right)
    return wire.merge(found, start)


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
    return wire.conv(x, weight, stride, padding, dilation, groups)


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
    return wire.conv(x, weight, stride, padding, dilation, groups, transposed=True)


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
    return wire.conv(x, weight, stride, padding, dilation, groups, transposed)


@rule("scaled_dot_product_attention")
def attention(
    wire: Wire, query: Any, key: Any, value: Any, mask: Any = None, *rest: Any, **options: Any
) -> Any:
    """A path runs through queries, keys and values alike; masks are not looked at."""
    heads = len(wire.shape) - 3
    parts = [
        wire.over(query, -1, keep_dims=True),
        wire.over(key, (-2, -1), keep_dims=True),
        wire.over(value, -2, keep_dims=True),
    ]
    if options.get("enable_gqa"):
        # Several heads of queries share one of keys; which, is not looked at.
        parts[1:] = [wire.over(part, heads, keep_dims=True) for part in parts[1:]]
    return wire.merge(*parts)


@rule("embedding")
def embedding(wire: Wire, table: Any, places: Any, *rest: Any, **options: Any) -> Any:
    """A token's number decides on all of its features."""
    if isinstance(table, Weight):
        raise wire.refuse(f"looks {table.name} up, which is prunable, like a table")
    if not wire.marks(places):
        return wire.copied()
    return wire.merge(wire.reshaped(places, (*places.shape, 1)))


@rule("embedding_bag")
def embedding_bag(wire: Wire, table: Any, places: Any, *rest: Any, **options: Any) -> Any:
    """All tokens of a bag; which bag, is not looked at."""
    every = wire.over(places, None)
    return [wire.merge(every, shape=wire.result[0].shape), None, None, None]


@rule(
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"
)
def recurrent(wire: Wire, x: Any, state: Any, *rest: Any, **options: Any) -> Any:
    """Their weights are not prunable, so that everything depends on everything."""
    states = state if isinstance(state, tuple | list) else [state]
    every = wire.merge(*(wire.over(s, None) for s in (x, *states)), shape=_SCALAR)
    results = wire.result if isinstance(wire.result, tuple | list) else [wire.result]
    found = [wire.merge(every, shape=r.shape) for r in results]
    return found if isinstance(wire.result, tuple | list) else found[0]


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def sampled(wire: Wire, x: Any, grid: Any, *rest: Any, **options: Any) -> Any:
    """Any place of a channel may come to any place; the grid steers all."""
    dims = range(2, len(wire.shape))
    return wire.merge(wire.over(x, list(dims), keep_dims=True), wire.over(grid, None))
