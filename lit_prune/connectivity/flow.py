"""Flow: values carried through a wiring, from its inputs to its outputs and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lit_prune.connectivity.algebra import Algebra
from lit_prune.connectivity.layers import Layer
from lit_prune.connectivity.wiring import Signal, Wiring

__all__ = ["Flow"]


class Flow:
    """What flows through a network whose connections have the given values.

    Args:
        wiring: the network.
        algebra: how values combine.
        values: a value for every connection, by weight; a weight without values is all present.
        taps: leave out kernel taps that only touch padding, though positions are collapsed.
    """

    def __init__(
        self,
        wiring: Wiring,
        algebra: Algebra,
        values: Mapping[str, Tensor],
        taps: bool = False,
    ) -> None:
        self._wiring, self._algebra = wiring, algebra
        self._values = {name: self._wiring.laid_out(name, value) for name, value in values.items()}
        self._taps = taps
        self._memos: dict[Layer, Any] = {}
        self.at_inputs: dict[Signal, Tensor | None] = {}
        self.at_outputs = self._forward()

    def _forward(self) -> dict[Signal, Tensor]:
        """Return what reaches the outputs."""
        reach = {x: self._algebra.everything([1] * len(x.shape)) for x in self._wiring.inputs}
        last_use = self._last_uses()
        for number, step in enumerate(self._wiring.steps):
            given = [reach[x] for x in step.inputs]
            if isinstance(step, Layer):
                weight = self._weight(step)
                found, self._memos[step] = step.carry(self._algebra, weight, given[0], self._taps)
                reach[step.outputs[0]] = found
            else:
                reach |= zip(step.outputs, step.forward(self._algebra, *given), strict=True)
            for signal in step.inputs:
                if last_use.get(signal) == number:
                    reach.pop(signal, None)
        return {x: reach[x] for x in self._wiring.outputs}

    def backward(self, uses: dict[Layer, Tensor] | None = None) -> dict[str, Tensor]:
        """Return, for every connection, the value of the best path from end to end through it.

        Also leaves what the inputs reach in ``at_inputs``, and in ``uses``, if given, which units
        enter each layer on such a path.
        """
        heads: dict[Signal, Tensor | None] = {}
        for end in self._wiring.outputs:
            heads[end] = self._algebra.everything([1] * len(end.shape))
        found: dict[str, Tensor] = {}
        for step in reversed(self._wiring.steps):
            given = [heads.pop(x, None) for x in step.outputs]
            if isinstance(step, Layer):
                (head,) = given
                if head is None:
                    continue
                reached, through = step.carry_back(
                    self._algebra, self._weight(step), head, self._memos.pop(step)
                )
                if uses is not None:
                    uses[step] = step.entering(through)
                self._collect(found, step, through)
                backs: tuple[Tensor | None, ...] = (reached,)
            else:
                backs = step.backward(self._algebra, *given)
            for signal, back in zip(step.inputs, backs, strict=True):
                if back is not None:
                    before = heads.get(signal)
                    heads[signal] = back if before is None else self._algebra.either(before, back)
        self.at_inputs = {x: heads.get(x) for x in self._wiring.inputs}
        for name in self._values:
            if name not in found:
                found[name] = self._algebra.nothing(self._wiring.weights[name])
        return {name: found[name] for name in self._values}

    def _collect(self, found: dict[str, Tensor], step: Layer, through: Tensor) -> None:
        """Add what flows through one use of a weight to what is known of it."""
        weight = step.weight
        if weight is None or weight.name not in self._values:
            return
        whole = self._wiring.weights[weight.name]
        strides = self._wiring.strides[weight.name]
        if weight.name not in found and weight.size == whole and weight.stride == strides:
            found[weight.name] = through
            return
        if weight.name not in found:
            found[weight.name] = self._algebra.nothing(whole)
        home = self._wiring.laid_out(weight.name, found[weight.name])
        part = weight.of(home)
        part.copy_(self._algebra.either(part, through))
        found[weight.name] = home

    def _weight(self, step: Layer) -> Tensor:
        if step.weight is None or step.weight.name not in self._values:
            return self._algebra.everything(step.weight_shape)
        return step.weight.of(self._values[step.weight.name])

    def _last_uses(self) -> dict[Signal, int]:
        uses = {x: n for n, step in enumerate(self._wiring.steps) for x in step.inputs}
        return {x: n for x, n in uses.items() if x not in self._wiring.outputs}
