"""LeNet-300-100 and LeNet-5.

Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition".
"""

import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.backbones.initialisation import he_initialise

__all__ = ["LeNet5", "LeNet300100"]


class LeNet300100(nn.Module):
    """The fully connected net 784-300-100-10: 266,200 prunable connections.

    Args:
        num_classes: the number of outputs.
        batch_norm: normalise after every layer, the logits included, as in the code of arXiv
            2107.02306; hidden layers before their ReLU.
        in_features: the number of input values, 28 * 28 by default; images are flattened.
    """

    def __init__(
        self, num_classes: int = 10, batch_norm: bool = False, in_features: int = 784
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, 300)
        self.bn1 = nn.BatchNorm1d(300) if batch_norm else nn.Identity()
        self.fc2 = nn.Linear(300, 100)
        self.bn2 = nn.BatchNorm1d(100) if batch_norm else nn.Identity()
        self.fc3 = nn.Linear(100, num_classes)
        self.bn3 = nn.BatchNorm1d(num_classes) if batch_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: He normal weights, zero biases, fresh norms."""
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, ...) with ``in_features`` values each."""
        x = F.relu(self.bn1(self.fc1(x.flatten(1))))
        x = F.relu(self.bn2(self.fc2(x)))
        return self.bn3(self.fc3(x))


class LeNet5(nn.Module):
    """The convolutional net 6-16-120-84 with average pooling: 61,470 prunable connections.

    Images of 32x32 are taken as they are; smaller ones, such as 28x28, are padded to that with
    zeros, as in the paper. Its sparse table between the two convolutions and its output of radial
    basis functions are a full convolution and a linear layer here, as everywhere today.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels, 1 for grey images.
        batch_norm: normalise after every layer, the logits included, as in the code of arXiv
            2107.02306; all others before their ReLU.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.bn1 = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.bn2 = nn.BatchNorm2d(16) if batch_norm else nn.Identity()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.bn3 = nn.BatchNorm1d(120) if batch_norm else nn.Identity()
        self.fc2 = nn.Linear(120, 84)
        self.bn4 = nn.BatchNorm1d(84) if batch_norm else nn.Identity()
        self.fc3 = nn.Linear(84, num_classes)
        self.bn5 = nn.BatchNorm1d(num_classes) if batch_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: He normal weights, zero biases, fresh norms."""
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W), H and W at most 32."""
        x = F.avg_pool2d(F.relu(self.bn1(self.conv1(_padded(x, 32)))), 2)
        x = F.avg_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.fc1(x.flatten(1))))
        return self.bn5(self.fc3(F.relu(self.bn4(self.fc2(x)))))


def _padded(x: Tensor, size: int) -> Tensor:
    height, width = size - x.shape[-2], size - x.shape[-1]
    if height == width == 0:
        return x
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
