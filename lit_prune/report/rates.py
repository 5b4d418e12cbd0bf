"""Pruning rates: how far runs were to be pruned, so that equal ones are equal however written."""

from dataclasses import dataclass, field
from typing import Any

from lit_prune.errors import LitPruneError
from lit_prune.report.phases import phases
from lit_prune.report.runs import Run
from lit_prune.targets import Target

__all__ = ["Rate", "rate_of"]

# Of a network so large that shares of it are as good as exact.
_MANY = 10**12


@dataclass(frozen=True, order=True)
class Rate:
    """How much is left of a network, by one way of counting; equal are equal shares.

    Attributes:
        is_effective: whether effective connections are counted.
        sparsity: the share of connections removed, to ten digits; -1 where it is not known.
        count: the connections to keep, where they were counted and not all are known; or what else
            says how far, such as a file of masks.
    """

    is_effective: bool
    sparsity: float
    count: str = ""
    label: str = field(default="", compare=False)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed."""
        return self.sparsity == 0

    def __str__(self) -> str:
        """Write it in the one way that equal rates share: as a compression."""
        number = f"{1 / (1 - self.sparsity):.6g}x" if 0 <= self.sparsity < 1 else self.label
        return number + (" effective" if self.is_effective else "")


def rate_of(run: Run) -> Rate:
    """Return how far a run was to be pruned: by its target, or else by its schedule or masks."""
    target = run.settings.get("pruning.target")
    if target is not None:
        return _by_target(target, run.total)
    tree = (run.config.get("pruning") or {}).get("target")
    if tree:
        return _by_target(tree, run.total)
    density = phases(run.config).density
    if density is not None:
        return _rate(False, density)
    if run.total and run.kept is not None:
        return _rate(False, run.kept / run.total)
    return Rate(False, -1, "unknown", "unknown")


def _by_target(target: Any, total: int | None) -> Rate:
    try:
        parsed = Target.parse(target)
        is_effective = parsed.measure == "effective"
        if parsed.keep is None:
            return _rate(is_effective, parsed.count(_MANY) / _MANY)
        if total:
            return _rate(is_effective, parsed.count(total) / total)
        return Rate(is_effective, -1, str(parsed.keep), f"{parsed.keep} connections")
    except (LitPruneError, TypeError, ValueError):
        return Rate(False, -1, str(target), str(target))


def _rate(is_effective: bool, density: float) -> Rate:
    return Rate(is_effective, round(1 - density, 10), label="0 connections")
