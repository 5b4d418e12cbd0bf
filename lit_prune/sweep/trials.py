"""From a description to its trials: what each runs, and the folder that is named by it."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from lit_prune.errors import LitPruneError
from lit_prune.sweep.description import Axis, Description, as_typed

__all__ = ["Trial", "short_names", "trials_of"]

LONGEST = 120  # of a folder's name; file systems allow 255 bytes and files are named after it, too
_SEED = "seed_everything"
_UNSAFE = re.compile(r"[^A-Za-z0-9.+%_-]+")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        labels: the value of every axis, by the short name of the axis.
        args: of ``train.py``, without its folder.
    """

    name: str
    labels: Mapping[str, str] = field(hash=False)
    args: tuple[str, ...]


def trials_of(description: Description, extra: Sequence[str] = ()) -> list[Trial]:
    """Return the trials of all grids, each the product of its axes, in their order.

    Args:
        description: of the sweep.
        extra: options of ``train.py`` for all trials; they go before the fixed ones of the file.

    Raises:
        LitPruneError: two trials are the same or share a name, or an option is set twice.
    """
    short = short_names([key for grid in description.grids for key in grid])
    found: dict[str, Trial] = {}
    for grid in description.grids:
        for labels in product(*grid.values()):
            chosen = dict(zip(grid, labels, strict=True))
            named = {short[key]: label for key, label in chosen.items()}
            args = _args(description, _settings(description, grid, chosen), extra)
            trial = Trial(_name(named), named, tuple(args))
            _require_new(trial, found)
            found[trial.name] = trial
    return list(found.values())


def _require_new(trial: Trial, found: Mapping[str, Trial]) -> None:
    twin = found.get(trial.name)
    if twin is None:
        return
    if twin.args == trial.args:
        raise LitPruneError(f"trial {trial.name} is there twice")
    differ = [f"{k}={twin.labels.get(k)!r} and {v!r}" for k, v in trial.labels.items()]
    raise LitPruneError(f"two trials would share the folder {trial.name}: {'; '.join(differ)}")


def _settings(
    description: Description, grid: Mapping[str, Axis], chosen: Mapping[str, str]
) -> dict[str, Any]:
    """Return the options that a point of the grid sets."""
    settings: dict[str, Any] = {}
    configs: list[str] = []
    for axis, label in chosen.items():
        for key, value in grid[axis][label].items():
            if key == "config":
                configs += value if isinstance(value, list) else [value]
            elif key in settings or key in description.fixed:
                raise LitPruneError(f"{key} is set twice: in the grid and in the grid or 'set'")
            else:
                settings[key] = value
    return {**settings, "config": configs}


def _args(
    description: Description, settings: Mapping[str, Any], extra: Sequence[str]
) -> Iterator[str]:
    """Yield the arguments of ``train.py``; later ones win, and parents must go before children."""
    typed = {option.partition("=")[0][2:] for option in extra if option.startswith("--")}
    for key in typed & settings.keys() - {"config"}:
        raise LitPruneError(f"--{key} is an axis of the sweep; change its values in the file")
    for config in [*description.configs, *settings["config"]]:
        yield from ("--config", config)
    fixed = {key: value for key, value in description.fixed.items() if key not in typed}
    options = {key: value for key, value in {**fixed, **settings}.items() if key != "config"}
    yield from extra
    for key in sorted(options, key=lambda key: key.count(".")):
        yield f"--{key}={as_typed(options[key])}"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return for every key its shortest dotted end that no other key has.

    Examples:
        >>> short_names(["pruning.target", "model.lr", "head.lr"])
        {'pruning.target': 'target', 'model.lr': 'model.lr', 'head.lr': 'head.lr'}
    """
    every = dict.fromkeys(keys)
    return {key: next(end for end in _ends(key) if _is_own(end, key, every)) for key in every}


def _ends(key: str) -> Iterator[str]:
    parts = key.split(".")
    yield from (".".join(parts[-n:]) for n in range(1, len(parts) + 1))


def _is_own(end: str, key: str, every: Mapping[str, Any]) -> bool:
    return end == key or not any(end in _ends(other) for other in every if other != key)


def _name(labels: Mapping[str, str]) -> str:
    """Return the name of a folder: sorted, so that it stays when a file is; the seed last."""
    order = sorted(labels, key=lambda key: (key == _SEED, key))
    name = ",".join(f"{_safe(key)}={_safe(labels[key])}" for key in order)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{_digest(name)}"


def _safe(text: str) -> str:
    """Write ``text`` with safe characters only; a hash tells apart what was lost.

    Examples:
        >>> _safe("100x effective"), _safe("a/b")
        ('100x_effective', 'a_b-c14cddc0')
    """
    plain = text.replace(" ", "_")
    if plain and not _UNSAFE.search(plain):
        return plain
    return f"{_UNSAFE.sub('_', plain)[:40]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
