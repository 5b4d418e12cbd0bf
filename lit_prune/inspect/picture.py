"""The picture of a diagram: what is live, and what is kept and dead."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_prune.inspect.diagram import Column, Diagram, Wires, heights
from lit_prune.inspect.layer_table import plain_names
from lit_prune.measure import Measurement
from lit_prune.targets import times

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
# As many columns stand in a row.
_COLUMNS = 8
# Sizes in inches.
_INCH = {"head": 0.7, "row": 6.6, "legend": 0.7, "column": 2.3}
_GAPS = "Where no lines go from one column to the next, signals are added, joined or mixed."


def as_bytes(figure: "Figure", form: str, command: str) -> bytes:
    """Return the figure as a file; ``command`` goes into its metadata."""
    from matplotlib import rc_context

    content = io.BytesIO()
    metadata = {_DESCRIBED_BY[form]: command, **FORMS[form]}
    with rc_context({"svg.hashsalt": "lit_prune", "svg.fonttype": "none"}):
        figure.savefig(content, format=form, metadata=metadata)
    return content.getvalue()


def drawn(diagram: Diagram, measurement: Measurement, title: str) -> "Figure":
    """Return a figure: columns of units with live and dead lines between them, and their counts.

    Many columns are drawn in several rows, of which each has axes of its own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _rows(diagram)
    width = max(_INCH["column"] * max(map(len, rows)), 8) + 1
    height = _INCH["head"] + _INCH["row"] * len(rows) + _INCH["legend"]
    figure = Figure(figsize=(width, height), dpi=125)
    FigureCanvasAgg(figure)
    places = heights(diagram)
    for number, row in enumerate(rows):
        bottom = _INCH["legend"] + _INCH["row"] * (len(rows) - 1 - number)
        axes = figure.add_axes((0.02, bottom / height, 0.96, _INCH["row"] / height))
        axes.set_axis_off()
        axes.set_xlim(row[0] - 0.45, row[0] + max(map(len, rows)) - 0.55)
        axes.set_ylim(-0.18, 1.27)
        _draw_lines(axes, diagram, places, row)
        _draw_units(axes, diagram, places, row)
        _name_layers(axes, diagram, measurement, row)
        _name_columns(axes, diagram, places, row)
    _head(figure, title, measurement)
    _add_legend(figure, diagram)
    return figure


def _rows(diagram: Diagram) -> list[range]:
    """Return the columns of each row, which ends at a gap or is taken up at its last column."""
    rows: list[range] = []
    first, last = 0, len(diagram.columns) - 1
    while first < last:
        end = min(first + _COLUMNS - 1, last)
        gaps = [gap for gap in diagram.gaps if first < gap <= end]
        end = gaps[-1] if gaps and end < last else end
        rows.append(range(first, end + 1))
        first = end + 1 if end in diagram.gaps else end
    return rows


def _draw_lines(
    axes: "Axes", diagram: Diagram, places: Sequence[NDArray[np.float64]], row: range
) -> None:
    """Draw the lines of the layers between the columns of a row; the rarer kind lies on top."""
    from matplotlib.collections import LineCollection

    for wires in _inside(diagram, row):
        starts, ends = wires.ends.T
        left, right = places[wires.source][starts], places[wires.source + 1][ends]
        xs = np.broadcast_to([wires.source, wires.source + 1.0], (len(wires.ends), 2))
        segments = np.stack([xs, np.stack([left, right], axis=1)], axis=2)
        for is_live, name, colour in ((False, "dead", DEAD), (True, "live", LIVE)):
            chosen = list(segments[wires.live == is_live])
            lines = LineCollection(
                chosen, colors=colour, alpha=0.85, linewidths=_width(len(chosen))
            )
            lines.set_zorder(2 if len(chosen) <= len(segments) / 2 else 1)
            lines.set_gid(f"{name} {wires.name}")
            axes.add_collection(lines)


def _inside(diagram: Diagram, row: range) -> list[Wires]:
    return [wires for wires in diagram.wires if row[0] <= wires.source < row[-1]]


def _width(lines: int) -> float:
    """Return how thick lines are in points: the thinner, the more there are."""
    return float(np.clip(11 / max(lines, 1) ** 0.5, 0.15, 2))


def _draw_units(
    axes: "Axes", diagram: Diagram, places: Sequence[NDArray[np.float64]], row: range
) -> None:
    for number in row:
        column = diagram.columns[number]
        for is_live, name, look in ((False, "dead", _dead_unit()), (True, "live", _live_unit())):
            ys = places[number][column.live == is_live]
            size = np.clip(1500 / max(len(ys), 1), 4, 50)
            dots = axes.scatter(np.full(len(ys), float(number)), ys, size, zorder=3, **look)
            dots.set_gid(f"{name} units {number}")


def _live_unit() -> dict[str, Any]:
    return {"color": LIVE, "linewidths": 0}


def _dead_unit() -> dict[str, Any]:
    return {"facecolors": "white", "edgecolors": DEAD, "linewidths": 0.6}


def _name_layers(axes: "Axes", diagram: Diagram, measurement: Measurement, row: range) -> None:
    """Write above the lines of each layer what it is called, and what is left of it."""
    layers = {layer.name: layer for layer in measurement.layers}
    short = dict(zip(layers, plain_names(list(layers)), strict=True))
    for wires in _inside(diagram, row):
        layer, x = layers[wires.name], wires.source + 0.5
        text = f"{layer.kept:,} of {layer.total:,} kept\n{layer.effective:,} effective"
        axes.text(x, 1.15, short[wires.name], ha="center", va="bottom", fontsize=11, weight="bold")
        axes.text(x, 1.14, text, ha="center", va="top", fontsize=9, linespacing=1.4)


def _name_columns(
    axes: "Axes", diagram: Diagram, places: Sequence[NDArray[np.float64]], row: range
) -> None:
    """Write below each column what it is and how many units it has, and number few outputs."""
    last = len(diagram.columns) - 1
    ends = {0: "input ", last: "output "}
    for number in row:
        text = _about(diagram.columns[number], ends.get(number, ""))
        axes.text(number, -0.03, text, ha="center", va="top", fontsize=9, linespacing=1.4)
    if last in row and diagram.columns[last].size <= _NUMBERED:
        for unit, y in zip(diagram.columns[last].units, places[last], strict=True):
            axes.text(last + 0.06, y, str(unit), va="center", fontsize=9)


def _about(column: Column, end: str) -> str:
    live, shown = int(column.live.sum()), len(column.units)
    kind = column.kind if column.size != 1 else column.kind.removesuffix("s")
    lines = [f"{column.size:,} {end}{kind}", f"{live:,} live, {shown - live:,} dead"]
    if left_out := column.size - shown:
        lines.append(f"{left_out:,} unconnected: not drawn")
    return "\n".join(lines)


def _head(figure: "Figure", title: str, measurement: Measurement) -> None:
    total = sum(row.total for row in measurement.layers)
    kept = sum(row.kept for row in measurement.layers)
    effective = int(measurement.totals()["effective_kept"] or 0)
    text = f"{kept:,} of {total:,} connections are kept ({_times(total, kept)}), "
    text += f"{effective:,} are effective ({_times(total, effective)})"
    inch = 1 / figure.get_figheight()
    figure.text(0.5, 1 - 0.25 * inch, title, ha="center", va="center", fontsize=13, weight="bold")
    figure.text(0.5, 1 - 0.55 * inch, text, ha="center", va="center", fontsize=10.5)


def _times(total: int, left: int) -> str:
    return times(total / left) if left else "none left"


def _add_legend(figure: "Figure", diagram: Diagram) -> None:
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
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=10.5)
    if diagram.gaps:
        height = 0.55 / figure.get_figheight()
        figure.text(0.5, height, _GAPS, ha="center", va="center", fontsize=9.5)
