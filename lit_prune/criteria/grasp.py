"""GraSP: gradient signal preservation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from lit_prune.criteria.snip import mean_gradients
from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError, first_line
from lit_prune.probe import Probe

__all__ = ["GraSP"]


@dataclass(frozen=True)
class GraSP(Criterion):
    r"""Gradient signal preservation, :math:`w \, (H g)` with gradient g and Hessian H of the loss.

    To first order, removing a connection lowers the squared norm of the gradient by twice its
    score: the highest are kept. Logits are divided by ``temperature`` before the loss. Gradient and
    Hessian are means over the batches, of the network as pruned so far and in its mode.

    Source: Wang et al. 2020, "Picking winning tickets before training by preserving gradient flow",
    arXiv 2002.07376, eq. 8 and algorithm 1.

    Needs: batches.

    Departs: the paper's score is the negative of this one, and its highest are removed. The
    normalisation by the sum in later codes does not change the order and is left out; so are the
    paper's balanced classes in the batches.

    Args:
        temperature: above 0; the paper's code has 200.
    """

    temperature: float = 200.0

    def __post_init__(self) -> None:
        """Check the temperature.

        Raises:
            LitPruneError: it is not above 0.
        """
        given = self.temperature
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        if not is_number or not 0 < given < float("inf"):
            raise LitPruneError(
                f"GraSP: temperature={given!r} is out of range: above 0, and finite"
            )

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return ``w * Hg`` for every connection; pruned ones score zero.

        Raises:
            LitPruneError: the probe has no batches.
        """
        # Only plain attention can be differentiated twice.
        with probe.masked() as model, sdpa_kernel(SDPBackend.MATH), _tempered(model, self):
            weights = probe.masks.parameters(model)
            masks = [probe.masks[name] for name in weights]
            parameters = list(weights.values())
            gradients = mean_gradients("GraSP", probe, parameters)
            kept = [g * mask.to(g.device) for g, mask in zip(gradients, masks, strict=True)]
            products = _hessian_product(probe, parameters, kept)
            pairs = zip(weights.items(), products, strict=True)
            return {name: w.detach() * product for (name, w), product in pairs}


@contextmanager
def _tempered(model: nn.Module, grasp: GraSP) -> Iterator[None]:
    """Divide what the model returns by the temperature."""
    calls = []

    def divided(module: nn.Module, inputs: object, output: Any) -> Any:
        calls.append(module)
        return tree_map_only(Tensor, lambda logits: logits / grasp.temperature, output)

    handle = model.register_forward_hook(divided)
    try:
        yield
        if not calls:
            raise LitPruneError(
                "GraSP: the loss does not call the model itself, so that its temperature has no "
                "place; let it call model(inputs)"
            )
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise LitPruneError(f"GraSP differentiates twice: {first_line(error)}") from error
    finally:
        handle.remove()


def _hessian_product(
    probe: Probe, weights: list[nn.Parameter], vector: list[Tensor]
) -> list[Tensor]:
    """Return the product of the mean Hessian and ``vector``, by differentiating g · vector."""
    sums, count = [torch.zeros_like(w) for w in weights], 0
    for batch in probe.batches:
        loss = probe.loss(probe.model, batch)
        gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        product = sum((g * v).sum() for g, v in zip(gradients, vector, strict=True))
        count += 1
        if isinstance(product, Tensor) and product.requires_grad:
            parts = torch.autograd.grad(product, weights, materialize_grads=True)
            torch._foreach_add_(sums, parts)
    return probe.ranks.mean(total / count for total in sums)
