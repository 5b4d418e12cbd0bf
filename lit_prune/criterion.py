"""What every criterion is: a function from a probe to scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Size, Tensor

from lit_prune.errors import LitPruneError
from lit_prune.masks import Masks
from lit_prune.probe import Probe

__all__ = ["Criterion", "CriterionLike", "QuotaLike", "require_object"]

CriterionLike = Callable[[Probe], dict[str, Tensor]]
QuotaLike = Callable[[dict[str, Size], int], dict[str, int]]


def require_object(owner: str, role: str, value: object) -> None:
    """Check that ``value`` can be called as it stands.

    Raises:
        LitPruneError: it is a class, or nothing that can be called.
    """
    if isinstance(value, type) or not callable(value):
        shown = value.__name__ if isinstance(value, type) else repr(value)
        raise LitPruneError(f"{owner}: {role}={shown} is no function: pass an object, as in SNIP()")


class Criterion(ABC):
    """Scores connections: higher = keep. It knows neither the sparsity nor the schedule.

    A member is a frozen dataclass in a file of its own in ``lit_prune/criteria``; its fields are
    its hyperparameters. A plain function of the same form may stand wherever a criterion may.

    Attributes:
        rounds: in how many rounds of scoring its paper prunes, the default of ``prune``.
        regrows: whether every round ranks all connections again, so that removed ones may return.
        whole_filters: whether filters (all weights into one unit) are kept or removed as a whole.
    """

    rounds: ClassVar[int] = 1
    regrows: ClassVar[bool] = False
    whole_filters: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return one finite score for every connection, by the names of ``probe.masks``."""

    @property
    def quota(self) -> QuotaLike | None:
        """The quota that belongs to the method, where none is given; None ranks globally."""
        return None

    def places(self, masks: Masks, generator: torch.Generator) -> dict[str, Tensor] | None:
        """Return where the final masks' elements are taken from, by layer; None leaves them.

        For controls that rearrange what another criterion found: a permutation of the flat indices
        of each layer, drawn once a prune; what ``masks`` do not keep stays where it is.
        """
        return None
