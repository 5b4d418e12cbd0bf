"""Levels: a row and a file of masks for every level of sparsity."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_prune.callbacks.hold import averaged
from lit_prune.callbacks.mask_manager import manager_of
from lit_prune.files import as_csv, write_whole
from lit_prune.probe import same_random_state

__all__ = ["LevelRow", "Levels"]


class LevelRow(NamedTuple):
    """One level of sparsity, as a row of a table, when its training ended.

    Attributes:
        level: its number; 0 is what training began with.
        epoch: how many epochs were trained until then, from the start.
        kept: how many connections the masks keep.
        direct_sparsity: the share that the masks prune.
        effective_sparsity: the share that is masked or on no path; None where it is not known.
        collapsed_layers: how many layers have no effective connection left (none that is kept,
            where it is not known which are effective).
        effective_flops: what effective connections take of one sample forward; None where it is not
            known.
        val_accuracy: ``val/accuracy`` of the level's last epoch; None where there is none.
        test_accuracy: ``test/accuracy`` then; None where there are no test data.
        seconds: how long the level took, prune and test included.
    """

    level: int
    epoch: int
    kept: int
    direct_sparsity: float
    effective_sparsity: float | None
    collapsed_layers: int
    effective_flops: float | None
    val_accuracy: float | None
    test_accuracy: float | None
    seconds: float


class Levels(Callback):
    """Writes ``levels.csv`` and ``masks/level_NN.safetensors`` as each level of sparsity ends.

    A level ends with the last epoch before the schedule of the mask manager prunes again,
    and with the training. Both files appear whole, before the epoch's checkpoint; a run that was
    killed between them and is continued writes them again, the same but for the seconds.

    Args:
        folder: where to; nothing is written where it is None.

    Attributes:
        rows: the levels that ended.

    Raises:
        LitPruneError: the trainer has no mask manager.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.rows: list[LevelRow] = []
        self._seconds = 0.0
        self._since = time.monotonic()
        self._val_accuracy: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a mask manager."""
        manager_of(trainer, self)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the validation of another epoch."""
        self._val_accuracy = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the accuracy of this epoch."""
        found = trainer.callback_metrics.get("val/accuracy")
        self._val_accuracy = None if found is None else float(found)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a row where a level ends with this epoch."""
        epoch = trainer.current_epoch
        if manager_of(trainer, self).ends_level(epoch) or is_last_epoch(trainer):
            self._end_level(trainer, pl_module, epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last row of a training that was stopped early, even if that was long ago.

        A run killed after an early stop trains no further, so that only this hook is called.
        """
        if manager_of(trainer, self).measurement is None:
            return  # Nothing was trained.
        if not self.rows or self.rows[-1].epoch < trainer.current_epoch:
            self._end_level(trainer, pl_module, trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, and what is known of the level under way."""
        seconds = self._seconds + time.monotonic() - self._since
        rows = [list(row) for row in self.rows]
        return {"rows": rows, "seconds": seconds, "val_accuracy": self._val_accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of a checkpoint."""
        self.rows = [LevelRow(*row) for row in state_dict["rows"]]
        self._seconds = state_dict["seconds"]
        self._val_accuracy = state_dict.get("val_accuracy")

    def _end_level(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        manager = manager_of(trainer, self)
        found = manager.measure()
        masks = manager.current()
        row = LevelRow(
            level=len(self.rows),
            epoch=epochs,
            kept=masks.kept,
            direct_sparsity=masks.sparsity,
            effective_sparsity=found.totals()["effective_sparsity"],
            collapsed_layers=len(found.collapsed()),
            effective_flops=found.totals()["effective_flops"],
            val_accuracy=self._val_accuracy,
            test_accuracy=_tested(trainer, pl_module),
            seconds=round(self._seconds + time.monotonic() - self._since, 3),
        )
        self.rows.append(row)
        self._seconds, self._since = 0.0, time.monotonic()
        if self.folder is not None and trainer.is_global_zero:
            file = self.folder / "masks" / f"level_{row.level:02}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            masks.save(file)
            write_whole(self.folder / "levels.csv", as_csv(LevelRow._fields, self.rows))


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether a training ends with this epoch, as far as callbacks before the asking one decided.

    One that is told to stop goes on to ``min_epochs`` and ``min_steps``.
    """
    epochs, steps = trainer.current_epoch + 1, trainer.global_step
    is_long = epochs >= (trainer.min_epochs or 0) and steps >= (trainer.min_steps or 0)
    is_at_end = epochs == trainer.max_epochs or steps == trainer.max_steps
    return is_at_end or (trainer.should_stop and is_long)


class _InPlace(SingleDeviceStrategy):
    """Leaves a module that is in training where it is."""

    def teardown(self) -> None:
        """Tear nothing down."""


def _tested(trainer: Trainer, pl_module: LightningModule) -> float | None:
    """Return ``test/accuracy`` on all test data, in the middle of a fit.

    A trainer tests nothing while it trains, so another one does; the random numbers of training
    are as they were.
    """
    datamodule = getattr(trainer, "datamodule", None)
    source = datamodule or pl_module
    if not all(map(is_overridden, ("test_dataloader", "test_step"), (source, pl_module))):
        return None
    device = trainer.strategy.root_device
    tester = Trainer(
        strategy=_InPlace(device),
        accelerator=device.type,
        devices=1 if device.type == "cpu" else [device.index or 0],
        precision=trainer.precision,
        limit_test_batches=trainer.limit_test_batches,
        inference_mode=False,  # or the states of metrics could not be used in training again
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    hook = pl_module._current_fx_name
    try:
        with same_random_state(0), averaged(trainer, pl_module):
            found = tester.test(pl_module, datamodule=datamodule, verbose=False)
    finally:
        pl_module.trainer, pl_module._current_fx_name = trainer, hook
        if datamodule is not None:
            datamodule.trainer = trainer
    known = [result["test/accuracy"] for result in found if "test/accuracy" in result]
    return float(known[0]) if known else None
