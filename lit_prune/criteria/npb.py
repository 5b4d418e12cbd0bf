"""NPB: node-path balancing by optimisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Size, Tensor

from lit_prune.connectivity.algebra import Algebra, PathCount
from lit_prune.connectivity.layers import Conv, Layer
from lit_prune.connectivity.recorder import record
from lit_prune.connectivity.wiring import Weight, Wiring
from lit_prune.criterion import Criterion, require_object
from lit_prune.errors import LitPruneError, LitPruneWarning
from lit_prune.kernel_allocation import Allocation, room_for
from lit_prune.probe import Probe, default_generator, looked_at
from lit_prune.quotas import ERK, Quota

__all__ = ["NPB", "Solver"]

Solver = Literal["auto", "milp", "heuristic"]
Array = NDArray[Any]
# What is open, paths to its inputs, how many to keep -> the places of those chosen, -1 for others.
_Choose = Callable[[Array, Array, int], Array]
_INSTALL = 'pip install "lit_prune[npb]"'


@dataclass(frozen=True)
class NPB(Criterion):
    r"""Node-path balancing: many paths, and many units that lie on one, layer after layer.

    In the order of the forward pass every layer, of which the quota keeps n weights, gets the
    numbers :math:`M_{ij}` of weights in its kernels (input i, output j) that maximise

    .. math:: \alpha \frac{A}{C_{in} + C_{out}} + (1 - \alpha) \frac{B}{B_{max}}
              + \beta \frac{n - \sum_{ij} [1 - M_{ij}]_+}{n}

    where A are the units with enough weights, :math:`B = \sum_{ij} P_i M_{ij}` the paths that leave
    the layer, if :math:`P_i` reach input i through the layers decided before, and the last term is
    the share of kernels in use; :class:`~lit_prune.kernel_allocation.Allocation` has the formulas.
    A linear layer has kernels of one weight, so that its last term is the same for all M. Which
    weights of a kernel are kept is drawn at random. A weight that is used more than once is decided
    where it is reached first.

    Source: Pham et al. 2023, "Towards data-agnostic pruning at initialization: what makes a good
    sparse mask?", NeurIPS.

    Needs: a budget and an example input, of which only the shape matters; cvxpy and HiGHS (the
    extra ``npb``) for exact optima in later rounds.

    Departs: paths are counted by channels, not by positions, and in logarithms; inputs that no path
    reaches get weights only if nothing else is left. :math:`B_{max}` is the largest B that n
    weights can have, where the code divides by far more if n is below ``Cout * max_per_kernel``;
    every output is decided, where the code leaves those that fill no chunk unpruned; and one bound
    on kernels holds everywhere, where the code has none for the first layer and tightens it after
    shortcuts.

    A chosen connection scores from 1 to 2, the higher the more the objective would lose without it.
    All others score at random from 0 to 1. Layers that no path reaches are chosen from at random.

    Args:
        alpha: what units weigh against paths, from 0 to 1. At 0.5 units come first where n exceeds
            their number, and paths where it does not. The official code has 0.99, and 0.01 in its
            run of ResNet-20: with its larger :math:`B_{max}` that is at 99 % sparsity about what
            0.5 is here, where 0.01 would leave fewer units alive than random masks do.
        beta: what kernels in use weigh; 1 in the official run of ResNet-20, 2 in that of ResNet-18.
        max_per_kernel: the most weights of a kernel, raised where n needs it; 9 in the official run
            of ResNet-20, 6 in that of ResNet-18.
        min_per_unit: how many weights are enough for a unit.
        quota: how many each layer keeps, where no other is given.
        solver: ``"heuristic"`` meets the optimum where all kernels have room for as many weights,
            as in one round from dense masks, and comes close elsewhere. ``"auto"`` has it mended by
            cvxpy and HiGHS where it is not known to meet it, if both are installed. ``"milp"``
            solves every program by them, which takes hundreds of times as long; among many optima
            it takes any, and the heuristic one that leaves more paths to the next layer.
        chunk: so many outputs of a large layer are a program of their own, with their part of n, as
            in the official code. Every program wants all inputs, so that a unit leads to more than
            one output.
        largest: a layer is large if it has more kernels than this.
        time_limit: seconds for a program. Where they do not suffice, the better of what was found
            and of the heuristic counts, which may be another on another machine.

    Raises:
        LitPruneError: a field is out of range.
    """

    alpha: float = 0.5
    beta: float = 1.0
    max_per_kernel: int = 9
    min_per_unit: int = 1
    quota: Quota = ERK()  # noqa: RUF009
    solver: Solver = "auto"
    chunk: int = 32
    largest: int = 128 * 128
    time_limit: float = 30.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.solver not in get_args(Solver):
            known = ", ".join(get_args(Solver))
            raise LitPruneError(f"NPB: unknown solver {self.solver!r}; known: {known}")
        require_object("NPB", "quota", self.quota)
        for name in ("alpha", "beta", "time_limit"):
            if not isinstance(getattr(self, name), int | float):
                raise LitPruneError(f"NPB: {name}={getattr(self, name)!r} is no number")
        if not 0 <= self.alpha <= 1:
            raise LitPruneError(f"NPB: alpha={self.alpha} is out of range: from 0 to 1")
        if not 0 <= self.beta < float("inf"):
            raise LitPruneError(f"NPB: beta={self.beta} is out of range: from 0 up")
        for name in ("max_per_kernel", "min_per_unit", "chunk", "largest"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise LitPruneError(
                    f"NPB: {name}={value} is out of range: a whole number from 1 up"
                )
        if not self.time_limit > 0:
            raise LitPruneError(
                f"NPB: time_limit={self.time_limit} is out of range: above 0 seconds"
            )

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the scores; only what ``probe.masks`` keep is chosen.

        Raises:
            LitPruneError: there is no budget; or ``solver="milp"`` and its extra is not installed.
            UnsupportedOp: an operation of the model has no connectivity rule.
        """
        counts, missing = self._counts(probe), self._missing()
        seed = torch.randint(2**62, (), generator=probe.generator or default_generator())
        draw = np.random.default_rng(int(seed))
        with looked_at(probe.model):
            wiring = record(probe.model, probe.inputs(), probe.masks.parameters(probe.model))
        layers = {
            name: _Undecided(mask, wiring.strides[name], counts[name], draw)
            for name, mask in probe.masks.items()
        }
        is_sure = []

        def choose(candidates: Array, paths: Array, budget: int) -> Array:
            room = room_for(candidates, paths, budget, self.max_per_kernel)
            program = Allocation(paths, room, budget, self.alpha, self.beta, self.min_per_unit)
            kernels = np.zeros_like(room)
            for place, part in program.chunks(self.chunk if room.size > self.largest else None):
                kernels[place] = self._kernels(part, draw, not missing)
                is_sure.append(part.is_solved_by(kernels[place]))
            return program.places(kernels, candidates, draw)

        _decide(wiring, layers, choose)
        if missing and self.solver == "auto" and not all(is_sure):
            text = f"NPB may be short of the optimum, since {missing} is missing: {_INSTALL}"
            warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)
        return {name: layers[name].ranked().to(mask.device) for name, mask in probe.masks.items()}

    def _counts(self, probe: Probe) -> Mapping[str, int]:
        if probe.counts is not None:
            return probe.counts
        if probe.keep is None:
            raise LitPruneError("NPB needs a budget, how many connections to keep: pass keep=")
        return self.quota({name: mask.shape for name, mask in probe.masks.items()}, probe.keep)

    def _missing(self) -> str:
        """Return what of the extra is not installed."""
        missing = " and ".join(name for name in ("cvxpy", "highspy") if find_spec(name) is None)
        if missing and self.solver == "milp":
            raise LitPruneError(f"solver='milp' needs {missing}: {_INSTALL}")
        return missing

    def _kernels(self, program: Allocation, draw: Generator, has_solver: bool) -> Array:
        """Return how many weights each kernel keeps, by the solver that is asked for."""
        known = program.heuristic(draw)
        if self.solver == "heuristic" or not has_solver:
            return known
        if self.solver == "auto" and program.is_solved_by(known):
            return known
        return program.solved(known, self.time_limit)


class _Undecided:
    """One weight: what of it is decided, part by part, and what is left of its budget."""

    def __init__(self, mask: Tensor, strides: tuple[int, ...], count: int, draw: Generator) -> None:
        self._open = _laid_out(mask, strides)
        self._kept = _laid_out(torch.zeros_like(self._open), strides)
        random = torch.from_numpy(draw.random(tuple(mask.shape), dtype=np.float32))
        self._scores = _laid_out(random, strides)
        self._left = min(count, int(self._open.sum()))

    def decided(
        self, step: Layer, weight: Weight, paths: Callable[[], Array], choose: _Choose
    ) -> Tensor:
        """Return which connections of the part ``weight`` are kept; what is decided stays so."""
        part = weight.of(self._open)
        here, everywhere = int(part.sum()), int(self._open.sum())
        budget = self._left * here // max(everywhere, 1)
        if budget:
            chosen = choose(_by_kernel(step, part).numpy(), paths(), budget)
            places = _by_weight(step, torch.from_numpy(chosen), weight.shape)
            weight.of(self._kept).logical_or_(places >= 0)
            scores = weight.of(self._scores)
            scores.copy_(torch.where(places >= 0, 1 + places / budget, scores))
        part.fill_(False)
        self._left -= budget
        return weight.of(self._kept)

    def ranked(self) -> Tensor:
        """Return the scores; what no path reached is kept at random."""
        scores = self._scores.flatten()
        rest = scores.masked_fill(~self._open.flatten(), -1).topk(self._left).indices
        scores[rest] += 1
        return scores.view(self._open.shape)


def _laid_out(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return ``values`` in the memory layout of a weight, whose parts are known by place."""
    return torch.empty_strided(values.shape, strides, dtype=values.dtype).copy_(values)


def _by_kernel(step: Layer, part: Tensor) -> Tensor:
    """Return a weight by (groups, inputs, outputs, taps)."""
    if not isinstance(step, Conv):
        return part.T[None, :, :, None]
    parts = part.reshape(step.geometry.groups, -1, part.shape[1], step.geometry.taps)
    return parts if step.transposed else parts.transpose(1, 2)


def _by_weight(step: Layer, kernels: Tensor, shape: Size) -> Tensor:
    """Return what is by (groups, inputs, outputs, taps) in the shape of the weight."""
    if not isinstance(step, Conv):
        return kernels[0, :, :, 0].T
    return (kernels if step.transposed else kernels.transpose(1, 2)).reshape(shape)


def _decide(wiring: Wiring, layers: Mapping[str, _Undecided], choose: _Choose) -> None:
    """Carry the numbers of paths forward; every layer is decided when they reach it first."""
    algebra = PathCount(wiring.device, by_channel=True)
    reach = {x: algebra.everything([1] * len(x.shape)) for x in wiring.inputs}
    for step in wiring.steps:
        given = [reach[x] for x in step.inputs]
        if not isinstance(step, Layer):
            reach |= zip(step.outputs, step.forward(algebra, *given), strict=True)
            continue
        values = algebra.everything(step.weight_shape)
        if step.weight is not None:
            paths = partial(_entering, algebra, step, given[0])
            kept = layers[step.weight.name].decided(step, step.weight, paths, choose)
            values = values.where(kept.to(wiring.device), algebra.zero)
        reach[step.outputs[0]], _ = step.carry(algebra, values, given[0], taps=False)


def _entering(algebra: Algebra, step: Layer, reach: Tensor) -> Array:
    """Return how many paths reach each input, over the most, (groups, inputs)."""
    channel = 1 if isinstance(step, Conv) else reach.dim() - 1
    others = [d for d in range(reach.dim()) if d != channel]
    logs = (algebra.any(reach, others) if others else reach).flatten()
    logs = logs.expand(step.inputs[0].shape[channel]).cpu()
    # Without any path the most is -inf, and a difference of infinities would be NaN.
    paths = (logs - logs.max().clamp(min=-1e300)).exp().numpy()
    return paths.reshape(step.geometry.groups if isinstance(step, Conv) else 1, -1)
