"""ERK: Erdős-Rényi-kernel."""

from dataclasses import dataclass

import numpy as np
from torch import Size

from lit_prune.quotas.quota import Quota, apportion, sizes_of

__all__ = ["ERK"]


@dataclass(frozen=True)
class ERK(Quota):
    r"""Density in proportion to the sum of a layer's dimensions over their product.

    .. math:: d_l = \min(1, \epsilon \frac{\sum_i s_{l,i}}{\prod_i s_{l,i}})

    over all dimensions of the weight, kernel included. A layer that would be more than dense is
    dense, and epsilon is solved anew for the rest.

    Source: Evci et al. 2020, "Rigging the lottery", arXiv 1911.11134, section 3.

    Reaches: every total.

    Departs: the code of arXiv 2107.02306 pushes what is too much to the layer before, and fails for
    VGG-16 at 10x.
    """

    def __call__(self, shapes: dict[str, Size], keep: int) -> dict[str, int]:
        """Return the counts; epsilon is solved from ``keep``."""
        dims = np.array([sum(shape) for shape in shapes.values()])
        per_epsilon = dims / sizes_of(shapes).clip(1)
        return apportion("ERK", shapes, keep, lambda epsilon: epsilon * per_epsilon)
