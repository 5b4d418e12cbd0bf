"""Magnitude pruning."""

from dataclasses import dataclass

from torch import Tensor

from lit_prune.criterion import Criterion
from lit_prune.probe import Probe

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Criterion):
    r"""The absolute value of the weight, :math:`|w|`.

    At initialization it ranks layers by their fan-in, not by their worth, and layers may collapse;
    ``floor`` of ``prune`` is the minimum threshold of Gupta et al. 2022, arXiv 2209.14624.

    Source: Han et al. 2015, "Learning both weights and connections", arXiv 1506.02626.

    Needs: nothing; weights that are trained, to be worth it.

    Departs: in nothing.
    """

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return ``|w|``; neither data nor generator is used."""
        weights = probe.masks.parameters(probe.model)
        return {name: w.detach().abs() for name, w in weights.items()}
