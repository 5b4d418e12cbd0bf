"""The table of layers, and the lines below it, as text for a terminal."""

import math
from collections.abc import Mapping, Sequence

from lit_prune.inspect.findings import Findings, Traced
from lit_prune.measure import LayerMeasure, Measurement
from lit_prune.targets import times

__all__ = ["counted", "plain_names", "report"]

# Up to here a logarithm in float64 gives a whole number for certain.
_LARGEST_COUNT = 10**9
_HEAD = (
    *("layer", "shape", "total", "kept", "density", "effective"),
    *("dead in", "dead out", "FLOPs", "eff. FLOPs"),
)
_UNKNOWN = "?"


def report(findings: Findings, unmasked: Mapping[str, int]) -> str:
    """Return the table, what sums it up, and a line for everything that is not known.

    Args:
        findings: what was found out.
        unmasked: the sizes of prunable weights that the masks do not name.
    """
    notes = [f"note: {note}" for note in findings.notes]
    if unmasked:
        what = f"{_some(list(unmasked))} ({sum(unmasked.values()):,} connections)"
        notes.append(f"note: not in the masks, so counted as kept whole: {what}")
    summary = "\n".join(f"{name:<19}{value}" for name, value in _summary(findings).items())
    return "\n\n".join([_table(findings.measurement), summary, *(["\n".join(notes)] * bool(notes))])


def plain_names(names: Sequence[str]) -> list[str]:
    """Return the names of layers without what all weights have in common.

    Examples:
        >>> plain_names(["backbone.fc1.weight", "backbone.attention.in_proj_weight"])
        ['fc1', 'attention.in_proj_weight']
    """
    inside = all(name.startswith("backbone.") for name in names)
    cut = [name.removeprefix("backbone.") if inside else name for name in names]
    return [name.removesuffix(".weight") or name for name in cut]


def counted(log_number: float) -> str:
    """Write a number by its decimal logarithm: exactly up to a billion, else four digits of it.

    Examples:
        >>> counted(float("-inf")), counted(math.log10(12345)), counted(123.4)
        ('0', '12,345', '2.512e+123')
    """
    if math.isinf(log_number):
        return "0"
    if log_number <= math.log10(_LARGEST_COUNT):
        return f"{round(10**log_number):,}"
    exponent = math.floor(log_number)
    digits = f"{10 ** (log_number - exponent):.3f}"
    if digits == "10.000":
        digits, exponent = "1.000", exponent + 1
    return f"{digits}e+{exponent}"


# The table.


def _table(measurement: Measurement) -> str:
    names = plain_names([row.name for row in measurement.layers])
    flops, effective_flops = (
        measurement.totals()["flops"],
        measurement.totals()["effective_flops"],
    )
    body = [
        [name, *_cells(row, flops, effective_flops)]
        for name, row in zip(names, measurement.layers, strict=True)
    ]
    if measurement.other_flops:
        shares = (
            _share(measurement.other_flops, flops),
            _share(measurement.other_flops, effective_flops),
        )
        body.append(["(no layer)", *[""] * 7, *shares])
    lines = [list(_HEAD), *body, ["total", *_sums(measurement)]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [_aligned(line, widths) for line in lines]
    rule = "-" * max(map(len, texts))
    return "\n".join([texts[0], rule, *texts[1:-1], rule, texts[-1]])


def _cells(row: LayerMeasure, flops: float | None, effective_flops: float | None) -> list[str]:
    return [
        "x".join(map(str, row.shape)),
        f"{row.total:,}",
        f"{row.kept:,}",
        _density(row.kept, row.total),
        _count(row.effective),
        _count(row.dead_in),
        _count(row.dead_out),
        _share(row.flops, flops),
        _share(row.effective_flops, effective_flops),
    ]


def _sums(measurement: Measurement) -> list[str]:
    total = sum(row.total for row in measurement.layers)
    kept = sum(row.kept for row in measurement.layers)
    sums = measurement.totals()
    return [
        *("", f"{total:,}", f"{kept:,}", _density(kept, total), _count(sums["effective_kept"])),
        *("", "", _large(sums["flops"]), _large(sums["effective_flops"])),
    ]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*left, *right]).rstrip()


def _density(kept: int, total: int) -> str:
    return f"{kept / max(total, 1):.3%}"


def _count(number: float | None) -> str:
    return _UNKNOWN if number is None else f"{number:,}"


def _share(part: float | None, whole: float | None) -> str:
    if part is None or whole is None:
        return _UNKNOWN
    return f"{part / whole:.1%}" if whole else "-"


def _large(number: float | None) -> str:
    """Write a number with its thousands as letters.

    Examples:
        >>> _large(532_400), _large(999_960), _large(900)
        ('532.4k', '1.0M', '900')
    """
    if number is None:
        return _UNKNOWN
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if round(number / unit, 1) >= 1:
            return f"{number / unit:.1f}{letter}"
    return str(number)


# The lines below it.


def _summary(findings: Findings) -> dict[str, str]:
    masks, sums = findings.masks, findings.measurement.totals()
    direct = f"{masks.sparsity:.4%}  ({times(masks.compression)})"
    effective = "unknown"
    if (sparsity := sums["effective_sparsity"]) is not None:
        compression = sums["effective_compression"]
        assert compression is not None
        effective = f"{sparsity:.4%}  ({times(compression)})"
    return {
        "direct sparsity": direct,
        "effective sparsity": effective,
        **_ways(findings.traced),
        "collapsed layers": _some(plain_names(findings.measurement.collapsed())) or "none",
    }


def _ways(traced: Traced | None) -> dict[str, str]:
    if traced is None:
        return {"paths": "unknown", "nodes": "unknown"}
    live, everything = sum(traced.nodes.values()), sum(traced.all_nodes.values())
    ends = f"{live:,} of {everything:,} are live (units entering the layers, and outputs)"
    return {"paths": counted(traced.log_paths), "nodes": ends}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
