"""GReg1 and GReg2: the heights of the penalty in closed form, and where all ends."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_prune import LitPruneError
from lit_prune.acts import Due, Pick, PrunePicked, Push
from lit_prune.schedules import GReg1, GReg2
from lit_prune.timing import Course, Time

# Steps and ceilings in thousandths, so that their ratios are exact here.
THOUSANDTHS = st.integers(1, 400)


def moments(plan, course):
    return [(course.step(due.time), due.act) for due in plan]


@st.composite
def paces(draw):
    begin, every, settle = (draw(st.integers(low, 40)) for low in (0, 1, 0))
    step, ceiling = draw(THOUSANDTHS), draw(THOUSANDTHS)
    return begin, every, settle, min(step, ceiling), max(step, ceiling)


def heights(start, step, ceiling):
    """start + step, start + 2 step, ..., in thousandths; the last is the ceiling."""
    number = math.ceil(Fraction(ceiling - start, step))
    return [min(start + step * n, ceiling) / 1000 for n in range(1, number + 1)]


@given(paces(), st.none() | st.integers(1, 50))
def test_greg1_picks_rises_by_its_step_to_the_ceiling_and_removes(pace, steps):
    begin, every, settle, step, ceiling = pace
    course = Course(1000, 30, steps=steps)
    plan = GReg1(f"{begin}it", f"{every}it", step / 1000, ceiling / 1000, f"{settle}it").plan(
        course
    )
    (start, pick), *rises, (end, last) = moments(plan, course)
    expected = heights(0, step, ceiling)
    assert (start, pick, last) == (begin, Pick(30), PrunePicked())
    assert [when for when, _ in rises] == [begin + every * n for n in range(len(expected))]
    assert [act.strength for _, act in rises] == pytest.approx(expected, rel=1e-9)
    assert not any(act.everywhere for _, act in rises)
    assert rises[-1][1].strength == pytest.approx(ceiling / 1000, rel=1e-9)
    assert end == begin + every * len(expected) + settle


@given(paces(), THOUSANDTHS, THOUSANDTHS)
def test_greg2_parts_all_then_picks_and_goes_on_from_there(pace, spread, more):
    begin, every, settle, step, _ = pace
    spread, parting = min(spread, more), max(spread, more)
    ceiling = parting + step
    course = Course(1000, 30, steps=13)
    plan = moments(
        GReg2(
            f"{begin}it",
            f"{every}it",
            spread / 1000,
            parting / 1000,
            step / 1000,
            ceiling / 1000,
            f"{settle}it",
        ).plan(course),
        course,
    )
    place = next(n for n, (_, act) in enumerate(plan) if isinstance(act, Pick))
    first, second, (end, last) = plan[:place], plan[place + 1 : -1], plan[-1]
    parted = heights(0, spread, parting)
    assert [act.strength for _, act in first] == pytest.approx(parted, rel=1e-9)
    assert all(act.everywhere for _, act in first)
    assert [when for when, _ in first] == [begin + every * n for n in range(len(parted))]
    assert plan[place] == (begin + every * len(parted), Pick(30))
    rest = heights(parting, step, ceiling)
    assert [act.strength for _, act in second] == pytest.approx(rest, rel=1e-9)
    assert not any(act.everywhere for _, act in second)
    starts = [begin + every * (len(parted) + n) for n in range(len(rest))]
    assert [when for when, _ in second] == starts
    assert (end, last) == (begin + every * (len(parted) + len(rest)) + settle, PrunePicked())


def test_greg1_by_hand():
    plan = GReg1("2ep", "5it", step=0.4, ceiling=1.0, settle="1ep").plan(Course(99, 9, steps=10))
    assert plan == [
        Due(Time(2, "ep"), Pick(9)),
        Due(Time(2, "ep"), Push(0.4)),
        Due(Time(25, "it"), Push(0.8)),
        Due(Time(3, "ep"), Push(1.0)),
        Due(Time(45, "it"), PrunePicked()),
    ]


def test_the_paper_s_numbers():
    course = Course(99, 9, steps=100)
    plan = GReg1("0ep").plan(course)
    assert sum(isinstance(due.act, Push) for due in plan) == 10_000
    assert plan[-1].time == Time(1000, "ep")
    plan = GReg2("0ep").plan(course)
    everywhere = [due.act for due in plan if isinstance(due.act, Push) and due.act.everywhere]
    assert len(everywhere) == 1000
    assert everywhere[-1].strength == pytest.approx(0.01)
    assert sum(isinstance(due.act, Push) for due in plan) == 1000 + 9900


@pytest.mark.parametrize("schedule", [GReg1("1ep", ceiling=2e-4), GReg2("1ep", parting=1e-4)])
def test_the_trainer_says_how_long(schedule):
    assert not schedule.fixes_length


@pytest.mark.parametrize(
    ("kind", "steps"),
    [(GReg1, {"step": 1e-9}), (GReg2, {"step": 1e-9}), (GReg2, {"spread": 1e-11})],
)
def test_more_than_a_million_rises_are_refused(kind, steps):
    [(name, value)] = steps.items()
    with pytest.raises(LitPruneError, match=f"{name}={value} is out of range: at least 1e-0"):
        kind("1ep", **steps)


@pytest.mark.parametrize("kind", [GReg1, GReg2])
def test_a_ceiling_without_end_is_refused(kind):
    with pytest.raises(LitPruneError, match="ceiling=inf"):
        kind("1ep", ceiling=math.inf)
