"""The two LeNets: their sizes, and the images they take."""

import pytest
import torch

from lit_prune import Masks, prunable
from lit_prune.backbones import LeNet5, LeNet300100


def _counts(model) -> dict[str, int]:
    return {name: weight.numel() for name, weight in prunable(model).items()}


def test_lenet_300_100_has_266200_prunable_connections():
    counts = _counts(LeNet300100())
    assert counts == {"fc1.weight": 235_200, "fc2.weight": 30_000, "fc3.weight": 1_000}
    assert Masks.dense(LeNet300100()).total == 266_200
    assert sum(p.numel() for p in LeNet300100().parameters()) == 266_610


def test_lenet_5_has_61470_prunable_connections():
    counts = _counts(LeNet5())
    assert counts == {
        "conv1.weight": 150,
        "conv2.weight": 2_400,
        "fc1.weight": 48_000,
        "fc2.weight": 10_080,
        "fc3.weight": 840,
    }
    assert sum(counts.values()) == 61_470
    assert sum(p.numel() for p in LeNet5().parameters()) == 61_706


def test_batch_norm_adds_no_prunable_connection():
    model = LeNet300100(batch_norm=True)
    assert _counts(model) == _counts(LeNet300100())
    assert {"bn1.running_mean", "bn2.running_var"} <= set(model.state_dict())
    assert not any(name.startswith("bn") for name in LeNet300100().state_dict())


@pytest.mark.parametrize("shape", [(4, 1, 28, 28), (4, 28, 28), (4, 784)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_lenet_300_100_takes_images_as_they_come(shape, batch_norm):
    model = LeNet300100(batch_norm=batch_norm)
    x = torch.randn(shape)
    assert model(x).shape == (4, 10)
    assert torch.equal(model.eval()(x), model(x.reshape(4, 784)))


@pytest.mark.parametrize("size", [28, 32, 27, 5])
def test_lenet_5_takes_images_of_up_to_32_by_32(size):
    assert LeNet5()(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_lenet_5_pads_28_by_28_by_two_black_pixels_on_each_side():
    model, x = LeNet5(), torch.randn(2, 1, 28, 28)
    framed = torch.zeros(2, 1, 32, 32)
    framed[:, :, 2:-2, 2:-2] = x
    assert torch.equal(model(x), model(framed))


def test_classes_channels_and_inputs_may_be_chosen():
    assert LeNet300100(num_classes=7, in_features=12)(torch.randn(2, 3, 2, 2)).shape == (2, 7)
    assert LeNet5(num_classes=100, in_channels=3)(torch.randn(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize(
    ("model", "x"),
    [(LeNet300100(), torch.randn(1, 1, 32, 32)), (LeNet5(), torch.randn(1, 3, 28, 28))],
)
def test_images_of_another_shape_are_refused(model, x):
    with pytest.raises(RuntimeError):
        model(x)


@pytest.mark.parametrize("model", [LeNet300100(), LeNet300100(batch_norm=True), LeNet5()])
def test_every_output_depends_on_every_layer(model):
    x = torch.randn(3, 1, 28, 28)
    model(x).pow(2).sum().backward()
    for name, weight in prunable(model).items():
        assert weight.grad.abs().sum() > 0, name
