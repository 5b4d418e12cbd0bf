"""Nothing lost, nothing half-written: killed at any moment, a run goes on to the same end."""

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from lightning.pytorch import Callback
from sessions import Ended, Moment, scalars, session
from torch import Tensor, nn

from lit_prune import LitPruneError, Masks
from lit_prune.callbacks.checkpoints import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).stem
EPOCHS, STEPS = 4, 6
CALLBACKS = "lit_prune.callbacks"


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


class Means(Callback):
    """Logs a mean of each epoch, which Lightning writes after the epoch's checkpoint."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        pl_module.log("mean/loss", outputs["loss"], on_step=False, on_epoch=True)


SETTINGS = [
    *("--config", str(ROOT / "configs" / "quickstart.yaml"), "--pruning.criterion", "SNIP"),
    *("--trainer.max_epochs", str(EPOCHS), "--trainer.limit_train_batches", str(STEPS)),
    *("--trainer.log_every_n_steps", "3", "--model.backbone", f"{HERE}.Dropping"),
    *("--trainer.callbacks", f"{HERE}.Means", "--data.crop", "1", "--data.rotate", "5"),
]


def end_of(folder: Path) -> dict:
    """All that a finished run leaves: for comparison to the bit."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    states = checkpoint["callbacks"]
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("seconds", "command", "git_commit"):
        del summary[key]
    return {
        "masks": dict(Masks.load(folder / "masks.safetensors")),
        "layers": (folder / "layers.csv").read_text(),
        "summary": summary,
        "manager": states["MaskManager"],
        **{key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")},
    }


def same_bits(one, other) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other


def require_same_end(folder: Path, undisturbed: Path) -> None:
    ours, theirs = end_of(folder), end_of(undisturbed)
    assert [key for key in theirs if not same_bits(ours[key], theirs[key])] == []
    assert scalars(folder) == scalars(undisturbed)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    # Of TensorBoard's files there may be one for each session, under other names.
    names = {name for name in names if not name.startswith("events")}
    assert names == {
        *(".lock", "config.yaml", "hparams.yaml", "layers.csv", "masks.safetensors"),
        *("summary.json", "checkpoints/last.ckpt", "checkpoints/previous.ckpt"),
        *("levels.csv", "masks/level_00.safetensors"),
    }


def run(folder: Path, *args: str, moment: Moment | None = None) -> Ended:
    return session([*SETTINGS, *args], folder, moment)


def kill(folder: Path, moment: Moment, *args: str) -> None:
    ended = run(folder, *args, moment=moment)
    assert ended.code == -signal.SIGKILL, ended.err
    assert not (folder / "summary.json").exists()


def go_on(folder: Path, *args: str) -> Ended:
    ended = run(folder, *args)
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    go_on(folder)
    return folder


@pytest.fixture
def killed(tmp_path) -> Path:
    """The folder of a run that was killed in its third epoch."""
    kill(tmp_path / "run", Moment("lit_prune.LitClassifier.training_step", 2 * STEPS + 2))
    return tmp_path / "run"


def test_every_tag_and_step_stands_once(undisturbed):
    found = scalars(undisturbed)
    places = Counter((tag, step) for tag, step, _ in found.elements() if tag != "epoch")
    assert set(places.values()) == {1}
    tags = {tag for tag, _ in places}
    assert {"train/loss", "val/accuracy", "test/loss", "mean/loss", "sparsity/direct"} <= tags
    steps = sorted(step for tag, step in places if tag == "mean/loss")
    assert steps == [STEPS * epoch - 1 for epoch in range(1, EPOCHS + 1)]


STEP = "lit_prune.LitClassifier.training_step"
LOGGING = "lightning.pytorch.trainer.connectors.logger_connector.logger_connector._LoggerConnector"


slow = pytest.mark.slow
QUICK = [
    Moment(STEP, 5),
    Moment("torch.save", 2, after=True),
    Moment("os.replace", 5, after=True),  # only the previous one is there
    Moment(f"{LOGGING}.update_train_epoch_metrics", 3),
    Moment(f"{LOGGING}.update_train_epoch_metrics", 4, after=True),
    Moment("lit_prune.LitClassifier.on_test_epoch_end", 1, after=True),
    Moment("lit_prune.Masks.save", 1, after=True),
]
MOMENTS = [
    Moment("lit_prune.run.write_whole"),
    Moment("os.replace", 1),  # of config.yaml
    Moment(STEP, 1),
    Moment("torch.save", 1),
    Moment("torch.save", 1, after=True),
    Moment("os.replace", 2),  # of the first checkpoint's aside
    Moment("os.replace", 3),  # next -> last
    Moment("os.replace", 3, after=True),
    Moment(STEP, STEPS + 4),
    Moment(f"{CALLBACKS}.checkpoints.sizes", 2),
    Moment("torch.save", 2),
    Moment("os.fsync", 8),
    Moment("os.replace", 5),  # last -> previous
    Moment("os.replace", 6, after=True),
    Moment(f"{LOGGING}.update_train_epoch_metrics", 3, after=True),
    Moment("lit_prune.LitClassifier.validation_step", 3),
    Moment(f"{LOGGING}.log_eval_end_metrics", 2, after=True),
    Moment("os.replace", 11, after=True),  # only the previous one, of the last epoch but one
    Moment("lit_prune.LitClassifier.test_step", 2),
    Moment("lit_prune.run.RunFolder.finish"),
    Moment("lit_prune.run.as_csv", 1, after=True),
    Moment("os.replace", 15),  # of summary.json
]


@pytest.mark.parametrize(
    "moment",
    [*QUICK, *(pytest.param(moment, marks=slow) for moment in MOMENTS)],
    ids=lambda m: f"{m.function.split('.')[-1]}-{m.call}{'-after' if m.after else ''}",
)
def test_killed_at_any_moment_a_run_goes_on_to_the_same_end(moment, undisturbed, tmp_path):
    folder = tmp_path / "run"
    kill(folder, moment)
    ended = go_on(folder)
    assert "warning" not in ended.err
    require_same_end(folder, undisturbed)


@slow
def test_killed_again_and_again_a_run_goes_on_to_the_same_end(undisturbed, tmp_path):
    folder = tmp_path / "run"
    for moment in [
        Moment("torch.save", 1),
        Moment(STEP, STEPS + 2),
        Moment("os.replace", 2, after=True),
        Moment("os.replace", 1),
        Moment(STEP, 1),
        Moment("torch.save", 2),
        Moment("lit_prune.LitClassifier.test_step"),
    ]:
        kill(folder, moment)
    go_on(folder)
    require_same_end(folder, undisturbed)


def test_an_aside_is_what_a_kill_while_writing_leaves(tmp_path):
    kill(tmp_path / "run", Moment("torch.save", 2, after=True))
    (aside,) = (tmp_path / "run").rglob("*.part")
    assert aside.parent.name == "checkpoints"
    assert aside.name.startswith(".next.ckpt.")


def test_the_last_two_epochs_are_kept(undisturbed):
    found = {p.name: read_checkpoint(p) for p in (undisturbed / "checkpoints").iterdir()}
    assert {name: c["epoch"] for name, c in found.items()} == {
        "last.ckpt": EPOCHS - 1,
        "previous.ckpt": EPOCHS - 2,
    }
    mode = (undisturbed / "checkpoints" / "last.ckpt").stat().st_mode
    assert mode & 0o777 == (undisturbed / "config.yaml").stat().st_mode & 0o777


def cut(share: float):
    def spoil(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return spoil


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with ZipFile(path) as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
    content[largest.header_offset + 2000] ^= 1
    path.write_bytes(content)


def save_other_things(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


class Evil:
    """A pickle that runs code when it is loaded without care."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def put_code_in(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["evil"] = Evil(path.with_name("was-run"))
    torch.save(checkpoint, path)


def put_code_in_an_old_format(path: Path) -> None:
    evil = Evil(path.with_name("was-run"))
    torch.save({"state_dict": evil}, path, _use_new_zipfile_serialization=False)


SPOILT = [cut(0.5), flip_a_bit, put_code_in]
OTHERWISE = [cut(0), cut(0.99), save_other_things, put_code_in_an_old_format]


@pytest.mark.parametrize(
    "spoil",
    [*SPOILT, *(pytest.param(spoil, marks=slow) for spoil in OTHERWISE)],
    ids=lambda spoil: spoil.__qualname__,
)
def test_of_a_spoilt_checkpoint_the_one_before_is_used_and_it_is_said(spoil, killed, undisturbed):
    last = killed / "checkpoints" / "last.ckpt"
    spoil(last)
    with pytest.raises(LitPruneError, match=re.escape(str(last))):
        read_checkpoint(last)
    ended = go_on(killed)
    (line,) = [line for line in ended.err.splitlines() if "warning: " in line]
    assert str(last) in line
    assert "previous.ckpt" in line
    assert not (last.with_name("was-run")).exists()
    if "code" in spoil.__name__:
        assert "refused" in line or "zip" in line
    require_same_end(killed, undisturbed)


def test_a_spoilt_checkpoint_never_pushes_out_the_good_one(killed, undisturbed):
    cut(0.5)(killed / "checkpoints" / "last.ckpt")
    kill(killed, Moment("os.replace", 2, after=True))
    go_on(killed)
    require_same_end(killed, undisturbed)


@pytest.mark.parametrize("spoil", [cut(0.7), put_code_in], ids=["cut", "evil"])
def test_where_no_checkpoint_is_whole_the_run_is_refused_and_left_alone(spoil, killed):
    for path in (killed / "checkpoints").iterdir():
        spoil(path)
    before = {p: p.read_bytes() for p in killed.rglob("*") if p.is_file()}
    ended = run(killed)
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if "rror" in line]
    assert line.startswith("error: ")
    assert all(words in line for words in ("last.ckpt", "previous.ckpt", "--overwrite"))
    assert {p: p.read_bytes() for p in killed.rglob("*") if p.is_file()} == before


def test_a_run_without_checkpoints_leaves_none_and_starts_over_when_killed(undisturbed, tmp_path):
    off = ("--trainer.enable_checkpointing", "false")
    folder = tmp_path / "run"
    kill(folder, Moment(STEP, 2 * STEPS), *off)
    (folder / "masks").mkdir()
    for name in ("levels.csv", "masks/level_00.safetensors", "slurm-7.out"):
        (folder / name).write_text("of the killed session")
    go_on(folder, *off)
    assert not (folder / "checkpoints").exists()
    assert "killed" not in (folder / "levels.csv").read_text()
    assert Masks.load(folder / "masks" / "level_00.safetensors")
    assert (folder / "slurm-7.out").exists(), "what is not ours stays"
    assert scalars(folder) == scalars(undisturbed)


@slow
def test_own_checkpoints_of_the_config_are_whole_and_go_on_as_well(tmp_path):
    own = (
        *("--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.monitor", "val/loss"),
        *("--trainer.callbacks.save_top_k", "2"),
    )
    go_on(tmp_path / "whole", *own)
    kill(tmp_path / "killed", Moment(STEP, 2 * STEPS + 2), *own)
    go_on(tmp_path / "killed", *own)
    names = [sorted(p.name for p in (tmp_path / f / "checkpoints").iterdir()) for f in
             ("whole", "killed")]  # fmt: skip
    assert names[0] == names[1]
    assert len(names[0]) == 4
    assert same_bits(end_of(tmp_path / "killed"), end_of(tmp_path / "whole"))
    ended = run(tmp_path / "cut", *own, moment=Moment("torch.save", 1, after=True))
    assert ended.code == -signal.SIGKILL
    assert [p.suffix for p in (tmp_path / "cut" / "checkpoints").iterdir()] == [".part"]


OTHERS = {
    "plateau": (
        *("--model.scheduler", "lightning.pytorch.cli.ReduceLROnPlateau"),
        *("--model.scheduler.monitor", "val/loss", "--model.scheduler.patience", "0"),
        *("--model.scheduler.threshold", "0.9"),
    ),
    "steps": ("--trainer.max_epochs", "null", "--trainer.max_steps", str(3 * STEPS + 2)),
    "accumulation": ("--trainer.accumulate_grad_batches", "4"),
    "validation within": ("--trainer.val_check_interval", "2"),
    "no validation": ("--trainer.limit_val_batches", "0"),
}


@pytest.mark.parametrize(
    ("args", "moment"),
    [
        (OTHERS["plateau"], Moment("torch.save", 3)),
        (OTHERS["steps"], Moment(STEP, 2 * STEPS + 4)),
        pytest.param(OTHERS["steps"], Moment("torch.save", 3), marks=slow),
        *(pytest.param(args, Moment(STEP, 2 * STEPS + 4), marks=slow) for args in OTHERS.values()),
    ],
)
def test_other_ways_of_training_go_on_to_the_same_end(args, moment, tmp_path):
    go_on(tmp_path / "whole", *args)
    kill(tmp_path / "killed", moment, *args)
    go_on(tmp_path / "killed", *args)
    require_same_end(tmp_path / "killed", tmp_path / "whole")


@slow
def test_a_run_that_had_stopped_early_is_not_trained_further(tmp_path):
    early = (
        *("--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"),
        *("--trainer.callbacks.patience", "1", "--trainer.callbacks.min_delta", "100"),
    )
    go_on(tmp_path / "whole", *early)
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["epochs"] == 2
    kill(tmp_path / "killed", Moment("lit_prune.LitClassifier.test_step"), *early)
    go_on(tmp_path / "killed", *early)
    require_same_end(tmp_path / "killed", tmp_path / "whole")


@slow
def test_the_seconds_of_all_sessions_are_added(killed):
    path = killed / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    assert 0 < checkpoint["callbacks"]["Checkpoints"]["seconds"] < 1000
    checkpoint["callbacks"]["Checkpoints"]["seconds"] = 1000.0
    torch.save(checkpoint, path)
    go_on(killed)
    assert 1000 < json.loads((killed / "summary.json").read_text())["seconds"] < 2000


def test_a_checkpoint_is_read_once_when_a_run_goes_on(killed):
    ended = session(SETTINGS, killed, prepare=count_loads)
    assert ended.code == 0
    assert ended.out.count("torch.load") == 1


def count_loads() -> None:
    original = torch.load

    def counted(*args, **options):
        print("torch.load")
        return original(*args, **options)

    torch.load = counted
