"""Residual networks for small images.

Source: He et al. 2015, "Deep residual learning for image recognition", arXiv 1512.03385.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.backbones.initialisation import he_initialise
from lit_prune.errors import LitPruneError

__all__ = [
    "ResNet18",
    "ResNet20",
    "ResNet32",
    "ResNet34",
    "ResNet44",
    "ResNet56",
    "ResNet110",
]

Shortcut = Literal["A", "conv"]


class _ResNet(nn.Module):
    """A 3x3 convolution, stages of blocks, global average pooling and a linear layer.

    Every stage but the first halves the image and doubles the channels. Layers have the names that
    torchvision's networks give them.
    """

    def __init__(
        self, depths: tuple[int, ...], width: int, shortcut: str, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        if shortcut not in _SHORTCUTS:
            known = ", ".join(_SHORTCUTS)
            raise LitPruneError(f"unknown shortcut {shortcut!r}; known: {known}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width, *(width * 2**stage for stage in range(len(depths)))]
        self._stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        for name, depth, (given, wide) in zip(self._stages, depths, pairwise(widths), strict=True):
            first = _Block(given, wide, _SHORTCUTS[shortcut])
            rest = (_Block(wide, wide, _SHORTCUTS[shortcut]) for _ in range(depth - 1))
            self.add_module(name, nn.Sequential(first, *rest))
        self.fc = nn.Linear(widths[-1], num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: He normal weights, zero biases, fresh norms."""
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self._stages:
            x = self.get_submodule(name)(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; where the width changes, the image is halved."""

    def __init__(self, given: int, width: int, shortcut: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        stride = 1 if given == width else 2
        self.conv1 = nn.Conv2d(given, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Identity() if given == width else shortcut(given, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class _Padded(nn.Module):
    """Every other pixel, and channels of zeros behind those that there are."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.added = width - given

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))


def _projected(given: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(given, width, 1, 2, bias=False), nn.BatchNorm2d(width))


_SHORTCUTS: dict[str, Callable[[int, int], nn.Module]] = {"A": _Padded, "conv": _projected}


class _CIFARResNet(_ResNet):
    """Three stages of 16, 32 and 64 channels with n blocks each: 6n + 2 layers (section 4.2)."""

    _blocks: ClassVar[int]

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A"
    ) -> None:
        super().__init__((self._blocks,) * 3, 16, shortcut, num_classes, in_channels)


class ResNet20(_CIFARResNet):
    """The network of 20 layers for CIFAR: 268,336 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
        shortcut: where a stage begins, ``"A"`` takes every other pixel and adds channels of zeros,
            as in the paper; ``"conv"`` is a 1x1 convolution with batch norm (option B), as in the
            code of node-path balancing (Pham et al. 2023).
    """

    _blocks = 3


class ResNet32(_CIFARResNet):
    """The network of 32 layers for CIFAR: 461,872 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
        shortcut: as in ``ResNet20``.
    """

    _blocks = 5


class ResNet44(_CIFARResNet):
    """The network of 44 layers for CIFAR: 655,408 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
        shortcut: as in ``ResNet20``.
    """

    _blocks = 7


class ResNet56(_CIFARResNet):
    """The network of 56 layers for CIFAR: 848,944 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
        shortcut: as in ``ResNet20``.
    """

    _blocks = 9


class ResNet110(_CIFARResNet):
    """The network of 110 layers for CIFAR: 1,719,856 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
        shortcut: as in ``ResNet20``.
    """

    _blocks = 18


class ResNet18(_ResNet):
    """The network of 18 layers for images of 32x32 or 64x64: 11,164,352 prunable connections.

    The stem is a 3x3 convolution of stride 1 without pooling, as is usual for CIFAR and
    TinyImageNet; all else is the network that the paper has for ImageNet (table 1), shortcuts of
    option B. The code of arXiv 2107.02306 normalises identity shortcuts as well.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__((2, 2, 2, 2), 64, "conv", num_classes, in_channels)


class ResNet34(_ResNet):
    """The network of 34 layers with the stem of ``ResNet18``: 21,265,088 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__((3, 4, 6, 3), 64, "conv", num_classes, in_channels)
