"""Wiring: what a network connects to what, as a list of steps between signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import ClassVar

import torch
from torch import Size, Tensor

from lit_prune.connectivity.algebra import Algebra
from lit_prune.errors import LitPruneError

__all__ = ["Signal", "Step", "UnsupportedOp", "Weight", "Wiring", "compact", "wide"]


class UnsupportedOp(LitPruneError):
    """A network uses an operation that no connectivity rule describes."""


@dataclass(frozen=True, eq=False)
class Signal:
    """A tensor on a path from the network's input, known by its shape alone.

    What flows along it is stored *compactly*: with 1 in place of every dimension along which it is
    constant, so that it broadcasts to ``shape``.
    """

    shape: Size


@dataclass(frozen=True)
class Weight:
    """A prunable parameter, or the part of it that an operation sees, as a place in its storage."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def shape(self) -> Size:
        """The shape of the part."""
        return Size(self.size)

    def of(self, whole: Tensor) -> Tensor:
        """Return the same part of ``whole``, which is laid out as the parameter."""
        return whole.as_strided(self.size, self.stride, whole.storage_offset() + self.offset)


class Step:
    """One operation: how signals go in and come out, and in which algebra's terms.

    ``forward`` takes what reaches the inputs and returns what reaches the outputs; ``backward``
    takes what the outputs reach (None: nothing) and returns what the inputs reach.
    """

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]
    has_weight: ClassVar[bool] = False

    def forward(self, algebra: Algebra, *reach: Tensor) -> tuple[Tensor, ...]:
        """Return what reaches the outputs, given what reaches the inputs."""
        raise NotImplementedError

    def backward(self, algebra: Algebra, *heads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return what the inputs reach, given what the outputs reach."""
        raise NotImplementedError


@dataclass
class Wiring:
    """All steps of a network in the order in which they ran, and its two ends."""

    device: torch.device
    weights: dict[str, Size]
    strides: dict[str, tuple[int, ...]]
    inputs: tuple[Signal, ...] = ()
    outputs: tuple[Signal, ...] = ()
    steps: list[Step] = field(default_factory=list)

    def fed_by(self, source: Signal) -> list[Step]:
        """Return the steps with a weight that ``source`` comes to before any other such."""
        reached, found = {source}, []
        for step in self.steps:
            if reached & set(step.inputs):
                if step.has_weight:
                    found.append(step)
                else:
                    reached |= set(step.outputs)
        return found

    def laid_out(self, name: str, value: Tensor) -> Tensor:
        """Return ``value`` in the memory layout of its weight, whose parts are known by place."""
        strides = self.strides[name]
        if value.stride() == strides and value.device == self.device:
            return value
        home = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=self.device)
        return home.copy_(value)

    def without_dead_ends(self) -> Wiring:
        """Return the wiring without the steps that lead to no output."""
        wanted, steps = set(self.outputs), []
        for step in reversed(self.steps):
            if wanted & set(step.outputs):
                wanted |= set(step.inputs)
                steps.append(step)
        parts = (self.device, self.weights, self.strides, self.inputs, self.outputs)
        return Wiring(*parts, steps[::-1])


def compact(values: Tensor) -> Tensor:
    """Return ``values`` with 1 in place of every dimension that repeats the same memory."""
    for dim, (size, stride) in enumerate(zip(values.shape, values.stride(), strict=True)):
        if stride == 0 and size > 1:
            values = values.narrow(dim, 0, 1)
    return values


def wide(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return compact ``values`` in their full shape, without a copy."""
    return values.expand(tuple(shape))


@dataclass(frozen=True, eq=False)
class Merge(Step):
    """Elementwise with broadcasting: an output is reached if any operand's element is."""

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]

    def forward(self, algebra: Algebra, *reach: Tensor) -> tuple[Tensor, ...]:
        """Broadcast all operands together."""
        rank = len(self.outputs[0].shape)
        first, *others = (_with_rank(r, rank) for r in reach)
        for other in others:
            first = algebra.either(first, other)
        return (first,)

    def backward(self, algebra: Algebra, *heads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Collect over the dimensions along which an operand was repeated."""
        (head,) = heads
        if head is None:
            return (None,) * len(self.inputs)
        return tuple(
            _unbroadcast(algebra, head, x.shape, self.outputs[0].shape) for x in self.inputs
        )


def _with_rank(values: Tensor, rank: int) -> Tensor:
    return values.reshape((1,) * (rank - values.dim()) + tuple(values.shape))


def _unbroadcast(algebra: Algebra, head: Tensor, shape: Size, result: Size) -> Tensor:
    extra = len(result) - len(shape)
    grown = [d for d in range(len(result)) if d < extra or (shape[d - extra] == 1 != result[d])]
    if any(head.shape[d] > 1 for d in grown):
        head = algebra.any(head, grown)
    return head.reshape(head.shape[extra:])


@dataclass(frozen=True, eq=False)
class Over(Step):
    """Any of all elements along ``dims``, which stay as 1 or vanish."""

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]
    dims: tuple[int, ...]
    keep_dims: bool

    def forward(self, algebra: Algebra, *reach: Tensor) -> tuple[Tensor, ...]:
        """Collect over the dimensions."""
        values = algebra.each(reach[0], self.inputs[0].shape)
        values = algebra.any(values, self.dims)
        if not self.keep_dims:
            kept = [n for d, n in enumerate(values.shape) if d not in self.dims]
            values = values.reshape(kept)
        return (values,)

    def backward(self, algebra: Algebra, *heads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Hand the same to every element."""
        (head,) = heads
        if head is None:
            return (None,)
        if not self.keep_dims:
            sizes = iter(head.shape)
            rank = len(self.inputs[0].shape)
            head = head.reshape([1 if d in self.dims else next(sizes) for d in range(rank)])
        elif any(head.shape[d] > 1 for d in self.dims):
            head = algebra.any(head, self.dims)
        return (head,)


@dataclass(frozen=True, eq=False)
class Reshape(Step):
    """The same elements in the same order under another shape."""

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]

    def forward(self, algebra: Algebra, *reach: Tensor) -> tuple[Tensor, ...]:
        """Reshape; what is constant along merged dimensions stays compact where it can."""
        return (_reshaped(reach[0], self.inputs[0].shape, self.outputs[0].shape),)

    def backward(self, algebra: Algebra, *heads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Reshape back."""
        (head,) = heads
        if head is None:
            return (None,)
        return (_reshaped(head, self.outputs[0].shape, self.inputs[0].shape),)


def _reshaped(values: Tensor, before: Size, after: Size) -> Tensor:
    # Dimensions at the end that stay, such as the positions of a channel shuffle, stay compact.
    pairs = zip(reversed(before), reversed(after), strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    end = tuple(values.shape[values.dim() - same :])
    start = wide(values, (*before[: len(before) - same], *end))
    return compact(start.reshape((*after[: len(after) - same], *end)))


@dataclass(frozen=True, eq=False)
class Permute(Step):
    """The same elements with their dimensions in another order."""

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]
    order: tuple[int, ...]

    def forward(self, algebra: Algebra, *reach: Tensor) -> tuple[Tensor, ...]:
        """Permute."""
        return (reach[0].permute(self.order),)

    def backward(self, algebra: Algebra, *heads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Permute back."""
        if heads[0] is None:
            return (None,)
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return (heads[0].permute(back),)


@dataclass(frozen=True, eq=False)
class Cut(Step):
    """Slices along one dimension: ``(start, length, step)`` for each output.

    An output may lack the dimension (``select``), which then was cut to length 1.
    """

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]
    dim: int
    slices: tuple[tuple[int, int, int], ...]
    drops_dim: bool

    def forward(self, algebra: Algebra, *reach: Tensor) -> tuple[Tensor, ...]:
        """Cut; what is constant along the dimension stays so."""
        (values,) = reach
        pieces = (self._piece(values, cut) for cut in self.slices)
        return tuple(p.squeeze(self.dim) if self.drops_dim else p for p in pieces)

    def _piece(self, values: Tensor, cut: tuple[int, int, int]) -> Tensor:
        start, length, step = cut
        if values.shape[self.dim] == 1:
            return values.narrow(self.dim, 0, min(1, length))
        index = [slice(None)] * self.dim + [slice(start, start + length * step, step)]
        return values[tuple(index)]

    def backward(self, algebra: Algebra, *heads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Lay the pieces where they were cut; what no output took reaches nothing."""
        size = self.inputs[0].shape[self.dim]
        whole: Tensor | None = None
        for head, (start, length, step) in zip(heads, self.slices, strict=True):
            if head is None or not length:
                continue
            head = head.unsqueeze(self.dim) if self.drops_dim else head
            shape = list(head.shape)
            shape[self.dim] = size
            piece = algebra.nothing(shape)
            index = [slice(None)] * self.dim + [slice(start, start + length * step, step)]
            piece[tuple(index)] = head
            whole = piece if whole is None else algebra.either(whole, piece)
        return (whole,)


@dataclass(frozen=True, eq=False)
class Join(Step):
    """Concatenation along one dimension; None stands for constants of that length."""

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]
    dim: int
    parts: tuple[tuple[int | None, int], ...]

    def forward(self, algebra: Algebra, *reach: Tensor) -> tuple[Tensor, ...]:
        """Concatenate, with as few elements as represent it."""
        rank = len(self.outputs[0].shape)
        nothing = algebra.nothing([1] * rank)
        pieces = [nothing if index is None else reach[index] for index, _ in self.parts]
        common = torch.broadcast_shapes(*(_set(p.shape, self.dim, 1) for p in pieces))
        sized = zip(pieces, self.parts, strict=True)
        whole = [p.expand(_set(common, self.dim, length)) for p, (_, length) in sized]
        return (torch.cat(whole, self.dim),)

    def backward(self, algebra: Algebra, *heads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Cut apart."""
        (head,) = heads
        found: list[Tensor | None] = [None] * len(self.inputs)
        if head is None:
            return tuple(found)
        start = 0
        for index, length in self.parts:
            if index is not None:
                is_constant = head.shape[self.dim] == 1
                piece = head if is_constant else head.narrow(self.dim, start, length)
                before = found[index]
                found[index] = piece if before is None else algebra.either(before, piece)
            start += length
        return tuple(found)


def _set(shape: Sequence[int], dim: int, size: int) -> list[int]:
    return [size if d == dim else n for d, n in enumerate(shape)]


@dataclass(frozen=True, eq=False)
class Copies(Step):
    """Every output element is a copy of one input element, or a constant (-1).

    ``source`` indexes all inputs, flattened and laid end to end. Serves every operation that only
    rearranges, however it does so.
    """

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]
    source: Tensor

    def forward(self, algebra: Algebra, *reach: Tensor) -> tuple[Tensor, ...]:
        """Look every element up."""
        pairs = zip(reach, self.inputs, strict=True)
        flat = torch.cat([*(wide(r, x.shape).flatten() for r, x in pairs), algebra.nothing([1])])
        found = flat[self.source]
        if algebra.by_channel and algebra.counts:
            found = found[self._representatives(reach)]
        return (found,)

    def _representatives(self, reach: Sequence[Tensor]) -> tuple[slice, ...]:
        """Return the first of every dimension along which all copies are of one channel's."""
        numbers, start = [], 0
        for values, x in zip(reach, self.inputs, strict=True):
            number = torch.arange(start, start + values.numel(), device=values.device)
            numbers.append(wide(number.view(values.shape), x.shape).flatten())
            start += values.numel()
        nodes = torch.cat([*numbers, torch.full_like(numbers[0][:1], -1)])[self.source]
        every = range(nodes.dim())
        alike = [bool((nodes == nodes.narrow(d, 0, 1)).all()) for d in every]
        return tuple(slice(1 if same else None) for same in alike)

    def backward(self, algebra: Algebra, *heads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Collect over all copies of an element."""
        (head,) = heads
        if head is None:
            return (None,) * len(self.inputs)
        sizes = [x.shape.numel() for x in self.inputs]
        index = torch.where(self.source < 0, sum(sizes), self.source)
        head = wide(head, self.outputs[0].shape)
        flat = algebra.gathered(head.flatten(), index.flatten(), sum(sizes) + 1)
        parts = flat[:-1].split(sizes)
        return tuple(p.view(x.shape) for p, x in zip(parts, self.inputs, strict=True))


@dataclass(frozen=True, eq=False)
class Windows(Step):
    """Any of a window along each of some dimensions: pools and interpolations.

    ``windows`` holds, for each dimension, the input places (outputs, width) that an output sees,
    -1 where the window is not full; ``seen_by`` the same the other way.
    """

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]
    windows: dict[int, Tensor]
    seen_by: dict[int, Tensor]

    def forward(self, algebra: Algebra, *reach: Tensor) -> tuple[Tensor, ...]:
        """Collect over the windows, one dimension after the other."""
        shape = self.inputs[0].shape
        values = algebra.each(reach[0], shape)
        return (_through_windows(algebra, values, self.windows, shape),)

    def backward(self, algebra: Algebra, *heads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Collect over all windows that see an element."""
        if heads[0] is None:
            return (None,)
        return (_through_windows(algebra, heads[0], self.seen_by, self.outputs[0].shape),)


def _through_windows(
    algebra: Algebra, values: Tensor, windows: dict[int, Tensor], shape: Size
) -> Tensor:
    for dim, places in windows.items():
        has_empty = bool((places < 0).all(1).any())
        if values.shape[dim] == 1 and ((algebra.by_channel and dim > 1) or not has_empty):
            # Constant along the dimension, and so it stays.
            continue
        values = values.expand(_set(values.shape, dim, shape[dim]))
        if bool((places < 0).any()):
            edge = algebra.nothing(_set(values.shape, dim, 1))
            values = torch.cat([values, edge], dim)
        picked = values.index_select(dim, (places % values.shape[dim]).flatten())
        picked = picked.unflatten(dim, tuple(places.shape))
        values = algebra.any(picked, [dim + 1]).squeeze(dim + 1)
    return values
