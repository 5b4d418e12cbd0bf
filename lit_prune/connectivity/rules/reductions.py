"""Operations that collect along dimensions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_prune.connectivity.rule import Wire, rule

__all__: list[str] = []

_Dims = int | Sequence[int] | None


@rule(
    *("sum", "mean", "nansum", "amax", "amin", "prod", "var", "std", "logsumexp"),
    *("all", "any", "argmax", "argmin", "count_nonzero"),
)
def collected(wire: Wire, x: Any, dim: _Dims = None, *rest: Any, **options: Any) -> Any:
    """Every element along the dimensions counts."""
    # `std(x, unbiased)` has no dimensions; an empty list of them means all.
    is_all = dim is None or isinstance(dim, bool) or dim == []
    return wire.over(x, None if is_all else dim, keep_dims=len(wire.shape) == len(x.shape))


@rule("trace")
def trace(wire: Wire, x: Any) -> Any:
    """The elements of the diagonal."""
    return wire.over(wire.copied(lambda matrix: matrix.diagonal()), 0)


@rule("linalg_vector_norm", "norm")
def norm(wire: Wire, x: Any, order: Any = 2, dim: _Dims = None, *rest: Any, **_: Any) -> Any:
    """A norm along dimensions."""
    return collected(wire, x, dim)


@rule("var_mean", "std_mean", "aminmax")
def two_collected(wire: Wire, x: Any, dim: _Dims = None, *rest: Any, **options: Any) -> Any:
    """Two statistics of the same elements."""
    found = collected(wire, x, dim)
    return found, found


@rule("max", "min", "median", "nanmedian")
def extreme(wire: Wire, x: Any, dim: Any = None, *rest: Any, **options: Any) -> Any:
    """Over all, along a dimension (with places), or of two tensors."""
    if wire.marks(dim) or isinstance(dim, Tensor):
        return wire.merge(x, dim)
    found = collected(wire, x, dim)
    return found if dim is None else (found, found)


@rule("mode")
def most_frequent(wire: Wire, x: Any, dim: int = -1, *rest: Any) -> Any:
    """The value and a place of it, along a dimension."""
    return two_collected(wire, x, dim)


@rule("_softmax", "_log_softmax", "_safe_softmax")
def mixed(wire: Wire, x: Any, dim: int, *rest: Any, **options: Any) -> Any:
    """Every element depends on all along the dimension."""
    return wire.mixed(x, dim)


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
def running(wire: Wire, x: Any, dim: int, *rest: Any, **options: Any) -> Any:
    """Every element depends on those up to it along the dimension."""
    if not x.shape:
        found = wire.merge(x)
    else:
        places = torch.arange(x.shape[dim])
        before = torch.where(places[None] <= places[:, None], places[None], -1)
        found = wire.placed(x, {dim % len(x.shape): before})
    return [found, found] if isinstance(wire.result, tuple | list) else found


@rule("sort")
def ordered(wire: Wire, x: Any, dim: int = -1, *rest: Any, **options: Any) -> Any:
    """Any element along the dimension may come to any place."""
    found = wire.mixed(x, dim)
    return found, found


@rule("topk", "kthvalue")
def chosen(wire: Wire, x: Any, k: int, dim: int = -1, *rest: Any, **options: Any) -> Any:
    """Any element along the dimension may be chosen."""
    keeps = len(wire.shape) == len(x.shape)
    found = wire.merge(wire.over(x, dim, keep_dims=keeps))
    return found, found


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def transformed(wire: Wire, x: Any, dims: Sequence[int], *rest: Any, **options: Any) -> Any:
    """Every frequency depends on every place."""
    return wire.merge(wire.over(x, dims, keep_dims=True))
