"""Runs of every schedule, killed at random points, end on the bits of an undisturbed one."""

import csv
import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from sessions import scalars, session
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
SCHEDULES = sorted((ROOT / "configs" / "schedules").glob("*.yaml"))
# A net with dropout and running statistics, whose rounds of scoring take a good part of the time.
COMMON = [
    *("--config", str(ROOT / "configs" / "quickstart.yaml")),
    *("--model.backbone", "test_run.Dropping", "--trainer.limit_train_batches", "6"),
    *("--trainer.log_every_n_steps", "2", "--data.crop", "1", "--pruning.target", "20x"),
    *("--pruning.criterion", "SNIP", "--pruning.rounds", "20"),
]
ITERATIVE = [
    *COMMON,
    *("--trainer.max_epochs", "null", "--pruning.target", "20x effective"),
    *("--pruning.schedule", "Iterative", "--pruning.schedule.levels", "3"),
    *("--pruning.schedule.epochs", "4", "--pruning.schedule.rewind_to", "8it"),
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def die_after(seconds: float) -> None:
    """Kill this process, wherever it is, so many seconds from now."""

    def die() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die, daemon=True).start()


def whole(args: list[str], folder: Path) -> float:
    """Run undisturbed; return the seconds that it took."""
    start = time.monotonic()
    ended = session(args, folder)
    assert ended.code == 0, ended.err
    return time.monotonic() - start


def killed(args: list[str], folder: Path, moments: list[float]) -> int:
    """Run, killed after so many seconds again and again, and then to the end; count the kills."""
    codes = [session(args, folder, prepare=partial(die_after, moment)).code for moment in moments]
    assert set(codes) <= {0, -signal.SIGKILL}
    ended = session(args, folder)
    assert ended.code == 0, ended.err
    return codes.count(-signal.SIGKILL)


def levels(folder: Path) -> list[dict[str, str]]:
    """The rows of levels.csv, without how long they took."""
    rows = list(csv.DictReader((folder / "levels.csv").open()))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def plain(tree: object) -> object:
    """A tree of tensors as one that compares to the bit."""
    if isinstance(tree, Tensor):
        return tree.dtype, tuple(tree.shape), tree.reshape(-1).view(torch.uint8).tolist()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items() if key != "seconds"}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def end_of(folder: Path) -> dict[str, object]:
    """All that a run leaves that must not depend on kills."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    manager = checkpoint["callbacks"]["MaskManager"]
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    files = [folder / "masks.safetensors", *sorted((folder / "masks").iterdir())]
    return {
        **{part: plain(checkpoint[part]) for part in parts},
        "manager": plain(manager),
        "masks": {path.name: path.read_bytes() for path in files},
        "levels": levels(folder),
        "scalars": scalars(folder),
    }


def require_same_end(one: Path, other: Path) -> None:
    ends = end_of(one), end_of(other)
    assert [key for key in ends[0] if ends[0][key] != ends[1][key]] == []
    # Lightning writes the epoch itself with the metrics of training, and again with validation's.
    times = [n for (tag, _, _), n in ends[0]["scalars"].items() if tag != "epoch"]
    assert max(times) == 1, "every tag, step and value once"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("kill")
    whole(ITERATIVE, folder / "first")  # whose time has the imports in it
    return folder / "whole", whole(ITERATIVE, folder / "whole")


def test_the_same_command_twice_ends_on_the_same_bits(undisturbed):
    require_same_end(undisturbed[0], undisturbed[0].with_name("first"))


def test_killed_at_20_random_points_an_iterative_run_ends_on_the_same_bits(undisturbed, tmp_path):
    folder, seconds = undisturbed
    draw = random.Random(0)
    kills = tries = 0
    while kills < 20:
        there = tmp_path / f"killed{tries}"
        kills += killed(ITERATIVE, there, [draw.uniform(0, seconds)])
        require_same_end(folder, there)
        tries += 1
        assert tries < 60, "most must hit a living run"


def test_killed_again_and_again_an_iterative_run_ends_on_the_same_bits(undisturbed, tmp_path):
    folder, seconds = undisturbed
    draw = random.Random(1)
    moments = [draw.uniform(seconds / 5, seconds / 3) for _ in range(6)]
    assert killed(ITERATIVE, tmp_path / "killed", moments) >= 2
    require_same_end(folder, tmp_path / "killed")


@pytest.mark.parametrize("config", SCHEDULES, ids=[path.stem for path in SCHEDULES])
def test_every_schedule_survives_kills(config, tmp_path):
    args = [*COMMON, "--config", str(config), "--pruning.rounds", "1"]
    whole(args, tmp_path / "first")
    seconds = whole(args, tmp_path / "whole")
    draw = random.Random(config.stem)
    for number in range(2):
        there = tmp_path / f"killed{number}"
        killed(args, there, [draw.uniform(seconds / 3, seconds)])
        require_same_end(tmp_path / "whole", there)
