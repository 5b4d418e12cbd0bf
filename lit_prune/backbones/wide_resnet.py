"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.backbones.initialisation import he_initialise

__all__ = ["WRN28_8"]


class _WideResNet(nn.Module):
    """Three groups of pre-activated blocks, ``widening`` times as wide as those of a ResNet."""

    def __init__(
        self, depth: int, widening: int, num_classes: int, in_channels: int, dropout: float
    ) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = (16, 16 * widening, 32 * widening, 64 * widening)
        groups = []
        for stride, (given, width) in zip((1, 2, 2), pairwise(widths), strict=True):
            first = _Block(given, width, stride, dropout)
            rest = (_Block(width, width, 1, dropout) for _ in range(blocks - 1))
            groups.append(nn.Sequential(first, *rest))
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: He normal weights, zero biases, fresh norms."""
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = F.relu(self.bn(self.groups(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _Block(nn.Module):
    """Two convolutions, each after norm and ReLU; a shortcut that projects starts after these."""

    def __init__(self, given: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(given)
        self.conv1 = nn.Conv2d(given, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = None if given == width else nn.Conv2d(given, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        y = F.relu(self.bn2(self.conv1(active)))
        y = self.conv2(self.dropout(y))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WRN28_8(_WideResNet):  # noqa: N801 - the paper's name
    """The network of depth 28 and widening 8: 23,340,464 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
        dropout: probability of dropout between the convolutions of a block; 0 by default, and 0.3
            where the paper has it on CIFAR.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__(28, 8, num_classes, in_channels, dropout)
