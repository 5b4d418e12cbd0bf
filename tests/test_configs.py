"""Every config opens with the line that runs it, and that line is understood."""

import csv
import json
import shlex
from pathlib import Path

import pytest

from lit_prune.cli import main, parsed

ROOT = Path(__file__).resolve().parents[1]
SCHEDULES = sorted((ROOT / "configs" / "schedules").glob("*.yaml"))
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))


def test_there_are_configs():
    assert Path("configs/quickstart.yaml") in CONFIGS


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
