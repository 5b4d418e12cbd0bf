"""Pruning at initialization."""

from dataclasses import dataclass

from lit_prune.schedules.schedule import Schedule

__all__ = ["AtInit"]


@dataclass(frozen=True)
class AtInit(Schedule):
    """Prune once, before the first step of training, straight to the target."""

    def keep_from(self, epoch: int, total: int, keep: int) -> int | None:
        """Return ``keep`` at the first epoch, and nothing later."""
        return keep if epoch == 0 else None
