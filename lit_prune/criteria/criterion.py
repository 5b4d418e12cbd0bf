"""What every criterion is: a function from a probe to scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from lit_prune.probe import Probe

__all__ = ["Criterion", "CriterionLike"]

CriterionLike = Callable[[Probe], dict[str, Tensor]]


class Criterion(ABC):
    """Scores connections: higher = keep. It knows neither the sparsity nor the schedule.

    A member is a frozen dataclass in a file of its own in this folder; its fields are its
    hyperparameters. A plain function of the same form may stand wherever a criterion may.

    Attributes:
        rounds: in how many rounds of scoring its paper prunes, the default of ``prune``.
    """

    rounds: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return one finite score for every connection, by the names of ``probe.masks``."""
