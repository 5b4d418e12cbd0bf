"""Histograms, counted on the device where the values are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.masks import Masks

__all__ = ["Histogram", "Scores", "histograms", "scores_of", "thresholds"]

_BINS = 64
# Scores further below the highest are put with the lowest shown.
_DECADES = 16


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each of many bins of one width.

    Attributes:
        low: where the first bin begins.
        high: where the last ends.
        counts: how many values each bin holds.
        least: the least value.
        most: the greatest.
        total: the sum of all values.
        squares: the sum of their squares.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    least: float
    most: float
    total: float
    squares: float

    @property
    def edges(self) -> list[float]:
        """Where the bins begin, and where the last ends."""
        width = (self.high - self.low) / len(self.counts)
        return [self.low + n * width for n in range(len(self.counts))] + [self.high]


@dataclass(frozen=True)
class Scores:
    """The scores of one layer, as they were when masks were found.

    Attributes:
        histogram: of the scores, or of their logarithms to the base 10.
        threshold: the least score that was kept; None if nothing was.
        is_log: whether the histogram is one of logarithms. It is where no score is negative; zeros,
            and what is more than 16 decades below the highest score, are counted in the first bin.
    """

    histogram: Histogram
    threshold: float | None
    is_log: bool


def histograms(
    values: Mapping[str, Tensor], span: tuple[float, float] | None = None
) -> dict[str, Histogram]:
    """Return a histogram of the values of each name; of none where there are none.

    Two transfers from the device serve all of them.

    Args:
        values: finite numbers of any shape, in floating point.
        span: where the bins of all begin and end; None are each one's own least and greatest.

    Examples:
        >>> histograms({"a": torch.tensor([0.0, 1.0, 1.0])})["a"].counts[::63]
        (1, 2)
    """
    given = {name: _countable(x) for name, x in values.items() if x.numel()}
    if not given:
        return {}
    moments = [torch.stack([x.min(), x.max(), x.sum(), x.square().sum()]) for x in given.values()]
    known = _together(moments).tolist()
    spans = [_wide(*(span or (least, most))) for least, most, *_ in known]
    pairs = zip(given.values(), spans, strict=True)
    counts = [_counted(x, low, high) for x, (low, high) in pairs]
    found = _together(counts).tolist()
    return {
        name: Histogram(*ends, tuple(map(round, count)), *moment)
        for name, ends, count, moment in zip(given, spans, found, known, strict=True)
    }


def thresholds(scores: Mapping[str, Tensor], masks: Masks) -> dict[str, float]:
    """Return the least finite score that ``masks`` keep of each layer, where there is one."""
    if not scores:
        return {}
    least = _together([_least_kept(x, masks[name]) for name, x in scores.items()]).tolist()
    return {name: x for name, x in zip(scores, least, strict=True) if x < torch.inf}


def scores_of(scores: Mapping[str, Tensor], masks: Masks) -> dict[str, Scores]:
    """Return the scores of each layer, on one scale, and where ``masks`` cut them.

    Infinite scores, of connections that were not ranked or are kept in any case, do not count.
    """
    ranked = {name: x.detach()[x.isfinite()] for name, x in scores.items()}
    ranked = {name: x for name, x in ranked.items() if x.numel()}
    if not ranked:
        return {}
    parts = [_landmarks(x, scores[name], masks[name]) for name, x in ranked.items()]
    marks = dict(zip(ranked, _together(parts).tolist(), strict=True))
    least, most = min(m[0] for m in marks.values()), max(m[1] for m in marks.values())
    is_log = least >= 0 and most > 0
    if is_log:
        high = torch.tensor(most).log10().item()
        smallest = min(m[2] for m in marks.values())
        low = max(torch.tensor(smallest).log10().item(), high - _DECADES)
        ranked = {name: x.log10().clamp(low, high) for name, x in ranked.items()}
        span = (low, high)
    else:
        span = (least, most)
    found = histograms(ranked, span)
    return {
        name: Scores(found[name], mark[3] if mark[3] < torch.inf else None, is_log)
        for name, mark in marks.items()
    }


def _counted(values: Tensor, low: float, high: float) -> Tensor:
    """Return how many values lie in each bin; those outside lie in the first and the last.

    Counted in integers: ``torch.histc`` stops at 2^24, and is not deterministic on every device.
    """
    places = ((values - low) * (_BINS / (high - low))).long().clamp_(0, _BINS - 1)
    return torch.bincount(places, minlength=_BINS)


def _landmarks(ranked: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Return the least score, the highest, the least above zero, and the least that is kept."""
    positive = torch.where(ranked > 0, ranked, torch.inf).min()
    return torch.stack([ranked.min(), ranked.max(), positive, _least_kept(scores, mask)])


def _least_kept(scores: Tensor, mask: Tensor) -> Tensor:
    none = torch.full((1,), torch.inf, dtype=scores.dtype, device=scores.device)
    is_kept = mask.to(scores.device) & scores.isfinite()
    return torch.cat([torch.where(is_kept, scores.detach(), torch.inf).flatten(), none]).min()


def _together(rows: list[Tensor]) -> Tensor:
    """Return tensors of one shape, which may lie on several devices, as one on the CPU."""
    return torch.stack([row.to(rows[0].device) for row in rows]).cpu().double()


def _countable(values: Tensor) -> Tensor:
    """Return the values in a form that can be counted everywhere."""
    values = values.detach().flatten()
    return values if values.dtype == torch.float64 else values.float()


def _wide(low: float, high: float) -> tuple[float, float]:
    """Return ends that have something between them."""
    if high > low:
        return low, high
    room = 1e-6 + 1e-3 * abs(low)
    return low - room, high + room
