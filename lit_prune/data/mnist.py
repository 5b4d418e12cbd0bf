"""MNIST."""

from typing import Any

from torchvision import datasets

from lit_prune.data.batches import Images
from lit_prune.data.torchvision_images import TorchvisionImages

__all__ = ["MNIST"]


class MNIST(TorchvisionImages):
    """60,000 training and 10,000 test images of handwritten digits, 1x28x28 (LeCun et al. 1998).

    Takes the arguments of ``TorchvisionImages``; ``root`` holds a folder ``MNIST/raw``.
    """

    def open(self, train: bool, download: bool = False) -> Any:
        """Return torchvision's MNIST."""
        return datasets.MNIST(self.root, train=train, download=download)

    def convert(self, dataset: Any) -> Images:
        """Return the images with their one channel."""
        return Images(dataset.data.unsqueeze(1), dataset.targets)
