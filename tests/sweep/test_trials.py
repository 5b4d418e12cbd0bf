"""Grids expand to their products, and folders are named by what differs: uniquely and for good."""

import math
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lit_prune.errors import LitPruneError
from lit_prune.sweep.description import Description, as_typed
from lit_prune.sweep.trials import LONGEST, short_names, trials_of

keys = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3).map(".".join)
values = st.one_of(st.integers(), st.booleans(), st.text(max_size=12), st.none())
axes = st.lists(values, min_size=1, max_size=4, unique_by=as_typed)
grids = st.dictionaries(keys, axes, min_size=1, max_size=4)


def described(*of, fixed=None, configs=("base.yaml",)):
    """A description with grids of {key: values}."""
    axes = [{k: {as_typed(v): {k: v} for v in vs} for k, vs in grid.items()} for grid in of]
    return Description("some", configs, tuple(axes), fixed or {})


def options(trial):
    return dict(arg[2:].split("=", 1) for arg in trial.args if "=" in arg and arg[:2] == "--")


@given(grids)
def test_a_grid_is_the_product_of_its_axes(grid):
    trials = trials_of(described(grid))
    assert len(trials) == math.prod(map(len, grid.values()))
    wanted = [
        dict(zip(grid, map(as_typed, point), strict=True)) for point in product(*grid.values())
    ]
    assert [options(trial) for trial in trials] == wanted
    assert all(trial.args[:2] == ("--config", "base.yaml") for trial in trials)


@given(grids)
def test_names_are_unique_safe_and_not_too_long(grid):
    names = [trial.name for trial in trials_of(described(grid))]
    assert len(set(names)) == len(names)
    for name in names:
        assert name[0] not in ".-"
        assert len(name) <= LONGEST
        assert all(c.isalnum() or c in "._,=+%-" for c in name)
        assert name.isascii()
        assert "=" in name


@given(grids, st.randoms(use_true_random=False))
def test_names_do_not_hang_on_the_order_in_the_file(grid, random):
    shuffled = [(key, random.sample(of, len(of))) for key, of in grid.items()]
    random.shuffle(shuffled)
    here = {t.name: set(t.args) for t in trials_of(described(grid))}
    there = {t.name: set(t.args) for t in trials_of(described(dict(shuffled)))}
    assert here == there


@given(grids, st.data())
def test_a_longer_axis_leaves_the_names_of_what_was_there(grid, data):
    key = data.draw(st.sampled_from(sorted(grid)))
    new = data.draw(values)
    assume(as_typed(new) not in map(as_typed, grid[key]))
    extended = {**grid, key: [new, *grid[key]]}
    before = {t.name: t.args for t in trials_of(described(grid))}
    after = {t.name: t.args for t in trials_of(described(extended))}
    assert before.items() <= after.items()
    assert len(after) == len(before) + len(before) // len(grid[key])


@given(st.lists(keys, min_size=1, unique=True))
def test_short_names_are_unique_ends(keys):
    short = short_names(keys)
    assert list(short) == keys
    assert len(set(short.values())) == len(keys)
    assert all(key == end or key.endswith(f".{end}") for key, end in short.items())


def test_names_read_well():
    grid = {
        "seed_everything": [0],
        "pruning.criterion": ["SNIP"],
        "pruning.target": ["100x effective", "99%", "31.6x"],
    }
    assert [trial.name for trial in trials_of(described(grid))] == [
        "criterion=SNIP,target=100x_effective,seed_everything=0",
        "criterion=SNIP,target=99%,seed_everything=0",
        "criterion=SNIP,target=31.6x,seed_everything=0",
    ]


def test_a_long_name_ends_with_a_hash_of_all_of_it():
    grid = {"model.name": ["x" * 300 + "1", "x" * 300 + "2"]}
    first, second = (trial.name for trial in trials_of(described(grid)))
    assert len(first) == len(second) == LONGEST
    assert first[:-9] == second[:-9] == f"name={'x' * (LONGEST - 14)}"
    assert first != second


def test_labels_are_kept_whole_by_short_name():
    (trial,) = trials_of(described({"pruning.target": ["1 x/y"]}))
    assert trial.labels == {"target": "1 x/y"}


def test_several_grids_are_their_union():
    trials = trials_of(described({"a": [1, 2]}, {"b": [1], "a": [3]}))
    assert [trial.name for trial in trials] == ["a=1", "a=2", "a=3,b=1"]


def test_configs_go_first_then_typed_options_then_the_others_parents_first():
    description = Description(
        "some",
        ("one.yaml", "two.yaml"),
        ({"m": {"x": {"config": ["three.yaml", "four.yaml"], "s.levels.n": 3, "s": "It"}}},),
        {"trainer.max_epochs": 2, "model.lr": 0.5},
    )
    (trial,) = trials_of(description, ["--data.root", "DIR", "--model.lr=1"])
    files = ["one.yaml", "two.yaml", "three.yaml", "four.yaml"]
    configs = [word for file in files for word in ("--config", file)]
    typed = ["--data.root", "DIR", "--model.lr=1"]
    others = ["--s=It", "--trainer.max_epochs=2", "--s.levels.n=3"]
    assert list(trial.args) == [*configs, *typed, *others]
    assert trial.name == "m=x"


@pytest.mark.parametrize(
    ("description", "extra", "words"),
    [
        (described({"a": [1, 2]}, {"a": [2]}), [], ["a=2", "twice"]),
        (described({"a": ["x y", "x_y"]}), [], ["a=x_y", "'x y'", "'x_y'"]),
        (described({"a": [1]}, fixed={"a": 2}), [], ["a is set twice"]),
        (described({"a.b": [1]}), ["--a.b", "3"], ["--a.b", "axis"]),
        (described({"a.b": [1]}), ["--a.b=3"], ["--a.b", "axis"]),
        (
            Description("n", ("c",), ({"a": {"1": {"a": 1}}, "m": {"x": {"a": 2}}},)),
            [],
            ["a is set twice"],
        ),
    ],
)
def test_a_mistake_is_named(description, extra, words):
    with pytest.raises(LitPruneError) as caught:
        trials_of(description, extra)
    assert [word for word in words if word not in str(caught.value)] == []
