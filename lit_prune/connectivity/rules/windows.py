"""Pools and interpolations: any of a window."""

from collections.abc import Sequence
from typing import Any

import torch

from lit_prune.connectivity.rule import Wire, rule

__all__: list[str] = []


@rule(
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d"),
    *("_adaptive_avg_pool3d", "mkldnn_max_pool2d"),
)
def pool(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """One output from every element of its window, padding apart."""
    return wire.windowed(x, wire.spatial(x))


@rule(
    *("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
)
def pool_with_places(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """The places are on the same paths as the values."""
    found = wire.windowed(x, wire.spatial(x))
    return found, found


@rule(
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
    *(
        "upsample_bilinear2d",
        "upsample_trilinear3d",
        "upsample_bicubic2d",
        "_upsample_nearest_exact1d",
    ),
    *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa"),
    *("_upsample_bicubic2d_aa",),
)
def interpolation(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """One output from every element with a weight in it."""
    return wire.windowed(x, wire.spatial(x))


@rule(
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d"),
    *("replication_pad2d", "replication_pad3d"),
)
def padding_by_copies(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """The border is a copy of elements inside."""
    return wire.windowed(x, wire.spatial(x))


@rule("constant_pad_nd")
def padding(wire: Wire, x: Any, pads: Sequence[int], *rest: Any, **options: Any) -> Any:
    """The border is on no path; a negative padding cuts off."""
    rank, places = len(x.shape), {}
    for number, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True), 1):
        dim = rank - number
        place = torch.arange(-before, x.shape[dim] + after)
        place[place >= x.shape[dim]] = -1
        places[dim] = place.clamp(min=-1)
    return wire.placed(x, places)
