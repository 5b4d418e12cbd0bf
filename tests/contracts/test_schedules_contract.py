"""One battery over every schedule that lies in the folder."""

import pickle
import re
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lit_prune import LitPruneError, schedules
from lit_prune.acts import Pick, Prune, PrunePicked
from lit_prune.schedules import Schedule
from lit_prune.shelf import members
from lit_prune.timing import Course

ALL = members(schedules.__name__, schedules.__path__, Schedule)

UNITS = st.sampled_from(["ep", "it"])
STEPS = 7


@st.composite
def after_training(draw):
    finetune = draw(st.integers(1, 6))
    rates = st.none() | st.floats(0, 1)
    stages = st.dictionaries(st.integers(0, finetune - 1), st.floats(0, 1), max_size=3)
    rate = draw(rates | stages.map(lambda some: {0: 0.1} | some))
    return {"epochs": draw(st.integers(0, 6)), "finetune_epochs": finetune, "rate": rate}


@st.composite
def iterative(draw):
    total = draw(st.integers(1, 6))
    rewind = draw(st.sampled_from(["weights", "learning_rate", "fine_tune", "init"]))
    point = 0 if rewind == "init" else draw(st.integers(0, total - 1))
    share = draw(st.none() | st.floats(0.01, 0.99))
    return {
        "levels": draw(st.integers(1, 7)),
        "epochs": total,
        "rewind": rewind,
        "rewind_to": f"{point}ep",
        "share": share,
    }


@st.composite
def gradual(draw):
    begin = draw(st.integers(0, 5))
    return {
        "begin": f"{begin}ep",
        "end": f"{begin + draw(st.integers(1, 9))}ep",
        "every": f"{draw(st.integers(1, 4))}ep",
        "power": draw(st.sampled_from([0.5, 1, 2, 3, 4.5])),
    }


@st.composite
def regrow(draw):
    return {
        "every": f"{draw(st.integers(1, 4))}ep",
        "share": draw(st.floats(0.01, 1)),
        "by": draw(st.sampled_from(["random", "gradient"])),
        "until": draw(st.none() | st.integers(1, 12).map(lambda n: f"{n}ep")),
    }


@st.composite
def greg1(draw):
    step = draw(st.floats(1e-3, 0.5))
    return {
        "begin": f"{draw(st.integers(0, 5))}ep",
        "every": f"{draw(st.integers(1, 3))}ep",
        "step": step,
        "ceiling": step * draw(st.floats(1, 12)),
        "settle": f"{draw(st.integers(0, 4))}ep",
    }


@st.composite
def greg2(draw):
    given_ = draw(greg1())
    spread = draw(st.floats(1e-3, 0.5))
    parting = spread * draw(st.floats(1, 12))
    return given_ | {
        "spread": spread,
        "parting": parting,
        "ceiling": parting + given_["step"] * draw(st.floats(0.5, 12)),
    }


ARGUMENTS = {
    "AtInit": st.just({}),
    "AfterTraining": after_training(),
    "Iterative": iterative(),
    "Gradual": gradual(),
    "Regrow": regrow(),
    "GReg1": greg1(),
    "GReg2": greg2(),
}
EVERY_SCHEDULE = pytest.mark.parametrize("name", list(ALL))
# Long enough for every plan above: those whose length is their own say it themselves.
LONG = 100


@st.composite
def cases(draw, name):
    """A schedule and a course that it may be planned for."""
    schedule = ALL[name](**draw(ARGUMENTS[name]))
    total = draw(st.integers(1, 10**5))
    keep = draw(st.integers(0, total)) if schedule.wants_target else None
    length = schedule.length(STEPS)
    return schedule, Course(total, keep, LONG if length is None else length, STEPS)


def steps_of(plan, course):
    return [course.step(due.time) for due in plan]


def counts_of(plan):
    return [due.act.keep for due in plan if isinstance(due.act, Prune | Pick)]


def test_every_file_of_the_folder_gives_a_schedule_and_all_are_tried_here():
    files = {path.stem for path in Path(schedules.__path__[0]).glob("*.py")}
    files -= {"__init__", "schedule", "ranges"}
    assert {s.__module__.rpartition(".")[2] for s in ALL.values()} == files
    assert set(ARGUMENTS) == set(ALL)
    assert set(ALL) <= set(schedules.__all__)
    assert all(getattr(schedules, name) is schedule for name, schedule in ALL.items())


@EVERY_SCHEDULE
@given(data=st.data())
def test_a_plan_is_in_the_order_of_time_and_inside_the_training(name, data):
    schedule, course = data.draw(cases(name))
    plan = schedule.plan(course)
    steps = steps_of(plan, course)
    assert plan
    assert steps == sorted(steps)
    assert steps[0] >= 0
    length = schedule.length(STEPS)
    if length is not None:
        assert steps[-1] < length * STEPS


@EVERY_SCHEDULE
@given(data=st.data())
def test_prunes_never_give_back_and_end_exactly_on_the_target(name, data):
    schedule, course = data.draw(cases(name))
    plan = schedule.plan(course)
    counts = counts_of(plan)
    assert counts
    assert all(type(count) is int and 0 <= count <= course.total for count in counts)
    assert all(after <= before for before, after in pairwise(counts))
    if schedule.wants_target:
        assert counts[-1] == course.keep


@EVERY_SCHEDULE
@given(data=st.data())
def test_what_is_picked_is_removed_once_and_later(name, data):
    schedule, course = data.draw(cases(name))
    kinds = [type(due.act) for due in schedule.plan(course)]
    assert kinds.count(Pick) == kinds.count(PrunePicked) <= 1
    if Pick in kinds:
        assert kinds.index(Pick) < kinds.index(PrunePicked) == len(kinds) - 1
        assert Prune not in kinds


@EVERY_SCHEDULE
@given(data=st.data())
def test_the_same_plan_every_time(name, data):
    schedule, course = data.draw(cases(name))
    plan = schedule.plan(course)
    again = type(schedule)(**{f.name: getattr(schedule, f.name) for f in fields(schedule)})
    assert again == schedule
    assert schedule.plan(course) == plan == again.plan(course)
    assert pickle.loads(pickle.dumps(schedule)).plan(course) == plan


@EVERY_SCHEDULE
@given(data=st.data())
def test_epochs_and_iterations_that_mean_the_same_moments_give_the_same_plan(name, data):
    schedule, course = data.draw(cases(name))
    texts = {
        f.name: value
        for f in fields(schedule)
        if isinstance(value := getattr(schedule, f.name), str) and value.endswith("ep")
    }
    said_in = {
        key: f"{course.step(text)}it" if data.draw(UNITS) == "it" else text
        for key, text in texts.items()
    }
    other = replace(schedule, **said_in)
    assert other.plan(course) == schedule.plan(course)
    assert other.length(STEPS) == schedule.length(STEPS)


@EVERY_SCHEDULE
@given(data=st.data())
def test_a_schedule_that_fixes_the_length_knows_it_from_the_steps(name, data):
    schedule, _ = data.draw(cases(name))
    assert schedule.fixes_length == (schedule.length(STEPS) is not None)
    assert schedule.fixes_length == (name in ("Iterative", "AfterTraining"))
    if schedule.fixes_length:
        assert type(schedule.length(STEPS)) is int
        assert schedule.length(None) in (None, schedule.length(STEPS))


@EVERY_SCHEDULE
@given(data=st.data())
def test_only_a_share_needs_no_target(name, data):
    schedule, _ = data.draw(cases(name))
    assert schedule.wants_target == (getattr(schedule, "share", None) is None or name == "Regrow")


@EVERY_SCHEDULE
@given(data=st.data())
def test_members_are_frozen_dataclasses(name, data):
    schedule, _ = data.draw(cases(name))
    assert is_dataclass(schedule)
    assert isinstance(hash(replace(schedule, **_unhashable(schedule))), int)
    for field in fields(schedule):
        with pytest.raises(FrozenInstanceError):
            setattr(schedule, field.name, None)


def _unhashable(schedule):
    """A dict of rates has no hash; all else must."""
    return {"rate": None} if isinstance(getattr(schedule, "rate", None), dict) else {}


@pytest.mark.parametrize("name", ["Iterative", "Gradual", "Regrow", "GReg1", "GReg2"])
@given(data=st.data())
def test_a_text_that_is_no_time_is_refused_when_the_schedule_is_made(name, data):
    schedule, _ = data.draw(cases(name))
    values = {f.name: str(getattr(schedule, f.name)) for f in fields(schedule)}
    texts = [key for key, value in values.items() if re.fullmatch(r"\d+(ep|it)", value)]
    wrong = data.draw(st.sampled_from(texts))
    with pytest.raises(LitPruneError, match="time '3 days' is not understood"):
        replace(schedule, **{wrong: "3 days"})


OUT_OF_RANGE = [
    ("AfterTraining", {"epochs": -1, "finetune_epochs": 1}, "epochs=-1", "at least 0"),
    ("AfterTraining", {"epochs": 1, "finetune_epochs": 0}, "finetune_epochs=0", "at least 1"),
    ("AfterTraining", {"epochs": 1, "finetune_epochs": 2, "rate": -0.1}, "rate=-0.1", "at least 0"),
    ("AfterTraining", {"epochs": 1, "finetune_epochs": 2, "rate": {1: 0.1}}, "rate={1", "at 0"),
    ("AfterTraining", {"epochs": 1, "finetune_epochs": 2, "rate": {}}, "rate={}", "at 0"),
    (
        "AfterTraining",
        {"epochs": 1, "finetune_epochs": 2, "rate": {0: 0.1, 2: 0.1}},
        "rate={0: 0.1, 2",
        "before finetune_epochs=2",
    ),
    (
        "AfterTraining",
        {"epochs": 1, "finetune_epochs": 2, "rate": {0: 0.1, 1: -3.0}},
        "-3.0",
        "at least 0",
    ),
    ("Iterative", {"levels": 0, "epochs": 1}, "levels=0", "at least 1"),
    ("Iterative", {"levels": 1, "epochs": 0}, "epochs=0", "at least 1"),
    ("Iterative", {"levels": 1, "epochs": 1, "rewind": "rates"}, "rewind=rates", "learning_rate"),
    ("Iterative", {"levels": 1, "epochs": 1, "share": 0}, "share=0", "between 0 and 1"),
    ("Iterative", {"levels": 1, "epochs": 1, "share": 1}, "share=1", "between 0 and 1"),
    ("Iterative", {"levels": 1, "epochs": 1, "share": -0.5}, "share=-0.5", "between 0 and 1"),
    ("Iterative", {"levels": 1, "epochs": 2, "rewind_to": "2ep"}, "rewind_to=2ep", "2 epochs"),
    (
        "Iterative",
        {"levels": 1, "epochs": 2, "rewind": "init", "rewind_to": "1ep"},
        "rewind_to=1ep",
        "rewind='weights'",
    ),
    ("Gradual", {"begin": "0ep", "end": "4ep", "every": "0ep"}, "every=0ep", "at least 1"),
    ("Gradual", {"begin": "0ep", "end": "4ep", "power": 0}, "power=0", "above 0"),
    ("Gradual", {"begin": "0ep", "end": "4ep", "power": float("nan")}, "power=nan", "above 0"),
    ("Gradual", {"begin": "4ep", "end": "4ep"}, "begin=4ep", "end=4ep"),
    ("Gradual", {"begin": "5it", "end": "4it"}, "begin=5it", "end=4it"),
    ("Regrow", {"every": "0it"}, "every=0it", "at least 1"),
    ("Regrow", {"share": 0}, "share=0", "above 0, and at most 1"),
    ("Regrow", {"share": 1.01}, "share=1.01", "at most 1"),
    ("Regrow", {"by": "momentum"}, "by=momentum", "one of random, gradient"),
    ("GReg1", {"begin": "1ep", "every": "0it"}, "every=0it", "at least 1"),
    ("GReg1", {"begin": "1ep", "step": 0}, "step=0", "above 0"),
    ("GReg1", {"begin": "1ep", "step": 2.0}, "ceiling=1.0", "at least step=2.0"),
    ("GReg2", {"begin": "1ep", "every": "0ep"}, "every=0ep", "at least 1"),
    ("GReg2", {"begin": "1ep", "spread": -1}, "spread=-1", "above 0"),
    ("GReg2", {"begin": "1ep", "spread": 0.1}, "parting=0.01", "at least spread=0.1"),
    ("GReg2", {"begin": "1ep", "step": 0.0}, "step=0.0", "above 0"),
    ("GReg2", {"begin": "1ep", "ceiling": 0.01}, "ceiling=0.01", "above parting=0.01"),
]


@pytest.mark.parametrize(("name", "arguments", "said", "allowed"), OUT_OF_RANGE, ids=str)
def test_an_argument_out_of_range_is_one_line_with_name_value_and_what_is_allowed(
    name, arguments, said, allowed
):
    with pytest.raises(LitPruneError) as raised:
        ALL[name](**arguments)
    message = str(raised.value)
    assert message.startswith(f"{name}: ")
    assert said in message
    assert allowed in message
    assert "\n" not in message


@EVERY_SCHEDULE
def test_every_class_says_its_source_or_needs_none(name):
    documented = ALL[name].__doc__ or ""
    assert "Source:" in documented or name == "AtInit"


def test_moments_said_in_mixed_units_compare_only_with_the_steps_of_an_epoch():
    schedule = ALL["Gradual"](begin="1ep", end="30it")
    with pytest.raises(LitPruneError, match="in one unit"):
        schedule.plan(Course(10, 5))
    with pytest.raises(LitPruneError, match="begin=1ep must come before end=30it"):
        schedule.plan(Course(10, 5, steps=30))
    assert steps_of(schedule.plan(Course(10, 5, steps=29)), Course(10, 5, steps=29)) == [30]


@given(st.integers(0, 50), st.integers(1, 30))
def test_a_rewinding_point_in_steps_must_lie_in_the_dense_training(count, steps):
    schedule = ALL["Iterative"](levels=2, epochs=3, rewind_to=f"{count}it")
    assert schedule.length(None) is None or count == 0
    course = Course(100, 10, steps=steps)
    if count < 3 * steps:
        assert schedule.length(steps) == 3 + 2 * (3 - count // steps)
        assert steps_of(schedule.plan(course), course)[0] == count
        return
    for ask in (lambda: schedule.length(steps), lambda: schedule.plan(course)):
        with pytest.raises(LitPruneError, match=f"rewind_to={count}it is out of range") as raised:
            ask()
        assert "3 epochs" in str(raised.value)
        assert "\n" not in str(raised.value)


@EVERY_SCHEDULE
@given(data=st.data())
def test_a_plan_without_a_target_is_a_mistake_with_one_line(name, data):
    schedule = ALL[name](**data.draw(ARGUMENTS[name]))
    assume(getattr(schedule, "share", None) is None or name != "Iterative")
    with pytest.raises(LitPruneError, match="prunes to a target, and there is none"):
        schedule.plan(Course(total=100, epochs=200, steps=STEPS))
