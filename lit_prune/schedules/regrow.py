"""Dynamic sparse training."""

import math
from dataclasses import dataclass
from typing import get_args

from lit_prune.acts import Due, Grow, Prune, Rewire
from lit_prune.errors import LitPruneError
from lit_prune.schedules.ranges import require, time_of
from lit_prune.schedules.schedule import Schedule
from lit_prune.timing import Course, Time, TimeLike

__all__ = ["Regrow"]


@dataclass(frozen=True)
class Regrow(Schedule):
    r"""Prunes to the target at the start, and replaces connections while the network trains.

    Every so often each layer drops the share :math:`\frac{a}{2} (1 + \cos(\pi t / T))` of its
    connections (to the nearest whole number), those of the least magnitude, and grows as many
    others from zero, so that the layerwise densities stay. What grows is chosen among all that is
    not kept after the drop; a connection that is dropped and grown at once stays as it is. A direct
    target stays exact; an effective one is exact at the start.

    Source: ``random`` is SET, Mocanu et al. 2018, arXiv 1707.04780; ``gradient`` is RigL, Evci et
    al. 2020, "Rigging the lottery", arXiv 1911.11134, where both decay by the cosine.

    Departs: RigL leaves out the optimizer step in which it rewires; here it is made, by the new
    masks. SET drops as many positive as negative weights; here the smallest of both.

    Args:
        every: how often, such as ``100it``.
        share: the share :math:`a` to start with; 0.3 in the papers.
        by: what grows: ``random`` connections, or those of the largest ``gradient``.
        until: when it ends, and :math:`T`; None is after three quarters of the training.
    """

    every: str = "100it"
    share: float = 0.3
    by: Grow = "random"
    until: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, "every", time_of(self, "every").count >= 1, "at least 1")
        require(self, "share", 0 < self.share <= 1, "above 0, and at most 1")
        require(self, "by", self.by in get_args(Grow), f"one of {', '.join(get_args(Grow))}")
        if self.until is not None:
            time_of(self, "until")

    def plan(self, course: Course) -> list[Due]:
        """Return the prune at the start, and every replacement."""
        until = self._until(course)
        times = [
            t for t in course.every("0ep", until, self.every)[1:] if course.is_before(t, until)
        ]
        start = Due(Time(0, "ep"), Prune(course.goal))
        return [start, *(Due(t, Rewire(self._share(course, t, until), self.by)) for t in times)]

    def _until(self, course: Course) -> Time:
        if self.until is not None:
            return Time.parse(self.until)
        if course.epochs is None:
            raise LitPruneError("Regrow: until is needed where trainer.max_epochs is open")
        if course.steps is None:
            return Time(course.epochs * 3 // 4, "ep")
        return course.at(course.epochs * course.steps * 3 // 4)

    def _share(self, course: Course, time: Time, until: TimeLike) -> float:
        _, (now, end) = course.alike(time, until)
        return self.share / 2 * (1 + math.cos(math.pi * (now / end)))
