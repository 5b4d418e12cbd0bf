"""What became of the trials, kept in the sweep's folder, so that any process can know or go on.

A finished trial has a summary in its run folder. One that runs is locked by its worker, and the
kernel opens the lock when the worker ends, however it ends. Only a failure must be written down.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from lit_prune.files import write_whole
from lit_prune.run import RunFolder
from lit_prune.sweep.trials import Trial

__all__ = ["Attempt", "Ledger", "State"]


class State(StrEnum):
    """Where a trial stands."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    WAITING = "waiting"


@dataclass(frozen=True)
class Attempt:
    """The last time that a worker took a trial.

    Attributes:
        started: seconds since the epoch.
        host: where the worker runs.
        pid: of the worker.
        seconds: how long it took; None while it runs, and if the worker was killed.
        error: why it failed, in one line; None if it did not.
    """

    started: float
    host: str
    pid: int
    seconds: float | None = None
    error: str | None = None

    @classmethod
    def now(cls) -> "Attempt":
        """Return an attempt of this process that starts now."""
        return cls(time.time(), socket.gethostname(), os.getpid())

    def ended(self, error: str | None) -> "Attempt":
        """Return this attempt as it ended just now."""
        return Attempt(self.started, self.host, self.pid, time.time() - self.started, error)


@dataclass(frozen=True)
class Ledger:
    """The folder of a sweep, and what it says of the trials in it."""

    path: Path

    def run_folder(self, trial: Trial) -> RunFolder:
        """Return the trial's run folder."""
        return RunFolder(self.path / trial.name)

    def log(self, trial: Trial) -> Path:
        """Return the file that takes what the trial prints."""
        return self.path / "logs" / f"{trial.name}.txt"

    @property
    def jobs(self) -> Path:
        """Where the jobs leave what they print."""
        return self._own / "jobs"

    @property
    def _own(self) -> Path:
        return self.path / ".sweep"

    def make(self) -> None:
        """Make the folders."""
        for folder in (self._own / "attempts", self._own / "locks", self.jobs, self.path / "logs"):
            folder.mkdir(parents=True, exist_ok=True)

    # Locks.

    @contextmanager
    def claimed(self, trial: Trial) -> Iterator[bool]:
        """Hold the trial's lock, if it is free and the trial has not yet ended; yield whether."""
        with self._locked(trial.name, fcntl.LOCK_EX) as is_held:
            yield is_held and self.state(trial, is_held=False) is State.WAITING

    @contextmanager
    def place(self, number: int) -> Iterator[bool]:
        """Hold the place of a worker, if it is free; yield whether."""
        with self._locked(f"worker {number}", fcntl.LOCK_EX) as is_held:
            yield is_held

    def is_free(self, number: int) -> bool:
        """Return whether no worker, of whatever sweep command, holds this place."""
        return self._is_unlocked(f"worker {number}")

    @contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[bool]:
        # The file stays: were it deleted, two could hold the lock of one name.
        with (self._own / "locks" / name).open("a") as file:
            is_held = _try(file, kind)
            try:
                yield is_held
            finally:
                # A process that the trial left behind may have inherited the file.
                fcntl.flock(file, fcntl.LOCK_UN)

    def _is_unlocked(self, name: str) -> bool:
        with self._locked(name, fcntl.LOCK_SH) as is_held:
            return is_held

    # Attempts.

    def attempt(self, trial: Trial) -> Attempt | None:
        """Return the last attempt at the trial, if there was one."""
        try:
            return Attempt(**json.loads(self._note(trial).read_text()))
        except FileNotFoundError:
            return None

    def note(self, trial: Trial, attempt: Attempt) -> None:
        """Write down an attempt."""
        write_whole(self._note(trial), json.dumps(asdict(attempt)) + "\n")

    def forget_failure(self, trial: Trial) -> None:
        """Let a failed trial be tried again."""
        if self.state(trial) is State.FAILED:
            self._note(trial).unlink(missing_ok=True)

    def _note(self, trial: Trial) -> Path:
        return self._own / "attempts" / f"{trial.name}.json"

    def state(self, trial: Trial, is_held: bool | None = None) -> State:
        """Return where the trial stands; ``is_held`` says so of its lock, where it is known."""
        if (self.path / trial.name / "summary.json").exists():
            return State.DONE
        attempt = self.attempt(trial)
        if attempt is None:
            return State.WAITING
        if attempt.error is not None:
            return State.FAILED
        if attempt.seconds is not None or is_held is False:
            return State.WAITING
        return State.WAITING if self._is_unlocked(trial.name) else State.RUNNING


def _try(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
