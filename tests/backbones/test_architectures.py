"""The architectures of the papers: how many parameters they have, and the sizes on the way."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch
from torch import nn

from lit_prune import Masks
from lit_prune.backbones import (
    VGG11,
    VGG13,
    VGG16,
    VGG19,
    WRN28_8,
    DenseNet40,
    FastGRNN,
    MobileNetV1,
    ResNet18,
    ResNet20,
    ResNet32,
    ResNet34,
    ResNet44,
    ResNet56,
    ResNet110,
    ViTTiny,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def counts(model: nn.Module) -> tuple[int, int]:
    """How many connections are prunable, and how many parameters there are."""
    return Masks.dense(model).total, sum(p.numel() for p in model.parameters())


def built(kind: type, *arguments: object, **named: object) -> nn.Module:
    """A network of shapes without values."""
    with torch.device("meta"):
        return kind(*arguments, **named)


def sizes(model: nn.Module, names: Iterable[str], *shape: int) -> list[tuple[int, ...]]:
    """The output shapes of submodules, for one input in eval mode."""
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, given, y, name=name: found.update({name: tuple(y.shape[1:])})
        )
    assert model.eval()(torch.empty(1, *shape, device="meta")).shape == (1, 10)
    return [found[name] for name in names]


def chain(widths: Iterable[int], kernel: int) -> int:
    """The weights of convolutions in a row."""
    return sum(kernel**2 * given * width for given, width in pairwise(widths))


# --- VGG

VGGS = [
    (VGG11, (1, 1, 2, 2, 2)),
    (VGG13, (2, 2, 2, 2, 2)),
    (VGG16, (2, 2, 3, 3, 3)),
    (VGG19, (2, 2, 4, 4, 4)),
]
WIDTHS = (64, 128, 256, 512, 512)


@pytest.mark.parametrize(("kind", "depths"), VGGS)
def test_vgg_has_the_convolutions_of_its_configuration_and_one_linear_layer(kind, depths):
    widths = [w for width, depth in zip(WIDTHS, depths, strict=True) for w in [width] * depth]
    weights = chain([3, *widths], 3) + 512 * 10
    assert counts(built(kind)) == (weights, weights + 2 * sum(widths) + 10)
    # The name counts the layers with weights, of which the paper has three linear ones.
    assert kind.__name__ == f"VGG{len(widths) + 3}"


def test_vgg_16_has_as_many_prunable_connections_as_in_arxiv_2107_02306():
    assert counts(built(VGG16))[0] == 14_715_584


@pytest.mark.parametrize(("kind", "depths"), VGGS)
def test_the_sizes_in_vgg(kind, depths):
    model = built(kind)
    pools = [n for n, m in model.named_modules() if isinstance(m, nn.MaxPool2d)]
    assert sizes(model, pools, 3, 32, 32) == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
        (512, 1, 1),
    ]


@pytest.mark.parametrize(("kind", "depths"), VGGS)
def test_vgg_has_the_features_of_torchvisions(kind, depths):
    models = pytest.importorskip("torchvision.models")
    reference = built(getattr(models, f"{kind.__name__.lower()}_bn")).features.state_dict()
    own = built(kind).features.state_dict()
    # Norms follow, which make its biases idle.
    idle = {name for name in reference if name.endswith(".bias")} - set(own)
    assert all(reference[name.replace("bias", "weight")].dim() == 4 for name in idle)
    assert {n: s.shape for n, s in own.items()} == {
        n: s.shape for n, s in reference.items() if n not in idle
    }


@pytest.mark.parametrize("size", [16, 31, 64])
def test_vgg_refuses_images_of_which_no_pixel_or_several_are_left(size):
    with pytest.raises(RuntimeError):
        built(VGG11)(torch.empty(2, 3, size, size, device="meta"))


# --- ResNet for CIFAR

CIFAR_RESNETS = [
    (ResNet20, 3, 0.27),
    (ResNet32, 5, 0.46),
    (ResNet44, 7, 0.66),
    (ResNet56, 9, 0.85),
    (ResNet110, 18, 1.7),
]


@pytest.mark.parametrize(("kind", "blocks", "published"), CIFAR_RESNETS)
def test_resnets_for_cifar_have_as_many_parameters_as_in_table_6(kind, blocks, published):
    widths = [3, 16, *[16] * 2 * blocks, *[32] * 2 * blocks, *[64] * 2 * blocks]
    weights = chain(widths, 3) + 64 * 10
    prunable, total = counts(built(kind))
    assert (prunable, total) == (weights, weights + 2 * sum(widths[1:]) + 10)
    assert round(total / 1e6, 1 if published > 1 else 2) == published
    assert kind.__name__ == f"ResNet{6 * blocks + 2}"


@pytest.mark.parametrize(("kind", "blocks", "published"), CIFAR_RESNETS)
def test_convolutions_as_shortcuts_add_two_of_them(kind, blocks, published):
    plain, projected = counts(built(kind)), counts(built(kind, shortcut="conv"))
    assert projected[0] - plain[0] == 16 * 32 + 32 * 64
    assert projected[1] - plain[1] == 16 * 32 + 32 * 64 + 2 * (32 + 64)


STAGES = ["conv1", "layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("shortcut", ["A", "conv"])
@pytest.mark.parametrize(("kind", "blocks", "published"), CIFAR_RESNETS)
def test_the_sizes_in_resnets_for_cifar(kind, blocks, published, shortcut):
    model = built(kind, shortcut=shortcut)
    assert [len(model.get_submodule(name)) for name in STAGES[1:4]] == [blocks] * 3
    found = sizes(model, STAGES[:4], 3, 32, 32)
    assert found == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


# --- ResNet-18 and ResNet-34


@pytest.mark.parametrize(
    ("kind", "depths", "published"),
    [(ResNet18, (2, 2, 2, 2), 11_173_962), (ResNet34, (3, 4, 6, 3), 21_282_122)],
)
def test_resnet_18_and_34_have_the_parameters_of_torchvisions_but_at_both_ends(
    kind, depths, published
):
    model = built(kind)
    widths = [3, 64]
    for stage, depth in enumerate(depths):
        widths += [64 * 2**stage] * 2 * depth
    shortcuts = 64 * 128 + 128 * 256 + 256 * 512
    weights = chain(widths, 3) + shortcuts + 512 * 10
    norms = 2 * (sum(widths[1:]) + 128 + 256 + 512)
    assert counts(model) == (weights, weights + norms + 10) == (weights, published)
    models = pytest.importorskip("torchvision.models")
    reference = built(getattr(models, kind.__name__.lower()), num_classes=10).state_dict()
    own = model.state_dict()
    assert list(own) == list(reference)
    assert {n for n in own if own[n].shape != reference[n].shape} == {"conv1.weight"}


@pytest.mark.parametrize("kind", [ResNet18, ResNet34])
@pytest.mark.parametrize("side", [32, 64])
def test_the_sizes_in_resnet_18_and_34(kind, side):
    assert sizes(built(kind), STAGES, 3, side, side) == [
        (64, side, side),
        (64, side, side),
        (128, side // 2, side // 2),
        (256, side // 4, side // 4),
        (512, side // 8, side // 8),
    ]


# --- WRN-28-8


def test_wrn_28_8_has_23_4_million_parameters():
    groups = [(16, 128), (128, 256), (256, 512)]
    weights = 9 * 3 * 16 + 512 * 10
    weights += sum(9 * a * b + 7 * 9 * b * b + a * b for a, b in groups)
    norms = sum(2 * (a + b) + 3 * 2 * 2 * b for a, b in groups) + 2 * 512
    prunable, total = counts(built(WRN28_8))
    assert (prunable, total) == (weights, weights + norms + 10)
    assert round(total / 1e6, 1) == 23.4


def test_the_sizes_in_wrn_28_8():
    model = built(WRN28_8)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(layers) + 3 == 28  # three shortcuts are counted as layers, the last one is not
    names = ["conv", "groups.0", "groups.1", "groups.2", "bn"]
    assert sizes(model, names, 3, 32, 32) == [
        (16, 32, 32),
        (128, 32, 32),
        (256, 16, 16),
        (512, 8, 8),
        (512, 8, 8),
    ]


# --- MobileNet

SEPARABLE = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]


@pytest.mark.parametrize(("width", "published"), [(1, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_mobilenets_have_as_many_parameters_as_in_table_6(width, published):
    widths = [int(width * channels) for channels in SEPARABLE]
    weights = 27 * widths[0] + sum(9 * a + a * b for a, b in pairwise(widths)) + 1000 * widths[-1]
    norms = 2 * widths[0] + 2 * sum(a + b for a, b in pairwise(widths))
    prunable, total = counts(built(MobileNetV1, 1000, width=width))
    assert (prunable, total) == (weights, weights + norms + 1000)
    assert round(total / 1e6, 1) == published


def test_mobilenet_for_imagenet_has_569_million_multiply_adds_as_in_table_8():
    model, found = built(MobileNetV1, 1000), []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(
                lambda layer, _, y: found.append(layer.weight[0].numel() * y.numel())
            )
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert len(found) == 1 + 2 * 13 + 1  # 28 layers
    assert round(sum(found) / 1e6) == 569


@pytest.mark.parametrize(
    ("side", "wanted"),
    [
        (224, [112, 112, 56, 56, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7]),
        (32, [16, 16, 8, 8, 4, 4, 2, 2, 2, 2, 2, 2, 1, 1]),
    ],
)
def test_the_sizes_in_mobilenet(side, wanted):
    model = built(MobileNetV1)
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    blocks = [convs[0], *convs[2::2]]
    assert sizes(model, blocks, 3, side, side) == [
        (channels, size, size) for channels, size in zip(SEPARABLE, wanted, strict=True)
    ]


# --- DenseNet


def test_densenet_40_has_1_0_million_parameters():
    inner = [[16 + 144 * block + 12 * i for i in range(12)] for block in range(3)]
    weights = 9 * 3 * 16 + sum(9 * a * 12 for block in inner for a in block)
    weights += 160**2 + 304**2 + 448 * 10
    norms = 2 * (sum(a for block in inner for a in block) + 160 + 304 + 448)
    prunable, total = counts(built(DenseNet40))
    assert (prunable, total) == (weights, weights + norms + 10)
    assert round(total / 1e6, 1) == 1.0


def test_the_sizes_in_densenet_40():
    model = built(DenseNet40)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 40
    names = ["conv", *(f"stages.{i}" for i in range(7)), "bn"]
    assert sizes(model, names, 3, 32, 32) == [
        (16, 32, 32),
        (160, 32, 32),
        (160, 32, 32),
        (160, 16, 16),
        (304, 16, 16),
        (304, 16, 16),
        (304, 8, 8),
        (448, 8, 8),
        (448, 8, 8),
    ]


# --- FastGRNN and the vision transformer


def test_fastgrnn_for_har_2_has_29_kilobytes_of_parameters():
    weights = 9 * 80 + 80 * 80 + 80 * 2
    prunable, total = counts(built(FastGRNN, num_classes=2))
    assert (prunable, total) == (weights, weights + 2 * 80 + 2 + 2)
    assert prunable == 7_280
    assert round(4 * total / 1024) == 29


def test_the_tiny_vision_transformer_has_deits_parameters():
    block = 192 * 3 * 192 + 192 * 192 + 2 * 192 * 768
    small = (3 * 192 + 192 + 768 + 192) + 4 * 192
    ends = 48 * 192 + 192 + 192 + 65 * 192 + 2 * 192 + 192 * 10 + 10
    assert counts(built(ViTTiny)) == (
        48 * 192 + 12 * block + 192 * 10,
        12 * (block + small) + ends,
    )
    # 5 million in DeiT's table 1, for images of 224x224 in patches of 16x16 and 1000 classes.
    assert counts(built(ViTTiny, 1000, 3, 224, 16))[1] == 5_717_416


def test_the_sizes_in_the_tiny_vision_transformer():
    names = ["patches", *(f"blocks.{i}" for i in range(12)), "norm"]
    assert sizes(built(ViTTiny), names, 3, 32, 32) == [(192, 8, 8), *[(65, 192)] * 13]
