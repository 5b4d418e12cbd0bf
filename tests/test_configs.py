"""Every config opens with the line that runs it, and that line is understood."""

import csv
import json
import shlex
from pathlib import Path

import pytest

from lit_prune.cli import main, parsed
from lit_prune.sweep.description import Description
from lit_prune.sweep.trials import trials_of

ROOT = Path(__file__).resolve().parents[1]
SCHEDULES = sorted((ROOT / "configs" / "schedules").glob("*.yaml"))
FOUND = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))
SWEEPS = [path for path in FOUND if path.parent.name == "sweeps"]
CONFIGS = [path for path in FOUND if path not in SWEEPS]


def test_there_are_configs():
    assert Path("configs/quickstart.yaml") in CONFIGS
    assert Path("configs/sweeps/quickstart.yaml") in SWEEPS


@pytest.mark.parametrize("config", CONFIGS, ids=map(str, CONFIGS))
def test_the_first_line_of_a_config_runs_it(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py"])
    first = config.read_text().splitlines()[0]
    base = {
        "configs": f"--config {config}",
        "methods": f"--config configs/mnist_lenet300100_short.yaml --config {config}",
        "schedules": "--config configs/quickstart.yaml --config ",
    }
    assert first.startswith(f"# python train.py {base[config.parent.name]}")
    assert str(config) in first
    _, _, _, *args = shlex.split(first)
    settings = parsed(args).settings()
    assert {"seed_everything", "trainer", "model", "data", "pruning"} <= set(settings)
    schedule = settings["pruning"]["schedule"].get("init_args", {})
    assert "epochs" in schedule or settings["trainer"]["max_epochs"] >= 1
    assert settings["pruning"]["target"] or schedule["share"]


@pytest.mark.parametrize("config", SCHEDULES, ids=[path.stem for path in SCHEDULES])
def test_every_schedule_trains_the_quickstart(config, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py"])
    _, _, _, *args = shlex.split(config.read_text().splitlines()[0])
    short = ["--trainer.limit_train_batches", "2", "--run_dir", str(tmp_path / "run")]
    assert main([*args, *short]) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "levels.csv").open()))
    masks = sorted(path.stem for path in (tmp_path / "run" / "masks").iterdir())
    assert masks == [f"level_{number:02}" for number in range(len(rows))]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert int(rows[-1]["kept"]) == summary["kept"] < summary["total"]
    assert int(rows[-1]["epoch"]) == summary["epochs"]
    assert float(rows[-1]["test_accuracy"]) == summary["test_accuracy"]


@pytest.mark.parametrize("sweep", SWEEPS, ids=map(str, SWEEPS))
def test_the_first_line_of_a_sweep_runs_it_and_its_values_are_understood(sweep, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py"])
    first = sweep.read_text().splitlines()[0]
    assert first.startswith(f"# python -m lit_prune sweep {sweep}")
    _, _, _, _, _, file, *extra = shlex.split(first)
    trials = trials_of(Description.read(Path(file)), extra)
    seen = set()
    for trial in trials:
        if not set(trial.labels.items()) <= seen:  # each value once
            parsed(list(trial.args))
        seen |= set(trial.labels.items())
    assert seen
