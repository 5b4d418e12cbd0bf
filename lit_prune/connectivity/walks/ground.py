"""Ground: what lies on a path from end to end of a network, where walks may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_prune.connectivity.algebra import Reach
from lit_prune.connectivity.layers import Conv, Layer
from lit_prune.connectivity.walks.choices import Draw, Lists, Walkers, below, flat, unflat, within
from lit_prune.connectivity.wiring import Copies, Signal, Step, Wiring

__all__ = ["Gate", "Ground", "entrances", "exits", "survey"]


@dataclass(eq=False)
class Ground:
    """What lies on a path from an input to an output; elements are stored compactly.

    Attributes:
        alive: by signal, the elements on a path.
        leads: by step and number of its input, which elements lead to an output through the step.
        open: by layer, the connections on a path, in the shape of the layer's weight.
    """

    alive: dict[Signal, np.ndarray] = field(default_factory=dict)
    leads: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    open: dict[Layer, np.ndarray] = field(default_factory=dict)
    _lists: dict[Any, Lists] = field(default_factory=dict)

    def spread(
        self, signal: Signal, walkers: Walkers, fixed: Mapping[int, np.ndarray], draw: Draw
    ) -> Walkers:
        """Return the walkers at ``signal`` with some coordinates fixed.

        The others are drawn uniformly from the elements that are alive.
        """
        shape, alive, count = signal.shape, self.alive[signal], len(walkers.numbers)
        free = [d for d in range(len(shape)) if d not in fixed]
        rows = dict(fixed)
        if all(alive.shape[d] == 1 for d in free):
            rows |= {d: below(shape[d], count, draw) for d in free}
        else:
            sizes = [alive.shape[d] for d in fixed]
            known = [within(row, n) for row, n in zip(fixed.values(), sizes, strict=True)]
            lists = self._lists.get((signal, *free)) or self._free_lists(signal, free)
            found = lists.pick(flat(known, sizes, count), draw)
            rows |= zip(free, unflat(found, [shape[d] for d in free]), strict=True)
        return walkers.at([rows[d] for d in range(len(shape))])

    def _free_lists(self, signal: Signal, free: Sequence[int]) -> Lists:
        """List, for the coordinates that are fixed, the others of elements that are alive."""
        alive = self.alive[signal]
        sizes = [signal.shape[d] if d in free else n for d, n in enumerate(alive.shape)]
        fixed = [d for d in range(len(sizes)) if d not in free]
        whole = np.broadcast_to(alive, sizes).transpose(*fixed, *free)
        lists = Lists(*whole.reshape(-1, prod(sizes[d] for d in free)).nonzero())
        self._lists[(signal, *free)] = lists
        return lists

    def copies(self, step: Copies) -> Lists:
        """List, for each element that is copied, the copies that are alive."""
        if step not in self._lists:
            output = step.outputs[0]
            alive = np.broadcast_to(self.alive[output], output.shape).ravel()
            sources = step.source.cpu().numpy().ravel()
            copies = np.flatnonzero(alive & (sources >= 0))
            self._lists[step] = Lists(sources[copies], copies)
        return self._lists[step]


def survey(wiring: Wiring, masks: Mapping[str, Tensor]) -> Ground:
    """Follow paths of kept connections from both ends; only layers take all positions for one."""
    weights = _kept(wiring, masks)
    reached, memos = _reached(wiring, weights)
    ground, elements = Ground(), Reach(wiring.device)
    heads = {x: elements.nothing([1] * len(x.shape)) for x in reached}
    heads |= {x: elements.everything([1] * len(x.shape)) for x in wiring.outputs}
    for number, step in reversed(list(enumerate(wiring.steps))):
        wanted = [heads[x] for x in step.outputs]
        if isinstance(step, Layer):
            units = Reach(wiring.device, by_channel=True)
            back, is_open = step.carry_back(units, weights[step], wanted[0], memos.pop(step))
            ground.open[step] = is_open.cpu().numpy()
            leads: tuple[Tensor | None, ...] = (back,)
        else:
            leads = step.backward(elements, *wanted)
        for slot, (x, lead) in enumerate(zip(step.inputs, leads, strict=True)):
            lead = elements.nothing([1] * len(x.shape)) if lead is None else lead
            heads[x] = elements.either(heads[x], lead)
            ground.leads[number, slot] = lead.cpu().numpy()
    ground.alive |= {x: (reach & heads[x]).cpu().numpy() for x, reach in reached.items()}
    return ground


def _reached(
    wiring: Wiring, weights: Mapping[Layer, Tensor]
) -> tuple[dict[Signal, Tensor], dict[Layer, Any]]:
    """Return what paths from an input lead to, and what layers need for the way back."""
    elements, units = Reach(wiring.device), Reach(wiring.device, by_channel=True)
    reached = {x: elements.everything([1] * len(x.shape)) for x in wiring.inputs}
    memos: dict[Layer, Any] = {}
    for step in wiring.steps:
        given = [reached[x] for x in step.inputs]
        if isinstance(step, Layer):
            found, memos[step] = step.carry(units, weights[step], given[0], taps=False)
            reached[step.outputs[0]] = found
        else:
            reached |= zip(step.outputs, step.forward(elements, *given), strict=True)
    return reached, memos


def _kept(wiring: Wiring, masks: Mapping[str, Tensor]) -> dict[Layer, Tensor]:
    """Return the mask of each layer, without taps that only touch padding."""
    homes = {name: wiring.laid_out(name, mask) for name, mask in masks.items()}
    kept = {}
    for step in wiring.steps:
        if not isinstance(step, Layer):
            continue
        if step.weight is not None and step.weight.name in homes:
            kept[step] = step.weight.of(homes[step.weight.name])
        else:
            kept[step] = torch.ones(step.weight_shape, dtype=torch.bool, device=wiring.device)
        if isinstance(step, Conv):
            kept[step] = kept[step] & step.geometry.live_taps.view(step.geometry.kernel)
    return kept


# The ends.


@dataclass(frozen=True, eq=False)
class Gate:
    """The units of an end of the network that are alive: some coordinates of each, by column."""

    signal: Signal
    dims: tuple[int, ...]
    units: np.ndarray


def entrances(wiring: Wiring, ground: Ground) -> list[Gate]:
    """Return the units of inputs that are on a path, where walks forward start."""
    by_channel = [_is_by_channel(x, wiring.fed_by(x)) for x in wiring.inputs]
    return _gates(wiring.inputs, by_channel, ground)


def exits(wiring: Wiring, ground: Ground) -> list[Gate]:
    """Return the units of outputs that are on a path, where walks backward start."""
    # The wiring holds its outputs in no certain order.
    signals = [*wiring.inputs, *(x for step in wiring.steps for x in step.outputs)]
    outputs = [x for x in signals if x in wiring.outputs]
    return _gates(outputs, [_is_by_channel(x, _made_by(wiring, x)) for x in outputs], ground)


def _gates(ends: Sequence[Signal], by_channel: Sequence[bool], ground: Ground) -> list[Gate]:
    """Units are channels at convolutions, and elements else."""
    gates = []
    for signal, is_channel in zip(ends, by_channel, strict=True):
        alive = np.broadcast_to(ground.alive[signal], signal.shape)
        dims = (1,) if is_channel else tuple(range(alive.ndim))
        if is_channel:
            alive = np.asarray(alive.any(tuple(d for d in range(alive.ndim) if d != 1)))
        gates.append(Gate(signal, dims, np.argwhere(alive).T))
    return [gate for gate in gates if gate.units.shape[1]]


def _is_by_channel(signal: Signal, layers: Sequence[Step]) -> bool:
    return len(signal.shape) > 2 and bool(layers) and all(isinstance(s, Conv) for s in layers)


def _made_by(wiring: Wiring, end: Signal) -> list[Step]:
    """Return the steps with a weight that ``end`` comes from after any other such."""
    wanted, found = {end}, []
    for step in reversed(wiring.steps):
        if wanted & set(step.outputs):
            if step.has_weight:
                found.append(step)
            else:
                wanted |= set(step.inputs)
    return found
