"""Ranking: one total order over all prunable connections, globally or inside each layer."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from lit_prune.criterion import QuotaLike
from lit_prune.errors import FloorOutOfRange, LitPruneError, MasksMismatch, NonFiniteScores
from lit_prune.masks import Masks
from lit_prune.selection import count, largest, ordered

__all__ = ["Floor", "Ranking", "floor_count", "least_kept", "rearranged", "require_floor"]

Floor = int | str


class Ranking:
    """One total order over connections: by score, the highest kept, ties by a fixed permutation.

    ``keep(k)`` keeps exactly k, and what it keeps is kept at every larger k as well. Ties do not
    go by index, which would empty one region of a layer first, but by a pseudo-random permutation
    of all connections that is the same in every run and on every device.

    Args:
        scores: one tensor a layer, higher = keep; ``-inf`` ranks last.
        quota: ``quota(shapes, keep)`` fixes how many each layer keeps, and scores rank inside the
            layers only; None ranks all connections of the network together.
        among: only connections that these masks keep are ranked; None ranks all.
        finite: refuse infinite scores as well.
        floor: every layer keeps at least so many, or all it has, before the rest is ranked
            together; a whole number, or a share of the whole network as in ``"0.05%"``.
        whole_filters: keep or remove all ranked weights of a filter (an index of the first
            dimension) together, by its highest score; counts are rounded up to whole filters.

    Raises:
        NonFiniteScores: a score is NaN, or infinite where that is refused.
        MasksMismatch: ``among`` is of another model than the scores.

    Examples:
        >>> ranking = Ranking({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 0.5])})
        >>> ranking.keep(3)["b"]
        tensor([ True, False])
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        quota: QuotaLike | None = None,
        among: Masks | None = None,
        finite: bool = False,
        floor: Floor | None = None,
        whole_filters: bool = False,
    ) -> None:
        for name, score in scores.items():
            _require_numbers(name, score, finite)
        self._scores = {name: _comparable(score) for name, score in scores.items()}
        self.quota = quota
        if among is not None and among.keys() != self._scores.keys():
            odd = sorted(among.keys() ^ self._scores.keys())[0]
            raise MasksMismatch(f"scores and masks are of different models: see {odd}")
        self.among = among
        sizes = (score.numel() for score in scores.values())
        self.total: int = sum(sizes) if among is None else among.kept
        self._whole_filters = whole_filters
        self._floor, self._reserved = floor, 0
        if floor is not None:
            self._raise_floor(floor)

    def keep(self, k: int) -> Masks:
        """Return masks that keep exactly the first ``k`` connections.

        Raises:
            LitPruneError: k is negative, or larger than the number of connections ranked.
            QuotaOutOfRange: the quota cannot keep k.
        """
        if not 0 <= k <= self.total:
            raise LitPruneError(f"cannot keep {k} of {self.total} connections")
        if k < self._reserved:
            raise _too_few(self._floor, self._reserved, len(self._scores), k, self._reserves)
        if self.quota is None:
            return Masks(self._first(list(self._scores), k))
        counts = _checked(self.quota(self._shapes(), k), self._sizes(), k)
        kept: dict[str, Tensor] = {}
        for name in self._scores:
            kept |= self._first([name], counts[name])
        return Masks(kept)

    def rearranged(self, places: Mapping[str, Tensor]) -> "Ranking":
        """Return the ranking with the elements of each layer taken from ``places``.

        Args:
            places: a permutation of the flat indices of each layer.
        """
        among = None if self.among is None else Masks(rearranged(self.among, places))
        return Ranking(rearranged(self._scores, places), self.quota, among)

    @property
    def scores(self) -> dict[str, Tensor]:
        """The scores in floating point; ``-inf`` for connections that are not ranked."""
        scores = {
            name: score if score.is_floating_point() else score.double()
            for name, score in self._scores.items()
        }
        if (kept := self.among) is None:
            return scores
        return {n: s.masked_fill(~kept[n], -torch.inf) for n, s in scores.items()}

    def levels(self, counts: Sequence[int]) -> dict[str, Tensor]:
        """Return for every connection the first of ``counts`` at which it is kept, as a score.

        Level j is written as -j, in float32: ``levels(counts) >= -j`` are the masks
        ``keep(counts[j])``. What even the last does not keep is at ``-inf``. So a search among many
        masks of the ranking is a search for one threshold.

        Args:
            counts: rising, at most 2^24 of them.
        """
        first, last = self.keep(counts[0]), self.keep(counts[-1])
        device = next(iter(first.values())).device
        flat = torch.full((first.total,), -torch.inf, device=device)
        parts = flat.split([mask.numel() for mask in first.values()])
        for part, mask in zip(parts, first.values(), strict=True):
            part.masked_fill_(mask.flatten(), 0.0)
        taken = [self.quota(self._shapes(), c) for c in counts] if self.quota else []
        start = 0
        for names in [[name] for name in first] if self.quota else [list(first)]:
            marks = [last[name] ^ first[name] for name in names]
            places = ordered([self._scores[name] for name in names], marks)
            sizes = torch.tensor([t[names[0]] for t in taken] if taken else list(counts))
            entering = torch.arange(int(sizes[0]) + 1, int(sizes[-1]) + 1)
            flat[places + start] = -torch.searchsorted(sizes, entering).float().to(device)
            start += first[names[0]].numel()
        pairs = zip(first.items(), parts, strict=True)
        return {name: part.view(mask.shape) for (name, mask), part in pairs}

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: score.shape for name, score in self._scores.items()}

    def _sizes(self) -> dict[str, int]:
        """Return how many connections of each layer are ranked."""
        if self.among is not None:
            return {row.name: row.kept for row in self.among.layers()}
        return {name: score.numel() for name, score in self._scores.items()}

    def _numel(self) -> int:
        return sum(score.numel() for score in self._scores.values())

    def _raise_floor(self, floor: Floor) -> None:
        """Put the best of each layer above all others."""
        if self.quota is not None:
            raise LitPruneError("a floor and a quota both fix what a layer keeps: give one of them")
        firsts = self._firsts(floor_count(floor, self._numel()))
        self._reserved = count(list(firsts.values()))
        for name, first in firsts.items():
            score = self._scores[name]
            score = score if score.is_floating_point() else score.double()
            self._scores[name] = score.masked_fill(first, torch.inf)

    def _firsts(self, least: int) -> dict[str, Tensor]:
        """Return the ``least`` best of each layer, or all that it has."""
        firsts: dict[str, Tensor] = {}
        for name, size in self._sizes().items():
            firsts |= self._first([name], min(least, size))
        return firsts

    def _reserves(self, least: int) -> int:
        return count(list(self._firsts(least).values()))

    def _first(self, names: list[str], k: int) -> dict[str, Tensor]:
        """Return the first ``k`` connections of the layers ``names``, ranked together."""
        if self._whole_filters:
            return self._first_filters(names, k)
        scores = [self._scores[name] for name in names]
        among = None if self.among is None else [self.among[name] for name in names]
        return dict(zip(names, largest(scores, k, among), strict=True))

    def _first_filters(self, names: list[str], k: int) -> dict[str, Tensor]:
        """Return the first filters that have ``k`` connections between them."""
        ranked = {
            n: self.among[n] if self.among else torch.ones_like(s, dtype=torch.bool)
            for n, s in self._scores.items()
            if n in names
        }
        sizes = torch.cat([mark.flatten(1).sum(1) for mark in ranked.values()])
        best = torch.cat(
            [
                _best_of_rows(self._scores[n].masked_fill(~mark, _least(self._scores[n].dtype)))
                for n, mark in ranked.items()
            ]
        )
        best = torch.where(sizes > 0, best.double(), -torch.inf)
        order = ordered([best], [torch.ones_like(best, dtype=torch.bool)])
        before = sizes[order].cumsum(0) - sizes[order]
        chosen = torch.zeros_like(best, dtype=torch.bool)
        chosen[order] = before < k
        parts = chosen.split([len(mark) for mark in ranked.values()])
        return {
            n: mark & part.view(-1, *[1] * (mark.dim() - 1))
            for (n, mark), part in zip(ranked.items(), parts, strict=True)
        }


def rearranged(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor with its elements taken from ``places``, flat indices of its layer."""
    return {n: x.flatten()[places[n].to(x.device)].view(x.shape) for n, x in tensors.items()}


def floor_count(floor: Floor, total: int) -> int:
    """Return how many connections a floor is: a share is rounded down, as in the paper's code.

    Examples:
        >>> floor_count("0.05%", 266_200)
        133

    Raises:
        LitPruneError: it is neither a whole number nor a share of 0 to 100 %.
    """
    if isinstance(floor, int) and not isinstance(floor, bool) and floor >= 0:
        return floor
    if isinstance(floor, str) and (text := floor.strip().removesuffix("%")):
        share = _fraction(text)
        if share is not None and floor.strip().endswith("%") and 0 <= share <= 100:
            return int(total * share / 100)
        if share is not None and share >= 0 and share.denominator == 1 and "%" not in floor:
            return int(share)
    raise LitPruneError(
        f"floor={floor!r} is out of range: a whole number of connections, or a share of the "
        "network as in '0.05%'"
    )


def _fraction(text: str) -> Fraction | None:
    try:
        return Fraction(text) if "/" not in text else None
    except ValueError:
        return None


def least_kept(floor: Floor | None, masks: Masks) -> int:
    """Return the least that a network of ``masks`` can keep under ``floor``."""
    if floor is None:
        return 0
    least = floor_count(floor, masks.total)
    return sum(min(least, row.kept) for row in masks.layers())


def require_floor(floor: Floor | None, masks: Masks, keep: int) -> None:
    """Check that ``keep`` connections of ``masks`` are enough for the floor of every layer.

    Raises:
        FloorOutOfRange: they are not; the largest floor that they are enough for is named.
    """
    sizes = [row.kept for row in masks.layers()]

    def reserves(least: int) -> int:
        return sum(min(least, size) for size in sizes)

    if (wanted := least_kept(floor, masks)) > keep:
        raise _too_few(floor, wanted, len(sizes), keep, reserves)


def _too_few(
    floor: Floor | None, wanted: int, layers: int, keep: int, reserves: Callable[[int], int]
) -> FloorOutOfRange:
    """Say which floor would do, where ``reserves(m)`` is what a floor of m keeps at least."""
    low, high = 0, keep + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reserves(middle) <= keep else (low, middle)
    return FloorOutOfRange(
        f"floor={floor} keeps at least {wanted} connections in {layers} layers, but {keep} are "
        f"to be kept; the largest floor for that is {low}"
    )


def _best_of_rows(scores: Tensor) -> Tensor:
    """Return the highest score of each filter; one of nothing has none."""
    rows = scores.flatten(1)
    return rows.amax(1) if rows.shape[1] else rows.new_full(rows.shape[:1], _least(rows.dtype))


def _least(dtype: torch.dtype) -> float | int:
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _require_numbers(name: str, score: Tensor, finite: bool) -> None:
    # A sum is finite only if all of it is, and ten times as cheap; a large sum may overflow.
    if bool(score.sum().isfinite()):
        return
    if bool(score.isnan().any()):
        raise NonFiniteScores(f"the scores of {name} hold NaN")
    if finite and bool(score.isinf().any()):
        raise NonFiniteScores(f"the scores of {name} are not finite: they hold infinity")


def _comparable(score: Tensor) -> Tensor:
    score = score.detach()
    return score.float() if score.dtype in (torch.float16, torch.bfloat16, torch.bool) else score


def _checked(counts: Mapping[str, int], sizes: Mapping[str, int], k: int) -> Mapping[str, int]:
    if counts.keys() != sizes.keys():
        odd = sorted(counts.keys() ^ sizes.keys())[0]
        raise LitPruneError(f"the quota must count each layer once: see {odd}")
    for name, size in sizes.items():
        if counts[name] != int(counts[name]) or not 0 <= counts[name] <= size:
            raise LitPruneError(f"the quota keeps {counts[name]} of {size} connections of {name}")
    if (given := sum(counts.values())) != k:
        raise LitPruneError(f"the quota keeps {given} connections in all instead of {k}")
    return {name: int(count) for name, count in counts.items()}
