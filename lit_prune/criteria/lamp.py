"""LAMP: layer-adaptive magnitude."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError
from lit_prune.probe import Probe
from lit_prune.selection import rising

__all__ = ["LAMP"]


@dataclass(frozen=True)
class LAMP(Criterion):
    r"""Layer-adaptive magnitude, :math:`w_u^2 / \sum_{v \ge u} w_v^2`.

    The sum runs over the weights of the layer that are not smaller; among equal ones, those at
    later places count as larger. The largest weight of every layer scores exactly 1 and every other
    at most 1/2, so that no layer dies while one connection each fits.

    Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", arXiv
    2010.07611, eq. 2.

    Needs: nothing; weights that are trained, to be worth it.

    Departs: computed in float64 by a cumulative sum from the largest down. The code subtracts a
    cumulative sum in float32 from the total, and its largest scores are not 1.
    """

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the scores in float64; neither data nor generator is used.

        Raises:
            LitPruneError: the kept weights of a layer are all zero, so that its scores are 0/0.
        """
        with torch.no_grad():
            weights = probe.masks.parameters(probe.model)
            return {
                name: _scores(name, w.detach(), probe.masks[name]) for name, w in weights.items()
            }


def _scores(name: str, weight: Tensor, mask: Tensor) -> Tensor:
    kept = weight.abs().masked_fill(~mask.to(weight.device), 0).flatten()
    kept = kept if kept.dtype in (torch.float32, torch.float64) else kept.float()
    values, places = rising(kept)
    if not bool(mask.any()):
        return torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
    if (largest := float(values[-1])) == 0:
        raise LitPruneError(f"LAMP: the weights of {name} are all zero, its scores would be 0/0")
    # Scaled, so that no square under- or overflows.
    squares = values.double().div_(largest).square_()
    tails = squares.flip(0).cumsum(0).flip(0)
    return torch.empty_like(squares).scatter_(0, places, squares.div_(tails)).view(weight.shape)
