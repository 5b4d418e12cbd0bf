"""SeededEpochs: a resumed run draws the same random numbers as an undisturbed one."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["SeededEpochs"]


class SeededEpochs(Callback):
    """Seeds torch's global generators at the start of every epoch from (seed, epoch, rank).

    Dropout and the like draw from them. A run that is resumed at an epoch's start then continues
    to the same bits.
    """

    def __init__(self) -> None:
        self._seed = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the seed of the run, before an epoch overwrites it."""
        self._seed = torch.initial_seed()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed the generators of this epoch."""
        place = trainer.current_epoch * trainer.world_size + trainer.global_rank
        torch.manual_seed((self._seed + 0x9E3779B97F4A7C15 * (place + 1)) % 2**63)
