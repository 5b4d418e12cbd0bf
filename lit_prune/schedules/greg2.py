"""Growing regularisation of everything, then of what is picked: GReg-2."""

import math
from dataclasses import dataclass

from lit_prune.acts import Due, Pick, PrunePicked, Push
from lit_prune.schedules.greg1 import growth, require_steps
from lit_prune.schedules.ranges import require, time_of
from lit_prune.schedules.schedule import Schedule
from lit_prune.timing import Course

__all__ = ["GReg2"]


@dataclass(frozen=True)
class GReg2(Schedule):
    r"""Lets a growing L2 penalty part the weights before it is picked what to remove.

    From ``begin`` on every prunable weight is pulled to zero, by :math:`\lambda w` in its gradient,
    where :math:`\lambda` rises by ``spread`` from period to period up to ``parting``. Weights that
    matter withstand it longer. Then the criterion picks by what they have become; the penalty of
    what is picked goes on rising as in :class:`GReg1`, from there, and that of all others ends.

    Source: Wang et al. 2021, "Neural pruning via growing regularization", arXiv 2012.09243,
    algorithm 2.

    Departs: the paper's code pulls what is not picked away from zero again for a while.

    Args:
        begin: how long the dense network trains first.
        every: the period, such as ``10it``.
        spread: by how much the penalty on all rises in a period; 1e-5 in the paper.
        parting: the penalty on all at which is picked; 0.01 in the paper.
        step: by how much the penalty on what is picked rises in a period; 1e-4 in the paper.
        ceiling: where that ends; 1 in the paper.
        settle: how long the network trains under the full penalty.
    """

    begin: str
    every: str = "10it"
    spread: float = 1e-5
    parting: float = 0.01
    step: float = 1e-4
    ceiling: float = 1.0
    settle: str = "0it"

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, "every", time_of(self, "every").count >= 1, "at least 1")
        require(self, "parting", self.parting >= self.spread, f"at least spread={self.spread}")
        above = f"above parting={self.parting}"
        require(self, "ceiling", self.parting < self.ceiling < math.inf, above)
        require_steps(self, "step", self.ceiling)
        require_steps(self, "spread", self.parting)
        for name in ("begin", "settle"):
            time_of(self, name)

    def plan(self, course: Course) -> list[Due]:
        """Return the rises of both penalties, the pick between them, and the prune."""
        unit, (begin, every, settle) = course.alike(self.begin, self.every, self.settle)
        first, parted = growth(begin, every, self.spread, self.parting)
        second, end = growth(parted, every, self.step, self.ceiling, self.parting)

        def pushes(rises: list[tuple[int, float]], everywhere: bool) -> list[Due]:
            return [
                Due(course.time(when, unit), Push(height, everywhere)) for when, height in rises
            ]

        return [
            *pushes(first, everywhere=True),
            Due(course.time(parted, unit), Pick(course.goal)),
            *pushes(second, everywhere=False),
            Due(course.time(end + settle, unit), PrunePicked()),
        ]
