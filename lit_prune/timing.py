"""Times of a training, as a config writes them (``2ep``, ``500it``), and the course they lie on."""

import re
from dataclasses import dataclass
from typing import Literal

from lit_prune.errors import LitPruneError

__all__ = ["Course", "Time", "TimeLike"]

Unit = Literal["ep", "it"]
_TEXT = re.compile(r"\s*(\d+)\s*(ep|it)\s*")


@dataclass(frozen=True)
class Time:
    """A moment of a training: so many epochs, or so many optimizer steps, after its start.

    Examples:
        >>> Time.parse("2ep")
        Time(count=2, unit='ep')
        >>> print(Time.parse("500it"))
        500it
    """

    count: int
    unit: Unit

    @classmethod
    def parse(cls, value: "TimeLike") -> "Time":
        """Return the time that ``value`` says: ``2ep`` in epochs or ``500it`` in optimizer steps.

        Raises:
            LitPruneError: it says neither.
        """
        if isinstance(value, Time):
            return value
        if not (match := _TEXT.fullmatch(str(value))):
            raise LitPruneError(
                f"time {str(value)!r} is not understood; write '2ep' (epochs) or '500it' "
                "(optimizer steps)"
            )
        unit: Unit = "ep" if match[2] == "ep" else "it"
        return cls(int(match[1]), unit)

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


TimeLike = Time | str


@dataclass(frozen=True)
class Course:
    """What a schedule may know of a training before it starts.

    Attributes:
        total: the number of prunable connections.
        keep: how many of them the target keeps in the end; None where the schedule has its own say.
        epochs: how long the training takes; None where that is open.
        steps: optimizer steps in an epoch; None where that is not known.
    """

    total: int
    keep: int | None = None
    epochs: int | None = None
    steps: int | None = None

    @property
    def goal(self) -> int:
        """How many connections the target keeps in the end.

        Raises:
            LitPruneError: there is no target.
        """
        if self.keep is None:
            raise LitPruneError("this schedule prunes to a target, and there is none")
        return self.keep

    def step(self, time: TimeLike) -> int:
        """Return how many optimizer steps lie before ``time``.

        Raises:
            LitPruneError: that hangs on the number of steps in an epoch, which is not known.

        Examples:
            >>> Course(total=100, steps=600).step("2ep")
            1200
        """
        time = Time.parse(time)
        return time.count if time.unit == "it" else time.count * self._steps(time)

    def epoch(self, time: TimeLike) -> int:
        """Return the epoch, counted from 0, in which ``time`` lies.

        Examples:
            >>> Course(total=100, steps=600).epoch("1300it")
            2
        """
        time = Time.parse(time)
        return time.count if time.unit == "ep" else time.count // self._steps(time)

    def at(self, step: int) -> Time:
        """Return the time after ``step`` optimizer steps, in epochs where an epoch begins there.

        Examples:
            >>> course = Course(total=100, steps=600)
            >>> print(course.at(1200), course.at(1300))
            2ep 1300it
        """
        if self.steps is not None and step % self.steps == 0:
            return Time(step // self.steps, "ep")
        return Time(step, "it")

    def every(self, begin: TimeLike, end: TimeLike, period: TimeLike) -> list[Time]:
        """Return ``begin``, and then every ``period`` up to ``end``, which may be the last.

        Raises:
            LitPruneError: the period is nothing.

        Examples:
            >>> [str(time) for time in Course(total=100).every("1ep", "6ep", "2ep")]
            ['1ep', '3ep', '5ep']
        """
        if not Time.parse(period).count:
            raise LitPruneError(f"every={period} is out of range: at least 1")
        unit, (first, last, stride) = self.alike(begin, end, period)
        return [self.time(count, unit) for count in range(first, last + 1, stride)]

    def is_before(self, one: TimeLike, other: TimeLike) -> bool:
        """Return whether ``one`` comes before ``other``."""
        _, (first, second) = self.alike(one, other)
        return first < second

    def alike(self, *times: TimeLike) -> tuple[Unit, list[int]]:
        """Return times as counts of one unit, and the unit: steps only if one of them is in steps.

        So times that are all in epochs go without the number of steps in one.

        Examples:
            >>> Course(total=100, steps=600).alike("2ep", "500it", "0it")
            ('it', [1200, 500, 0])
        """
        parsed = [Time.parse(time) for time in times]
        units = {time.unit for time in parsed if time.count}
        if "it" not in units:
            return "ep", [time.count for time in parsed]
        return "it", [self.step(time) for time in parsed]

    def time(self, count: int, unit: Unit) -> Time:
        """Return the time after ``count`` of ``unit``, in epochs where an epoch begins there."""
        return self.at(count) if unit == "it" else Time(count, unit)

    def _steps(self, time: Time) -> int:
        if not time.count:
            return 1
        if self.steps is None:
            raise LitPruneError(
                f"{time} and the number of epochs do not compare: the training data do not say how "
                "many batches they have; write all times in one unit"
            )
        return self.steps
