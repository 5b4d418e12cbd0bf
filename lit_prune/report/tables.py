"""What a report holds as tables: every run as CSV, and methods by rates as Markdown and LaTeX."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_prune.files import as_csv
from lit_prune.report.cost import training_flops, training_flops_a_sample
from lit_prune.report.groups import Cell, Task
from lit_prune.report.numbers import count, duration, percent, scientific, times
from lit_prune.report.phases import phases
from lit_prune.report.rates import rate_of
from lit_prune.report.runs import Run, compression

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "COLUMNS",
    "MD_SIGN",
    "NOTE",
    "RUNS_SIGN",
    "TEX_SIGN",
    "cells_of",
    "frame",
    "latex",
    "mark_text",
    "markdown",
    "runs_csv",
]


# How the files begin.
RUNS_SIGN = "path,name,status,error,counted"
MD_SIGN = "# Methods by targets"
TEX_SIGN = r"% of lit_prune report; needs \usepackage{booktabs}"

# Every run.


def frame(runs: Iterable[Run], tasks: Iterable[Task] = ()) -> "DataFrame":
    """Return ``runs.csv`` as a DataFrame of pandas: a row for every run.

    Args:
        runs: as :func:`~lit_prune.report.read_runs` returns them.
        tasks: as :func:`~lit_prune.report.tasks_of` returns them, for the names of methods.
    """
    import pandas

    return pandas.DataFrame(records(runs, tasks))


def runs_csv(runs: Sequence[Run], tasks: Sequence[Task]) -> str:
    """Return a row for every run, whatever became of it."""
    rows = records(runs, tasks)
    return as_csv(list(rows[0]), [list(row.values()) for row in rows])


def records(runs: Iterable[Run], tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Return the same as dictionaries."""
    cells = {run.path: (task, cell) for task in tasks for cell in task.cells for run in cell.runs}
    return [_record(run, *cells.get(run.path, (None, None))) for run in runs]


def _record(run: Run, task: Task | None, cell: Cell | None) -> dict[str, Any]:
    settings = run.settings
    return {
        "path": run.path,
        "name": run.name,
        "status": str(run.status),
        "error": run.error,
        "counted": None if cell is None else run in cell.counted,
        "task": None if task is None else task.title,
        "method": None if cell is None else cell.method.name,
        "setup": None if cell is None else mark_text(cell),
        "seed": run.seed,
        "dataset": run.dataset,
        "network": run.network,
        "criterion": run.part("criterion"),
        "quota": run.part("quota"),
        "schedule": run.part("schedule"),
        **{key: settings.get(f"pruning.{key}") for key in _PRUNING},
        "target": settings.get("pruning.target"),
        "measure": "effective" if rate_of(run).is_effective else "direct",
        **_found(run),
        **_trained(run),
        "command": run.summary.get("command"),
        "git_commit": run.summary.get("git_commit"),
        "versions": _versions(run.summary.get("versions")),
    }


_PRUNING = ("rounds", "batches", "floor", "reinitialise", "scored_weights", "masks")


def _found(run: Run) -> dict[str, Any]:
    total, kept, effective = run.total, run.kept, run.effective_kept
    return {
        "test_accuracy": run.accuracy,
        "test_loss": run.summary.get("test_loss"),
        "total": total,
        "kept": kept,
        "effective_kept": effective,
        "direct_sparsity": _sparsity(total, kept),
        "effective_sparsity": _sparsity(total, effective),
        "direct_compression": compression(total, kept),
        "effective_compression": compression(total, effective),
        "collapsed_layers": run.collapsed_layers,
    }


def _sparsity(total: int | None, kept: int | None) -> float | None:
    return None if total is None or kept is None else (total - kept) / max(total, 1)


def _trained(run: Run) -> dict[str, Any]:
    found = phases(run.config) if run.config else None
    return {
        "epochs": run.summary.get("epochs"),
        "pretraining_epochs": found and found.pretraining,
        "pruning_epochs": found and found.pruning,
        "finetuning_epochs": found and found.finetuning,
        "seconds": run.seconds,
        "inference_flops": run.summary.get("flops"),
        "effective_inference_flops": run.summary.get("effective_flops"),
        "training_flops_a_sample": training_flops_a_sample(run),
        "training_flops": training_flops(run),
    }


def _versions(versions: Any) -> str | None:
    if not isinstance(versions, Mapping):
        return None if versions is None else json.dumps(versions)
    return " ".join(f"{name}={version}" for name, version in versions.items())


# Methods by rates.

COLUMNS = (
    *("method", "target", "n", "accuracy %", "kept", "effective", "direct", "effective"),
    *("seconds", "inference FLOPs", "training FLOPs", "setup", "notes"),
)


def cells_of(cell: Cell) -> list[str]:
    """Return a line of the table."""
    accuracy = cell.accuracy
    return [
        cell.method.name,
        str(cell.rate),
        str(accuracy.n if accuracy else 0),
        percent(accuracy),
        count(cell.kept),
        count(cell.effective_kept),
        times(cell.direct_compression),
        times(cell.effective_compression),
        duration(cell.seconds),
        scientific(cell.inference_flops),
        scientific(cell.training_flops),
        mark_text(cell),
        "; ".join(cell.notes),
    ]


def mark_text(cell: Cell) -> str:
    """Say which setups a method shares with the reference of its rate."""
    if cell.mark is None:
        return ""
    if cell.is_reference:
        return "reference"
    return ", ".join(cell.mark) or "none"


def _parts(tasks: Iterable[Task]) -> Iterator[tuple[str, list[Cell]]]:
    """Yield the tables: of each task the direct and the effective targets."""
    for task in tasks:
        for is_effective in (False, True):
            cells = [cell for cell in task.cells if cell.rate.is_effective == is_effective]
            if cells:
                yield f"{task.title}, {'effective' if is_effective else 'direct'} targets", cells


NOTE = (
    "Accuracy: mean ± sample standard deviation over n seeds, collapsed runs included. Kept and "
    "effective connections, seconds and FLOPs: means over seeds; compressions: all connections / "
    "the mean number left. Setup: the strictest setups of Wang et al. 2023 (arXiv 2301.05219) that "
    "a method shares with the reference of the same target."
)


def markdown(tasks: Sequence[Task]) -> str:
    """Return ``table.md``."""
    head = ["| " + " | ".join(_HEADS) + " |", "|" + "|".join(_RULES) + "|"]
    found = [MD_SIGN, "", NOTE]
    for title, cells in _parts(tasks):
        lines = ["| " + " | ".join(map(_md, cells_of(cell))) + " |" for cell in cells]
        found += ["", f"## {_md(title)}", "", *head, *lines]
    return "\n".join(found) + "\n"


_HEADS = [*COLUMNS[:6], "direct compression", "effective compression", *COLUMNS[8:]]
_RULES = ["---", *["---:"] * 10, "---", "---"]
_LEFT = "lrrrrrrrrrrll"


def _md(text: str) -> str:
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text)
    return " ".join(escaped.split())


def latex(tasks: Sequence[Task]) -> str:
    r"""Return ``table.tex``, to be read by ``\input``; it needs the package booktabs."""
    lines = [TEX_SIGN, rf"% {NOTE}"]
    for title, cells in _parts(tasks):
        heads = " & ".join(_tex(head) for head in _HEADS)
        rows = [" & ".join(map(_tex, cells_of(cell))) + r" \\" for cell in cells]
        lines += [
            "",
            rf"% {_comment(title)}",
            rf"\begin{{tabular}}{{{_LEFT}}}",
            r"\toprule",
            rf"{heads} \\",
            r"\midrule",
            *_with_gaps(cells, rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join(lines) + "\n"


def _with_gaps(cells: Sequence[Cell], rows: Sequence[str]) -> Iterator[str]:
    """Yield the rows with a gap between rates."""
    for number, (cell, row) in enumerate(zip(cells, rows, strict=True)):
        if number and cell.rate != cells[number - 1].rate:
            yield r"\addlinespace"
        yield row


_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",
    "]": "{]}",
    "±": r"$\pm$",
    "∞": r"$\infty$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))


def _comment(text: str) -> str:
    return " ".join(text.split())
