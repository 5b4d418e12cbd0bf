"""Operations that only rearrange elements."""

from collections.abc import Sequence
from typing import Any

from lit_prune.connectivity.rule import Wire, rule

__all__: list[str] = []


@rule(
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "view_as", "reshape_as", "flatten"),
    *("unflatten", "squeeze", "unsqueeze", "ravel", "atleast_1d", "atleast_2d", "atleast_3d"),
    *("view_copy", "squeeze_copy", "unsqueeze_copy", "squeeze_multiple", "_reshape_copy"),
)
def reshaped(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """The same elements in the same order."""
    return wire.reshaped(x)


@rule("permute", "permute_copy")
def permuted(wire: Wire, x: Any, dims: Sequence[int]) -> Any:
    """Dimensions in another order."""
    return wire.permuted(x, dims)


@rule("transpose", "swapaxes", "swapdims", "transpose_copy")
def transposed(wire: Wire, x: Any, first: int, second: int) -> Any:
    """Two dimensions swapped."""
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return wire.permuted(x, order)


@rule("t", "numpy_T", "mT", "adjoint", "matrix_H", "t_copy")
def flipped_matrix(wire: Wire, x: Any) -> Any:
    """The last two dimensions swapped."""
    if len(x.shape) < 2:
        return x
    order = list(range(len(x.shape)))
    order[-2:] = order[-1], order[-2]
    return wire.permuted(x, order)


@rule("movedim", "moveaxis")
def moved(wire: Wire, x: Any, source: Any, target: Any) -> Any:
    """Some dimensions to other places."""
    rank = len(x.shape)
    sources = [d % rank for d in ([source] if isinstance(source, int) else source)]
    targets = [d % rank for d in ([target] if isinstance(target, int) else target)]
    places = dict(zip(targets, sources, strict=True))
    rest = iter(d for d in range(rank) if d not in sources)
    return wire.permuted(x, [places[d] if d in places else next(rest) for d in range(rank)])


@rule("select", "select_copy")
def selected(wire: Wire, x: Any, dim: int, index: int) -> Any:
    """One place of a dimension, which vanishes."""
    (piece,) = wire.cut(x, dim, [(index % x.shape[dim], 1, 1)], drops_dim=True)
    return piece


@rule("slice", "slice_copy")
def sliced(
    wire: Wire, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    """Every so many places of a dimension."""
    first, _, _ = slice(start, end, step).indices(x.shape[dim])
    length = wire.shape[dim]
    if length == x.shape[dim]:
        return x
    (piece,) = wire.cut(x, dim, [(first, length, step)])
    return piece


@rule("narrow", "narrow_copy")
def narrowed(wire: Wire, x: Any, dim: int, start: Any, length: int) -> Any:
    """Neighbouring places of a dimension."""
    (piece,) = wire.cut(x, dim, [(int(start) % x.shape[dim] if length else 0, length, 1)])
    return piece


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(wire: Wire, x: Any, sizes: Any, dim: int = 0) -> Any:
    """All of a dimension, in pieces."""
    slices, start = [], 0
    for piece in wire.result:
        slices.append((start, piece.shape[dim], 1))
        start += piece.shape[dim]
    return list(wire.cut(x, dim, slices))


@rule("unbind", "unbind_copy")
def unbound(wire: Wire, x: Any, dim: int = 0) -> Any:
    """Every place of a dimension, which vanishes."""
    return list(wire.cut(x, dim, [(n, 1, 1) for n in range(x.shape[dim])], drops_dim=True))


@rule("cat", "concat", "concatenate")
def joined(wire: Wire, parts: Sequence[Any], dim: int = 0) -> Any:
    """Parts end to end."""
    return wire.joined(parts, dim)


@rule("stack")
def stacked(wire: Wire, parts: Sequence[Any], dim: int = 0) -> Any:
    """Parts end to end along a new dimension."""
    rank = len(wire.shape)
    shape = [1 if d == dim % rank else n for d, n in enumerate(wire.shape)]
    raised = [wire.reshaped(p, shape) if wire.marks(p) else p.new_empty(shape) for p in parts]
    return wire.joined(raised, dim)


@rule("expand", "expand_as", "broadcast_to", "expand_copy")
def repeated(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """Elements repeated without a copy."""
    return wire.merge(x)


@rule(
    *("index", "index_select", "gather", "take_along_dim", "take", "roll", "flip", "fliplr"),
    *("flipud", "rot90", "repeat", "tile", "repeat_interleave", "tril", "triu", "diag", "diagonal"),
    *("diag_embed", "as_strided", "unfold", "im2col", "pixel_shuffle", "pixel_unshuffle"),
    *(
        "channel_shuffle",
        "native_channel_shuffle",
        "_pad_circular",
        "masked_select",
        "index_put",
        "index_copy",
        "scatter",
    ),
    *("slice_scatter", "select_scatter", "masked_scatter", "_index_put_impl", "_unsafe_index"),
    *("diagonal_copy", "as_strided_copy", "unfold_copy", "alias_copy", "argwhere"),
)
def copied(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """Whatever the operation is, it copies elements: it is run on their numbers."""
    return wire.copied()
