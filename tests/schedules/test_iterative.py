"""Iterative: its levels, their lengths and counts, and what goes back after a prune."""

from fractions import Fraction
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_prune.acts import Due, HoldRate, Prune, Remember, RewindRates, RewindWeights
from lit_prune.schedules import Iterative
from lit_prune.timing import Course, Time

AFTER = {
    "weights": (Remember(weights=True), RewindWeights()),
    "init": (Remember(weights=True), RewindWeights()),
    "learning_rate": (Remember(weights=False), RewindRates()),
    "fine_tune": (None, HoldRate(None)),
}


def prunes(plan):
    return [due for due in plan if isinstance(due.act, Prune)]


@pytest.mark.parametrize("rewind", AFTER)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_a_snapshot_at_the_point_and_at_each_level_a_prune_and_what_goes_back(
    rewind, levels, epochs, data
):
    point = 0 if rewind == "init" else data.draw(st.integers(0, epochs - 1))
    schedule = Iterative(levels, epochs, rewind, f"{point}ep", share=0.5)
    left = epochs - point
    before, after = AFTER[rewind]
    expected = [] if before is None else [Due(Time(point, "ep"), before)]
    for level in range(1, levels + 1):
        start = Time(epochs + (level - 1) * left, "ep")
        expected += [Due(start, Prune(round(1000 * 0.5**level))), Due(start, after)]
    assert schedule.plan(Course(1000)) == expected
    assert schedule.length(None) == epochs + levels * left


@given(st.integers(1, 8), st.integers(1, 10**6), st.data())
def test_counts_are_geometric_down_to_exactly_the_target(levels, total, data):
    keep = data.draw(st.integers(0, total))
    counts = [d.act.keep for d in prunes(Iterative(levels, 1).plan(Course(total, keep)))]
    assert len(counts) == levels
    assert counts[-1] == keep
    for level, count in enumerate(counts, start=1):
        if keep:
            geometric = total ** (1 - level / levels) * keep ** (level / levels)
            assert abs(count - geometric) <= 0.5 + 1e-6 * geometric


def test_twenty_percent_a_level_as_in_the_lottery_ticket_paper():
    keep = round(266_200 * 0.8**10)
    counts = [d.act.keep for d in prunes(Iterative(10, 2).plan(Course(266_200, keep)))]
    shares = [after / before for before, after in zip([266_200, *counts], counts, strict=False)]
    assert shares == pytest.approx([0.8] * 10, rel=1e-4)


@given(st.integers(1, 8), st.integers(1, 10**6), st.floats(0.01, 0.99))
def test_a_share_keeps_its_powers_to_the_nearest_whole_number(levels, total, share):
    schedule = Iterative(levels, 1, share=share)
    assert not schedule.wants_target
    counts = [d.act.keep for d in prunes(schedule.plan(Course(total)))]
    assert len(counts) == levels
    for level, count in enumerate(counts, start=1):
        exact = total * (1 - Fraction(share)) ** level
        assert abs(count - exact) <= Fraction(1, 2) + Fraction(1, 10**6)


def test_a_share_by_hand():
    counts = [d.act.keep for d in prunes(Iterative(3, 1, share=0.2).plan(Course(1108)))]
    assert counts == [886, 709, 567]
    assert log(567 / 1108) / log(0.8) == pytest.approx(3, abs=0.01)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.data())
def test_a_point_in_steps_is_the_same_plan_at_the_boundary_of_an_epoch(epochs, steps, levels, data):
    step = data.draw(st.integers(0, epochs * steps - 1))
    schedule = Iterative(levels, epochs, rewind_to=f"{step}it", share=0.2)
    course = Course(100, steps=steps)
    first, *rest = schedule.plan(course)
    whole = Iterative(levels, epochs, rewind_to=f"{step // steps}ep", share=0.2)
    assert rest == whole.plan(course)[1:]
    assert schedule.length(steps) == whole.length(None)
    # What is remembered at a boundary is remembered before the batch, not after the step.
    assert first.time == (Time(step // steps, "ep") if step % steps == 0 else Time(step, "it"))


def test_a_dense_target_prunes_nothing_at_every_level():
    assert [d.act.keep for d in prunes(Iterative(3, 1).plan(Course(50, 50)))] == [50] * 3
