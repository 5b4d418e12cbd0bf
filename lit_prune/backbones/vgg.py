"""VGG for small images.

Source: Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image
recognition", arXiv 1409.1556.
"""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from lit_prune.backbones.initialisation import he_initialise

__all__ = ["VGG11", "VGG13", "VGG16", "VGG19"]

_WIDTHS = (64, 128, 256, 512, 512)


class _VGG(nn.Module):
    """Five stages of 3x3 convolutions, each with batch norm and ReLU, and each stage max-pooled."""

    _depths: ClassVar[tuple[int, ...]]

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = pairwise((in_channels, *_WIDTHS))
        for depth, (before, width) in zip(self._depths, widths, strict=True):
            for given in (before, *[width] * (depth - 1)):
                conv = nn.Conv2d(given, width, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: He normal weights, zero biases, fresh norms."""
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, 32, 32)."""
        return self.classifier(self.features(x).flatten(1))


class VGG11(_VGG):
    """Configuration A with a single linear layer: 9,222,848 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
    """

    _depths = (1, 1, 2, 2, 2)


class VGG13(_VGG):
    """Configuration B with a single linear layer: 9,407,168 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
    """

    _depths = (2, 2, 2, 2, 2)


class VGG16(_VGG):
    """Configuration D with a single linear layer: 14,715,584 prunable connections.

    The head and the number are those of arXiv 2107.02306, made for images of 32x32 pixels, of which
    five pools leave one. Batch norm follows every convolution, which therefore has no bias; the
    code of that paper normalises the logits as well and scales He's variance by the mean of fan-in
    and fan-out.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
    """

    _depths = (2, 2, 3, 3, 3)


class VGG19(_VGG):
    """Configuration E with a single linear layer: 20,024,000 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
    """

    _depths = (2, 2, 4, 4, 4)
