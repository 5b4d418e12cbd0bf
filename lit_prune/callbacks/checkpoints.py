"""Checkpoints: the last two of a run, whole, and all that a resumed run needs to repeat nothing."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_prune.errors import LitPruneError, UnreadableFile, UnwritableFile, first_line
from lit_prune.files import os_error, sizes, sync, whole

__all__ = ["EVENTS", "Checkpoints", "WholeCheckpoints", "read_checkpoint"]

# TensorBoard's files: they only ever grow.
EVENTS = "events.out.tfevents*"
_PARTS = {"state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers"}


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints aside, syncs and renames them; reads none twice.

    Streams into the file, where Lightning's own holds all bytes of it in memory first.
    """

    def __init__(self) -> None:
        self._read: dict[str, dict[str, Any]] = {}

    def keep(self, path: Path, checkpoint: dict[str, Any]) -> None:
        """Take a checkpoint that was read from ``path``, to be loaded once from here."""
        self._read[os.fspath(path)] = checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save to a local file whole; elsewhere as Lightning does."""
        if "://" in os.fspath(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        _make_folder(Path(path).parent)
        with whole(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Return what was kept of ``path``, else read it as Lightning does."""
        kept = self._read.pop(os.fspath(path), None)
        return super().load_checkpoint(path, *args, **options) if kept is None else kept


class Checkpoints(Checkpoint):
    """Saves ``last.ckpt`` at the end of every training epoch; the one before is ``previous.ckpt``.

    With it goes what Lightning would lose, so that a run that was killed and is resumed from a
    checkpoint ends as an undisturbed one: how long TensorBoard's files were, metrics of the epoch
    that are logged only after checkpoints, what a ReduceLROnPlateau is about to see, whether
    training was stopped early, and the seconds spent.

    Args:
        folder: of the run; its checkpoints lie in ``checkpoints/``.

    Attributes:
        last: the file of the last checkpoint.
        previous: that of the one before.
        newest: whichever of them is the newest good one, and its epoch from 0 on; None before.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._run = Path(folder)
        self.last = self._run / "checkpoints" / "last.ckpt"
        self.previous = self.last.with_name("previous.ckpt")
        self.newest: tuple[Path, int] | None = None
        self._resumed: dict[str, Any] = {}
        self._note: dict[str, Any] = {}
        self._start = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return what was noted for the checkpoint that is being saved."""
        return self._note

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was noted with the checkpoint that the run goes on from."""
        self._resumed = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was to be logged right after the checkpoint."""
        _require_agreement(trainer, self._resumed.get("epoch"))
        if self._resumed and trainer.ckpt_path is not None:
            self.newest = (Path(trainer.ckpt_path), self._resumed["epoch"])
        if metrics := self._resumed.get("metrics"):
            step = self._resumed["step"]
            trainer._logger_connector.log_metrics(metrics, step=step)
        trainer.should_stop = trainer.should_stop or self._resumed.get("stopped", False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a ReduceLROnPlateau see the metric of the checkpoint's epoch."""
        if self._resumed and trainer.fit_loop.restarting:
            _begin_next_epoch(trainer.fit_loop)
        for place, value in self._resumed.get("plateaus", {}).items():
            trainer.lr_scheduler_configs[place].scheduler.step(value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the next checkpoint whole; then the last becomes the previous one."""
        following = self.last.with_name("next.ckpt")
        self._note = {**_unfinished(trainer), "seconds": self.seconds()}
        _by_first_rank(trainer, lambda: self._note_events(trainer))
        _save(trainer, following)
        self._note = {}
        _by_first_rank(trainer, lambda: self._rotate(following))
        self.newest = (self.last, trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the last epoch as completed, which it was not yet in its checkpoint."""
        progress = trainer.fit_loop.epoch_progress.current
        progress.completed = progress.processed  # type: ignore[attr-defined]

    def seconds(self) -> float:
        """Return the seconds spent on the run, in earlier sessions up to their last checkpoint."""
        return self._resumed.get("seconds", 0.0) + time.monotonic() - self._start

    def _note_events(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        self._note["events"] = sizes(self._run, EVENTS)
        for name in self._note["events"]:
            sync(self._run / name)

    def _rotate(self, following: Path) -> None:
        # A damaged last one must not push out the good one before it.
        if self.newest is not None and self.newest[0] == self.last:
            os.replace(self.last, self.previous)
        os.replace(following, self.last)
        sync(self.last.parent)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run; check that it is whole; never run code that is in it.

    Raises:
        UnreadableFile: it is cut, damaged, would run code, or is something else.
    """
    try:
        with ZipFile(path) as parts:
            # torch.load does not look at the checksums.
            if (part := parts.testzip()) is not None:
                raise UnreadableFile(f"{path} is damaged: bad checksum of {part}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnreadableFile:
        raise
    except Exception as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            text = f"{path} is refused: it would run code ({found[1]})"
        else:
            text = f"{path} is cut or damaged: {first_line(error)}"
        raise UnreadableFile(text) from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= _PARTS:
        raise UnreadableFile(f"{path} is no checkpoint of a run")
    return checkpoint


def _unfinished(trainer: Trainer) -> dict[str, Any]:
    """Return what Lightning does only after the checkpoint of an epoch, as plain numbers."""
    metrics = convert_tensors_to_scalars(dict(trainer._logger_connector.metrics["log"]))
    if metrics:
        metrics = {"epoch": trainer.current_epoch, **metrics}
    plateaus = {
        place: float(trainer.callback_metrics[config.monitor])
        for place, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == "epoch"
        and (trainer.current_epoch + 1) % config.frequency == 0
        and config.monitor in trainer.callback_metrics
    }
    step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
    return {
        "epoch": trainer.current_epoch,
        "metrics": metrics,
        "step": int(metrics.pop("step", step)),
        "plateaus": plateaus,
        "stopped": trainer.should_stop,
    }


def _begin_next_epoch(loop: _FitLoop) -> None:
    """Leave the checkpoint's epoch behind.

    Lightning holds every run that is limited by ``max_steps`` for one that broke off within an
    epoch, and would end the last one twice.
    """
    _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]
    loop.reset_restart_stage()
    loop.epoch_loop.reset_restart_stage()
    loop.epoch_progress.increment_completed()


def _require_agreement(trainer: Trainer, epoch: int | None) -> None:
    first = trainer.strategy.broadcast(epoch)
    if first != epoch:
        raise LitPruneError(
            f"rank {trainer.global_rank} goes on after epoch {epoch}, rank 0 after epoch {first}: "
            "do all ranks see the same run_dir?"
        )


def _save(trainer: Trainer, path: Path) -> None:
    """Save a checkpoint; where rank 0 cannot write, all ranks stop."""
    failure = None
    try:
        trainer.save_checkpoint(path)
    except UnwritableFile as error:
        failure = str(error)
        # Where the others wait for rank 0, which alone writes.
        trainer.strategy.barrier("Trainer.save_checkpoint")
    _stop_together(trainer, failure)


def _by_first_rank(trainer: Trainer, work: Callable[[], None]) -> None:
    """Let rank 0 work; where it cannot write, all ranks stop."""
    failure = None
    if trainer.is_global_zero:
        try:
            work()
        except Exception as error:
            if (why := os_error(error)) is None:
                raise
            failure = str(UnwritableFile.of(why.filename or trainer.default_root_dir, why))
    _stop_together(trainer, failure)


def _stop_together(trainer: Trainer, failure: str | None) -> None:
    failure = trainer.strategy.broadcast(failure)
    if failure is not None:
        raise UnwritableFile(failure)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableFile.of(path, error) from error
