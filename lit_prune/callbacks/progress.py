"""Progress: a bar that says what is going on."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["Progress"]


class Progress(TQDMProgressBar):
    """Lightning's bar with the epoch out of how many and the accuracy, redrawn ten times an epoch.

    A redraw in every step costs a small network more than the step itself.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose how often the bar is redrawn."""
        batches = trainer.num_training_batches
        if isinstance(batches, int):
            self._refresh_rate = max(1, batches // 10)
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Say which epoch it is, counted from 1."""
        super().on_train_epoch_start(trainer, *args)
        of = f" of {trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}{of}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics shown, without the version of a logger that has none."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown
