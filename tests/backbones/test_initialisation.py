"""How networks with ReLUs start: every layer by its own fan-in."""

import pytest
import torch
from torch import nn

from lit_prune.backbones.initialisation import he_initialise

LAYERS = [
    (nn.Linear(50, 400), 50),
    (nn.Conv2d(8, 300, 3), 72),
    (nn.Conv2d(2000, 2000, 3, groups=2000), 9),
    (nn.Conv2d(64, 500, 1, groups=2), 32),
]


@pytest.mark.parametrize(("layer", "fan_in"), LAYERS)
def test_weights_are_normal_with_variance_2_by_fan_in_and_biases_zero(layer, fan_in):
    torch.manual_seed(0)
    he_initialise(nn.Sequential(layer))
    weights = layer.weight.detach().double().flatten() * (fan_in / 2) ** 0.5
    error = weights.numel() ** -0.5
    assert abs(weights.mean()) < 4 * error
    assert abs(weights.var() - 1) < 4 * error * 2**0.5
    # The kurtosis of a normal distribution is 3, of a uniform one 1.8.
    assert abs(weights.pow(4).mean() / weights.var() ** 2 - 3) < 4 * error * 24**0.5
    assert not layer.bias.any()


def test_norms_are_as_new():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model(torch.randn(9, 4) + 3).sum().backward()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    he_initialise(model)
    for norm in (model[0], model[2]):
        assert all(
            torch.equal(value, new)
            for value, new in zip(
                norm.state_dict().values(), nn.BatchNorm1d(4).state_dict().values(), strict=True
            )
        )
