"""Ranking: one total order over all prunable connections, globally or inside each layer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lit_prune.criterion import QuotaLike
from lit_prune.errors import LitPruneError, MasksMismatch, NonFiniteScores
from lit_prune.masks import Masks
from lit_prune.selection import largest, ordered

__all__ = ["Ranking"]


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

    Raises:
        NonFiniteScores: a score is NaN, or infinite where that is refused.
        MasksMismatch: ``among`` is of another model than the scores.

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

    def keep(self, k: int) -> Masks:
        """Return masks that keep exactly the first ``k`` connections.

        Raises:
            LitPruneError: k is negative, or larger than the number of connections ranked.
            QuotaOutOfRange: the quota cannot keep k.
        """
        if not 0 <= k <= self.total:
            raise LitPruneError(f"cannot keep {k} of {self.total} connections")
        if self.quota is None:
            return Masks(self._first(list(self._scores), k))
        counts = _checked(self.quota(self._shapes(), k), self._sizes(), k)
        kept: dict[str, Tensor] = {}
        for name in self._scores:
            kept |= self._first([name], counts[name])
        return Masks(kept)

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

    def _first(self, names: list[str], k: int) -> dict[str, Tensor]:
        """Return the first ``k`` connections of the layers ``names``, ranked together."""
        scores = [self._scores[name] for name in names]
        among = None if self.among is None else [self.among[name] for name in names]
        return dict(zip(names, largest(scores, k, among), strict=True))


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
