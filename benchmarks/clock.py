"""Timing by turns, so that a noisy machine is noisy for all contestants alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

__all__ = ["by_turns", "table"]


def by_turns(
    contestants: Mapping[str, Callable[[], object]], turns: int, warmup: int = 1
) -> dict[str, float]:
    """Return the median seconds of each contestant, run one after the other, ``turns`` times."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + turns):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Print ``rows``, the first of which are the headings, as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  " + "  ".join(cells))
