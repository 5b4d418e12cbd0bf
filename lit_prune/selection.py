"""Selection: the k largest of many numbers, exactly and without a sort."""

from collections.abc import Sequence
from itertools import accumulate
from math import gcd

import numpy as np
import torch
from torch import Tensor

__all__ = ["at_least", "count", "kth_largest", "larger", "largest", "ordered", "rising"]

# Below this a plain selection is as fast as finding a bracket for it.
_SMALL = 1 << 14
_SAMPLE = 1 << 16
_LOWER_HALF = np.uint64(0xFFFFFFFF)


def largest(parts: list[Tensor], k: int, among: list[Tensor] | None = None) -> list[Tensor]:
    """Mark the ``k`` largest numbers of all ``parts`` together, ties by a fixed permutation.

    Args:
        parts: the numbers, without NaN, of any shapes.
        k: how many to mark; at most the number of candidates.
        among: bool tensors of the same shapes; only these are candidates. None means all.

    Returns:
        Bool tensors of the same shapes with exactly ``k`` True in all.
    """
    parts, among = _plain(parts), None if among is None else _plain(among)
    if k == 0:
        return [torch.zeros_like(part, dtype=torch.bool) for part in parts]
    above, inside, all_equal = _split(parts, k, among)
    missing = k - count(above)
    if all_equal:
        inside = _some(inside, missing)
        return [over.logical_or_(mark) for over, mark in zip(above, inside, strict=True)]
    for over, index in zip(above, _first(parts, inside, missing), strict=True):
        over.view(-1)[index] = True
    return above


def kth_largest(parts: list[Tensor], k: int) -> Tensor:
    """Return the k-th largest number of all ``parts`` together, 1 <= k <= their count."""
    parts = _plain(parts)
    above, inside, all_equal = _split(parts, k, None)
    marked = zip(parts, inside, strict=True)
    if all_equal:
        return next(part.flatten()[_indices(mark)[0]] for part, mark in marked if bool(mark.any()))
    values = torch.cat([part.flatten()[_indices(mark)] for part, mark in marked])
    return values.kthvalue(values.numel() - (k - count(above)) + 1).values


def ordered(parts: list[Tensor], marks: list[Tensor]) -> Tensor:
    """Return where the marked numbers lie in all ``parts`` laid end to end, largest first.

    Ties are in the order in which :func:`largest` takes them.
    """
    starts = accumulate((part.numel() for part in parts), initial=0)
    indices = [_indices(mark) for mark in marks]
    pairs = zip(_plain(parts), indices, strict=True)
    values = torch.cat([part.flatten()[index] for part, index in pairs])
    through = torch.cat([i + start for i, start in zip(indices, starts, strict=False)])
    by_place = _places(through).argsort(descending=True)
    by_value = values[by_place].argsort(descending=True, stable=True)
    return through[by_place][by_value]


def rising(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return flat, non-negative ``numbers`` sorted, the smallest first, and where each was.

    Equal numbers stay in the order of their places.
    """
    is_plain = numbers.device.type == "cpu" and numbers.dtype == torch.float32
    if not is_plain or numbers.numel() >= 1 << 32:
        values, places = numbers.sort(stable=True)
        return values, places
    # The bits of non-negative floats rise with them. Value and place in one integer sort ten times
    # as fast as a sort that carries places along; adding zero makes -0 a plain one.
    bits = (numbers + 0.0).contiguous().numpy().view(np.uint32).astype(np.uint64)
    keys = (bits << np.uint64(32)) | np.arange(bits.size, dtype=np.uint64)
    keys.sort()
    found = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return torch.from_numpy(found), torch.from_numpy((keys & _LOWER_HALF).astype(np.int64))


def _plain(parts: list[Tensor]) -> list[Tensor]:
    """Return the parts in one type of number, stored in the order of their indices."""
    if len({part.dtype for part in parts}) > 1:
        parts = [part.double() for part in parts]
    return [part.contiguous() for part in parts]


def _split(
    parts: list[Tensor], k: int, among: list[Tensor] | None
) -> tuple[list[Tensor], list[Tensor], bool]:
    """Mark what surely belongs to the ``k`` largest, and those among which the rest must be found.

    A sample brackets the k-th largest. After Floyd and Rivest 1975, "Expected time bounds for
    selection": a few comparisons instead of a partition of everything. An unlucky sample costs
    time, never exactness. Also says whether the second marks all hold one and the same value.
    """
    if sum(part.numel() for part in parts) > _SMALL:
        low, high = _bracket(parts, k, among)
        above = [larger(part, high) for part in parts]
        inside = [at_least(part, low) for part in parts]
        if among is not None:
            above = [mark.logical_and_(live) for mark, live in zip(above, among, strict=True)]
            inside = [mark.logical_and_(live) for mark, live in zip(inside, among, strict=True)]
        inside = [mark.logical_xor_(over) for mark, over in zip(inside, above, strict=True)]
        if 1 <= k - count(above) <= count(inside):
            return above, inside, bool(low == high)
    none = [torch.zeros_like(part, dtype=torch.bool) for part in parts]
    return none, among or [~mark for mark in none], False


def _first(parts: list[Tensor], inside: list[Tensor], k: int) -> list[Tensor]:
    """Return the flat indices of the ``k`` largest of what is marked, ties by place."""
    indices = [_indices(mark) for mark in inside]
    values = torch.cat([p.flatten()[i] for p, i in zip(parts, indices, strict=True)])
    threshold = values.kthvalue(values.numel() - k + 1).values
    chosen, tied = values > threshold, values == threshold
    missing = k - count([chosen])
    if missing < count([tied]):
        starts = accumulate((part.numel() for part in parts), initial=0)
        through = torch.cat([i + start for i, start in zip(indices, starts, strict=False)])
        tied[_indices(tied)] = largest([_places(through[tied])], missing)[0]
    choices = chosen.logical_or_(tied).split([index.numel() for index in indices])
    return [index[choice] for index, choice in zip(indices, choices, strict=True)]


def _bracket(parts: list[Tensor], k: int, among: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return two values between which the k-th largest candidate lies almost surely."""
    total = sum(part.numel() for part in parts) if among is None else count(among)
    sample = _sample(parts, among)
    size = sample.numel()
    share = k / total
    # Four standard deviations of the sampled place, which is binomial.
    place, margin = size * share, 4 * (size * share * (1 - share)) ** 0.5 + 2
    first, last = max(int(place - margin), 0), min(int(place + margin), size - 1)
    high = sample.kthvalue(size - first).values
    low = sample.kthvalue(size - last).values
    # The ends of a sample bound nothing, unless all of its end is one value.
    if bool(low < high):
        low = low if place + margin < size else torch.full_like(low, _least(low.dtype))
        high = high if place > margin else torch.full_like(high, -_least(high.dtype) - 1)
    return low, high


def _least(dtype: torch.dtype) -> float | int:
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _sample(parts: list[Tensor], among: list[Tensor] | None) -> Tensor:
    """Return up to 65,000 numbers, from every part in proportion to its size."""
    total = sum(part.numel() for part in parts)
    # Floyd and Rivest's size, at which sample and bracket are about as large.
    stride = total // min(_SAMPLE, round(total ** (2 / 3))) + 1
    # In step with no kernel, row or channel, so that all of their places are met.
    while gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    drawn = [part.view(-1)[::stride] for part in parts]
    if among is not None:
        live = [mark.view(-1)[::stride] for mark in among]
        lucky = [values[mark] for values, mark in zip(drawn, live, strict=True)]
        drawn = lucky if any(values.numel() for values in lucky) else drawn
    return torch.cat(drawn)


def _some(marks: list[Tensor], k: int) -> list[Tensor]:
    """Return ``k`` of what is marked: those with the last places in the fixed permutation."""
    if k == count(marks):
        return marks
    places, start = [], 0
    for mark in marks:
        index = torch.arange(start, start + mark.numel(), dtype=torch.int32, device=mark.device)
        places.append(_places(index).view(mark.shape))
        start += mark.numel()
    return largest(places, k, marks)


def _places(index: Tensor) -> Tensor:
    """Return a place for every index by a fixed permutation of the 32-bit integers.

    Multiplications by odd numbers and an xor with the upper half are bijections, so no two places
    are equal, and nothing needs to be stored or drawn. The constants are those of the finaliser of
    MurmurHash3 (Appleby 2011, public domain).
    """
    place = index.to(torch.int32) * -2048144789  # 0x85ebca6b as a signed integer
    # torch shifts arithmetically; the sign's copies are cut off.
    place ^= (place >> 16) & 0xFFFF
    place *= -1028477387  # 0xc2b2ae35
    return place


def _indices(mark: Tensor) -> Tensor:
    """Return the flat indices of what is marked."""
    if mark.device.type == "cpu":
        # Four times as fast as torch's nonzero where little is marked.
        return torch.from_numpy(np.flatnonzero(mark.numpy()))
    return mark.flatten().nonzero().squeeze(1)


def at_least(numbers: Tensor, bound: Tensor | float) -> Tensor:
    """Return ``numbers >= bound``."""
    if numbers.device.type == "cpu":
        # Five times as fast as torch's comparison.
        return torch.from_numpy(np.asarray(numbers.numpy() >= _scalar(bound)))
    return numbers.to(_type_of(bound, numbers)) >= bound


def larger(numbers: Tensor, bound: Tensor | float) -> Tensor:
    """Return ``numbers > bound``."""
    if numbers.device.type == "cpu":
        return torch.from_numpy(np.asarray(numbers.numpy() > _scalar(bound)))
    return numbers.to(_type_of(bound, numbers)) > bound


def _type_of(bound: Tensor | float, numbers: Tensor) -> torch.dtype:
    # torch would round the bound to the type of the numbers.
    return bound.dtype if isinstance(bound, Tensor) else numbers.dtype


def _scalar(bound: Tensor | float) -> np.ndarray | float:
    return bound.numpy() if isinstance(bound, Tensor) else bound


def count(marks: Sequence[Tensor]) -> int:
    """Return how many are marked."""
    if marks[0].device.type == "cpu":
        # Three times as fast as torch's count_nonzero.
        return sum(int(np.count_nonzero(mark.numpy())) for mark in marks)
    return int(torch.stack([torch.count_nonzero(mark) for mark in marks]).sum())
