"""What every schedule is."""

from abc import ABC, abstractmethod

__all__ = ["Schedule"]


class Schedule(ABC):
    """Says when to prune and how far; it knows neither the model nor the criterion."""

    @abstractmethod
    def keep_from(self, epoch: int, total: int, keep: int) -> int | None:
        """Return how many connections are kept from the start of ``epoch`` on.

        Args:
            epoch: counted from the first epoch of training, 0.
            total: the number of prunable connections.
            keep: the number that the target keeps in the end.

        Returns:
            The number to prune down to, or None where nothing changes.
        """
