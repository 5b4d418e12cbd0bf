"""A live table of a sweep: how many trials are done, running, failed and waiting, and time left."""

import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from lit_prune.sweep.ledger import Attempt, State
from lit_prune.sweep.trials import Trial

__all__ = ["Board", "Look", "clock", "seconds_left"]

_QUIET = 5.0  # seconds between two lines where nothing can be drawn over
_SHOWN = 12  # trials that are named at a time


@dataclass(frozen=True)
class Look:
    """What the ledger says at one moment: every trial's state, and its last attempt."""

    states: Mapping[Trial, State]
    attempts: Mapping[Trial, Attempt | None]

    def of(self, state: State) -> list[Trial]:
        """Return the trials in a state."""
        return [trial for trial, here in self.states.items() if here is state]

    def counts(self) -> str:
        """Say how many trials are in each state.

        Examples:
            >>> Look({}, {}).counts()
            'done 0  running 0  failed 0  waiting 0'
        """
        order = (State.DONE, State.RUNNING, State.FAILED, State.WAITING)
        return "  ".join(f"{state} {len(self.of(state))}" for state in order)


@dataclass
class Board:
    """Shows looks: drawn over one another on a terminal, else a line for a change, now and then."""

    title: str
    jobs: int
    out: TextIO = field(default_factory=lambda: sys.stdout)
    _lines: int = 0
    _last: str = ""
    _time: float = float("-inf")

    def show(self, look: Look, is_last: bool = False) -> None:
        """Show the sweep as it stands."""
        head = f"{self.title}: {look.counts()}{_left(look, self.jobs)}"
        if self.out.isatty():
            self._draw([head, *([] if is_last else _details(look))])
        elif is_last or time.monotonic() - self._time >= _QUIET:
            self._say(head, look.counts())

    def _draw(self, lines: Sequence[str]) -> None:
        width = shutil.get_terminal_size().columns - 1
        back = f"\x1b[{self._lines}F" if self._lines else ""
        self.out.write(back + "\x1b[J" + "".join(f"{line[:width]}\n" for line in lines))
        self.out.flush()
        self._lines = len(lines)

    def _say(self, line: str, counts: str) -> None:
        if counts != self._last:
            print(line, file=self.out, flush=True)
            self._last, self._time = counts, time.monotonic()


def _details(look: Look) -> list[str]:
    """Name the trials that run and those that failed, as many as have room."""
    running = [
        f"  running  {clock(_elapsed(look.attempts[trial])):>7}  {trial.name}"
        for trial in look.of(State.RUNNING)
    ]
    failed = [
        f"  failed   {trial.name}: {attempt.error}"
        for trial in look.of(State.FAILED)
        if (attempt := look.attempts[trial])
    ]
    lines = running + failed
    more = len(lines) - _SHOWN
    return lines if more <= 0 else [*lines[:_SHOWN], f"  and {more} more"]


def _elapsed(attempt: Attempt | None) -> float:
    return time.time() - attempt.started if attempt else 0.0


def _left(look: Look, jobs: int) -> str:
    durations = [a.seconds for t in look.of(State.DONE) if (a := look.attempts[t]) and a.seconds]
    elapsed = [_elapsed(look.attempts[trial]) for trial in look.of(State.RUNNING)]
    left = seconds_left(durations, elapsed, len(look.of(State.WAITING)), jobs)
    return f"  {clock(left)} left" if left else ""


def seconds_left(
    durations: Sequence[float], elapsed: Iterable[float], waiting: int, jobs: int
) -> float | None:
    """Return how long the rest will take if trials take as long as on average; None if unknown.

    Args:
        durations: of the trials that are done.
        elapsed: how long those that run have run.
        waiting: how many have not begun.
        jobs: how many run at a time.

    Examples:
        >>> seconds_left([2.0, 4.0], [1.0], waiting=2, jobs=2)
        4.0
    """
    if not durations:
        return None
    mean = sum(durations) / len(durations)
    return (sum(max(0.0, mean - e) for e in elapsed) + waiting * mean) / jobs


def clock(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds.

    Examples:
        >>> clock(75), clock(3725)
        ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
