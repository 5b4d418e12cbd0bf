"""BoolConv: reachability through a convolution, at the price of what is not uniform.

Mostly a channel is reached at all of its positions or at none. Then a tap connects its channels
wherever it touches no padding, and one pass over the mask's bytes says everything. Only channels
that are reached at some positions but not at others need a true convolution, and only where it
could still change anything. The result is exact in any case.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.connectivity.bools import any_along, any_by_halves, both
from lit_prune.connectivity.conv_shape import ConvShape

__all__ = ["BoolConv"]

# Bytes of one piece.
_PIECE = 1 << 20
# Looking connections up one by one costs so many times what a product does for each.
_LOOKING = 16


class BoolConv:
    """One convolution's mask on its way forward and back.

    Args:
        shape: the geometry.
        mask: (coarse channels, fine channels / groups, *kernel).
        transposed: the input lies on the coarse side.
    """

    def __init__(self, shape: ConvShape, mask: Tensor, transposed: bool) -> None:
        self.shape = shape
        self.mask = mask
        self.transposed = transposed
        # (groups, coarse channels, fine channels, taps), within a group
        self.parts = mask.reshape(
            shape.groups, mask.shape[0] // shape.groups, mask.shape[1], shape.taps
        )

    def forward(self, reach: Tensor) -> Tensor:
        """Return the elements of the output that are reached."""
        return self._carried(reach, up=not self.transposed)

    def backward(self, reach: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the input's elements reach, and the effective connections."""
        fine, coarse = (head, reach) if self.transposed else (reach, head)
        return self._carried(head, up=self.transposed), self._touch(fine, coarse)

    def _carried(self, values: Tensor, up: bool) -> Tensor:
        """Return what is reached on the coarse side from the fine one (up), or the other way."""
        shape = self.shape
        some, every = _extent(values)
        full = every.view((shape.groups, 1, -1, 1) if up else (shape.groups, -1, 1, 1))
        taps = any_by_halves(both(self.parts, full), 2 if up else 1)
        classes, positions = (
            (shape.coarse_taps, shape.coarse) if up else (shape.fine_taps, shape.fine)
        )
        found = _spread(taps, *classes, (1, -1, *positions))
        found = found.expand(values.shape[0], *found.shape[1:])
        mixed = some & ~every
        return self._refined(found, values, mixed, up) if bool(mixed.any()) else found

    def _refined(self, known: Tensor, values: Tensor, mixed: Tensor, up: bool) -> Tensor:
        """Add what mixed channels reach, in channels that are not full already."""
        open_channels = ~_extent(known)[1]
        if self.shape.groups > 1:
            groups = (mixed.view(self.shape.groups, -1).any(1)) & (
                open_channels.view(self.shape.groups, -1).any(1)
            )
            sources = _of_groups(groups, values.shape[1])
            ends = _of_groups(groups, known.shape[1])
            mask, number = self.mask[_of_groups(groups, self.mask.shape[0])], int(groups.sum())
        else:
            sources, ends = _indices(mixed), _indices(open_channels)
            mask = self.mask[ends][:, sources] if up else self.mask[sources][:, ends]
            number = 1
        if not sources.numel() or not ends.numel():
            return known
        values, mask = values[:, sources].float(), mask.float()
        convolve = self._convolved if up else self._convolved_back
        found = convolve(values, mask, number) > 0.5
        known = known.clone()
        known[:, ends] |= found
        return known

    def _convolved(self, fine: Tensor, mask: Tensor, groups: int) -> Tensor:
        shape, none = self.shape, [0] * len(self.shape.kernel)
        found = torch.convolution(
            fine, mask, None, shape.stride, shape.padding, shape.dilation, False, none, groups
        )
        # A transposed convolution may pad its output by more than a stride.
        return found[(slice(None), slice(None), *(slice(n) for n in shape.coarse))]

    def _convolved_back(self, coarse: Tensor, mask: Tensor, groups: int) -> Tensor:
        shape = self.shape
        steps = (shape.stride, shape.padding, shape.dilation)
        return torch.convolution(coarse, mask, None, *steps, True, shape.rest, groups)

    def _touch(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return the connections of which any use has both of its ends reached."""
        fine_taps, fine_mixed = self._taps_of(fine, self._sees_fine)
        coarse_taps, coarse_mixed = self._taps_of(coarse, self._sees_coarse)
        groups, per_coarse, per_fine, taps = self.parts.shape
        found = both(self.parts, fine_taps.view(groups, 1, per_fine, taps))
        some = coarse_taps.any(1).view(groups, per_coarse, 1, 1)
        if not bool(some.all()):
            found = both(found, some)
        if bool(coarse_mixed.any()):
            rows = _indices(coarse_mixed)
            flat = found.view(-1, per_fine, taps)
            flat[rows] &= coarse_taps[rows][:, None].expand(-1, per_fine, -1)
            if bool(fine_mixed.any()):
                self._check_each(found, fine, coarse, fine_mixed, coarse_mixed)
        return found.view(self.mask.shape)

    def _taps_of(self, values: Tensor, sees: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return through which taps each channel is met at all, and whether it is mixed."""
        some, every = _extent(values)
        taps = some[:, None] & self.shape.live_taps[None]
        mixed = some & ~every
        if bool(mixed.any()):
            rows = _indices(mixed)
            taps[rows] = sees(values[:, rows])
        return taps, mixed

    def _sees_fine(self, values: Tensor) -> Tensor:
        return any_along(self.shape.windows(values, False), (0, 3))

    def _sees_coarse(self, values: Tensor) -> Tensor:
        classes, members = self.shape.coarse_taps
        flat = any_along(values.flatten(2), (0,)).float()
        by_class = flat.new_zeros(flat.shape[0], classes.shape[1]).index_add_(1, members, flat)
        return by_class @ classes.float().mT > 0.5

    def _check_each(
        self, found: Tensor, fine: Tensor, coarse: Tensor, fine_mixed: Tensor, coarse_mixed: Tensor
    ) -> None:
        """Look at every use of the connections whose two channels are both mixed."""
        groups, per_coarse, per_fine, taps = self.parts.shape
        coarse_part = coarse_mixed.view(groups, per_coarse, 1, 1)
        fine_part = fine_mixed.view(groups, 1, per_fine, 1)
        places = both(both(found, fine_part), coarse_part).nonzero()
        if len(places) * _LOOKING > found.numel():
            found &= (self._products(fine, coarse) > 0.5).view(found.shape)
            return
        outs = places[:, 0] * per_coarse + places[:, 1]
        ins = (places[:, 0] * per_fine + places[:, 2]) * taps + places[:, 3]
        windows = self.shape.windows(fine, False).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
        heads = coarse.transpose(0, 1).flatten(1)
        meets = torch.empty(len(places), dtype=torch.bool, device=found.device)
        step = max(1, _PIECE // heads.shape[1])
        for start in range(0, len(places), step):
            part = slice(start, start + step)
            meets[part] = any_along(both(windows[ins[part]], heads[outs[part]]), (1,))
        found[tuple(places.T)] = meets

    def _products(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return in how many places each connection meets two reached elements."""
        shape, none = self.shape, [0] * len(self.shape.kernel)
        _, counts, _ = torch.ops.aten.convolution_backward(
            F.pad(coarse.float(), [n for more in reversed(shape.beyond) for n in (0, more)]),
            fine.float(),
            self.mask.float(),
            None,
            shape.stride,
            shape.padding,
            shape.dilation,
            False,
            none,
            shape.groups,
            [False, True, False],
        )
        return counts


def _extent(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return which channels are reached anywhere, and which everywhere."""
    flat = values.flatten(2).view(torch.uint8)
    return flat.amax((0, 2)).view(torch.bool), flat.amin((0, 2)).view(torch.bool)


def _spread(taps: Tensor, classes: Tensor, members: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return, from (groups, channels, taps), the positions where a live tap connects."""
    by_class = taps.flatten(0, 1).float() @ classes.float() > 0.5
    return by_class[:, members].view(shape)


def _indices(mark: Tensor) -> Tensor:
    return mark.nonzero().squeeze(1)


def _of_groups(groups: Tensor, channels: int) -> Tensor:
    """Return the channels of the marked groups."""
    return _indices(groups.repeat_interleave(channels // len(groups)))
