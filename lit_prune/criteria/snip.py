"""SNIP: connection sensitivity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError
from lit_prune.probe import Probe

__all__ = ["SNIP"]


@dataclass(frozen=True)
class SNIP(Criterion):
    r"""Connection sensitivity, :math:`|w \, \partial L / \partial w|`.

    Source: Lee et al. 2019, "SNIP: single-shot network pruning based on connection sensitivity",
    arXiv 1810.02340, eq. 5; their normalisation by the sum does not change the order and is left
    out. The gradient is the mean over the batches, taken before the absolute value. The network
    is scored in the mode that it is in: a network in training mode uses batch statistics.
    """

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the sensitivities of the network as pruned so far.

        Raises:
            LitPruneError: the probe has no batches.
        """
        with probe.masked() as model:
            weights = probe.masks.parameters(model)
            gradients = _mean_gradients(probe, list(weights.values()))
            pairs = zip(weights.items(), gradients, strict=True)
            return {name: (w.detach() * g).abs() for (name, w), g in pairs}


def _mean_gradients(probe: Probe, weights: list[torch.nn.Parameter]) -> list[Tensor]:
    for weight in weights:
        weight.requires_grad_(True)
    sums, count = [torch.zeros_like(w) for w in weights], 0
    for batch in probe.batches:
        loss = probe.loss(probe.model, batch)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        torch._foreach_add_(sums, gradients)
        count += 1
    if not count:
        raise LitPruneError("SNIP needs training data: pass batches=")
    return [total / count for total in sums]
