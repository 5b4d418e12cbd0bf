"""Which parameters may be pruned, said once."""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from lit_prune.errors import LitPruneError, did_you_mean
from lit_prune.names import plain_name

__all__ = ["Patterns", "prunable", "require_rows"]

Patterns = str | Sequence[str] | None


def prunable(
    model: nn.Module, include: Patterns = None, exclude: Patterns = None
) -> dict[str, nn.Parameter]:
    """Return the weights of ``model`` that pruning may remove, by name, in registration order.

    These are the weights of every convolution (transposed ones too), every linear layer and the
    projections of ``MultiheadAttention``. Biases, norms and embeddings are never among them, nor
    is a linear weight tied to an embedding. A tied weight appears once, under its first name.

    Names are those of ``model.state_dict()`` without the ``_orig_mod.`` of compiled modules.

    Args:
        model: any module.
        include: ``fnmatch`` pattern or patterns; only names that match one are returned.
        exclude: pattern or patterns; names that match one are left out.

    Raises:
        LitPruneError: a pattern matches no prunable parameter, or a weight is reparametrised
            (``torch.nn.utils.prune``, weight norm) or not initialised yet (lazy layers).

    Examples:
        >>> list(prunable(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))))
        ['0.weight', '2.weight']
    """
    candidates = dict(_candidates(model))
    kept_in = _matching(candidates, include, "include") if include is not None else set(candidates)
    left_out = _matching(candidates, exclude, "exclude") if exclude is not None else set()
    chosen = {n: p for n, p in candidates.items() if n in kept_in and n not in left_out}
    return {name: _plain_parameter(name, weight) for name, weight in chosen.items()}


def require_rows(owner: str, model: nn.Module, names: Iterable[str]) -> None:
    """Check that the first dimension of the weights ``names`` is that of their output units.

    Raises:
        LitPruneError: a weight is of a transposed convolution, which ``owner`` does not take.
    """
    for name in names:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), _ConvTransposeNd):
            raise LitPruneError(
                f"{owner}: {name} is of a transposed convolution, whose first dimension is not "
                f"its outputs: pass exclude={name!r}"
            )


def _candidates(model: nn.Module) -> Iterator[tuple[str, object]]:
    seen = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    for prefix, module in model.named_modules():
        for attribute in _weights_of(module):
            weight = module._parameters.get(attribute)
            if weight is None:
                yield plain_name(f"{prefix}.{attribute}".lstrip(".")), None
            elif id(weight) not in seen:
                seen.add(id(weight))
                yield plain_name(f"{prefix}.{attribute}".lstrip(".")), weight


def _weights_of(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, _ConvNd | nn.Linear):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        # Its output projection is a Linear of its own.
        packed = module._qkv_same_embed_dim
        return (
            ("in_proj_weight",) if packed else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        )
    return ()


def _plain_parameter(name: str, weight: object) -> nn.Parameter:
    if isinstance(weight, UninitializedParameter):
        raise LitPruneError(f"{name} is not initialised yet: run the lazy model on one batch first")
    if not isinstance(weight, nn.Parameter):
        raise LitPruneError(
            f"{name} is reparametrised (torch.nn.utils.prune, weight norm or the like) and cannot "
            f"be set: remove the reparametrisation or pass exclude={name!r}"
        )
    return weight


def _matching(candidates: dict[str, object], patterns: Patterns, role: str) -> set[str]:
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        hits = {name for name in candidates if fnmatchcase(name, pattern)}
        if not hits:
            known = ", ".join(list(candidates)[:5]) + (", ..." if len(candidates) > 5 else "")
            raise LitPruneError(
                f"{role} pattern {pattern!r} matches no prunable parameter"
                f"{did_you_mean(pattern, candidates) or f'; there are {known}'}"
            )
        matched |= hits
    return matched
