"""Plateaus: a resumed run's ReduceLROnPlateau has seen all metrics."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["Plateaus"]


class Plateaus(Callback):
    """Shows schedulers that watch a metric the one of the last epoch, after a resume.

    Lightning steps them after the epoch's checkpoint is written, so that a run that continues from
    it would miss a step, and end with other bits than an undisturbed one.
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._missed: dict[int, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for the step that a checkpoint missed."""
        for number, value in self._missed.items():
            scheduler: Any = trainer.lr_scheduler_configs[number].scheduler
            scheduler.step(value)
        self._missed = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Inside an epoch nothing is missed."""
        self._trainer = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now until the next epoch a checkpoint misses a step."""
        self._trainer = trainer

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last epoch nothing is missed."""
        self._trainer = None

    def state_dict(self) -> dict[str, Any]:
        """Return what watching schedulers are about to see."""
        return {"missed": {} if self._trainer is None else _about_to_see(self._trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what they have not seen."""
        self._missed = dict(state_dict["missed"])


def _about_to_see(trainer: Trainer) -> dict[int, float]:
    """Return the metric of each watching scheduler whose turn it is, by the scheduler's number."""
    epochs = trainer.current_epoch + 1
    return {
        number: float(trainer.callback_metrics[config.monitor])
        for number, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == "epoch"
        and epochs % config.frequency == 0
        and config.monitor in trainer.callback_metrics
    }
