"""A sweep file is read whole, and a mistake in it is one line that names it."""

import pytest

from lit_prune.errors import LitPruneError
from lit_prune.sweep.description import Description, as_typed


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read a sweep file of this text; base.yaml and erk.yaml are there."""
    monkeypatch.chdir(tmp_path)
    for name in ("base.yaml", "erk.yaml"):
        (tmp_path / name).write_text("seed_everything: 0\n")

    def call(text):
        (tmp_path / "some.yaml").write_text(text)
        return Description.read(tmp_path / "some.yaml")

    return call


def test_a_file_is_read_whole(read):
    found = read("""
config: [base.yaml, erk.yaml]
set: {trainer.max_epochs: 2}
slurm: {partition: gpu, time: 60}
grid:
  pruning.target: [10x, 99%, 5, 0.5, null, true]
  method:
    plain: {pruning.criterion: SNIP}
    erk: {config: erk.yaml, pruning.rounds: 3}
""")
    assert found.name == "some"
    assert found.configs == ("base.yaml", "erk.yaml")
    assert found.fixed == {"trainer.max_epochs": 2}
    assert found.slurm == {"partition": "gpu", "time": 60}
    (grid,) = found.grids
    values = ["10x", "99%", 5, 0.5, None, True]
    labels = ["10x", "99%", "5", "0.5", "null", "true"]
    assert grid["pruning.target"] == {
        label: {"pruning.target": value} for label, value in zip(labels, values, strict=True)
    }
    assert grid["method"]["erk"] == {"config": "erk.yaml", "pruning.rounds": 3}


def test_one_config_and_several_grids(read):
    found = read("config: base.yaml\ngrid: [{a.b: [1]}, {a.b: [2], c: [3]}]")
    assert found.configs == ("base.yaml",)
    assert [list(grid) for grid in found.grids] == [["a.b"], ["a.b", "c"]]


def test_config_files_are_named_by_their_stems(read):
    found = read("config: base.yaml\ngrid: {config: [erk.yaml, [base.yaml, erk.yaml]]}")
    assert list(found.grids[0]["config"]) == ["erk", "base+erk"]


def test_a_time_is_not_read_as_a_number_to_the_base_of_60(read):
    found = read("config: base.yaml\ngrid: {a.b: [1]}\nslurm: {time: 4:00:00}")
    assert found.slurm == {"time": "4:00:00"}


@pytest.mark.parametrize(
    ("value", "typed"),
    [(1, "1"), (1e-4, "0.0001"), ("1e-4", "1e-4"), (False, "false"), ([1, None], "[1, null]")],
)
def test_values_are_written_as_they_are_typed(value, typed):
    assert as_typed(value) == typed


GRID = "grid: {pruning.target: [10x]}"
BASE = "config: base.yaml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{BASE}\n{GRID}\ngird: 1", ["some.yaml", "'gird'", "did you mean 'grid'", "config, set"]),
        (GRID, ["no config"]),
        (f"config: []\n{GRID}", ["no config"]),
        (f"config: nope.yaml\n{GRID}", ["config=nope.yaml", "no such file"]),
        (f"config: [3]\n{GRID}", ["config=3"]),
        (BASE, ["grid is empty"]),
        (f"{BASE}\ngrid: {{}}", ["grid is empty"]),
        (f"{BASE}\ngrid: [{{a: [1]}}, {{}}]", ["grid is empty"]),
        (f"{BASE}\ngrid: 3", ["grid=3"]),
        (f"{BASE}\ngrid: {{pruning.target: []}}", ["grid.pruning.target", "empty"]),
        (f"{BASE}\ngrid: {{pruning.target: 10x}}", ["grid.pruning.target='10x'", "list"]),
        (f"{BASE}\ngrid: {{pruning.target: [10x, 10x]}}", ["grid.pruning.target", "'10x' twice"]),
        (f"{BASE}\ngrid: {{m: {{a: 3}}}}", ["grid.m.a=3"]),
        (f"{BASE}\ngrid: {{config: [nope.yaml]}}", ["grid.config.config=nope.yaml"]),
        (f"{BASE}\ngrid: {{run_dir: [a, b]}}", ["run_dir", "names the run folders"]),
        (f"{BASE}\n{GRID}\nset: {{overwrite: true}}", ["set.overwrite", "delete"]),
        (f"{BASE}\n{GRID}\nset: {{config: base.yaml}}", ["set.config", "'config'"]),
        (f"{BASE}\n{GRID}\nset: 3", ["set=3"]),
        (f"{BASE}\n{GRID}\nslurm: 3", ["slurm=3"]),
        ("", ["empty"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_a_mistake_is_named(read, text, words):
    with pytest.raises(LitPruneError) as caught:
        read(text)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LitPruneError, match=r"nope\.yaml: No such file"):
        Description.read(tmp_path / "nope.yaml")
