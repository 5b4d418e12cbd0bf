"""Runs in their groups: tasks, the methods on each, and what the seeds of a method come to."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from lit_prune.errors import LitPruneError, did_you_mean
from lit_prune.report.cost import inference_flops, training_flops, training_flops_a_sample
from lit_prune.report.names import Identity, family, identity, names_of
from lit_prune.report.rates import Rate, rate_of
from lit_prune.report.runs import Run, Status, compression
from lit_prune.report.setups import Facts, facts_of, satisfied, strictest

__all__ = ["Cell", "Method", "Spread", "Task", "tasks_of"]


class Spread(NamedTuple):
    """Mean and sample standard deviation over ``n`` seeds; no deviation of one alone."""

    mean: float
    std: float | None
    n: int


def spread(numbers: Iterable[float | None]) -> Spread | None:
    """Return mean and deviation of what is known; None if nothing is.

    Examples:
        >>> spread([1.0, 3.0, None])
        Spread(mean=2.0, std=1.4142135623730951, n=2)
    """
    known = [number for number in numbers if number is not None]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), std, len(known))


@dataclass(frozen=True)
class Method:
    """All runs whose settings are the same but for seed and target.

    Attributes:
        name: short, and no other's in its task.
        family: its criterion.
        settings: those that its runs share.
    """

    name: str
    family: str
    settings: Identity = field(repr=False)


@dataclass(frozen=True)
class Cell:
    """A method at one rate: its seeds.

    Attributes:
        runs: all of them, whatever became of them, by seed and path.
        seeds: those that the report has elsewhere and that might be expected here.
        facts: what a comparison with it hangs on.
        mark: the strictest setups that it shares with the reference of its rate; None where there
            is nothing to compare it with.
        is_reference: whether the others of its rate are compared with it.
    """

    method: Method
    rate: Rate
    runs: tuple[Run, ...] = field(repr=False)
    seeds: tuple[Any, ...]
    facts: Facts = field(repr=False)
    mark: tuple[str, ...] | None = None
    is_reference: bool = False

    @cached_property
    def counted(self) -> list[Run]:
        """One run a seed: the first that is done, else the first."""
        chosen: dict[str, Run] = {}
        for run in sorted(self.runs, key=lambda run: (not run.is_done, run.path)):
            chosen.setdefault(repr(run.seed), run)
        return sorted(chosen.values(), key=lambda run: (str(run.seed), run.path))

    @property
    def done(self) -> list[Run]:
        """The runs that found something, one a seed."""
        return [run for run in self.counted if run.is_done]

    @property
    def accuracy(self) -> Spread | None:
        """Of the runs that are done, collapsed ones included."""
        return spread(run.accuracy for run in self.done)

    def mean(self, of: Callable[[Run], float | None]) -> float | None:
        """Return the mean of something over the runs that are done; None if one lacks it."""
        numbers = [of(run) for run in self.done]
        known = [number for number in numbers if number is not None]
        return statistics.fmean(known) if known and len(known) == len(numbers) else None

    @property
    def _total(self) -> float | None:
        return self.mean(lambda run: run.total)

    @property
    def kept(self) -> float | None:
        """The mean number of connections kept."""
        return self.mean(lambda run: run.kept)

    @property
    def effective_kept(self) -> float | None:
        """The mean number of effective connections."""
        return self.mean(lambda run: run.effective_kept)

    @property
    def direct_compression(self) -> float | None:
        """All connections / the mean number kept."""
        return compression(self._total, self.kept)

    @property
    def effective_compression(self) -> float | None:
        """All connections / the mean number of effective ones: infinite if no seed has any."""
        return compression(self._total, self.effective_kept)

    @property
    def seconds(self) -> float | None:
        """The mean time of training and tests."""
        return self.mean(lambda run: run.seconds)

    @property
    def inference_flops(self) -> float | None:
        """The mean FLOPs of what is effective, for one sample."""
        return self.mean(inference_flops)

    @property
    def training_flops(self) -> float | None:
        """The mean FLOPs of training."""
        return self.mean(training_flops)

    def number(self, status: Status) -> int:
        """Return how many runs have this status."""
        return sum(run.status is status for run in self.counted)

    @property
    def missing(self) -> list[Any]:
        """The seeds that other cells have, and this one does not."""
        here = {repr(run.seed) for run in self.runs}
        return [seed for seed in self.seeds if repr(seed) not in here]

    @property
    def doubles(self) -> list[Run]:
        """The runs that are there although another of the same seed counts."""
        return [run for run in self.runs if run not in self.counted]

    @property
    def notes(self) -> list[str]:
        """What to know of the seeds: which are missing, failed, collapsed or there twice."""
        found = [f"missing: {', '.join(map(str, self.missing))}"] if self.missing else []
        for status in (Status.FAILED, Status.UNFINISHED, Status.COLLAPSED):
            if number := self.number(status):
                found.append(f"{number} of {len(self.counted)} {status}")
        dead = sum(bool(r.collapsed_layers) for r in self.done if r.status is not Status.COLLAPSED)
        found += [f"{dead} of {len(self.done)} with dead layers"] if dead else []
        found += [f"seed {run.seed} twice" for run in self.doubles]
        return found


@dataclass(frozen=True)
class Task:
    """A network on a data set, and all that was done with it."""

    title: str
    cells: tuple[Cell, ...]

    @property
    def methods(self) -> list[Method]:
        """The methods, each once, in the order of the table."""
        return list(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def rates(self) -> list[Rate]:
        """The rates, each once, direct ones first."""
        return sorted({cell.rate for cell in self.cells})

    def at(self, rate: Rate) -> list[Cell]:
        """Return the cells of a rate."""
        return [cell for cell in self.cells if cell.rate == rate]

    def of(self, method: Method) -> list[Cell]:
        """Return the cells of a method."""
        return [cell for cell in self.cells if cell.method == method]


def tasks_of(runs: Iterable[Run], reference: str | None = None) -> list[Task]:
    """Return the tasks that runs with settings belong to, marked with comparison setups.

    Args:
        runs: of any number of data sets and networks.
        reference: the name of the method that others are compared with; None is, for each rate, the
            first with results of those that share S3.2 with the most others.

    Raises:
        LitPruneError: there is no method of that name.
    """
    known = [run for run in runs if run.config]
    seeds = sorted({repr(run.seed): run.seed for run in known}.values(), key=_numerically)
    by_task: dict[tuple[Any, Any], list[Run]] = {}
    for run in known:
        facts = facts_of(run)
        by_task.setdefault((facts.dataset, facts.network), []).append(run)
    titles = _titles(by_task)
    tasks = [Task(titles[key], _cells(of, seeds)) for key, of in by_task.items()]
    _require_method(tasks, reference)
    marked = [replace(task, cells=_marked(task, reference)) for task in tasks]
    return sorted(marked, key=lambda task: task.title)


def _numerically(seed: Any) -> tuple[bool, Any]:
    return (False, seed) if isinstance(seed, int) else (True, str(seed))


def _titles(by_task: dict[tuple[Any, Any], list[Run]]) -> dict[tuple[Any, Any], str]:
    """Name tasks by network and data, and by number what these names do not tell apart."""
    plain = {key: f"{of[0].network} on {of[0].dataset}" for key, of in by_task.items()}
    counts = {name: list(plain.values()).count(name) for name in plain.values()}
    found: dict[tuple[Any, Any], str] = {}
    seen: dict[str, int] = {}
    for key in sorted(plain, key=repr):
        name = plain[key]
        seen[name] = seen.get(name, 0) + 1
        found[key] = name if counts[name] == 1 else f"{name} #{seen[name]}"
    return found


def _cells(runs: Sequence[Run], seeds: Sequence[Any]) -> tuple[Cell, ...]:
    by_method: dict[Identity, list[Run]] = {}
    for run in runs:
        by_method.setdefault(identity(run), []).append(run)
    examples = {key: min(of, key=lambda run: run.path) for key, of in by_method.items()}
    cells = []
    for key, name in names_of(examples).items():
        method = Method(name, family(examples[key]), key)
        by_rate: dict[Rate, list[Run]] = {}
        for run in by_method[key]:
            by_rate.setdefault(rate_of(run), []).append(run)
        cells += [_cell(method, rate, of, seeds) for rate, of in by_rate.items()]
    return tuple(sorted(cells, key=lambda cell: (cell.rate, cell.method.name)))


def _cell(method: Method, rate: Rate, runs: Sequence[Run], seeds: Sequence[Any]) -> Cell:
    ordered = sorted(runs, key=lambda run: (_numerically(run.seed), run.path))
    facts = facts_of(ordered[0])
    cell = Cell(method, rate, tuple(ordered), tuple(seeds), facts)
    # What trained the weights of a file is not in the account.
    has_files = any(key.endswith("weights") for key, _ in facts.total_epochs)
    flops = None if has_files else cell.mean(training_flops_a_sample)
    return replace(cell, facts=replace(facts, training_flops=flops))


# Marks.


def _require_method(tasks: Sequence[Task], name: str | None) -> None:
    known = sorted({method.name for task in tasks for method in task.methods})
    if name is not None and name not in known:
        near = did_you_mean(name, known)
        raise LitPruneError(f"no method {name!r} to compare with{near}; known: {'; '.join(known)}")


def _marked(task: Task, reference: str | None) -> tuple[Cell, ...]:
    return tuple(cell for rate in task.rates for cell in _compared(task.at(rate), reference))


def _compared(cells: Sequence[Cell], reference: str | None) -> list[Cell]:
    """Mark the cells of one rate."""
    chosen = _reference(cells, reference)
    if chosen is None:
        return list(cells)
    return [
        replace(
            cell,
            mark=tuple(strictest(satisfied(cell.facts, chosen.facts))),
            is_reference=cell is chosen,
        )
        for cell in cells
    ]


def _reference(cells: Sequence[Cell], name: str | None) -> Cell | None:
    if len(cells) < 2:
        return None
    if name is not None:
        return next((cell for cell in cells if cell.method.name == name), None)

    def likes(cell: Cell) -> tuple[bool, int]:
        shared = sum("S3.2" in satisfied(cell.facts, other.facts) for other in cells)
        return bool(cell.done), shared

    return max(cells, key=likes)
