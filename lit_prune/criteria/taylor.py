"""Taylor: first-order importance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError
from lit_prune.probe import Probe

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor(Criterion):
    r"""First-order importance, the mean over batches of :math:`(w \, \partial L / \partial w)^2`.

    The squared change of the loss when the connection is removed, to first order. The square is
    taken batch by batch, before the mean, where SNIP takes the absolute value after it; with one
    batch the two have the same order. Meant for trained networks.

    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", arXiv
    1906.10771, eq. 8.

    Needs: batches.

    Departs: the paper removes whole filters, summed over their weights; here every connection
    stands by itself.
    """

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the importances in the network as pruned so far.

        Raises:
            LitPruneError: the probe has no batches.
        """
        with probe.masked() as model:
            weights = probe.masks.parameters(model)
            for weight in weights.values():
                weight.requires_grad_(True)
            # Squares of half precision would vanish.
            wide = [
                w.detach().to(torch.promote_types(w.dtype, torch.float32)) for w in weights.values()
            ]
            sums, count = [torch.zeros_like(w) for w in wide], 0
            for batch in probe.batches:
                loss, given = probe.loss(model, batch), list(weights.values())
                gradients = torch.autograd.grad(loss, given, materialize_grads=True)
                changes = [g.to(w.dtype) * w for g, w in zip(gradients, wide, strict=True)]
                # The batches of all ranks are one, of which the square is taken.
                changes = probe.ranks.mean(changes)
                torch._foreach_addcmul_(sums, changes, changes)
                count += 1
            if not count:
                raise LitPruneError("Taylor needs training data: pass batches=")
            return {name: total / count for name, total in zip(weights, sums, strict=True)}
