"""Headline: what a run is, in a dozen words, as a row of a table of runs."""

from collections.abc import Mapping
from typing import Any

__all__ = ["headline"]


def headline(settings: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Return the settings of a resolved config that runs mostly differ in.

    All runs have the same keys, since a table has the columns of its first row; what a run lacks
    is a dash. Classes go by their short names, and a wrapped criterion stands in brackets.

    Examples:
        >>> snip = {"class_path": "a.b.SNIP"}
        >>> found = headline({"pruning": {"target": "100x", "criterion": snip}})
        >>> found["criterion"], found["target"], found["quota"]
        ('SNIP', '100x', '-')
    """
    model, data, pruning, trainer = (
        settings.get(key) or {} for key in ("model", "data", "pruning", "trainer")
    )
    optimizer = _arguments(model.get("optimizer"))
    found = {
        "criterion": _name(pruning.get("criterion")),
        "target": _target(pruning.get("target")),
        "quota": _name(pruning.get("quota")),
        "schedule": _name(pruning.get("schedule")),
        "floor": pruning.get("floor"),
        "reinitialise": "yes" if pruning.get("reinitialise") else None,
        "scored_weights": pruning.get("scored_weights"),
        "masks": pruning.get("masks"),
        "rounds": pruning.get("rounds") or _arguments(pruning.get("criterion")).get("rounds"),
        "backbone": _name(model.get("backbone")),
        "data": _name(data),
        "optimizer": _name(model.get("optimizer")),
        "lr": optimizer.get("lr"),
        "weight_decay": optimizer.get("weight_decay"),
        "batch_size": _arguments(data).get("batch_size"),
        "epochs": trainer.get("max_epochs") or _arguments(pruning.get("schedule")).get("epochs"),
        "seed": settings.get("seed_everything"),
    }
    return {key: "-" if value is None else value for key, value in found.items()}


def _name(built: Any) -> str | None:
    """Return the short name of a class, and of the one that it wraps."""
    if not isinstance(built, Mapping):
        return None if built is None else str(built)
    if "class_path" not in built:
        return None
    short = str(built["class_path"]).rpartition(".")[2]
    inner = _name(_arguments(built).get("criterion"))
    return f"{short}({inner})" if inner else short


def _arguments(built: Any) -> Mapping[str, Any]:
    return (built.get("init_args") or {}) if isinstance(built, Mapping) else {}


def _target(target: Any) -> str | None:
    """Return a target as a word, whichever way it is written."""
    if isinstance(target, Mapping):
        given = {k: v for k, v in (_arguments(target) or target).items() if v is not None}
        return ", ".join(f"{k} {v}" for k, v in given.items() if k != "class_path")
    return None if target is None else str(target)
