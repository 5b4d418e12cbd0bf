"""Schedules on the command line: nested flags, the length, the rows, and one line for a mistake."""

import csv
import json
import shlex
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_prune import Masks
from lit_prune.cli import main

QUICKSTART = str(Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml")
# Three steps an epoch; the length is the schedule's.
SHORT = [
    *("--config", QUICKSTART),
    *("--trainer.limit_train_batches", "3"),
    *("--trainer.limit_val_batches", "1"),
    *("--trainer.limit_test_batches", "1"),
    *("--pruning.criterion", "Magnitude"),
    *("--pruning.target", "10x"),
]
TOTAL = 266_200
KEEP = 26_620


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call ``main`` with a run folder of its own; return (exit code, stderr, folder)."""
    monkeypatch.setattr("sys.argv", ["train.py"])

    def call(args: str, length: str = "null"):
        folder = tmp_path / "run"
        capsys.readouterr()
        words = [*SHORT, "--trainer.max_epochs", length, *shlex.split(args)]
        code = main([*words, "--run_dir", str(folder)])
        return code, capsys.readouterr().err, folder

    return call


def levels(folder: Path) -> list[dict[str, str]]:
    with (folder / "levels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_flags_of_the_issue_train_level_by_level(run):
    code, err, folder = run(
        "--pruning.schedule Iterative --pruning.schedule.levels 3 --pruning.schedule.epochs 2 "
        "--pruning.schedule.rewind weights --pruning.schedule.rewind_to 1ep"
    )
    assert (code, err) == (0, "")
    rows = levels(folder)
    assert ",".join(rows[0]) == (
        "level,epoch,kept,direct_sparsity,effective_sparsity,collapsed_layers,"
        "effective_flops,val_accuracy,test_accuracy,seconds"
    )
    assert [int(row["level"]) for row in rows] == [0, 1, 2, 3]
    assert [int(row["epoch"]) for row in rows] == [2, 3, 4, 5]
    kept = [int(row["kept"]) for row in rows]
    assert kept == [round(TOTAL * 0.1 ** (level / 3)) for level in range(4)]
    files = sorted(path.name for path in (folder / "masks").iterdir())
    assert files == [f"level_{level:02}.safetensors" for level in range(4)]
    masks = [Masks.load(folder / "masks" / name) for name in files]
    assert [m.kept for m in masks] == kept
    assert masks[-1] == Masks.load(folder / "masks.safetensors")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["kept"], summary["epochs"]) == (KEEP, 5)
    assert summary["test_accuracy"] == pytest.approx(float(rows[-1]["test_accuracy"]))
    events = EventAccumulator(str(folder)).Reload()
    steps = [event.step for event in events.Scalars("sparsity/direct")]
    assert steps == [0, 3, 6, 9, 12]
    # The checkpoint of the end holds the masks and the snapshot as plain tensors.
    torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("args", "length", "epochs", "kept"),
    [
        (
            "AfterTraining --pruning.schedule.epochs 1 --pruning.schedule.finetune_epochs 1 "
            "--pruning.schedule.rate 0.01",
            "null",
            [1, 2],
            [TOTAL, KEEP],
        ),
        (
            "AfterTraining --pruning.schedule.epochs 1 --pruning.schedule.finetune_epochs 2 "
            "--pruning.schedule.rate '{0: 0.01, 1: 0.001}'",
            "3",
            [1, 3],
            [TOTAL, KEEP],
        ),
        (
            "Iterative --pruning.schedule.levels 2 --pruning.schedule.epochs 1 "
            "--pruning.schedule.share 0.2 --pruning.target null",
            "null",
            [1, 2, 3],
            [TOTAL, 212_960, 170_368],
        ),
        (
            "Iterative --pruning.schedule.levels 1 --pruning.schedule.epochs 2 "
            "--pruning.schedule.rewind_to 4it",
            "null",
            [2, 3],
            [TOTAL, KEEP],
        ),
        (
            "Gradual --pruning.schedule.begin 0ep --pruning.schedule.end 4it "
            "--pruning.schedule.every 2it --pruning.schedule.power 1",
            "2",
            [1, 2],
            [TOTAL - (TOTAL - KEEP) // 2, KEEP],
        ),
        (
            "Regrow --pruning.schedule.every 2it --pruning.schedule.by gradient",
            "2",
            [2],
            [KEEP],
        ),
        (
            "GReg1 --pruning.schedule.begin 1it --pruning.schedule.every 1it "
            "--pruning.schedule.step 0.5",
            "2",
            [1, 2],
            [TOTAL, KEEP],
        ),
        (
            "GReg2 --pruning.schedule.begin 0it --pruning.schedule.every 1it "
            "--pruning.schedule.step 0.5 --pruning.schedule.spread 0.01",
            "2",
            [1, 2],
            [TOTAL, KEEP],
        ),
        ("AtInit", "1", [1], [KEEP]),
    ],
)
def test_every_schedule_has_its_flags(run, args, length, epochs, kept):
    code, err, folder = run(f"--pruning.schedule {args}", length)
    assert (code, err) == (0, "")
    rows = levels(folder)
    assert [int(row["epoch"]) for row in rows] == epochs
    assert [int(row["kept"]) for row in rows] == kept


ITERATIVE = "--pruning.schedule Iterative --pruning.schedule.epochs 2"
GRADUAL = "--pruning.schedule Gradual --pruning.schedule.begin 0ep"
MISTAKES = [
    (f"{ITERATIVE} --pruning.schedule.levels 0", "null", ["levels=0", "at least 1"]),
    (f"{ITERATIVE} --pruning.schedule.levels x", "null", ["levels", "x"]),
    (f"{ITERATIVE}", "null", ["levels"]),
    (f"{ITERATIVE} --pruning.schedule.level 2", "null", ["level", "levels"]),
    (
        f"{ITERATIVE} --pruning.schedule.levels 1 --pruning.schedule.rewind back",
        "null",
        ["rewind", "back", "fine_tune"],
    ),
    (
        f"{ITERATIVE} --pruning.schedule.levels 1 --pruning.schedule.rewind_to 2ep",
        "null",
        ["rewind_to=2ep", "2 epochs"],
    ),
    (
        f"{ITERATIVE} --pruning.schedule.levels 1 --pruning.schedule.rewind_to 6it",
        "null",
        ["rewind_to=6it", "2 epochs"],
    ),
    (
        f"{ITERATIVE} --pruning.schedule.levels 1 --pruning.schedule.rewind_to soon",
        "null",
        ["'soon'", "2ep", "500it"],
    ),
    (
        f"{ITERATIVE} --pruning.schedule.levels 1 --pruning.schedule.share 0.2",
        "null",
        ["share=0.2", "10x"],
    ),
    (f"{ITERATIVE} --pruning.schedule.levels 1", "3", ["4 epochs", "is 3"]),
    (
        f"{ITERATIVE} --pruning.schedule.levels 1 --trainer.max_steps 5",
        "null",
        ["4 epochs", "max_steps=5"],
    ),
    (f"{GRADUAL} --pruning.schedule.end 1ep", "null", ["max_epochs", "how long"]),
    (f"{GRADUAL} --pruning.schedule.end 2ep", "2", ["Gradual", "2ep", "epoch 2"]),
    (f"{GRADUAL} --pruning.schedule.end 0ep", "2", ["begin=0ep", "end=0ep"]),
    (
        f"{GRADUAL} --pruning.schedule.end 1ep --pruning.schedule.every 0it",
        "2",
        ["every=0it", "at least 1"],
    ),
    ("--pruning.schedule Regrow --pruning.schedule.share 2", "2", ["share=2", "at most 1"]),
    ("--pruning.schedule Sometimes", "2", ["Sometimes", "Iterative", "Gradual"]),
    (
        "--pruning.schedule AfterTraining --pruning.schedule.epochs 1 "
        "--pruning.schedule.finetune_epochs 1 --pruning.schedule.rate=-1",
        "null",
        ["rate=-1", "at least 0"],
    ),
    (
        "--pruning.schedule GReg1 --pruning.schedule.begin 1it --pruning.schedule.ceiling 0",
        "2",
        ["ceiling=0", "at least step=0.0001"],
    ),
    ("--pruning.schedule GReg1 --pruning.schedule.begin 1it", "2", ["GReg1", "epoch 2"]),
]


@pytest.mark.parametrize(("args", "length", "words"), MISTAKES, ids=[m[0][19:] for m in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_no_folder(run, args, length, words):
    code, err, folder = run(args, length)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err, err
    assert not folder.exists()


def test_a_config_that_leaves_the_length_out_has_the_schedule_s(run, tmp_path):
    """And one that says minus one does not know how long it is."""
    code, err, folder = run(f"{ITERATIVE} --pruning.schedule.levels 1", "-1")
    assert code == 2
    assert "trainer.max_epochs=-1 is out of range" in err
    assert not folder.exists()


def test_a_finished_run_of_levels_is_not_run_again(run, monkeypatch):
    args = f"{ITERATIVE} --pruning.schedule.levels 1 --pruning.schedule.epochs 1"
    code, _, folder = run(args)
    before = (folder / "levels.csv").read_bytes()
    assert code == 0
    monkeypatch.setattr("lit_prune.cli._fit_and_test", lambda *args: pytest.fail("ran again"))
    assert run(args)[0] == 0
    assert (folder / "levels.csv").read_bytes() == before
