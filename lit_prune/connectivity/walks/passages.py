"""Passages: layers, as walkers go through them and visit their connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_prune.connectivity.layers import Conv, Layer
from lit_prune.connectivity.walks.choices import Draw, Table, Walkers
from lit_prune.connectivity.walks.ground import Ground
from lit_prune.connectivity.wiring import Step, Wiring

__all__ = ["Passage", "Trip", "Visits", "passages_of"]


@dataclass(frozen=True, eq=False)
class Visits:
    """Which connections some walks visit; one row a visit, in no order.

    Attributes:
        walks: the numbers of the walks.
        places: how far into its walk each visit is; no two visits of a walk have the same.
        connections: the numbers of the connections, as :meth:`Walker.by_weight` takes them.
    """

    walks: np.ndarray
    places: np.ndarray
    connections: np.ndarray


@dataclass(eq=False)
class Trip:
    """What moves need: where walks lead, numbers drawn, and a place to note what is visited."""

    ground: Ground
    passages: Mapping[Step, Passage]
    draw: Draw
    stride: int
    place: int = 0
    notes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def note(self, walks: np.ndarray, taps: np.ndarray, connections: np.ndarray) -> None:
        """Note visits at the step that is walked."""
        self.notes.append((walks, self.place * self.stride + taps, connections))

    def visits(self) -> Visits:
        """Return all that was noted."""
        columns = list(zip(*self.notes, strict=True)) or [[np.empty(0, np.int64)]] * 3
        return Visits(*(np.concatenate(column) for column in columns))


def passages_of(
    wiring: Wiring,
    ground: Ground,
    weights: Mapping[str, Tensor],
    starts: Mapping[str, int],
    whole: bool,
) -> dict[Step, Passage]:
    """Return a passage for each layer; uses that are alike in all share their tables.

    The numbers of a weight's connections begin at its place in ``starts``; ``whole`` visits all
    weights of a kernel.
    """
    shared: dict[Any, _Kernels] = {}
    passages: dict[Step, Passage] = {}
    for step, is_open in ground.open.items():
        form = (step.geometry.groups, step.transposed) if isinstance(step, Conv) else ()
        key = (step.weight, step.weight_shape, form, is_open.tobytes())
        if key not in shared:
            shared[key] = _Kernels.of(step, _sizes(wiring, step, weights), is_open)
        start = None if step.weight is None else starts.get(step.weight.name)
        passages[step] = Passage(step, shared[key], start, whole)
    return passages


class Passage:
    """A layer, as walkers go through it in either direction."""

    def __init__(self, step: Layer, kernels: _Kernels, start: int | None, whole: bool) -> None:
        self._step, self._kernels, self._whole = step, kernels, whole
        _, self._outputs, self._inputs, taps = kernels.sizes.shape
        self._unit = 1 if isinstance(step, Conv) else len(step.inputs[0].shape) - 1
        self._start = start
        self._strides, self._taps = _steps_in_memory(step)
        self.visits_each = taps if whole else 1

    def forward(self, walkers: Walkers, trip: Trip) -> Walkers:
        """Choose an output unit, and a place there."""
        units = walkers.places[self._unit]
        group, given = np.divmod(units, self._inputs)
        found = self._kernels.to_output.pick(units, trip.draw)
        self._visit(walkers.numbers, (group, found, given), trip)
        fixed = {self._unit: group * self._outputs + found}
        return trip.ground.spread(self._step.outputs[0], walkers, fixed, trip.draw)

    def backward(self, walkers: Walkers, trip: Trip) -> Walkers:
        """Choose an input unit, and a place there."""
        units = walkers.places[self._unit]
        group, given = np.divmod(units, self._outputs)
        found = self._kernels.to_input.pick(units, trip.draw)
        self._visit(walkers.numbers, (group, given, found), trip)
        fixed = {self._unit: group * self._inputs + found}
        return trip.ground.spread(self._step.inputs[0], walkers, fixed, trip.draw)

    def _visit(
        self, walks: np.ndarray, kernel: tuple[np.ndarray, np.ndarray, np.ndarray], trip: Trip
    ) -> None:
        """Note one weight of each walk's kernel, or all."""
        if self._start is None:
            return
        first = np.full_like(walks, self._start)
        for unit, stride in zip(kernel, self._strides, strict=True):
            first += unit * stride
        if self._whole:
            who, taps = self._kernels.is_open[kernel].nonzero()
            trip.note(walks[who], taps, first[who] + self._taps[taps])
        else:
            taps = self._kernels.taps(kernel, trip.draw)
            trip.note(walks, np.zeros_like(taps), first + self._taps[taps])


def _steps_in_memory(step: Layer) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return how far the next (group, output, input) is in a weight's storage, and each tap."""
    if step.weight is None:
        return (0, 0, 0), np.zeros(1, np.int64)
    offset, (rows, columns, *rest) = step.weight.offset, step.weight.stride
    if not isinstance(step, Conv):
        return (0, rows, columns), np.array([offset])
    taps = np.full(step.geometry.kernel, offset)
    for axis, stride in zip(np.indices(step.geometry.kernel), rest, strict=True):
        taps += axis * stride
    in_group = step.weight.size[0] // step.geometry.groups * rows
    near = (columns, rows) if step.transposed else (rows, columns)
    return (in_group, *near), taps.ravel()


@dataclass(frozen=True, eq=False)
class _Kernels:
    """The weights of a layer as kernels between units: (groups, outputs, inputs, taps)."""

    sizes: np.ndarray
    is_open: np.ndarray
    to_output: Table
    to_input: Table

    @classmethod
    def of(cls, step: Layer, sizes: np.ndarray, is_open: np.ndarray) -> _Kernels:
        """Return the kernels of a layer; what is not open has no chance."""
        is_open = _by_unit(step, is_open)
        sizes = np.where(is_open, _by_unit(step, sizes), 0)
        odds, possible = sizes.sum(3, dtype=np.float64), np.asarray(is_open.any(3))
        inputs, outputs = odds.shape[2], odds.shape[1]
        return cls(
            sizes,
            is_open,
            Table(*(x.swapaxes(1, 2).reshape(-1, outputs) for x in (odds, possible))),
            Table(*(x.reshape(-1, inputs) for x in (odds, possible))),
        )

    def taps(self, kernel: tuple[np.ndarray, np.ndarray, np.ndarray], draw: Draw) -> np.ndarray:
        """Return a tap for each (group, output, input)."""
        if self.sizes.shape[3] == 1:
            return np.zeros(len(kernel[0]), np.int64)
        odds = self.sizes[kernel].astype(np.float64)
        odds = np.where(odds.any(1, keepdims=True), odds, self.is_open[kernel])
        ends = odds.cumsum(1)
        aims = draw(len(odds)) * ends[:, -1]
        return (ends <= aims[:, None]).sum(1)


def _by_unit(step: Layer, values: np.ndarray) -> np.ndarray:
    """Return (groups, outputs, inputs, taps)."""
    if not isinstance(step, Conv):
        return values[None, :, :, None]
    geometry = step.geometry
    parts = values.reshape(geometry.groups, -1, values.shape[1], geometry.taps)
    return parts.swapaxes(1, 2) if step.transposed else parts


def _sizes(wiring: Wiring, step: Layer, weights: Mapping[str, Tensor]) -> np.ndarray:
    """Return the absolute values of a layer's weight."""
    if step.weight is None or step.weight.name not in weights:
        return np.ones(step.weight_shape, np.float32)
    whole = wiring.laid_out(step.weight.name, weights[step.weight.name].detach())
    found = step.weight.of(whole).cpu().abs()
    return (found if found.dtype == torch.float64 else found.float()).numpy()
