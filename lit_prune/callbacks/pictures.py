"""Pictures: masks as pixels, densities as bars, scores with their threshold.

Drawn by Pillow, which TensorBoard's images need anyway: a plotting library would take longer to
import than a small network takes to train an epoch.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lit_prune.callbacks.histogram import Scores
from lit_prune.measure import LayerMeasure

__all__ = ["DEAD", "LIVE", "PRUNED", "density_bars", "mask_pixels", "mask_picture", "score_picture"]

Pixels = np.ndarray

LIVE = (24, 78, 166)
DEAD = (236, 112, 20)
PRUNED = (238, 240, 243)
_INK, _PAPER, _LINE = (40, 44, 52), (255, 255, 255), (150, 156, 165)

# TensorBoard shows pictures about as wide as this, and shrinks the wider ones.
_WIDTH, _SIDE = 360, 512
_MARGIN, _ROW, _BAR, _NOTE = 8, 24, 170, 140


def mask_pixels(mask: Tensor, effective: Tensor | None = None, side: int = _SIDE) -> Pixels:
    """Return a layer as pixels, uint8 (height, width, 3): a row for each output.

    What is kept is live, or dead if it is kept and not effective; the rest is pruned. Weights of
    convolutions (out, in, h, w) lie as (out, in * h * w). Where a layer has more rows or columns
    than ``side``, a pixel is of several connections: its hue is the mean of those that are kept,
    and its strength the square root of their density, so that a few among many are still seen.

    Examples:
        >>> mask_pixels(torch.tensor([[True, False]])).tolist() == [[list(LIVE), list(PRUNED)]]
        True
    """
    kept = _flat(mask)
    live = kept if effective is None else kept & _flat(effective).to(kept.device)
    shares = torch.stack([_shares(live, side), _shares(kept & ~live, side)], -1).cpu().numpy()
    density = shares.sum(-1, keepdims=True)
    hue = shares @ np.array([LIVE, DEAD], dtype=np.float32) / np.maximum(density, 1e-9)
    strength = np.sqrt(density)
    pixels = strength * hue + (1 - strength) * np.array(PRUNED, dtype=np.float32)
    return np.rint(pixels).astype(np.uint8)


def mask_picture(mask: Tensor, effective: Tensor | None = None) -> Pixels:
    """Return :func:`mask_pixels`, enlarged if they are few, over a legend of the colours."""
    pixels = mask_pixels(mask, effective)
    times = max(1, _WIDTH // max(pixels.shape[:2]))
    pixels = pixels.repeat(times, 0).repeat(times, 1)
    names = {"live": LIVE, "pruned": PRUNED}
    if effective is not None:
        names = {"live": LIVE, "kept but dead": DEAD, "pruned": PRUNED}
    height, width = pixels.shape[:2]
    image, draw = _canvas(max(width, _WIDTH), height + _ROW)
    image.paste(Image.fromarray(pixels), (0, 0))
    _legend(draw, names, (0, height + 5))
    return np.asarray(image)


def density_bars(layers: Sequence[LayerMeasure], titles: Mapping[str, str]) -> Pixels:
    """Return a bar for each layer's density, and inside of it one for what is effective.

    The longest bar fills the width; each has its density written behind it.
    """
    rows = [(titles[x.name], x.kept / max(x.total, 1), _effective(x)) for x in layers]
    left = _MARGIN * 2 + max(_width(title) for title, _, _ in rows)
    longest = max(direct for _, direct, _ in rows) or 1.0
    image, draw = _canvas(left + _BAR + _NOTE, _ROW * (len(rows) + 1) + 2 * _MARGIN)
    _legend(draw, {"live": LIVE, "kept but dead": DEAD}, (left, _MARGIN))
    for number, (title, direct, effective) in enumerate(rows, start=1):
        top = _MARGIN + _ROW * number
        draw.text((_MARGIN, top + 3), title, _INK, _font())
        end, live_end = (left + round(_BAR * x / longest) for x in (direct, effective))
        _box(draw, left, top + 4, end, top + _ROW - 4, DEAD)
        _box(draw, left, top + 4, live_end, top + _ROW - 4, LIVE)
        text = _percent(direct)
        if effective < direct:
            text += f", live {_percent(effective)}"
        draw.text((end + 6, top + 3), text, _INK, _font())
    return np.asarray(image)


def score_picture(scores: Mapping[str, Scores], titles: Mapping[str, str]) -> Pixels:
    """Return the histogram of every layer's scores on one axis, with the threshold as a line."""
    left = _MARGIN * 2 + max(_width(titles[name]) for name in scores)
    height = 2 * _ROW
    image, draw = _canvas(left + _BAR + _NOTE, (height + 8) * len(scores) + 3 * _ROW)
    _legend(draw, {"kept": LIVE, "pruned": _LINE, "threshold": DEAD}, (left, _MARGIN))
    bottom = _MARGIN + _ROW
    for name, found in scores.items():
        bottom += height + 8
        draw.text((_MARGIN, bottom - height // 2 - 8), titles[name], _INK, _font())
        _score_row(draw, found, left, bottom, height)
    _axis(draw, next(iter(scores.values())), left, bottom)
    return np.asarray(image)


def _score_row(
    draw: ImageDraw.ImageDraw, scores: Scores, left: int, bottom: int, height: int
) -> None:
    counts, edges = scores.histogram.counts, scores.histogram.edges
    place = _place(scores)
    for number, count in enumerate(counts):
        if not count:
            continue
        ends = [left + round(_BAR * n / len(counts)) for n in (number, number + 1)]
        is_kept = place is not None and edges[number + 1] > place
        tall = max(2, round(height * count / max(counts)))
        _box(draw, ends[0], bottom - tall, ends[1], bottom, LIVE if is_kept else _LINE)
    draw.line((left, bottom, left + _BAR, bottom), _LINE)
    note = (left + _BAR + 6, bottom - height // 2 - 8)
    if place is None:
        draw.text(note, "none kept", _INK, _font())
        return
    share = (place - edges[0]) / (edges[-1] - edges[0])
    x = left + round(_BAR * min(max(share, 0.0), 1.0))
    draw.line((x, bottom - height, x, bottom), DEAD, 2)
    draw.text(note, f"kept from {scores.threshold:.3g}", DEAD, _font())


def _place(scores: Scores) -> float | None:
    """Return where the threshold lies on the axis of the histogram."""
    if scores.threshold is None or not scores.is_log:
        return scores.threshold
    return math.log10(scores.threshold) if scores.threshold > 0 else scores.histogram.low


def _axis(draw: ImageDraw.ImageDraw, scores: Scores, left: int, bottom: int) -> None:
    low, high = scores.histogram.low, scores.histogram.high
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        text = f"{10**value if scores.is_log else value:.2g}"
        x = left + round(_BAR * share)
        draw.line((x, bottom, x, bottom + 4), _LINE)
        draw.text((x - _width(text) // 2, bottom + 6), text, _INK, _font())


def _effective(layer: LayerMeasure) -> float:
    count = layer.kept if layer.effective is None else layer.effective
    return count / max(layer.total, 1)


def _percent(share: float) -> str:
    return f"{share:.3%}" if 0 < share < 0.01 else f"{share:.1%}"


def _flat(mask: Tensor) -> Tensor:
    return mask.flatten(1) if mask.dim() > 1 else mask.reshape(1, -1)


def _shares(marks: Tensor, side: int) -> Tensor:
    """Return the share of each block that is marked; the blocks at the end may be smaller."""
    shares = marks.float()
    for dim in (0, 1):
        size = shares.shape[dim]
        block = math.ceil(size / side)
        if block > 1:
            parts = shares.split(block, dim)
            shares = torch.stack([part.mean(dim) for part in parts], dim)
    return shares


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), _PAPER)
    return image, ImageDraw.Draw(image)


def _box(
    draw: ImageDraw.ImageDraw, left: int, top: int, right: int, bottom: int, colour: object
) -> None:
    if right > left:
        draw.rectangle((left, top, right - 1, bottom), colour)  # type: ignore[arg-type]


def _legend(
    draw: ImageDraw.ImageDraw, names: Mapping[str, tuple[int, int, int]], at: tuple[int, int]
) -> None:
    x, y = at
    for name, colour in names.items():
        draw.rectangle((x, y + 2, x + 11, y + 13), colour, _LINE)
        draw.text((x + 16, y), name, _INK, _font())
        x += 16 + _width(name) + 16


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def _width(text: str) -> int:
    return math.ceil(_font().getlength(text))
