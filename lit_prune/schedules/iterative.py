"""Iterative pruning, with rewinding."""

from dataclasses import dataclass
from typing import Literal, get_args

from lit_prune.acts import Act, Due, HoldRate, Prune, Remember, RewindRates, RewindWeights
from lit_prune.errors import LitPruneError
from lit_prune.schedules.ranges import require, time_of
from lit_prune.schedules.schedule import Schedule
from lit_prune.spine import budgets
from lit_prune.timing import Course, Time

__all__ = ["Iterative"]

Rewind = Literal["weights", "learning_rate", "fine_tune", "init"]

# What is remembered at the rewinding point, and what follows every prune.
_REWINDS: dict[str, tuple[list[Act], list[Act]]] = {
    "weights": ([Remember()], [RewindWeights()]),
    "init": ([Remember()], [RewindWeights()]),
    "learning_rate": ([Remember(weights=False)], [RewindRates()]),
    "fine_tune": ([], [HoldRate()]),
}


@dataclass(frozen=True)
class Iterative(Schedule):
    """Trains, prunes a part, goes back, and trains again: iterative (magnitude) pruning.

    Level 0 is dense training; a prune opens each of the ``levels`` after it. Each trains from the
    rewinding point to the end, so that every level repeats the same learning rates. With a target
    the levels keep a geometric sequence down to exactly it; with ``share`` level l keeps
    ``(1 - share) ** l`` of all connections, to the nearest whole number.

    Source: Frankle and Carbin 2019, "The lottery ticket hypothesis", arXiv 1803.03635 (``init``);
    Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis", arXiv
    1912.05671 (``weights``); Renda et al. 2020, "Comparing rewinding and fine-tuning in neural
    network pruning", arXiv 2003.02389 (``learning_rate``, ``fine_tune``).

    Args:
        levels: how many prunes there are.
        epochs: of dense training, and what the learning-rate schedule is made for.
        rewind: what goes back after a prune. ``weights``: weights, buffers, optimizer states and
            learning rates, exactly as they were; ``init``: the same, to before the first step;
            ``learning_rate``: the rates alone; ``fine_tune``: nothing, and the last rate stays.
        rewind_to: the rewinding point, such as ``2ep`` or ``500it``. A level begins there, at an
            epoch's start, and trains the epochs that dense training had left: of a point inside an
            epoch, those of that whole epoch and after it.
        share: of the connections left, how much every level removes; instead of a target.
    """

    levels: int
    epochs: int
    rewind: Rewind = "weights"
    rewind_to: str = "0ep"
    share: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, "levels", self.levels >= 1, "at least 1")
        require(self, "epochs", self.epochs >= 1, "at least 1")
        known = ", ".join(get_args(Rewind))
        require(self, "rewind", self.rewind in _REWINDS, f"one of {known}")
        require(self, "share", self.share is None or 0 < self.share < 1, "between 0 and 1")
        time = time_of(self, "rewind_to")
        if self.rewind == "init" and time.count:
            raise LitPruneError(
                f"Iterative: rewind='init' goes back to the start, not to rewind_to={time}; "
                "rewind='weights' does that"
            )
        if time.unit == "ep":
            self._left(time.count)

    @property
    def wants_target(self) -> bool:
        """Whether the target says how far to prune; else the share does."""
        return self.share is None

    def length(self, steps: int | None) -> int | None:
        """Return the epochs of all levels; None while a point in steps has no epoch yet."""
        point = Time.parse(self.rewind_to)
        if point.unit == "it" and steps is None:
            return None
        return self.epochs + self.levels * self._left(Course(0, steps=steps).epoch(point))

    def plan(self, course: Course) -> list[Due]:
        """Return the snapshot, and for each level its prune and what goes back."""
        point = Time.parse(self.rewind_to)
        point = course.at(point.count) if point.unit == "it" else point
        remembered, after = _REWINDS[self.rewind]
        dues = [Due(point, act) for act in remembered]
        left = self._left(course.epoch(point))
        for level, keep in enumerate(self._counts(course)):
            start = Time(self.epochs + level * left, "ep")
            dues += [Due(start, act) for act in [Prune(keep), *after]]
        return dues

    def _counts(self, course: Course) -> list[int]:
        """Return how many connections each level keeps."""
        if self.share is not None:
            left = 1 - self.share
            return [round(course.total * left**level) for level in range(1, self.levels + 1)]
        counts = list(budgets(course.total, course.goal, self.levels))
        return counts or [course.total] * self.levels

    def _left(self, epoch: int) -> int:
        """Return how many epochs of dense training lie behind the start of ``epoch``."""
        if epoch >= self.epochs:
            raise LitPruneError(
                f"Iterative: rewind_to={self.rewind_to} is out of range: before the end of the "
                f"{self.epochs} epochs of dense training"
            )
        return self.epochs - epoch
