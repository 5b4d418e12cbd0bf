"""Target: how far to prune, counted exactly from the number as written."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from typing import Any, Literal, get_args

from lit_prune.errors import LitPruneError

__all__ = ["Measure", "Target", "TargetLike", "times"]

Measure = Literal["direct", "effective"]
Number = float | Fraction

_FORMS = (
    "'100x' (compression), '99%' (sparsity) or '2662' (connections to keep), with 'effective' "
    "behind it for effective ones"
)
_TEXT = re.compile(
    rf"(?P<number>[-+\w.]+?)\s*(?P<unit>x|%|)(\s+(?P<measure>{'|'.join(get_args(Measure))}))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Target:
    """How far to prune: exactly one of a sparsity, a compression, a density or a count.

    The number kept is ``total - floor(total * sparsity)`` in exact arithmetic on the decimal
    number as written: a sparsity of .29 of 100 connections removes 29, not 28.

    Args:
        sparsity: share of connections removed, 0 to 1.
        compression: total / kept, at least 1.
        density: share of connections kept, 0 to 1.
        keep: the number of connections kept.
        measure: what is counted: ``"direct"`` counts what the masks keep, ``"effective"`` what
            of it lies on a path from input to output (arXiv 2107.02306).

    Raises:
        LitPruneError: none or several are given, or one is out of its range.

    Examples:
        >>> Target(compression=100).count(266_200)
        2662
    """

    sparsity: Number | None = None
    compression: Number | None = None
    density: Number | None = None
    keep: int | None = None
    measure: Measure = "direct"

    def __post_init__(self) -> None:
        """Check that exactly one number is given and lies in its range."""
        given = {name: value for name, value in self._numbers().items() if value is not None}
        if len(given) != 1:
            what = " and ".join(f"{n}={v}" for n, v in given.items()) or "none"
            raise LitPruneError(
                f"a target takes exactly one of sparsity, compression, density, keep; got {what}"
            )
        if self.measure not in get_args(Measure):
            known = ", ".join(get_args(Measure))
            raise LitPruneError(f"unknown measure {self.measure!r}; known: {known}")
        name, value = given.popitem()
        _require_in_range(name, value)

    @classmethod
    def parse(cls, value: "TargetLike") -> "Target":
        """Return the target that ``value`` says, as a config or a command line writes it.

        ``100x`` is a compression, ``99%`` a sparsity, a whole number the connections to keep;
        ``100x effective`` counts effective connections. A mapping names the arguments. A bare
        decimal is refused, as it could be a sparsity or a density.

        Examples:
            >>> Target.parse("99.5%")
            Target(sparsity=0.995, compression=None, density=None, keep=None, measure='direct')
            >>> Target.parse("100x effective").measure
            'effective'
        """
        if isinstance(value, Target):
            return value
        if isinstance(value, Mapping):
            return cls._from_mapping(value)
        match = _TEXT.fullmatch(str(value).strip())
        number = _fraction(match["number"]) if match else None
        if match is None or number is None:
            raise LitPruneError(f"target {str(value)!r} is not understood; write {_FORMS}")
        measure: Any = (match["measure"] or "direct").lower()
        if match["unit"].lower() == "x":
            return cls(compression=_plain(number), measure=measure)
        if match["unit"] == "%":
            if not 0 <= number <= 100:
                raise LitPruneError(f"target {value!r} is out of range: a sparsity is 0% to 100%")
            return cls(sparsity=_plain(number / 100), measure=measure)
        if not re.fullmatch(r"[-+]?\d+", match["number"]):
            raise LitPruneError(f"target {value!r} is ambiguous; write {_FORMS}")
        return cls(keep=int(number), measure=measure)

    @classmethod
    def _from_mapping(cls, value: Mapping[str, Any]) -> "Target":
        unknown = sorted(set(value) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise LitPruneError(f"unknown key {unknown[0]!r} in a target; known: {known}")
        return cls(**value)

    def count(self, total: int) -> int:
        """Return how many of ``total`` connections are kept.

        Raises:
            LitPruneError: more are to be kept than there are.
        """
        if self.keep is None:
            return total - math.floor(total * self._exact_sparsity())
        if self.keep > total:
            raise LitPruneError(f"cannot keep {self.keep} of {total} connections")
        return int(self.keep)

    def _exact_sparsity(self) -> Fraction:
        if self.sparsity is not None:
            return _as_written(self.sparsity)
        if self.density is not None:
            return 1 - _as_written(self.density)
        assert self.compression is not None
        return 1 - 1 / _as_written(self.compression)

    def _numbers(self) -> dict[str, Number | int | None]:
        return {
            "sparsity": self.sparsity,
            "compression": self.compression,
            "density": self.density,
            "keep": self.keep,
        }

    def __str__(self) -> str:
        """Write the target as a config would, where it has such a form."""
        ending = "" if self.measure == "direct" else f" {self.measure}"
        if self.keep is not None:
            return f"{self.keep}{ending}"
        if self.compression is not None:
            return f"{_decimal(self.compression)}x{ending}"
        return f"{_decimal(100 * self._exact_sparsity())}%{ending}"


TargetLike = Target | str | int | float | Mapping[str, Any]


def _require_in_range(name: str, value: Any) -> None:
    kinds: tuple[type, ...] = (Integral,) if name == "keep" else (float, Fraction, Integral)
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = "a whole number" if name == "keep" else "a number"
        raise LitPruneError(f"{name}={value!r} is not {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise LitPruneError(f"{name}={value} is not finite")
    number: Any = value
    if name == "keep" and number < 0:
        raise LitPruneError(f"keep={number} is out of range: a whole number from 0 up")
    if name == "compression" and number < 1:
        raise LitPruneError(f"a compression of {number}x is out of range: at least 1x")
    if name in ("sparsity", "density") and not 0 <= number <= 1:
        raise LitPruneError(f"{name}={number} is out of range: 0 to 1")


def times(compression: float) -> str:
    """Write a compression with three digits, or to the whole number.

    Examples:
        >>> times(1.784), times(9859.3), times(float("inf"))
        ('1.78x', '9,859x', 'inf')
    """
    if math.isinf(compression):
        return "inf"
    return f"{compression:.3g}x" if compression < 100 else f"{compression:,.0f}x"


def _as_written(number: Number) -> Fraction:
    # repr gives the shortest decimal that reads back as this float: what a person wrote.
    return Fraction(repr(float(number)) if isinstance(number, float) else number)


def _fraction(text: str) -> Fraction | None:
    try:
        return Fraction(text) if "/" not in text else None
    except ValueError:
        return None


def _plain(number: Fraction) -> Number:
    """Return a float where it says the same decimal, else the fraction itself."""
    try:
        short = float(number)
    except OverflowError:
        return number
    return short if _as_written(short) == number else number


def _decimal(number: Number) -> str:
    """Write a number in full, as a person would; only what no decimal holds stays a fraction."""
    exact = _as_written(number)
    places = next((n for n in range(400) if (exact * 10**n).denominator == 1), None)
    if places is None:
        return str(exact)
    digits = str(int(exact * 10**places)).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits
