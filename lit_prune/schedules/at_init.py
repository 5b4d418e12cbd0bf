"""Pruning at initialization."""

from dataclasses import dataclass

from lit_prune.acts import Due, Prune
from lit_prune.schedules.schedule import Schedule
from lit_prune.timing import Course, Time

__all__ = ["AtInit"]


@dataclass(frozen=True)
class AtInit(Schedule):
    """Prunes once, before the first step of training, straight to the target."""

    def plan(self, course: Course) -> list[Due]:
        """Return one prune, at the start."""
        return [Due(Time(0, "ep"), Prune(course.goal))]
