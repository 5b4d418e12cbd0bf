"""MobileNet.

Source: Howard et al. 2017, "MobileNets: efficient convolutional neural networks for mobile vision
applications", arXiv 1704.04861.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.backbones.initialisation import he_initialise
from lit_prune.errors import LitPruneError

__all__ = ["MobileNetV1"]

# Channels and stride of each separable convolution, from the paper's table 1.
_LAYOUT = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """A convolution and 13 depthwise separable ones: 3,195,328 prunable connections.

    It is the paper's network for images of 224x224. It takes others as well, but of 32x32 pixels
    one is left at the end, where 3x3 kernels touch nothing but padding with 8 of their 9 weights.
    The last depthwise convolution has stride 1: with the stride of 2 that table 1 gives it, its
    output would not have the size that the table gives.

    Args:
        num_classes: the number of outputs; 1000 in the paper.
        in_channels: the number of input channels.
        width: the width multiplier, which scales the channels of all layers; 1, 0.75, 0.5 and 0.25
            in the paper.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        if not 32 * width >= 1:
            raise LitPruneError(f"width={width} is out of range: at least 1/32, for one channel")
        given = int(32 * width)
        layers = [*_convolution(in_channels, given, 3, stride=2)]
        for channels, stride in _LAYOUT:
            wide = int(channels * width)
            layers += _convolution(given, given, 3, stride, groups=given)
            layers += _convolution(given, wide, 1)
            given = wide
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(given, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: He normal weights, zero biases, fresh norms."""
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def _convolution(
    given: int, width: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    """Return a convolution with batch norm and ReLU."""
    padding = kernel // 2
    conv = nn.Conv2d(given, width, kernel, stride, padding, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(width), nn.ReLU()
