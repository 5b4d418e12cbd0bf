"""The picture of a diagram: what is live, and what is kept and dead."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_prune.inspect.diagram import Column, Diagram, heights
from lit_prune.inspect.layer_table import plain_names, times
from lit_prune.measure import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DEAD", "FORMS", "LIVE", "as_bytes", "drawn"]

# Of Okabe and Ito, whose colours colour-blind people can tell apart.
LIVE, DEAD = "#0072B2", "#D55E00"
# What each form of file says of its origin; without a date, so that equal pictures are equal files.
FORMS: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
_DESCRIBED_BY = {"png": "Description", "svg": "Description", "pdf": "Subject"}
# Outputs are numbered where there are so few.
_NUMBERED = 20


def as_bytes(figure: "Figure", form: str, command: str) -> bytes:
    """Return the figure as a file; ``command`` goes into its metadata."""
    from matplotlib import rc_context

    content = io.BytesIO()
    metadata = {_DESCRIBED_BY[form]: command, **FORMS[form]}
    with rc_context({"svg.hashsalt": "lit_prune", "svg.fonttype": "none"}):
        figure.savefig(content, format=form, metadata=metadata)
    return content.getvalue()


def drawn(diagram: Diagram, measurement: Measurement, title: str) -> "Figure":
    """Return a figure: columns of units, live lines over dead ones, and what they count."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(2.3 * len(diagram.columns), 8) + 1, 8), dpi=125)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.0, 0.96, 1.0))
    axes.set_axis_off()
    axes.set_xlim(-0.45, len(diagram.columns) - 0.55)
    axes.set_ylim(-0.27, 1.3)
    places = heights(diagram)
    _draw_lines(axes, diagram, places)
    _draw_units(axes, diagram, places)
    _name_layers(axes, diagram, measurement)
    _name_columns(axes, diagram, places)
    _head(axes, title, measurement)
    _add_legend(axes, diagram)
    return figure


def _draw_lines(axes: "Axes", diagram: Diagram, places: Sequence[NDArray[np.float64]]) -> None:
    from matplotlib.collections import LineCollection

    for wires in diagram.wires:
        starts, ends = wires.ends.T
        left, right = places[wires.source][starts], places[wires.source + 1][ends]
        xs = np.broadcast_to([wires.source, wires.source + 1.0], (len(wires.ends), 2))
        segments = np.stack([xs, np.stack([left, right], axis=1)], axis=2)
        for is_live, colour in ((False, DEAD), (True, LIVE)):
            chosen = list(segments[wires.live == is_live])
            width = _width(len(chosen))
            lines = LineCollection(
                chosen, colors=colour, linewidths=width, alpha=0.85, zorder=1 + is_live
            )
            lines.set_gid(f"{'live' if is_live else 'dead'} {wires.name}")
            axes.add_collection(lines)


def _width(lines: int) -> float:
    """Return how thick lines are in points: the thinner, the more there are."""
    return float(np.clip(11 / max(lines, 1) ** 0.5, 0.15, 2))


def _draw_units(axes: "Axes", diagram: Diagram, places: Sequence[NDArray[np.float64]]) -> None:
    for number, (column, place) in enumerate(zip(diagram.columns, places, strict=True)):
        size = np.clip(1500 / max(len(column.units), 1), 4, 50)
        for is_live, look in ((False, _dead_unit()), (True, _live_unit())):
            ys = place[column.live == is_live]
            dots = axes.scatter(np.full(len(ys), float(number)), ys, size, zorder=3, **look)
            dots.set_gid(f"{'live' if is_live else 'dead'} units {number}")


def _live_unit() -> dict[str, Any]:
    return {"color": LIVE, "linewidths": 0}


def _dead_unit() -> dict[str, Any]:
    return {"facecolors": "white", "edgecolors": DEAD, "linewidths": 0.6}


def _name_layers(axes: "Axes", diagram: Diagram, measurement: Measurement) -> None:
    """Write above the lines of each layer what it is called, and what is left of it."""
    rows = {row.name: row for row in measurement.layers}
    names = plain_names(list(rows))
    for name, row in zip(names, rows.values(), strict=True):
        (wires,) = (wires for wires in diagram.wires if wires.name == row.name)
        x = wires.source + 0.5
        axes.text(x, 1.135, name, ha="center", va="bottom", fontsize=11, fontweight="bold")
        text = f"{row.kept:,} of {row.total:,} kept\n{row.effective:,} effective"
        axes.text(x, 1.125, text, ha="center", va="top", fontsize=9, linespacing=1.4)


def _name_columns(axes: "Axes", diagram: Diagram, places: Sequence[NDArray[np.float64]]) -> None:
    """Write below each column what it is and how many units it has, and number few outputs."""
    last = len(diagram.columns) - 1
    for number, column in enumerate(diagram.columns):
        name = {0: f"input {column.kind}", last: f"output {column.kind}"}.get(number, column.kind)
        axes.text(
            number, -0.03, _about(column, name), ha="center", va="top", fontsize=9, linespacing=1.4
        )
    if diagram.columns[last].size <= _NUMBERED:
        for unit, y in zip(diagram.columns[last].units, places[last], strict=True):
            axes.text(last + 0.06, y, str(unit), va="center", fontsize=9)


def _about(column: Column, name: str) -> str:
    live, drawn_units = int(column.live.sum()), len(column.units)
    lines = [f"{column.size:,} {name}", f"{live:,} live, {drawn_units - live:,} dead"]
    if left_out := column.size - drawn_units:
        lines.append(f"{left_out:,} unconnected: not drawn")
    return "\n".join(lines)


def _head(axes: "Axes", title: str, measurement: Measurement) -> None:
    total = sum(row.total for row in measurement.layers)
    kept = sum(row.kept for row in measurement.layers)
    effective = int(measurement.totals()["effective_kept"] or 0)
    middle = sum(axes.get_xlim()) / 2
    text = " of ".join([f"{kept:,}", f"{total:,} connections are kept ({_times(total, kept)})"])
    text += f", {effective:,} are effective ({_times(total, effective)})"
    axes.text(middle, 1.265, title, ha="center", va="center", fontsize=13, fontweight="bold")
    axes.text(middle, 1.22, text, ha="center", va="center", fontsize=10.5)


def _times(total: int, left: int) -> str:
    return times(total / left) if left else "none left"


def _add_legend(axes: "Axes", diagram: Diagram) -> None:
    from matplotlib.lines import Line2D

    what = "kernel" if any(c.kind == "channels" for c in diagram.columns) else "connection"

    def line(label: str, colour: str) -> Line2D:
        return Line2D([], [], label=label, color=colour, linewidth=2.5)

    def dot(label: str, face: str, edge: str) -> Line2D:
        dot = Line2D([], [], label=label, marker="o", linestyle="", markersize=6)
        dot.set(markerfacecolor=face, markeredgecolor=edge)
        return dot

    handles = [
        line(f"live {what}: on a path", LIVE),
        dot("live unit", LIVE, LIVE),
        line(f"dead {what}: kept, but on no path", DEAD),
        dot("dead unit", "white", DEAD),
    ]
    axes.legend(
        handles=handles,
        loc="lower center",
        ncols=4,
        frameon=False,
        fontsize=10.5,
        borderaxespad=0.2,
    )
    if diagram.gaps:
        text = "Where no lines go from one column to the next, signals are added, joined or mixed."
        axes.text(sum(axes.get_xlim()) / 2, -0.19, text, ha="center", va="center", fontsize=9)
