"""Regrow: one prune, and replacements whose share falls with a cosine."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_prune import LitPruneError
from lit_prune.acts import Due, Prune, Rewire
from lit_prune.schedules import Regrow
from lit_prune.timing import Course, Time


@st.composite
def cases(draw):
    every, until = draw(st.integers(1, 30)), draw(st.integers(1, 200))
    return every, until, draw(st.floats(0.01, 1)), draw(st.sampled_from(["random", "gradient"]))


@given(cases(), st.none() | st.integers(1, 40))
def test_the_share_is_half_a_cosine_from_the_start_to_the_end(case, steps):
    every, until, share, by = case
    course = Course(100, 10, steps=steps)
    start, *rest = Regrow(f"{every}it", share, by, f"{until}it").plan(course)
    assert start == Due(Time(0, "ep"), Prune(10))
    assert [course.step(due.time) for due in rest] == list(range(every, until, every))
    for due in rest:
        assert isinstance(due.act, Rewire)
        assert due.act.by == by
        angle = math.pi * course.step(due.time) / until
        # The half-angle form: (1 + cos x) / 2 = cos(x / 2)^2.
        assert due.act.share == pytest.approx(share * math.cos(angle / 2) ** 2, abs=1e-12)


def test_shares_fall_from_the_given_one_to_almost_nothing():
    shares = [due.act.share for due in Regrow("1it", 0.3, until="9it").plan(Course(9, 5))[1:]]
    assert shares == sorted(shares, reverse=True)
    assert 0.29 < shares[0] < 0.3
    assert 0 < shares[-1] < 0.01


@given(st.integers(1, 40), st.integers(1, 60))
def test_it_ends_after_three_quarters_of_the_training_by_default(epochs, steps):
    course = Course(100, 10, epochs=epochs, steps=steps)
    plan = Regrow("1it").plan(course)
    end = epochs * steps * 3 // 4
    assert course.step(plan[-1].time) == max(end - 1, 0)
    if end:
        expected = [0.15 * (1 + math.cos(math.pi * t / end)) for t in range(1, end)]
        assert [due.act.share for due in plan[1:]] == pytest.approx(expected)


def test_three_quarters_of_epochs_where_their_steps_are_not_known():
    plan = Regrow("1ep").plan(Course(100, 10, epochs=8))
    assert [str(due.time) for due in plan] == [f"{n}ep" for n in range(6)]


def test_an_open_training_needs_an_end():
    with pytest.raises(LitPruneError, match=r"until is needed where trainer\.max_epochs is open"):
        Regrow("10it").plan(Course(100, 10, steps=5))


def test_the_trainer_says_how_long():
    assert not Regrow().fixes_length
    assert Regrow().wants_target
