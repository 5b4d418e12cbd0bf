"""Moves: each step takes walkers exactly, forward from an input and backward from an output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import singledispatch

import numpy as np
from torch import Tensor

from lit_prune.connectivity.layers import Layer
from lit_prune.connectivity.walks.choices import (
    Draw,
    Walkers,
    flat,
    looked_up,
    one_of,
    parted,
    unflat,
    with_row,
    within,
)
from lit_prune.connectivity.walks.passages import Trip
from lit_prune.connectivity.wiring import (
    Copies,
    Cut,
    Join,
    Merge,
    Over,
    Permute,
    Reshape,
    Signal,
    Step,
    Windows,
)

__all__ = ["Moves", "back", "onward"]

Moves = Iterator[tuple[Signal, Walkers]]


@singledispatch
def onward(step: Step, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    """Yield where walkers at input ``slot`` of a step come to."""
    raise NotImplementedError(type(step).__name__)


@singledispatch
def back(step: Step, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    """Yield where walkers at output ``slot`` of a step come from."""
    raise NotImplementedError(type(step).__name__)


@onward.register(Layer)
def _(step: Layer, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    yield step.outputs[0], trip.passages[step].forward(walkers, trip)


@back.register(Layer)
def _(step: Layer, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    yield step.inputs[0], trip.passages[step].backward(walkers, trip)


@onward.register(Merge)
def _(step: Merge, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    (output,), given = step.outputs, step.inputs[slot].shape
    pairs = enumerate(walkers.places, len(output.shape) - len(given))
    fixed = {d: row for d, row in pairs if given[d - len(output.shape)] == output.shape[d]}
    yield output, trip.ground.spread(output, walkers, fixed, trip.draw)


@back.register(Merge)
def _(step: Merge, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    origins = [_unbroadcast(walkers, x) for x in step.inputs]
    pairs = zip(step.inputs, origins, strict=True)
    possible = np.stack([looked_up(trip.ground.alive[x], w.places) for x, w in pairs])
    chosen = one_of(possible, trip.draw)
    for choice, part in parted(walkers, chosen):
        yield step.inputs[choice], _unbroadcast(part, step.inputs[choice])


def _unbroadcast(walkers: Walkers, operand: Signal) -> Walkers:
    shape = operand.shape
    rows = walkers.places[len(walkers.places) - len(shape) :]
    return walkers.at([within(row, size) for row, size in zip(rows, shape, strict=True)])


@onward.register(Over)
def _(step: Over, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    rows = [
        np.zeros_like(row) if d in step.dims else row
        for d, row in enumerate(walkers.places)
        if step.keep_dims or d not in step.dims
    ]
    yield step.outputs[0], walkers.at(rows)


@back.register(Over)
def _(step: Over, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    (x,) = step.inputs
    kept = [d for d in range(len(x.shape)) if d not in step.dims]
    rows = walkers.places[kept] if step.keep_dims else walkers.places
    yield x, trip.ground.spread(x, walkers, dict(zip(kept, rows, strict=True)), trip.draw)


@onward.register(Reshape)
def _(step: Reshape, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    yield step.outputs[0], _reshaped(walkers, step.inputs[0], step.outputs[0])


@back.register(Reshape)
def _(step: Reshape, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    yield step.inputs[0], _reshaped(walkers, step.outputs[0], step.inputs[0])


def _reshaped(walkers: Walkers, before: Signal, after: Signal) -> Walkers:
    index = flat(walkers.places, before.shape, len(walkers.numbers))
    return walkers.at(unflat(index, after.shape))


@onward.register(Permute)
def _(step: Permute, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    yield step.outputs[0], walkers.at(walkers.places[list(step.order)])


@back.register(Permute)
def _(step: Permute, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    yield step.inputs[0], walkers.at(walkers.places[np.argsort(step.order)])


@onward.register(Cut)
def _(step: Cut, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    pieces, possible = [], []
    for output, (start, length, stride) in zip(step.outputs, step.slices, strict=True):
        row, rest = np.divmod(walkers.places[step.dim] - start, stride)
        is_inside = (rest == 0) & (row >= 0) & (row < length)
        places = with_row(walkers.places, step.dim, np.where(is_inside, row, 0))
        pieces.append(np.delete(places, step.dim, 0) if step.drops_dim else places)
        is_alive = is_inside.any() and looked_up(trip.ground.alive[output], pieces[-1])
        possible.append(is_inside & is_alive)
    chosen = one_of(np.stack(possible), trip.draw)
    for choice, part in parted(walkers, chosen):
        yield step.outputs[choice], part.at(pieces[choice][:, chosen == choice])


@back.register(Cut)
def _(step: Cut, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    start, _, stride = step.slices[slot]
    if step.drops_dim:
        rows = np.insert(walkers.places, step.dim, start, axis=0)
    else:
        rows = with_row(walkers.places, step.dim, start + stride * walkers.places[step.dim])
    yield step.inputs[0], walkers.at(rows)


@onward.register(Join)
def _(step: Join, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    (output,) = step.outputs
    row = walkers.places[step.dim]
    starts = [start for index, start in _starts(step) if index == slot]
    pieces = [with_row(walkers.places, step.dim, row + start) for start in starts]
    possible = np.stack([looked_up(trip.ground.alive[output], piece) for piece in pieces])
    chosen = one_of(possible, trip.draw)
    for choice, part in parted(walkers, chosen):
        yield output, part.at(pieces[choice][:, chosen == choice])


@back.register(Join)
def _(step: Join, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    parts = list(_starts(step))
    starts = [start for _, start in parts]
    chosen = np.searchsorted(starts, walkers.places[step.dim], side="right") - 1
    for choice, part in parted(walkers, chosen):
        index, start = parts[choice]
        assert index is not None
        rows = with_row(part.places, step.dim, part.places[step.dim] - start)
        yield step.inputs[index], part.at(rows)


def _starts(step: Join) -> Iterator[tuple[int | None, int]]:
    """Yield the parts that have a length, and where they start."""
    start = 0
    for index, length in step.parts:
        if length:
            yield index, start
        start += length


@onward.register(Copies)
def _(step: Copies, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    (output,), given = step.outputs, step.inputs[slot].shape
    first = sum(x.shape.numel() for x in step.inputs[:slot])
    sources = first + flat(walkers.places, given, len(walkers.numbers))
    copies = trip.ground.copies(step).pick(sources, trip.draw)
    yield output, walkers.at(unflat(copies, output.shape))


@back.register(Copies)
def _(step: Copies, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    index = flat(walkers.places, step.outputs[0].shape, len(walkers.numbers))
    sources = step.source.cpu().numpy().ravel()[index]
    starts = np.cumsum([0, *(x.shape.numel() for x in step.inputs)])
    slots = np.searchsorted(starts, sources, side="right") - 1
    for choice, part in parted(walkers, slots):
        x = step.inputs[choice]
        yield x, part.at(unflat(sources[slots == choice] - starts[choice], x.shape))


@onward.register(Windows)
def _(step: Windows, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    (output,) = step.outputs
    yield output, _through_windows(walkers, step.seen_by, trip.ground.alive[output], trip.draw)


@back.register(Windows)
def _(step: Windows, slot: int, walkers: Walkers, trip: Trip) -> Moves:
    (x,) = step.inputs
    yield x, _through_windows(walkers, step.windows, trip.ground.alive[x], trip.draw)


def _through_windows(
    walkers: Walkers, windows: Mapping[int, Tensor], alive: np.ndarray, draw: Draw
) -> Walkers:
    """Try all places that the windows show, and choose one that is alive."""
    places = walkers.places[:, None]
    possible = np.ones(places.shape[1:], bool)
    for dim, table in windows.items():
        shown = table.cpu().numpy()[walkers.places[dim]].T
        many = places.shape[1]
        row = np.repeat(shown, many, axis=0)
        places = with_row(np.tile(places, (1, len(shown), 1)), dim, row)
        possible = np.tile(possible, (len(shown), 1)) & (row >= 0)
    possible &= looked_up(alive, places)
    chosen = one_of(possible, draw)
    return walkers.at(places[:, chosen, np.arange(len(chosen))])
