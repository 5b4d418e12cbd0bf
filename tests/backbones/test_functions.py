"""What the backbones compute, against other people's networks or the formulas of the papers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune import Connectivity, LitPruneError, Masks
from lit_prune.backbones import (
    VGG16,
    WRN28_8,
    DenseNet40,
    FastGRNN,
    MobileNetV1,
    ResNet18,
    ResNet20,
    ViTTiny,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def awake(model: nn.Module) -> nn.Module:
    """The model in eval mode, with norms and biases that do something."""
    generator = torch.Generator().manual_seed(0)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and value.dim() < 2:
            noise = torch.rand(value.shape, generator=generator)
            value.data = noise + 0.5 if "var" in name or "weight" in name else noise - 0.5
    return model.eval()


def take_in_order(model: nn.Module, reference: nn.Module) -> None:
    """Copy the reference's state, whose names may be others but not its order."""
    own, other = model.state_dict(), reference.state_dict()
    assert [v.shape for v in own.values()] == [v.shape for v in other.values()]
    model.load_state_dict(dict(zip(own, other.values(), strict=True)))


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def close(found: Tensor, wanted: Tensor) -> None:
    assert wanted.std() > 0
    torch.testing.assert_close(found / wanted.std(), wanted / wanted.std(), rtol=1e-4, atol=1e-4)


# --- against torchvision and timm


def test_resnet_18_is_torchvisions_with_another_stem():
    models = pytest.importorskip("torchvision.models")
    reference = models.resnet18(num_classes=10)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    awake(reference)
    model = ResNet18().eval()
    model.load_state_dict(reference.state_dict())
    close(model(images()), reference(images()))


def test_vgg_16_computes_torchvisions_features():
    models = pytest.importorskip("torchvision.models")
    model = awake(VGG16())
    reference = models.vgg16_bn().features.eval()
    missing, unexpected = reference.load_state_dict(model.features.state_dict(), strict=False)
    assert unexpected == []
    for name in missing:
        nn.init.zeros_(reference.get_parameter(name))
    close(model(images()), model.classifier(reference(images()).flatten(1)))


def test_mobilenet_is_timms_with_relus_that_have_no_bound():
    timm = pytest.importorskip("timm")
    reference = awake(timm.create_model("mobilenetv1_100", act_layer=nn.ReLU, num_classes=10))
    model = MobileNetV1().eval()
    take_in_order(model, reference)
    close(model(images(2, 64)), reference(images(2, 64)))


def test_the_vision_transformer_is_timms():
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "patch_size": 4, "num_classes": 10}
    reference = awake(timm.create_model("deit_tiny_patch16_224", **sizes))
    model = ViTTiny().eval()
    take_in_order(model, reference)
    close(model(images()), reference(images()))


# --- ResNet


def test_shortcut_a_takes_every_other_pixel_and_adds_channels_of_zeros():
    shortcut = ResNet20().layer2[0].downsample
    x = torch.randn(2, 16, 7, 8)
    y = shortcut(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()
    assert not list(shortcut.parameters())


@pytest.mark.parametrize("shortcut", ["A", "conv"])
def test_a_block_adds_the_shortcut_before_the_last_relu(shortcut):
    block = awake(ResNet20(shortcut=shortcut)).layer3[0]
    x = torch.randn(2, 32, 8, 8)
    y = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    y = block.bn2(F.conv2d(y, block.conv2.weight, padding=1))
    if shortcut == "A":
        aside = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 32, 4, 4)], 1)
    else:
        aside = block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=2))
    close(block(x), F.relu(y + aside))


def test_an_unknown_shortcut_is_named():
    with pytest.raises(LitPruneError, match=r"unknown shortcut 'B'; known: A, conv"):
        ResNet20(shortcut="B")


# --- WRN


def wide_resnet(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """WRN-28-8 in eval mode, from its weights."""

    def norm(name: str, x: Tensor) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(x, *(state[f"{name}.{part}"] for part in parts)))

    x = F.conv2d(x, state["conv.weight"], padding=1)
    for group, stride in enumerate((1, 2, 2)):
        for block in range(4):
            name, step = f"groups.{group}.{block}", stride if block == 0 else 1
            active = norm(f"{name}.bn1", x)
            y = F.conv2d(active, state[f"{name}.conv1.weight"], stride=step, padding=1)
            y = F.conv2d(norm(f"{name}.bn2", y), state[f"{name}.conv2.weight"], padding=1)
            if block == 0:
                x = F.conv2d(active, state[f"{name}.shortcut.weight"], stride=step)
            x = x + y
    return F.linear(norm("bn", x).mean((2, 3)), state["fc.weight"], state["fc.bias"])


def test_wrn_activates_before_it_convolves():
    model = awake(WRN28_8())
    close(model(images()), wide_resnet(model.state_dict(), images()))


@pytest.mark.parametrize(
    ("kind", "count"),
    # Between the convolutions of 12 blocks; after 36 dense layers and 2 transitions.
    [(WRN28_8, 12), (DenseNet40, 38)],
)
def test_dropout_is_where_the_paper_has_it_and_none_by_default(kind, count):
    def shares(model: nn.Module) -> list[float]:
        return [m.p for m in model.modules() if isinstance(m, nn.Dropout)]

    assert shares(kind()) == [0.0] * count
    assert shares(kind(dropout=0.3)) == [0.3] * count
    torch.manual_seed(0)
    model = kind(dropout=0.3)
    assert not torch.equal(model(images()), model(images()))


# --- DenseNet


def test_a_layer_of_densenet_reads_all_before_it_in_its_block():
    model = awake(DenseNet40())
    given: list[Tensor] = []
    made: list[Tensor] = []
    convs = [m for m in model.stages[3].modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.stages[3].modules() if isinstance(m, nn.BatchNorm2d)]
    for norm, conv in zip(norms, convs, strict=True):
        norm.register_forward_pre_hook(lambda _, x: given.append(x[0]))
        conv.register_forward_hook(lambda _, x, y: made.append(y))
    x = torch.randn(2, 160, 16, 16)
    y = model.stages[3](x)
    for i, read in enumerate([*given, y]):
        assert torch.equal(read, torch.cat([x, *made[:i]], 1))
    assert len(made) == 12


def test_a_transition_of_densenet_is_norm_relu_1x1_convolution_and_average_pool():
    model = awake(DenseNet40())
    x = torch.randn(2, 160, 32, 32)
    (norm,) = (m for m in model.stages[1].modules() if isinstance(m, nn.BatchNorm2d))
    (conv,) = (m for m in model.stages[1].modules() if isinstance(m, nn.Conv2d))
    assert conv.weight.shape == (160, 160, 1, 1)
    wanted = F.conv2d(F.relu(norm(x)), conv.weight)
    wanted = wanted.unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean((3, 5))
    close(model.stages[2](model.stages[1](x)), wanted)


def test_densenet_ends_in_norm_relu_mean_and_a_linear_layer():
    model = awake(DenseNet40())
    features = model.stages(model.conv(images()))
    close(model(images()), model.fc(F.relu(model.bn(features)).mean((2, 3))))


# --- MobileNet


@pytest.mark.parametrize("width", [0.0, -1.0, 0.03, float("nan")])
def test_a_width_without_channels_is_refused(width):
    with pytest.raises(LitPruneError, match=f"width={width}"):
        MobileNetV1(width=width)


def test_mobilenet_on_32x32_has_10752_dead_connections_of_which_none_is_left_on_224x224():
    model = MobileNetV1()
    dense = Masks.dense(model)
    # The last but one depthwise kernel sees 2x2 pixels once, by 4 of its taps; the last sees one.
    dead = 512 * (9 - 4) + 1024 * (9 - 1)
    assert dead == 10_752
    assert dense.kept - Connectivity(model, (1, 3, 32, 32)).effective(dense).kept == dead
    assert Connectivity(model, (1, 3, 224, 224)).effective(dense) == dense
    assert Connectivity(model, (1, 3, 32, 32), "channel").effective(dense) == dense


# --- FastGRNN


def fastgrnn(state: dict[str, Tensor], x: np.ndarray) -> np.ndarray:
    """The formulas, one sample, one step and one unit at a time."""

    def sigmoid(value: float) -> float:
        return 1 / (1 + np.exp(-value))

    s = {name: value.double().numpy() for name, value in state.items()}
    zeta, nu = sigmoid(s["zeta"]), sigmoid(s["nu"])
    logits = []
    for sequence in x:
        h = np.zeros(len(s["b_z"]))
        for step in sequence:
            new = np.empty_like(h)
            for unit in range(len(h)):
                both = s["W.weight"][unit] @ step + s["U.weight"][unit] @ h
                z = sigmoid(both + s["b_z"][unit])
                candidate = np.tanh(both + s["b_h"][unit])
                new[unit] = (zeta * (1 - z) + nu) * candidate + z * h[unit]
            h = new
        logits.append(s["head.weight"] @ h + s["head.bias"])
    return np.stack(logits)


def test_fastgrnn_follows_its_formulas():
    torch.manual_seed(0)
    model = FastGRNN(3, in_features=4, hidden=6).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 11, 4, dtype=torch.float64)
    wanted = torch.from_numpy(fastgrnn(model.state_dict(), x.numpy()))
    torch.testing.assert_close(model(x), wanted)


def test_fastgrnn_starts_by_the_numbers_of_the_authors_code():
    torch.manual_seed(0)
    model = FastGRNN()
    for weight in (model.W.weight, model.U.weight, model.head.weight):
        assert abs(weight.std() - 0.1) < 0.1 * 4 * (2 * weight.numel()) ** -0.5
    assert model.b_z.eq(1).all()
    assert model.b_h.eq(1).all()
    assert (model.zeta.item(), model.nu.item()) == (1.0, -4.0)
    assert not model.head.bias.any()


@pytest.mark.parametrize("steps", [1, 2, 128])
def test_fastgrnn_takes_sequences_of_any_length(steps):
    assert FastGRNN(2)(torch.randn(3, steps, 9)).shape == (3, 2)


def test_with_one_step_nothing_comes_back_through_u():
    model = FastGRNN(2, hidden=5)
    dense = Masks.dense(model)
    assert Connectivity(model, (1, 2, 9)).effective(dense) == dense
    once = Connectivity(model, (1, 1, 9)).effective(dense)
    assert not once["U.weight"].any()
    assert once["W.weight"].all()
    assert once["head.weight"].all()


def reachable(masks: Masks, steps: int) -> dict[str, np.ndarray]:
    """The effective connections of a FastGRNN, step by step from both ends."""
    w, u, head = (masks[n].numpy() for n in ("W.weight", "U.weight", "head.weight"))
    before = [np.zeros(len(u), bool)]
    for _ in range(steps):
        before.append(w.any(1) | (u & before[-1]).any(1) | before[-1])
    after = [head.any(0)]
    for _ in range(steps):
        after.insert(0, (u & after[0][:, None]).any(0) | after[0])
    return {
        "W.weight": w & after[1][:, None],
        "U.weight": u
        & np.any(
            [after[t + 1][:, None] & before[t][None] for t in range(steps)],
            axis=0,
        ),
        "head.weight": head & before[-1],
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_effective_connections_of_fastgrnn_are_those_of_its_unrolled_steps(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    model = FastGRNN(2, in_features=3, hidden=9)
    masks = Masks(
        {
            name: torch.rand(mask.shape, generator=generator) < 0.15
            for name, mask in Masks.dense(model).items()
        }
    )
    found = Connectivity(model, (1, steps, 3)).effective(masks)
    wanted = reachable(masks, steps)
    assert {n: m.tolist() for n, m in found.items()} == {n: m.tolist() for n, m in wanted.items()}


# --- the vision transformer


def test_the_vision_transformer_starts_as_deit_does():
    torch.manual_seed(0)
    model = ViTTiny()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            error = 0.02 * 4 * (2 * module.weight.numel()) ** -0.5
            assert abs(module.weight.std() - 0.02) < error
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
    assert abs(model.positions.std() - 0.02) < 0.001
    assert abs(model.token.std() - 0.02) < 0.005
    assert model.patches.weight.abs().max() <= 48**-0.5


@pytest.mark.parametrize(("image", "patch"), [(32, 5), (30, 4), (4, 8), (32, 0), (0, 4)])
def test_patches_that_do_not_fill_the_image_are_refused(image, patch):
    with pytest.raises(LitPruneError, match=f"patch_size={patch} .*image_size={image}"):
        ViTTiny(image_size=image, patch_size=patch)


def test_the_vision_transformer_takes_images_of_its_size_alone():
    assert ViTTiny(image_size=64, patch_size=8)(images(1, 64)).shape == (1, 10)
    with pytest.raises(RuntimeError):
        ViTTiny()(images(1, 64))


def test_the_order_of_patches_matters():
    model = ViTTiny().eval()
    assert not torch.allclose(model(images(1)), model(images(1).flip(-1)))
