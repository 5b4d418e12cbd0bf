"""What an operation really depends on, found by moving its inputs; and what its wiring says.

Neither knows of the rules: the one only runs the operation on numbers, the other only asks
``Connectivity`` which connections of two layers around the operation are effective.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lit_prune import Connectivity, Masks

Shapes = Sequence[tuple[int, ...]]


class Around(nn.Module):
    """One number, a layer to all inputs of ``inner``, and one from all of its outputs."""

    def __init__(self, inner: Callable[..., Any], shapes: Shapes, start: Tensor) -> None:
        super().__init__()
        self.inner, self.shapes = inner, shapes
        self.first = nn.Linear(1, start.numel(), bias=False)
        self.first.weight.data = start[:, None].clone()
        self.last = nn.Linear(flat_outputs(inner, shapes, start).numel(), 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(flat_outputs(self.inner, self.shapes, self.first(x)[0]))


def flat_outputs(inner: Callable[..., Any], shapes: Shapes, x: Tensor) -> Tensor:
    """Run ``inner`` on the parts of a vector; return all that it returns as a vector."""
    parts = x.split([math.prod(shape) for shape in shapes])
    results = inner(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))
    return torch.cat([_real(y).flatten() for y in tree_leaves(results) if isinstance(y, Tensor)])


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.double()


def wiring(
    inner: Callable[..., Any],
    shapes: Shapes,
    start: Tensor,
    resolution: Any = "element",
    exclude: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return which outputs (rows) the inputs (columns) reach: going forward, and going back.

    Weights inside are all present.
    """
    model = Around(inner, shapes, start).double()
    connectivity = Connectivity(model, (1, 1), resolution, exclude=exclude)
    first, last = model.first.weight.numel(), model.last.weight.numel()

    def effective(first_mask: Tensor, last_mask: Tensor) -> Masks:
        masks = {"first.weight": first_mask[:, None], "last.weight": last_mask[None]}
        return connectivity.effective(Masks(masks))

    every_first, every_last = torch.ones(first).bool(), torch.ones(last).bool()
    ahead = [effective(row, every_last)["last.weight"][0] for row in torch.eye(first).bool()]
    back = [effective(every_first, row)["first.weight"][:, 0] for row in torch.eye(last).bool()]
    return torch.stack(ahead, 1), torch.stack(back, 0)


def dependence(
    inner: Callable[..., Any],
    shapes: Shapes,
    values: tuple[float, float],
    extremes: Sequence[float] = (),
    starts: int = 4,
) -> Tensor:
    """Return which outputs (rows) change for any change of an input (column) that was tried.

    Inputs are drawn between ``values``, and moved to either of these, to another number between,
    and to ``extremes``.
    """
    generator = torch.Generator().manual_seed(0)
    low, high = values
    size = sum(math.prod(shape) for shape in shapes)

    def drawn() -> Tensor:
        return torch.rand(size, dtype=torch.float64, generator=generator) * (high - low) + low

    found: Tensor | None = None
    for _ in range(starts):
        start, other = drawn(), drawn()
        before = _run(inner, shapes, start)
        if found is None:
            found = torch.zeros(before.numel(), size, dtype=torch.bool)
        for place in range(size):
            for value in (low, high, float(other[place]), *extremes):
                moved = start.clone()
                moved[place] = value
                after = _run(inner, shapes, moved)
                assert after.shape == before.shape
                found[:, place] |= ~torch.isclose(after, before, 0, 1e-12, equal_nan=True)
    assert found is not None
    return found


def _run(inner: Callable[..., Any], shapes: Shapes, x: Tensor) -> Tensor:
    """Run in eval mode with the same random numbers every time, and without fast paths."""
    torch.default_generator.manual_seed(0)  # of the CPU alone, which is much faster
    with torch.no_grad():
        return flat_outputs(inner, shapes, x.clone()).clone()


def start_of(shapes: Shapes, values: tuple[float, float]) -> Tensor:
    """Return the inputs on which the wiring is recorded."""
    generator = torch.Generator().manual_seed(1)
    size = sum(math.prod(shape) for shape in shapes)
    low, high = values
    return torch.rand(size, dtype=torch.float64, generator=generator) * (high - low) + low
