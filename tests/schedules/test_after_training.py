"""AfterTraining: dense epochs, one prune, and the rates of fine-tuning."""

from hypothesis import given
from hypothesis import strategies as st

from lit_prune.acts import Due, HoldRate, Prune
from lit_prune.schedules import AfterTraining
from lit_prune.timing import Course, Time

COURSE = Course(total=100, keep=7)


def at(epoch, act):
    return Due(Time(epoch, "ep"), act)


def test_the_last_rate_stays_where_none_is_given():
    schedule = AfterTraining(epochs=3, finetune_epochs=2)
    assert schedule.plan(COURSE) == [at(3, Prune(7)), at(3, HoldRate(None))]
    assert schedule.length(None) == 5


def test_a_rate_that_is_given_holds_from_the_prune_on():
    schedule = AfterTraining(3, 2, rate=0.01)
    assert schedule.plan(COURSE) == [at(3, Prune(7)), at(3, HoldRate(0.01))]
    assert AfterTraining(3, 2, rate=0).plan(COURSE)[-1] == at(3, HoldRate(0))


@given(
    st.integers(0, 5),
    st.dictionaries(st.integers(1, 8), st.floats(0, 1)),
    st.permutations(range(9)),
)
def test_stages_come_in_the_order_of_their_epochs(epochs, later, order):
    stages = {0: 0.5} | later
    shuffled = {epoch: stages[epoch] for epoch in order if epoch in stages}
    prune, *rates = AfterTraining(epochs, 9, rate=shuffled).plan(COURSE)
    assert prune == at(epochs, Prune(7))
    assert rates == [at(epochs + epoch, HoldRate(stages[epoch])) for epoch in sorted(stages)]


def test_the_paper_s_p30f90():
    schedule = AfterTraining(30, 90, rate={0: 1e-2, 30: 1e-3, 60: 1e-4, 75: 1e-5})
    assert schedule.length(None) == 120
    assert [due.time.count for due in schedule.plan(COURSE)] == [30, 30, 60, 90, 105]
