"""SynFlow: iterative synaptic flow, without data."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_prune.criteria.criterion import Criterion
from lit_prune.errors import LitPruneError
from lit_prune.probe import Probe

__all__ = ["SynFlow"]

# Where a flow lies in these bounds no path that matters over- or underflows on its way.
_SAFE_FLOW = {torch.float32: (1e-20, 1e35), torch.float64: (1e-280, 1e300)}


@dataclass(frozen=True)
class SynFlow(Criterion):
    r"""Synaptic flow, :math:`w \, \partial R / \partial w` with :math:`R = 1^T \prod_l |W_l| \, 1`.

    Source: Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving
    synaptic flow", arXiv 2006.05467, eq. 1 and algorithm 1. ``R`` is the output's sum for an input
    of ones, with weights in absolute value, no biases, and norms and activations as the identity.
    The official code keeps the norms (in eval mode) and their shifts; the paper's formula, which
    is followed here, has none.

    The flow is computed in float32, and again in float64 where float32 would over- or underflow
    (a flow outside of 1e-20 ... 1e35).
    """

    rounds: ClassVar[int] = 100

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the synaptic flow through every connection; it only needs an input's shape.

        Raises:
            LitPruneError: the flow overflows float64, or the input is not of floating point.
        """
        ones = tuple(torch.ones_like(x) for x in probe.inputs())
        if not all(x.is_floating_point() for x in ones):
            raise LitPruneError("SynFlow needs inputs of floating point, not token numbers")
        with probe.masked() as model:
            _make_positive(model.eval())
            weights = probe.masks.parameters(model)
            for weight in weights.values():
                weight.requires_grad_(True)
            flow = _measured_flow(model, ones)
            gradients = torch.autograd.grad(
                flow, list(weights.values()), allow_unused=True, materialize_grads=True
            )
            pairs = zip(weights.items(), gradients, strict=True)
            return {name: g.mul_(w.detach()) for (name, w), g in pairs}


def _make_positive(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_bias = "bias" in name.rpartition(".")[2]
            parameter.zero_() if is_bias else parameter.abs_()


def _measured_flow(model: nn.Module, ones: tuple[Tensor, ...]) -> Tensor:
    """Return R, in the first type of floating point that holds it safely."""
    for dtype, (low, high) in _SAFE_FLOW.items():
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
        with _LinearPaths():
            flow = _sum(model(*(x.to(dtype) for x in ones)))
        if low < (value := float(flow.detach())) < high:
            return flow
    if value != value or value > high:
        raise LitPruneError(f"the synaptic flow of this network overflows float64 ({value:g})")
    return flow


def _sum(output: Any) -> Tensor:
    """Sum all floating point tensors of a model's output, however nested."""
    if isinstance(output, Tensor):
        return output.sum() if output.is_floating_point() else torch.zeros(())
    parts = output.values() if isinstance(output, Mapping) else output
    return torch.stack([_sum(part) for part in parts if part is not None]).sum()


class _LinearPaths(TorchFunctionMode):
    """Norms and elementwise activations hand on their input, in modules and functions alike."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _IDENTITIES:
            return args[0] if args else kwargs["input"]
        return function(*args, **(kwargs or {}))


_NORMS = (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm)
_ACTIVATION_NAMES = (
    "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu logsigmoid log_softmax mish prelu "
    "relu relu6 relu_ selu sigmoid silu softplus softsign tanh tanhshrink softshrink hardshrink"
)
_IDENTITIES = {
    getattr(home, name)
    for home in (F, torch, Tensor)
    for name in _ACTIVATION_NAMES.split()
    if hasattr(home, name)
} | {*_NORMS, F.local_response_norm, torch.sigmoid_, torch.tanh_, Tensor.sigmoid_, Tensor.tanh_}
