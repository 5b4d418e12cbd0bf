"""Wanda: weights and activations."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_prune.connectivity.recorder import no_fast_attention
from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError, LitPruneWarning
from lit_prune.probe import Probe
from lit_prune.prunable import require_rows

__all__ = ["Wanda"]

# Products with a turned weight, and how many arguments end with the factors.
_PRODUCTS = {torch.ops.aten.mm.default: 2, torch.ops.aten.addmm.default: 3}


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
            require_rows("Wanda(per_output=True)", probe.model, probe.masks)
        with probe.masked() as model, torch.no_grad(), no_fast_attention():
            model.eval()
            weights = probe.masks.parameters(model)
            sums = {name: torch.zeros_like(_wide(w)) for name, w in weights.items()}
            with torch._C._AutoDispatchBelowAutograd(), _Inputs(weights, sums) as inputs:
                count = sum(1 for batch in probe.batches if probe.loss(model, batch) is not None)
            if not count:
                raise LitPruneError("Wanda needs training data: pass batches=")
            _warn_of_unseen(inputs, sums)
            sums = dict(zip(sums, probe.ranks.sum(sums.values()), strict=True))
            scores = {n: _wide(w.detach()).abs() * sums[n].sqrt() for n, w in weights.items()}
        return {n: _places(s) for n, s in scores.items()} if self.per_output else scores


def _places(scores: Tensor) -> Tensor:
    """Return the place of every score among those of its output unit, from 1/n to 1.

    Ties go by a fixed permutation. A unit whose scores are all zero has zeros for places; NaN and
    infinity stay.
    """
    rows = scores.flatten(1)
    if not rows.numel():
        return scores
    values, order = rows.sort(dim=1, stable=True)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        fixed = torch.Generator().manual_seed(0)
        shuffle = torch.rand(rows.shape, generator=fixed).argsort(dim=1).to(rows.device)
        order = shuffle.gather(1, rows.gather(1, shuffle).argsort(dim=1, stable=True))
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    found = torch.empty_like(rows).scatter_(1, order, (places / rows.shape[1]).expand_as(rows))
    found.masked_fill_(values[:, -1:] == 0, 0)
    return torch.where(rows.isfinite(), found, rows).view(scores.shape)


def _wide(numbers: Tensor) -> Tensor:
    """Return numbers in a type in which sums of squares neither overflow nor stand still."""
    return numbers if numbers.dtype in (torch.float32, torch.float64) else numbers.float()


class _Inputs(TorchDispatchMode):
    """Adds up the squares of what enters each weight, as layers pass the dispatcher."""

    def __init__(self, weights: dict[str, torch.nn.Parameter], sums: dict[str, Tensor]) -> None:
        super().__init__()
        self._sums = {
            w.untyped_storage().data_ptr(): sums[n] for n, w in weights.items() if w.numel()
        }
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.linear.default:
            if (part := self._part(args[1])) is not None:
                part += _wide(args[0]).square().reshape(-1, part.shape[1]).sum(0)
        elif func in _PRODUCTS:
            *_, x, factor = args[: _PRODUCTS[func]]
            if (part := self._part(factor)) is not None and factor.stride(0) == 1:
                part += _wide(x).square().sum(0)
        elif func is torch.ops.aten.convolution.default:
            if (part := self._part(args[1])) is not None:
                part += _seen_by_taps(func(*args, **kwargs), args)
        elif func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        return func(*args, **kwargs)

    def _part(self, weight: Tensor) -> Tensor | None:
        """Return the sums of ``weight``, which may be some rows of a parameter, or turned."""
        sums = self._sums.get(weight.untyped_storage().data_ptr())
        if sums is None:
            return None
        self.seen.add(id(sums))
        if sums.numel() == weight.numel():
            return sums
        start = int(weight.storage_offset()) // weight.stride(0)
        return sums[start : start + weight.shape[0]]


def _warn_of_unseen(inputs: _Inputs, sums: Mapping[str, Tensor]) -> None:
    for name, total in sums.items():
        if total.numel() and id(total) not in inputs.seen:
            text = f"Wanda saw nothing enter {name}: its connections score 0"
            warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)


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
