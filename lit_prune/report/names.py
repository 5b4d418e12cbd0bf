"""Names of methods, short and human: what prunes, and what else differs from its likes."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from lit_prune.report.rates import rate_of
from lit_prune.report.runs import Run

__all__ = ["Identity", "family", "identity", "names_of"]

# All settings of a method, sorted by their keys: runs that have these in common are one method.
Identity = tuple[tuple[str, Any], ...]

DENSE = "Dense"
# What is told first where several settings would tell two methods apart.
_FIRST = (
    *("pruning.rounds", "pruning.floor", "pruning.reinitialise", "trainer.max_epochs"),
    *("pruning.criterion", "pruning.quota", "pruning.schedule", "pruning.batches"),
    *("model.optimizer", "model.scheduler", "pruning", "model", "data", "trainer"),
)


def identity(run: Run) -> Identity:
    """Return what a run shares with all others of its method: all but seed and target.

    Without anything to prune, how it would be pruned makes no difference but for the schedule.
    """
    settings = run.telling
    if rate_of(run).is_dense:
        settings = {
            key: value
            for key, value in settings.items()
            if not key.startswith("pruning.") or key.startswith("pruning.schedule")
        }
    return tuple(sorted(settings.items(), key=lambda item: item[0]))


def family(run: Run) -> str:
    """Return the criterion's name, by which methods share a colour."""
    if rate_of(run).is_dense:
        return DENSE
    if masks := run.settings.get("pruning.masks"):
        return f"Masks of {PurePath(str(masks)).stem}"
    return run.part("criterion") or "unknown criterion"


def names_of(examples: Mapping[Identity, Run]) -> dict[Identity, str]:
    """Return a name for every method, no two alike.

    A name says the criterion, the quota and what is unusual. Where that is not enough, the first
    setting that differs is added, again and again.

    Args:
        examples: a run of each method.
    """
    names = {method: _usual(run) for method, run in examples.items()}
    for key in _ordered({key for method in examples for key, _ in method}):
        names = _told_apart(names, key)
    return _numbered(names)


def _usual(run: Run) -> str:
    pruning = run.config.get("pruning") or {}
    name = family(run)
    if name == DENSE:
        return name
    settings = run.telling
    name += " (trained)" if "pruning.scored_weights" in settings else ""
    schedule = run.part("schedule")
    words = [
        run.part("quota") if pruning.get("quota") else "",
        _word("pruning.rounds", settings.get("pruning.rounds")),
        _word("pruning.floor", settings.get("pruning.floor")),
        _word("pruning.reinitialise", settings.get("pruning.reinitialise")),
        "" if schedule == "AtInit" else schedule,
    ]
    return ", ".join([name, *filter(None, words)])


def _told_apart(names: Mapping[Identity, str], key: str) -> dict[Identity, str]:
    """Add the value of a setting to the names that are alike and differ in it."""
    values = {method: dict(method).get(key) for method in names}
    alike: dict[str, set[str]] = {}
    for method, name in names.items():
        alike.setdefault(name, set()).add(repr(values[method]))
    return {
        method: _joined(name, _word(key, values[method]) if len(alike[name]) > 1 else "")
        for method, name in names.items()
    }


def _joined(name: str, word: str) -> str:
    return f"{name}, {word}" if word else name


def _word(key: str, value: Any) -> str:
    """Say a setting in a word or two; nothing where it is not set.

    Examples:
        >>> _word("pruning.rounds", 300), _word("model.optimizer.init_args.lr", 0.1)
        ('300 rounds', 'lr=0.1')
    """
    last = key.rpartition(".")[2]
    if value is None:
        return ""
    if value is True:
        return "reinitialised" if last == "reinitialise" else last
    if last in ("rounds", "batches", "max_epochs"):
        return f"{value} {'epochs' if last == 'max_epochs' else last}"
    if last == "class_path":
        return str(value).rpartition(".")[2]
    return f"floor {value}" if last == "floor" else f"{last}={value}"


def _ordered(keys: set[str]) -> list[str]:
    def place(key: str) -> tuple[int, bool, str]:
        first = next((n for n, start in enumerate(_FIRST) if key.startswith(start)), len(_FIRST))
        return first, not key.endswith("class_path"), key

    return sorted(keys, key=place)


def _numbered(names: Mapping[Identity, str]) -> dict[Identity, str]:
    """Number the names that no setting told apart, such as of settings of one name."""
    by_name: dict[str, Sequence[Identity]] = {}
    for method, name in names.items():
        by_name[name] = [*by_name.get(name, []), method]
    return {
        method: name if len(methods) == 1 else f"{name} #{number}"
        for name, methods in by_name.items()
        for number, method in enumerate(sorted(methods, key=repr), 1)
    }
