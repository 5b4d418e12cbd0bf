"""The command: from a sweep file to runs, followed until the last one ends."""

import argparse
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from lit_prune.cli import parsed, quiet
from lit_prune.errors import LitPruneError, did_you_mean
from lit_prune.options import Options
from lit_prune.sweep.board import Board, Look
from lit_prune.sweep.crew import CLUSTERS, Crew, cores, executor_of, gpus, threads_of
from lit_prune.sweep.description import Description
from lit_prune.sweep.ledger import Ledger, State
from lit_prune.sweep.results import rows_of, table, write_csv
from lit_prune.sweep.trials import Trial, trials_of
from lit_prune.sweep.worker import Worker

__all__ = ["run"]

INTERRUPTED = 128 + signal.SIGINT
_EVERY = 0.25  # seconds between two looks, at least
_RESTS = 100  # times as long as a look takes: hundreds of trials take their time, and a core
_ON_A_CLUSTER = 8  # jobs, unless more or fewer are asked for

_USAGE = "python -m lit_prune sweep FILE [options]"
_ABOUT = """\
Run every combination that FILE names, each as a run of train.py in a folder of its own, and print a
table. Trials that are done are not run again; unfinished and failed ones are. All other options are
those of train.py (python train.py --help) and hold for every trial: --data.root DIR, ...
"""
_MORE = """\
FILE has the keys: config, a base config or several; grid, a list of values for each option of
train.py, or a mapping of names to several options at once; a list of grids is their union; set,
options for all trials; slurm, parameters of the jobs. docs/sweeps.md says more.
"""
_HELP = {
    "--jobs": "how many trials run at a time, with the cores divided among them "
    f"(default: one a GPU, or else one a core; on a cluster {_ON_A_CLUSTER})",
    "--dir": "where the run folders go (default: runs/sweeps/<name of FILE>)",
    "--cluster": f"where jobs run: {', '.join(CLUSTERS)} (default: local)",
    "--dry-run": "only list the trials and where they stand",
    "--slurm.KEY": "parameter of the jobs: partition, time (in minutes), mem, gpus_per_node, "
    "cpus_per_task, account, qos, constraint, ...; as in FILE's slurm",
}


def run(args: Sequence[str]) -> int:
    """Run ``python -m lit_prune sweep`` with ``args``.

    Returns:
        0 if all trials are done, 1 if some are not, 130 if it was interrupted.

    Raises:
        LitPruneError: the file or an option is mistaken.
    """
    quiet()
    asked, others = _asked(args)
    slurm, extra = _apart(others)
    description = Description.read(asked.file)
    trials = trials_of(description, extra)
    ledger = Ledger(asked.dir or Path("runs") / "sweeps" / description.name)
    _check(trials, ledger)
    if asked.dry_run:
        print(_listed(_look(ledger, trials), ledger))
        return 0
    plan = _Plan(description.name, trials, ledger, asked.cluster, {**description.slurm, **slurm})
    return _carried_out(plan, asked.jobs)


# What is asked for.


def _asked(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our own options and those of others, which keep their order."""
    parser = _parser()
    asked, file, others = parser.parse_about(args)
    if file is None:
        raise LitPruneError(f"no sweep file; usage: {_USAGE}")
    if asked.jobs is not None and asked.jobs < 1:
        raise LitPruneError(f"--jobs {asked.jobs} is out of range: at least 1")
    if asked.cluster not in CLUSTERS:
        near = did_you_mean(asked.cluster, CLUSTERS)
        raise LitPruneError(
            f"unknown --cluster {asked.cluster}{near}; known: {', '.join(CLUSTERS)}"
        )
    asked.file = file
    return asked, others


def _parser() -> Options:
    parser = Options(_ABOUT, _HELP, usage=_USAGE, more=_MORE)
    parser.add("--jobs", type=int, metavar="N")
    parser.add("--dir", type=Path, metavar="DIR")
    parser.add("--cluster", default="local", metavar="WHERE")
    parser.add("--dry-run", action="store_true")
    parser.add("--slurm.KEY", metavar="VALUE")
    return parser


def _apart(others: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the parameters for SLURM, and the options of ``train.py``."""
    slurm: dict[str, Any] = {}
    extra: list[str] = []
    words = iter(others)
    for word in words:
        option, has_value, value = word.partition("=")
        if not option.startswith("--slurm."):
            extra.append(word)
            continue
        text = value if has_value else next(words, None)
        if text is None:
            raise LitPruneError(f"{option} has no value")
        slurm[option.removeprefix("--slurm.")] = text if ":" in text else yaml.safe_load(text)
    _require_no_slip(extra)
    return slurm, extra


def _require_no_slip(extra: Sequence[str]) -> None:
    for option in (word.partition("=")[0] for word in extra if word.startswith("--")):
        if option in ("--run_dir", "--overwrite"):
            raise LitPruneError(f"{option} is of one run: a sweep takes --dir")
        if "." not in option and (near := did_you_mean(option, _HELP)):
            raise LitPruneError(f"unknown option {option!r}{near}")
    if extra and not extra[0].startswith("-"):
        raise LitPruneError(f"{extra[0]!r} is a second sweep file or a stray word; usage: {_USAGE}")


# What is checked before anything runs.


def _check(trials: Sequence[Trial], ledger: Ledger) -> None:
    """Parse all trials as ``train.py`` would, and compare them with what lies in their folders.

    Raises:
        LitPruneError: a trial is mistaken, two are the same run, or a folder holds another one.
    """
    seen: dict[str, Trial] = {}
    for trial in tqdm(trials, "checking", leave=False, delay=3, disable=None):
        try:
            cli = parsed(list(trial.args))
            cli.manager()
            settings = cli.settings()
            _require_one_process(settings["trainer"])
            ledger.run_folder(trial).require_same(settings)
        except LitPruneError as error:
            hint = "; name another run_dir or pass --overwrite"
            text = str(error).replace(hint, "; delete that folder or name another --dir")
            raise LitPruneError(f"trial {trial.name}: {text}") from error
        twin = seen.setdefault(repr(settings), trial)
        if twin is not trial:
            raise LitPruneError(f"trials {twin.name} and {trial.name} are the same run")


def _require_one_process(trainer: Mapping[str, Any]) -> None:
    """Check that a trial does not start other processes: it is forked, so they could not follow."""
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    number = len(devices) if isinstance(devices, list) else devices
    if str(number) not in ("auto", "1") or nodes != 1:
        raise LitPruneError(
            f"trainer.devices={devices} and trainer.num_nodes={nodes}: a trial takes one device"
        )


def _listed(look: Look, ledger: Ledger) -> str:
    lines = [f"{state:8} {trial.name}" for trial, state in look.states.items()]
    return "\n".join([*lines, "", f"{ledger.path}: {look.counts()}"])


# What is done.


@dataclass(frozen=True)
class _Plan:
    """All that is to be run, and where."""

    name: str
    trials: Sequence[Trial]
    ledger: Ledger
    cluster: str
    slurm: Mapping[str, Any]

    def crew(self, size: int) -> Crew:
        """Return the workers, none of them hired yet."""
        threads = threads_of(self.cluster, size, self.slurm)
        jobs = self.ledger.jobs
        return Crew(
            executor_of(self.cluster, jobs, self.name, threads, self.slurm),
            partial(_worker, self, threads, gpus() if self.cluster != "slurm" else []),
            size,
            self.ledger.is_free,
        )


def _worker(plan: _Plan, threads: int, devices: Sequence[str], place: int) -> Worker:
    mine = devices[place % len(devices)] if devices else None
    path = plan.ledger.path.absolute()
    return Worker(path, tuple(plan.trials), place, threads, mine)


def _size(cluster: str, jobs: int | None) -> int:
    """Return how many workers there shall be; as many as are asked for, where they are."""
    if cluster == "debug":
        return 1
    return jobs or (_ON_A_CLUSTER if cluster == "slurm" else len(gpus()) or cores())


def _carried_out(plan: _Plan, jobs: int | None) -> int:
    ledger = plan.ledger
    size = min(_size(plan.cluster, jobs), len(plan.trials))
    try:
        ledger.make()
    except OSError as error:
        raise LitPruneError(f"cannot write to {ledger.path}: {error.strerror}") from error
    crew = plan.crew(size)
    for trial in plan.trials:
        ledger.forget_failure(trial)
    board = Board(plan.name, size)
    try:
        with _interrupted_by_sigterm(), _threads(threads_of(plan.cluster, size, plan.slurm)):
            look = _followed(plan, crew, board)
    except KeyboardInterrupt:
        return _stopped(plan, crew)
    code = _summed_up(plan, look)
    crew.leave(10)
    return code


def _followed(plan: _Plan, crew: Crew, board: Board) -> Look:
    """Look at the trials until none can change any more."""
    ended = len(_ended(look := _look(plan.ledger, plan.trials)))
    spent = 0.0
    while work := len(plan.trials) - len(_ended(look)):
        crew.earn(len(_ended(look)) - ended)
        ended = len(_ended(look))
        crew.fill(work)
        board.show(look)
        time.sleep(max(_EVERY, _RESTS * spent))
        at_work = crew.is_at_work()
        start = time.monotonic()
        look = _look(plan.ledger, plan.trials, look)
        spent = time.monotonic() - start
        if not (at_work or look.of(State.RUNNING) or crew.left):
            break
    board.show(look, is_last=True)
    return look


def _ended(look: Look) -> list[Trial]:
    return look.of(State.DONE) + look.of(State.FAILED)


def _look(ledger: Ledger, trials: Sequence[Trial], before: Look | None = None) -> Look:
    """Ask the ledger; not again for what was done ``before``."""
    done = set(before.of(State.DONE)) if before else set()
    states = {t: State.DONE if t in done else ledger.state(t) for t in trials}
    attempts = {
        t: before.attempts[t] if before and t in done else ledger.attempt(t) for t in trials
    }
    return Look(states, attempts)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Stop by ``kill`` as by Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let the processes that are started here use so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, str(number))
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _stopped(plan: _Plan, crew: Crew) -> int:
    """End what was started, or say how to."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        numbers = crew.stop()
    finally:
        signal.signal(signal.SIGINT, before)
    look = _look(plan.ledger, plan.trials)
    write_csv(plan.ledger, rows_of(plan.ledger, look))
    print(f"\nstopped: {look.counts()}; the same command goes on")
    if numbers:
        print(f"the jobs go on; to end them: scancel {' '.join(numbers)}")
    return INTERRUPTED


def _summed_up(plan: _Plan, look: Look) -> int:
    rows = rows_of(plan.ledger, look)
    write_csv(plan.ledger, rows)
    print(f"\n{table(rows)}\n\nin {plan.ledger.path}: sweep.csv, logs/, a folder for each trial")
    number = Counter(look.states.values())
    if number[State.WAITING]:
        print(
            f"{number[State.WAITING]} trials were not run: the workers ended before; see "
            f"{plan.ledger.jobs}"
        )
    return 0 if number[State.DONE] == len(plan.trials) else 1
