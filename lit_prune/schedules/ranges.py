"""Ranges of a schedule's arguments, said in one way."""

from lit_prune.errors import LitPruneError

__all__ = ["require"]


def require(schedule: object, name: str, holds: bool, allowed: str) -> None:
    """Check an argument of ``schedule``.

    Raises:
        LitPruneError: it does not hold; the argument, its value and what is allowed are named.
    """
    if not holds:
        value = getattr(schedule, name)
        kind = type(schedule).__name__
        raise LitPruneError(f"{kind}: {name}={value} is out of range: {allowed}")
