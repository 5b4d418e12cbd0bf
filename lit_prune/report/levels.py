"""The levels of sparsity on the way of an iterative run: as a table, and drawn."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from lit_prune.files import as_csv
from lit_prune.report.groups import Cell, Method, Spread, Task, spread
from lit_prune.report.ink import Look, new_figure, set_log
from lit_prune.report.runs import Level, Run, compression

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LEVELS_SIGN", "Station", "drawn", "levels_csv", "stations"]

_COLUMNS = (
    *("path", "task", "method", "target", "seed", "level", "epoch", "kept", "effective_sparsity"),
    *("direct_compression", "effective_compression", "collapsed_layers", "test_accuracy"),
)
# How the file begins.
LEVELS_SIGN = ",".join(_COLUMNS[:4])


class Station(NamedTuple):
    """A level of a method at one rate, over its seeds.

    Attributes:
        direct: all connections / the mean number kept.
        effective: all connections / the mean number of effective ones: infinite if there are none,
            None where it is not known.
        accuracy: of the test at the level's end.
    """

    direct: float
    effective: float | None
    accuracy: Spread


def stations(cell: Cell) -> list[Station]:
    """Return the levels that all finished seeds of a method went through and were tested at.

    Empty if there is only one: that is what tables show anyway.
    """
    numbers = zip(*(run.levels for run in cell.done), strict=False)
    found = [_station(cell.done, levels) for levels in numbers]
    return [station for station in found if station is not None] if len(found) > 1 else []


def _station(runs: Sequence[Run], levels: Sequence[Level]) -> Station | None:
    accuracy = spread(level.test_accuracy for level in levels)
    if accuracy is None or accuracy.n < len(levels):
        return None
    total = _mean(run.total for run in runs)
    direct = compression(total, _mean(level.kept for level in levels))
    left = _mean(_effective(run, level) for run, level in zip(runs, levels, strict=True))
    return None if direct is None else Station(direct, compression(total, left), accuracy)


def _mean(numbers: Iterable[float | None]) -> float | None:
    """Return the mean, if all are known."""
    found = spread(known := list(numbers))
    return found.mean if found is not None and found.n == len(known) else None


def _effective(run: Run, level: Level) -> int | None:
    if level.effective_sparsity is None or run.total is None:
        return None
    return round((1 - level.effective_sparsity) * run.total)


# As a table.


def levels_csv(tasks: Iterable[Task]) -> str:
    """Return a row for every level of every run with settings; compressions of finished ones."""
    rows = (_rows(task, cell) for task in tasks for cell in task.cells)
    return as_csv(_COLUMNS, chain.from_iterable(rows))


def _rows(task: Task, cell: Cell) -> Iterator[Sequence[object]]:
    for run in cell.runs:
        for number, level in enumerate(run.levels):
            left = _effective(run, level)
            yield [
                *(run.path, task.title, cell.method.name, str(cell.rate), run.seed, number),
                *(level.epoch, level.kept, level.effective_sparsity),
                *(compression(run.total, level.kept), compression(run.total, left)),
                *(level.collapsed_layers, level.test_accuracy),
            ]


# Drawn.


def drawn(cells: Sequence[Cell], styles: Mapping[Method, Look]) -> "Figure":
    """Draw accuracy by direct and by effective compression, a line from level to level."""
    figure = new_figure(4.4)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, name in ((left, "direct"), (right, "effective")):
        for cell in cells:
            _draw(axes, stations(cell), name, styles[cell.method])
        set_log(axes, "x")
        axes.set_xlabel(f"{name} compression")
    left.set_ylabel("test accuracy (%)")
    return figure


def _draw(axes: "Axes", along: Sequence[Station], name: str, look: Look) -> None:
    known = [(getattr(station, name), station.accuracy) for station in along]
    points = [(x, accuracy) for x, accuracy in known if x is not None and isfinite(x)]
    axes.plot([x for x, _ in points], [100 * a.mean for _, a in points], **look.line)
    for x, accuracy in points:
        mark = look.mark(is_hollow=False)
        axes.errorbar([x], [100 * accuracy.mean], [100 * (accuracy.std or 0)], **mark)
