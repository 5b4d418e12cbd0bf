"""Matrix products of (max, min), in pieces that fit the processor's cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SparseWidest", "widest", "widest_sparse"]

# Numbers of one piece; half a megabyte of float32.
_PIECE = 1 << 17
# A sparse product gathers, at about so many times the cost of a dense one for each number.
_GATHERING = 8


def widest(left: Tensor, right: Tensor) -> Tensor:
    """Return ``max_k min(left[g, a, k], right[g, b, k])`` as (g, a, b)."""
    groups, many, depth = left.shape
    others = right.shape[1]
    result = left.new_empty(groups, many, others)
    if depth < 32 or groups > 8:
        left, right = left.permute(2, 0, 1).contiguous(), right.permute(2, 0, 1).contiguous()
        result.fill_(-torch.inf)
        step = max(1, _PIECE // (groups * others))
        for start in range(0, many, step):
            part = result[:, start : start + step]
            for k in range(depth):
                pair = torch.minimum(left[k, :, start : start + step, None], right[k, :, None])
                torch.maximum(part, pair, out=part)
        return result
    left, right = left.contiguous(), right.contiguous()
    wide = min(others, max(1, _PIECE // (groups * depth)))
    step = max(1, _PIECE // (groups * depth * wide))
    for start in range(0, many, step):
        piece = left[:, start : start + step, None]
        for first in range(0, others, wide):
            pair = torch.minimum(piece, right[:, None, first : first + wide])
            result[:, start : start + step, first : first + wide] = pair.amax(3)
    return result


def widest_sparse(weight: Tensor, rows: Tensor) -> SparseWidest | None:
    """Return the product by connections instead of matrices where few of them are present."""
    present = weight > -torch.inf
    count = int(torch.count_nonzero(present))
    if count * _GATHERING > weight.numel():
        return None
    return SparseWidest(weight, rows, present.nonzero())


@dataclass(frozen=True, eq=False)
class SparseWidest:
    """The (max, min) product of a matrix of which few connections are present."""

    weight: Tensor
    rows: Tensor
    places: Tensor

    def forward(self) -> Tensor:
        """Return what reaches the outputs."""
        groups, outputs, _ = self.weight.shape
        return self._best(self.rows, self._input, self._output, groups, outputs)

    def backward(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the inputs reach, and the best path through each connection."""
        groups, _, inputs = self.weight.shape
        reached = self._best(heads, self._output, self._input, groups, inputs)
        through = torch.full_like(self.weight, -torch.inf)
        values = self.weight[tuple(self.places.T)]
        ins, outs = _flat(self.rows), _flat(heads)
        best = torch.empty_like(values)
        step = max(1, _PIECE // max(1, ins.shape[1]))
        for start in range(0, values.numel(), step):
            part = slice(start, start + step)
            pair = torch.minimum(ins[self._input[part]], outs[self._output[part]])
            best[part] = torch.minimum(pair.amax(1), values[part])
        through[tuple(self.places.T)] = best
        return reached, through

    @property
    def _input(self) -> Tensor:
        return self.places[:, 0] * self.weight.shape[2] + self.places[:, 2]

    @property
    def _output(self) -> Tensor:
        return self.places[:, 0] * self.weight.shape[1] + self.places[:, 1]

    def _best(self, rows: Tensor, start: Tensor, end: Tensor, groups: int, size: int) -> Tensor:
        """Return, for every end, the widest over its connections of min(weight, row)."""
        values, known = self.weight[tuple(self.places.T)], _flat(rows)
        found = known.new_full((groups * size, known.shape[1]), -torch.inf)
        step = max(1, _PIECE // max(1, known.shape[1]))
        for first in range(0, values.numel(), step):
            part = slice(first, first + step)
            pair = torch.minimum(known[start[part]], values[part, None])
            found.scatter_reduce_(0, end[part, None].expand_as(pair), pair, "amax")
        return found.view(groups, size, -1).mT.contiguous()


def _flat(rows: Tensor) -> Tensor:
    """Return (groups, rows, units) as (groups * units, rows)."""
    return rows.mT.reshape(-1, rows.shape[1])
