"""A run as a report sees it: settings, what was found, and how it ended."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lit_prune.errors import first_line
from lit_prune.report.settings import flat, part_name, telling

__all__ = ["Layer", "Level", "Run", "Status", "compression", "read_run", "unread"]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NUMBERS = (
    *("test_accuracy", "test_loss", "epochs", "seconds", "total", "kept", "effective_kept"),
    *("flops", "effective_flops"),
)


class Status(StrEnum):
    """How a run stands.

    ``COLLAPSED`` is a finished run of which nothing effective is left: no connection lies on a path
    from input to output, so that its output is constant and its accuracy is that of chance.
    """

    FINISHED = "finished"
    COLLAPSED = "collapsed"
    UNFINISHED = "unfinished"
    FAILED = "failed"


@dataclass(frozen=True)
class Layer:
    """A row of ``layers.csv``; ``effective`` is None where it is not known."""

    name: str
    total: int
    kept: int
    effective: int | None


@dataclass(frozen=True)
class Level:
    """A row of ``levels.csv``: how many epochs had been trained at its end, and what was kept.

    What is None is not known.
    """

    epoch: int
    kept: int
    collapsed_layers: int
    effective_flops: float | None = None
    effective_sparsity: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True)
class Run:
    """One run folder, finished or not.

    Attributes:
        path: the folder, relative to the working directory where it lies in it.
        config: its settings, as a tree; empty where they cannot be read.
        summary: what it found; empty unless it is finished.
        layers: the layers of the final masks.
        levels: the levels of sparsity.
        error: why it failed, in one line; None if it did not.
    """

    path: str
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    levels: tuple[Level, ...] = ()
    error: str | None = None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return Path(self.path).name

    @property
    def status(self) -> Status:
        """How the run stands."""
        if self.error is not None:
            return Status.FAILED
        if not self.summary:
            return Status.UNFINISHED
        known = self.effective_kept if self.effective_kept is not None else self.kept
        return Status.COLLAPSED if known == 0 else Status.FINISHED

    @property
    def is_done(self) -> bool:
        """Whether there is something found."""
        return self.status in (Status.FINISHED, Status.COLLAPSED)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings by dotted keys."""
        return flat(self.config)

    @cached_property
    def telling(self) -> dict[str, Any]:
        """The settings that can change what is found, apart from seed and target."""
        return telling(self.settings)

    @property
    def seed(self) -> Any:
        """The seed of weights, data and criterion."""
        return self.settings.get("seed_everything", self.summary.get("seed"))

    @property
    def dataset(self) -> str:
        """The short name of the data's class."""
        return part_name(self.config.get("data"))

    @property
    def network(self) -> str:
        """The short name of the backbone's class."""
        return part_name(_at(self.config, "model", "backbone"))

    def part(self, name: str) -> str:
        """Return the short name of ``criterion``, ``quota`` or ``schedule``."""
        return part_name(_at(self.config, "pruning", name))

    @property
    def accuracy(self) -> float | None:
        """The share of the test data that is classified right."""
        return self.summary.get("test_accuracy")

    @property
    def total(self) -> int | None:
        """How many prunable connections there are."""
        return self.summary.get("total")

    @property
    def kept(self) -> int | None:
        """How many of them the masks keep."""
        return self.summary.get("kept")

    @property
    def effective_kept(self) -> int | None:
        """How many of those lie on a path; None where that is not known."""
        return self.summary.get("effective_kept")

    @property
    def seconds(self) -> float | None:
        """How long training and tests took."""
        return self.summary.get("seconds")

    @property
    def collapsed_layers(self) -> int | None:
        """How many layers have no effective (none that is kept, where it is not known) left."""
        if not self.layers:
            return None
        left = [row.kept if row.effective is None else row.effective for row in self.layers]
        return left.count(0)


def compression(total: float | None, left: float | None) -> float | None:
    """Return all connections / those that are left: infinite if none is, None if not known.

    Examples:
        >>> compression(100, 25), compression(100, 0), compression(100, None)
        (4.0, inf, None)
    """
    if total is None or left is None:
        return None
    return total / left if left else math.inf


def read_run(folder: Path, path: str, error: str | None = None) -> Run:
    """Read a run folder; what is wrong with it becomes the error of the run.

    Args:
        folder: where it is.
        path: what it is called.
        error: why a sweep says that it failed; a summary shows that it was wrong, or is.
    """
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for name, read in _READERS.items():
        file = folder / f"{name}.{_ENDINGS[name]}"
        if not file.exists():
            continue
        try:
            found[name] = read(file)
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as problem:
            wrong.append(f"{file.name} cannot be read: {first_line(problem)}")
    if "config" not in found and not wrong:
        wrong.append("there is no config.yaml")
    if "summary" in found:
        error = None
    if wrong:
        found.pop("summary", None)
    return Run(path, **found, error=wrong[0] if wrong else error)


def unread(path: str, error: str | None, config: Mapping[str, Any] | None = None) -> Run:
    """Return a run that left no folder."""
    return Run(path, config or {}, error=error)


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


# The files.


def _config(file: Path) -> dict[str, Any]:
    content = yaml.load(file.read_text(), _Loader)
    if not isinstance(content, dict):
        raise ValueError("it is empty or holds no keys")
    for key in ("model", "data", "pruning", "trainer"):
        if not isinstance(content.get(key) or {}, dict):
            raise ValueError(f"{key} is no mapping of settings")
    epochs = (content.get("trainer") or {}).get("max_epochs")
    if not isinstance(epochs, int | None):
        raise ValueError(f"trainer.max_epochs is {epochs!r}, not a number")
    return content


def _summary(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text())
    if not isinstance(content, dict) or "total" not in content:
        raise ValueError("it is no summary of a run")
    return {**content, **{key: _finite(key, content.get(key)) for key in _NUMBERS}}


def _finite(key: str, value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{key} is {value!r}, not a number")
    return value if value is not None and math.isfinite(value) else None


def _layers(file: Path) -> tuple[Layer, ...]:
    return tuple(
        Layer(row["name"], int(row["total"]), int(row["kept"]), _number(int, row["effective"]))
        for row in _rows(file)
    )


def _levels(file: Path) -> tuple[Level, ...]:
    return tuple(
        Level(
            int(row["epoch"]),
            int(row["kept"]),
            int(row["collapsed_layers"]),
            _number(float, row.get("effective_flops")),
            _number(float, row.get("effective_sparsity")),
            _number(float, row.get("test_accuracy")),
        )
        for row in _rows(file)
    )


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


Number = TypeVar("Number", int, float)


def _number(kind: type[Number], text: str | None) -> Number | None:
    return kind(text) if text else None


_READERS: dict[str, Any] = {
    "config": _config,
    "summary": _summary,
    "layers": _layers,
    "levels": _levels,
}
_ENDINGS = {"config": "yaml", "summary": "json", "layers": "csv", "levels": "csv"}
