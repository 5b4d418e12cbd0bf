"""Ranking: one total order over all prunable connections, globally or inside each layer."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lit_prune.errors import LitPruneError, NonFiniteScores
from lit_prune.masks import Masks

__all__ = ["QuotaLike", "Ranking"]

QuotaLike = Callable[[dict[str, torch.Size], int], dict[str, int]]


class Ranking:
    """One total order over connections: by score, the highest kept, ties by a fixed permutation.

    ``keep(k)`` keeps exactly k, and what it keeps is kept at every larger k as well. Ties do not
    go by index, which would empty one region of a layer first, but by a pseudo-random permutation
    of all connections that is the same in every run and on every device.

    Args:
        scores: one tensor a layer, higher = keep; ``-inf`` ranks last.
        quota: ``quota(shapes, keep)`` fixes how many each layer keeps, and scores rank inside the
            layers only; None ranks all connections of the network together.

    Raises:
        NonFiniteScores: a score is NaN.

    >>> ranking = Ranking({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 0.5])})
    >>> ranking.keep(3)["b"]
    tensor([ True, False])
    """

    def __init__(self, scores: Mapping[str, Tensor], quota: QuotaLike | None = None) -> None:
        for name, score in scores.items():
            # A sum is NaN if a score is (or if infinities cancel), and is cheaper than a look.
            if bool(score.sum().isnan()) and bool(score.isnan().any()):
                raise NonFiniteScores(f"the scores of {name} hold NaN")
        self._scores = dict(scores)
        self._quota = quota

    @property
    def total(self) -> int:
        """The number of connections ranked."""
        return sum(score.numel() for score in self._scores.values())

    def keep(self, k: int) -> Masks:
        """Return masks that keep exactly the first ``k`` connections.

        Raises:
            LitPruneError: k is negative, or larger than the number of connections.
            QuotaOutOfRange: the quota cannot keep k.
        """
        if not 0 <= k <= self.total:
            raise LitPruneError(f"cannot keep {k} of {self.total} connections")
        if self._quota is None:
            return Masks(_first(self._scores, k))
        shapes = {name: score.shape for name, score in self._scores.items()}
        counts = _checked(self._quota(shapes, k), shapes, k)
        kept: dict[str, Tensor] = {}
        for name, score in self._scores.items():
            kept |= _first({name: score}, counts[name])
        return Masks(kept)


def _checked(
    counts: Mapping[str, int], shapes: Mapping[str, torch.Size], k: int
) -> Mapping[str, int]:
    for name, shape in shapes.items():
        if not 0 <= counts.get(name, -1) <= shape.numel():
            raise LitPruneError(
                f"the quota keeps {counts.get(name)} of {shape.numel()} connections of {name}"
            )
    if (given := sum(counts.values())) != k:
        raise LitPruneError(f"the quota keeps {given} connections in all instead of {k}")
    return counts


def _first(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    flat = torch.cat([score.detach().flatten() for score in scores.values()])
    parts = _largest(flat, k).split([score.numel() for score in scores.values()])
    return {n: part.view(s.shape) for (n, s), part in zip(scores.items(), parts, strict=True)}


def _largest(flat: Tensor, k: int) -> Tensor:
    """Mark the ``k`` largest of ``flat``, ties by :func:`_shuffled`, without sorting."""
    if k in (0, flat.numel()):
        return torch.full_like(flat, bool(k), dtype=torch.bool)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    kept = flat >= threshold
    surplus = int(torch.count_nonzero(kept)) - k
    if surplus:
        tied = (flat == threshold).nonzero().squeeze(1)
        order = _shuffled(tied)
        kept[tied[order <= order.kthvalue(surplus).values]] = False
    return kept


def _shuffled(index: Tensor) -> Tensor:
    """Return a place for every index by a fixed permutation of the 64-bit integers.

    The finaliser of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators"): a bijection, so no two places are equal, and none is stored.
    """
    z = index * -7046029254386353131  # 0x9e3779b97f4a7c15 as a signed integer
    z = (z ^ _shift_right(z, 30)) * -4658895280553007687  # 0xbf58476d1ce4e5b9
    z = (z ^ _shift_right(z, 27)) * -7723592293110705685  # 0x94d049bb133111eb
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch shifts signed integers arithmetically; the sign bits are cut off here.
    return (z >> bits) & ((1 << (64 - bits)) - 1)
