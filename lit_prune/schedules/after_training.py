"""Pruning after training, and fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass

from lit_prune.acts import Due, HoldRate, Prune
from lit_prune.errors import LitPruneError
from lit_prune.schedules.ranges import require
from lit_prune.schedules.schedule import Schedule
from lit_prune.timing import Course, Time

__all__ = ["AfterTraining"]


@dataclass(frozen=True)
class AfterTraining(Schedule):
    """Trains the dense network, prunes it once, and fine-tunes what is left.

    Source: Wang et al. 2023, "Why is the state of neural network pruning so confusing?", arXiv
    2301.05219, whose P30F90 with a rate of 0.01 is ``AfterTraining(30, 90, {0: 1e-2, ...})``.

    Args:
        epochs: of dense training, with the learning-rate schedule of the module.
        finetune_epochs: of training after the prune.
        rate: the learning rate of fine-tuning: a number, or several by the epoch of fine-tuning
            (counted from 0) from which on they hold; None is the last rate of dense training.
    """

    epochs: int
    finetune_epochs: int
    rate: float | dict[int, float] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, "epochs", self.epochs >= 0, "at least 0")
        require(self, "finetune_epochs", self.finetune_epochs >= 1, "at least 1")
        stages = self._stages()
        if 0 not in stages or not all(0 <= e < self.finetune_epochs for e in stages):
            raise LitPruneError(
                f"AfterTraining: rate={self.rate} is out of range: stages begin at 0 and before "
                f"finetune_epochs={self.finetune_epochs}"
            )
        for rate in stages.values():
            require(self, "rate", rate is None or rate >= 0, "at least 0")

    def length(self, steps: int | None) -> int:
        """Return the epochs of both parts."""
        return self.epochs + self.finetune_epochs

    def plan(self, course: Course) -> list[Due]:
        """Return the prune, and the rates from there on."""
        stages = sorted(self._stages().items())
        rates = [Due(Time(self.epochs + epoch, "ep"), HoldRate(rate)) for epoch, rate in stages]
        return [Due(Time(self.epochs, "ep"), Prune(course.goal)), *rates]

    def _stages(self) -> Mapping[int, float | None]:
        return self.rate if isinstance(self.rate, dict) else {0: self.rate}
