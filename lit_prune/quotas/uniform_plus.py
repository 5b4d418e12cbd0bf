"""Uniform+: uniform, but sparing the first and the last layer."""

from dataclasses import dataclass

import numpy as np
from torch import Size

from lit_prune.quotas.quota import Quota, apportion

__all__ = ["UniformPlus"]


@dataclass(frozen=True)
class UniformPlus(Quota):
    """Uniform, with a dense first layer if it is a convolution and at least 20 % of the last.

    First and last are meant in registration order. On an MLP only the rule of the last layer holds,
    as in LAMP's code (arXiv 2010.07611). What the two spared layers take, the others give, all at
    one density.

    Source: Gale et al. 2019, "The state of sparsity in deep neural networks", arXiv 1902.09574,
    section 5.

    Reaches: totals from the first layer plus a fifth of the last.

    Departs: the code of arXiv 2107.02306 may ask for more than a layer has; here no layer exceeds
    its size.
    """

    def __call__(self, shapes: dict[str, Size], keep: int) -> dict[str, int]:
        """Return the counts; the smallest total is the first layer plus a fifth of the last."""
        sizes = [shape.numel() for shape in shapes.values()]
        least = [0] * len(sizes)
        least[-1] = -(-sizes[-1] // 5)
        if len(next(iter(shapes.values()))) > 2:
            least[0] = sizes[0]
        return apportion("UniformPlus", shapes, keep, lambda d: np.full(len(sizes), d), least)
