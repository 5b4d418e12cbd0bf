"""The algebras of paths: whether there is one, how wide the best one is, how many there are.

Each is a semiring. Along a path values are combined by one operation (and, min, sum of logarithms),
where paths meet by another (or, max, log-sum-exp); ``nothing`` is neutral where paths meet,
``everything`` along a path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_prune.connectivity.bools import any_along, both
from lit_prune.connectivity.bottleneck import widest, widest_sparse

__all__ = ["Algebra", "Bottleneck", "PathCount", "Reach"]

# Up to so many rows are worth a pass over the mask each, before a product of floats is faster.
_FEW_ROWS = 8


class Algebra(ABC):
    """How values combine; ``forward`` and ``backward`` carry them through a weight matrix.

    A weight matrix has the shape (groups, outputs, inputs), and its signals (groups, rows, inputs)
    and (groups, rows, outputs): the rows are positions, tokens or batch members.

    Args:
        device: where the values lie.
        by_channel: all positions of a channel are one.
    """

    dtype: torch.dtype
    zero: float
    one: float
    counts: ClassVar[bool] = False

    def __init__(self, device: torch.device, by_channel: bool = False) -> None:
        self.device = device
        self.by_channel = by_channel

    def nothing(self, shape: Sequence[int]) -> Tensor:
        """Return the value of what no path reaches."""
        return torch.full(tuple(shape), self.zero, dtype=self.dtype, device=self.device)

    def everything(self, shape: Sequence[int]) -> Tensor:
        """Return the value of the ends, and of connections that are always present."""
        return torch.full(tuple(shape), self.one, dtype=self.dtype, device=self.device)

    def each(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Return compact values ready to be collected; equal ones count once unless it matters."""
        return values

    @abstractmethod
    def either(self, first: Tensor, second: Tensor) -> Tensor:
        """Combine the values of two sets of paths that meet."""

    @abstractmethod
    def any(self, values: Tensor, dims: Sequence[int]) -> Tensor:
        """Combine all along ``dims``, which stay as 1."""

    @abstractmethod
    def gathered(self, values: Tensor, index: Tensor, size: int) -> Tensor:
        """Combine ``values`` that have the same ``index``, as a vector of ``size``."""

    @abstractmethod
    def forward(self, weight: Tensor, rows: Tensor) -> tuple[Tensor, Any]:
        """Return what reaches the outputs, and a memo for ``backward``."""

    def backward(
        self, weight: Tensor, rows: Tensor, heads: Tensor, memo: Any
    ) -> tuple[Tensor, Tensor]:
        """Return what the inputs reach, and the value of the best path through each connection."""
        raise NotImplementedError(f"{type(self).__name__} only goes forward")


class Reach(Algebra):
    """(or, and) on masks: is there a path of kept connections?"""

    dtype = torch.bool
    zero, one = False, True

    def either(self, first: Tensor, second: Tensor) -> Tensor:
        """Or."""
        return first | second

    def any(self, values: Tensor, dims: Sequence[int]) -> Tensor:
        """Or along dimensions."""
        return any_along(values, dims, keep_dims=True)

    def gathered(self, values: Tensor, index: Tensor, size: int) -> Tensor:
        """Or by index."""
        found = self.nothing([size])
        found[index[values]] = True
        return found

    def forward(self, weight: Tensor, rows: Tensor) -> tuple[Tensor, Any]:
        """Boolean matrix product."""
        return _or_of_ands(rows, weight), None

    def backward(
        self, weight: Tensor, rows: Tensor, heads: Tensor, memo: Any
    ) -> tuple[Tensor, Tensor]:
        """A connection is effective if it is kept, its input reached and its output reaching."""
        if rows.shape[1] == 1:
            through = both(weight, heads.mT)
            reached = self.any(through, [1])
            return reached, both(through, rows)
        reached = _or_of_ands(heads, weight.mT)
        return reached, both(_or_of_ands(heads.mT, rows.mT), weight)


def _or_of_ands(left: Tensor, right: Tensor) -> Tensor:
    """Return ``any_k left[g, a, k] & right[g, b, k]`` as (g, a, b)."""
    if left.shape[1] <= _FEW_ROWS and right.is_contiguous():
        rows = [any_along(both(right, left[:, a, None]), (2,)) for a in range(left.shape[1])]
        return torch.stack(rows, 1)
    # Counts of at most 2^24 are exact, and more than that is still more than a half.
    return torch.bmm(left.float(), right.mT.float()) > 0.5


class Bottleneck(Algebra):
    """(max, min) on scores: how high can the threshold be before the last path is cut?"""

    zero, one = -math.inf, math.inf

    def __init__(
        self, device: torch.device, by_channel: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(device, by_channel)
        self.dtype = dtype

    def either(self, first: Tensor, second: Tensor) -> Tensor:
        """Maximum."""
        return torch.maximum(first, second)

    def any(self, values: Tensor, dims: Sequence[int]) -> Tensor:
        """Maximum along dimensions."""
        return values.amax(tuple(dims), keepdim=True)

    def gathered(self, values: Tensor, index: Tensor, size: int) -> Tensor:
        """Maximum by index."""
        return self.nothing([size]).scatter_reduce_(0, index, values, "amax")

    def forward(self, weight: Tensor, rows: Tensor) -> tuple[Tensor, Any]:
        """Matrix product of (max, min)."""
        if rows.shape[1] == 1:
            # What passes each connection so far; in `backward` it becomes the result.
            passing = torch.minimum(weight, rows)
            return passing.amax(2).unsqueeze(1), passing
        sparse = widest_sparse(weight, rows)
        if sparse is not None:
            return sparse.forward(), sparse
        return widest(rows, weight), None

    def backward(
        self, weight: Tensor, rows: Tensor, heads: Tensor, memo: Any
    ) -> tuple[Tensor, Tensor]:
        """The best path through a connection is as wide as its narrowest part."""
        if rows.shape[1] == 1:
            # min(f, max_o min(w, b)) = max_o min(f, w, b): one buffer serves both ends.
            through = torch.minimum(memo, heads.mT, out=memo)
            return through.amax(1, keepdim=True), through
        if memo is not None:
            return memo.backward(heads)
        best = widest(heads.mT, rows.mT)
        return widest(heads, weight.mT), torch.minimum(best, weight, out=best)


class PathCount(Algebra):
    """(log-sum-exp, +): how many paths are there? In natural logarithms, which never overflow."""

    dtype = torch.float64
    zero, one = -math.inf, 0.0
    counts = True

    def each(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Spread equal elements out, since every one of them has paths of its own."""
        return values if self.by_channel else values.expand(tuple(shape))

    def either(self, first: Tensor, second: Tensor) -> Tensor:
        """Add the numbers."""
        return torch.logaddexp(first, second)

    def any(self, values: Tensor, dims: Sequence[int]) -> Tensor:
        """Add along dimensions."""
        return values.logsumexp(tuple(dims), keepdim=True)

    def gathered(self, values: Tensor, index: Tensor, size: int) -> Tensor:
        """Not needed: paths are counted forward."""
        raise NotImplementedError("paths are counted forward")

    def forward(self, weight: Tensor, rows: Tensor) -> tuple[Tensor, Any]:
        """Matrix product of numbers, of which only the logarithms are held.

        Rows are scaled by bands of 600 nats: what is too small for the floats of one band has a
        band of its own, so that nothing underflows however far the numbers lie apart.
        """
        numbers = weight.exp().mT
        total = self.nothing([*rows.shape[:2], weight.shape[1]])
        while (top := float(rows.max())) > self.zero:
            is_below = rows <= top - 600
            scaled = (rows - top).masked_fill(is_below, self.zero).exp()
            total = torch.logaddexp(total, torch.bmm(scaled, numbers).log() + top)
            rows = rows.where(is_below, self.zero)
        return total, None
