"""The run folder: what a run leaves behind, and how one is found finished, half done or foreign."""

import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import yaml

from lit_prune.callbacks.checkpoints import EVENTS, read_checkpoint
from lit_prune.errors import (
    LitPruneError,
    LitPruneWarning,
    TrainingStopped,
    UnreadableFile,
    UnwritableFile,
)
from lit_prune.files import as_csv, cut_back, is_aside, os_error, remove_asides, write_whole
from lit_prune.masks import Masks
from lit_prune.measure import LayerMeasure, Measurement

__all__ = [
    "RunFolder",
    "environment",
    "folder_name",
    "layers_csv",
    "mask_summary",
    "writing",
]

# What a run writes beside its settings; what else lies in its folder is somebody else's.
_OUTPUTS = (
    *("checkpoints", "masks", "hpc_ckpt_*.ckpt", "hparams.yaml"),
    *("levels.csv", "layers.csv", "masks.safetensors"),
)
# These errors of the operating system come of writing alone.
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# Locks that this process holds.
_locks: set[TextIO] = set()


@dataclass(frozen=True)
class RunFolder:
    """One run's folder: settings, checkpoint, masks, summary.

    A folder with a summary is finished. One with settings but no summary was interrupted, and is
    continued from its last checkpoint that is whole.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where the last checkpoint lies, if there is one."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that there are, the last one first."""
        paths = (self.checkpoint, self.checkpoint.with_name("previous.ckpt"))
        return [path for path in paths if path.exists()]

    def last_whole(self) -> tuple[Path, dict[str, Any]] | None:
        """Read the last checkpoint, or the one before with a warning; None if there is none.

        Raises:
            UnreadableFile: there are some, and none is whole.
        """
        refused: list[str] = []
        for path in self.checkpoints:
            try:
                found = read_checkpoint(path)
            except UnreadableFile as error:
                refused.append(str(error))
                continue
            for text in refused:
                text = f"{text}; the run goes on from {path}"
                warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)
            return path, found
        if refused:
            text = f"{'; '.join(refused)}; the run cannot be continued; pass --overwrite"
            raise UnreadableFile(f"{text} to start anew")
        return None

    def take_up(self, events: Mapping[str, int]) -> None:
        """Remove what a killed session wrote after the checkpoint that the run goes on from.

        Args:
            events: how long TensorBoard's files were then.
        """
        remove_asides(self.path)
        self.checkpoint.with_name("next.ckpt").unlink(missing_ok=True)
        cut_back(self.path, EVENTS, events)

    def start_over(self) -> None:
        """Remove what a session wrote that was killed before its first checkpoint."""
        remove_asides(self.path)
        for pattern in (EVENTS, *_OUTPUTS):
            for path in self.path.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a finished run, else None."""
        file = self.path / "summary.json"
        return json.loads(file.read_text()) if file.exists() else None

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Check that the folder is new, or was made with the same settings.

        Raises:
            LitPruneError: it was not; the first key that differs is named with both values.
        """
        file = self.path / "config.yaml"
        self._require_folder()
        if not file.exists():
            if self._holds_something():
                raise LitPruneError(f"{self.path} is not empty and holds no run; name another")
            return
        here, there = _flat(settings), _flat(yaml.safe_load(file.read_text()) or {})
        for key in [*here, *there]:
            if here.get(key) != there.get(key):
                raise LitPruneError(
                    f"{self.path} holds a run of another config: {key} is {there.get(key)!r} "
                    f"there and {here.get(key)!r} here; name another run_dir or pass --overwrite"
                )

    def remove(self) -> None:
        """Delete the folder and all that is in it; a folder that holds no run is left alone.

        Raises:
            LitPruneError: the folder holds something else than a run.
        """
        if self.path.exists():
            self.require_run()
            with self._locked(), writing(self.path):
                shutil.rmtree(self.path)

    def require_run(self) -> None:
        """Check that the folder was made by a run, so that it may be overwritten."""
        self._require_folder()
        if self._holds_something() and not (self.path / "config.yaml").exists():
            raise LitPruneError(f"{self.path} holds no run and is not overwritten")

    @contextmanager
    def held(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Make the folder and hold its lock; take a new folder back if the request was mistaken.

        A folder that holds what training left is kept.

        Raises:
            LitPruneError: another process holds the lock, or the folder cannot be written.
        """
        file = self.path / "config.yaml"
        is_new = not file.exists()
        with self._locked():
            if is_new:
                write_whole(file, yaml.safe_dump(dict(settings), sort_keys=False))
            try:
                yield
            except (TrainingStopped, UnwritableFile):
                raise
            except LitPruneError:
                if is_new:
                    shutil.rmtree(self.path, ignore_errors=True)
                raise

    def _holds_something(self) -> bool:
        # A run that was killed in its first moment leaves its lock, and an aside, alone.
        return self.path.exists() and any(
            entry.name != ".lock" and not is_aside(entry) for entry in self.path.iterdir()
        )

    def _require_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise LitPruneError(f"{self.path} is a file, not a run folder; name another run_dir")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UnwritableFile.of(self.path, error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LitPruneError(f"{self.path} is in use by another run") from error
            _locks.add(lock)
            try:
                yield
            finally:
                _locks.discard(lock)

    def finish(
        self, masks: Masks, layers: Sequence[LayerMeasure], summary: Mapping[str, Any]
    ) -> None:
        """Write masks, layers and, last of all, the summary that marks the run as finished."""
        masks.save(self.path / "masks.safetensors")
        write_whole(self.path / "layers.csv", layers_csv(layers))
        finite = {key: _finite(value) for key, value in summary.items()}
        write_whole(self.path / "summary.json", json.dumps(finite, indent=2) + "\n")


def _let_go() -> None:
    """Close the locks in a process that was forked off; else they would outlive a killed run."""
    while _locks:
        _locks.pop().close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line that a file cannot be written, whoever wrote it and in whichever thread.

    Raises:
        UnwritableFile: the disk is full, the folder read-only, or the like.
    """
    usual = threading.excepthook
    threading.excepthook = lambda args: _cannot_write(args.exc_value, folder) or usual(args)
    try:
        yield
    except UnwritableFile:
        raise
    except Exception as error:
        if (why := _cannot_write(error, folder)) is None:
            raise
        raise UnwritableFile.of(why.filename or folder, why) from error
    finally:
        threading.excepthook = usual


def _cannot_write(error: BaseException | None, folder: Path) -> OSError | None:
    why = os_error(error)
    if why is None or why.errno in _WRITING:
        return why
    inside = isinstance(why.filename, str) and folder.resolve() in Path(why.filename).parents
    return why if isinstance(why, PermissionError) and inside else None


def folder_name(configs: list[str], settings: Mapping[str, Any]) -> str:
    """Return ``<config stems>-<hash of the settings>``.

    Examples:
        >>> folder_name(["configs/quickstart.yaml"], {"seed_everything": 0})
        'quickstart-aa34d06b'
    """
    stems = "-".join(Path(config).stem for config in configs) or "run"
    text = json.dumps(settings, sort_keys=True, default=str)
    return f"{stems}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def mask_summary(masks: Masks, measurement: Measurement) -> dict[str, Any]:
    """Return the counts of the masks, direct and effective, as they stand in a summary.

    The effective ones are None where the network has operations without a connectivity rule.
    """
    return {
        "total": masks.total,
        "kept": masks.kept,
        "direct_sparsity": masks.sparsity,
        "direct_compression": masks.compression,
        **measurement.totals(),
    }


def layers_csv(layers: Sequence[LayerMeasure]) -> str:
    """Return a row for each layer as the text of a file, with shapes as in ``300x784``."""
    shapes = ["x".join(map(str, layer.shape)) for layer in layers]
    rows = [(row.name, shape, *row[2:]) for row, shape in zip(layers, shapes, strict=True)]
    return as_csv(LayerMeasure._fields, rows)


def environment() -> dict[str, Any]:
    """Return the git commit of the code, if it is a checkout, and the versions that matter."""
    names = ("lit_prune", "torch", "lightning", "torchvision", "torchmetrics", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return {"git_commit": _git_commit(), "versions": versions}


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    command = [
        "git",
        "-C",
        os.fspath(here),
        "describe",
        "--always",
        "--exclude=*",
        "--abbrev=40",
        "--dirty",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
