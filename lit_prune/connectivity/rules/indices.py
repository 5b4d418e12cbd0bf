"""Operations that look up, or write to, places given by indices or masks.

Constant indices tell exactly what is copied where. Indices that are computed from the input may
take anything anywhere: then everything depends on everything (sound, not tight).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor

from lit_prune.connectivity.rule import Wire, rule

__all__: list[str] = []


@rule("index", "_unsafe_index")
def indexed(wire: Wire, x: Any, indices: Any) -> Any:
    """``x[indices]``."""
    if any(wire.marks(index) for index in indices):
        return _anywhere(wire, x, *indices)
    return wire.copied()


@rule("index_select", "gather")
def picked(wire: Wire, x: Any, dim: int, index: Any, **options: Any) -> Any:
    """Elements along one dimension."""
    return _anywhere(wire, x, index) if wire.marks(index) else wire.copied()


@rule("take", "masked_select")
def taken(wire: Wire, x: Any, index: Any) -> Any:
    """Elements by their number, or where a mask says so."""
    return _anywhere(wire, x, index) if wire.marks(index) else wire.copied()


@rule("index_copy", "masked_scatter")
def replaced(wire: Wire, x: Any, *rest: Any) -> Any:
    """Elements replaced by those of the last argument."""
    if any(wire.marks(index) for index in rest[:-1]):
        return _anywhere(wire, x, *rest)
    return wire.copied(of=(0, len(rest)))


@rule("index_fill")
def filled(wire: Wire, x: Any, dim: int, index: Any, value: Any) -> Any:
    """Slices replaced by one value; a computed one counts for all (sound, not tight)."""
    if wire.marks(index):
        return _anywhere(wire, x, index, value)
    return wire.merge(wire.copied(lambda base, *_: base.index_fill(dim, index, 0)), value)


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def put(wire: Wire, x: Any, indices: Any, values: Any, accumulate: bool = False, *_: Any) -> Any:
    """``x[indices] = values``, or ``+=``."""
    if any(wire.marks(index) for index in indices):
        return _anywhere(wire, x, *indices, values)
    if accumulate:
        return _collected(wire, x, values, 2, lambda places: places[_plain(indices)])
    return wire.copied(of=(0, 2))


@rule("scatter")
def scattered(wire: Wire, x: Any, dim: int, index: Any, source: Any, **options: Any) -> Any:
    """Elements replaced, or with ``reduce`` combined with what is there."""
    if wire.marks(index):
        return _anywhere(wire, x, index, source)
    if options.get("reduce"):
        return _collected(wire, x, source, 3, lambda places: places.gather(dim, index))
    if isinstance(source, Tensor) or wire.marks(source):
        return wire.copied(of=(0, 3))
    return wire.copied(lambda base, *_, **__: base.scatter(dim, index, 0))


@rule("scatter_add", "scatter_reduce")
def scatter_added(wire: Wire, x: Any, dim: int, index: Any, source: Any, *_: Any, **__: Any) -> Any:
    """Elements combined with what is there, however; what is left out counts as well."""
    if wire.marks(index):
        return _anywhere(wire, x, index, source)
    return _collected(wire, x, source, 3, lambda places: places.gather(dim, index))


@rule("index_add", "index_reduce")
def index_added(wire: Wire, x: Any, dim: int, index: Any, source: Any, *_: Any, **__: Any) -> Any:
    """Slices combined with what is there, however; what is left out counts as well."""
    if wire.marks(index):
        return _anywhere(wire, x, index, source)
    return _collected(wire, x, source, 3, lambda places: places.index_select(dim, index))


@rule("put")
def put_by_number(wire: Wire, x: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    """Elements written by their number."""
    if wire.marks(index):
        return _anywhere(wire, x, index, source)
    if accumulate:
        return _collected(wire, x, source, 2, lambda places: places.take(index))
    return wire.copied(of=(0, 2))


@rule("col2im")
def folded(wire: Wire, x: Any, size: Any, *geometry: Any) -> Any:
    """Patches collected where they overlap."""

    def patches(places: Tensor) -> Tensor:
        # The padding is 0.
        return torch.ops.aten.im2col(places.double() + 1, *geometry).long() - 1

    return _collected(wire, None, x, 0, patches)


@rule("bucketize", "searchsorted")
def ranked(wire: Wire, *operands: Any, **options: Any) -> Any:
    """Where a number stands among others; computed ones count for all (sound, not tight)."""
    return _anywhere(wire, *operands, *options.values())


def _anywhere(wire: Wire, *operands: Any) -> Any:
    """Everything depends on everything."""
    every = wire.merge(*(wire.over(x, None) for x in operands), shape=Size([]))
    return wire.merge(every)


def _collected(wire: Wire, x: Any, added: Any, place: int, home: Callable[[Tensor], Tensor]) -> Any:
    """Return ``x`` with elements of ``added`` collected where they go.

    Args:
        wire: the wire.
        x: what they are added to, or None.
        added: what is added, the argument at ``place``.
        place: see above.
        home: looks up, in a tensor of the result's shape, the place each element goes to.
    """
    if not wire.marks(added):
        return wire.merge(x)

    def sources(*operands: Any, **options: Any) -> Tensor:
        numbers = operands[place]
        places = torch.arange(wire.shape.numel(), device=numbers.device).view(wire.shape)
        return _by_place(home(places), numbers, wire.shape)

    return wire.merge(x, wire.over(wire.copied(sources, of=(place,)), -1))


def _by_place(home: Tensor, numbers: Tensor, shape: Size) -> Tensor:
    """Return which numbers go to each place, (*shape, as many as go to any), filled up by 0."""
    if numbers.numel() != home.numel():
        # `scatter` leaves the rest of a larger source out; `index_put` repeats a smaller one.
        sizes = home.shape[home.dim() - numbers.dim() :]
        numbers = numbers[tuple(slice(size) for size in sizes)].expand_as(home)
    home, numbers = home.flatten(), numbers.flatten()
    order = home.argsort(stable=True)
    order = order[home[order] >= 0]
    home, numbers = home[order], numbers[order]
    counts = torch.bincount(home, minlength=shape.numel())
    rank = torch.arange(len(home), device=home.device) - (counts.cumsum(0) - counts)[home]
    table = numbers.new_zeros(shape.numel(), max(int(counts.max()), 1))
    table[home, rank] = numbers
    return table.view(*shape, -1)


def _plain(indices: Any) -> tuple[Any, ...]:
    """Return indices as Python takes them: None stands for a whole dimension."""
    return tuple(slice(None) if index is None else index for index in indices)
