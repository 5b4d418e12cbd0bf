"""The command: from run folders to tables and a page."""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from lit_prune.errors import LitPruneError
from lit_prune.files import require_folder_place, write_all
from lit_prune.options import Options
from lit_prune.report.collect import read_runs
from lit_prune.report.groups import Cell, Task, tasks_of
from lit_prune.report.levels import LEVELS_SIGN, levels_csv
from lit_prune.report.page import SIGN, page
from lit_prune.report.runs import Run, Status
from lit_prune.report.setups import SETUPS, difference, satisfied, setup_named
from lit_prune.report.tables import MD_SIGN, RUNS_SIGN, TEX_SIGN, latex, markdown, runs_csv

__all__ = ["run"]

_ABOUT = """\
Collect runs into tables and one page with plots: OUT/runs.csv, levels.csv, table.md, table.tex and
index.html.
RUNS are run folders, sweep folders, or folders that hold such. Every run is shown, whatever became
of it; methods are marked with the comparison setups of Wang et al. 2023, arXiv 2301.05219, that
they share. docs/report.md says what everything means.
"""
_HELP = {
    "--out": "where to write; other files there are left alone",
    "--require": "refuse to mix methods, at the same target, that do not share this setup: "
    + ", ".join(SETUPS),
    "--reference": "the method that others are marked against, as the table names it (default: at "
    "each target the first of those that share S3.2 with the most others)",
}


# How our own files begin: no others are overwritten.
_SIGNS = {
    "runs.csv": RUNS_SIGN,
    "levels.csv": LEVELS_SIGN,
    "table.md": MD_SIGN,
    "table.tex": TEX_SIGN,
    "index.html": SIGN,
}


def run(args: Sequence[str]) -> None:
    """Run ``python -m lit_prune report`` with ``args``.

    Raises:
        LitPruneError: an option is mistaken, there are no runs, or they are not as comparable as
            ``--require`` has it. Nothing is written then.
    """
    asked = _parser().parse_args(args)
    if asked.require is not None:
        setup_named(asked.require)
    _require_place(asked.out)
    if find_spec("matplotlib") is None:
        raise LitPruneError("figures need matplotlib: pip install 'lit_prune[report]'")
    runs = read_runs(asked.runs)
    tasks = tasks_of(runs, asked.reference)
    if asked.require is not None:
        require(tasks, asked.require)
    command = shlex.join(["python", "-m", "lit_prune", "report", *args])
    contents = {
        "runs.csv": runs_csv(runs, tasks),
        "levels.csv": levels_csv(tasks),
        "table.md": markdown(tasks),
        "table.tex": latex(tasks),
        "index.html": page(runs, tasks, command),
    }
    write_all(asked.out, contents)
    print(f"{_counts(runs)}\nin {asked.out}: {', '.join(contents)}")


def _parser() -> Options:
    parser = Options(_ABOUT, _HELP, prog="python -m lit_prune report")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folders")
    parser.add("--out", type=Path, metavar="DIR", required=True)
    parser.add("--require", metavar="SETUP")
    parser.add("--reference", metavar="METHOD")
    return parser


def _require_place(out: Path) -> None:
    require_folder_place("--out", out)
    for name, sign in _SIGNS.items():
        if (out / name).exists() and not _begins(out / name, sign):
            raise LitPruneError(f"--out {out}: {name} there is not of a report; name another")


def _begins(file: Path, sign: str) -> bool:
    try:
        with file.open("rb") as content:
            return content.read(len(sign.encode())) == sign.encode()
    except OSError as error:
        raise LitPruneError(f"--out: {file} cannot be read: {error.strerror}") from error


def require(tasks: Iterable[Task], setup: str) -> None:
    """Check that all methods share a setup, wherever their targets are the same.

    Raises:
        LitPruneError: two do not; a run of each is named, and the first setting that differs.
    """
    cells = [cell for task in tasks for cell in task.cells]
    for one, other in combinations(cells, 2):
        if one.rate == other.rate and setup not in satisfied(one.facts, other.facts):
            raise LitPruneError(_refusal(one, other, setup))


def _refusal(one: Cell, other: Cell, setup: str) -> str:
    one, other = sorted((one, other), key=lambda cell: cell.runs[0].path)
    found = difference(one.facts, other.facts, setup)
    assert found is not None
    key, here, there = found
    first, second = one.runs[0].path, other.runs[0].path
    return (
        f"{first} and {second} do not share the setup {setup}: {key} is {_said(here)} and "
        f"{_said(there)}"
    )


def _said(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _counts(runs: Sequence[Run]) -> str:
    found = Counter(run.status for run in runs)
    return f"{len(runs)} runs: " + ", ".join(
        f"{found[status]} {status}" for status in Status if found[status]
    )
