"""Gradual pruning during training."""

from dataclasses import dataclass

from lit_prune.acts import Due, Prune
from lit_prune.errors import LitPruneError
from lit_prune.schedules.ranges import require, time_of
from lit_prune.schedules.schedule import Schedule
from lit_prune.timing import Course, Time

__all__ = ["Gradual"]


@dataclass(frozen=True)
class Gradual(Schedule):
    r"""Prunes a little at a time while the network trains, fast at first and slower later.

    After a share :math:`t` of the way from ``begin`` to ``end`` the sparsity is
    :math:`s_t = s \, (1 - (1 - t)^3)`, where :math:`s` is the target's; at ``end`` it is exactly
    the target's.

    Source: Zhu and Gupta 2018, "To prune, or not to prune", arXiv 1710.01878, eq. 1.

    Departs: the paper begins with a prune of nothing, which is left out.

    Args:
        begin: from when on, such as ``2ep`` or ``500it``.
        end: when the target is reached.
        every: how often is pruned between.
        power: the exponent; 3 in the paper, 1 removes equally many every time.
    """

    begin: str
    end: str
    every: str = "1ep"
    power: float = 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        begin, end, every = (time_of(self, name) for name in ("begin", "end", "every"))
        require(self, "every", every.count >= 1, "at least 1")
        require(self, "power", self.power > 0, "above 0")
        if begin.unit == end.unit and begin.count >= end.count:
            raise LitPruneError(f"Gradual: begin={begin} must come before end={end}")

    def plan(self, course: Course) -> list[Due]:
        """Return a prune every period after ``begin``, and the last at ``end``."""
        if not course.is_before(self.begin, self.end):
            raise LitPruneError(f"Gradual: begin={self.begin} must come before end={self.end}")
        between = course.every(self.begin, self.end, self.every)[1:]
        times = [time for time in between if course.is_before(time, self.end)]
        dues = [Due(time, Prune(self._keep(course, time, course.goal))) for time in times]
        end = Time.parse(self.end)
        end = course.at(end.count) if end.unit == "it" else end
        return [*dues, Due(end, Prune(course.goal))]

    def _keep(self, course: Course, time: Time, keep: int) -> int:
        """Return how many connections are kept at ``time``."""
        _, (begin, now, end) = course.alike(self.begin, time, self.end)
        left = (1 - (now - begin) / (end - begin)) ** self.power
        return keep + round((course.total - keep) * left)
