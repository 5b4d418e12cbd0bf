"""SynFlow: iterative synaptic flow, without data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError, NonFiniteScores
from lit_prune.probe import Probe

__all__ = ["SynFlow"]

# Where all maxima of a flow lie in these bounds, nothing that matters over- or underflows.
_SAFE = {torch.float32: (1e-18, 1e30), torch.float64: (0.0, 1e300)}


@dataclass(frozen=True)
class SynFlow(Criterion):
    r"""Synaptic flow, :math:`w \, \partial R / \partial w` with :math:`R = 1^T \prod_l |W_l| \, 1`.

    Source: Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving
    synaptic flow", arXiv 2006.05467, eq. 1 and algorithm 1. ``R`` is the output's sum for an input
    of ones, with weights in absolute value, no biases, and norms and activations as the identity.
    The official code keeps the norms (in eval mode) and their shifts; the paper's formula, which
    is followed here, has none. Softmax attention is left as it is: its queries and keys only steer,
    and get no flow.

    The flow is computed in float32, and again in float64 where float32 might over- or underflow:
    where the largest activation of any layer, or the scale of its gradients, lies outside of
    1e-18 ... 1e30.
    """

    rounds: ClassVar[int] = 100

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the synaptic flow through every connection; it only needs an input's shape.

        Raises:
            LitPruneError: the flow overflows float64, or the input is not of floating point.
            NonFiniteScores: a weight is NaN or infinite; its layer is named.
        """
        ones = tuple(torch.ones_like(x) for x in probe.inputs())
        if not all(x.is_floating_point() for x in ones):
            raise LitPruneError("SynFlow needs inputs of floating point, not token numbers")
        with probe.masked() as model:
            _make_positive(model.eval())
            weights = probe.masks.parameters(model)
            _require_numbers(weights)
            gradients = _gradients(model, list(weights.values()), ones)
            pairs = zip(weights.items(), _owned(gradients), strict=True)
            return {name: g.mul_(w.detach()) for (name, w), g in pairs}


def _require_numbers(weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if not bool(weight.detach().sum().isfinite()) and not bool(weight.isfinite().all()):
            raise NonFiniteScores(f"the weights of {name} are not finite, so nothing can be scored")


def _make_positive(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_bias = "bias" in name.rpartition(".")[2]
            parameter.zero_() if is_bias else parameter.abs_()


def _gradients(
    model: nn.Module, weights: list[nn.Parameter], ones: tuple[Tensor, ...]
) -> Sequence[Tensor]:
    """Return dR/dw, in the first type of floating point that holds it safely."""
    tensors = [t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    originals = [tensor.data for tensor in tensors]
    is_double = any(original.dtype == torch.float64 for original in originals)
    for dtype in (torch.float64,) if is_double else _SAFE:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original.to(dtype)
        for weight in weights:
            weight.requires_grad_(True)
        with _LinearPaths() as paths:
            flow = _sum(model(*(x.to(dtype) for x in ones)))
        gradients = torch.autograd.grad(flow, weights, allow_unused=True, materialize_grads=True)
        largest = torch.stack([flow.detach(), *paths.largest])
        if _is_safe(largest, weights, *_SAFE[dtype]):
            break
    if not bool((largest < _SAFE[dtype][1]).all()):
        raise LitPruneError(f"the synaptic flow of this network overflows float64 ({flow:g})")
    return gradients


def _is_safe(largest: Tensor, weights: list[nn.Parameter], low: float, high: float) -> bool:
    """Whether the flow and the largest activations lie in range, and the gradients with them.

    The flow is a sum of activations times their gradients, so that flow / activation is the scale
    of the gradients. A zero is a dead layer, unless weights are so small that products vanish.
    """
    if bool((largest == 0).any()):
        largest = torch.cat([largest, torch.stack([weight.detach().amax() for weight in weights])])
        largest = largest[largest != 0]
    scales = torch.cat([largest, largest[:1] / largest])
    return bool(((scales > low) & (scales < high)).all())


def _owned(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the gradients in storage of their own; autograd may hand out one tensor twice."""
    shared = len({gradient.data_ptr() for gradient in gradients}) < len(gradients)
    return [g.clone() if shared or not g.is_contiguous() else g for g in gradients]


def _sum(output: Any) -> Tensor:
    """Sum all floating point tensors of a model's output, however nested."""
    if isinstance(output, Tensor):
        return output.sum() if output.is_floating_point() else torch.zeros(())
    parts = output.values() if isinstance(output, Mapping) else output
    return torch.stack([_sum(part) for part in parts if part is not None]).sum()


class _LinearPaths(TorchFunctionMode):
    """Norms and elementwise activations hand on their input, in modules and functions alike.

    Notes the largest output of every linear layer and convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        data = args[0] if args else kwargs.get("input")
        if function in _IDENTITIES or (function in _SOFTMAX and data.dim() <= 2):
            return data
        output = function(*args, **kwargs)
        if function in _LAYERS and output.numel():
            self.largest.append(output.detach().amax())
        return output


_LAYERS = {
    F.linear,
    *(getattr(F, f"conv{n}d") for n in (1, 2, 3)),
    *(getattr(F, f"conv_transpose{n}d") for n in (1, 2, 3)),
}
_NAMES = (
    "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm celu elu gelu "
    "hardsigmoid hardswish hardtanh leaky_relu log_sigmoid logsigmoid log_softmax mish prelu relu "
    "relu6 rrelu selu sigmoid silu softplus softsign tanh tanhshrink softshrink hardshrink"
)
# Of logits (N, classes) it is an activation; of more dimensions it is part of an attention.
_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_IDENTITIES = {
    getattr(home, name + ending)
    for home in (F, torch, Tensor)
    for name in _NAMES.split()
    for ending in ("", "_")
    if hasattr(home, name + ending)
}
