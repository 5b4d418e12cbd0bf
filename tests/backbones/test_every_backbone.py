"""What holds for every backbone: a new file in the folder is tested as it stands."""

import inspect
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune import Connectivity, Masks, backbones, prunable, prune
from lit_prune.criteria import SNIP, Magnitude, Random

# The inputs of those that take no colour images of 32x32.
INPUTS = {"LeNet300100": (1, 28, 28), "LeNet5": (1, 28, 28), "FastGRNN": (20, 9)}
KINDS = [getattr(backbones, name) for name in backbones.__all__]
# What a smaller one of the same family says as well, or what takes a second a test.
SLOW = {"VGG13", "VGG19", "ResNet32", "ResNet44", "ResNet110", "ResNet34", "WRN28_8"}


def each(kinds: list[type], slow: set[str]) -> pytest.MarkDecorator:
    marks = {name: [pytest.mark.slow] for name in slow}
    cases = [pytest.param(k, id=k.__name__, marks=marks.get(k.__name__, ())) for k in kinds]
    return pytest.mark.parametrize("kind", cases)


EVERY, MANY = each(KINDS, set()), each(KINDS, SLOW)


def shape_of(kind: type) -> tuple[int, ...]:
    return INPUTS.get(kind.__name__, (3, 32, 32))


def built(kind: type, seed: int = 0, **arguments: object) -> nn.Module:
    torch.manual_seed(seed)
    return kind(**arguments)


def inputs(kind: type, count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape_of(kind), generator=torch.Generator().manual_seed(seed))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


def trained(model: nn.Module, x: Tensor, rate: float = 0.01) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    loss_of(model, x).backward()
    optimizer.step()
    optimizer.zero_grad()
    return model


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), torch.arange(len(x)) % 10)


def test_all_are_found():
    assert len(KINDS) >= 18
    assert {"LeNet5", "VGG16", "ResNet20", "ResNet18", "WRN28_8"} <= set(backbones.__all__)
    assert {"MobileNetV1", "DenseNet40", "FastGRNN", "ViTTiny"} <= set(backbones.__all__)


@MANY
def test_defaults_give_ten_logits_and_the_first_argument_says_otherwise(kind):
    x = inputs(kind, 3)
    assert built(kind)(x).shape == (3, 10)
    assert built(kind, num_classes=7)(x).shape == (3, 7)
    assert next(iter(inspect.signature(kind).parameters)) == "num_classes"


@MANY
def test_every_output_depends_on_every_parameter(kind):
    model = built(kind, num_classes=3)
    logits = model(inputs(kind, 4)).sum(0)
    names, parameters = zip(*model.named_parameters(), strict=True)
    for logit in logits:
        gradients = torch.autograd.grad(logit, parameters, retain_graph=True)
        still = [n for n, g in zip(names, gradients, strict=True) if not bool(g.any())]
        assert still == []


@MANY
def test_the_output_depends_on_every_input(kind):
    x = inputs(kind).requires_grad_()
    built(kind).eval()(x)[:, 0].sum().backward()
    assert x.grad.ne(0).double().mean() > 0.99


@MANY
def test_one_step_of_training_lowers_the_loss_and_moves_every_weight(kind):
    model, x = built(kind), inputs(kind, 8)
    before = {n: w.detach().clone() for n, w in prunable(model).items()}
    loss = loss_of(model, x).item()
    trained(model, x, rate=1e-3)
    assert loss_of(model, x).item() < loss
    assert not [n for n, w in prunable(model).items() if torch.equal(w, before[n])]


@MANY
def test_looking_changes_neither_the_input_nor_the_network_nor_random_numbers(kind, untouched):
    model, x = built(kind).eval(), inputs(kind)
    copy = x.clone()
    with untouched(model):
        first = model(x)
    assert torch.equal(x, copy)
    assert torch.equal(model(x), first)


@MANY
def test_samples_of_a_batch_do_not_mix(kind):
    model, x = built(kind).eval(), inputs(kind, 3)
    together = model(x)
    for i in range(3):
        torch.testing.assert_close(model(x[i : i + 1])[0], together[i], rtol=1e-3, atol=1e-4)


@EVERY
def test_nothing_is_decided_by_values(kind):
    # On the meta device there are none.
    with torch.device("meta"):
        assert kind()(torch.empty(2, *shape_of(kind))).shape == (2, 10)


@MANY
def test_inputs_of_other_channels_are_refused(kind):
    shape = list(shape_of(kind))
    shape[-1 if len(shape) == 2 else 0] += 1
    with pytest.raises(RuntimeError):
        built(kind)(torch.randn(2, *shape))


@each([k for k in KINDS if "in_channels" in inspect.signature(k).parameters], set())
def test_channels_may_be_chosen(kind):
    with torch.device("meta"):
        assert kind(in_channels=5)(torch.empty(2, 5, 32, 32)).shape == (2, 10)


# --- starting anew


@MANY
def test_starting_anew_draws_what_the_constructor_drew(kind, monkeypatch):
    original, states = kind.reset_parameters, []

    def noted(self: nn.Module) -> None:
        states.append(torch.get_rng_state())
        original(self)

    monkeypatch.setattr(kind, "reset_parameters", noted)
    model, fresh = built(kind, seed=3), built(kind, seed=3)
    assert same_state(model, fresh)
    trained(model, inputs(kind))
    torch.set_rng_state(states[0])
    assert original(model) is None
    assert same_state(model, fresh)


@EVERY
def test_starting_anew_changes_every_weight_in_place(kind):
    model = built(kind)
    before = {n: w.detach().clone() for n, w in prunable(model).items()}
    places = [(n, id(p), p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()]
    model.reset_parameters()
    assert [
        (n, id(p), p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()
    ] == places
    for name, weight in prunable(model).items():
        assert (weight != before[name]).double().mean() > 0.99, name


@MANY
def test_starting_anew_under_a_seed_forgets_what_was(kind):
    models = [trained(built(kind, seed), inputs(kind)) for seed in (1, 2)]
    assert not same_state(*models)
    for model in models:
        torch.manual_seed(5)
        model.reset_parameters()
    assert same_state(*models)
    models[0].reset_parameters()
    assert not same_state(*models)


# --- pruning


def touching(size: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Which taps of a kernel ever lie on the input rather than on its padding, in one dimension."""
    starts = range(-padding, size + padding - kernel + 1, stride)
    return torch.tensor([any(0 <= start + tap < size for start in starts) for tap in range(kernel)])


def taps(model: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield for each layer which of its connections touch the input, by the sizes that come in."""
    sizes: dict[str, torch.Size] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, given, n=name: sizes.update({n: given[0].shape}))
        for name, module in model.named_modules()
    ]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    for name, weight in prunable(model).items():
        conv = model.get_submodule(name.removesuffix(".weight"))
        alive = torch.ones(weight.shape, dtype=torch.bool)
        if isinstance(conv, nn.Conv2d):
            settings = zip(conv.kernel_size, conv.stride, conv.padding, strict=True)
            given = sizes[name.removesuffix(".weight")][-2:]
            rows, columns = (
                touching(size, *setting) for size, setting in zip(given, settings, strict=True)
            )
            alive &= rows[:, None] & columns
        yield name, alive


@EVERY
def test_unpruned_every_connection_is_effective_that_does_not_only_touch_padding(kind):
    model = built(kind)
    dense = Masks.dense(model)
    effective = Connectivity(model, (1, *shape_of(kind))).effective(dense)
    wanted = Masks(dict(taps(model, inputs(kind, 1))))
    assert {n: int(m.sum()) for n, m in effective.items()} == {
        n: int(m.sum()) for n, m in wanted.items()
    }
    assert effective <= wanted
    # Of the networks for 32x32, only MobileNet gets down to a single pixel.
    assert (effective.kept == dense.total) == (kind.__name__ != "MobileNetV1")


@MANY
def test_effective_connections_of_a_random_mask_are_some_of_it(kind):
    model = built(kind)
    connectivity = Connectivity(model, (1, *shape_of(kind)))
    generator = torch.Generator().manual_seed(0)
    masks = prune(model, Random(), "10x", generator=generator)
    effective = connectivity.effective(masks)
    assert effective <= masks
    assert 0 < effective.kept <= masks.kept
    assert connectivity.effective(effective) == effective
    assert connectivity.paths(masks) > 0
    assert min(connectivity.nodes(masks).values()) > 0


@MANY
@pytest.mark.parametrize("criterion", [Random(), Magnitude(), SNIP()], ids=repr)
def test_it_is_pruned_to_a_tenth(kind, criterion, untouched):
    model = built(kind)
    batches = [(inputs(kind, 4), torch.arange(4))]
    with untouched(model):
        masks = prune(model, criterion, "10x", batches=batches)
    assert masks.kept == -(-masks.total // 10)
    masks.apply(model)
    assert model(inputs(kind)).isfinite().all()


@MANY
def test_effective_pruning_keeps_as_many_effective_connections_as_asked_for(kind):
    model = built(kind)
    masks = prune(model, Random(), "4x effective", example=(1, *shape_of(kind)))
    effective = Connectivity(model, (1, *shape_of(kind))).effective(masks)
    assert effective.kept >= -(-masks.total // 4)
