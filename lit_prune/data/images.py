"""ImagesInMemory: what data sets of images that fit in memory have in common."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_prune.data.augment import Augmentation
from lit_prune.data.batches import Batches, Images
from lit_prune.data.order import Order
from lit_prune.errors import LitPruneError

__all__ = ["ImagesInMemory"]


class ImagesInMemory(LightningDataModule, ABC):
    """Images kept as uint8 tensors on the training device, sliced and augmented by whole batches.

    A member says how its images are read (:meth:`read`). They are normalised by the mean and
    standard deviation of the training images, one a channel.

    Args:
        batch_size: samples a batch, per process.
        val_fraction: share of the training images set aside for validation, by a split that
            derives from the seed of the run; 0 is no validation.
        channels: 3 repeats grey images for backbones that expect colour; None takes them as read.
        flip: mirror training images left to right at random.
        crop: shift training images by up to so many pixels each way at random.
        rotate: turn training images by up to so many degrees either way at random.
        reflect: shifted images are mirrored at their borders instead of black there.
    """

    num_classes: int = 10

    def __init__(
        self,
        batch_size: int = 100,
        val_fraction: float = 0.1,
        channels: int | None = None,
        flip: bool = False,
        crop: int = 0,
        rotate: float = 0.0,
        reflect: bool = False,
    ) -> None:
        super().__init__()
        _require(batch_size >= 1, f"data.batch_size={batch_size} is out of range: at least 1")
        _require(
            0 <= val_fraction < 1,
            f"data.val_fraction={val_fraction} is out of range: 0 (no validation) to below 1",
        )
        _require(channels in (None, 1, 3), f"data.channels={channels} is out of range: 1 or 3")
        _require(crop >= 0, f"data.crop={crop} is out of range: 0 pixels or more")
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.channels = channels
        self.augmentation = Augmentation(flip, crop, rotate, reflect)
        self._splits: dict[str, Images] = {}
        self._seed: int | None = None
        self._agreed = False

    @abstractmethod
    def read(self, train: bool) -> Images:
        """Return the training or the test images, as uint8 (N, C, H, W), and their labels."""

    def setup(self, stage: str) -> None:
        """Read the images, once, and split validation off."""
        self._agree_on_seed()
        if self._splits:
            return
        self._splits = {"test": self.read(train=False)}
        everything = self.read(train=True)
        self._mean, self._std = _mean_and_std(everything.images)
        if self.channels is not None and everything.images.shape[1] not in (1, self.channels):
            raise LitPruneError(
                f"data.channels={self.channels}, but the images have {everything.images.shape[1]}"
            )
        kept, held_out = self._split(len(everything))
        _require(len(kept) > 0, f"data.val_fraction={self.val_fraction} leaves nothing to train on")
        self._splits["train"] = everything[kept] if len(held_out) else everything
        if len(held_out):
            self._splits["val"] = everything[held_out]

    def example(self) -> Tensor:
        """Return one normalised training image as a batch (1, C, H, W), after ``setup``."""
        return self._normalise(self._splits["train"].images[:1])

    def train_dataloader(self) -> Batches:
        """Return shuffled, augmented batches of this rank's share."""
        return self._batches("train", self.augmentation, shuffle=True)

    def val_dataloader(self) -> Batches | list[Any]:
        """Return this rank's share of the validation images; an empty list if there are none."""
        return self._batches("val") if self._has("val") else []

    def test_dataloader(self) -> Batches:
        """Return this rank's share of the test images."""
        return self._batches("test")

    def _batches(
        self, split: str, augmentation: Augmentation | None = None, shuffle: bool = False
    ) -> Batches:
        trainer = self.trainer
        if trainer is not None:
            self._splits[split] = self._splits[split].to(trainer.strategy.root_device)
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        data = self._splits[split]
        order = Order(len(data), self.batch_size, shuffle, self._seed or 0, rank, ranks)
        return Batches(
            data, order, self._normalise, None if augmentation == Augmentation() else augmentation
        )

    def _has(self, split: str) -> bool:
        return split in self._splits

    def _split(self, total: int) -> tuple[Tensor, Tensor]:
        """Return the indices of the samples that are trained on, and of those held out."""
        generator = torch.Generator().manual_seed(self._seed or 0)
        order = torch.randperm(total, generator=generator)
        held_out = round(self.val_fraction * total)
        return order[held_out:].sort().values, order[:held_out].sort().values

    def _normalise(self, images: Tensor) -> Tensor:
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        scaled = images.float().sub_(mean).div_(std)
        return scaled.expand(-1, self.channels or -1, -1, -1)

    def _agree_on_seed(self) -> None:
        """Take the seed of the run, once; with several processes, all take that of rank 0."""
        trainer = self.trainer
        if self._seed is None:
            self._seed = torch.initial_seed() % 2**31
        if trainer is not None and trainer.world_size > 1 and not self._agreed:
            own, self._seed = self._seed, int(trainer.strategy.broadcast(self._seed))
            self._agreed = True
            if own != self._seed:
                self._splits.clear()


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise LitPruneError(message)


def _mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of uint8 images, as (C, 1, 1)."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([_histogram(images[:, c]) for c in range(images.shape[1])]).double()
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp(min=0).sqrt().clamp(min=1)
    return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)


def _histogram(channel: Tensor) -> Tensor:
    parts = [torch.bincount(part.flatten(), minlength=256) for part in channel.split(10_000)]
    return torch.stack(parts).sum(dim=0)
