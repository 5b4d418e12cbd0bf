"""L1 filter pruning."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lit_prune.criterion import Criterion
from lit_prune.names import plain_name
from lit_prune.probe import Probe
from lit_prune.prunable import require_rows

__all__ = ["L1Filter"]

# Above the places of all filters, those of the last layer included, which lie between 1 and 2.
_BEST = 3.0


@dataclass(frozen=True)
class L1Filter(Criterion):
    r"""Whole filters by their L1 norm, :math:`\sum_i |w_{oi}|`, the same share of every layer.

    A filter is all that enters one output channel or unit (an index of the first dimension). The
    score is the filter's place among those of its layer, from 1/n to 1 for n filters, so that
    without a quota all layers lose the same share. The last layer in registration order, whose
    units are the outputs, scores above all other layers, and the best filter of every layer above
    everything. A count that would cut a filter is rounded up to whole filters, and a warning says
    so.

    Source: Li et al. 2017, "Pruning filters for efficient convnets", arXiv 1608.08710, section 3.1.

    Needs: nothing; weights that are trained, to be worth it.

    Departs: the codes of arXiv 2301.05219 spare the first layer too, and all but the first
    convolution of each residual block: pass ``exclude``. Nothing is rebuilt as a smaller network.
    """

    whole_filters: ClassVar[bool] = True

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return one score a filter, repeated for each of its weights; data is not used.

        Raises:
            LitPruneError: a layer is a transposed convolution.
        """
        require_rows("L1Filter", probe.model, probe.masks)
        with torch.no_grad():
            weights = probe.masks.parameters(probe.model)
            scores = {}
            for name, weight in weights.items():
                kept = weight.detach().abs() * probe.masks[name].to(weight.device)
                places = _places(kept.flatten(1).sum(1, dtype=torch.float64))
                shape = (-1, *[1] * (weight.dim() - 1))
                scores[name] = places.view(shape).expand(weight.shape)
            if (last := _outputs(probe.model)) in scores:
                scores[last] = scores[last] + 1
            return {n: score.contiguous() for n, score in scores.items()}


def _outputs(model: nn.Module) -> str:
    """Return the name of the last weight in registration order, pruned or not."""
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd)]
    return plain_name(f"{layers[-1]}.weight".lstrip(".")) if layers else ""


def _places(norms: Tensor) -> Tensor:
    """Return the place of each norm among all, from 1/n up; NaN and infinity stay."""
    order = norms.argsort(stable=True)
    places = torch.arange(1, len(norms) + 1, dtype=norms.dtype, device=norms.device) / len(norms)
    places[-1:] = _BEST
    found = torch.empty_like(norms).scatter_(0, order, places)
    return torch.where(norms.isfinite(), found, norms)
