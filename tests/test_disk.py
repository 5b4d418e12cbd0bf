"""A full disk, a read-only one, a limit: one line, exit code 2, and the run goes on afterwards."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sessions import Ended, Moment, limit_file_size, scalars, session

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
SETTINGS = [
    *("--config", str(CONFIG), "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "4"),
    *("--trainer.log_every_n_steps", "1"),
]
NO_CHECKPOINTS = ("--trainer.enable_checkpointing", "false")


def require_one_line(ended: Ended, *words: str) -> None:
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    (line,) = [line for line in ended.err.splitlines() if "srun" not in line]
    assert line.startswith("error: cannot write ")
    assert all(word in line for word in words), line


LIMITS = {
    "config.yaml": (1500, ()),
    # TensorBoard's thread does not say which file.
    "": (3000, (*NO_CHECKPOINTS, "--trainer.max_epochs", "20")),
    "checkpoints/next.ckpt": (100_000, ()),
    "masks/level_00.safetensors": (20_000, (*NO_CHECKPOINTS, "--trainer.logger", "false")),
}


@pytest.mark.parametrize(
    "name",
    [
        *("", "checkpoints/next.ckpt"),
        pytest.param("config.yaml", marks=pytest.mark.slow),
        pytest.param("masks/level_00.safetensors", marks=pytest.mark.slow),
    ],
)
def test_a_limit_of_size_is_one_line_wherever_it_strikes(name, tmp_path):
    size, args = LIMITS[name]
    folder = tmp_path / "run"
    limited = session([*SETTINGS, *args], folder, prepare=partial(limit_file_size, size))
    require_one_line(limited, f"cannot write {folder / name}: File too large")
    assert not list(folder.rglob("*.part"))
    ended = session([*SETTINGS, *args], folder)
    assert ended.code == 0, ended.err
    places = [(tag, step) for tag, step, _ in scalars(folder).elements() if tag != "epoch"]
    assert len(places) == len(set(places))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 12 MB of our own; this takes the rights of root."""
    path = tmp_path / "disk"
    path.mkdir()
    if shutil.which("mount") is None or os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", path], check=False,
                      capture_output=True).returncode:  # fmt: skip
        pytest.skip("a disk cannot be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 1500, 4000, 3_000_000, 5_000_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(left, disk):
    folder, stuffing = disk / "run", disk / "stuffing"
    folder.mkdir()
    with stuffing.open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free // 4096 * 4096 - left // 4096 * 4096))
    require_one_line(session(SETTINGS, folder), str(folder), "No space left on device")
    stuffing.unlink()
    ended = session(SETTINGS, folder)
    assert ended.code == 0, ended.err


def test_a_read_only_folder_is_one_line_and_stays_as_it_is(disk):
    killed = disk / "killed"
    session(SETTINGS, killed, Moment("torch.save", 2))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for folder, args in ((disk / "new", ()), (killed, ()), (killed, ("--overwrite",))):
        require_one_line(session([*SETTINGS, *args], folder), str(folder), "Read-only file system")
    assert (killed / "checkpoints" / "last.ckpt").exists()
