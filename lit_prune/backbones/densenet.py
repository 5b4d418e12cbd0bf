"""DenseNet (Huang et al. 2017, "Densely connected convolutional networks", arXiv 1608.06993)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.backbones.initialisation import he_initialise

__all__ = ["DenseNet40"]


class _DenseNet(nn.Module):
    """Three blocks of densely connected layers, with a transition after each but the last."""

    def __init__(
        self, depth: int, growth: int, num_classes: int, in_channels: int, dropout: float
    ) -> None:
        super().__init__()
        layers, width = (depth - 4) // 3, 16
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for block in range(3):
            if block:
                stages += [_convolution(width, width, 1, dropout), nn.AvgPool2d(2)]
            stages.append(
                nn.Sequential(*(_Dense(width + i * growth, growth, dropout) for i in range(layers)))
            )
            width += layers * growth
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: He normal weights, zero biases, fresh norms."""
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = F.relu(self.bn(self.stages(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _Dense(nn.Module):
    """A 3x3 convolution whose output is put behind its input."""

    def __init__(self, given: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.layer = _convolution(given, growth, 3, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layer(x)], dim=1)


def _convolution(given: int, width: int, kernel: int, dropout: float) -> nn.Module:
    """Return a convolution after norm and ReLU, before dropout."""
    conv = nn.Conv2d(given, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(given), nn.ReLU(), conv, nn.Dropout(dropout))


class DenseNet40(_DenseNet):
    """The network of depth 40 and growth rate 12, without bottlenecks: 1,001,616 prunable.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
        dropout: probability of dropout after every convolution but the first; 0 by default, and
            0.2 where the paper trains without augmentation.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__(40, 12, num_classes, in_channels, dropout)
