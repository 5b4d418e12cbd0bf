"""Search: the sparsest mask of a ranking that has as many effective connections as asked for.

A law holds for what is found: it has at least the effective connections asked for, and without the
next connection in the ranking it would have less. One pass of bounds proposes, effective masks
confirm, and an exact pass decides where the two part.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_prune.connectivity import Connectivity
from lit_prune.criterion import QuotaLike
from lit_prune.errors import LitPruneError, QuotaOutOfRange
from lit_prune.masks import Masks
from lit_prune.ranking import Ranking
from lit_prune.selection import at_least, count, kth_largest, larger

__all__ = ["Found", "Trail", "first_enough", "least_reachable", "reprune", "walk_back"]

# Masks told apart in one pass; with a quota each of them costs its evaluation.
_LEVELS, _QUOTA_LEVELS = 1 << 20, 64
# So few masks are bisected sooner than told apart in one pass.
_FEW = 16
# Where less than one connection in so many is kept, an exact pass is as cheap as a mask.
_SPARSE = 32


@dataclass(frozen=True)
class Found:
    """Masks, how many of their connections are effective, and how many the next would have.

    The next is only looked at where the count asked for was not hit.
    """

    masks: Masks
    effective: int
    next_effective: int | None = None


def first_enough(
    connectivity: Connectivity,
    ranking: Ranking,
    wanted: int,
    low: int = 0,
    high: int | None = None,
) -> Found:
    """Return the first masks of ``ranking`` with at least ``wanted`` effective connections.

    Args:
        connectivity: of the network that is ranked.
        ranking: its masks ``keep(k)`` nest.
        wanted: at least 1.
        low: a k that is known not to be enough.
        high: a k that is known to be enough, if any.

    Raises:
        LitPruneError: not even the densest masks of the ranking have so many.
    """
    search = _Search(connectivity, ranking, wanted)
    low, end = max(low, wanted - 1), ranking.total if high is None else high
    if ranking.quota is None:
        window = search.by_bounds(low, end)
    else:
        window = search.from_below(low, end, step=1)
    return search.narrowed(window)


@dataclass(frozen=True)
class _Window:
    """Keeping ``low`` connections is not enough, keeping ``high`` is: ``masks`` show it."""

    low: int
    high: int
    masks: Masks
    effective: int


@dataclass(frozen=True)
class _Search:
    connectivity: Connectivity
    ranking: Ranking
    wanted: int

    def by_bounds(self, low: int, end: int) -> _Window:
        """Take the threshold that the bounds propose, which is not too low; go on from there."""
        scores = self.ranking.scores
        bounds = list(self.connectivity.bounds(scores).values())
        if self.wanted > self.ranking.total:
            raise self._too_many()
        threshold = kth_largest(bounds, self.wanted)
        if threshold == -torch.inf:
            raise self._too_many()
        masks = Masks({name: at_least(score, threshold) for name, score in scores.items()})
        low = max(low, count([larger(score, threshold) for score in scores.values()]))
        if self.connectivity.bounds_are_exact:
            has = count([at_least(bound, threshold) for bound in bounds])
        else:
            del bounds
            has = self.connectivity.effective(masks).kept
        there = masks.kept
        if has >= self.wanted:
            return _Window(low, there, masks, has)
        step = _FEW + 4 * (self.wanted - has) * there // max(has, 1)
        while there * _SPARSE < self.ranking.total and there < end:
            low, there = there, min(there + step, end)
            if (window := self._between(range(low, there + 1))) is not None:
                return window
            step *= 4
        return self.from_below(there, end, step)

    def from_below(self, low: int, end: int, step: int) -> _Window:
        """Widen by steps until it is enough, each time at least twice as far."""
        start, k = low, min(low + step, end)
        masks = self.ranking.keep(k)
        has = self.connectivity.effective(masks).kept
        while has < self.wanted:
            if k >= end:
                raise self._too_many()
            step = max(2 * step, k)
            low, k = k, min(k + step, end)
            masks = self.ranking.keep(k)
            has = self.connectivity.effective(masks).kept
        if k == start + 1 > self.wanted < has and self.ranking.quota is not None:
            # If this is the quota's own end, the quota says so best.
            self.ranking.keep(self.wanted)
        return _Window(low, k, masks, has)

    def narrowed(self, window: _Window) -> Found:
        """Tell the masks of the window apart until two neighbours are left."""
        while window.high - window.low > 1:
            if window.high - window.low <= _FEW:
                window = self._half(window)
            else:
                many = _LEVELS if self.ranking.quota is None else _QUOTA_LEVELS
                counts = _spread(window.low, window.high, many)
                window = self._by_level_bounds(counts) or self._between(counts) or window
        if window.effective == self.wanted:
            return Found(window.masks, window.effective)
        less = self.connectivity.effective(self.ranking.keep(window.low)).kept
        return Found(window.masks, window.effective, less)

    def _half(self, window: _Window) -> _Window:
        middle = (window.low + window.high) // 2
        masks = self.ranking.keep(middle)
        has = self.connectivity.effective(masks).kept
        if has >= self.wanted:
            return _Window(window.low, middle, masks, has)
        return replace(window, low=middle)

    def _by_level_bounds(self, counts: Sequence[int]) -> _Window | None:
        """Find two neighbours among ``counts`` by bounds, if these turn out to be exact."""
        levels = self.ranking.levels(counts)
        bounds = list(self.connectivity.bounds(levels).values())
        level = max(1, -int(kth_largest(bounds, self.wanted)))
        del bounds
        masks = Masks({name: at_least(values, -level) for name, values in levels.items()})
        has = self.connectivity.effective(masks).kept
        if has < self.wanted:
            return None
        return _Window(counts[level - 1], counts[level], masks, has)

    def _between(self, counts: Sequence[int]) -> _Window | None:
        """Find two neighbours among ``counts`` exactly; None if the last is not enough."""
        levels = self.ranking.levels(counts)
        exact = list(self.connectivity.effective_scores(levels).values())
        threshold = kth_largest(exact, self.wanted)
        if threshold == -torch.inf:
            return None
        level = -int(threshold)
        masks = Masks({name: at_least(values, -level) for name, values in levels.items()})
        has = count([at_least(values, -level) for values in exact])
        return _Window(counts[level - 1], counts[level], masks, has)

    def _too_many(self) -> LitPruneError:
        ranking = self.ranking
        has = self.connectivity.effective(ranking.keep(ranking.total)).kept
        return _too_many(self.wanted, ranking.total, has)


def least_reachable(quota: QuotaLike | None, masks: Masks, wanted: int) -> int:
    """Return the least count, from ``wanted`` up, that the quota can keep."""

    def is_reached(k: int) -> bool:
        try:
            assert quota is not None
            quota({name: mask.shape for name, mask in masks.items()}, k)
        except QuotaOutOfRange:
            return False
        return True

    low, high = wanted - 1, masks.total
    if quota is None or is_reached(wanted) or not is_reached(high):
        return wanted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_reached(middle) else (middle, high)
    return high


def _too_many(wanted: int, total: int, has: int) -> LitPruneError:
    return LitPruneError(
        f"cannot keep {wanted} effective connections: of the {total} that there are, {has} lie on "
        "a path from the input to the output"
    )


def _spread(low: int, high: int, many: int) -> list[int]:
    """Return ``low``, ``high`` and up to ``many`` counts between them."""
    if high - low <= many:
        return list(range(low, high + 1))
    return sorted({low + round((high - low) * n / many) for n in range(many + 1)})


class Trail:
    """What each round of pruning removed, and in which order: enough to walk back.

    Every connection is removed once, so that two numbers for each are all that is kept.
    """

    def __init__(self, masks: Masks, quota: QuotaLike | None) -> None:
        self.quota = quota
        self.kept = [masks.kept]
        self._start = masks
        self._round = {n: torch.zeros_like(mask, dtype=torch.int32) for n, mask in masks.items()}
        self._score: dict[str, Tensor] = {}
        self._last: Ranking | None = None

    def add(self, before: Masks, after: Masks, ranking: Ranking) -> None:
        """Note one round: the masks before and after it, and the ranking that it went by."""
        number = len(self.kept)
        for name, score in ranking.scores.items():
            removed = before[name] & ~after[name]
            self._round[name].masked_fill_(removed, number)
            known = self._score.setdefault(name, torch.full_like(score, torch.inf))
            self._score[name] = torch.where(removed, score.to(known.dtype), known)
        self.kept.append(after.kept)
        self._last = ranking

    def keep(self, k: int) -> Masks:
        """Return the first ``k`` connections of the whole order, however far the rounds went."""
        if self._last is not None and k < self.kept[-1]:
            return self._last.keep(k)
        number = next(n for n, kept in enumerate(self.kept) if kept <= k)
        return self.masks(number) if k == self.kept[number] else self.ranking(number).keep(k)

    def masks(self, number: int) -> Masks:
        """Return the masks after round ``number``; 0 are those before the first."""
        return Masks(
            {n: self._start[n] & ((r == 0) | (r > number)) for n, r in self._round.items()}
        )

    def ranking(self, number: int) -> Ranking:
        """Return the ranking of round ``number``, of which ``keep`` may go back to its start.

        What the round kept is on top; inside of that the order is forgotten.
        """
        scores = {
            name: score.masked_fill(self._round[name] != number, torch.inf)
            for name, score in self._score.items()
        }
        return Ranking(scores, self.quota, among=self.masks(number - 1))


def walk_back(connectivity: Connectivity, trail: Trail, wanted: int) -> Found:
    """Return the first masks with enough effective connections, from the end of a trail back.

    First the round is found in which they would be lost, and then the place in its order.
    """
    low, step = len(trail.kept) - 1, 1
    has = connectivity.effective(trail.masks(low)).kept
    if has >= wanted:
        return Found(trail.masks(low), has)
    high = max(low - step, 0)
    while (has := connectivity.effective(trail.masks(high)).kept) < wanted:
        if high == 0:
            raise _too_many(wanted, trail.kept[0], has)
        low, step = high, 2 * step
        high = max(low - step, 0)
    while low - high > 1:
        middle = (low + high) // 2
        if connectivity.effective(trail.masks(middle)).kept >= wanted:
            high = middle
        else:
            low = middle
    window = (trail.kept[low], trail.kept[high])
    return first_enough(connectivity, trail.ranking(low), wanted, *window)


def reprune(
    connectivity: Connectivity,
    pruned: Callable[[int], Masks],
    total: int,
    wanted: int,
    start: int,
) -> Iterator[Found]:
    """Prune, measure, and prune anew until the effective rate meets the quota.

    The plain form of the idea, for criteria whose masks do not nest: ``pruned(k)`` keeps k of
    ``total`` connections, by fresh scores each time. The count is raised until there are enough
    effective connections, and then bisected down to two neighbours of which one has enough.

    Args:
        connectivity: of the network that is pruned.
        pruned: prunes anew.
        total: the number of connections.
        wanted: how many effective ones are wanted.
        start: the least count that may be kept.

    Yields:
        What each step found; the last is the answer.
    """
    low, high = start - 1, 0
    least: int | None = None
    best: Masks | None = None
    effective = step = 0
    k = start
    while best is None or high - low > 1:
        masks = pruned(k)
        has = connectivity.effective(masks).kept
        yield Found(masks, has, least)
        if has >= wanted:
            best, high, effective = masks, k, has
            k = (low + high) // 2
        elif k == total:
            raise _too_many(wanted, total, has)
        else:
            low, least = k, has
            # Mostly what is missing below is missing above as well, and a little more.
            step = max(2 * step, 2 * (wanted - has) + _FEW)
            k = (low + high) // 2 if best is not None else min(k + step, total)
    yield Found(best, effective, least)
