"""SNIP: connection sensitivity."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError
from lit_prune.probe import Probe

__all__ = ["SNIP", "mean_gradients"]


@dataclass(frozen=True)
class SNIP(Criterion):
    r"""Connection sensitivity, :math:`|w \, \partial L / \partial w|`.

    The gradient is the mean over the batches, taken before the absolute value. The network is
    scored in the mode that it is in: a network in training mode uses batch statistics. In
    ``rounds`` it is iterative SNIP (arXiv 2006.09081 and 2107.02306, which takes 300), where a
    removed connection never returns.

    Source: Lee et al. 2019, "SNIP: single-shot network pruning based on connection sensitivity",
    arXiv 1810.02340, eq. 5.

    Needs: batches.

    Departs: the normalisation by the sum does not change the order and is left out. The code of
    arXiv 2107.02306 swaps the arguments of the loss; here it is the cross-entropy.
    """

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the sensitivities of the network as pruned so far.

        Raises:
            LitPruneError: the probe has no batches.
        """
        with probe.masked() as model:
            weights = probe.masks.parameters(model)
            gradients = mean_gradients("SNIP", probe, list(weights.values()))
            pairs = zip(weights.items(), gradients, strict=True)
            return {name: (w.detach() * g).abs() for (name, w), g in pairs}


def mean_gradients(name: str, probe: Probe, weights: list[nn.Parameter]) -> list[Tensor]:
    """Return the gradients of the mean loss over the batches of ``probe``, on all its ranks.

    Raises:
        LitPruneError: there are no batches; the criterion ``name`` needs them.
    """
    for weight in weights:
        weight.requires_grad_(True)
    # Half precision would lose small gradients, and their sums.
    kinds = [w.dtype if w.dtype.itemsize > 2 else torch.float32 for w in weights]
    sums = [torch.zeros_like(w, dtype=kind) for w, kind in zip(weights, kinds, strict=True)]
    count = 0
    for batch in probe.batches:
        loss = probe.loss(probe.model, batch)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        torch._foreach_add_(sums, [g.to(s.dtype) for g, s in zip(gradients, sums, strict=True)])
        count += 1
    if not count:
        raise LitPruneError(f"{name} needs training data: pass batches=")
    return probe.ranks.mean(total / count for total in sums)
