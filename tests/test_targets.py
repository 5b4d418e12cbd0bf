"""Targets: what may be written, and that it is counted exactly."""

import math
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lit_prune import LitPruneError, Target

TOTALS = st.integers(1, 10**9)
SHARES = st.one_of(
    st.decimals(0, 1, places=2), st.decimals(0, 1, places=4), st.decimals(0, 1, places=7)
)
FACTORS = st.one_of(st.decimals(1, 1000, places=0), st.decimals(1, 1000, places=3))
MEASURES = st.sampled_from(["direct", "effective"])


@st.composite
def targets(draw):
    """Any target of numbers that a config can hold."""
    numbers = {
        "sparsity": st.floats(0, 1),
        "density": st.floats(0, 1),
        "compression": st.floats(1, 1e300),
        "keep": st.integers(0, 10**30),
    }
    name = draw(st.sampled_from(list(numbers)))
    return Target(**{name: draw(numbers[name])}, measure=draw(MEASURES))


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("100x", Target(compression=100)),
        ("1.5x", Target(compression=1.5)),
        ("100X", Target(compression=100)),
        (" 100 x ", Target(compression=100)),
        ("1e3x", Target(compression=1000)),
        ("99%", Target(sparsity=0.99)),
        ("99.5 %", Target(sparsity=0.995)),
        ("0%", Target(sparsity=0)),
        ("100%", Target(sparsity=1)),
        (".5%", Target(sparsity=0.005)),
        ("2662", Target(keep=2662)),
        (2662, Target(keep=2662)),
        ("0", Target(keep=0)),
        ({"sparsity": 0.99}, Target(sparsity=0.99)),
        ({"compression": 100}, Target(compression=100)),
        ({"density": 0.01, "measure": "direct"}, Target(density=0.01)),
        ({"keep": 7, "sparsity": None}, Target(keep=7)),
        (Target(density=0.5), Target(density=0.5)),
        ("100x effective", Target(compression=100, measure="effective")),
        ("99% effective", Target(sparsity=0.99, measure="effective")),
        ("2662 effective", Target(keep=2662, measure="effective")),
        ("100X EFFECTIVE", Target(compression=100, measure="effective")),
        ("  99.5 %  Effective ", Target(sparsity=0.995, measure="effective")),
        ("1.5 x\teffective", Target(compression=1.5, measure="effective")),
        ("0 effective", Target(keep=0, measure="effective")),
        ("100x direct", Target(compression=100)),
        ("2662 Direct", Target(keep=2662)),
        (
            {"compression": 100, "measure": "effective"},
            Target(compression=100, measure="effective"),
        ),
        ({"keep": 7, "measure": "effective"}, Target(keep=7, measure="effective")),
        (Target(keep=7, measure="effective"), Target(keep=7, measure="effective")),
    ],
)
def test_forms_that_a_config_may_write(written, target):
    assert Target.parse(written) == target


def test_a_target_is_direct_unless_it_says_effective():
    assert Target.parse("100x").measure == Target(keep=3).measure == "direct"
    assert Target.parse("100x effective") != Target.parse("100x")


# --- counting


@given(TOTALS, SHARES)
def test_sparsity_is_counted_from_the_number_as_written(total, share):
    kept = total - math.floor(total * Fraction(share))
    assert Target(sparsity=float(share)).count(total) == kept
    assert Target.parse(f"{100 * share:f}%").count(total) == kept
    assert Target.parse({"sparsity": float(share)}).count(total) == kept


@given(TOTALS, SHARES)
def test_density_keeps_what_the_sparsity_that_completes_it_keeps(total, share):
    kept = math.ceil(total * Fraction(share))
    assert Target(density=float(share)).count(total) == kept
    assert Target(sparsity=float(1 - share)).count(total) == kept


@given(TOTALS, FACTORS)
def test_compression_is_counted_from_the_number_as_written(total, factor):
    kept = math.ceil(total / Fraction(factor))
    assert Target(compression=float(factor)).count(total) == kept
    assert Target.parse(f"{factor:f}x").count(total) == kept


@given(TOTALS, SHARES)
def test_a_target_is_met_without_overshooting_and_one_less_would_overshoot(total, share):
    kept = Target(sparsity=float(share)).count(total)
    assert 0 <= kept <= total
    assert Fraction(total - kept, total) <= Fraction(share)
    assert kept == 0 or Fraction(total - kept + 1, total) > Fraction(share)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_count_is_kept_as_it_is_or_refused(keep, more):
    assert Target(keep=keep).count(keep + more) == keep
    with pytest.raises(LitPruneError, match=f"cannot keep {keep + more + 1} of {keep + more}"):
        Target(keep=keep + more + 1).count(keep + more)


@pytest.mark.parametrize(
    ("target", "total", "kept"),
    [
        (Target(sparsity=0.29), 100, 71),  # 100 * 0.29 is 28.999... in floating point
        (Target(sparsity=0.57), 100, 43),
        (Target(sparsity=1.1 / 11), 1000, 900),
        (Target(density=0.07), 100, 7),
        (Target(compression=3), 300, 100),
        (Target(compression=3), 301, 101),
        (Target(compression=49), 49, 1),
        (Target(compression=1), 7, 7),
        (Target(sparsity=0.99), 266_200, 2662),
        (Target(compression=100), 266_200, 2662),
        (Target(sparsity=Fraction(2, 3)), 300, 100),
        (Target(compression=Fraction(10, 3)), 100, 30),
        (Target(compression=1e-7 + 1), 10**8, 10**8 - 9),
        (Target(sparsity=1), 10, 0),
        (Target.parse("99.99999999999999999%"), 10**19, 1),
    ],
)
def test_counts_by_hand(target, total, kept):
    assert target.count(total) == kept


def test_numbers_of_a_numpy_sweep_are_counted_as_written():
    assert [Target(sparsity=s).count(100) for s in np.array([0.29, 0.57])] == [71, 43]
    assert [Target(compression=c).count(100) for c in np.array([3.0, 4.0])] == [34, 25]
    assert [Target(keep=k).count(100) for k in np.array([7, 8])] == [7, 8]


@given(SHARES, TOTALS)
def test_a_target_reads_back_from_what_it_writes(share, total):
    sparsity, density = Target(sparsity=float(share)), Target(density=float(share))
    for target in (sparsity, density, Target(keep=total), Target(compression=float(1 + share))):
        assert Target.parse(str(target)).count(total) == target.count(total)


@given(targets(), TOTALS)
@example(Target(density=0.012345678901234567), 10**9)  # its sparsity has more digits than a float
@example(Target(density=1e-20, measure="effective"), 10**9)
@example(Target(sparsity=0.09940033823870109), 10**9)  # and 100 times this as well
@example(Target(sparsity=5e-324), 10**9)
def test_whatever_a_target_writes_reads_back_as_the_same_target(target, total):
    written = str(target)
    back = Target.parse(written)
    assert str(back) == written
    assert back.measure == target.measure
    assert ("effective" in written) == (target.measure == "effective")
    if target.keep is None:
        assert back.count(total) == target.count(total)
    else:
        assert back == target


@given(targets(), TOTALS)
def test_what_is_counted_does_not_change_how_many(target, total):
    numbers = {name: getattr(target, name) for name in ("sparsity", "density", "compression")}
    direct, effective = (
        Target(**numbers, keep=target.keep and min(target.keep, total), measure=measure)
        for measure in ("direct", "effective")
    )
    assert direct.count(total) == effective.count(total)


def test_targets_are_written_as_a_config_would():
    targets = [Target(sparsity=0.29), Target(density=0.01), Target(compression=100), Target(keep=5)]
    assert [str(target) for target in targets] == ["29%", "99%", "100x", "5"]
    paths = [Target(sparsity=0.29, measure="effective"), Target(keep=5, measure="effective")]
    assert [str(target) for target in paths] == ["29% effective", "5 effective"]


# --- bad input


@pytest.mark.parametrize(
    "written",
    [
        "120%",
        "-1%",
        "-0.001%",
        "100.0001%",
        "nan",
        "nan%",
        "nanx",
        "inf",
        "infx",
        "inf%",
        "0.5x",
        "0x",
        "-3x",
        "0.99",
        0.99,
        1.0,
        "2662.0",
        "1e3",
        "-5",
        -5,
        "",
        " ",
        "%",
        "x",
        "many",
        "99 percent",
        "99%%",
        "99%x",
        "1/2",
        "1/3x",
        "50/100%",
        "0x10",
        "1,5x",
        "effective",
        "effective 100x",
        "100x efective",
        "100xeffective",
        "99%effective",
        "2662effective",
        "100x effective effective",
        "100x effective direct",
        "100x, effective",
        "100x(effective)",
        "100 effective x",
        "0.5 effective",
        "nan effective",
        "120% effective",
        "0.5x effective",
        "-5 effective",
        True,
        False,
        None,
        [100],
        b"100x",
        {},
        {"measure": "direct"},
        {"sparsity": 0.5, "keep": 7},
        {"sparsity": 0.5, "density": 0.5},
        {"sparsity": 1.2},
        {"sparsity": -0.1},
        {"sparsity": math.nan},
        {"sparsity": True},
        {"sparsity": "50%"},
        {"sparsity": Decimal("0.5")},
        {"density": 1.0001},
        {"density": math.inf},
        {"compression": 0.5},
        {"compression": 0},
        {"compression": math.inf},
        {"compression": math.nan},
        {"keep": -1},
        {"keep": 2.5},
        {"keep": 7.0},
        {"keep": True},
        {"keep": math.nan},
        {"sparsity": 0.5, "measure": "indirect"},
        {"sparsity": 0.5, "measure": None},
        {"sparsity": 0.5, "measure": "Effective"},
        {"sparsity": 0.5, "measure": ""},
        {"measure": "effective"},
        {"sparseness": 0.5},
        {"sparsity": 0.5, "rounds": 3},
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(written):
    with pytest.raises(LitPruneError) as raised:
        Target.parse(written)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("120%", r"'120%' is out of range.*0% to 100%"),
        ("0.5x", r"compression of 0\.5x is out of range.*at least 1x"),
        ("nan", r"'nan' is not understood.*'100x'.*'99%'.*'2662'"),
        ("0.99", r"'0\.99' is ambiguous.*'100x'.*'99%'.*'2662'"),
        (-5, r"keep=-5 is out of range"),
        ({"sparsity": 0.5, "keep": 7}, r"exactly one of.*got sparsity=0\.5 and keep=7"),
        ({}, r"exactly one of.*got none"),
        ({"sparseness": 0.5}, r"unknown key 'sparseness'.*sparsity"),
        ({"keep": 1, "measure": "both"}, r"unknown measure 'both'.*direct, effective"),
        ("100x efective", r"'100x efective' is not understood.*'100x'.*'99%'.*'2662'.*'effective'"),
        ("99 percent", r"'99 percent' is not understood.*'effective' behind it"),
        ("0.5 effective", r"'0\.5 effective' is ambiguous.*'100x'.*'99%'.*'2662'"),
        ("120% effective", r"'120% effective' is out of range.*0% to 100%"),
    ],
    ids=str,
)
def test_bad_input_is_named_with_what_is_allowed(written, line):
    with pytest.raises(LitPruneError, match=line):
        Target.parse(written)


@pytest.mark.parametrize("written", ["1e400x", {"compression": 10**400}])
def test_a_compression_beyond_floating_point_is_counted_or_refused(written):
    with suppress(LitPruneError):
        assert Target.parse(written).count(10) == 1


def test_a_count_beyond_floating_point_is_more_than_there_are():
    with pytest.raises(LitPruneError):
        Target.parse(str(10**400)).count(10)
