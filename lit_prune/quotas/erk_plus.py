"""ERK+: Erdős-Rényi-kernel with a dense last layer."""

from dataclasses import dataclass

import numpy as np
from torch import Size

from lit_prune.quotas.quota import Quota, apportion, sizes_of

__all__ = ["ERKPlus"]


@dataclass(frozen=True)
class ERKPlus(Quota):
    """ERK in all layers but the last, which is dense.

    A nearly empty classifier costs more than it saves. Last is meant in registration order.

    Source: Liu et al. 2022, "The unreasonable effectiveness of random pruning", arXiv 2202.02643,
    section 3.1.

    Reaches: totals from the last layer.

    Departs: in nothing.
    """

    def __call__(self, shapes: dict[str, Size], keep: int) -> dict[str, int]:
        """Return the counts; epsilon is solved from what the last layer leaves."""
        dims = np.array([sum(shape) for shape in shapes.values()])
        per_epsilon = dims / sizes_of(shapes).clip(1)
        least = [0] * (len(shapes) - 1) + [list(shapes.values())[-1].numel()]
        return apportion("ERKPlus", shapes, keep, lambda epsilon: epsilon * per_epsilon, least)
