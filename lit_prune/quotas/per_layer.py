"""Densities given layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import Size

from lit_prune.errors import LitPruneError, did_you_mean
from lit_prune.quotas.quota import Quota, apportion

__all__ = ["PerLayer"]


@dataclass(frozen=True)
class PerLayer(Quota):
    r"""Densities that you name, in proportion: :math:`d_l = \min(1, \lambda \delta_l)`.

    The factor :math:`\lambda` is solved for the total, so that densities whose counts sum to the
    target are taken as they are, and for any other target their proportions are.

    Source: none; densities that a paper or a person lists.

    Reaches: totals that the layers of a density above 0 hold.

    Departs: in nothing.

    Args:
        densities: name pattern (``fnmatch``) -> density of 0 to 1; a layer goes by the first that
            matches it. The default is uniform.

    Examples:
        >>> quota = PerLayer({"fc.*": 1.0, "*": 0.1})
        >>> quota({"conv.weight": Size([10, 10]), "fc.weight": Size([2, 10])}, 30)
        {'conv.weight': 10, 'fc.weight': 20}
    """

    densities: Mapping[str, float] = field(default_factory=lambda: {"*": 1.0})

    def __post_init__(self) -> None:
        """Check the densities.

        Raises:
            LitPruneError: there is none, or one is no number of 0 to 1.
        """
        if not self.densities:
            raise LitPruneError("PerLayer needs a density for every layer: pass {pattern: density}")
        for pattern, density in self.densities.items():
            if not _is_share(density):
                raise LitPruneError(
                    f"PerLayer: the density {density!r} of {pattern!r} is not 0 to 1"
                )

    def __call__(self, shapes: dict[str, Size], keep: int) -> dict[str, int]:
        """Return the counts; the factor is solved from ``keep``.

        Raises:
            LitPruneError: a layer has no density, or a pattern has no layer.
        """
        chosen = {name: self._pattern_of(name) for name in shapes}
        for pattern in self.densities:
            if not any(fnmatchcase(name, pattern) for name in shapes):
                near = did_you_mean(pattern, shapes)
                raise LitPruneError(f"PerLayer: the pattern {pattern!r} matches no layer{near}")
        given = np.array([self.densities[pattern] for pattern in chosen.values()], dtype=np.float64)
        sizes = [shape.numel() for shape in shapes.values()]
        most = [size if density else 0 for size, density in zip(sizes, given, strict=True)]
        return apportion("PerLayer", shapes, keep, lambda factor: factor * given, most=most)

    def _pattern_of(self, name: str) -> str:
        for pattern in self.densities:
            if fnmatchcase(name, pattern):
                return pattern
        given = ", ".join(map(repr, self.densities))
        raise LitPruneError(f"PerLayer gives {name} no density; its patterns are {given}")


def _is_share(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= 1
