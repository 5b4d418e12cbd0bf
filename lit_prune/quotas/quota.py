"""What every quota is, and how real-valued densities become counts that sum exactly."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Size

from lit_prune.criterion import CriterionLike, QuotaLike
from lit_prune.errors import QuotaOutOfRange
from lit_prune.masks import Masks

__all__ = ["Densities", "Pruned", "Quota", "apportion", "sizes_of"]

Densities = Callable[[float], NDArray[np.float64]]
# What prunes the network at hand by a criterion, down to any count.
Pruned = Callable[[CriterionLike], Callable[[int], Masks]]


class Quota(ABC):
    """Says how many connections each layer keeps, for a total.

    Law: the counts sum to the total exactly, each lies within its layer, and they are monotone in
    the total, so that the masks of a smaller total nest in those of a larger one.
    """

    @abstractmethod
    def __call__(self, shapes: dict[str, Size], keep: int) -> dict[str, int]:
        """Return how many of ``keep`` connections each layer keeps.

        Raises:
            QuotaOutOfRange: ``keep`` lies outside of what the quota can reach; the message names
                that range.
        """

    def bound(self, pruned: Pruned) -> QuotaLike:
        """Return the quota for one network; most need nothing but its shapes."""
        return self


def sizes_of(shapes: Mapping[str, Size]) -> NDArray[np.float64]:
    """Return the number of connections of each layer."""
    return np.array([np.prod(shape, dtype=np.float64) for shape in shapes.values()])


def apportion(
    name: str,
    shapes: Mapping[str, Size],
    keep: int,
    densities: Densities,
    least: Sequence[int] | None = None,
    most: Sequence[int] | None = None,
) -> dict[str, int]:
    r"""Return counts that follow ``densities`` and sum to ``keep``.

    ``densities(level)`` gives the density of every layer, none of which falls as the level rises
    from 0. Layer l keeps :math:`c_l(level) = \mathrm{clip}(\lfloor n_l d_l(level) + 1/2 \rfloor,
    least_l, most_l)` (0 and :math:`n_l` where nothing is said), and the level is raised until the
    counts sum to ``keep``: a divisor method (Webster's rounding), which unlike rounding by largest
    remainders is monotone in the total. Layers whose count steps at the very same level are served
    in registration order.

    Args:
        name: of the quota, for messages.
        shapes: of the layers, by name.
        keep: how many connections all layers keep together.
        densities: from a level, at least 0, to the density of each layer.
        least: how many connections each layer keeps at least.
        most: how many at most.

    Raises:
        QuotaOutOfRange: ``keep`` is below the sum of ``least`` or above that of ``most``.
    """
    sizes = sizes_of(shapes)
    floor = np.zeros_like(sizes) if least is None else np.array(least, dtype=np.float64)
    top = sizes if most is None else np.array(most, dtype=np.float64)
    if not floor.sum() <= keep <= top.sum():
        raise QuotaOutOfRange(
            f"{name} keeps between {int(floor.sum())} and {int(top.sum())} connections of this "
            f"network, not {keep}"
        )

    def counts(level: float) -> NDArray[np.float64]:
        return np.clip(np.floor(sizes * densities(level) + 0.5), floor, top)

    below, above = _bracket(counts, keep)
    spare = np.cumsum(counts(above) - counts(below))
    missing = keep - counts(below).sum()
    served = np.diff(np.minimum(spare, missing), prepend=0)
    return {n: int(c) for n, c in zip(shapes, counts(below) + served, strict=True)}


def _bracket(counts: Callable[[float], NDArray[np.float64]], keep: int) -> tuple[float, float]:
    """Return neighbouring levels of which one keeps at most ``keep``, the other at least."""
    below, above = 0.0, 1.0
    while counts(above).sum() < keep:
        below, above = above, 2 * above
    while below < (middle := (below + above) / 2) < above:
        if counts(middle).sum() <= keep:
            below = middle
        else:
            above = middle
    return below, above
