"""Every run is found once, whatever became of it."""

import csv
import json
from itertools import permutations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from run_folders import TOTAL, write_run

from lit_prune.errors import LitPruneError
from lit_prune.report import Status, frame, read_runs, tasks_of


def attempt(sweep, name, error=None):
    notes = sweep / ".sweep" / "attempts"
    notes.mkdir(parents=True, exist_ok=True)
    note = {"started": 0.0, "host": "h", "pid": 1, "seconds": 2.0, "error": error}
    (notes / f"{name}.json").write_text(json.dumps(note))


@pytest.fixture
def sweep(tmp_path):
    """A sweep with a run in every state."""
    folder = tmp_path / "sweeps" / "some"
    for seed in (0, 1):
        name = f"target=10x,seed_everything={seed}"
        write_run(folder / name, seed_everything=seed)
        attempt(folder, name)
    attempt(folder, "target=10x,seed_everything=2", "no such\nfile: weights")
    attempt(folder, "target=77x,seed_everything=2", "an error of its own")
    write_run(folder / "target=20x,seed_everything=0", None, pruning__target="20x")
    attempt(folder, "target=20x,seed_everything=0")
    write_run(folder / "target=30x,seed_everything=0", None, pruning__target="30x")
    attempt(folder, "target=30x,seed_everything=0", "RuntimeError: out of memory")
    write_run(folder / "target=40x,seed_everything=0", 0.1, 25, 0, pruning__target="40x")
    (folder / "target=50x,seed_everything=0").mkdir()
    (folder / "target=50x,seed_everything=0" / "config.yaml").write_text("a: [")
    broken = write_run(folder / "target=60x,seed_everything=0", pruning__target="60x")
    (broken / "summary.json").write_text("{")
    (folder / "logs").mkdir()
    return folder


STATES = {
    "target=10x,seed_everything=0": "finished",
    "target=10x,seed_everything=1": "finished",
    "target=10x,seed_everything=2": "failed",
    "target=77x,seed_everything=2": "failed",
    "target=20x,seed_everything=0": "unfinished",
    "target=30x,seed_everything=0": "failed",
    "target=40x,seed_everything=0": "collapsed",
    "target=50x,seed_everything=0": "failed",
    "target=60x,seed_everything=0": "failed",
}


def test_every_state_is_told(sweep):
    runs = {run.name: run for run in read_runs([sweep])}
    assert {name: str(run.status) for name, run in runs.items()} == STATES
    assert runs["target=10x,seed_everything=2"].error == "no such file: weights"
    assert runs["target=30x,seed_everything=0"].error == "RuntimeError: out of memory"
    assert runs["target=50x,seed_everything=0"].error.startswith("config.yaml cannot be read: ")
    assert runs["target=60x,seed_everything=0"].error.startswith("summary.json cannot be read: ")
    assert runs["target=40x,seed_everything=0"].collapsed_layers == 2


def test_every_run_is_one_row_of_the_csv(sweep, report):
    code, _, out = report(sweep)
    assert code == 0
    with (out / "runs.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert {row["name"]: row["status"] for row in rows} == STATES
    assert len(rows) == len(STATES)
    collapsed = next(row for row in rows if row["status"] == "collapsed")
    assert float(collapsed["effective_compression"]) == float("inf")
    assert float(collapsed["direct_compression"]) == TOTAL / 25
    page = (out / "index.html").read_text()
    assert "RuntimeError: out of memory" in page
    assert "an error of its own" in page


def test_a_trial_without_a_folder_takes_its_place_among_the_other_seeds(sweep):
    [task] = tasks_of(read_runs([sweep]))
    cell = next(cell for cell in task.cells if str(cell.rate) == "10x")
    assert [run.seed for run in cell.runs] == [0, 1, 2]
    assert cell.number(Status.FAILED) == 1
    assert "1 of 3 failed" in cell.notes


def test_missing_seeds_are_named(sweep):
    [task] = tasks_of(read_runs([sweep]))
    cell = next(cell for cell in task.cells if str(cell.rate) == "40x")
    assert cell.missing == [1, 2]
    assert "missing: 1, 2" in cell.notes


@given(st.lists(st.sampled_from(range(4)), min_size=1, max_size=6))
def test_neither_order_nor_repetition_of_the_arguments_matters(tmp_path_factory, picked):
    root = folders(tmp_path_factory)
    paths = [root, root / "a", root / "a" / "run0", root / "b"]
    runs = read_runs([root, *(paths[n] for n in picked)])
    assert runs == read_runs([root])
    assert read_runs([paths[n] for n in picked]) == read_runs([paths[n] for n in set(picked)])


_made = {}


def folders(factory):
    if not _made:
        _made[0] = factory.mktemp("many")
        for place in ("a/run0", "a/run1", "b/c/run0"):
            write_run(_made[0] / place)
    return _made[0]


def test_the_files_are_the_same_in_every_order(sweep, report, tmp_path):
    others = write_run(tmp_path / "others" / "x", pruning__rounds=3), sweep
    written = []
    for number, order in enumerate(permutations(others)):
        code, error, out = report(*order, out=tmp_path / f"out{number}")
        assert (code, error) == (0, "")
        written.append(
            [(out / f).read_bytes() for f in ("runs.csv", "levels.csv", "table.md", "table.tex")]
        )
    assert written[0] == written[1]


def test_a_run_below_a_run_is_not_another(tmp_path):
    write_run(write_run(tmp_path / "one") / "checkpoints" / "old")
    assert [run.name for run in read_runs([tmp_path])] == ["one"]


@pytest.mark.parametrize(
    ("summary", "told"),
    [
        ('{"total": 10, "kept": "many"}', "kept is 'many', not a number"),
        ("[]", "it is no summary of a run"),
        ('{"total": 10, "kept": true}', "kept is True, not a number"),
    ],
)
def test_a_summary_of_another_kind_is_a_failed_run(tmp_path, summary, told):
    (write_run(tmp_path / "run") / "summary.json").write_text(summary)
    [run] = read_runs([tmp_path])
    assert run.status is Status.FAILED
    assert told in run.error
    assert run.summary == {}


def test_mistakes_are_one_line_and_write_nothing(tmp_path, report):
    run = write_run(tmp_path / "runs" / "one")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.html").write_text("<html>mine</html>")
    for args, told in {
        (tmp_path / "none",): "no such folder of runs",
        (run / "config.yaml",): "is a file, not a folder of runs",
        (tmp_path / "empty",): "no runs at or below",
        (run, "--require", "S3.3"): "unknown setup 'S3.3'; did you mean 'S3.2'?; known: S1, S2,",
        (run, "--reference", "SNOP"): "no method 'SNOP' to compare with; did you mean 'SNIP'?",
    }.items():
        code, error, out = report(*args)
        assert (code, len(error.splitlines())) == (2, 1)
        assert told in error
        assert not out.exists()
    for out, told in {
        run / "config.yaml": "is a file, not a folder",
        tmp_path / "foreign": "index.html there is not of a report",
    }.items():
        code, error, _ = report(run, out=out)
        assert (code, told in error) == (2, True)
    assert (tmp_path / "foreign" / "index.html").read_text() == "<html>mine</html>"
    assert not (tmp_path / "foreign" / "runs.csv").exists()


def test_a_report_overwrites_its_own_files_only(tmp_path, report):
    run = write_run(tmp_path / "runs" / "one")
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for _ in range(2):
        assert report(run)[0] == 0
    assert (out / "notes.txt").read_text() == "mine"


def test_runs_are_a_frame_of_pandas(sweep):
    runs = read_runs([sweep])
    found = frame(runs, tasks_of(runs))
    assert len(found) == len(STATES)
    assert found.set_index("name").loc["target=10x,seed_everything=1", "test_accuracy"] == 0.9
    assert set(found["method"].dropna()) == {"SNIP"}


def test_a_missing_path_is_refused_from_python_as_well(tmp_path):
    with pytest.raises(LitPruneError, match="no runs at or below"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    "foreign",
    [
        {"trainer": 5},
        {"pruning": "magnitude"},
        {"data": ["x"]},
        {
            "defaults": ["a"],
            "trainer": {"max_epochs": {"value": 3}},
            "pruning": {"target": {"v": 3}},
        },
    ],
)
def test_the_config_of_another_tool_is_a_failed_run_and_stops_no_other(tmp_path, foreign):
    write_run(tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.yaml").write_text(yaml.safe_dump(foreign))
    runs = read_runs([tmp_path])
    assert sorted(run.status for run in runs) == [Status.FAILED, Status.FINISHED]
    assert len(frame(runs, tasks_of(runs))) == 2
