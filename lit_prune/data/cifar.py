"""CIFAR-10 and CIFAR-100."""

from typing import Any

import torch
from torchvision import datasets

from lit_prune.data.batches import Images
from lit_prune.data.torchvision_images import TorchvisionImages

__all__ = ["CIFAR10", "CIFAR100"]


class CIFAR10(TorchvisionImages):
    """50,000 training and 10,000 test images of 10 classes, 3x32x32 (Krizhevsky 2009).

    Training images are flipped and shifted by up to 4 pixels unless told otherwise. Takes the
    arguments of ``TorchvisionImages``; ``root`` holds a folder ``cifar-10-batches-py``.
    """

    def __init__(self, flip: bool = True, crop: int = 4, **kwargs: Any) -> None:
        super().__init__(flip=flip, crop=crop, **kwargs)

    def open(self, train: bool, download: bool = False) -> Any:
        """Return torchvision's CIFAR-10, whose files are checked by their MD5 before reading."""
        return datasets.CIFAR10(self.root, train=train, download=download)

    def convert(self, dataset: Any) -> Images:
        """Return the images, channels first."""
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        return Images(images, torch.tensor(dataset.targets))


class CIFAR100(CIFAR10):
    """The same with 100 classes; ``root`` holds a folder ``cifar-100-python``."""

    num_classes = 100

    def open(self, train: bool, download: bool = False) -> Any:
        """Return torchvision's CIFAR-100, whose files are checked by their MD5 before reading."""
        return datasets.CIFAR100(self.root, train=train, download=download)
