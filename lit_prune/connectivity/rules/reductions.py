"""Operations that collect along dimensions."""

from collections.abc import Sequence
from typing import Any

from lit_prune.connectivity.rule import Wire, rule

__all__: list[str] = []

Dims = int | Sequence[int] | None


@rule(
    *("sum", "mean", "nansum", "nanmean", "amax", "amin", "prod", "var", "std", "logsumexp"),
    *("all", "any", "argmax", "argmin", "count_nonzero", "nanmedian", "trace"),
)
def collected(wire: Wire, x: Any, dim: Dims = None, *rest: Any, **options: Any) -> Any:
    """Every element along the dimensions counts."""
    if isinstance(dim, bool):
        dim = None
    dims = options.get("axis", dim)
    dims = None if dims is None or dims == [] else dims
    keeps = len(wire.shape) == len(x.shape)
    return wire.over(x, dims, keep_dims=keeps)


@rule("max", "min", "median", "mode")
def extreme(wire: Wire, x: Any, dim: Any = None, *rest: Any, **options: Any) -> Any:
    """Over all, along a dimension (with places), or of two tensors."""
    if dim is not None and not isinstance(dim, int):
        return wire.merge(x, dim)
    keeps = dim is not None and len(wire.shape) == len(x.shape)
    found = wire.over(x, dim, keep_dims=keeps)
    return found if dim is None else (found, found)


@rule("var_mean", "std_mean", "aminmax")
def two_collected(wire: Wire, x: Any, dim: Dims = None, *rest: Any, **options: Any) -> Any:
    """Two statistics of the same elements."""
    found = collected(wire, x, dim, *rest, **options)
    return found, found


@rule("linalg_vector_norm", "norm")
def norm(wire: Wire, x: Any, order: Any = 2, dim: Dims = None, *rest: Any, **options: Any) -> Any:
    """A norm along dimensions."""
    return collected(wire, x, options.get("dim", dim))


@rule(
    *("softmax", "_softmax", "log_softmax", "_log_softmax", "special_softmax", "cumsum", "cumprod"),
    *("logcumsumexp", "cummax", "cummin", "_safe_softmax"),
)
def mixed(wire: Wire, x: Any, dim: int, *rest: Any, **options: Any) -> Any:
    """Every element depends on all along the dimension."""
    found = wire.mixed(x, dim)
    return [found, found] if isinstance(wire.result, tuple | list) else found


@rule("sort", "topk", "argsort", "kthvalue")
def sorted_(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """Any element may come to any place; which, depends on all."""
    results = wire.result if isinstance(wire.result, tuple | list) else [wire.result]
    every = wire.over(x, None)
    found = [wire.merge(every, shape=r.shape) for r in results]
    return found if isinstance(wire.result, tuple | list) else found[0]
