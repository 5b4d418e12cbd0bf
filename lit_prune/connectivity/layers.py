"""The steps that connections make: linear layers and convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lit_prune.connectivity.algebra import Algebra, Reach
from lit_prune.connectivity.bool_conv import BoolConv
from lit_prune.connectivity.conv_shape import ConvShape
from lit_prune.connectivity.wiring import Signal, Step, Weight, wide

__all__ = ["Conv", "Dense", "Layer"]


@dataclass(frozen=True, eq=False)
class Layer(Step):
    """A step through a weight matrix; ``weight`` None means that all connections are present."""

    inputs: tuple[Signal, ...]
    outputs: tuple[Signal, ...]
    has_weight: ClassVar[bool] = True
    weight: Weight | None
    weight_shape: tuple[int, ...]

    @property
    def positions(self) -> int:
        """How many positions share the weight, padding included."""
        raise NotImplementedError

    def entering(self, mask: Tensor) -> Tensor:
        """Return which input units have a connection in ``mask``."""
        raise NotImplementedError

    def carry(
        self, algebra: Algebra, weight: Tensor, reach: Tensor, taps: bool
    ) -> tuple[Tensor, Any]:
        """Return what reaches the output, and a memo for :meth:`carry_back`.

        Where all positions are one, ``taps`` leaves out kernel taps that only touch padding all the
        same.
        """
        raise NotImplementedError

    def carry_back(
        self, algebra: Algebra, weight: Tensor, head: Tensor, memo: Any
    ) -> tuple[Tensor, Tensor]:
        """Return what the input reaches, and the value of the best path of each connection."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """``y[..., o] = sum_i x[..., i] W[o, i]``; positions with equal inputs are computed once."""

    @property
    def positions(self) -> int:
        """All but the features."""
        return prod(self.outputs[0].shape[:-1])

    def entering(self, mask: Tensor) -> Tensor:
        """A column each."""
        return mask.any(0)

    def carry(
        self, algebra: Algebra, weight: Tensor, reach: Tensor, taps: bool
    ) -> tuple[Tensor, Any]:
        """Flatten the positions into rows, and leave out repeated ones."""
        features = weight.shape[1]
        if algebra.by_channel and reach.dim() > 1:
            reach = algebra.any(reach, range(reach.dim() - 1))
        lead = reach.shape[:-1]
        rows = wide(reach, (*lead, features)).reshape(-1, features)
        rows, places = _distinct(rows)
        found, memo = algebra.forward(weight[None], rows[None])
        found = found[0] if places is None else found[0][places]
        return found.reshape(*lead, -1), (rows, places, memo, lead)

    def carry_back(
        self, algebra: Algebra, weight: Tensor, head: Tensor, memo: Any
    ) -> tuple[Tensor, Tensor]:
        """The rows' outputs reach different things even where their inputs are alike."""
        rows, places, inner, lead = memo
        outputs = weight.shape[0]
        shared = [d for d, size in enumerate(lead) if size == 1 and head.shape[d] > 1]
        heads = algebra.any(head, shared) if shared else head
        heads = wide(heads, (*lead, outputs)).reshape(-1, outputs)
        if places is None:
            back, through = algebra.backward(weight[None], rows[None], heads[None], inner)
            return back[0].reshape(*lead, -1), through[0]
        # Rows that agree at both ends are one; a row of inputs may meet several of heads.
        pairs, places = _distinct(torch.cat([rows[places], heads], 1))
        rows, heads = pairs.split([rows.shape[1], outputs], 1)
        _, inner = algebra.forward(weight[None], rows[None])
        back, through = algebra.backward(weight[None], rows[None], heads[None], inner)
        found = back[0] if places is None else back[0][places]
        return found.reshape(*lead, -1), through[0]


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the different rows, and for each row its place among them; None if all differ."""
    if len(rows) == 1:
        return rows, None
    if rows.device.type != "cpu":
        values, places = torch.unique(rows, dim=0, return_inverse=True)
    else:
        whole = np.ascontiguousarray(rows.numpy())
        as_bytes = whole.view(np.dtype((np.void, whole.dtype.itemsize * whole.shape[1]))).ravel()
        _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
        values, places = rows[torch.from_numpy(first)], torch.from_numpy(inverse)
    return (values, places) if len(values) < len(rows) else (rows, None)


@dataclass(frozen=True, eq=False)
class Conv(Layer):
    """A convolution of any dimension, grouping, stride, padding and dilation; also transposed.

    A transposed convolution is a convolution from its output to its input: the sides are swapped.
    """

    geometry: ConvShape
    transposed: bool

    @property
    def positions(self) -> int:
        """All but the channels, on the larger side; a padding makes more than one in any case."""
        ends = max(prod(x.shape[2:]) for x in (self.inputs[0], self.outputs[0]))
        return self.inputs[0].shape[0] * max(ends, self.geometry.taps)

    def entering(self, mask: Tensor) -> Tensor:
        """A channel each; within its group, unless transposed."""
        units = mask.flatten(2).any(2)
        if self.transposed:
            return units.any(1)
        return units.unflatten(0, (self.geometry.groups, -1)).any(1).flatten()

    def carry(
        self, algebra: Algebra, weight: Tensor, reach: Tensor, taps: bool
    ) -> tuple[Tensor, Any]:
        """By channels; by bytes where there are masks; and by patches else."""
        if algebra.by_channel:
            return self._carry_by_channel(algebra, weight, reach, taps)
        reach = wide(reach, self.inputs[0].shape)
        if isinstance(algebra, Reach):
            conv = BoolConv(self.geometry, weight, self.transposed)
            return conv.forward(reach), (conv, reach)
        matrix = weight.reshape(self.geometry.groups, weight.shape[0] // self.geometry.groups, -1)
        if self.transposed:
            matrix, rows = matrix.mT, self.geometry.rows(reach)
        else:
            rows = self.geometry.patches(algebra, reach)
        found, inner = algebra.forward(matrix, rows)
        if self.transposed:
            found = self.geometry.unpatches(algebra, found)
        else:
            found = self.geometry.unrows(found)
        return found, (matrix, rows, inner)

    def carry_back(
        self, algebra: Algebra, weight: Tensor, head: Tensor, memo: Any
    ) -> tuple[Tensor, Tensor]:
        """The same ways back."""
        if isinstance(memo, _ByChannel):
            return self._carry_back_by_channel(algebra, weight, head, memo)
        head = wide(head, self.outputs[0].shape)
        if isinstance(memo[0], BoolConv):
            conv, reach = memo
            return conv.backward(reach, head)
        matrix, rows, inner = memo
        if self.transposed:
            heads = self.geometry.patches(algebra, head)
        else:
            heads = self.geometry.rows(head)
        back, through = algebra.backward(matrix, rows, heads, inner)
        if self.transposed:
            return self.geometry.unrows(back), through.mT.reshape(weight.shape)
        return self.geometry.unpatches(algebra, back), through.reshape(weight.shape)

    # All positions collapsed: a matrix from (input channel, tap) to output channel.

    def _carry_by_channel(
        self, algebra: Algebra, weight: Tensor, reach: Tensor, taps: bool
    ) -> tuple[Tensor, Any]:
        geometry, ones = self.geometry, [1] * (reach.dim() - 2)
        units = algebra.any(reach, [d for d in range(reach.dim()) if d != 1])
        units = wide(units, (1, self.inputs[0].shape[1], *ones)).reshape(geometry.groups, -1, 1)
        rows = units.expand(-1, -1, geometry.taps)
        if taps and not bool(geometry.live_taps.all()):
            rows = torch.where(geometry.live_taps, rows, algebra.nothing([1]))
        rows = rows.reshape(geometry.groups, 1, -1)
        matrix = self._by_output(weight)
        found, inner = algebra.forward(matrix, rows)
        return found.reshape(1, -1, *ones), _ByChannel(matrix, rows, inner)

    def _carry_back_by_channel(
        self, algebra: Algebra, weight: Tensor, head: Tensor, memo: _ByChannel
    ) -> tuple[Tensor, Tensor]:
        geometry, ones = self.geometry, [1] * (head.dim() - 2)
        heads = algebra.any(head, [d for d in range(head.dim()) if d != 1])
        heads = wide(heads, (1, self.outputs[0].shape[1], *ones)).reshape(geometry.groups, 1, -1)
        back, through = algebra.backward(memo.matrix, memo.rows, heads, memo.inner)
        back = algebra.any(back.reshape(1, -1, geometry.taps), [2])
        through = through.reshape(geometry.groups, heads.shape[2], -1, geometry.taps)
        through = through.transpose(1, 2) if self.transposed else through
        return back.reshape(1, -1, *ones), through.reshape(weight.shape)

    def _by_output(self, weight: Tensor) -> Tensor:
        """Return (groups, output channels, input channels * taps)."""
        geometry = self.geometry
        parts = weight.reshape(geometry.groups, -1, weight.shape[1], geometry.taps)
        return (parts.transpose(1, 2) if self.transposed else parts).flatten(2)


@dataclass(frozen=True, eq=False)
class _ByChannel:
    matrix: Tensor
    rows: Tensor
    inner: Any
