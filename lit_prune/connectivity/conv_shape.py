"""ConvShape: which positions a convolution's kernel taps connect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.connectivity.algebra import Algebra

__all__ = ["ConvShape"]


@dataclass(frozen=True)
class ConvShape:
    """The geometry of a convolution from its fine side (with padding) to its coarse side.

    Tap k connects the fine position ``q = p * stride + k * dilation - padding`` to the coarse
    position p. A transposed convolution has the same geometry with its input on the coarse side.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    fine: tuple[int, ...]
    coarse: tuple[int, ...]
    groups: int
    device: torch.device

    @property
    def taps(self) -> int:
        """The number of kernel taps."""
        return prod(self.kernel)

    @property
    def rest(self) -> list[int]:
        """The fine places that the last stride leaves over, a dimension."""
        sizes = zip(
            self.fine, self.coarse, self.stride, self.padding, self.dilation, self.kernel,
            strict=True,
        )  # fmt: skip
        return [f - ((c - 1) * s - 2 * p + d * (k - 1) + 1) for f, c, s, p, d, k in sizes]

    @property
    def beyond(self) -> list[int]:
        """How many coarse places a convolution would have more, a dimension.

        Only a transposed one has such: it may pad its output by more than a stride.
        """
        return [rest // stride for rest, stride in zip(self.rest, self.stride, strict=True)]

    @cached_property
    def live_taps(self) -> Tensor:
        """Which taps touch any position that is not padding, as (taps,)."""
        return self.coarse_taps[0].any(1)

    @cached_property
    def coarse_taps(self) -> tuple[Tensor, Tensor]:
        """Which taps of which coarse position touch no padding: classes and members.

        (taps, classes) of bools, and (positions,) of class numbers: inner positions are one class.
        """
        return self._classes(self._fine_places(), len(self.kernel))

    @cached_property
    def fine_taps(self) -> tuple[Tensor, Tensor]:
        """Which taps connect which fine position to anything, as :attr:`coarse_taps` says."""
        per_dim = []
        for inside, n in zip(self._fine_places(), self.fine, strict=True):
            touched = np.zeros((len(inside), n), dtype=bool)
            for tap, places in enumerate(inside):
                touched[tap, places[places >= 0]] = True
            per_dim.append(np.where(touched, 0, -1))
        return self._classes(per_dim, len(self.kernel))

    def _fine_places(self) -> list[np.ndarray]:
        """Return, a dimension, the fine place that tap k (rows) of place p meets; -1: padding."""
        sizes = zip(
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.fine,
            self.coarse,
            strict=True,
        )
        found = []
        for k, s, pad, d, fine, coarse in sizes:
            place = np.arange(k)[:, None] * d + np.arange(coarse)[None] * s - pad
            found.append(np.where((place >= 0) & (place < fine), place, -1))
        return found

    def _classes(self, per_dim: list[np.ndarray], rank: int) -> tuple[Tensor, Tensor]:
        """Join the dimensions: taps and positions are products over them."""
        taps, members = np.ones((1, 1), dtype=bool), np.zeros(1, dtype=np.int64)
        for places in per_dim:
            patterns, member = np.unique(places >= 0, axis=1, return_inverse=True)
            classes = patterns.shape[1]
            joined = taps[:, None, :, None] & patterns[None, :, None, :]
            taps = joined.reshape(len(taps) * len(places), -1)
            members = (members[:, None] * classes + member.reshape(1, -1)).ravel()
        to = self.device
        return torch.from_numpy(taps).to(to), torch.from_numpy(members).to(to)

    # Positions as rows of matrices.

    def rows(self, values: Tensor) -> Tensor:
        """Return (batch, channels, *positions) as (groups, batch * positions, channels)."""
        parts = values.reshape(values.shape[0], self.groups, -1, prod(values.shape[2:]))
        return parts.permute(1, 0, 3, 2).reshape(self.groups, -1, parts.shape[2])

    def unrows(self, rows: Tensor) -> Tensor:
        """The way back of :meth:`rows` on the coarse side."""
        parts = rows.reshape(self.groups, -1, prod(self.coarse), rows.shape[2])
        return parts.permute(1, 0, 3, 2).reshape(parts.shape[1], -1, *self.coarse)

    def windows(self, values: Tensor, padding: float) -> Tensor:
        """Return the fine element that a tap meets at each position: (batch, channels, taps, p)."""
        pads = [p for size in reversed(self.padding) for p in (size, size)]
        padded = F.pad(values, pads, value=padding).contiguous()
        strides = padded.stride()
        view = padded.as_strided(
            (*values.shape[:2], *self.kernel, *self.coarse),
            (
                *strides[:2],
                *(s * d for s, d in zip(strides[2:], self.dilation, strict=True)),
                *(s * d for s, d in zip(strides[2:], self.stride, strict=True)),
            ),
        )
        return view.reshape(*values.shape[:2], self.taps, prod(self.coarse))

    def patches(self, algebra: Algebra, values: Tensor) -> Tensor:
        """Return what each coarse position sees: (groups, batch * positions, channels * taps)."""
        windows = self.windows(values, algebra.zero).unflatten(1, (self.groups, -1))
        batch, groups, width, taps, positions = windows.shape
        return windows.permute(1, 0, 4, 2, 3).reshape(groups, batch * positions, width * taps)

    def unpatches(self, algebra: Algebra, rows: Tensor) -> Tensor:
        """Collect patches where they overlap: the way back of :meth:`patches`."""
        rank, positions = len(self.kernel), prod(self.coarse)
        batch = rows.shape[1] // positions
        view = rows.reshape(self.groups, batch, *self.coarse, -1, *self.kernel)
        order = (*range(3 + rank, 3 + 2 * rank), 1, 0, 2 + rank, *range(2, 2 + rank))
        view = view.permute(order)
        channels = self.groups * (rows.shape[2] // self.taps)
        grown = [n + 2 * p for n, p in zip(self.fine, self.padding, strict=True)]
        padded = algebra.nothing((batch, channels, *grown))
        for tap in np.ndindex(*self.kernel):
            index = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, self.dilation, self.coarse, self.stride, strict=True)
            )
            region = padded[(slice(None), slice(None), *index)]
            region.copy_(algebra.either(region, view[tap].reshape(region.shape)))
        inner = (slice(p, p + n) for n, p in zip(self.fine, self.padding, strict=True))
        return padded[(slice(None), slice(None), *inner)]
