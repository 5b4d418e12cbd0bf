"""Numbers as a reader wants them; what is not known is a dash."""

import math

from lit_prune import targets
from lit_prune.report.groups import Spread

__all__ = ["UNKNOWN", "count", "duration", "percent", "scientific", "times"]

UNKNOWN = "-"


def percent(spread: Spread | None) -> str:
    """Write an accuracy in percent, with its deviation where there is one.

    Examples:
        >>> percent(Spread(0.98731, 0.00066, 3)), percent(Spread(0.5, None, 1)), percent(None)
        ('98.73 ± 0.07', '50.00', '-')
    """
    if spread is None:
        return UNKNOWN
    return f"{100 * spread.mean:.2f}" + ("" if spread.std is None else f" ± {100 * spread.std:.2f}")


def count(number: float | None) -> str:
    """Write a number of connections, which may be a mean.

    Examples:
        >>> count(26620.0), count(64.333), count(None)
        ('26,620', '64.3', '-')
    """
    if number is None:
        return UNKNOWN
    return f"{number:,.0f}" if number == round(number) or number >= 1000 else f"{number:.1f}"


def times(number: float | None) -> str:
    """Write a compression.

    Examples:
        >>> times(1.78), times(9859.3), times(math.inf)
        ('1.78x', '9,859x', '∞')
    """
    if number is None:
        return UNKNOWN
    if math.isinf(number):
        return "∞"
    return targets.times(number)


def scientific(number: float | None) -> str:
    """Write FLOPs.

    Examples:
        >>> scientific(1.9166e15), scientific(4108.0), scientific(0.0)
        ('1.92e15', '4.11e3', '0')
    """
    if number is None:
        return UNKNOWN
    if not number:
        return "0"
    digits, _, power = f"{number:.2e}".partition("e")
    return f"{digits}e{int(power)}"


def duration(seconds: float | None) -> str:
    """Write a time in seconds, of three digits.

    Examples:
        >>> duration(2.308), duration(47.7), duration(1234.5)
        ('2.31', '47.7', '1,234')
    """
    if seconds is None:
        return UNKNOWN
    return f"{seconds:.3g}" if seconds < 1000 else f"{seconds:,.0f}"
