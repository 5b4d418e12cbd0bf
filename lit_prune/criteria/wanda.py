"""Wanda: weights and activations."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode

from lit_prune.connectivity.recorder import no_fast_attention
from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError
from lit_prune.probe import Probe

__all__ = ["Wanda"]


@dataclass(frozen=True)
class Wanda(Criterion):
    r"""Weights by activations, :math:`|w_{ij}| \, \|x_j\|_2`, compared inside each output.

    :math:`\|x_j\|_2` is the norm of what enters by input j over all batches, tokens and positions,
    in eval mode; for convolutions j is an input channel and a kernel tap. The inputs of each output
    unit are ranked by themselves, so that all units lose the same share: the score is the place
    among them, of 0 to 1. Meant for trained networks.

    Source: Sun et al. 2024, "A simple and effective pruning approach for large language models",
    arXiv 2306.11695, eq. 1.

    Needs: batches.

    Departs: the code prunes layer after layer, each on the activations of the pruned layers before
    it; here all activations are those of the network as pruned so far, and ``rounds`` come closer.
    The paper has linear layers only.

    Args:
        per_output: compare inside each output unit; False gives the plain product, for quotas.
    """

    per_output: bool = True

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the scores in the network as pruned so far; the loss is only run, not used.

        Raises:
            LitPruneError: the probe has no batches; or a layer is a transposed convolution, and
                weights are compared inside output units.
        """
        if self.per_output:
            _require_no_transposed(probe.model, probe.masks)
        with probe.masked() as model, torch.no_grad(), no_fast_attention():
            model.eval()
            weights = probe.masks.parameters(model)
            sums = {name: torch.zeros_like(_wide(w)) for name, w in weights.items()}
            with torch._C._AutoDispatchBelowAutograd(), _Inputs(weights, sums):
                count = sum(1 for batch in probe.batches if probe.loss(model, batch) is not None)
            if not count:
                raise LitPruneError("Wanda needs training data: pass batches=")
            scores = {n: _wide(w.detach()).abs() * sums[n].sqrt() for n, w in weights.items()}
        return {n: _places(s) for n, s in scores.items()} if self.per_output else scores


def _places(scores: Tensor) -> Tensor:
    """Return the place of every score among those of its output unit, up to 1.

    Equal ones share the highest of their places; NaN and infinity stay.
    """
    rows = scores.flatten(1)
    if not rows.numel():
        return scores
    found = torch.searchsorted(rows.sort(dim=1).values, rows, right=True) / rows.shape[1]
    return torch.where(rows.isfinite(), found.to(rows.dtype), rows).view(scores.shape)


def _wide(numbers: Tensor) -> Tensor:
    """Return numbers in a type in which sums of squares neither overflow nor stand still."""
    return numbers if numbers.dtype in (torch.float32, torch.float64) else numbers.float()


def _require_no_transposed(model: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), _ConvTransposeNd):
            raise LitPruneError(
                f"Wanda: {name} is of a transposed convolution, whose first dimension is no output "
                f"unit: pass per_output=False or exclude={name!r}"
            )


class _Inputs(TorchDispatchMode):
    """Adds up the squares of what enters each weight, as layers pass the dispatcher."""

    def __init__(self, weights: dict[str, torch.nn.Parameter], sums: dict[str, Tensor]) -> None:
        super().__init__()
        self._sums = {
            w.untyped_storage().data_ptr(): sums[n] for n, w in weights.items() if w.numel()
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.linear.default:
            if (part := self._part(args[1])) is not None:
                part += _wide(args[0]).square().reshape(-1, part.shape[1]).sum(0)
        elif func is torch.ops.aten.convolution.default:
            if (part := self._part(args[1])) is not None:
                part += _seen_by_taps(func(*args, **kwargs), args)
        elif func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        return func(*args, **kwargs)

    def _part(self, weight: Tensor) -> Tensor | None:
        """Return the sums of ``weight``, which may be some rows of a parameter."""
        sums = self._sums.get(weight.untyped_storage().data_ptr())
        if sums is None or sums.shape == weight.shape:
            return sums
        start = int(weight.storage_offset()) // weight.stride(0)
        return sums[start : start + weight.shape[0]]


def _seen_by_taps(output: Tensor, args: Any) -> Tensor:
    """Return, for every weight of a convolution, the sum of the squares that it is multiplied by.

    It is the gradient of the sum of the same convolution of the squares.
    """
    x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args
    _, found, _ = torch.ops.aten.convolution_backward(
        *(torch.ones_like(_wide(output)), _wide(x).square(), _wide(weight), None, stride, padding),
        *(dilation, transposed, output_padding, groups, [False, True, False]),
    )
    return found
