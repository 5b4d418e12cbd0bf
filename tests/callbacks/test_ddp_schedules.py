"""Every schedule on two processes: the same masks, weights and zeros on both, and one folder."""

import csv
import json
from pathlib import Path

import pytest
import torch
from test_ddp import run

from lit_prune import Masks

ROOT = Path(__file__).resolve().parents[2]
SCHEDULES = sorted((ROOT / "configs" / "schedules").glob("*.yaml"))
NET = ("--model.backbone.batch_norm", "true")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def trained(folder: Path, notes: Path, config: Path, *args: str) -> list[dict]:
    """Train on two processes, killed by nobody; return what each rank has at the end."""
    long = ("--trainer.max_epochs", "20", "--trainer.limit_train_batches", "2")
    done = run("python", folder, notes, *long, "--config", str(config), *args)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads((notes / f"end{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("config", SCHEDULES, ids=[path.stem for path in SCHEDULES])
def test_both_processes_hold_the_same_through_every_schedule(config, tmp_path):
    folder = tmp_path / "run"
    first, second = trained(folder, tmp_path / "notes", config, *NET)
    assert first["zeros"]
    assert second["zeros"]
    for what in ("masks", "weights", "measurement"):
        assert first[what] == second[what]
    rows = list(csv.DictReader((folder / "levels.csv").open()))
    assert [row["level"] for row in rows] == [str(number) for number in range(len(rows))]
    for row in rows:
        masks = Masks.load(folder / "masks" / f"level_{int(row['level']):02}.safetensors")
        assert masks.kept == int(row["kept"])
        assert 0 < float(row["test_accuracy"]) <= 1
    summary = json.loads((folder / "summary.json").read_text())
    assert float(rows[-1]["test_accuracy"]) == pytest.approx(summary["test_accuracy"])
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "last.ckpt",
        "previous.ckpt",
    ]


def test_an_interrupted_iterative_run_goes_on_to_the_same_bits(tmp_path):
    config = ROOT / "configs" / "schedules" / "iterative.yaml"
    args = ("--pruning.schedule.levels", "2", "--pruning.schedule.epochs", "4")
    whole = trained(tmp_path / "whole", tmp_path / "notes", config, *args)
    folder = tmp_path / "run"
    trained(folder, tmp_path / "again", config, *args)
    # As a run that was killed before its last two epochs ended.
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert torch.load(folder / "checkpoints" / "previous.ckpt", weights_only=True)["epoch"] < 7
    again = trained(folder, tmp_path / "again", config, *args)
    for before, after in zip(whole, again, strict=True):
        assert (before["masks"], before["weights"]) == (after["masks"], after["weights"])


def test_bf16_keeps_zeros_on_both(tmp_path):
    config = ROOT / "configs" / "schedules" / "rigl.yaml"
    args = ("--trainer.precision", "bf16-mixed", "--trainer.accumulate_grad_batches", "2")
    first, second = trained(tmp_path / "run", tmp_path / "notes", config, *NET, *args)
    assert first["zeros"]
    assert first["masks"] == second["masks"]
    assert first["weights"] == second["weights"]
