"""Random pruning: the control of every comparison."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.criterion import Criterion
from lit_prune.probe import Probe, default_generator

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(Criterion):
    """Scores drawn uniformly from [0, 1).

    With a quota this is layerwise random pruning, whose ratios make the method.

    Source: Liu et al. 2022, "The unreasonable effectiveness of random pruning", arXiv 2202.02643.

    Needs: nothing.

    Departs: counts are exact, where some codes draw every connection by itself.
    """

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return one uniform number a connection, drawn on the CPU from the probe's generator."""
        source = probe.generator or default_generator()
        return {
            name: torch.rand(mask.shape, generator=source).to(mask.device)
            for name, mask in probe.masks.items()
        }
