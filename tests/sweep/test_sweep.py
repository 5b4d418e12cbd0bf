"""From a file to a table: what is done stays, what is missing runs, mistakes are named."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lit_prune.__main__ import main
from lit_prune.sweep import crew
from lit_prune.sweep.ledger import Ledger, State
from lit_prune.sweep.trials import Trial

ROOT = Path(__file__).resolve().parents[2]
TINY = """\
config: {base}
set:
  trainer.max_epochs: 1
  trainer.limit_train_batches: 2
  trainer.logger: false
"""
TARGETS = "grid:\n  pruning.target: [{targets}]\n  pruning.criterion: [Random]\n"
BASE = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Write a sweep file, run it in this process; return (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_prune"])

    def call(text, *args, where="debug"):
        (tmp_path / "some.yaml").write_text(TINY.format(base=BASE) + text)
        capsys.readouterr()
        code = main(["sweep", "some.yaml", "--cluster", where, *args])
        return (code, *capsys.readouterr())

    return call


def rows_of(folder=Path("runs/sweeps/some")):
    return list(csv.DictReader((folder / "sweep.csv").open()))


def summaries(folder=Path("runs/sweeps/some")):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


def test_every_trial_is_a_finished_run_in_a_folder_named_by_its_settings(sweep):
    code, out, err = sweep(
        TARGETS.format(targets="10x, 100x effective") + "  seed_everything: [3]\n"
    )
    assert (code, err) == (0, "")
    names = [f"criterion=Random,target={t},seed_everything=3" for t in ("100x_effective", "10x")]
    assert sorted(summaries()) == names
    for row in rows_of():
        folder = Path("runs/sweeps/some") / row["trial"]
        summary = json.loads((folder / "summary.json").read_text())
        assert row["status"] == "done"
        assert row["error"] == ""
        assert (row["criterion"], row["seed_everything"]) == ("Random", "3")
        assert row["target"].replace(" ", "_") in row["trial"]
        assert int(row["kept"]) == summary["kept"]
        assert float(row["test_accuracy"]) == summary["test_accuracy"]
        assert int(row["effective_kept"]) == summary["effective_kept"]
        assert summary["seed"] == 3
        assert f"{summary['kept']:,}" in out
        log = (Path("runs/sweeps/some/logs") / f"{row['trial']}.txt").read_text()
        assert log.startswith(f"$ {summary['command']}")
        assert "test accuracy" in log
    (effective,) = [row for row in rows_of() if "effective" in row["target"]]
    assert int(effective["effective_kept"]) == 2_662
    assert "done 2  running 0  failed 0  waiting 0" in out


def test_an_extended_sweep_runs_only_what_is_missing(sweep):
    assert sweep(TARGETS.format(targets="10x"))[0] == 0
    before = summaries()
    code, out, _ = sweep(TARGETS.format(targets="10x, 20x"))
    after = summaries()
    assert code == 0
    assert len(after) == 2
    assert before.items() <= after.items()
    assert "13,310" in out
    assert "26,620" in out
    assert sweep(TARGETS.format(targets="10x, 20x"))[0] == 0
    assert summaries() == after


def test_a_failed_trial_is_listed_and_the_others_go_on_and_it_is_tried_again(sweep, tmp_path):
    text = """
grid:
  a: {bad: {model.weights: weights.pt}, good: {model.weights: null}}
"""
    code, out, err = sweep(text)
    assert (code, err) == (1, "")
    bad, good = rows_of()
    assert (bad["trial"], bad["status"], bad["kept"]) == ("a=bad", "failed", "")
    assert "weights.pt" in bad["error"]
    assert "\n" not in bad["error"]
    assert good["status"] == "done"
    assert f"failed: a=bad: {bad['error']}" in out
    assert "done 1  running 0  failed 1  waiting 0" in out
    code, out, _ = sweep(text, "--dry-run")
    assert code == 0
    assert "failed   a=bad" in out
    assert "done     a=good" in out
    before = summaries()
    _save_weights(tmp_path / "weights.pt")
    assert sweep(text)[0] == 0
    assert [row["status"] for row in rows_of()] == ["done", "done"]
    assert before.items() <= summaries().items()


def _save_weights(path):
    import torch

    from lit_prune.backbones import LeNet300100

    torch.save(LeNet300100().state_dict(), path)


def test_changed_settings_of_what_is_done_are_an_error(sweep):
    assert sweep(TARGETS.format(targets="10x"))[0] == 0
    before = summaries()
    code, out, err = sweep(TARGETS.format(targets="10x, 20x"), "--model.optimizer.lr", "0.5")
    assert (code, out) == (2, "")
    assert err.startswith("error: trial criterion=Random,target=10x: runs/sweeps/some/")
    assert "lr is 0.1 there and 0.5 here" in err
    assert "delete that folder" in err
    assert "run_dir" not in err
    assert summaries() == before


def test_options_of_train_hold_for_all_trials_and_win_over_the_file(sweep):
    code, _, _ = sweep(TARGETS.format(targets="10x"), "--trainer.max_epochs", "2", "--dir", "here")
    assert code == 0
    (row,) = rows_of(Path("here"))
    assert json.loads((Path("here") / row["trial"] / "summary.json").read_text())["epochs"] == 2


def test_a_dry_run_writes_nothing(sweep, tmp_path):
    code, out, _ = sweep(TARGETS.format(targets="10x, 20x"), "--dry-run")
    assert code == 0
    assert out.splitlines()[:2] == [
        f"waiting  criterion=Random,target={target}" for target in ("10x", "20x")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["some.yaml"]


@pytest.mark.parametrize(
    ("text", "args", "words"),
    [
        (TARGETS.format(targets="10x"), "--jobs 0", ["--jobs 0", "at least 1"]),
        (TARGETS.format(targets="10x"), "--jobs x", ["--jobs", "'x'"]),
        (TARGETS.format(targets="10x"), "--job 3", ["'--job'", "did you mean '--jobs'"]),
        (TARGETS.format(targets="10x"), "--run_dir x", ["--run_dir", "--dir"]),
        (TARGETS.format(targets="10x"), "more.yaml", ["'more.yaml'", "second sweep file"]),
        (TARGETS.format(targets="10x"), "--slurm.time", ["--slurm.time has no value"]),
        (TARGETS.format(targets="10x"), "--modle.lr 3", ["modle"]),
        (TARGETS.format(targets="10x, 10y"), "", ["trial criterion=Random,target=10y: ", "10y"]),
        (TARGETS.format(targets="10x, 10.0x"), "", []),
        ("grid: {pruning.criterion: [SNYP]}", "", ["trial criterion=SNYP", "did you mean 'SNIP'"]),
        ("grid: {pruning.critreion: [SNIP]}", "", ["trial critreion=SNIP", "critreion"]),
        ("grid: {trainer.devices: [2]}", "", ["trial devices=2", "one device"]),
        ("grid: {trainer.max_epochs: [2]}", "", ["trainer.max_epochs is set twice"]),
        (
            "grid: {pruning.quota: [null], m: {a: {pruning.rounds: 1}, b: {pruning.rounds: 1}}}",
            "",
            ["trials m=a,quota=null and m=b,quota=null are the same run"],
        ),
    ],
)
def test_a_mistake_is_found_before_anything_runs(sweep, tmp_path, text, args, words):
    code, out, err = sweep(text, *args.split(), *(["--dry-run"] if not words else []))
    if not words:
        assert code == 0
        return
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert [word for word in words if word not in err] == []
    assert [path.name for path in tmp_path.iterdir()] == ["some.yaml"]


def test_an_unknown_cluster_is_named(sweep):
    code, _, err = sweep(TARGETS.format(targets="10x"), where="slrum")
    assert code == 2
    assert "unknown --cluster slrum; did you mean 'slurm'?; known: local, slurm, debug" in err


def test_no_file_is_a_mistake(capsys):
    assert main(["sweep", "--jobs", "2"]) == 2
    assert "no sweep file" in capsys.readouterr().err


def test_a_missing_submitit_is_named(sweep, monkeypatch):
    monkeypatch.setattr(crew, "find_spec", lambda name: None)
    code, _, err = sweep(TARGETS.format(targets="10x"))
    assert code == 2
    assert "lit_prune[sweep]" in err


def test_help_is_short(capsys):
    with pytest.raises(SystemExit) as left:
        main(["sweep", "--help"])
    assert left.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) < 40


# On this machine, for real.

SLOW = """\
config: {base}
set: {{trainer.max_epochs: {epochs}, trainer.logger: false}}
grid: {{pruning.target: [{targets}]}}
"""


@pytest.fixture
def command(tmp_path):
    """Start the command as a user does; processes are ended at the end."""
    started = []

    def start(epochs, targets, *args):
        text = SLOW.format(base=BASE, epochs=epochs, targets=targets)
        (tmp_path / "some.yaml").write_text(text)
        line = [sys.executable, "-m", "lit_prune", "sweep", "some.yaml", *args]
        paths = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            line,
            cwd=tmp_path,
            env=paths,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(found, what, seconds=120):
    for _ in range(20 * seconds):
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError(f"no {what} in {seconds} seconds")


def processes_of(tmp_path):
    """All processes that work on this sweep."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            here = (folder / "cwd").readlink() == tmp_path
            zombie = ") Z " in (folder / "stat").read_text()
        except OSError:
            continue
        if here and not zombie and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def running(tmp_path, *targets):
    ledger = Ledger(tmp_path / "runs" / "sweeps" / "some")
    trials = [Trial(f"target={target}", {}, ()) for target in targets]
    if not ledger.jobs.exists():
        return []
    return [trial for trial in trials if ledger.state(trial) is State.RUNNING]


@pytest.mark.slow
def test_two_jobs_share_the_work(command, tmp_path):
    process = command(1, "10x, 20x, 30x, 40x", "--jobs", "2")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    folder = tmp_path / "runs" / "sweeps" / "some"
    assert [row["status"] for row in rows_of(folder)] == ["done"] * 4
    pids = {json.loads(path.read_text())["pid"] for path in (folder / ".sweep/attempts").iterdir()}
    assert len(pids) <= 2
    wait_for(lambda: not processes_of(tmp_path), "end of the workers")


@pytest.mark.slow
def test_ctrl_c_ends_all_and_the_same_command_goes_on(command, tmp_path):
    process = command(3000, "10x, 20x", "--jobs", "1")
    wait_for(lambda: running(tmp_path, "10x"), "running trial")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped: done 0  running 0  failed 0  waiting 2; the same command goes on" in out
    assert "Traceback" not in out
    assert processes_of(tmp_path) == []
    assert [row["status"] for row in rows_of(tmp_path / "runs/sweeps/some")] == ["waiting"] * 2


@pytest.mark.slow
def test_a_killed_command_is_joined_and_a_killed_worker_is_replaced(command, tmp_path):
    first = command(6, "10x, 20x", "--jobs", "1")
    wait_for(lambda: running(tmp_path, "10x"), "running trial")
    first.kill()
    first.wait()
    assert processes_of(tmp_path), "the worker goes on"
    second = command(6, "10x, 20x", "--jobs", "1")
    folder = tmp_path / "runs" / "sweeps" / "some"
    wait_for(lambda: (folder / "target=10x" / "summary.json").exists(), "summary")
    attempt = wait_for(
        lambda: running(tmp_path, "20x") and Ledger(folder).attempt(Trial("target=20x", {}, ())),
        "running trial",
    )
    assert attempt.pid == Ledger(folder).attempt(Trial("target=10x", {}, ())).pid
    os.kill(attempt.pid, signal.SIGKILL)
    out, _ = second.communicate(timeout=240)
    assert second.returncode == 0, out
    assert [row["status"] for row in rows_of(folder)] == ["done"] * 2
    assert Ledger(folder).attempt(Trial("target=20x", {}, ())).pid != attempt.pid
