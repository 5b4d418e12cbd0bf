"""What a sweep found: a row for every trial, as a table and as ``sweep.csv``."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from lit_prune.files import write_whole
from lit_prune.sweep.board import Look
from lit_prune.sweep.ledger import Ledger, State
from lit_prune.sweep.trials import Trial

__all__ = ["rows_of", "table", "write_csv"]

_FOUND = (
    "test_accuracy",
    "total",
    "kept",
    "effective_kept",
    "direct_compression",
    "effective_compression",
    "seconds",
)


def rows_of(ledger: Ledger, look: Look) -> list[dict[str, Any]]:
    """Return a row for every trial: its name, status and error, its settings, what was found."""
    axes = list(dict.fromkeys(key for trial in look.states for key in trial.labels))
    return [_row(trial, axes, ledger, look) for trial in look.states]


def _row(trial: Trial, axes: Sequence[str], ledger: Ledger, look: Look) -> dict[str, Any]:
    state, attempt = look.states[trial], look.attempts[trial]
    summary = ledger.run_folder(trial).summary() if state is State.DONE else None
    error = attempt.error if attempt and state is State.FAILED else None
    return {
        "trial": trial.name,
        "status": str(state),
        "error": error,
        **{axis: trial.labels.get(axis) for axis in axes},
        **{key: (summary or {}).get(key) for key in _FOUND},
    }


def write_csv(ledger: Ledger, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``sweep.csv`` into the sweep's folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(ledger.path / "sweep.csv", text.getvalue())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line for every trial, and below the table the error of each that failed."""
    plain = {"trial", "status", "error", *_FOUND}
    axes = [key for key in rows[0] if key not in plain]
    head = [*axes, "accuracy", "kept", "effective", "seconds"]
    lines = [head, *([*(row[axis] or "-" for axis in axes), *_numbers(row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [_aligned(line, widths, len(axes)) for line in lines]
    failed = [f"failed: {row['trial']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join([*texts, *([""] if failed else []), *failed])


def _numbers(row: dict[str, Any]) -> list[str]:
    if row["status"] != State.DONE:
        return [row["status"], "-", "-", "-"]
    accuracy, effective = row["test_accuracy"], row["effective_kept"]
    return [
        "none" if accuracy is None else f"{accuracy:.2%}",
        f"{row['kept']:,}",
        "unknown" if effective is None else f"{effective:,}",
        f"{row['seconds']:.1f}",
    ]


def _aligned(cells: Sequence[str], widths: Sequence[int], names: int) -> str:
    left = [cell.ljust(width) for cell, width in zip(cells[:names], widths[:names], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(cells[names:], widths[names:], strict=True)]
    return "  ".join([*left, *right])
