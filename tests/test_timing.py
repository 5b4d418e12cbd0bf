"""Times as a config writes them, and the course they lie on."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_prune import LitPruneError
from lit_prune.timing import Course, Time

COUNTS = st.integers(0, 10**6)
TIMES = st.builds(Time, COUNTS, st.sampled_from(["ep", "it"]))
STEPS = st.integers(1, 1000)


@given(TIMES)
def test_a_time_reads_back_as_it_is_written(time):
    assert Time.parse(str(time)) == time
    assert Time.parse(time) is time


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2ep", Time(2, "ep")),
        ("500it", Time(500, "it")),
        ("0ep", Time(0, "ep")),
        (" 7 it ", Time(7, "it")),
        ("007ep", Time(7, "ep")),
    ],
)
def test_what_a_config_may_say(text, time):
    assert Time.parse(text) == time


@pytest.mark.parametrize(
    "text", ["", "2", "ep", "-1ep", "2.5ep", "2 epochs", "2EP", "2ep3", "2ep 3it", "1e3it", 3, None]
)
def test_what_is_no_time_is_an_error_of_one_line_that_shows_it_and_both_forms(text):
    with pytest.raises(LitPruneError) as raised:
        Time.parse(text)
    message = str(raised.value)
    assert repr(str(text)) in message
    assert "2ep" in message
    assert "500it" in message
    assert "\n" not in message


def test_times_and_courses_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Time(1, "ep").count = 2
    with pytest.raises(FrozenInstanceError):
        Course(total=1).total = 2


@given(TIMES, STEPS)
def test_a_step_lies_in_the_epoch_that_has_begun_and_not_ended(time, steps):
    course = Course(total=1, steps=steps)
    step, epoch = course.step(time), course.epoch(time)
    assert epoch * steps <= step < (epoch + 1) * steps
    assert step == (time.count * steps if time.unit == "ep" else time.count)


@given(COUNTS, STEPS)
def test_a_step_is_said_in_epochs_exactly_where_one_begins(step, steps):
    course = Course(total=1, steps=steps)
    time = course.at(step)
    assert course.step(time) == step
    assert (time.unit == "ep") == (step % steps == 0)
    assert Course(total=1).at(step) == Time(step, "it")


@given(TIMES, TIMES, STEPS)
def test_before_is_the_order_of_steps(one, other, steps):
    course = Course(total=1, steps=steps)
    assert course.is_before(one, other) == (course.step(one) < course.step(other))
    if one.unit == other.unit:
        assert Course(total=1).is_before(one, other) == course.is_before(one, other)


UNITS = st.tuples(*[st.sampled_from(["ep", "it"])] * 3)


@given(st.integers(0, 9), st.integers(0, 30), st.integers(1, 7), STEPS, UNITS)
def test_every_period_from_begin_to_end_whatever_the_unit(begin, span, period, steps, units):
    course = Course(total=1, steps=steps)
    expected = [n * steps for n in range(begin, begin + span + 1) if (n - begin) % period == 0]
    epochs = [Time(n, "ep") for n in (begin, begin + span, period)]
    given_ = [
        time if unit == "ep" else Time(course.step(time), "it")
        for time, unit in zip(epochs, units, strict=True)
    ]
    found = course.every(*given_)
    assert [course.step(time) for time in found] == expected
    assert all(time.unit == "ep" for time in found)


@given(st.integers(0, 90), st.integers(0, 300), st.integers(1, 70), st.integers(1, 20))
def test_every_so_many_steps(begin, span, period, steps):
    for course in (Course(total=1, steps=steps), Course(total=1)):
        found = course.every(Time(begin, "it"), Time(begin + span, "it"), Time(period, "it"))
        places = [time.count * (steps if time.unit == "ep" else 1) for time in found]
        assert places == list(range(begin, begin + span + 1, period))


@pytest.mark.parametrize("period", ["0ep", "0it"])
def test_a_period_of_nothing_is_an_error(period):
    with pytest.raises(LitPruneError, match=f"every={period} is out of range: at least 1"):
        Course(total=1, steps=5).every("0ep", "3ep", period)


def test_epochs_alone_need_no_number_of_steps():
    course = Course(total=1)
    assert course.epoch("3ep") == 3
    assert course.is_before("3ep", "4ep")
    assert course.every("1ep", "3ep", "1ep") == [Time(n, "ep") for n in (1, 2, 3)]
    assert course.step("3it") == 3
    assert course.step("0ep") == 0
    assert course.epoch("0it") == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda course: course.step("3ep"),
        lambda course: course.epoch("3it"),
        lambda course: course.is_before("3it", "1ep"),
        lambda course: course.every("1ep", "9it", "2it"),
    ],
)
def test_mixed_units_without_the_number_of_steps_are_an_error_that_says_what_to_do(ask):
    with pytest.raises(LitPruneError, match="in one unit") as raised:
        ask(Course(total=1))
    assert "\n" not in str(raised.value)
