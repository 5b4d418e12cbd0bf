"""The run folder: finished, interrupted, foreign or in use; and what a kill leaves behind."""

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lit_prune import LitClassifier, LitPruneError, Masks
from lit_prune.cli import main
from lit_prune.errors import TrainingStopped, UnwritableFile
from lit_prune.files import write_whole
from lit_prune.measure import LayerMeasure, Measurement, unmeasured
from lit_prune.run import RunFolder, environment, folder_name, mask_summary, writing

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).stem  # by this name our classes are found


class Dropping(nn.Sequential):
    """A net that draws random numbers in training and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(784, 30),
            nn.BatchNorm1d(30),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(30, 10),
        )


def settings_of(epochs: int, criterion: str = "SNIP") -> list[str]:
    return [
        *("--config", str(ROOT / "configs" / "quickstart.yaml")),
        *("--trainer.max_epochs", str(epochs), "--trainer.limit_train_batches", "6"),
        *(
            "--trainer.log_every_n_steps",
            "3",
            "--model.backbone",
            f"{Path(__file__).stem}.Dropping",
        ),
        *("--data.crop", "1", "--data.rotate", "5", "--pruning.criterion", criterion),
    ]


def run(folder: Path, *args: str, epochs: int = 1) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        return main([*settings_of(epochs), *args, "--run_dir", str(folder)])


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert run(folder) == 0
    return folder


@pytest.fixture
def finished(template, tmp_path) -> Path:
    """The folder of a finished run, all its own."""
    shutil.copytree(template, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def interrupted(finished) -> Path:
    """The folder of a run that was stopped after training and before its results were written."""
    for name in ("summary.json", "masks.safetensors", "layers.csv"):
        (finished / name).unlink()
    return finished


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained")

    monkeypatch.setattr(Trainer, "fit", refuse)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def end_of(folder: Path) -> tuple[bytes, dict, list]:
    """Masks, weights and optimizer states of a finished run, for comparison to the bit."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    masks = (folder / "masks.safetensors").read_bytes()
    return masks, checkpoint["state_dict"], checkpoint["optimizer_states"]


def same_bits(one, other) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other


def test_the_summary_has_every_key_of_the_house(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {
        *("test_accuracy", "total", "kept", "direct_sparsity", "direct_compression"),
        *("effective_kept", "effective_sparsity", "effective_compression"),
        *("effective_flops", "flops", "other_flops"),
        *("seed", "command", "git_commit", "versions", "seconds"),
    } <= set(summary)
    kept = Masks.load(finished / "masks.safetensors").kept
    assert (summary["total"], summary["kept"]) == (784 * 30 + 300, kept)
    assert summary["direct_sparsity"] == (23_820 - kept) / 23_820
    assert summary["direct_compression"] == 23_820 / kept
    assert summary["effective_kept"] == 239 <= kept
    assert summary["effective_sparsity"] == (23_820 - 239) / 23_820
    assert summary["effective_compression"] == 23_820 / 239
    assert summary["flops"] == 2 * 23_820
    assert (summary["effective_flops"], summary["other_flops"]) == (2 * 239, 0)
    assert 0 <= summary["test_accuracy"] <= 1
    assert summary["seed"] == 0
    assert summary["seconds"] > 0
    assert summary["command"].startswith("python train.py --config ")
    assert summary["command"].endswith(f"--run_dir {summary['command'].split()[-1]}")
    assert {"python", "torch", "lightning", "lit_prune"} <= set(summary["versions"])


def test_what_is_infinite_is_null_in_the_summary(tmp_path):
    nothing = ("--pruning.target", "0", "--pruning.allow_collapse", "true")
    assert run(tmp_path / "empty", *nothing) == 0
    text = (tmp_path / "empty" / "summary.json").read_text()

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    summary = json.loads(text, parse_constant=refuse)
    assert summary["direct_compression"] is None
    assert (summary["kept"], summary["direct_sparsity"]) == (0, 1.0)
    assert summary["effective_compression"] is None
    assert (summary["effective_kept"], summary["effective_sparsity"]) == (0, 1.0)


def test_layers_are_rows_of_what_the_masks_keep_and_what_is_effective(finished):
    rows = list(csv.reader((finished / "layers.csv").open()))
    assert rows[0] == [
        *("name", "shape", "total", "kept", "sparsity"),
        *("effective", "dead_in", "dead_out", "flops", "effective_flops"),
    ]
    masks = Masks.load(finished / "masks.safetensors")
    assert [row[:3] for row in rows[1:]] == [
        ["backbone.1.weight", "30x784", "23520"],
        ["backbone.5.weight", "10x30", "300"],
    ]
    first, second = masks.values()
    between = first.any(1) & second.any(0)  # the hidden units with an input and an output
    effective = {
        "backbone.1.weight": first & between[:, None],
        "backbone.5.weight": second & between,
    }
    for name, _, total, kept, sparsity, *measured in rows[1:]:
        assert int(kept) == masks[name].sum()
        assert float(sparsity) == (int(total) - int(kept)) / int(total)
        mask = effective[name]
        dead = [(~mask.any(0)).sum(), (~mask.any(1)).sum()]
        flops = [2 * mask.numel(), 2 * mask.sum()]
        assert [int(n) for n in measured] == [mask.sum(), *dead, *flops]


def test_what_is_not_measured_is_an_empty_cell_and_null(tmp_path):
    masks = Masks({"a.weight": torch.tensor([[True, False]]), "b.weight": torch.ones(2, 3) > 0})
    measurement = unmeasured(masks)
    folder = RunFolder(tmp_path / "run")
    with folder.held({}):
        folder.finish(masks, measurement.layers, mask_summary(masks, measurement))
    rows = list(csv.reader((folder.path / "layers.csv").open()))
    assert rows[1:] == [
        ["a.weight", "1x2", "2", "1", "0.5", *[""] * 5],
        ["b.weight", "2x3", "6", "6", "0.0", *[""] * 5],
    ]
    found = folder.summary()
    assert (found["total"], found["kept"]) == (8, 7)
    measured = ("effective_kept", "effective_sparsity", "effective_compression", "effective_flops")
    assert [found[key] for key in (*measured, "flops", "other_flops")] == [None] * 6


def test_the_settings_of_the_run_are_kept_whole(finished):
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    assert {"seed_everything", "trainer", "model", "data", "pruning"} <= set(settings)
    assert settings["pruning"]["target"] == "100x effective"
    assert settings["pruning"]["search"] == "curve"
    assert settings["pruning"]["prune_ineffective"] is False
    assert settings["pruning"]["allow_collapse"] is False
    assert settings["model"]["optimizer"]["init_args"]["weight_decay"] == 5e-4
    assert "run_dir" not in settings


@pytest.mark.usefixtures("no_training")
def test_a_finished_run_is_printed_and_not_trained_again(finished, capsys):
    before = contents(finished)
    assert run(finished) == 0
    assert contents(finished) == before
    out = capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text())
    for words in (f"{summary['test_accuracy']:.2%}", str(summary["kept"]), "239"):
        assert words in out


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--seed_everything", "1"], ["seed_everything", "0", "1"]),
        (["--pruning.target", "10x"], ["pruning.target", "'100x effective'", "'10x'"]),
        (["--pruning.search", "reprune"], ["pruning.search", "'curve'", "'reprune'"]),
        (["--pruning.prune_ineffective", "true"], ["pruning.prune_ineffective", "False", "True"]),
        (["--model.optimizer.lr", "0.2"], ["model.optimizer", "lr", "0.1", "0.2"]),
        (["--data.batch_size", "5", "--pruning.target", "3x"], ["data.", "batch_size", "64", "5"]),
        (["--pruning.quota", "ERK"], ["pruning.quota", "ERK"]),
    ],
)
def test_a_folder_of_another_config_names_the_first_key_that_differs(
    state, args, named, request, capsys
):
    folder = request.getfixturevalue(state)
    before = contents(folder)
    assert run(folder, *args) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(words in err for words in [*named, str(folder), "--overwrite"])
    assert contents(folder) == before


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_overwrite_starts_anew(state, request):
    folder = request.getfixturevalue(state)
    (folder / "left.txt").write_text("of the old run")
    before = contents(folder)
    assert run(folder, "--overwrite", "--seed_everything", "4") == 0
    after = contents(folder)
    assert "left.txt" not in after
    assert json.loads((folder / "summary.json").read_text())["seed"] == 4
    assert after["config.yaml"][1] > before["config.yaml"][1]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("args", [[], ["--overwrite"]])
def test_a_folder_with_foreign_files_is_refused_and_untouched(args, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "2020").mkdir(parents=True)
    (folder / "2020" / "one.jpg").write_text("dear")
    before = contents(tmp_path)
    assert run(folder, *args) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(folder) in err
    assert contents(tmp_path) == before


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    assert run(tmp_path / "run") == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.usefixtures("no_training")
def test_a_second_process_is_refused_while_the_first_holds_the_lock(interrupted, capsys):
    before = contents(interrupted)
    with (interrupted / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(interrupted) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "in use" in err
    assert str(interrupted) in err
    assert contents(interrupted).keys() == before.keys()
    assert (interrupted / "checkpoints" / "last.ckpt").exists()


@pytest.mark.usefixtures("no_training")
def test_overwrite_does_not_delete_the_folder_of_a_run_that_is_going_on(interrupted):
    before = contents(interrupted)
    with (interrupted / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(interrupted, "--overwrite") == 2
    assert contents(interrupted).keys() == before.keys()


def test_a_run_that_was_stopped_after_training_only_writes_its_results(
    template, interrupted, monkeypatch
):
    def refuse(*args):
        raise AssertionError("trained")

    monkeypatch.setattr(LitClassifier, "training_step", refuse)
    assert run(interrupted) == 0
    assert same_bits(end_of(interrupted), end_of(template))
    again, first = (
        json.loads((folder / "summary.json").read_text()) for folder in (interrupted, template)
    )
    for key in ("test_accuracy", "test_loss", "epochs", "kept", "total"):
        assert again[key] == first[key]
    measured = [key for key in first if "effective" in key or "flops" in key]
    assert len(measured) == 6
    assert [again[key] for key in measured] == [first[key] for key in measured]
    assert (interrupted / "layers.csv").read_bytes() == (template / "layers.csv").read_bytes()


class PowerCut(RuntimeError):
    pass


@pytest.mark.parametrize("step", [2, 8, 17])
def test_a_run_that_broke_off_goes_on_to_the_bits_of_an_undisturbed_one(
    step, tmp_path, monkeypatch
):
    original = LitClassifier.training_step

    def until(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise PowerCut
        return original(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", until)
    with pytest.raises(PowerCut):
        run(tmp_path / "broken", epochs=3)
    assert not (tmp_path / "broken" / "summary.json").exists()
    assert (tmp_path / "broken" / "checkpoints" / "last.ckpt").exists() == (step > 6)

    taken = []

    def counted(self, batch, batch_idx):
        taken.append(self.trainer.global_step)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", counted)
    assert run(tmp_path / "broken", epochs=3) == 0
    assert taken == list(range(step // 6 * 6, 18)), "it goes on at the last finished epoch"
    assert run(tmp_path / "whole", epochs=3) == 0
    assert same_bits(end_of(tmp_path / "broken"), end_of(tmp_path / "whole"))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_checkpoint_is_one_clear_line_and_the_folder_is_kept(interrupted, share, capsys):
    checkpoint = interrupted / "checkpoints" / "last.ckpt"
    assert not checkpoint.with_name("previous.ckpt").exists(), "there was one epoch"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    before = contents(interrupted)
    assert run(interrupted) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(checkpoint) in err
    assert "--overwrite" in err
    after = contents(interrupted)
    assert after.keys() == before.keys()
    assert after["checkpoints/last.ckpt"] == before["checkpoints/last.ckpt"]


def test_a_mistake_found_late_takes_a_new_folder_back_and_keeps_an_old_one(tmp_path, interrupted):
    settings = {"a": 1}
    for path, is_kept in ((tmp_path / "new", False), (interrupted, True)):
        folder = RunFolder(path)
        with pytest.raises(LitPruneError, match="mistake"), folder.held(settings):
            raise LitPruneError("mistake" if folder.path.is_dir() else "no folder")
        assert path.exists() == is_kept


def test_a_folder_that_is_held_cannot_be_held_again_and_is_free_afterwards(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.held({"a": 1}):
        with pytest.raises(LitPruneError, match="in use"), folder.held({"a": 1}):
            raise AssertionError("held twice")
        assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {"a": 1}
    with folder.held({"a": 1}):
        pass


def test_the_name_of_a_folder_depends_on_every_setting_and_not_on_their_order():
    settings = {"seed": 0, "model": {"lr": 0.1, "layers": [1, 2]}}
    name = folder_name(["configs/one.yaml"], settings)
    assert re.fullmatch(r"one-[0-9a-f]{8}", name)
    turned = {"model": {"layers": [1, 2], "lr": 0.1}, "seed": 0}
    assert folder_name(["elsewhere/one.yaml"], turned) == name
    others = [
        {"seed": 1, "model": {"lr": 0.1, "layers": [1, 2]}},
        {"seed": 0, "model": {"lr": 0.1, "layers": [2, 1]}},
        {"seed": 0, "model": {"lr": 0.1, "layers": [1, 2], "bias": None}},
    ]
    assert len({folder_name(["one.yaml"], s) for s in [settings, *others]}) == 4
    assert folder_name(["a.yaml", "b.yaml"], settings).startswith("a-b-")
    assert folder_name([], settings).startswith("run-")


def test_the_summary_of_masks_counts_them():
    masks = Masks({"a": torch.tensor([True, False, False, True, False])})
    direct = {"total": 5, "kept": 2, "direct_sparsity": 0.6, "direct_compression": 2.5}
    row = LayerMeasure(*masks.layers()[0], 1, 0, 0, 10, 2)
    assert mask_summary(masks, Measurement((row,), 7)) == {
        **direct,
        "effective_kept": 1,
        "effective_sparsity": 0.8,
        "effective_compression": 5.0,
        "effective_flops": 9,
        "flops": 17,
        "other_flops": 7,
    }
    unknown = mask_summary(masks, unmeasured(masks))
    assert {key: value for key, value in unknown.items() if value is not None} == direct
    assert unknown.keys() == mask_summary(masks, Measurement((row,), 7)).keys()


def test_the_commit_is_that_of_the_checkout_or_null_without_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commit = environment()["git_commit"]
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["git_commit"] is None


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_whole(path, "old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def break_off(*args):
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", break_off)
    with pytest.raises(OSError, match="power cut"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_kill_9_and_the_same_command_again_give_the_bits_of_an_undisturbed_run(tmp_path):
    """In a process of its own, with one thread as here, so that sums come out alike."""
    epochs, killed = 12, tmp_path / "killed"
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "train.py"), *settings_of(epochs)]
    process = subprocess.Popen(
        [*command, "--run_dir", str(killed)],
        env=os.environ | one_thread | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "summary.json").exists()

    checkpoint = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] < epochs - 1
    assert run(killed, epochs=epochs) == 0
    assert run(tmp_path / "whole", epochs=epochs) == 0
    assert same_bits(end_of(killed), end_of(tmp_path / "whole"))
    results = [json.loads((f / "summary.json").read_text()) for f in (killed, tmp_path / "whole")]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]


def test_a_mistaken_overwrite_leaves_the_finished_run_alone(finished, capsys):
    before = contents(finished)
    mistaken = ("--model.backbone", "LeNet5", "--model.backbone.in_channels", "3")
    assert run(finished, "--overwrite", *mistaken) == 2
    assert "LeNet5" in capsys.readouterr().err
    assert contents(finished) == before


def test_a_folder_that_holds_a_lock_alone_is_empty(tmp_path):
    (tmp_path / ".lock").touch()
    folder = RunFolder(tmp_path)
    folder.require_same({})
    folder.remove()
    assert not tmp_path.exists()


HOLDER = """
import os, sys, time
from pathlib import Path
from lit_prune.run import RunFolder

with RunFolder(Path(sys.argv[1])).held({}):
    child = os.fork()  # as the workers of a data loader are
    if child:
        print(child, flush=True)
    time.sleep(100)
"""


def test_a_stopped_process_holds_the_lock_and_a_killed_one_does_not(tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    try:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(LitPruneError, match="in use by another run"), folder.held({}):
            raise AssertionError("held twice")
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        os.kill(child, 0)  # its worker lives on for a while
        with folder.held({}):
            pass
    finally:
        process.kill()
        process.wait()
        os.kill(child, signal.SIGKILL)


def test_a_run_killed_before_its_settings_were_written_leaves_an_empty_folder(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.x1.part").write_text("trai")
    folder = RunFolder(tmp_path)
    folder.require_same({"a": 1})
    with folder.held({"a": 1}):
        folder.start_over()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.yaml"]


@pytest.mark.parametrize("error", [TrainingStopped, UnwritableFile])
def test_what_training_left_is_kept(error, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(error), folder.held({"a": 1}):
        raise error("too late")
    assert (folder.path / "config.yaml").exists()


def test_errors_that_are_not_of_writing_are_left_as_they_are(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "none", "data"), ValueError("no"),
                  PermissionError(errno.EACCES, "no", "/elsewhere")):  # fmt: skip
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error
    refused = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "events"))
    with pytest.raises(UnwritableFile, match=f"{tmp_path}/events: Permission"), writing(tmp_path):
        raise refused


class FindsFault(Callback):
    """Finds in the second epoch that something is wrong."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == 1:
            raise LitPruneError("mistaken")


def test_a_mistake_found_after_the_first_epoch_leaves_what_there_is(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(folder, "--trainer.callbacks", f"{HERE}.FindsFault", epochs=2) == 2
    assert capsys.readouterr().err.endswith("error: mistaken\n")
    assert (folder / "checkpoints" / "last.ckpt").exists()
