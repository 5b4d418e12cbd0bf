"""The phases of a run: training before, while and after it prunes, by its schedule's plan."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lit_prune import schedules
from lit_prune.acts import Act, Due, HoldRate, Prune, Remember, RewindRates, RewindWeights
from lit_prune.errors import LitPruneError
from lit_prune.report.settings import part_name
from lit_prune.schedules import Schedule
from lit_prune.timing import Course, Time

__all__ = ["Phases", "phases"]

# Of a network so large that shares of it are as good as exact.
_MANY = 10**12
_RATES = (HoldRate, RewindRates, RewindWeights)


@dataclass(frozen=True)
class Phases:
    """How long each phase takes and where its learning rates come from.

    Pruning lasts from the first act that prunes, picks, pushes or rewires to the last; what comes
    before is pretraining and what comes after is fine-tuning. A text stands where no number of
    epochs is known: of schedules with times in steps, and of schedules that are not this package's.

    Attributes:
        pretraining: epochs before anything is pruned.
        pruning: epochs of pruning.
        finetuning: epochs after the last prune.
        pruning_rates: where in the learning-rate schedule pruning begins, and what changes it.
        finetuning_rates: the same of fine-tuning.
        total: epochs of the whole training.
        density: the share of connections left at the end, as the schedule has it; None where the
            target has it.
        holds_rates: whether fine-tuning has rates of its own, of which the schedule of the module
            knows nothing.
    """

    pretraining: int | str
    pruning: int | str
    finetuning: int | str
    pruning_rates: str
    finetuning_rates: str
    total: int | str | None
    density: float | None = None
    holds_rates: bool = False


def phases(config: Mapping[str, Any]) -> Phases:
    """Return the phases of a run with this config."""
    trainer, pruning = config.get("trainer") or {}, config.get("pruning") or {}
    spec = pruning.get("schedule") or {"class_path": "lit_prune.schedules.AtInit"}
    return _phases(json.dumps(spec, sort_keys=True, default=str), trainer.get("max_epochs"))


@lru_cache
def _phases(spec: str, epochs: int | None) -> Phases:
    try:
        schedule = _schedule(json.loads(spec))
        length = schedule.length(None)
        total = epochs if length is None else length
        plan = schedule.plan(Course(_MANY, _MANY // 10, epochs=total))
        return _read(schedule, plan, total)
    except (LitPruneError, TypeError, ValueError, LookupError):
        # What is not understood is like nothing but itself.
        text = f"as {_text(json.loads(spec))} has it in {epochs} epochs"
        return Phases(text, text, text, text, text, text if epochs is None else epochs)


def _text(spec: Any) -> str:
    given = spec.get("init_args") or {} if isinstance(spec, dict) else {}
    return f"{part_name(spec)}({', '.join(f'{key}={value}' for key, value in given.items())})"


def _schedule(spec: Any) -> Schedule:
    """Return a schedule of this package; nobody else's code is run."""
    module, _, name = spec["class_path"].rpartition(".")
    if not module.startswith("lit_prune.schedules") or name not in schedules.__all__:
        raise LookupError(name)
    given = spec.get("init_args") or {}
    return getattr(schedules, name)(**{key: _with_numbers(value) for key, value in given.items()})


def _with_numbers(value: Any) -> Any:
    """Return a mapping by epochs with these as numbers, which YAML may hold as texts."""
    is_by_epoch = isinstance(value, dict) and all(str(key).isdigit() for key in value)
    return {int(key): of for key, of in value.items()} if is_by_epoch else value


def _read(schedule: Schedule, plan: Sequence[Due], total: int | None) -> Phases:
    changes = [due for due in plan if not isinstance(due.act, (*_RATES, Remember))]
    first, last = changes[0].time, changes[-1].time
    before = [due for due in plan if _is_between(due, first, last)]
    after = [due for due in plan if isinstance(due.act, _RATES) and due.time == last]
    later = [d for d in plan[plan.index(changes[-1]) :] if isinstance(d.act, _RATES)]
    remembered = next((due.time for due in plan if isinstance(due.act, Remember)), None)
    keeps = [due.act.keep for due in plan if isinstance(due.act, Prune)]
    return Phases(
        pretraining=_length(Time(0, "ep"), first),
        pruning=_length(first, last),
        finetuning=_length(last, None if total is None else Time(total, "ep")),
        pruning_rates=_rates(before, first, remembered) if first != last else "",
        finetuning_rates=_rates(later, last, remembered),
        total=total,
        density=keeps[-1] / _MANY if keeps and not schedule.wants_target else None,
        holds_rates=any(isinstance(d.act, HoldRate) and d.act.rate is not None for d in after),
    )


def _is_between(due: Due, first: Time, last: Time) -> bool:
    """Whether an act upon rates comes while the network is being pruned."""
    if not isinstance(due.act, _RATES) or first.unit != due.time.unit:
        return False
    return first.count <= due.time.count and due.time != last


def _length(start: Time, end: Time | None) -> int | str:
    if end is None:
        return f"from {start} on"
    if start.count == end.count == 0:
        return 0
    if end.unit == "ep" and (start.unit == "ep" or not start.count):
        return end.count - start.count
    return f"{start} to {end}"


def _rates(dues: Sequence[Due], start: Time, remembered: Time | None) -> str:
    """Say what becomes of the learning rates, by epochs from ``start``."""
    texts = [f"{_ago(due.time, start)}: {_what(due.act, remembered)}" for due in dues]
    begins = any(due.time == start for due in dues)
    return ", ".join([*([] if begins else [f"0: as from {start} on"]), *texts])


def _ago(time: Time, start: Time) -> str:
    return str(time.count - start.count) if time.unit == start.unit else str(time)


def _what(act: Act, remembered: Time | None) -> str:
    if isinstance(act, HoldRate):
        return "the last rate" if act.rate is None else f"{act.rate:g}"
    return f"as from {remembered} on"
