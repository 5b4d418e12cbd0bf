"""What every schedule is."""

from abc import ABC, abstractmethod

from lit_prune.acts import Due
from lit_prune.timing import Course

__all__ = ["Schedule"]

# More steps than any epoch has.
_MANY = 2**62


class Schedule(ABC):
    """Says what happens to a training when; it knows neither the model nor the criterion.

    A member is a frozen dataclass in a file of its own in ``lit_prune/schedules``. Its plan is a
    list of acts (:mod:`lit_prune.acts`), and masks only lose connections from one ``Prune`` to the
    next, down to exactly what the target keeps.
    """

    @abstractmethod
    def plan(self, course: Course) -> list[Due]:
        """Return the acts of the whole training, in the order in which they are done.

        An act at ``3ep`` is done before the first batch of epoch 3 (counted from 0), one at
        ``500it`` after optimizer step 500.
        """

    def length(self, steps: int | None) -> int | None:
        """Return how many epochs the training takes; None leaves that to the trainer.

        Args:
            steps: optimizer steps in an epoch; None where these are not known.
        """
        return None

    @property
    def fixes_length(self) -> bool:
        """Whether the schedule says how long the training takes, once it knows the steps."""
        return self.length(_MANY) is not None

    @property
    def wants_target(self) -> bool:
        """Whether the target says how far to prune; else the schedule does by itself."""
        return True
