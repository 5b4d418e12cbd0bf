"""Choices that many walkers make at once, and the coordinates of where they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = [
    "Draw",
    "Lists",
    "Table",
    "Walkers",
    "below",
    "flat",
    "looked_up",
    "one_of",
    "parted",
    "together",
    "unflat",
    "uniform",
    "with_row",
    "within",
]

# Given a count, returns so many numbers from 0 to below 1.
Draw = Callable[[int], np.ndarray]


@dataclass(frozen=True, eq=False)
class Walkers:
    """Walkers at one signal: the numbers of their walks, and their coordinates (rank, walkers)."""

    numbers: np.ndarray
    places: np.ndarray

    def at(self, places: Sequence[np.ndarray] | np.ndarray) -> Walkers:
        """Return the same walkers elsewhere."""
        if len(places):
            return Walkers(self.numbers, np.stack(list(places)))
        return Walkers(self.numbers, np.empty((0, len(self.numbers)), np.int64))


def together(crowd: Sequence[Walkers]) -> Walkers:
    """Return several groups of walkers at one signal as one."""
    if len(crowd) == 1:
        return crowd[0]
    numbers = np.concatenate([walkers.numbers for walkers in crowd])
    return Walkers(numbers, np.concatenate([walkers.places for walkers in crowd], axis=1))


def parted(walkers: Walkers, choices: np.ndarray) -> Iterator[tuple[int, Walkers]]:
    """Yield the walkers that made the same choice, with the choice."""
    for choice in np.unique(choices).tolist():
        mine = choices == choice
        yield choice, Walkers(walkers.numbers[mine], walkers.places[:, mine])


# Choices.


def uniform(generator: torch.Generator) -> Draw:
    """Return a source of numbers from 0 to below 1."""
    return lambda n: torch.rand(n, dtype=torch.float64, generator=generator).numpy()


def below(ends: np.ndarray | int, count: int, draw: Draw) -> np.ndarray:
    """Return ``count`` whole numbers from 0 to below ``ends``."""
    if isinstance(ends, int) and ends == 1:
        return np.zeros(count, np.int64)
    return (draw(count) * ends).astype(np.int64)


def one_of(possible: np.ndarray, draw: Draw) -> np.ndarray:
    """Return one of the possible choices (choices, walkers) for each walker."""
    choices, count = possible.shape
    if choices == 1:
        return np.zeros(count, np.int64)
    ranks = possible.cumsum(0)
    return (ranks <= below(ranks[-1], count, draw)).sum(0)


class Lists:
    """Lists of numbers by a key, to choose from."""

    def __init__(self, keys: np.ndarray, members: np.ndarray) -> None:
        order = keys.argsort(kind="stable")
        self._keys, self._members = keys[order], members[order]

    def pick(self, keys: np.ndarray, draw: Draw) -> np.ndarray:
        """Return a member of the list of each key."""
        first = np.searchsorted(self._keys, keys, side="left")
        counts = np.searchsorted(self._keys, keys, side="right") - first
        return self._members[first + below(counts, len(keys), draw)]


class Table:
    """Chances of choices, a row for each unit that chooses.

    Args:
        odds: how likely each choice is, relative to the others of its row.
        possible: which choices there are; where the odds of a row are all zero, they are alike.

    Examples:
        >>> table = Table(np.array([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]]), np.ones((2, 3), bool))
        >>> table.chances()
        array([[0.25      , 0.        , 0.75      ],
               [0.33333333, 0.33333333, 0.33333333]])
    """

    def __init__(self, odds: np.ndarray, possible: np.ndarray) -> None:
        is_zero = ~odds.any(1, keepdims=True)
        ends = np.where(is_zero, possible, odds).cumsum(1, dtype=np.float64)
        totals = ends[:, -1:].copy()
        np.divide(ends, totals, out=ends, where=totals > 0)
        # One rising sequence: the choices of row r lie between r and r + 1.
        ends += np.arange(len(ends))[:, None]
        self._shape, self._ends = ends.shape, ends.ravel()

    def chances(self) -> np.ndarray:
        """Return the probability of each choice."""
        ends = self._ends.reshape(self._shape) - np.arange(self._shape[0])[:, None]
        return np.diff(ends, axis=1, prepend=0)

    def pick(self, rows: np.ndarray, draw: Draw) -> np.ndarray:
        """Return a choice for each of ``rows``."""
        aims = np.minimum(rows + draw(len(rows)), np.nextafter(rows + 1.0, 0))
        return np.searchsorted(self._ends, aims, side="right") - rows * self._shape[1]


# Coordinates: a row for each dimension.


def looked_up(marks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return what compact ``marks`` hold at coordinates (rank, ...)."""
    pairs = zip(places, marks.shape, strict=True) if marks.ndim else ()
    found = marks[tuple(row if size > 1 else 0 for row, size in pairs)]
    return np.broadcast_to(found, places.shape[1:])


def with_row(places: np.ndarray, dim: int, row: np.ndarray) -> np.ndarray:
    """Return a copy of coordinates with another row."""
    places = places.copy()
    places[dim] = row
    return places


def within(row: np.ndarray, size: int) -> np.ndarray:
    """Return coordinates along a dimension that may have been collapsed."""
    return row if size > 1 else np.zeros_like(row)


def flat(rows: Iterable[np.ndarray], sizes: Iterable[int], count: int) -> np.ndarray:
    """Return the places of elements laid in a row."""
    index = np.zeros(count, np.int64)
    for row, size in zip(rows, sizes, strict=True):
        index = index * size + row
    return index


def unflat(index: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Return the coordinates of elements by their places in a row."""
    rows = []
    for size in reversed(sizes):
        index, row = np.divmod(index, size)
        rows.append(row)
    return rows[::-1]
