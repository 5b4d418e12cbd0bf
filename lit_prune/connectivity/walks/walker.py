"""Walker: walks many paths at once, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lit_prune.connectivity.walks.choices import (
    Walkers,
    looked_up,
    one_of,
    parted,
    together,
    uniform,
)
from lit_prune.connectivity.walks.ground import Gate, entrances, exits, survey
from lit_prune.connectivity.walks.moves import Moves, back, onward
from lit_prune.connectivity.walks.passages import Trip, Visits, passages_of
from lit_prune.connectivity.wiring import Signal, Wiring
from lit_prune.errors import NonFiniteScores

__all__ = ["Walker"]

_ALL = np.ones((), bool)
# A step and the number of one of its inputs; or an end of the network.
_Way = tuple[int, int] | None


class Walker:
    r"""Random walks along the connections of a network, biased by their weights.

    Walks of even numbers go forward from an input unit, those of odd numbers backward from an
    output unit; both take their first units in turn. From unit i a walk goes on to unit j with the
    probability :math:`|w_{ij}| / \sum_k |w_{ik}|`, and from j back to i with
    :math:`|w_{ij}| / \sum_k |w_{kj}|`. The weight between two channels is the L1 norm of their
    kernel, of which the walk then takes one weight, again by its size. Where all sizes are zero, it
    chooses uniformly. Source: Patil and Dovrolis 2021, "PHEW: constructing sparse networks that
    learn fast and generalize well without training data", arXiv 2010.11354.

    No walk ends early: it takes only what lies on a path of kept connections from an input to an
    output. Where tensors meet, a walk backward takes any operand, and where a tensor is used
    several times, a walk forward takes any use, all with the same probability.

    Positions: a walker stands on an element, (channel, position), and every operation but layers
    moves it exactly, so that it knows which features a flattened channel became. Layers forget the
    position, and the next is drawn uniformly from those of the channel that lie on a path: the
    paper's walks see none, and if a tap had to fit the position, its probability would depend on
    more than weights. So walks are paths at channel resolution. Taps that only ever touch padding
    are on no path.

    Walks do not depend on one another, so that many are walked at once.

    Args:
        wiring: the network.
        weights: its weights, whose absolute values count; all that are not given are alike.
        masks: the connections that are kept, and that are counted when visited; of weights without
            a mask all are kept.
        kernels: take all weights of a kernel instead of one.

    Attributes:
        size: connections have numbers below this.
        length: how many connections a walk can visit at most.
        connections: how many connections lie on a path that can be walked.

    Raises:
        NonFiniteScores: a weight is NaN or infinite.
    """

    def __init__(
        self,
        wiring: Wiring,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        kernels: bool = False,
    ) -> None:
        for name, weight in weights.items():
            if not bool(weight.detach().isfinite().all()):
                raise NonFiniteScores(f"the weights of {name} hold NaN or infinity")
        self._wiring = wiring
        self._starts, self.size = _numbered(wiring, masks)
        self._ground = survey(wiring, masks)
        self._passages = passages_of(wiring, self._ground, weights, self._starts, kernels)
        self._ways = _ways(wiring)
        self._entrances = entrances(wiring, self._ground)
        self._exits = exits(wiring, self._ground)
        self._visits_each = max((p.visits_each for p in self._passages.values()), default=1)
        self.length = len(self._passages) * self._visits_each
        self.connections = self._count_open()

    def visits(self, walks: range, generator: torch.Generator) -> Visits:
        """Return the connections that the walks of these numbers visit."""
        trip = Trip(self._ground, self._passages, uniform(generator), self._visits_each)
        numbers = np.asarray(walks)
        if self._entrances and self._exits:
            self._walk_forward(numbers[numbers % 2 == 0], trip)
            self._walk_backward(numbers[numbers % 2 == 1], trip)
        return trip.visits()

    def by_weight(self, values: Tensor) -> dict[str, Tensor]:
        """Return what ``values`` holds for the connections, by their numbers, as views by name."""
        return {
            name: values.as_strided(
                self._wiring.weights[name], self._wiring.strides[name], values.storage_offset() + n
            )
            for name, n in self._starts.items()
        }

    def _count_open(self) -> int:
        is_open = torch.zeros(self.size, dtype=torch.bool)
        homes = self.by_weight(is_open)
        for step, found in self._ground.open.items():
            if step.weight is not None and step.weight.name in homes:
                step.weight.of(homes[step.weight.name]).logical_or_(torch.from_numpy(found))
        return int(is_open.sum())

    def _walk_forward(self, numbers: np.ndarray, trip: Trip) -> None:
        """Go through the steps in order; who waits for a step has chosen it before."""
        waiting: dict[_Way, list[Walkers]] = {}
        for signal, walkers in _started(self._entrances, numbers, trip):
            self._choose_ways(signal, walkers, waiting, trip)
        for number, step in enumerate(self._wiring.steps):
            trip.place = number
            for slot in range(len(step.inputs)):
                if crowd := waiting.pop((number, slot), None):
                    for signal, walkers in onward(step, slot, together(crowd), trip):
                        self._choose_ways(signal, walkers, waiting, trip)

    def _choose_ways(
        self,
        signal: Signal,
        walkers: Walkers,
        waiting: dict[_Way, list[Walkers]],
        trip: Trip,
    ) -> None:
        """Let every walker at ``signal`` take one of its uses, or its end, that leads to an end."""
        ways = self._ways[signal]
        leads = (_ALL if way is None else self._ground.leads[way] for way in ways)
        possible = np.stack([looked_up(marks, walkers.places) for marks in leads])
        for choice, part in parted(walkers, one_of(possible, trip.draw)):
            waiting.setdefault(ways[choice], []).append(part)

    def _walk_backward(self, numbers: np.ndarray, trip: Trip) -> None:
        """Go through the steps in reverse; a signal comes out of one step only."""
        standing: dict[Signal, list[Walkers]] = {}
        for signal, walkers in _started(self._exits, numbers, trip):
            standing.setdefault(signal, []).append(walkers)
        for number, step in enumerate(reversed(self._wiring.steps)):
            trip.place = number
            for slot, output in enumerate(step.outputs):
                if crowd := standing.pop(output, None):
                    for signal, walkers in back(step, slot, together(crowd), trip):
                        standing.setdefault(signal, []).append(walkers)


def _numbered(wiring: Wiring, masks: Mapping[str, Tensor]) -> tuple[dict[str, int], int]:
    """Return where each weight's numbers start, one for each place in its memory, and their end."""
    starts, end = {}, 0
    for name in masks:
        starts[name] = end
        pairs = zip(wiring.weights[name], wiring.strides[name], strict=True)
        end += 1 + sum((size - 1) * stride for size, stride in pairs)
    return starts, end


def _ways(wiring: Wiring) -> dict[Signal, list[_Way]]:
    """Return all uses of each signal."""
    ways: dict[Signal, list[_Way]] = {x: [None] for x in wiring.outputs}
    for number, step in enumerate(wiring.steps):
        for slot, x in enumerate(step.inputs):
            ways.setdefault(x, []).append((number, slot))
    return ways


def _started(gates: Sequence[Gate], numbers: np.ndarray, trip: Trip) -> Moves:
    """Yield the walkers at their first units, which they take in turn over all ends."""
    counts = [gate.units.shape[1] for gate in gates]
    units = numbers // 2 % sum(counts)
    ends = np.searchsorted(np.cumsum(counts), units, side="right")
    for at, part in parted(Walkers(numbers, units[None]), ends):
        gate = gates[at]
        found = gate.units[:, part.places[0] - sum(counts[:at])]
        fixed = dict(zip(gate.dims, found, strict=True))
        yield gate.signal, trip.ground.spread(gate.signal, part, fixed, trip.draw)
