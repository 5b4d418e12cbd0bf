"""FiniteLoss: a loss that is no number stops the run, before it spoils a checkpoint."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lit_prune.callbacks.checkpoints import Checkpoints
from lit_prune.errors import TrainingStopped

__all__ = ["FiniteLoss"]

# So many losses at most wait to be looked at; each holds a block of memory.
_MOST = 1000


class FiniteLoss(Callback):
    """Stops a run whose loss is NaN or infinite, and names the epoch, step and last checkpoint.

    Losses stay on their device and are looked at together, every ``log_every_n_steps`` steps and at
    the end of every epoch, so that a device is not waited for in between. Weights are looked at
    at the end of an epoch only, since the last step may spoil them. Both are before the epoch's
    checkpoint is written, so that checkpoints are good.

    Raises:
        TrainingStopped: a loss or a weight is not finite, on any rank.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._steps: list[int] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the loss; look at what is kept where a log is due."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach())
            self._steps.append(trainer.global_step)
        # Batches, unlike losses, are as many on every rank.
        if (batch_idx + 1) % min(trainer.log_every_n_steps or _MOST, _MOST) == 0:  # type: ignore[attr-defined]
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last losses of the epoch, and at the weights."""
        self._look(trainer)
        if _agreed(trainer, None if _are_finite(pl_module) else 0) is not None:
            _stop(trainer, "the weights are not finite", trainer.global_step)

    def _look(self, trainer: Trainer) -> None:
        losses, steps = self._losses, self._steps
        self._losses, self._steps = [], []
        values = _values(losses)
        wrong = [place for place, value in enumerate(values) if not isfinite(value)]
        first = _agreed(trainer, steps[wrong[0]] if wrong else None)
        if first is not None:
            name = values[wrong[0]] if wrong else "not finite on another rank"
            _stop(trainer, f"the loss is {name}", first)


def _values(losses: list[Tensor]) -> list[float]:
    """Return the losses as numbers; the device is waited for once."""
    return torch.cat([loss.reshape(1) for loss in losses]).tolist() if losses else []


def _are_finite(module: LightningModule) -> bool:
    weights = [w.detach() for w in module.parameters() if w.is_floating_point() and w.numel()]
    if not weights:
        return True
    largest = torch._foreach_norm(weights, float("inf"))
    return bool(torch.stack([norm.float() for norm in largest]).isfinite().all())


def _agreed(trainer: Trainer, step: int | None) -> int | None:
    """Return the earliest step of all ranks; None if no rank has one."""
    if trainer.world_size == 1:
        return step
    never = 2**62
    mine = torch.tensor(never if step is None else step, device=trainer.strategy.root_device)
    first = int(trainer.strategy.reduce(mine, reduce_op="min"))
    return None if first == never else first


def _stop(trainer: Trainer, what: str, step: int) -> None:
    of = f" of {trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
    raise TrainingStopped(
        f"{what} in epoch {trainer.current_epoch + 1}{of}, step {step}; last good checkpoint: "
        f"{_last_good(trainer)}"
    )


def _last_good(trainer: Trainer) -> str:
    ours = [c.newest for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)]
    for path, epoch in filter(None, ours):
        return f"{path} of epoch {epoch + 1}"
    others = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    return next((c.best_model_path for c in others if c.best_model_path), "none")
