"""Writes docs/results/ from run folders and curves, and its tables and its figure.

    make results DATA=DIR     # runs what has not been run, then this
    python docs/make_results.py

The tables stand in docs/results.md. Without run folders they are written anew from the files that
are there. Cells are means over seeds, with the sample standard deviation.
"""

import csv
import json
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
RUNS = Path("runs") / "sweeps"
ROWS = DOCS / "results" / "mnist_lenet300100.csv"
TRAINED = DOCS / "results" / "cifar10_resnet20_trained.csv"
CURVES, NETWORKS = Path("curves"), ("resnet20", "vgg16", "floor_vgg16")
SWEEPS = ("mnist_dense", "mnist_lenet300100", "mnist_threshold", "mnist_controls")
METHODS = {
    "random_uniform": "random, uniform",
    "random_erk": "random, ERK",
    "random_igq": "random, IGQ",
    "magnitude": "magnitude, global",
    "lamp": "magnitude, LAMP",
    "magnitude_erk": "magnitude, ERK",
    "magnitude_igq": "magnitude, IGQ",
    "snip": "SNIP",
    "iterative_snip": "iterative SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
}
CRITERIA = (
    *("Random", "Magnitude", "LAMP", "Taylor", "Wanda", "SNIP", "GraSP", "SynFlow"),
    *("FORCE", "PHEW", "NPB", "NPBSynFlow"),
)
CONTROLS = {"": "", "shuffled_": ", shuffled", "reinitialised_": ", new weights"}
COMPRESSIONS = ("10x", "31.6x", "100x", "316x", "1000x")
_FOUND = (
    *("test_accuracy", "total", "kept", "effective_kept", "direct_sparsity", "effective_sparsity"),
    *("direct_compression", "effective_compression", "collapsed_layers", "seconds", "git_commit"),
)
_OF_THIS_PLACE = re.compile(r" --run_dir \S+")

Row = Mapping[str, str]


def main() -> None:
    """Write the rows, if there are runs, and the tables."""
    for file, sweeps in ((ROWS, SWEEPS), (TRAINED, ("cifar10_resnet20",))):
        if any((RUNS / sweep).exists() for sweep in sweeps):
            write_rows(file, list(gathered(sweeps)))
    for network in NETWORKS:
        if any(_curves_of(network)):
            write_rows(_points(network), list(joined(network)))
    page = DOCS / "results.md"
    page.write_text(with_tables(page.read_text(), read_rows()))
    figure(read_rows()).savefig(DOCS / "images" / "mnist_lenet300100.png", dpi=110)


# From run folders to rows.


def gathered(sweeps: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for every finished run of the sweeps."""
    for sweep in sweeps:
        for file in sorted((RUNS / sweep).glob("*/summary.json")):
            yield _row(sweep, file.parent)


def _row(sweep: str, folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "levels.csv").open() as file:
        collapsed = list(csv.DictReader(file))[-1]["collapsed_layers"]
    labels = dict(part.split("=", 1) for part in folder.name.split(","))
    versions = "; ".join(f"{name} {number}" for name, number in summary["versions"].items())
    return {
        "sweep": sweep,
        "method": labels.get("config", "magnitude" if "floor" in labels else "dense"),
        "floor": labels.get("floor", ""),
        "target": labels.get("target", "1x").replace("_", " "),
        "seed": summary["seed"],
        **{key: collapsed if key == "collapsed_layers" else summary[key] for key in _FOUND},
        "versions": versions,
        "command": _OF_THIS_PLACE.sub("", _plain(summary["command"])),
    }


def _plain(command: str) -> str:
    """Write each option that has a value as two words, quoted where a shell needs it."""
    words = [part for word in shlex.split(command) for part in _parts(word)]
    return shlex.join(words)


def _parts(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows, a line each."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path = ROWS) -> list[dict[str, str]]:
    """Return the rows as they stand in the file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def joined(network: str) -> Iterator[dict[str, str]]:
    """Yield the points of all curves of a network on CIFAR-10."""
    rows = [row for file in _curves_of(network) for row in read_rows(file)]
    yield from sorted(rows, key=lambda row: CRITERIA.index(row["criterion"]))


def _curves_of(network: str) -> list[Path]:
    return sorted(CURVES.glob(f"{network}*/curve.csv"))


def _points(network: str) -> Path:
    return DOCS / "results" / f"cifar10_{network}.csv"


# From rows to tables.


def with_tables(page: str, rows: Sequence[Row]) -> str:
    """Return ``page`` with each table written anew between its two marks."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: by docs/make_results.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        assert len(pattern.findall(page)) == 1, f"{name} has no place in the page, or two"
        before, after = pattern.split(page)
        page = f"{before}{begin}\n\n{table(rows)}\n\n{end}{after}"
    return page


def _direct(rows: Sequence[Row]) -> str:
    return _by_target(rows, COMPRESSIONS, lambda found: f"{_accuracy(found)} ({_times(found)})")


def _effective(rows: Sequence[Row]) -> str:
    targets = [f"{compression} effective" for compression in COMPRESSIONS]
    return _by_target(rows, targets, lambda found: f"{_accuracy(found)} ({_times(found, 'kept')})")


def _by_target(
    rows: Sequence[Row], targets: Sequence[str], cell: Callable[[list[Row]], str]
) -> str:
    main_rows = [row for row in rows if row["sweep"] == "mnist_lenet300100"]
    lines = [
        [name, *(cell(_of(main_rows, method=method, target=target)) for target in targets)]
        for method, name in METHODS.items()
    ]
    return _markdown(["method", *(target.removesuffix(" effective") for target in targets)], lines)


def _threshold(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row["sweep"] == "mnist_threshold"]
    lines = [
        [target, floor, *_fate(_of(found, floor=floor, target=target))]
        for target in ("316x", "1000x", "3160x")
        for floor in ("0", "0.01%")
    ]
    head = ["target", "floor", "effective connections", "collapsed runs", "accuracy"]
    return _markdown(head, lines)


def _controls(rows: Sequence[Row]) -> str:
    kinds = [
        (f"{kind}{method}", f"{name}{said}")
        for method, name in (("snip", "SNIP"), ("synflow", "SynFlow"))
        for kind, said in CONTROLS.items()
    ]
    targets = ("10x", "100x", "1000x")
    lines = [
        [
            name,
            *(
                f"{_accuracy(found)} ({_times(found)})"
                for found in (_of(rows, method=kind, target=target) for target in targets)
            ),
        ]
        for kind, name in kinds
    ]
    return _markdown(["method", *targets], lines)


def _curves(network: str) -> str:
    points = read_rows(_points(network))
    pairs = dict.fromkeys((row["criterion"], row["quota"]) for row in points)
    lines = [
        [criterion, quota, *_along(_of(points, criterion=criterion, quota=quota))]
        for criterion, quota in pairs
    ]
    return _markdown(["criterion", "quota", *COMPRESSIONS], lines)


def _floors() -> str:
    lines = [
        [floor, *_along(_of(read_rows(_points(name)), criterion="Magnitude", quota="global"))]
        for floor, name in (("none", "vgg16"), ("0.005%", "floor_vgg16"))
    ]
    return _markdown(["floor", *COMPRESSIONS], lines)


def _trained() -> str:
    rows, targets = read_rows(TRAINED), ("10x effective", "100x effective")
    lines = [["dense (1x)", *[_accuracy(_of(rows, method="dense"))] * len(targets)]]
    for method, name in METHODS.items():
        found = [_of(rows, method=method, target=target) for target in targets]
        if any(found):
            lines.append([name, *(f"{_accuracy(of)} ({_times(of, 'kept')})" for of in found)])
    return _markdown(["method", *targets], lines)


def _along(points: Sequence[Row]) -> Iterator[str]:
    """Yield the effective compression at each direct one."""
    for asked in COMPRESSIONS:
        near = [
            p for p in points if abs(float(p["direct_compression"]) / float(asked[:-1]) - 1) < 0.02
        ]
        yield _times(near) if near else "-"


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "direct": _direct,
    "effective": _effective,
    "threshold": _threshold,
    "controls": _controls,
    "ResNet-20": lambda _: _curves("resnet20"),
    "VGG-16": lambda _: _curves("vgg16"),
    "floors of VGG-16": lambda _: _floors(),
    "ResNet-20, trained": lambda _: _trained(),
}


# From rows to the figure.

_LOOKS = {
    "random": ("tab:gray", "o"),
    "magnitude": ("tab:green", "s"),
    "SNIP": ("tab:blue", "^"),
    "iterative SNIP": ("tab:cyan", "v"),
    "GraSP": ("tab:purple", "D"),
    "SynFlow": ("tab:red", "P"),
}
_LINES: dict[str, Any] = {
    "": "-",
    "uniform": ":",
    "ERK": "--",
    "IGQ": "-",
    "LAMP": "-.",
    "global": (0, (5, 1, 1, 1, 1, 1)),
}


def figure(rows: Sequence[Row]) -> Figure:
    """Return accuracy by direct compression, and by effective compression at effective targets."""
    drawn = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = drawn.subplots(1, 2, sharey=True)
    for axes, kind in ((left, ""), (right, " effective")):
        for method, name in METHODS.items():
            _draw(axes, _of(rows, sweep="mnist_lenet300100", method=method), kind, name)
        axes.set(xscale="log", xlabel=f"{kind.strip() or 'direct'} compression, as asked for")
        axes.set_xticks([float(c[:-1]) for c in COMPRESSIONS], COMPRESSIONS)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.set(ylabel="test accuracy (%), mean ± std of 3 seeds")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return drawn


def _draw(axes: Axes, rows: Sequence[Row], kind: str, name: str) -> None:
    family, _, quota = name.partition(", ")
    colour, marker = _LOOKS[family]
    found = [
        [100 * float(row["test_accuracy"]) for row in _of(rows, target=target + kind)]
        for target in COMPRESSIONS
    ]
    there = [(float(c[:-1]), x) for c, x in zip(COMPRESSIONS, found, strict=True) if x]
    axes.errorbar(
        [place for place, _ in there],
        [statistics.fmean(x) for _, x in there],
        [statistics.stdev(x) if len(x) > 1 else 0 for _, x in there],
        color=colour,
        marker=marker,
        linestyle=_LINES[quota],
        markersize=5,
        capsize=2,
        label=name,
    )


def _of(rows: Iterable[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _accuracy(rows: Sequence[Row]) -> str:
    """Return mean and deviation in percent; and how many runs, where they are not three."""
    numbers = [100 * float(row["test_accuracy"]) for row in rows]
    if not numbers:
        return "not run"
    spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    few = f", n={len(rows)}" if len(rows) != 3 else ""
    return f"{statistics.fmean(numbers):.2f}{spread}{few}"


def _times(rows: Sequence[Row], count: str = "effective_kept") -> str:
    """Return the compression: all connections by the mean of those that are left."""
    left = sum(int(row[count]) for row in rows)
    total = sum(int(row["total"]) for row in rows)
    return f"{_short(total / left)}x" if left else ("no path" if rows else "-")


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _fate(rows: Sequence[Row]) -> list[str]:
    counts = ", ".join(row["effective_kept"] for row in rows)
    collapsed = sum(int(row["collapsed_layers"]) > 0 for row in rows)
    return [counts, f"{collapsed} of {len(rows)}", _accuracy(rows)]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


if __name__ == "__main__":
    main()
