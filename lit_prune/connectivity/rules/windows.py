"""Pools, interpolations and paddings: any of a window."""

from collections.abc import Sequence
from typing import Any

import torch

from lit_prune.connectivity.rule import Wire, rule

__all__: list[str] = []


@rule(
    # one output from every element of its window, paddings apart
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    # one output from every element with a weight in it
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
    *("upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa"),
    # a border of copies of elements inside
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
)
def windowed(wire: Wire, x: Any, *rest: Any) -> Any:
    """Along each dimension of positions, an output sees some places."""
    return wire.windowed(x, wire.spatial(x))


@rule(
    *("max_pool2d_with_indices", "max_pool3d_with_indices"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d"),
)
def pool_with_places(wire: Wire, x: Any, *rest: Any) -> Any:
    """The places are on the same paths as the values."""
    found = wire.windowed(x, wire.spatial(x))
    return found, found


@rule("max_unpool2d", "max_unpool3d", "fractional_max_pool2d", "fractional_max_pool3d")
def anywhere_in_the_channel(wire: Wire, x: Any, *rest: Any) -> Any:
    """Any place of a channel may come to any place (sound, not tight)."""
    signals = (s for s in (x, *rest) if wire.marks(s))
    found = wire.merge(*(wire.over(s, wire.spatial(s), keep_dims=True) for s in signals))
    return [found, found] if isinstance(wire.result, tuple | list) else found


@rule("constant_pad_nd")
def padding(wire: Wire, x: Any, pads: Sequence[int], *rest: Any) -> Any:
    """The border is on no path; a negative padding cuts off."""
    rank, places = len(x.shape), {}
    for number, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True), 1):
        dim = rank - number
        place = torch.arange(-before, x.shape[dim] + after)
        place[place >= x.shape[dim]] = -1
        places[dim] = place.clamp(min=-1)
    return wire.placed(x, places)


@rule("_pad_circular")
def padding_around(wire: Wire, x: Any, pads: Sequence[int]) -> Any:
    """The border is a copy of the other end."""
    rank = len(x.shape)
    return wire.windowed(x, list(range(rank - len(pads) // 2, rank)))
