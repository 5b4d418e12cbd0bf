"""Kernel allocation: how many weights each kernel of a layer keeps, as a program of integers."""

from __future__ import annotations

import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

__all__ = ["Allocation", "room_for"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Allocation:
    r"""The question how many weights each kernel of a layer keeps, and ways to answer it.

    Of integers :math:`0 \le M_{ij} \le R_{ij}` that sum to n, those are asked for that maximise

    .. math:: \alpha \frac{A}{C_{in} + C_{out}} + (1 - \alpha) \frac{B}{B_{max}}
              + \beta \frac{n - \sum_{ij} [1 - M_{ij}]_+}{n}

    with :math:`A = C_{in} + C_{out} - \sum_i [m - \sum_j M_{ij}]_+ - \sum_j [m - \sum_i
    M_{ij}]_+` and :math:`B = \sum_{ij} P_i M_{ij}`, of which :math:`B_{max}` is the largest value.
    Inputs and outputs of different groups have no kernel in common. Source: Pham et al. 2023,
    "Towards data-agnostic pruning at initialization: what makes a good sparse mask?", NeurIPS.

    Every term is a concave function of the weights that pass an input, an output or a kernel, and
    a layer is a network of these: so this is a transport problem of convex costs, whose linear
    relaxation has integral optima.

    Attributes:
        paths: how many paths reach each input, P, on any scale, (groups, inputs).
        room: the most weights of each kernel, R, (groups, inputs, outputs).
        budget: how many weights to keep, n, at most the sum of ``room``.
        alpha: what units weigh against paths.
        beta: what kernels in use weigh.
        least: how many weights are enough for a unit, m.
    """

    paths: Array
    room: Array
    budget: int
    alpha: float
    beta: float
    least: int = 1

    @cached_property
    def node_gain(self) -> float:
        """What a weight adds to the objective at a unit that has too few."""
        groups, inputs, outputs = self.room.shape
        return self.alpha / (groups * (inputs + outputs))

    @cached_property
    def path_gain(self) -> Array:
        """What a weight adds by the paths that reach its input, (groups, inputs)."""
        room, paths = self.room.sum(2).ravel(), self.paths.ravel()
        order = np.argsort(-paths)
        before = np.cumsum(room[order]) - room[order]
        most = np.clip(self.budget - before, 0, room[order]) @ paths[order]
        return (1 - self.alpha) * self.paths / (most or 1.0)

    @cached_property
    def kernel_gain(self) -> float:
        """What the first weight of a kernel adds."""
        return self.beta / max(self.budget, 1)

    def value(self, kernels: Array) -> float:
        """Return the objective."""
        units = kernels.sum(2).size + kernels.sum(1).size
        short = sum(np.maximum(self.least - kernels.sum(axis), 0).sum() for axis in (1, 2))
        paths = (self.path_gain * kernels.sum(2)).sum()
        unused = np.maximum(1 - kernels, 0).sum()
        return float(
            self.node_gain * (units - short) + paths + self.beta - self.kernel_gain * unused
        )

    @cached_property
    def bound(self) -> float:
        """What no allocation exceeds: the objective if outputs and kernels took any totals evenly.

        It is reached where all kernels have the same room, and often elsewhere.
        """
        totals = self._totals(np.random.default_rng(0))
        outputs = np.minimum(self._wanted, totals.sum(1)).sum()
        enough = np.minimum(totals, self.least).sum() + outputs
        units = self.room.sum(2).size + self.room.sum(1).size
        used = np.minimum(totals, (self.room > 0).sum(2)).sum()
        return float(
            self.node_gain * (enough - (self.least - 1) * units)
            + (self.path_gain * totals).sum()
            + self.beta
            - self.kernel_gain * (self.room.size - used)
        )

    def is_solved_by(self, kernels: Array) -> bool:
        """Whether ``kernels`` reach the bound, and so are an optimum; if not they still may be."""
        return self.budget * (self.bound - self.value(kernels)) < 1e-6

    @cached_property
    def _wanted(self) -> Array:
        """How many weights the outputs of each group need at least, as far as they have room."""
        return np.minimum(self.room.sum(1), self.least).sum(1)

    def chunks(self, outputs: int | None) -> Iterator[tuple[Any, Allocation]]:
        """Yield one for every ``outputs`` outputs, or whole groups, and its place in ``room``.

        Each has its part of the budget, in proportion to its room. None is the whole.
        """
        groups, _, width = self.room.shape
        if outputs is None:
            places: list[Any] = [np.s_[:]]
        elif groups == 1:
            places = [np.s_[:, :, c : c + outputs] for c in range(0, width, outputs)]
        else:
            step = max(1, outputs // width)
            places = [np.s_[c : c + step] for c in range(0, groups, step)]
        room = np.cumsum([self.room[place].sum() for place in places])
        budgets = np.diff(self.budget * room // room[-1], prepend=0).tolist()
        for place, budget in zip(places, budgets, strict=True):
            paths = self.paths if groups == 1 else self.paths[place]
            yield place, replace(self, paths=paths, room=self.room[place], budget=budget)

    def solved(self, known: Array, seconds: float) -> Array:
        """Return an optimum by HiGHS; or ``known``, if nothing better is found within ``seconds``.

        Needs cvxpy and highspy.
        """
        found = _by_highs(self, seconds) if self.budget else None
        return known if found is None or self.value(found) < self.value(known) - 1e-9 else found

    def heuristic(self, draw: Generator) -> Array:
        """Return what is an optimum where all kernels of a layer have the same room, else near one.

        There only the totals of the inputs matter, since any can be laid over the outputs evenly.
        So they are shared out first, by what each weight adds; then they are laid over the outputs,
        those with too few first, and then those that most paths reach, which leaves most paths to
        the next layer. Exchanges of single weights mend what the room prevents.
        """
        kernels = np.zeros_like(self.room)
        if self.budget:
            self._lay(kernels, self._totals(draw), draw)
            self._exchange(kernels)
        return kernels

    def places(self, kernels: Array, candidates: Array, draw: Generator) -> Array:
        """Draw weights for ``kernels``, and number them by what the objective loses without each.

        Of every unit and kernel the first ones count, as many as it needs; the last place is the
        dearest, and what is not drawn is at -1. Candidates and places are (groups, inputs, outputs,
        taps).
        """
        noise = np.where(candidates, draw.random(candidates.shape), np.inf)
        drawn = noise.argsort(3).argsort(3) < kernels[..., None]
        group, i, j, _ = np.nonzero(drawn)
        _, inputs, outputs = kernels.shape
        source, target = group * inputs + i, group * outputs + j
        noise = draw.random(len(group))
        in_kernel = _place_within(source * outputs + j, noise)
        losses = self.path_gain[group, i] + self.kernel_gain * (in_kernel < 1)
        for unit in (source, target):
            losses += self.node_gain * (_place_within(unit, noise) < self.least)
        places = np.full(candidates.shape, -1)
        places[drawn] = np.lexsort((noise, losses)).argsort()
        return places

    def _totals(self, draw: Generator) -> Array:
        """Return how many weights each input gets, (groups, inputs).

        What a weight adds falls in steps: at ``least`` weights, and where every kernel has one.
        """
        room, kernels = self.room.sum(2), (self.room > 0).sum(2)
        starts = np.sort([0 * room, np.minimum(self.least, room), kernels], axis=0)
        lengths = np.diff(starts, axis=0, append=room[None])
        gains = self.path_gain + self.node_gain * (starts < self.least)
        gains = np.round(self.budget * (gains + self.kernel_gain * (starts < kernels)), 9)
        gains, lengths = (x.swapaxes(0, 1) for x in (gains, lengths))
        shares = self._shares(gains, lengths, draw)
        groups = zip(gains, lengths, shares, strict=True)
        return np.stack([_best(gain, length, n, draw).sum(0) for gain, length, n in groups])

    def _shares(self, gains: Array, lengths: Array, draw: Generator) -> list[int]:
        """Return how many weights each group gets: its first ones also serve its outputs."""
        groups = len(gains)
        if groups == 1:
            return [self.budget]
        gains, lengths = gains.reshape(groups, -1), lengths.reshape(groups, -1)
        order = np.argsort(-gains, axis=1)
        gains, lengths = (np.take_along_axis(x, order, 1) for x in (gains, lengths))
        serving = np.clip(self._wanted[:, None] - np.cumsum(lengths, 1) + lengths, 0, lengths)
        bonus = np.round(self.budget * self.node_gain, 9)
        lengths, gains = np.stack([serving, lengths - serving]), np.stack([gains + bonus, gains])
        return _best(gains, lengths, self.budget, draw).sum((0, 2)).tolist()

    def _lay(self, kernels: Array, totals: Array, draw: Generator) -> None:
        """Lay the inputs' totals over the outputs, in place, through as many kernels as can be."""
        levels = range(1, int(self.room.max()) + 1)
        full = sum((np.minimum(self.room, m).sum(2) <= totals).astype(np.int16) for m in levels)
        filled, reached = np.zeros((2, *self.room[:, 0].shape))
        options = (self.room > 0).sum((0, 2))
        for i in np.lexsort((self.paths.sum(0), options)):
            room, total = self.room[:, i], totals[:, i, None]
            if not total.any():
                continue
            kernels[:, i] = np.minimum(room, full[:, i, None])
            filled += kernels[:, i]
            is_short = filled < self.least
            order = np.where(is_short, filled - 2 * self.least, -reached / (reached.max() or 1))
            order += 1e-6 * draw.random(room.shape)
            order[room <= kernels[:, i]] = np.inf
            more = order.argsort(1).argsort(1) < total - kernels[:, i].sum(1, keepdims=True)
            kernels[:, i] += more
            filled += more
            reached += self.path_gain[:, i, None] * kernels[:, i]

    def _exchange(self, kernels: Array) -> None:
        """Move single weights, in place, from where they add least to where they add most."""
        while True:
            losses = np.where(kernels > 0, self._gains(kernels, 0), np.inf)
            out = np.unravel_index(losses.argmin(), losses.shape)
            kernels[out] -= 1
            gains = np.where(kernels < self.room, self._gains(kernels, 1), -np.inf)
            into = np.unravel_index(gains.argmax(), gains.shape)
            if self.budget * (gains[into] - losses[out]) < 1e-9:
                kernels[out] += 1
                return
            kernels[into] += 1

    def _gains(self, kernels: Array, more: int) -> Array:
        """What the last weight of each kernel adds (more=0), or one weight more would (more=1)."""
        return (
            self.path_gain[:, :, None]
            + self.node_gain * (kernels.sum(2, keepdims=True) <= self.least - more)
            + self.node_gain * (kernels.sum(1, keepdims=True) <= self.least - more)
            + self.kernel_gain * (kernels <= 1 - more)
        )


def _by_highs(program: Allocation, seconds: float) -> Array | None:
    """Return what HiGHS finds in ``seconds``, if anything; only kernels with room are variables."""
    import cvxpy as cp
    from scipy.sparse import csr_array

    groups, inputs, outputs = program.room.shape
    group, i, j = np.nonzero(program.room)
    number, ones = np.arange(len(group)), np.ones(len(group))
    by_input = csr_array((ones, (group * inputs + i, number)), (groups * inputs, len(group)))
    by_output = csr_array((ones, (group * outputs + j, number)), (groups * outputs, len(group)))
    kernels = cp.Variable(len(group), integer=True)
    paths = program.path_gain[group, i] @ kernels
    short = sum(cp.sum(cp.pos(program.least - unit @ kernels)) for unit in (by_input, by_output))
    unused = cp.sum(cp.pos(1 - kernels))
    objective = paths - program.node_gain * short - program.kernel_gain * unused
    bounds = [kernels >= 0, kernels <= program.room[group, i, j]]
    # Times the budget, so that one weight is worth about 1.
    problem = cp.Problem(
        cp.Maximize(program.budget * objective), [*bounds, cp.sum(kernels) == program.budget]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a solution that is no optimum yet
        try:
            problem.solve(solver=cp.HIGHS, time_limit=seconds, mip_rel_gap=0.0, parallel="off")
        except cp.error.SolverError:
            return None
    if kernels.value is None:
        return None
    found = np.zeros_like(program.room)
    found[group, i, j] = np.clip(np.rint(kernels.value), 0, program.room[group, i, j])
    # What is left over after the time limit may keep fewer than it should.
    return found if found.sum() == program.budget else None


def room_for(candidates: Array, paths: Array, budget: int, most: int) -> Array:
    """Return how many weights each kernel may keep, (groups, inputs, outputs).

    At most ``most`` of its candidates, (groups, inputs, outputs, taps), or as many as the budget
    needs; kernels of inputs that no path reaches have room only where the others have too little.
    """
    room = candidates.sum(3, dtype=np.int32)
    reached = room * (paths > 0)[:, :, None]
    room = reached if reached.sum() >= budget else room
    bounds = range(int(room.max()) + 1)
    return np.minimum(room, max(most, bisect_left(bounds, budget, key=_filled_to(room))))


def _filled_to(room: Array) -> Callable[[int], int]:
    return lambda level: int(np.minimum(room, level).sum())


def _best(gains: Array, lengths: Array, total: int, draw: Generator) -> Array:
    """Return how much of each length is taken: the largest gains first, evenly among equal ones."""
    order = np.argsort(-gains, axis=None)
    last = order[np.searchsorted(np.cumsum(lengths.flat[order]), total)]
    given = np.where(gains > gains.flat[last], lengths, 0)
    is_tied = gains == gains.flat[last]
    given[is_tied] = _evenly(lengths[is_tied], total - int(given.sum()), draw)
    return given


def _evenly(room: Array, total: int, draw: Generator) -> Array:
    """Share ``total`` out as evenly as ``room`` allows, what is left over at random."""
    levels = range(int(room.max()) + 1)
    level = bisect_right(levels, total, key=_filled_to(room)) - 1
    given = np.minimum(room, level)
    more = draw.permutation(np.flatnonzero(room > level))
    given[more[: total - int(given.sum())]] += 1
    return given


def _place_within(owners: Array, priority: Array) -> Array:
    """Return the place of each among those of the same owner, by priority."""
    order = np.lexsort((priority, owners))
    _, starts, sizes = np.unique(owners[order], return_index=True, return_counts=True)
    places = np.empty_like(order)
    places[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    return places
