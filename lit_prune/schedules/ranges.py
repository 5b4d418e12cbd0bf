"""Ranges and times of a schedule's arguments, said in one way."""

from lit_prune.errors import LitPruneError
from lit_prune.timing import Time

__all__ = ["require", "time_of"]


def require(schedule: object, name: str, holds: bool, allowed: str) -> None:
    """Check an argument of ``schedule``.

    Raises:
        LitPruneError: it does not hold; the argument, its value and what is allowed are named.
    """
    if not holds:
        value = getattr(schedule, name)
        kind = type(schedule).__name__
        raise LitPruneError(f"{kind}: {name}={value} is out of range: {allowed}")


def time_of(schedule: object, name: str) -> Time:
    """Return the time that an argument of ``schedule`` says.

    Raises:
        LitPruneError: it says none; the argument is named.
    """
    try:
        return Time.parse(getattr(schedule, name))
    except LitPruneError as error:
        raise LitPruneError(f"{type(schedule).__name__}: {name}: {error}") from error
