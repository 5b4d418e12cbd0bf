"""Two processes on the CPU: one network, one set of masks, one run folder."""

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from sessions import Moment, limit_file_size, scalars, session
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import MaskManager, Masks
from lit_prune.callbacks.training_batches import TrainingBatches
from lit_prune.criteria import SNIP, Random
from lit_prune.errors import RanksDiffer

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
    # SNIP loses units whole, so that a few more than asked for may be left; one process says so.
    assert 2662 <= summary["effective_kept"] < summary["kept"]
    said = done.stderr.count("no threshold meets 100x effective (2662 of")
    assert said == (summary["effective_kept"] > 2662)
    assert math.isfinite(summary["test_accuracy"])
    assert math.isfinite(summary["test_loss"])
    masks = Masks.load(folder / "masks.safetensors")
    assert _hash(masks) == ranks["end"][0]["masks"]
    assert masks.kept == summary["kept"]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert next(iter(checkpoint["state_dict"])) == "backbone.fc1.weight"
    assert done.stdout.count("test accuracy") == 1, "only one process prints"
    shown = Counter((tag, step) for tag, step, _ in scalars(folder).elements())
    assert {number for (tag, _), number in shown.items() if tag != "epoch"} == {1}
    tags = {tag for tag, _ in shown}
    assert {"masks/fc1", "overview/scores", "live_weights/fc1", "density/fc1", "graph"} <= tags
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


# --- two processes with half the batch come to what one comes to with the whole


class Noted(SNIP):
    """Writes its scores down, round by round."""

    def __call__(self, probe):
        scores = super().__call__(probe)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.save(scores, Path(os.environ[NOTES]) / f"scores{probe.round}{rank}.pt")
        return scores


def found(folder, processes, *args):
    strategy = "ddp" if processes > 1 else "auto"
    args = [
        *("--trainer.devices", f"{processes}", "--trainer.strategy", strategy),
        *("--data.batch_size", f"{64 // processes}", "--pruning.batches", "2"),
        *("--trainer.max_epochs", "1", *args),
    ]
    name = f"{processes}"
    done = run("python", folder / name, folder / f"{name} notes", *args)
    assert done.returncode == 0, done.stderr[-2000:]
    return Masks.load(folder / name / "masks.safetensors")


@pytest.mark.parametrize("criterion", ["SynFlow", "Random", "Shuffled"])
def test_masks_without_data_are_those_of_one_process(criterion, tmp_path):
    args = ["--pruning.criterion", criterion]
    if criterion == "Shuffled":
        args += ["--pruning.criterion.criterion", "Magnitude"]
    one, two = (found(tmp_path, processes, *args) for processes in (1, 2))
    assert one == two


def test_snip_scores_are_those_of_one_process_with_the_whole_batch(tmp_path):
    args = ["--pruning.criterion", f"{Path(__file__).stem}.Noted", "--pruning.target", "10x"]
    one, two = (found(tmp_path, processes, *args) for processes in (1, 2))
    expected = torch.load(tmp_path / "1 notes" / "scores00.pt")
    ours, theirs = (torch.load(tmp_path / "2 notes" / f"scores0{rank}.pt") for rank in (0, 1))
    for name, score in expected.items():
        assert torch.equal(ours[name], theirs[name])
        torch.testing.assert_close(ours[name], score, rtol=1e-3, atol=1e-5 * score.max().item())
    changed = sum(int((one[name] != two[name]).sum()) for name in one)
    assert one.kept == two.kept
    assert changed <= 1e-3 * one.kept, "scores a rounding apart may change places at the threshold"


class Own(pl.LightningModule):
    """A user's own module with a plain loader, in which every rank has seeded itself."""

    def __init__(self, batch_size=8):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.batch_size = batch_size

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        draw = torch.Generator().manual_seed(0)
        x, y = torch.randn(48, 6, generator=draw), torch.arange(48) % 3
        x[:, 0] = torch.arange(48)
        return DataLoader(TensorDataset(x, y), batch_size=self.batch_size)


class Look(pl.Callback):
    """Seeds each rank in its own way, and notes which samples it scores by."""

    def setup(self, trainer, pl_module, stage):
        torch.manual_seed(100 + trainer.global_rank)

    def on_train_start(self, trainer, pl_module):
        (manager,) = [c for c in trainer.callbacks if isinstance(c, MaskManager)]
        read = TrainingBatches(trainer, 2, 0)
        rounds = [[x[:, 0].int().tolist() for x, _ in read(turn)] for turn in (0, 1, 2, 0)]
        note = {"seed": manager._seed, "rounds": rounds}
        folder = Path(os.environ[NOTES])
        (folder / f"look{trainer.global_rank}.json").write_text(json.dumps(note))

    def on_train_end(self, trainer, pl_module):
        (manager,) = [c for c in trainer.callbacks if isinstance(c, MaskManager)]
        manager.masks.save(Path(os.environ[NOTES]) / f"masks{trainer.global_rank}")


def fit(manager, processes):
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=processes,
        strategy="ddp_spawn" if processes > 1 else "auto",
        callbacks=[Look(), manager],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Own(8 // processes))


def notes_of(folder, processes):
    return [json.loads((folder / f"look{rank}.json").read_text()) for rank in range(processes)]


def test_a_plain_loader_gives_every_rank_its_own_share_in_every_round(tmp_path, monkeypatch):
    monkeypatch.setenv(NOTES, str(tmp_path))
    fit(MaskManager(Random(), "3x"), 2)
    ours, theirs = notes_of(tmp_path, 2)
    assert ours["seed"] == theirs["seed"] == 100
    assert Masks.load(tmp_path / "masks0") == Masks.load(tmp_path / "masks1")
    seen = []
    for note in (ours, theirs):
        assert [len(samples) for turn in note["rounds"] for samples in turn] == [4] * 8
        assert note["rounds"][0] == note["rounds"][3], "a round may be read again"
        seen += [sample for turn in note["rounds"][:3] for samples in turn for sample in samples]
    assert sorted(seen) == list(range(48)), "three rounds are all the samples"


def test_a_plain_loader_gives_the_scores_of_one_process(tmp_path, monkeypatch):
    scores = {}
    for processes in (1, 2):
        folder = tmp_path / f"{processes}"
        folder.mkdir()
        monkeypatch.setenv(NOTES, str(folder))
        # All batches, since Lightning shuffles a plain loader where there are many processes.
        fit(MaskManager(Noted(), "3x", batches=6), processes)
        scores[processes] = [torch.load(folder / f"scores0{rank}.pt") for rank in range(processes)]
    (expected,), (ours, theirs) = scores[1], scores[2]
    for name, score in expected.items():
        assert torch.equal(ours[name], theirs[name])
        torch.testing.assert_close(ours[name], score, rtol=1e-4, atol=1e-6)
    assert Masks.load(tmp_path / "2" / "masks0") == Masks.load(tmp_path / "1" / "masks0")


class ByRank:
    """A quota of another kind on each rank."""

    def __call__(self, shapes, keep):
        first, *_, final = shapes
        extra = torch.distributed.get_rank()
        return {first: keep - 2 + extra, final: 2 - extra}


def test_masks_that_differ_stop_the_run_and_name_the_layer(tmp_path, monkeypatch):
    monkeypatch.setenv(NOTES, str(tmp_path))
    with pytest.raises(Exception, match=r"masks of net\.0\.weight differ") as caught:
        fit(MaskManager(Random(), "4x", quota=ByRank()), 2)
    assert RanksDiffer.__name__ in str(caught.value) or isinstance(caught.value, RanksDiffer)


class Reads(MaskManager):
    """Reads another file of masks on each rank."""

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        self.masks_file = f"{self.masks_file}{trainer.global_rank}"


def test_files_of_masks_that_differ_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv(NOTES, str(tmp_path))
    dense = Masks.dense(Own())
    dense.save(tmp_path / "masks0")
    last = list(dense)[-1]
    Masks({**dense, last: torch.eye(3, 8).bool()}).save(tmp_path / "masks1")
    with pytest.raises(Exception, match=rf"masks of {last} differ"):
        fit(Reads(masks=str(tmp_path / "masks")), 2)


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
