"""The uniform quota."""

from dataclasses import dataclass

import numpy as np
from torch import Size

from lit_prune.quotas.quota import Quota, apportion

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform(Quota):
    """Every layer keeps the same share: density d for all.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", arXiv 1710.01878.

    Reaches: every total.

    Departs: in nothing.
    """

    def __call__(self, shapes: dict[str, Size], keep: int) -> dict[str, int]:
        """Return counts within half a connection of ``density * size``, exact in their sum."""
        return apportion("Uniform", shapes, keep, lambda level: np.full(len(shapes), level))
