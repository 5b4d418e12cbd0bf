"""Search: the sparsest mask of a ranking that has as many effective connections as asked for.

A law holds for what is found: it has at least the effective connections asked for, and without the
next connection in the ranking it would have less. One pass of bounds proposes, effective masks
confirm, and an exact pass decides where the two part.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.connectivity import Connectivity
from lit_prune.errors import LitPruneError, QuotaOutOfRange
from lit_prune.masks import Masks
from lit_prune.ranking import QuotaLike, Ranking
from lit_prune.selection import at_least, count, kth_largest, larger

__all__ = ["Found", "Trail", "first_enough", "least_reachable", "reprune", "walk_back"]

# Masks told apart in one pass; with a quota each of them costs its evaluation.
_LEVELS, _QUOTA_LEVELS = 1 << 20, 64


@dataclass(frozen=True)
class Found:
    """Masks, how many of their connections are effective, and how many the next would have.

    The next is only looked at where the count asked for was not hit.
    """

    masks: Masks
    effective: int
    next_effective: int | None = None


@dataclass(frozen=True)
class _Window:
    """Keeping ``low`` connections is not enough, keeping ``high`` is."""

    low: int
    high: int


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
    low = max(low, wanted - 1)
    if ranking.quota is None:
        return _by_scores(connectivity, ranking, wanted, low, high)
    window = _gallop(connectivity, ranking, wanted, low, high)
    return _narrowed(connectivity, ranking, wanted, window)


def _by_scores(
    connectivity: Connectivity, ranking: Ranking, wanted: int, low: int, high: int | None
) -> Found:
    """Take a threshold from the bounds; confirm it, or go down to where it is surely enough."""
    scores = ranking.scores
    bounds = list(connectivity.bounds(scores).values())
    asked = wanted
    while asked <= sum(bound.numel() for bound in bounds):
        threshold = kth_largest(bounds, asked)
        if threshold == -torch.inf:
            break
        masks = Masks({name: at_least(score, threshold) for name, score in scores.items()})
        there = masks.kept
        if asked == wanted:
            low = max(low, count([larger(score, threshold) for score in scores.values()]))
        if connectivity.bounds_are_exact:
            effective = count([at_least(bound, threshold) for bound in bounds])
        else:
            effective = connectivity.effective(masks).kept
        if effective >= wanted:
            if there - low == 1:
                return _found(connectivity, ranking, wanted, masks, effective, low)
            return _narrowed(connectivity, ranking, wanted, _Window(low, there))
        low = max(low, there)
        asked += 2 * (wanted - effective)
    if high is None:
        high = ranking.total
        if (has := connectivity.effective(ranking.keep(high)).kept) < wanted:
            raise _too_many(wanted, high, has)
    return _narrowed(connectivity, ranking, wanted, _Window(low, high))


def _found(
    connectivity: Connectivity,
    ranking: Ranking,
    wanted: int,
    masks: Masks,
    effective: int,
    low: int,
) -> Found:
    if effective == wanted:
        return Found(masks, effective)
    return Found(masks, effective, connectivity.effective(ranking.keep(low)).kept)


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


def _gallop(
    connectivity: Connectivity, ranking: Ranking, wanted: int, low: int, high: int | None
) -> _Window:
    """Widen until it is enough, twice as far each time."""
    end = ranking.total if high is None else high
    k = min(low + 1, end)
    while (has := connectivity.effective(ranking.keep(k)).kept) < wanted:
        if k == end:
            raise _too_many(wanted, end, has)
        low, k = k, min(2 * k, end)
    if k == low + 1 > wanted < has:
        # If this is the quota's own end, the quota says so best.
        ranking.keep(wanted)
    return _Window(low, k)


def _too_many(wanted: int, total: int, has: int) -> LitPruneError:
    return LitPruneError(
        f"cannot keep {wanted} effective connections: of the {total} that there are, {has} lie on "
        "a path from the input to the output"
    )


def _narrowed(connectivity: Connectivity, ranking: Ranking, wanted: int, window: _Window) -> Found:
    """Tell the masks of the window apart until two neighbours are left."""
    while window.high - window.low > 1:
        many = _LEVELS if ranking.quota is None else _QUOTA_LEVELS
        counts = _spread(window.low, window.high, many)
        levels = ranking.levels(counts)
        first = _first_level(connectivity, levels, wanted)
        window = _Window(counts[first - 1], counts[first])
    masks = ranking.keep(window.high)
    effective = connectivity.effective(masks).kept
    return _found(connectivity, ranking, wanted, masks, effective, window.low)


def _spread(low: int, high: int, many: int) -> list[int]:
    """Return ``low``, ``high`` and up to ``many`` counts between them."""
    if high - low <= many:
        return list(range(low, high + 1))
    return sorted({low + round((high - low) * n / many) for n in range(many + 1)})


def _first_level(connectivity: Connectivity, levels: dict[str, Tensor], wanted: int) -> int:
    """Return the first level that has enough effective connections; the last one has."""
    bounds = connectivity.bounds(levels)
    level = max(1, -int(kth_largest(list(bounds.values()), wanted)))
    masks = Masks({name: at_least(values, -level) for name, values in levels.items()})
    if connectivity.bounds_are_exact or connectivity.effective(masks).kept >= wanted:
        return level
    whole = connectivity.effective(Masks({n: v > -torch.inf for n, v in levels.items()}))
    # What is not effective at the last level is so at none, and need not be looked at again.
    live = {n: v.masked_fill(~whole[n], -torch.inf) for n, v in levels.items()}
    exact = connectivity.effective_scores(live)
    return -int(kth_largest(list(exact.values()), wanted))


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

    def add(self, before: Masks, after: Masks, ranking: Ranking) -> None:
        """Note one round: the masks before and after it, and the ranking that it went by."""
        number = len(self.kept)
        for name, score in ranking.scores.items():
            removed = before[name] & ~after[name]
            self._round[name].masked_fill_(removed, number)
            known = self._score.setdefault(name, torch.full_like(score, torch.inf))
            self._score[name] = torch.where(removed, score.to(known.dtype), known)
        self.kept.append(after.kept)

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
    low, high, least = start - 1, 0, 0
    best: Masks | None = None
    effective = 0
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
            k = (low + high) // 2 if best is not None else min(2 * k, total)
    yield Found(best, effective, least)
