"""The plots of a report, each as an SVG that goes with light and dark pages, and with its words."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import TYPE_CHECKING, Any

from lit_prune.report import levels
from lit_prune.report.cost import training_flops_a_sample
from lit_prune.report.groups import Cell, Method, Task
from lit_prune.report.heat import densities, heat
from lit_prune.report.ink import INK, Look, as_svg, looks, new_figure, set_log, strip, styled
from lit_prune.report.names import DENSE
from lit_prune.report.rates import Rate
from lit_prune.report.runs import Run, compression

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "pictures"]

Number = Callable[[Cell], float | None]


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        title: what it shows.
        caption: how to read it, and of how many seeds it is.
        svg: the picture, without a name of a file or a place in the network.
        words: what somebody is told who cannot see it.
    """

    title: str
    caption: str
    svg: str
    words: str


def pictures(task: Task) -> list[Picture]:
    """Return the figures of a task, those without anything to show left out."""
    styles = looks(task.methods)
    with styled():
        found = [_accuracy(task, styles, is_effective) for is_effective in (False, True)]
        found += [_levels(task, styles), _gap(task, styles)]
        found += [_layers(task, is_effective) for is_effective in (False, True)]
        found += [_cost(task, styles)]
    return [picture for picture in found if picture is not None]


# Accuracy.


def _direct(cell: Cell) -> float | None:
    return cell.direct_compression


def _effective(cell: Cell) -> float | None:
    return cell.effective_compression


def _accuracy(task: Task, styles: dict[Method, Look], is_effective: bool) -> Picture | None:
    """Draw accuracy by direct and by effective compression."""
    cells = [c for c in _pruned(task) if c.rate.is_effective == is_effective and c.accuracy]
    if not cells:
        return None
    figure = new_figure(4.4)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, number, name in ((left, _direct, "direct"), (right, _effective, "effective")):
        _set_compressions(axes, cells, f"{name} compression")
        _draw_dense(axes, task)
        for method in task.methods:
            _draw_line(axes, [c for c in cells if c.method == method], number, styles[method])
    left.set_ylabel("test accuracy (%)")
    _add_legend(figure, cells, styles, _has_dense(task))
    kind = "effective" if is_effective else "direct"
    return Picture(
        f"Accuracy, {kind} targets",
        f"Means over seeds with one standard deviation; {_n(cells)}. A hollow marker has "
        "collapsed seeds; a triangle at the right edge has nothing effective left in any.",
        as_svg(figure),
        f"Test accuracy by compression, of runs with {kind} targets. {_in_words(cells)}",
    )


def _set_compressions(axes: "Axes", cells: Sequence[Cell], label: str) -> None:
    known = [x for c in cells for x in (_direct(c), _effective(c)) if x and isfinite(x)]
    low, high = min(known, default=1), max(known, default=10)
    axes.set_xlim(low / 1.25, max(high, low * 3) * 2)
    set_log(axes, "x")
    axes.set_xlabel(label)


def _draw_line(axes: "Axes", cells: Sequence[Cell], number: Number, look: Look) -> None:
    """Draw the cells of a method in the order of their compressions."""
    edge = axes.get_xlim()[1] / 1.12
    points = sorted(_points(cells, number), key=lambda point: point[0])
    inside = [point for point in points if isfinite(point[0])]
    axes.plot([p[0] for p in inside], [p[1] for p in inside], **look.line)
    for x, mean, std, is_hollow in points:
        is_out = not isfinite(x)
        marker = {**look.mark(is_hollow), **({"marker": ">"} if is_out else {})}
        axes.errorbar([edge if is_out else x], [mean], [std], **marker)


def _points(cells: Sequence[Cell], number: Number) -> Iterator[tuple[float, float, float, bool]]:
    for cell in cells:
        x, accuracy = number(cell), cell.accuracy
        if x is not None and accuracy is not None:
            std = 100 * (accuracy.std or 0)
            yield x, 100 * accuracy.mean, std, any(not r.effective_kept for r in _known(cell))


def _known(cell: Cell) -> list[Run]:
    return [run for run in cell.done if run.effective_kept is not None]


def _pruned(task: Task) -> list[Cell]:
    return [cell for cell in task.cells if cell.method.family != DENSE and cell.done]


def _has_dense(task: Task) -> bool:
    return any(cell.method.family == DENSE and cell.accuracy for cell in task.cells)


def _draw_dense(axes: "Axes", task: Task) -> None:
    for cell in task.cells:
        if cell.method.family == DENSE and cell.accuracy:
            axes.axhline(100 * cell.accuracy.mean, color=INK, linestyle=":", linewidth=1, zorder=1)


def _add_legend(
    figure: "Figure", cells: Sequence[Cell], styles: dict[Method, Look], has_dense: bool = False
) -> None:
    from matplotlib.lines import Line2D

    methods = list(dict.fromkeys(cell.method for cell in sorted(cells, key=_by_method)))
    handles: list[Any] = [
        Line2D([], [], label=m.name, **styles[m].line, **styles[m].dot) for m in methods
    ]
    if has_dense:
        handles.append(Line2D([], [], label="dense", color=INK, linestyle=":", linewidth=1))
    columns = 1 if len(handles) <= 22 else 2
    figure.legend(handles=handles, loc="outside right upper", ncols=columns, handlelength=3)


def _by_method(cell: Cell) -> tuple[str, str]:
    return cell.method.family, cell.method.name


def _n(cells: Sequence[Cell]) -> str:
    """Say of how many seeds points are.

    Examples:
        >>> _n([])
        'n = 0'
    """
    numbers = sorted({len(cell.done) for cell in cells})
    if len(numbers) < 2:
        return f"n = {numbers[0] if numbers else 0}"
    few = sum(len(cell.done) < numbers[-1] for cell in cells)
    return f"n = {numbers[-1]}, but {few} of {len(cells)} points have fewer, from {numbers[0]}"


def _in_words(cells: Sequence[Cell]) -> str:
    parts = [
        f"{cell.method.name} at {cell.rate}: {100 * cell.accuracy.mean:.1f} %"
        for cell in sorted(cells, key=lambda cell: (cell.method.name, cell.rate))
        if cell.accuracy
    ]
    return "; ".join(parts) + "."


# Levels.


def _levels(task: Task, styles: dict[Method, Look]) -> Picture | None:
    """Draw accuracy along the levels of iterative runs."""
    cells = [cell for cell in task.cells if levels.stations(cell)]
    if not cells:
        return None
    figure = levels.drawn(cells, styles)
    _add_legend(figure, cells, styles)
    return Picture(
        "Accuracy along the levels of iterative runs",
        f"A marker is the end of a level: means over seeds with one deviation; {_n(cells)}. All "
        "levels are in levels.csv.",
        as_svg(figure),
        "Test accuracy by direct compression, level by level. "
        + "; ".join(f"{c.method.name} to {c.rate}: {_levels_in_words(c)}" for c in cells)
        + ".",
    )


def _levels_in_words(cell: Cell) -> str:
    along = levels.stations(cell)
    return ", ".join(f"{100 * s.accuracy.mean:.1f} % at {s.direct:.3g}x" for s in along)


# The gap.


def _gap(task: Task, styles: dict[Method, Look]) -> Picture | None:
    """Draw effective by direct compression, a dot for every run."""
    cells = [cell for cell in _pruned(task) if _known(cell)]
    if not cells:
        return None
    kinds = sorted({cell.rate.is_effective for cell in cells})
    figure = new_figure(4.4)
    grid = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    for axes, is_effective in zip(grid, kinds, strict=True):
        shown = [cell for cell in cells if cell.rate.is_effective == is_effective]
        _set_gap(axes, cells)
        axes.set_title(f"{'effective' if is_effective else 'direct'} targets")
        for method in task.methods:
            _draw_gap(axes, [cell for cell in shown if cell.method == method], styles[method])
    grid[0].set_ylabel("effective compression")
    _add_legend(figure, cells, styles)
    return Picture(
        "The gap between direct and effective compression",
        f"Lines are of means over seeds, small dots are runs; {_n(cells)}. On the dotted line all "
        "that is kept is effective. A triangle at the upper edge has nothing effective left.",
        as_svg(figure),
        "Effective by direct compression. "
        + "; ".join(f"{c.method.name} at {c.rate}: {_gap_in_words(c)}" for c in cells)
        + ".",
    )


def _gap_in_words(cell: Cell) -> str:
    return f"{cell.direct_compression:.4g} direct, {cell.effective_compression:.4g} effective"


def _set_gap(axes: "Axes", cells: Sequence[Cell]) -> None:
    runs = [run for cell in cells for run in _known(cell)]
    direct = [x for run in runs if (x := compression(run.total, run.kept)) and isfinite(x)] or [1.0]
    known = [x for run in runs if (x := compression(run.total, run.effective_kept)) and isfinite(x)]
    low, high = min([*direct, *known]), max([*direct, *known])
    axes.set_xlim(low / 1.25, max(direct) * 1.25)
    axes.set_ylim(low / 1.25, high * 4)
    set_log(axes, "x")
    set_log(axes, "y")
    axes.set_xlabel("direct compression")
    ends = [low / 1.25, high * 4]
    axes.plot(ends, ends, ":", color=INK, linewidth=1, zorder=1)


def _draw_gap(axes: "Axes", cells: Sequence[Cell], look: Look) -> None:
    edge = axes.get_ylim()[1] / 1.25
    for cell in cells:
        for run in _known(cell):
            x, y = compression(run.total, run.kept), compression(run.total, run.effective_kept)
            if x is None or y is None or not isfinite(x):
                continue
            marker = {"marker": "."} if isfinite(y) else {"marker": "^", "markerfacecolor": "none"}
            dot: dict[str, Any] = {"markersize": 5, "alpha": 0.75, "linestyle": "", **marker}
            axes.plot([x], [y if isfinite(y) else edge], color=look.colour, **dot)
    means = [(c.direct_compression, c.effective_compression) for c in cells]
    inside = sorted((x, y) for x, y in means if x and y and isfinite(x) and isfinite(y))
    axes.plot([x for x, _ in inside], [y for _, y in inside], **look.line, **look.dot)


# Layers.


def _layers(task: Task, is_effective: bool) -> Picture | None:
    rate = _most_shared([r for r in task.rates if r.is_effective == is_effective], task)
    if rate is None:
        return None
    rows = {cell.method.name: densities(cell) for cell in task.at(rate)}
    rows = {name: of for name, of in rows.items() if of}
    cells = [cell for cell in task.at(rate) if cell.method.name in rows]
    words = "; ".join(
        f"{name}: " + ", ".join(f"{layer} {100 * share:.2g} %" for layer, share in of.items())
        for name, of in rows.items()
    )
    return Picture(
        f"Layerwise densities at {rate}",
        f"Effective connections of each layer, as a share of all, means over seeds; {_n(cells)}. A "
        "blank field has none.",
        as_svg(heat(rows)),
        f"Share of effective connections by method and layer. {words}.",
    )


def _most_shared(rates: Sequence[Rate], task: Task) -> Rate | None:
    """Return the rate of which most methods know their layers, the nearest to 100x of several."""
    numbers = {
        rate: sum(bool(densities(cell)) for cell in task.at(rate))
        for rate in rates
        if not rate.is_dense
    }
    known = {rate: number for rate, number in numbers.items() if number}
    return max(known, key=lambda r: (known[r], -abs(r.sparsity - 0.99)), default=None)


# Cost.


def _cost(task: Task, styles: dict[Method, Look]) -> Picture | None:
    """Draw seconds and FLOPs, a dot for every run."""
    cells = [cell for cell in task.cells if cell.done]
    if not cells:
        return None
    methods = sorted({cell.method for cell in cells}, key=lambda m: (m.family, m.name))
    places = dict(zip(methods, count()))
    figure = new_figure(1.2 + 0.26 * len(methods))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, number in ((left, lambda r: r.seconds), (right, _flops)):
        for cell in cells:
            numbers = [found for run in cell.done if (found := number(run))]
            strip(axes, numbers, places[cell.method], styles[cell.method])
        set_log(axes, "x", plain=axes is left)
    left.set_yticks(list(places.values()), [method.name for method in methods])
    left.set_ylim(len(methods) - 0.5, -0.5)
    left.set_xlabel("seconds of training and tests")
    right.set_xlabel("FLOPs of training, a sample")
    dots = sum(len(cell.done) for cell in cells)
    return Picture(
        "Cost",
        f"A dot is a run, at whatever target; n = {dots} runs in all. FLOPs are those of a pass "
        "forward through what was effective, times three, over all epochs; scoring is left out.",
        as_svg(figure),
        "Seconds of each method. "
        + "; ".join(f"{c.method.name} at {c.rate}: {c.seconds:.3g} s" for c in cells if c.seconds)
        + ".",
    )


def _flops(run: Run) -> float | None:
    return training_flops_a_sample(run)
