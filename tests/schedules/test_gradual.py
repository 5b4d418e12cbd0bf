"""Gradual against the formula of Zhu and Gupta, in exact fractions."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_prune.acts import Prune
from lit_prune.schedules import Gradual
from lit_prune.timing import Course, Time


def sparsity(start, final, t, begin, end, power=3):
    """Equation 1 of the paper: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3."""
    return final + (start - final) * (1 - Fraction(t - begin, end - begin)) ** power


@st.composite
def plans(draw):
    total, steps = draw(st.integers(1, 10**6)), draw(st.integers(1, 40))
    keep = draw(st.integers(0, total))
    begin, span = draw(st.integers(0, 50)), draw(st.integers(1, 200))
    every, power = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    return Course(total, keep, steps=steps), begin, begin + span, every, power


@given(plans())
def test_the_paper_s_formula_to_the_nearest_whole_number(case):
    course, begin, end, every, power = case
    plan = Gradual(f"{begin}it", f"{end}it", f"{every}it", power).plan(course)
    steps = [course.step(due.time) for due in plan]
    assert steps == [*range(begin + every, end, every), end]
    final = 1 - Fraction(course.keep, course.total)
    for step, due in zip(steps, plan, strict=True):
        assert isinstance(due.act, Prune)
        exact = course.total * (1 - sparsity(0, final, step, begin, end, power))
        assert abs(due.act.keep - exact) <= Fraction(1, 2) + Fraction(1, 10**6)
    assert plan[-1].act.keep == course.keep


@given(plans())
def test_epochs_without_knowing_their_steps(case):
    course, begin, end, every, power = case
    plan = Gradual(f"{begin}ep", f"{end}ep", f"{every}ep", power).plan(
        Course(course.total, course.keep)
    )
    final = 1 - Fraction(course.keep, course.total)
    assert [due.time for due in plan] == [
        Time(n, "ep") for n in [*range(begin + every, end, every), end]
    ]
    for time, act in plan:
        exact = course.total * (1 - sparsity(0, final, time.count, begin, end, power))
        assert abs(act.keep - exact) <= Fraction(1, 2) + Fraction(1, 10**6)


def test_by_hand():
    plan = Gradual("1ep", "5ep", "2ep").plan(Course(1000, 200))
    # Half of the way: 1 - 0.5^3 = 7/8 of the 800 that go.
    assert [(str(due.time), due.act.keep) for due in plan] == [("3ep", 300), ("5ep", 200)]
    plan = Gradual("0it", "4it", "1it", power=1).plan(Course(1000, 200, steps=2))
    assert [(str(due.time), due.act.keep) for due in plan] == [
        ("1it", 800),
        ("1ep", 600),
        ("3it", 400),
        ("2ep", 200),
    ]


@pytest.mark.parametrize("power", [0.5, 1.5, 3])
def test_a_power_above_one_is_fast_at_first_and_below_slow(power):
    counts = [d.act.keep for d in Gradual("0it", "10it", "1it", power).plan(Course(10**6, 0))]
    removed = [a - b for a, b in zip([10**6, *counts], counts, strict=False)]
    assert removed == sorted(removed, reverse=power > 1)
    assert len(set(removed)) > 5


def test_the_trainer_says_how_long():
    assert not Gradual("0ep", "1ep").fixes_length
