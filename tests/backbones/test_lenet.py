"""The two LeNets: their sizes, and the images they take."""

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize(("kind", "norms"), [(LeNet300100, 3), (LeNet5, 5)])
def test_batch_norm_adds_no_prunable_connection(kind, norms):
    model = kind(batch_norm=True)
    assert _counts(model) == _counts(kind())
    found = {n for n in model.state_dict() if n.endswith("running_mean")}
    assert found == {f"bn{number}.running_mean" for number in range(1, norms + 1)}
    assert not any(name.startswith("bn") for name in kind().state_dict())
    assert model(torch.randn(4, 1, 28, 28)).mean(0).abs().max() < 1e-5  # the logits, too


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


LAYERS = {
    LeNet300100: lambda: [nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)],
    LeNet5: lambda: [
        nn.Conv2d(1, 6, 5),
        nn.Conv2d(6, 16, 5),
        nn.Linear(400, 120),
        nn.Linear(120, 84),
        nn.Linear(84, 10),
    ],
}


@pytest.mark.parametrize("kind", list(LAYERS))
def test_weights_are_drawn_layer_by_layer_after_pytorchs_own(kind):
    # The accuracies that the documents quote hang on these values.
    torch.manual_seed(7)
    model = kind()
    torch.manual_seed(7)
    layers = LAYERS[kind]()
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
    for weight, layer in zip(prunable(model).values(), layers, strict=True):
        assert torch.equal(weight, layer.weight)
