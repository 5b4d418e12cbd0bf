"""``reinitialise``: all parameters drawn anew, in place, by the modules that know how."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lit_prune import LitPruneError
from lit_prune.weights import reinitialise


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    """Which tensors of two states are equal, by name."""
    assert one.keys() == other.keys()
    return {name: torch.equal(one[name], other[name]) for name in one}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)),
        *(nn.LayerNorm(5), nn.PReLU(), nn.Linear(5, 3)),
    )


def trained(model):
    """Every tensor moved away from where it started."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(3)
    return model


MODULES = {
    "linear": lambda: nn.Linear(4, 3),
    "convolution": lambda: nn.Conv2d(2, 3, 3, groups=1),
    "transposed convolution": lambda: nn.ConvTranspose1d(2, 3, 3),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "attention of other widths": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "LSTM": lambda: nn.LSTM(3, 4, 2),
    "embedding": lambda: nn.Embedding(5, 4),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_weights_of_every_kind_of_module_are_drawn_anew(make):
    torch.manual_seed(0)
    model = make()
    fresh = make()
    trained(model)
    before = state_of(model)
    reinitialise(model, 5)
    for name, is_same in same(before, state_of(model)).items():
        assert not is_same, name
    for name, parameter in model.named_parameters():
        other = fresh.get_parameter(name)
        # Of the distribution of a new one: no larger, and constant where that is constant.
        assert parameter.abs().max() < 3 * other.abs().max() + 1e-9
        assert parameter.std(correction=0) == 0 or other.std(correction=0) > 0


def test_norms_and_activations_start_anew():
    model = trained(network())
    reinitialise(model, 5)
    fresh = state_of(network(1))
    state = state_of(model)
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var", "5.weight", "6.weight"):
        assert torch.equal(state[name], fresh[name]), name
    assert state["1.num_batches_tracked"] == 0


def test_the_seed_decides():
    states = []
    for seed in (5, 5, 6):
        model = network()
        reinitialise(model, seed)
        states.append(state_of(model))
    assert all(same(states[0], states[1]).values())
    assert not same(states[0], states[2])["4.weight"]


def test_what_was_there_before_does_not_matter():
    one, other = network(0), trained(network(1))
    torch.rand(3)
    for model in (one, other):
        reinitialise(model, 5)
    assert all(same(state_of(one), state_of(other)).values())


def test_the_numbers_are_not_those_of_a_new_network_under_the_seed():
    torch.manual_seed(5)
    model = nn.Linear(4, 3)
    before = state_of(model)
    reinitialise(model, 5)
    assert not any(same(before, state_of(model)).values())


def test_layers_of_one_shape_get_numbers_of_their_own():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    reinitialise(model, 5)
    assert not torch.equal(model[0].weight, model[1].weight)


def test_parameters_stay_the_same_objects_and_the_generators_go_on():
    model = network()
    parameters = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    model[0].weight.requires_grad_(False)
    model.eval()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    reinitialise(model, 5)
    assert torch.equal(torch.rand(3), expected)
    assert {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()} == parameters
    assert not model[0].weight.requires_grad
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_network_has_the_last_word_about_its_layers():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.gain = nn.Linear(4, 3), nn.Parameter(torch.ones(3))
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.orthogonal_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)
            nn.init.constant_(self.gain, 0.5)

    model = nn.Sequential(Scaled(), nn.Linear(3, 2))
    trained(model)
    reinitialise(model, 5)
    weight = model[0].fc.weight
    assert torch.allclose(weight @ weight.T, torch.eye(3), atol=1e-5)
    assert not model[0].fc.bias.any()
    assert (model[0].gain == 0.5).all()


@pytest.mark.parametrize("start", ["drawn", "constant"])
def test_a_module_that_writes_to_the_data_of_its_parameters_draws_them(start):
    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(3, 4))
            self.reset_parameters()

        def reset_parameters(self):
            self.weight.data.uniform_(-1, 1) if start == "drawn" else self.weight.data.fill_(1)

    model = nn.Sequential(nn.Linear(2, 4), Old())
    before = model[1].weight.detach().clone()
    reinitialise(model, 5)
    assert torch.equal(model[1].weight, before) is (start == "constant")


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    reinitialise(model, 5)
    assert model[1].weight is model[0].weight
    assert not torch.equal(model[0].weight, before)


class Free(nn.Module):
    """A parameter that no method draws."""

    def __init__(self):
        super().__init__()
        self.fc, self.token = nn.Linear(4, 3), nn.Parameter(torch.randn(4))


@pytest.mark.parametrize(
    ("model", "name"),
    [(Free(), "token"), (nn.Sequential(nn.Linear(2, 2), Free()), "1.token")],
    ids=["at the top", "inside"],
)
def test_a_parameter_that_nobody_can_draw_is_an_error_that_names_it(model, name):
    line = rf"{name} cannot be drawn anew: no module around it has a method reset_parameters\(\)"
    with pytest.raises(LitPruneError, match=line):
        reinitialise(deepcopy(model), 5)


def test_a_compiled_network_is_named_plainly():
    with pytest.raises(LitPruneError, match=r"^token cannot be drawn anew"):
        reinitialise(torch.compile(Free(), backend="eager"), 5)
    model = torch.compile(network(), backend="eager")
    before = state_of(model)
    reinitialise(model, 5)
    assert not same(before, state_of(model))["_orig_mod.0.weight"]


def test_a_parent_that_draws_its_own_alone_does_not_speak_for_its_parts():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.gain = Free(), nn.Parameter(torch.ones(3))

        def reset_parameters(self):
            nn.init.normal_(self.gain)

    with pytest.raises(LitPruneError, match=r"part\.token cannot be drawn anew"):
        reinitialise(Around(), 5)


def test_a_reparametrised_weight_is_drawn_anew_or_named():
    model = nn.Sequential(weight_norm(nn.Linear(4, 3)))
    before = model[0].weight.detach().clone()
    try:
        reinitialise(model, 5)
    except LitPruneError as error:
        assert "parametrizations.weight" in str(error)  # noqa: PT017
    else:
        assert not torch.equal(model[0].weight, before)
