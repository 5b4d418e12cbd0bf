"""A worker: imports once, then takes trial after trial, each in a child of its own."""

import ctypes
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lit_prune.cli import main
from lit_prune.sweep.ledger import Attempt, Ledger
from lit_prune.sweep.trials import Trial

__all__ = ["Worker"]

# What runs import late; here it is imported once. None of it starts threads or a CUDA context.
_NEEDED_BY_RUNS = (
    *("tensorboard", "torch.utils.tensorboard", "tensorboard.plugins.hparams.plugin_data_pb2"),
    *("sklearn.datasets", "torch._dynamo"),
)

_FORK = multiprocessing.get_context("fork")
_LEAVING = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Worker:
    """What a job of submitit calls.

    A trial is forked, so that nothing that it does, leaks or dies of touches the next; and a fork
    is only sound while its parent has run nothing in parallel and has not touched a GPU.

    Attributes:
        path: the sweep's folder.
        trials: all of them; it takes those that are free.
        place: its number; a second worker of the same place leaves at once.
        threads: how many a trial may use.
        devices: what ``CUDA_VISIBLE_DEVICES`` is set to; None leaves it.
    """

    path: Path
    trials: tuple[Trial, ...]
    place: int
    threads: int
    devices: str | None = None

    def __call__(self) -> int:
        """Run trials until none is free; return how many it ran."""
        ledger = Ledger(self.path)
        with _ended_by_sigterm(), ledger.place(self.place) as is_mine:
            if not is_mine:
                return 0
            if self.devices is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = self.devices
            for module in _NEEDED_BY_RUNS:
                import_module(module)
            return sum(iter(lambda: self._once_through(ledger), 0))

    def checkpoint(self) -> Any:
        """Return what a requeued job does: the same, since the folder knows the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _once_through(self, ledger: Ledger) -> int:
        """Run every trial that is free when its turn comes; return how many these were."""
        count = 0
        for trial in self.trials:
            with ledger.claimed(trial) as is_mine:
                if is_mine:
                    self._run(trial, ledger)
                    count += 1
        return count

    def _run(self, trial: Trial, ledger: Ledger) -> None:
        attempt = Attempt.now()
        ledger.note(trial, attempt)
        log = ledger.log(trial)
        start = log.stat().st_size if log.exists() else 0
        folder = ledger.run_folder(trial)
        args = [*trial.args, "--run_dir", str(folder.path)]
        code = self._exit_code(args, log)
        is_done = code == 0 and folder.summary() is not None
        error = None if is_done else _reason(code, _written(log, start))
        ledger.note(trial, attempt.ended(error))

    def _exit_code(self, args: Sequence[str], log: Path) -> int:
        """Run ``train.py`` in a child; it does not outlive this call."""
        process = _FORK.Process(target=_train, args=(args, log, self.threads, os.getpid()))
        # A signal that makes the worker leave must not come between the fork and the try.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEAVING)
        process.start()
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            process.join()
        finally:
            if process.is_alive():
                process.kill()
                process.join()
        assert process.exitcode is not None
        return process.exitcode


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """End locally by SIGTERM, which submitit ignores; on a cluster it is only the first warning."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "local":
        yield
        return

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _train(args: list[str], log: Path, threads: int, parent: int) -> None:
    """Be the trial's process."""
    _die_with(parent)
    # A cluster signals all processes of a job; its worker decides what that means.
    for number in (signal.SIGINT, *_LEAVING):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEAVING)
    # It is a run of its own, and not, as Lightning would think, a task of the job.
    os.environ.pop("SLURM_NTASKS", None)
    _print_to(log)
    print("$", shlex.join(["python", "train.py", *args]))
    torch.set_num_threads(threads)
    sys.exit(main(args))


def _die_with(parent: int) -> None:
    """Be killed when the worker is, so that nobody else runs this trial while it goes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _print_to(log: Path) -> None:
    file = log.open("a", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file


def _written(log: Path, start: int) -> str:
    """Return what a log took since it had ``start`` bytes, or the last of it."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - 10_000))
        return file.read().decode(errors="replace")


def _reason(code: int, log: str) -> str:
    r"""Say in one line why a trial failed.

    Examples:
        >>> _reason(2, "$ python train.py\nerror: no such file\n"), _reason(-9, "")
        ('no such file', 'killed by SIGKILL: was there too little memory?')
    """
    if code < 0:
        hint = ": was there too little memory?" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    lines = [line for line in log.splitlines() if line.strip()]
    mistakes = [line for line in lines if line.startswith("error: ")]
    if code == 2 and mistakes:
        return mistakes[-1].removeprefix("error: ")
    _, traceback, rest = log.rpartition("Traceback (most recent call last):\n")
    raised = [line for line in rest.splitlines() if line.strip() and not line.startswith(" ")]
    if traceback and raised:
        return raised[0]
    return lines[-1].strip() if len(lines) > 1 else f"exit code {code}"
