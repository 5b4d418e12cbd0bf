"""Runs of train.py are read as what they were."""

import csv
import statistics

import pytest

from lit_prune.cli import main
from lit_prune.report import read_runs, tasks_of

QUICK = ["--config", "configs/quickstart.yaml", "--data.batch_size", "256"]
AFTER = {"epochs": 1, "finetune_epochs": 2, "rate": "{0: 0.01, 1: 0.001}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    once = [*QUICK, "--pruning.target", "10x", "--pruning.criterion", "Magnitude"]
    at_init = [*once, "--trainer.max_epochs", "3"]
    for seed in ("0", "1"):
        run_dir = str(root / f"init{seed}")
        assert main([*at_init, "--seed_everything", seed, "--run_dir", run_dir]) == 0
    after = ["--pruning.schedule", "AfterTraining", "--trainer.max_epochs", "null"]
    for key, value in AFTER.items():
        after += [f"--pruning.schedule.init_args.{key}", str(value)]
    assert main([*once, *after, "--run_dir", str(root / "after")]) == 0
    return root


def test_facts_of_real_runs(folder, report):
    runs = {run.name: run for run in read_runs([folder])}
    [task] = tasks_of(runs.values())
    cells = {cell.method.name: cell for cell in task.cells}
    assert task.title == "LeNet300100 on Digits"
    assert set(cells) == {"Magnitude", "Magnitude, AfterTraining"}
    two = [runs["init0"].accuracy, runs["init1"].accuracy]
    assert cells["Magnitude"].accuracy.mean == pytest.approx(statistics.mean(two))
    assert cells["Magnitude"].accuracy.std == pytest.approx(statistics.stdev(two))
    assert cells["Magnitude"].is_reference
    # The same epochs in all, and nothing else: another base model.
    assert cells["Magnitude, AfterTraining"].mark == ("SX-A",)
    assert cells["Magnitude, AfterTraining"].missing == [1]
    assert len(runs["after"].layers) == 3
    code, error, out = report(folder)
    assert (code, error) == (0, "")
    with (out / "runs.csv").open(newline="") as text:
        rows = {row["name"]: row for row in csv.DictReader(text)}
    phases = ("pretraining_epochs", "pruning_epochs", "finetuning_epochs")
    assert [rows["after"][key] for key in phases] == ["1", "0", "2"]
    assert [rows["init0"][key] for key in phases] == ["0", "0", "3"]
    dense, sparse = (
        float(rows["after"][k]) for k in ("inference_flops", "effective_inference_flops")
    )
    # 1,437 images less a tenth for validation.
    assert float(rows["after"]["training_flops"]) == 3 * (dense + 2 * sparse) * (1437 - 144)
    code, error, _ = report(folder, "--require", "S2")
    assert code == 2
    assert "epochs of pretraining is 1 and 0" in error
