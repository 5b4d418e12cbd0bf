"""From the folders that a report is asked for to the runs in them, each once."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_prune.errors import LitPruneError, first_line
from lit_prune.report.runs import Run, read_run, unread

__all__ = ["read_runs"]

_SEED = re.compile(r"(?:^|,)seed_everything=([^,]*)$")


def read_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Return all runs at and below ``paths``, in the order of their paths, each once.

    A run folder is one with a ``config.yaml`` or a ``summary.json``; nothing below it is looked at.
    In a sweep's folder the trials that failed before they had a folder are runs too; such a one has
    the settings of its twin with another seed, where there is one.

    Args:
        paths: run folders, sweep folders, or folders that hold such, at any depth.

    Raises:
        LitPruneError: a path is not there, is a file, or holds no run.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        _require_folder(path)
        if not [run for folder in _folders(path) for run in _runs_at(folder, found)]:
            raise LitPruneError(
                f"no runs at or below {path}: a run's folder holds config.yaml, and summary.json "
                "when it is finished"
            )
    return sorted(found.values(), key=lambda run: run.path)


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise LitPruneError(f"no such folder of runs: {path}")
    if not path.is_dir():
        raise LitPruneError(f"{path} is a file, not a folder of runs")


def _folders(path: Path) -> Iterator[Path]:
    """Yield the run folders and sweep folders at and below a folder."""
    for here, folders, _ in os.walk(path):
        folder = Path(here)
        if _is_run(folder):
            folders.clear()
            yield folder
        elif ".sweep" in folders:
            yield folder
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or (folder / "summary.json").exists()


def _runs_at(folder: Path, found: dict[Path, Run]) -> Iterator[Run]:
    """Yield what is there, having added to ``found`` what it lacks; a folder has one true path."""
    place = folder.resolve()
    if _is_run(folder):
        if place not in found:
            found[place] = read_run(place, _shown(place), _error(place))
        yield found[place]
        return
    for note in sorted((place / ".sweep" / "attempts").glob("*.json")):
        trial = place / note.stem
        if trial not in found and not _is_run(trial):
            found[trial] = _without_folder(trial)
        if trial in found:
            yield found[trial]


def _shown(place: Path) -> str:
    here = Path.cwd().resolve()
    return str(place.relative_to(here)) if place.is_relative_to(here) else str(place)


def _error(place: Path) -> str | None:
    """Return why the sweep that a run belongs to says that it failed."""
    note = place.parent / ".sweep" / "attempts" / f"{place.name}.json"
    if not note.exists():
        return None
    try:
        content: Any = json.loads(note.read_text())
    except (OSError, ValueError) as error:
        return f"the sweep's note cannot be read: {first_line(error)}"
    reason = content.get("error") if isinstance(content, dict) else None
    return None if reason is None else " ".join(str(reason).split())


def _without_folder(trial: Path) -> Run:
    run = unread(_shown(trial), _error(trial))
    seed = _SEED.search(trial.name)
    if seed is None:
        return run
    stem = trial.name[: seed.start(1)]
    for twin in sorted(trial.parent.iterdir()):
        is_twin = _SEED.search(twin.name) and twin.name.startswith(stem)
        if is_twin and (twin / "config.yaml").exists():
            config = read_run(twin, twin.name).config
            number = int(seed[1]) if seed[1].isdigit() else seed[1]
            return replace(run, config={**config, "seed_everything": number}) if config else run
    return run
