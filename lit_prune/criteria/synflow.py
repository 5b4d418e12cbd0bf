"""SynFlow: iterative synaptic flow, without data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError, NonFiniteScores
from lit_prune.linear_paths import LinearPaths
from lit_prune.probe import Probe

__all__ = ["SynFlow"]

# Where all maxima of a flow lie in these bounds, nothing that matters over- or underflows.
_SAFE = {torch.float32: (1e-18, 1e30), torch.float64: (0.0, 1e300)}


@dataclass(frozen=True)
class SynFlow(Criterion):
    r"""Synaptic flow, :math:`w \, \partial R / \partial w` with :math:`R = 1^T \prod_l |W_l| \, 1`.

    ``R`` is the output's sum for an input of ones, with weights in absolute value, no biases, and
    norms and activations as the identity. The paper has chains of layers, and shortcuts; for other
    networks the flow is kept linear in each path, so that the input is its only source and every
    cut through the network carries ``R``, by these choices of ours:

    - As in ``lit_prune.connectivity``, a path runs through any operand: products, quotients and
      differences of flows pass their sum. So flows through gates are not multiplied, which grows
      doubly exponentially over time steps, and ``1 - z`` turns none negative.
    - What does not depend on the input, such as a position embedding or a class token, is no
      source: added to a flow or joined to it, it counts as zero. As a factor (a layer scale) it
      stays one, in absolute value; one of zero stops the flow.
    - A sum of products of flows (``matmul``, ``einsum``, computed kernels) passes their mean, since
      softmax averages over keys and a dot product is as large as it is long. Softmax itself is the
      identity over any dimension. So every head of an attention, whatever its masks, passes
      ``out[i] = mean_j v[j] + mean_f q[i, f] + mean_jf k[j, f]``, with keys j and features f:
      queries and keys have flow, too.
    - Recurrent layers of PyTorch, whose weights are not prunable, pass their input's mean.
    - Dropout, ``detach`` and ``no_grad`` let everything through. Pools stay what they are.

    The flow is computed in float32, and again in float64 where float32 might over- or underflow:
    where the largest activation of any layer, or the scale of its gradients, lies outside of
    1e-18 ... 1e30. The flow of a recurrent cell grows by the same factor in every time step, and
    beyond 1e300 it is an error.

    Source: Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving
    synaptic flow", arXiv 2006.05467, eq. 1 and algorithm 1.

    Needs: an example input of floating point, of which only the shape matters.

    Departs: the official code keeps the norms (in eval mode) and their shifts; the paper's formula,
    which is followed here, has none.
    """

    rounds: ClassVar[int] = 100

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the synaptic flow through every connection; it only needs an input's shape.

        Raises:
            LitPruneError: the flow overflows float64, the input is not of floating point, or no
                output depends on it.
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
    for tensor in tensors:
        tensor.requires_grad_(False)
    # What depends on neither these nor the input is a constant.
    for weight in weights:
        weight.requires_grad_(True)
    for dtype in (torch.float64,) if is_double else _SAFE:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original.to(dtype)
        inputs = [torch.ones_like(x, dtype=dtype, requires_grad=True).clone() for x in ones]
        with LinearPaths(inputs) as paths, _default_type(dtype):
            outputs = model(*inputs)
        flow = _sum([x for x in _tensors(outputs) if paths.carries(x)])
        gradients = torch.autograd.grad(flow, weights, allow_unused=True, materialize_grads=True)
        largest = torch.stack([flow.detach(), *paths.largest])
        if _is_safe(largest, weights, *_SAFE[dtype]):
            break
    if bool(flow == 0):
        # Nothing arrives. What leads back from the outputs may overflow where nothing leads to.
        return [torch.zeros_like(weight) for weight in weights]
    if not bool((largest < _SAFE[dtype][1]).all()):
        raise LitPruneError(f"the synaptic flow of this network overflows float64 ({flow:g})")
    return gradients


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    """Let the network make its constants in this type, such as the first state of a cell."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _is_safe(largest: Tensor, weights: list[nn.Parameter], low: float, high: float) -> bool:
    """Whether the flow and the largest activations lie in range, and the gradients with them.

    The flow is a sum of activations times their gradients, so that flow / activation is the scale
    of the gradients. A zero is a dead layer, unless weights are so small that products vanish.
    """
    if bool((largest == 0).any()):
        tops = [weight.detach().amax() for weight in weights if weight.numel()]
        largest = torch.cat([largest, torch.stack(tops)])
        largest = largest[largest != 0]
    scales = torch.cat([largest, largest[:1] / largest])
    return bool(((scales > low) & (scales < high)).all())


def _owned(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the gradients in storage of their own; autograd may hand out one tensor twice."""
    shared = len({gradient.data_ptr() for gradient in gradients}) < len(gradients)
    return [g.clone() if shared or not g.is_contiguous() else g for g in gradients]


def _sum(flows: list[Tensor]) -> Tensor:
    if not flows:
        raise LitPruneError("no output of the network depends on its input, so nothing flows")
    return torch.stack([flow.sum() for flow in flows]).sum()


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield all floating point tensors of a model's output, however nested."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
        return
    for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
        if part is not None:
            yield from _tensors(part)
