"""Digits: the data set that needs no download."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from lit_prune.data.batches import Images
from lit_prune.data.images import ImagesInMemory

__all__ = ["Digits"]


class Digits(ImagesInMemory):
    """The 1,797 handwritten digits that scikit-learn carries, scaled up from 8x8 to 28x28.

    A fifth of each class, 360 images in all, is the test set; that split is always the same. Takes
    the arguments of ``ImagesInMemory``.

    Source: Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits" (UCI).
    """

    def read(self, train: bool) -> Images:
        """Return the 1,437 training or the 360 test images."""
        digits = load_digits()
        split = train_test_split(
            digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
        )
        train_images, test_images, train_labels, test_labels = map(torch.from_numpy, split)
        images, labels = (train_images, train_labels) if train else (test_images, test_labels)
        return Images(_enlarged(images), labels.long())


def _enlarged(images: Tensor) -> Tensor:
    """Scale (N, 8, 8) values of 0 to 16 up to uint8 images (N, 1, 28, 28)."""
    large = F.interpolate(images.float().unsqueeze(1), size=(28, 28), mode="bilinear")
    return (large * (255 / 16)).round().to(torch.uint8)
