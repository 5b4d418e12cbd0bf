"""Rules: what an operation connects, one function each.

A rule is a function of a :class:`Wire` and the operation's own arguments, in which tensors on a
path from the input stand as :class:`Signal` and prunable weights as :class:`Weight`; everything
else is as it was. It says by the verbs of the wire what the result is made of, and returns that,
in the form of the operation's result (None where a result is on no path)::

    from lit_prune.connectivity import rule

    @rule("mylib::swish_and_pool")
    def swish_and_pool(wire, x, dim):
        return wire.over(x, dim)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Size, Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map_only

from lit_prune.connectivity.conv_shape import ConvShape
from lit_prune.connectivity.layers import Conv, Dense
from lit_prune.connectivity.wiring import (
    Copies,
    Cut,
    Join,
    Merge,
    Over,
    Permute,
    Reshape,
    Signal,
    Step,
    UnsupportedOp,
    Weight,
    Windows,
)

__all__ = ["Rule", "Wire", "out_names", "rule", "rule_of"]

Rule = Callable[..., Any]
_RULES: dict[str, Rule] = {}
# Numbers of the images that an operation is probed with at once.
_PROBED = 1 << 22


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Declare a function the rule of operations, named ``add`` (of aten) or ``library::name``.

    In-place forms share the rule of their plain form.
    """

    def declare(function: Rule) -> Rule:
        for name in names:
            _RULES[name if "::" in name else f"aten::{name}"] = function
        return function

    return declare


def rule_of(func: Any) -> Rule | None:
    """Return the rule of an operation of PyTorch's dispatcher, if there is one."""
    name = func.overloadpacket._qualified_op_name
    found = _RULES.get(name)
    if found is None and func._schema.is_mutable:
        found = _RULES.get(name.removesuffix("_"))
    return found


def out_names(func: Any) -> set[str]:
    """Return the names of the arguments that an operation only writes to (``out=``)."""
    return {argument.name for argument in func._schema.arguments if argument.is_out}


class Wire:
    """The verbs of rules: each adds steps and returns the signals that they lead to.

    Attributes:
        args: the operation's own arguments, with tensors as they are.
        result: what the operation returned, for shapes.
    """

    def __init__(
        self,
        steps: list[Step],
        func: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        result: Any,
        seen: dict[int, Any],
    ) -> None:
        self._steps = steps
        self._name = func.overloadpacket._qualified_op_name
        # What an operation writes to (out=) is no operand; without it, another overload fits.
        self._kwargs = {name: kwargs[name] for name in kwargs if name not in out_names(func)}
        self._func = func if len(self._kwargs) == len(kwargs) else func.overloadpacket
        self.args = args
        self._seen = seen
        self.result = result

    @property
    def shape(self) -> Size:
        """The shape of the (first) result."""
        first = self.result[0] if isinstance(self.result, tuple | list) else self.result
        return first.shape

    def merge(self, *operands: Any, shape: Size | None = None) -> Signal | Weight | None:
        """Elementwise with broadcasting: a path runs through any operand."""
        shape = self.shape if shape is None else shape
        marked = [x for x in operands if isinstance(x, Signal | Weight)]
        if not marked:
            return None
        if len(marked) == 1 and marked[0].shape == shape:
            if isinstance(marked[0], Weight):
                self._require_zeros_to_stay(marked[0])
            return marked[0]
        return self._add(Merge(self._signals(marked), (Signal(shape),)))

    def over(
        self, x: Any, dims: int | Sequence[int] | None, keep_dims: bool = False
    ) -> Signal | None:
        """Any of all elements along ``dims`` (None: along all)."""
        if not isinstance(x, Signal | Weight):
            return None
        (x,) = self._signals([x])
        rank = len(x.shape)
        every = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
        chosen = tuple(sorted({d % rank for d in every})) if rank else ()
        if not chosen:
            return x
        kept = [1 if d in chosen else n for d, n in enumerate(x.shape)]
        shape = kept if keep_dims else [n for d, n in enumerate(x.shape) if d not in chosen]
        return self._add(Over((x,), (Signal(Size(shape)),), chosen, keep_dims))

    def mixed(self, x: Any, dims: int | Sequence[int] | None) -> Signal | Weight | None:
        """Every element along ``dims`` depends on all of them; the shape stays."""
        if not isinstance(x, Signal | Weight):
            return None
        return self.merge(self.over(x, dims, keep_dims=True), shape=x.shape)

    def reshaped(self, x: Any, shape: Sequence[int] | None = None) -> Any:
        """The same elements in the same order under another shape."""
        if not isinstance(x, Signal | Weight):
            return None
        shape = self.shape if shape is None else Size(shape)
        if x.shape == shape:
            return x
        (x,) = self._signals([x])
        return self._add(Reshape((x,), (Signal(shape),)))

    def permuted(self, x: Any, order: Sequence[int]) -> Any:
        """The same elements with their dimensions in another order."""
        if not isinstance(x, Signal | Weight):
            return None
        (x,) = self._signals([x])
        order = tuple(d % len(x.shape) for d in order)
        return self._add(Permute((x,), (Signal(Size([x.shape[d] for d in order])),), order))

    def cut(
        self, x: Any, dim: int, slices: Sequence[tuple[int, int, int]], drops_dim: bool = False
    ) -> Any:
        """Slices ``(start, length, step)`` along ``dim``; one signal for each."""
        if not isinstance(x, Signal | Weight):
            return None
        (x,) = self._signals([x])
        dim %= len(x.shape)
        sizes = [[n if d != dim else c[1] for d, n in enumerate(x.shape)] for c in slices]
        for size in sizes:
            if drops_dim:
                del size[dim]
        outputs = tuple(Signal(Size(size)) for size in sizes)
        self._steps.append(Cut((x,), outputs, dim, tuple(slices), drops_dim))
        return outputs

    def joined(self, parts: Sequence[Any], dim: int) -> Signal:
        """Concatenation; constants among the parts are on no path."""
        rank = len(self.shape)
        parts = [p for p in parts if len(p.shape) == rank]  # cat skips legacy empty tensors
        marked = [p for p in parts if isinstance(p, Signal | Weight)]
        signals = self._signals(list(dict.fromkeys(marked)))
        places = {id(s): n for n, s in enumerate(signals)}
        sizes = tuple((places.get(id(p)), p.shape[dim % rank]) for p in parts)
        return self._add(Join(signals, (Signal(self.shape),), dim % rank, sizes))

    def copied(self, run: Callable[..., Any] | None = None, of: Sequence[int] = (0,)) -> Any:
        """Every element of the result is a copy of an operand's, found by running on indices.

        Serves all operations that only rearrange, at the price of an index for every element.

        Args:
            run: what to run in place of the operation, with its arguments; it may return numbers
                of any shape, 0 for what is no copy.
            of: the arguments that are copied from, by place. They are given as the numbers of their
                elements, or zeros where they are constants; others (indices, masks) as they are.
        """
        marks, start = {}, 1
        given = (x for x in tree_iter([self.args[n] for n in of]) if isinstance(x, Tensor))
        signals = {id(x): (x, self._seen[id(x)]) for x in given if self._seen.get(id(x))}
        inputs = self._signals([signal for _, signal in signals.values()])
        for tensor, _ in signals.values():
            numbers = torch.arange(start, start + tensor.numel(), dtype=torch.float64)
            marks[id(tensor)] = numbers.view(tensor.shape).to(tensor.device)
            start += tensor.numel()

        def as_index(x: Tensor) -> Tensor:
            return marks.get(id(x), torch.zeros_like(x, dtype=torch.float64))

        args = list(self.args)
        for place in of:
            args[place] = tree_map_only(Tensor, as_index, args[place])
        with _disable_current_modes():
            found = (run or self._func)(*args, **self._kwargs)
        results = found if isinstance(found, tuple | list) else [found]
        made = [
            self._add(Copies(inputs, (Signal(r.shape),), (r - 1).round().long())) for r in results
        ]
        return made if isinstance(found, tuple | list) else made[0]

    def windowed(self, x: Any, dims: Sequence[int]) -> Any:
        """Any of a window along each of ``dims``, found by running on one element at a time."""
        if not isinstance(x, Signal | Weight):
            return None
        (x,) = self._signals([x])
        forward, back = {}, {}
        for dim in dims:
            outs, ins = self._seen_along(x.shape, dim, dims)
            sizes = self.shape[dim - len(x.shape)], x.shape[dim]
            if sizes[0] == sizes[1] == len(outs) and torch.equal(outs, ins):
                continue
            device = _device_of(self.result)
            forward[dim] = _places(outs, ins, sizes[0]).to(device)
            back[dim] = _places(ins, outs, sizes[1]).to(device)
        return self._add(Windows((x,), (Signal(self.shape),), forward, back))

    def placed(self, x: Any, places: Mapping[int, Tensor]) -> Any:
        """Copies along some dimensions: the place that each output place shows, -1 for none.

        A row of places, where an output place depends on several.
        """
        if not isinstance(x, Signal | Weight):
            return None
        (x,) = self._signals([x])
        forward, back = {}, {}
        for dim, shown in places.items():
            shown = shown.reshape(len(shown), -1)
            outs, columns = (shown >= 0).nonzero().T
            device = _device_of(self.result)
            forward[dim] = shown.to(device)
            back[dim] = _places(shown[outs, columns], outs, x.shape[dim]).to(device)
        return self._add(Windows((x,), (Signal(self.shape),), forward, back))

    def _seen_along(self, shape: Size, dim: int, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return pairs of an output place along ``dim`` and an input place that it sees.

        The operation is run on images of which one place at a time is marked.
        """
        size, others = shape[dim], [n for n, d in enumerate(dims, 2) if d != dim]
        pairs: list[Tensor] = []
        many = max(1, _PROBED // prod(shape[d] for d in dims))
        for start in range(0, size, many):
            rows = torch.arange(start, min(start + many, size))
            marked = (rows[:, None] == torch.arange(size)).float()
            marked = marked.view(len(rows), 1, *(size if d == dim else 1 for d in dims))
            marked = marked.expand(len(rows), 1, *(shape[d] for d in dims)).contiguous()
            with _disable_current_modes():
                found = self._func(marked, *self.args[1:], **self._kwargs)
            values = found[0] if isinstance(found, tuple | list) else found
            sees = values.abs().amax([1, *others]) > 1e-6
            pairs.append(sees.nonzero() + torch.tensor([start, 0]))
        ins, outs = torch.cat(pairs).T
        order = (outs * size + ins).argsort()
        return outs[order], ins[order]

    def spatial(self, x: Any) -> list[int]:
        """Return the dimensions of the positions: all but the batch and the channels."""
        rank = next(n for n in (1, 2, 3) if f"{n}d" in self._name)
        return list(range(len(x.shape) - rank, len(x.shape)))

    def marks(self, x: Any) -> bool:
        """Whether ``x`` is a signal or a weight, and no constant."""
        return isinstance(x, Signal | Weight)

    # Layers.

    def dense(self, x: Any, weight: Any, shape: Size | None = None) -> Any:
        """``x W^T`` with W (outputs, inputs); a constant W has all connections."""
        if not self._flows(x, weight):
            return None
        shape = self.shape if shape is None else shape
        if not isinstance(weight, Weight):
            return self.merge(self.over(x, -1, keep_dims=True), shape=shape)
        weight = _as_matrix(weight)
        if 0 in weight.size or 0 in x.shape:
            return None
        return self._add(Dense((x,), (Signal(shape),), weight, weight.size))

    def dense_from_left(self, weight: Weight, x: Any) -> Any:
        """``W x`` with W (outputs, inputs)."""
        if not self._flows(x, weight):
            return None
        if len(x.shape) == 1:
            return self.dense(x, weight)
        turned = self.permuted(x, _turned(len(x.shape)))
        found = self.dense(turned, weight, Size([*turned.shape[:-1], weight.shape[-2]]))
        return self.permuted(found, _turned(len(x.shape)))

    def viewed(self, weight: Weight) -> Any:
        """What a view of a weight shows of it (``chunk``, ``t``, ``reshape`` without a copy)."""
        whole = torch.empty_strided(weight.size, weight.stride, device="meta")
        with _disable_current_modes():
            found = self._func(whole, *self.args[1:], **self._kwargs)
        views = found if isinstance(found, tuple | list) else [found]
        home = whole.untyped_storage()._cdata
        if any(v.untyped_storage()._cdata != home or v.dtype != whole.dtype for v in views):
            raise UnsupportedOp(f"copies the prunable weight {weight.name} in another order")
        parts = [
            Weight(weight.name, tuple(v.shape), v.stride(), weight.offset + v.storage_offset())
            for v in views
        ]
        return parts if isinstance(found, tuple | list) else parts[0]

    def turned(self, weight: Weight) -> Weight:
        """Return the transposed matrix of a weight."""
        size, stride = list(weight.size), list(weight.stride)
        size[-2:], stride[-2:] = size[:-3:-1], stride[:-3:-1]
        return Weight(weight.name, tuple(size), tuple(stride), weight.offset)

    def conv(
        self,
        x: Any,
        weight: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        transposed: bool = False,
    ) -> Any:
        """A convolution of any dimension; a constant weight has all connections."""
        if not self._flows(x, weight):
            return None
        rank, shape = len(weight.shape) - 2, self.shape
        if len(x.shape) == rank + 1:
            x, shape = self.reshaped(x, (1, *x.shape)), Size([1, *shape])
        ends = [tuple(shape[2:]), tuple(x.shape[2:])]
        coarse, fine = ends[::-1] if transposed else ends
        geometry = ConvShape(
            tuple(weight.shape[2:]),
            _each(stride, rank),
            _each(padding, rank),
            _each(dilation, rank),
            fine,
            coarse,
            groups,
            _device_of(self.result),
        )
        part = weight if isinstance(weight, Weight) else None
        step = Conv((x,), (Signal(shape),), part, tuple(weight.shape), geometry, transposed)
        return self.reshaped(self._add(step))

    def _flows(self, x: Any, weight: Any) -> bool:
        """Whether ``x`` is a signal; a weight that only meets constants is on no path."""
        if isinstance(x, Weight):
            raise UnsupportedOp(f"multiplies the prunable weight {x.name} with another tensor")
        return isinstance(x, Signal)

    def refuse(self, why: str) -> UnsupportedOp:
        """Return the error to raise for what a rule does not cover."""
        return UnsupportedOp(why)

    def _require_zeros_to_stay(self, weight: Weight) -> None:
        """Refuse what turns a weight's zeros into other numbers: pruning would remove no path."""

        def zeroed(x: Tensor) -> Tensor:
            if self._seen.get(id(x)) is weight:
                return torch.zeros_like(x)
            # Other numbers may be zero by chance, and others tomorrow.
            return torch.ones_like(x) if x.is_floating_point() else x

        args, kwargs = tree_map_only(Tensor, zeroed, (tuple(self.args), self._kwargs))
        with _disable_current_modes():
            found = self._func(*args, **kwargs)
        first = found[0] if isinstance(found, tuple | list) else found
        if bool(first.any()):
            raise UnsupportedOp(
                f"turns zeros of the prunable weight {weight.name} into other numbers, "
                f"so that pruning it removes no path"
            )

    def _add(self, step: Step) -> Signal:
        self._steps.append(step)
        return step.outputs[0]

    def _signals(self, marked: Sequence[Any]) -> tuple[Signal, ...]:
        for x in marked:
            if isinstance(x, Weight):
                raise UnsupportedOp(f"takes the prunable weight {x.name} in a way without a rule")
        return tuple(marked)


def _device_of(result: Any) -> torch.device:
    return next(x.device for x in tree_iter(result) if isinstance(x, Tensor))


def _as_matrix(weight: Weight) -> Weight:
    """Return a weight without dimensions that repeat it for a batch."""
    while len(weight.size) > 2 and (weight.size[0] == 1 or weight.stride[0] == 0):
        weight = Weight(weight.name, weight.size[1:], weight.stride[1:], weight.offset)
    if len(weight.size) != 2:
        raise UnsupportedOp(f"takes the prunable weight {weight.name} as several matrices")
    repeats = (n > 1 and s == 0 for n, s in zip(weight.size, weight.stride, strict=True))
    if any(repeats):
        raise UnsupportedOp(f"repeats elements of the prunable weight {weight.name}")
    return weight


def _turned(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def _each(size: Any, rank: int) -> tuple[int, ...]:
    sizes = [size] if isinstance(size, int) else list(size)
    return tuple(sizes * rank if len(sizes) == 1 else sizes)


def _places(rows: Tensor, places: Tensor, size: int) -> Tensor:
    """Return the places that belong to each of ``size`` rows, filled up with -1."""
    order = rows.argsort(stable=True)
    rows, places = rows[order], places[order]
    counts = torch.bincount(rows, minlength=size)
    table = torch.full((size, max(int(counts.max()), 1)), -1)
    table[rows, torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]] = places
    return table
