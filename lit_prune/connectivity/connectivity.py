"""Connectivity: reachability of any ``nn.Module``, and all that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Literal, get_args

import torch
from torch import Size, Tensor, nn

from lit_prune.connectivity.algebra import Bottleneck, PathCount, Reach
from lit_prune.connectivity.bools import any_along
from lit_prune.connectivity.flow import Flow
from lit_prune.connectivity.layers import Conv, Layer
from lit_prune.connectivity.recorder import record
from lit_prune.connectivity.walks import Walker
from lit_prune.connectivity.wiring import Signal
from lit_prune.errors import LitPruneError, MasksMismatch, NonFiniteScores
from lit_prune.masks import Masks
from lit_prune.probe import Example, looked_at
from lit_prune.prunable import Patterns, prunable

__all__ = ["Connectivity", "Curve", "Resolution"]

Resolution = Literal["element", "channel"]


@dataclass(frozen=True, eq=False)
class Curve:
    """How direct and effective sparsity belong together, from the densest mask to the sparsest.

    Row i is the mask that keeps the scores of at least the i-th lowest value; ties fall together.

    Attributes:
        keep: how many connections the mask keeps, int64.
        direct: its sparsity, 1 - keep / total, float64.
        effective: its effective sparsity, 1 - effective connections / total, float64.
        total: the number of prunable connections.
    """

    keep: Tensor
    direct: Tensor
    effective: Tensor
    total: int


class Connectivity:
    """Which connections lie on a path of kept connections from the input to the output.

    The module is run once, on ``example`` in eval mode, and its operations are noted; every
    question is answered on these notes. Nodes are the elements of its tensors, (channel, position),
    and edges the connections between them; norms and activations are single edges, pools have one
    from every element of their window. Source: Vysogorets and Kempe 2021, "Connectivity matters",
    arXiv 2107.02306, whose effective sparsity this is, for any module.

    Sound, not tight: through a gate or an attention a path runs by any operand, and parameters that
    are not prunable are always present. So no connection that could matter is called dead.

    Args:
        model: any module; it comes back bit-identical. Structure that depends on the input's values
            is seen as it is for ``example``. A changed architecture needs a new ``Connectivity``;
            changed weights do not.
        example: an input of the model, a tuple of inputs, or the input's shape, with a batch of 1.
            A larger batch is one network with so many inputs: it costs more, and its paths and ends
            count once for each.
        resolution: ``"element"`` sees paddings and strides, as the paper does; ``"channel"``
            takes all positions of a channel for one, which finds no less to be effective.
        include: the prunable parameters, as in :func:`lit_prune.prunable`.
        exclude: those that are not; they count as present.

    Raises:
        UnsupportedOp: an operation has no rule; the message says how to add one.
        LitPruneError: the model does not take the example, or has reparametrised weights that are
            not excluded.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> masks = Masks({"0.weight": torch.tensor([[True, True], [True, False]]),
        ...                "1.weight": torch.tensor([[True, False]])})
        >>> Connectivity(model, (1, 2)).effective(masks)["0.weight"]
        tensor([[ True,  True],
                [False, False]])
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        resolution: Resolution = "element",
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> None:
        if resolution not in get_args(Resolution):
            known = ", ".join(get_args(Resolution))
            raise LitPruneError(f"unknown resolution {resolution!r}; known: {known}")
        self.resolution = resolution
        weights = prunable(model, include, exclude)
        if not weights:
            raise LitPruneError(f"{type(model).__name__} has no prunable weight")
        inputs = _inputs(model, example)
        with looked_at(model):
            self._wiring = record(model, inputs, weights)

    def effective(self, masks: Masks) -> Masks:
        """Return which connections of ``masks`` lie on a path of them from input to output.

        A prunable weight that the masks do not name counts as kept.

        Raises:
            MasksMismatch: the masks are of another model.
        """
        self._require_known(masks)
        masks = Masks(masks)
        flow = self._flow(Reach(self._wiring.device, self._by_channel), masks)
        return Masks(_like(masks, flow.backward()))

    def effective_scores(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Return, for every connection, the threshold at which it stops being effective.

        The best bottleneck, :math:`\max_{p \in P_c} \min_{d \in p} s_d` over the paths :math:`P_c`
        through connection c. ``effective(scores >= t)`` is ``effective_scores >= t`` at every
        finite t, bit for bit, since nothing but comparisons is done. Connections that are dead even
        in the dense network get ``-inf``.

        Raises:
            NonFiniteScores: a score is NaN.
            MasksMismatch: the scores are of another model.
        """
        return self._bottlenecks(scores, self._by_channel)

    def bounds(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return upper bounds of :meth:`effective_scores`, at the price of a channel pass.

        Positions are collapsed, but kernel taps that only touch padding are left out.
        :attr:`bounds_are_exact` says where these are no bounds but the scores themselves.
        """
        return self._bottlenecks(scores, by_channel=True, taps=self.resolution == "element")

    @property
    def bounds_are_exact(self) -> bool:
        """Whether no layer has more than one position, so that there is nothing to collapse."""
        layers = [step for step in self._wiring.steps if isinstance(step, Layer)]
        single = all(step.positions == 1 for step in layers)
        return self.resolution == "channel" or single

    def curve(self, scores: Mapping[str, Tensor]) -> Curve:
        """Return the whole relation of direct and effective sparsity, from one pass."""
        widest = self.effective_scores(scores)
        direct, _ = torch.cat([s.to(widest[n].dtype).flatten() for n, s in scores.items()]).sort()
        effective, _ = torch.cat([widest[name].flatten() for name in scores]).sort()
        thresholds = direct.unique_consecutive()
        total = direct.numel()
        keep = total - torch.searchsorted(direct, thresholds)
        left = total - torch.searchsorted(effective, thresholds.to(effective.dtype))
        return Curve(keep, 1 - keep.double() / total, 1 - left.double() / total, total)

    def paths(self, masks: Masks) -> float:
        """Return the decimal logarithm of the number of effective paths; ``-inf`` if there is none.

        A path is a sequence of elements, or at channel resolution of channels and kernel taps;
        where an operation writes to some positions of a channel, they count apart even there.
        Computed in logarithms, which neither over- nor underflow at any depth. One of the two
        quantities of node-path balancing (Pham et al. 2023, "Towards data-agnostic pruning at
        initialization: what makes a good sparse mask?", NeurIPS).
        """
        self._require_known(masks)
        algebra = PathCount(self._wiring.device, self._by_channel)
        numbers = {
            name: torch.zeros(
                mask.shape, dtype=torch.float64, device=self._wiring.device
            ).masked_fill_(~mask.to(self._wiring.device), algebra.zero)
            for name, mask in self.effective(masks).items()
        }
        flow = self._flow(algebra, numbers)
        ends = [algebra.each(x, end.shape).flatten() for end, x in flow.at_outputs.items()]
        return float(torch.cat(ends).logsumexp(0)) / log(10) if ends else -float("inf")

    def nodes(self, masks: Masks) -> dict[str, int]:
        """Return how many effective units (channels, features) enter each layer.

        By the name of its weight; ``"input"`` and ``"output"`` are the ends of the network. The
        other quantity of node-path balancing.
        """
        uses: dict[Layer, Tensor] = {}
        flow = self._flow(Reach(self._wiring.device, by_channel=True), self.effective(masks))
        flow.backward(uses)
        entering: dict[str, dict[Signal, Tensor]] = {name: {} for name in masks}
        for step, units in uses.items():
            if step.weight is not None and step.weight.name in entering:
                # Layers that share a weight and an input have that input's units in common.
                found = entering[step.weight.name]
                (source,) = step.inputs
                found[source] = units | found[source] if source in found else units
        ends = sum(_units(values, x.shape) for x, values in flow.at_outputs.items())
        starts = sum(self._input_units(x, v) for x, v in flow.at_inputs.items() if v is not None)
        inner = {n: sum(int(u.sum()) for u in found.values()) for n, found in entering.items()}
        return {"input": starts, **inner, "output": ends}

    def walker(self, weights: Mapping[str, Tensor], masks: Masks, kernels: bool = False) -> Walker:
        """Return random walks along the connections of ``masks``, biased by ``weights``.

        They are the same at both resolutions; :class:`~lit_prune.connectivity.walks.Walker` says
        how they go.

        Raises:
            MasksMismatch: the weights or the masks are of another model.
            NonFiniteScores: a weight is NaN or infinite.
        """
        self._require_known(weights)
        self._require_known(masks)
        return Walker(self._wiring, weights, masks, kernels)

    def _input_units(self, source: Signal, values: Tensor) -> int:
        """Count channels where convolutions take the input, and elements else."""
        first = self._wiring.fed_by(source)
        if first and all(isinstance(step, Conv) for step in first) and values.dim() > 2:
            values = any_along(values, range(2, values.dim()), keep_dims=True)
            return int(values.expand(1, source.shape[1], *values.shape[2:]).sum())
        return _units(values, source.shape)

    @property
    def _by_channel(self) -> bool:
        return self.resolution == "channel"

    def _flow(self, algebra: Any, values: Mapping[str, Tensor]) -> Flow:
        values = {name: value.to(self._wiring.device) for name, value in values.items()}
        return Flow(self._wiring, algebra, values)

    def _bottlenecks(
        self, scores: Mapping[str, Tensor], by_channel: bool, taps: bool = False
    ) -> dict[str, Tensor]:
        self._require_known(scores)
        for name, score in scores.items():
            # A sum is finite only if all of it is, and ten times as cheap.
            if not bool(score.sum().isfinite()) and bool(score.isnan().any()):
                raise NonFiniteScores(f"the scores of {name} hold NaN")
            if score.dtype == torch.int64 and bool((score.abs() > 2**53).any()):
                raise LitPruneError(f"the scores of {name} lie beyond 2^53, which no float64 holds")
        dtype = _common_type(scores.values())
        values = {n: s.detach().to(self._wiring.device, dtype) for n, s in scores.items()}
        algebra = Bottleneck(self._wiring.device, by_channel, dtype)
        found = _like(scores, Flow(self._wiring, algebra, values, taps).backward())
        kind = next(iter(scores.values())).dtype
        if kind.is_floating_point and all(score.dtype == kind for score in scores.values()):
            # Every value is one of the scores, so that their own type holds it.
            found = {name: value.to(kind) for name, value in found.items()}
        return found

    def _require_known(self, values: Mapping[str, Tensor]) -> None:
        known = self._wiring.weights
        if not values:
            raise MasksMismatch("not one weight is given")
        for name, value in values.items():
            if name not in known:
                raise MasksMismatch(
                    f"{name} is no prunable weight of this network; there are "
                    f"{', '.join(list(known)[:3])}, ..."
                )
            if value.shape != known[name]:
                raise MasksMismatch(
                    f"{name} is {tuple(value.shape)} here and {tuple(known[name])} in the network"
                )


def _like(given: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: found[name].to(value.device) for name, value in given.items()}


def _common_type(tensors: Any) -> torch.dtype:
    """Return the type of floating point that holds all scores exactly."""
    kinds = {tensor.dtype for tensor in tensors}
    small = (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8)
    return torch.float32 if kinds <= {*small, torch.int16} else torch.float64


def _units(values: Tensor, shape: Size) -> int:
    """Count the units of an end; its positions are collapsed."""
    return int((values.expand(shape) if len(shape) <= 2 else values).sum())


def _inputs(model: nn.Module, example: Example) -> tuple[Any, ...]:
    """Return the example as tensors on the model's device, copied since the model may write to it.

    Raises:
        LitPruneError: it is none.
    """
    device = next(model.parameters()).device
    parts: Any = (example,) if isinstance(example, Tensor) else example
    if not parts:
        raise LitPruneError("connectivity needs an example input: pass example=")
    if isinstance(parts, tuple | list) and all(isinstance(n, int) for n in parts):
        kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
        return (torch.ones(tuple(parts), dtype=kinds[0], device=device),)
    if not isinstance(parts, tuple | list) or not all(isinstance(x, Tensor) for x in parts):
        raise LitPruneError(
            f"example={example!r} is no tensor, tuple of tensors, or shape of whole numbers"
        )
    return tuple(x.detach().to(device, copy=True) for x in parts)
