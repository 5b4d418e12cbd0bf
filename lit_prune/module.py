"""LitClassifier: any backbone, trained to classify."""

from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_accuracy

from lit_prune.errors import LitPruneError
from lit_prune.names import plain_name
from lit_prune.weights import load_weights

__all__ = ["LitClassifier"]


class LitClassifier(LightningModule):
    """Trains a backbone by cross-entropy and measures its accuracy.

    Logs ``train/loss`` and ``train/accuracy`` of single batches every ``log_every_n_steps`` steps,
    and ``val/...`` and ``test/...`` of whole data sets.

    Args:
        backbone: maps inputs to logits (N, classes); in a config a class path, or the path of a
            function that builds it.
        optimizer: makes the optimizer from the parameters.
        scheduler: makes the learning rate schedule, stepped once an epoch; None is constant.
        label_smoothing: share of the label spread over all classes, 0 to 1, in training only.
        weights: a local file of weights for the backbone (state dict, safetensors or checkpoint).
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.1, momentum=0.9),
        scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise LitPruneError(f"label_smoothing={label_smoothing} is out of range: 0 to 1")
        if weights is not None:
            load_weights(backbone, weights)
        self.backbone = backbone
        self.label_smoothing = label_smoothing
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self.loss = MeanMetric()
        self.accuracy = MulticlassAccuracy(average="micro", validate_args=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the backbone's logits."""
        return self.backbone(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss; log it and the accuracy where a log is due, and only there."""
        inputs, labels = batch
        logits = self(inputs)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        # self.log in every step costs a sixth of the speed of a small net.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            classes = logits.shape[-1]
            accuracy = multiclass_accuracy(
                logits.detach(), labels, classes, average="micro", validate_args=False
            )
            self.log("train/loss", loss.detach())
            self.log("train/accuracy", accuracy, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect loss and accuracy of a validation batch."""
        self._collect(batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect loss and accuracy of a test batch."""
        self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was collected, over all ranks."""
        self._log_collected("val")

    def on_test_epoch_end(self) -> None:
        """Log what was collected, over all ranks."""
        self._log_collected("test")

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and its schedule if there is one."""
        try:
            optimizer: Optimizer = self._make_optimizer(self.parameters())
            if self._make_scheduler is None:
                return optimizer
            scheduler = self._make_scheduler(optimizer)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise LitPruneError(f"the optimizer or its schedule: {error}") from error
        # Only Lightning's ReduceLROnPlateau names a metric to look at.
        monitor = getattr(scheduler, "monitor", None)
        if isinstance(scheduler, ReduceLROnPlateau) and monitor is None:
            raise LitPruneError(
                "model.scheduler: ReduceLROnPlateau needs a metric to look at: take "
                "lightning.pytorch.cli.ReduceLROnPlateau, whose monitor names one, as val/loss"
            )
        watched = {"scheduler": scheduler, **({"monitor": monitor} if monitor else {})}
        return {"optimizer": optimizer, "lr_scheduler": watched}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save under plain keys, which fit whether the backbone is compiled or not."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {plain_name(name): tensor for name, tensor in state.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take plain keys for the keys of this module."""
        own = {plain_name(name): name for name in self.state_dict()}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {own.get(name, name): tensor for name, tensor in state.items()}

    def _collect(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, labels = batch
        logits = self(inputs)
        self.loss.update(F.cross_entropy(logits, labels), weight=len(labels))
        self.accuracy.update(logits, labels)

    def _log_collected(self, stage: str) -> None:
        # Computed over all ranks already, so that sync_dist averages equal values.
        self.log(f"{stage}/loss", self.loss.compute(), sync_dist=True)
        self.log(f"{stage}/accuracy", self.accuracy.compute(), prog_bar=True, sync_dist=True)
        self.loss.reset()
        self.accuracy.reset()
