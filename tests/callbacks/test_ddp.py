"""Two processes on the CPU: one network, one set of masks, one run folder."""

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from sessions import Moment, limit_file_size, scalars, session

from lit_prune import MaskManager, Masks

ROOT = Path(__file__).resolve().parents[2]
NOTES = "LIT_PRUNE_TEST_NOTES"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Tell(pl.Callback):
    """Writes down what each rank has, at the first step and at the end."""

    def _write(self, name: str, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        (manager,) = [c for c in trainer.callbacks if isinstance(c, MaskManager)]
        zeros = [
            bool((weight[~manager.masks[layer]] == 0).all())
            for layer, weight in manager.masks.parameters(module).items()
        ]
        note = {
            "masks": _hash(manager.masks),
            "measurement": manager.measurement.plain(),
            "weights": _hash(dict(module.named_parameters())),
            "zeros": all(zeros),
            "order": trainer.train_dataloader.batch_sampler._seed,
            "first": next(iter(trainer.train_dataloader.batch_sampler)).tolist(),
            "metrics": {k: v.item() for k, v in trainer.callback_metrics.items()},
        }
        folder = Path(os.environ[NOTES])
        (folder / f"{name}{trainer.global_rank}.json").write_text(json.dumps(note))

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        if trainer.global_step == 1:
            self._write("start", trainer, pl_module)

    def on_train_end(self, trainer, pl_module) -> None:
        self._write("end", trainer, pl_module)


def _hash(tensors) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update((tensor.detach() + 0).numpy().tobytes())
    return digest.hexdigest()


LAUNCHERS = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"],
}


def run(launcher: str, folder: Path, notes: Path, *args: str) -> subprocess.CompletedProcess:
    notes.mkdir(exist_ok=True)
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)])
    environment = os.environ | {NOTES: str(notes), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [
        *(*LAUNCHERS[launcher], "train.py", "--config", "configs/quickstart.yaml"),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"),
        *("--trainer.max_epochs", "2", "--pruning.criterion", "SNIP"),
        *("--trainer.callbacks+", f"{Path(__file__).stem}.Tell", "--run_dir", str(folder), *args),
    ]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_hold_the_same_masks_and_write_one_folder(launcher, tmp_path):
    folder, notes = tmp_path / "run", tmp_path / "notes"
    done = run(launcher, folder, notes)
    assert done.returncode == 0, done.stderr[-2000:]

    ranks = {
        when: [json.loads((notes / f"{when}{rank}.json").read_text()) for rank in (0, 1)]
        for when in ("start", "end")
    }
    everything = [note for pair in ranks.values() for note in pair]
    assert len({note["masks"] for note in everything}) == 1
    assert all(note["measurement"] == everything[0]["measurement"] for note in everything)
    assert all(note["zeros"] for note in everything)
    for first, second in ranks.values():
        assert first["weights"] == second["weights"]
    first, second = ranks["start"]
    assert first["order"] == second["order"]
    assert not set(first["first"]) & set(second["first"]), "each rank has a share of its own"
    for key in ("val/accuracy", "val/loss", "sparsity/direct", "sparsity/effective"):
        assert ranks["end"][0]["metrics"][key] == ranks["end"][1]["metrics"][key]

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["effective_kept"] == 2662 < summary["kept"]
    assert math.isfinite(summary["test_accuracy"])
    assert math.isfinite(summary["test_loss"])
    masks = Masks.load(folder / "masks.safetensors")
    assert _hash(masks) == ranks["end"][0]["masks"]
    assert masks.kept == summary["kept"]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert next(iter(checkpoint["state_dict"])) == "backbone.fc1.weight"
    assert done.stdout.count("test accuracy") == 1, "only one process prints"
    written = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in written] == ["last.ckpt", "previous.ckpt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "run"]


def test_a_mistake_ends_all_processes_with_code_2_and_no_folder(tmp_path):
    done = run("python", tmp_path / "run", tmp_path / "notes", "--pruning.include", "nothing*")
    assert done.returncode == 2
    assert "nothing*" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_goes_on_and_overwrite_acts_once(tmp_path):
    folder, notes = tmp_path / "run", tmp_path / "notes"
    assert run("python", folder, notes).returncode == 0
    first = json.loads((notes / "end0.json").read_text())
    (folder / "summary.json").unlink()
    assert run("python", folder, notes).returncode == 0
    assert (folder / "summary.json").exists()

    (folder / "left.txt").write_text("of the old run")
    done = run("python", folder, notes, "--overwrite")
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (folder / "left.txt").exists()
    assert json.loads((notes / "end0.json").read_text())["weights"] == first["weights"]


TWO = [
    *("--config", "configs/quickstart.yaml", "--trainer.max_epochs", "3"),
    *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"),
]


def go_to_root() -> None:
    """From here the first process finds train.py, by which it starts the second."""
    os.chdir(ROOT)
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def limit_file_size_at_root() -> None:
    go_to_root()
    limit_file_size(300_000)


def test_two_processes_killed_go_on_to_the_bits_of_undisturbed_ones(tmp_path):
    folders = whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = session(TWO, whole, prepare=go_to_root)
    assert ended.code == 0, ended.err[-2000:]
    # Between the two renames of the second epoch's checkpoints.
    ended = session(TWO, killed, Moment("os.replace", 5, after=True), go_to_root)
    assert ended.code == -signal.SIGKILL, ended.err[-2000:]
    assert not (killed / "checkpoints" / "last.ckpt").exists()
    ended = session(TWO, killed, prepare=go_to_root)
    assert ended.code == 0, ended.err[-2000:]
    ends = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in folders]
    for key in ("state_dict", "optimizer_states"):
        assert str(ends[0][key]) == str(ends[1][key])
    hashes = [_hash(end["state_dict"]) for end in ends]
    assert hashes[0] == hashes[1]
    assert scalars(killed) == scalars(whole)


def test_a_full_disk_stops_both_processes(tmp_path):
    ended = session(TWO, tmp_path / "run", prepare=limit_file_size_at_root)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    path = tmp_path / "run" / "checkpoints" / "next.ckpt"
    assert f"error: cannot write {path}: File too large" in ended.err


def test_a_loss_that_is_not_finite_stops_both_processes(tmp_path):
    args = [*TWO, "--model.optimizer.lr", "1e30"]
    ended = session(args, tmp_path / "run", prepare=go_to_root)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    found = set(re.findall(r"in epoch 1 of 3, step \d+; last good checkpoint: none", ended.err))
    assert len(found) == 1, "the earliest step of both"
