"""AtInit: one prune before the first step."""

from hypothesis import given
from hypothesis import strategies as st

from lit_prune.acts import Due, Prune
from lit_prune.schedules import AtInit
from lit_prune.timing import Course, Time


@given(st.integers(0, 99), st.none() | st.integers(1, 9), st.none() | st.integers(1, 9))
def test_one_prune_at_the_start_straight_to_the_target(keep, epochs, steps):
    assert AtInit().plan(Course(99, keep, epochs, steps)) == [Due(Time(0, "ep"), Prune(keep))]


def test_the_trainer_says_how_long():
    assert not AtInit().fixes_length
    assert AtInit().length(5) is None
