"""Operations that only rearrange elements.

What PyTorch composes of others (``movedim``, ``chunk``, ``tile``) needs no rule: it is taken apart.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Size

from lit_prune.connectivity.rule import Wire, rule
from lit_prune.connectivity.wiring import Weight

__all__: list[str] = []

_Rule = Callable[..., Any]


def _or_part(function: _Rule) -> _Rule:
    """Let a rule of views take weights, too: what it shows of one is a part of the weight."""

    @wraps(function)
    def seen(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
        return wire.viewed(x) if isinstance(x, Weight) else function(wire, x, *rest, **options)

    return seen


@rule(
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"),
    *("view_copy", "squeeze_copy", "unsqueeze_copy", "_reshape_copy"),
)
@_or_part
def reshaped(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """The same elements in the same order."""
    if x.shape.numel() != wire.shape.numel():
        raise wire.refuse("takes the bytes for numbers of another size")
    return wire.reshaped(x)


@rule("expand", "expand_copy")
@_or_part
def repeated(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """Elements repeated without a copy."""
    return wire.merge(x)


@rule("permute", "permute_copy")
@_or_part
def permuted(wire: Wire, x: Any, dims: Sequence[int]) -> Any:
    """Dimensions in another order."""
    return wire.permuted(x, dims)


@rule("transpose", "transpose_copy", "t", "t_copy")
@_or_part
def transposed(wire: Wire, x: Any, first: int = 0, second: int = -1) -> Any:
    """Two dimensions swapped."""
    order = list(range(len(x.shape)))
    if order:
        order[first], order[second] = order[second], order[first]
    return wire.permuted(x, order)


@rule("select", "select_copy")
@_or_part
def selected(wire: Wire, x: Any, dim: int, index: int) -> Any:
    """One place of a dimension, which vanishes."""
    (piece,) = wire.cut(x, dim, [(index % x.shape[dim], 1, 1)], drops_dim=True)
    return piece


@rule("slice", "slice_copy")
@_or_part
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


@rule(
    *("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"),
    *("split_copy", "split_with_sizes_copy"),
)
@_or_part
def split(wire: Wire, x: Any, sizes: Any, dim: int = 0) -> Any:
    """All of a dimension, in pieces."""
    slices, start = [], 0
    for piece in wire.result:
        slices.append((start, piece.shape[dim], 1))
        start += piece.shape[dim]
    return list(wire.cut(x, dim, slices))


@rule("unbind", "unbind_copy")
@_or_part
def unbound(wire: Wire, x: Any, dim: int = 0) -> Any:
    """Every place of a dimension, which vanishes."""
    return list(wire.cut(x, dim, [(n, 1, 1) for n in range(x.shape[dim])], drops_dim=True))


@rule("cat")
def joined(wire: Wire, parts: Sequence[Any], dim: int = 0) -> Any:
    """Parts end to end."""
    return wire.joined(parts, dim)


@rule("stack", "_stack")
def stacked(wire: Wire, parts: Sequence[Any], dim: int = 0) -> Any:
    """Parts end to end along a new dimension."""
    rank = len(wire.shape)
    shape = [1 if d == dim % rank else n for d, n in enumerate(wire.shape)]
    raised = [wire.reshaped(p, shape) if wire.marks(p) else p.new_empty(shape) for p in parts]
    return wire.joined(raised, dim)


@rule("diagonal", "diagonal_copy", "unfold", "unfold_copy")
@_or_part
def shown(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """A view that may show an element more than once."""
    return wire.copied()


@rule(
    *("roll", "flip", "rot90", "repeat", "tril", "triu", "diag_embed", "im2col", "pixel_shuffle"),
    *("pixel_unshuffle", "channel_shuffle", "block_diag"),
)
def copied(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """Elements copied to other places, some of them constants."""
    return wire.copied()


@rule("as_strided", "as_strided_copy")
@_or_part
def strided(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """Elements by their place in memory, of a tensor that fills its memory in order."""
    tensor = wire.args[0]
    if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes:
        raise wire.refuse("looks at the memory behind a view")
    return wire.copied()


@rule("view_as_real", "view_as_real_copy")
def two_numbers(wire: Wire, x: Any) -> Any:
    """A complex number as its two parts."""
    return wire.merge(wire.reshaped(x, (*x.shape, 1)))


@rule("view_as_complex", "view_as_complex_copy")
def one_number(wire: Wire, x: Any) -> Any:
    """Two parts as a complex number."""
    return wire.over(x, -1)


@rule("select_scatter", "slice_scatter", "diagonal_scatter")
def inserted(wire: Wire, x: Any, part: Any, *rest: Any, **options: Any) -> Any:
    """A part of a tensor replaced by another."""
    return wire.copied(of=(0, 1))


@rule("nonzero", "_unique2", "unique_consecutive", "unique_dim", "bincount", "histc")
def sifted(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """What comes out where, and how much of it, depends on all (sound, not tight)."""
    every = wire.merge(*(wire.over(s, None) for s in (x, *rest)), shape=Size([]))
    results = wire.result if isinstance(wire.result, tuple | list) else [wire.result]
    found = [wire.merge(every, shape=r.shape) for r in results]
    return found if isinstance(wire.result, tuple | list) else found[0]
