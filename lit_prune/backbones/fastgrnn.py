"""FastGRNN, a small gated recurrent network.

Source: Kusupati et al. 2018, "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated
recurrent neural network", arXiv 1901.02358.
"""

import torch
from torch import Tensor, nn

__all__ = ["FastGRNN"]


class FastGRNN(nn.Module):
    r"""A gated recurrent network whose gate and candidate share their two matrices.

    For inputs :math:`x_1 \dots x_T` and :math:`h_0 = 0`,

    .. math::
        z_t &= \sigma(W x_t + U h_{t-1} + b_z) \\
        \tilde h_t &= \tanh(W x_t + U h_{t-1} + b_h) \\
        h_t &= (\sigma(\zeta) (1 - z_t) + \sigma(\nu)) \odot \tilde h_t + z_t \odot h_{t-1}

    and a linear layer makes logits of :math:`h_T`. The matrices are of full rank, the paper's
    FastGRNN-LSQ; low rank, sparsity and quantisation are what it adds to be small. With the
    defaults and two classes, as on HAR-2, there are 7,280 prunable connections.

    Args:
        num_classes: the number of outputs.
        in_features: the number of values a time step.
        hidden: the number of hidden units.
    """

    def __init__(self, num_classes: int = 10, in_features: int = 9, hidden: int = 80) -> None:
        super().__init__()
        self.W = nn.Linear(in_features, hidden, bias=False)
        self.U = nn.Linear(hidden, hidden, bias=False)
        self.b_z = nn.Parameter(torch.empty(hidden))
        self.b_h = nn.Parameter(torch.empty(hidden))
        self.zeta = nn.Parameter(torch.empty(()))
        self.nu = nn.Parameter(torch.empty(()))
        self.head = nn.Linear(hidden, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, by the numbers of the authors' code.

        W and U are normal with standard deviation 0.1, their biases and zeta are 1, and nu is -4.
        The last layer is drawn as W and U are, its biases are 0; the authors draw both with a
        standard deviation of 1.
        """
        for layer in (self.W, self.U, self.head):
            nn.init.normal_(layer.weight, std=0.1)
        for ones in (self.b_z, self.b_h, self.zeta):
            nn.init.ones_(ones)
        nn.init.constant_(self.nu, -4.0)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of sequences (N, T, in_features)."""
        zeta, nu = self.zeta.sigmoid(), self.nu.sigmoid()
        h = x.new_zeros(len(x), self.U.in_features)
        for wx in self.W(x).unbind(1):
            both = wx + self.U(h)
            z = torch.sigmoid(both + self.b_z)
            candidate = torch.tanh(both + self.b_h)
            h = (zeta * (1 - z) + nu) * candidate + z * h
        return self.head(h)
