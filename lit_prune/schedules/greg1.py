"""Growing regularisation of what is picked: GReg-1."""

import math
from dataclasses import dataclass

from lit_prune.acts import Due, Pick, PrunePicked, Push
from lit_prune.schedules.ranges import require, time_of
from lit_prune.schedules.schedule import Schedule
from lit_prune.timing import Course

__all__ = ["GReg1", "growth", "require_steps"]

# A plan has an act for each rise.
_MOST = 1_000_000


@dataclass(frozen=True)
class GReg1(Schedule):
    r"""Pulls what is to be pruned to zero by an L2 penalty that grows, and then removes it.

    At ``begin`` the criterion picks, once, what the target will remove. The gradient of what is
    picked gets :math:`\lambda w`, where :math:`\lambda` rises by ``step`` from period to period up
    to ``ceiling``. After the last period, and ``settle`` more, it is removed, and the network
    trains on without it.

    Source: Wang et al. 2021, "Neural pruning via growing regularization", arXiv 2012.09243,
    algorithm 1; ``begin``, its dense training, comes before.

    Args:
        begin: how long the dense network trains first.
        every: the period, such as ``10it``.
        step: by how much the penalty rises in a period; 1e-4 in the paper.
        ceiling: where it ends; 1 in the paper.
        settle: how long the network trains under the full penalty.
    """

    begin: str
    every: str = "10it"
    step: float = 1e-4
    ceiling: float = 1.0
    settle: str = "0it"

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self, "every", time_of(self, "every").count >= 1, "at least 1")
        require(self, "ceiling", self.step <= self.ceiling < math.inf, f"at least step={self.step}")
        require_steps(self, "step", self.ceiling)
        for name in ("begin", "settle"):
            time_of(self, name)

    def plan(self, course: Course) -> list[Due]:
        """Return the pick, every rise of the penalty, and the prune."""
        unit, (begin, every, settle) = course.alike(self.begin, self.every, self.settle)
        rises, end = growth(begin, every, self.step, self.ceiling)
        return [
            Due(course.time(begin, unit), Pick(course.goal)),
            *(Due(course.time(when, unit), Push(strength)) for when, strength in rises),
            Due(course.time(end + settle, unit), PrunePicked()),
        ]


def require_steps(schedule: Schedule, name: str, ceiling: float) -> None:
    """Check that a penalty reaches its ceiling by steps of a size that makes sense.

    Raises:
        LitPruneError: the steps named ``name`` are none, or more than a million.
    """
    step = getattr(schedule, name)
    require(schedule, name, step > 0, "above 0")
    require(schedule, name, ceiling <= _MOST * step, f"at least {ceiling / _MOST:g}")


def growth(
    begin: int, every: int, step: float, ceiling: float, start: float = 0.0
) -> tuple[list[tuple[int, float]], int]:
    """Return when a penalty rises and to how much, and where its last period ends.

    Examples:
        >>> growth(100, 10, step=0.4, ceiling=1.0)
        ([(100, 0.4), (110, 0.8), (120, 1.0)], 130)
    """
    number = math.ceil(round((ceiling - start) / step, 9))
    heights = [min(start + step * rise, ceiling) for rise in range(1, number + 1)]
    rises = [(begin + every * turn, height) for turn, height in enumerate(heights)]
    return rises, begin + every * number
