"""Errors that a user can mend: each is one line with the name, the value and the allowed set."""

from collections.abc import Iterable
from difflib import get_close_matches
from os import PathLike, fspath
from typing import Self

__all__ = [
    "FloorOutOfRange",
    "LitPruneError",
    "LitPruneWarning",
    "MasksMismatch",
    "NonFiniteScores",
    "QuotaOutOfRange",
    "RanksDiffer",
    "TargetMissed",
    "TrainingStopped",
    "UnreadableFile",
    "UnwritableFile",
    "did_you_mean",
    "first_line",
]


class LitPruneError(ValueError):
    """A request that cannot be met; ``train.py`` prints its one line and exits with code 2."""


class NonFiniteScores(LitPruneError):
    """A criterion scored a connection NaN or infinite, so nothing can be ranked."""


class FloorOutOfRange(LitPruneError):
    """Not enough connections are to be kept for the floor of every layer."""


class QuotaOutOfRange(LitPruneError):
    """A quota cannot keep as many connections as asked for."""


class MasksMismatch(LitPruneError):
    """Masks meet a model, or other masks, that they were not made for."""


class RanksDiffer(LitPruneError):
    """Processes that prune together hold different masks."""


class UnreadableFile(LitPruneError):
    """A file is missing, cut, or of another kind than expected."""


class UnwritableFile(LitPruneError, OSError):
    """A file cannot be written: the disk is full, the folder read-only, or the like."""

    @classmethod
    def of(cls, path: str | PathLike[str], error: OSError) -> Self:
        """Say which file it is, and what the operating system says."""
        return cls(f"cannot write {fspath(path)}: {error.strerror or error}")


class TrainingStopped(LitPruneError):
    """Training had begun and cannot go on; what it left is kept."""


class LitPruneWarning(UserWarning):
    """Something that a user should know of; ``train.py`` prints it as one line."""


class TargetMissed(LitPruneWarning):
    """No mask of a ranking has exactly the effective connections that were asked for."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``known``, else an empty string.

    Examples:
        >>> did_you_mean("fc1.wieght", ["fc1.weight", "fc2.weight"])
        "; did you mean 'fc1.weight'?"
    """
    nearest = get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind if it says nothing.

    Examples:
        >>> first_line(EOFError())
        'EOFError'
    """
    return next(iter(str(error).splitlines()), type(error).__name__)
