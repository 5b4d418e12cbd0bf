"""Layerwise densities as a map of methods by layers."""

import statistics
from collections.abc import Mapping
from math import log10
from typing import TYPE_CHECKING

from lit_prune.report.groups import Cell
from lit_prune.report.ink import INK, new_figure
from lit_prune.report.runs import Layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["densities", "heat"]

_WITH_NUMBERS = 12  # layers at most


def densities(cell: Cell) -> dict[str, float]:
    """Return the share of connections that is effective in every layer, as a mean over seeds.

    Where it is not known what is effective, what is kept counts.
    """
    shares: dict[str, list[float]] = {}
    for run in cell.done:
        for layer in run.layers:
            shares.setdefault(_short(layer.name), []).append(_left(layer) / max(layer.total, 1))
    return {name: statistics.fmean(found) for name, found in shares.items()}


def _left(layer: Layer) -> int:
    return layer.kept if layer.effective is None else layer.effective


def _short(name: str) -> str:
    return name.removeprefix("backbone.").removesuffix(".weight")


def heat(rows: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Draw shares of one or more methods, the darker the denser, on a scale of logarithms."""
    layers = list(dict.fromkeys(layer for row in rows.values() for layer in row))
    figure = new_figure(1.2 + 0.3 * len(rows) + (0.6 if len(layers) > _WITH_NUMBERS else 0))
    axes = figure.add_subplot()
    shown = [[_log(row.get(layer)) for layer in layers] for row in rows.values()]
    known = [value for row in shown for value in row if value == value]
    low, high = min(known, default=-1.0), max(known, default=0.0)
    mesh = axes.pcolormesh(shown, cmap="cividis", vmin=low, vmax=max(high, low + 1e-3))
    mesh.set_edgecolor("face")
    _set_axes(axes, list(rows), layers)
    if len(layers) <= _WITH_NUMBERS:
        _write_numbers(axes, shown, (low + max(high, low + 1e-3)) / 2)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, format=lambda power, _: _percent(10**power))
    bar.set_label("effective density")
    bar.outline.set_visible(False)
    return figure


def _log(share: float | None) -> float:
    return log10(share) if share else float("nan")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _set_axes(axes: "Axes", methods: list[str], layers: list[str]) -> None:
    is_many = len(layers) > _WITH_NUMBERS
    axes.set_yticks([place + 0.5 for place in range(len(methods))], methods)
    axes.set_xticks(
        [place + 0.5 for place in range(len(layers))], layers, rotation=90 if is_many else 0
    )
    axes.tick_params(length=0, labelsize=8 if is_many else 9)
    axes.invert_yaxis()
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _write_numbers(axes: "Axes", shown: list[list[float]], middle: float) -> None:
    for y, row in enumerate(shown):
        for x, value in enumerate(row):
            is_known = value == value
            text = _percent(10**value) if is_known else "none"
            colour = INK if not is_known else "white" if value < middle else "black"
            axes.text(x + 0.5, y + 0.5, text, color=colour, ha="center", va="center", fontsize=8.5)
