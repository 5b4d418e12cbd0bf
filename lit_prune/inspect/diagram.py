"""Diagram: the units and connections of a small network, laid out in columns.

A column is the units on one side of a layer: features of a linear layer, channels of a convolution.
The outputs of a layer and the inputs of the next one are one column if each of these hangs on
exactly one of those, which is found by asking connectivity; else they are two, with a gap between
them, in which signals are added, joined or mixed. So no line is drawn that the network does not
have, whatever it is built of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from glob import escape
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_prune.connectivity import Connectivity
from lit_prune.masks import Masks
from lit_prune.measure import groupings

__all__ = ["Column", "Diagram", "TooLarge", "Wires", "diagram_of", "heights"]

LARGEST, MOST_LAYERS = 20_000, 60
# Sweeps from left to right and back, after which orders hardly change.
_SWEEPS = 12


class TooLarge(Exception):
    """A network that cannot be drawn so that anybody could read it."""


@dataclass(frozen=True)
class Column:
    """The units at one place of the network.

    Attributes:
        kind: what the units are called.
        size: how many there are.
        units: those with a kept connection, by their numbers, in order.
        live: which of these have an effective one.
    """

    kind: str
    size: int
    units: NDArray[np.int64]
    live: NDArray[np.bool_]


@dataclass(frozen=True)
class Wires:
    """The lines of one layer.

    Attributes:
        name: its weight's name.
        source: the number of the column that it comes from; it goes to the next one.
        ends: (lines, 2), the places of both ends among the units of their columns.
        live: which lines stand for an effective connection.
    """

    name: str
    source: int
    ends: NDArray[np.int64]
    live: NDArray[np.bool_]


@dataclass(frozen=True)
class Diagram:
    """What there is to draw: columns from left to right, and a bundle of lines for every layer."""

    columns: tuple[Column, ...]
    wires: tuple[Wires, ...]

    @property
    def gaps(self) -> list[int]:
        """The columns after which there are no lines, since what follows is no unit of theirs."""
        sources = {wires.source for wires in self.wires}
        return [number for number in range(len(self.columns) - 1) if number not in sources]


@dataclass(frozen=True)
class _Layer:
    """One layer by its units: ``pairs`` are (input, output), one line each."""

    name: str
    kind: str
    ins: int
    outs: int
    pairs: NDArray[np.int64]
    live: NDArray[np.bool_]


def diagram_of(
    model: nn.Module, masks: Masks, effective: Masks, inputs: tuple[Tensor, ...]
) -> Diagram:
    """Return the diagram of a network.

    Args:
        model: any module that connectivity can follow.
        masks: what is kept.
        effective: what of it is effective.
        inputs: what the model is called with.

    Raises:
        TooLarge: there are too many lines or layers.
    """
    lines = sum(int(_without_taps(mask).sum()) for mask in masks.values())
    if lines > LARGEST:
        raise TooLarge(f"it would have {lines:,} lines, at most {LARGEST:,} can be drawn")
    if len(masks) > MOST_LAYERS:
        raise TooLarge(f"there are {len(masks)} layers, at most {MOST_LAYERS} can be drawn")
    layers = list(_layers(model, masks, effective))
    probe = _Probe(model, masks, inputs)
    joined = [_joined(*pair, probe) for pair in pairwise(layers)]
    return _assembled(layers, joined)


# Layers as pairs of units.


def _layers(model: nn.Module, masks: Masks, effective: Masks) -> Iterator[_Layer]:
    known = groupings(model)
    for name, mask in masks.items():
        groups, transposed = known.get(name, (1, False))
        rows, columns = mask.shape[0], mask.shape[1] * groups
        ins, outs = (rows, columns) if transposed else (columns, rows)
        pairs = _pairs(mask, groups, transposed)
        alive = _pairs(effective[name], groups, transposed)
        live = np.isin(pairs @ [outs, 1], alive @ [outs, 1])
        kind = "channels" if mask.dim() > 2 else "units"
        yield _Layer(name, kind, ins, outs, pairs, live)


def _pairs(mask: Tensor, groups: int, transposed: bool) -> NDArray[np.int64]:
    """Return the inputs and outputs that a kept connection joins, as (lines, 2)."""
    rows, columns = _without_taps(mask).cpu().numpy().nonzero()
    columns = columns + rows // (mask.shape[0] // groups) * mask.shape[1]
    return np.stack([rows, columns] if transposed else [columns, rows], axis=1).astype(np.int64)


def _without_taps(mask: Tensor) -> Tensor:
    """Return which kernels have a connection at all."""
    return mask.flatten(2).any(2) if mask.dim() > 2 else mask


# Which units of two layers are the same.


class _Probe:
    """Asks a network, all of it kept, which inputs of a layer hang on which outputs of another."""

    def __init__(self, model: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> None:
        names = [escape(name) for name in masks]
        self._groups = groupings(model)
        self._dense = Masks({n: torch.ones_like(mask) for n, mask in masks.items()})
        self._connectivity = Connectivity(model, inputs, "channel", include=names)

    def live_inputs(self, name: str, of: str, outputs: Tensor) -> NDArray[np.bool_]:
        """Return which inputs of ``name`` are live if ``of`` has these ``outputs`` alone."""
        kept = dict(self._dense)
        kept[of] = self._with_outputs(of, outputs)
        mask = self._connectivity.effective(Masks(kept))[name]
        groups, transposed = self._groups.get(name, (1, False))
        ins = mask.shape[0] if transposed else mask.shape[1] * groups
        live = np.zeros(ins, dtype=bool)
        live[_pairs(mask, groups, transposed)[:, 0]] = True
        return live

    def _with_outputs(self, name: str, outputs: Tensor) -> Tensor:
        whole = self._dense[name]
        groups, transposed = self._groups.get(name, (1, False))
        ones = [1] * (whole.dim() - 2)
        if not transposed:
            return whole & outputs.view(-1, 1, *ones)
        rows = outputs.view(groups, 1, -1).expand(-1, whole.shape[0] // groups, -1)
        return whole & rows.reshape(*whole.shape[:2], *ones)


def _joined(first: _Layer, second: _Layer, probe: _Probe) -> NDArray[np.int64] | None:
    """Return, for every input of ``second``, the output of ``first`` that it hangs on.

    The outputs are numbered in binary, and for every digit the network is asked twice, with those
    outputs alone whose digit is 0, and is 1: an input that is live both times hangs on several
    outputs, or on something else.

    Returns:
        None where an input in use hangs on none or on several.
    """
    owners = np.zeros(second.ins, dtype=np.int64)
    used = np.zeros(second.ins, dtype=bool)
    used[second.pairs[:, 0]] = True
    numbers = torch.arange(first.outs)
    # A single output has no digit, and is asked about all the same.
    for digit in range(max((first.outs - 1).bit_length(), 1)):
        is_one = (numbers >> digit & 1).bool()
        ones, zeros = (probe.live_inputs(second.name, first.name, o) for o in (is_one, ~is_one))
        if (ones == zeros)[used].any():
            return None
        owners += ones.astype(np.int64) << digit
    return owners


# Columns.


def _assembled(layers: Sequence[_Layer], joined: Sequence[NDArray[np.int64] | None]) -> Diagram:
    columns: list[Column] = []
    wires: list[Wires] = []
    for layer, owners in zip(layers, [None, *joined], strict=True):
        if owners is None:
            columns.append(Column(layer.kind, layer.ins, *_empty()))
        else:
            layer = _between_owners(layer, owners)
        columns.append(Column(layer.kind, layer.outs, *_empty()))
        source = len(columns) - 2
        columns[source] = _with_ends(columns[source], layer.pairs[:, 0], layer.live)
        columns[-1] = _with_ends(columns[-1], layer.pairs[:, 1], layer.live)
        wires.append(Wires(layer.name, source, layer.pairs, layer.live))
    return Diagram(tuple(columns), tuple(_placed(each, columns) for each in wires))


def _empty() -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)


def _between_owners(layer: _Layer, owners: NDArray[np.int64]) -> _Layer:
    """Draw lines from the units that inputs hang on: one for all positions of a channel."""
    pairs = np.stack([owners[layer.pairs[:, 0]], layer.pairs[:, 1]], axis=1)
    pairs, places = np.unique(pairs, axis=0, return_inverse=True)
    live = np.zeros(len(pairs), dtype=bool)
    live[places.ravel()[layer.live]] = True
    return replace(layer, pairs=pairs, live=live)


def _with_ends(column: Column, ends: NDArray[np.int64], live: NDArray[np.bool_]) -> Column:
    units = np.union1d(column.units, ends)
    alive = np.union1d(column.units[column.live], ends[live])
    return replace(column, units=units, live=np.isin(units, alive))


def _placed(wires: Wires, columns: Sequence[Column]) -> Wires:
    """Number the ends by their places among the units that are drawn."""
    sides = (columns[wires.source], columns[wires.source + 1])
    ends = [np.searchsorted(side.units, wires.ends[:, i]) for i, side in enumerate(sides)]
    return replace(wires, ends=np.stack(ends, axis=1))


# Heights.


def heights(diagram: Diagram) -> list[NDArray[np.float64]]:
    """Return how high each unit of each column stands, 0 to 1.

    Live units stand above all others. Within both, units are sorted by the mean height of those
    that they are connected with, to and fro, so that lines tangle little. The last column keeps the
    order of its numbers.
    """
    bands = _bands(diagram)
    found = [_spread(column, bands, -column.units.astype(float)) for column in diagram.columns]
    by_source = {wires.source: wires for wires in diagram.wires}
    inner = range(1, len(found) - 1)
    for _ in range(_SWEEPS):
        for number in reversed(range(len(found) - 1)):
            _sort(number, number + 1, by_source.get(number), diagram, bands, found)
        for number in inner:
            _sort(number, number - 1, by_source.get(number - 1), diagram, bands, found)
    return found


def _bands(diagram: Diagram) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return bottom and top of the dead units, and of the live ones."""
    live = max(int(column.live.sum()) for column in diagram.columns)
    dead = max(int((~column.live).sum()) for column in diagram.columns)
    if not live or not dead:
        return (0.0, 1.0), (0.0, 1.0)
    border = 1 - min(max(live / (live + dead), 0.25), 0.85)
    return (0.0, border - 0.03), (border + 0.03, 1.0)


def _spread(
    column: Column,
    bands: tuple[tuple[float, float], tuple[float, float]],
    wish: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Set units evenly over their band, in the order of what they wish for."""
    found = np.zeros(len(column.units))
    for is_live, (bottom, top) in enumerate(bands):
        (places,) = np.nonzero(column.live == bool(is_live))
        order = places[np.argsort(wish[places], kind="stable")]
        found[order] = bottom + (top - bottom) * (np.arange(len(order)) + 0.5) / max(len(order), 1)
    return found


def _sort(
    number: int,
    other: int,
    wires: Wires | None,
    diagram: Diagram,
    bands: tuple[tuple[float, float], tuple[float, float]],
    found: list[NDArray[np.float64]],
) -> None:
    """Sort a column by the heights in another one, which it has ``wires`` to."""
    if wires is None:
        return
    column = diagram.columns[number]
    here, there = (0, 1) if other > number else (1, 0)
    # A live unit stands where its live connections lead; its dead ones may go far down.
    counts = wires.live | ~column.live[wires.ends[:, here]]
    ends = wires.ends[counts]
    total = np.bincount(ends[:, here], found[other][ends[:, there]], minlength=len(column.units))
    times = np.bincount(ends[:, here], minlength=len(column.units))
    wish = np.where(times > 0, total / np.maximum(times, 1), found[number])
    found[number] = _spread(column, bands, wish)
