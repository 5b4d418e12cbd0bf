"""How networks with ReLUs start."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["he_initialise"]


def he_initialise(model: nn.Module) -> None:
    r"""Draw all convolutions, linear layers and batch norms of ``model`` anew, in place.

    Weights are normal with mean 0 and variance :math:`2 / \text{fan-in}`, biases are zero; norms
    have weight 1, bias 0 and no running statistics. One rule for all layers, the last included,
    where papers that cite it differ in the last layer or take the fan-out.

    Source: He et al. 2015, "Delving deep into rectifiers", arXiv 1502.01852, eq. 10.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _NormBase):
            module.reset_parameters()
