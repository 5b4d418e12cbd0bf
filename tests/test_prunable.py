"""Which parameters are prunable, and under which names."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

from lit_prune import LitPruneError, prunable

CONVOLUTIONS = [
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
]


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_the_weight_of_every_convolution_and_no_bias(layer):
    assert list(prunable(nn.Sequential(layer(2, 3, 1), layer(3, 2, 1)))) == ["0.weight", "1.weight"]


def test_the_weight_of_a_linear_layer_that_is_the_model():
    model = nn.Linear(2, 3)
    assert list(prunable(model)) == ["weight"]
    assert prunable(model)["weight"] is model.weight


@pytest.mark.parametrize(
    ("sizes", "projections"),
    [
        ({}, ["in_proj_weight"]),
        ({"kdim": 3, "vdim": 5}, ["q_proj_weight", "k_proj_weight", "v_proj_weight"]),
    ],
)
def test_all_projections_of_attention(sizes, projections):
    assert list(prunable(nn.MultiheadAttention(4, 2, **sizes))) == [*projections, "out_proj.weight"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.RMSNorm(4),
        nn.PReLU(),
        nn.Embedding(5, 4),
        nn.EmbeddingBag(5, 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_no_norm_no_slope_and_no_embedding(layer):
    assert list(prunable(nn.Sequential(layer, nn.Linear(4, 4)))) == ["1.weight"]


def test_registration_order_and_names_of_the_state_dict():
    model = nn.ModuleDict({"z": nn.Linear(2, 2), "a": nn.Sequential(nn.Conv1d(2, 2, 1))})
    weights = prunable(model)
    assert list(weights) == ["z.weight", "a.0.weight"]
    assert all(model.get_parameter(name) is weight for name, weight in weights.items())


def test_a_tied_weight_once_under_its_first_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert list(prunable(model)) == ["0.weight", "1.weight"]


def test_a_layer_used_twice_once():
    layer = nn.Linear(3, 3)
    assert list(prunable(nn.Sequential(layer, nn.ReLU(), layer))) == ["0.weight"]


@pytest.mark.parametrize("embedding_first", [True, False])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_no_linear_layer_tied_to_an_embedding(kind, embedding_first):
    head, table, body = nn.Linear(4, 5), kind(5, 4), nn.Linear(4, 4)
    head.weight = table.weight
    layers = [table, body, head] if embedding_first else [head, body, table]
    assert list(prunable(nn.Sequential(*layers))) == ["1.weight"]


def three_layers():
    return nn.ModuleDict(
        {"stem": nn.Conv2d(1, 2, 3), "body": nn.Linear(2, 2), "head": nn.Linear(2, 2)}
    )


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ({}, ["stem", "body", "head"]),
        ({"include": "stem*"}, ["stem"]),
        ({"include": ["head.weight", "stem.*"]}, ["stem", "head"]),
        ({"include": ("*.weight",)}, ["stem", "body", "head"]),
        ({"exclude": "head.weight"}, ["stem", "body"]),
        ({"exclude": ["head*", "b*"]}, ["stem"]),
        ({"include": "*e?*d*", "exclude": "stem*"}, ["head"]),
        ({"include": "[bh]*", "exclude": "h*"}, ["body"]),
        ({"exclude": []}, ["stem", "body", "head"]),
    ],
)
def test_patterns_choose_names(patterns, names):
    chosen = prunable(three_layers(), **patterns)
    assert list(chosen) == [f"{name}.weight" for name in names]


@pytest.mark.parametrize("role", ["include", "exclude"])
@pytest.mark.parametrize("patterns", ["heed.weight", ["stem*", "heed.weight"]])
def test_a_pattern_that_matches_nothing_is_named_with_the_nearest(role, patterns):
    with pytest.raises(LitPruneError, match=rf"{role}.*'heed\.weight'.*'head\.weight'"):
        prunable(three_layers(), **{role: patterns})


def test_a_pattern_near_to_nothing_is_named_with_what_there_is():
    with pytest.raises(LitPruneError, match=r"'xyz\*'.*stem\.weight, body\.weight, head\.weight"):
        prunable(three_layers(), include="xyz*")


def test_patterns_tell_upper_from_lower_case():
    with pytest.raises(LitPruneError, match="HEAD"):
        prunable(three_layers(), include="HEAD*")


def weight_normed_the_old_way(layer):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "reparametrise",
    [
        lambda layer: torch_prune.random_unstructured(layer, "weight", 0.5),
        weight_normed_the_old_way,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ],
    ids=["prune", "old weight_norm", "weight_norm", "spectral_norm"],
)
def test_a_reparametrised_weight_is_an_error_unless_excluded(reparametrise):
    model = nn.Sequential(nn.Linear(3, 3), reparametrise(nn.Linear(3, 3)))
    with pytest.raises(LitPruneError, match=r"1\.weight is reparametrised"):
        prunable(model)
    assert list(prunable(model, exclude="1.weight")) == ["0.weight"]


def test_a_weight_is_prunable_again_when_the_reparametrisation_is_removed():
    layer = parametrizations.weight_norm(nn.Linear(3, 3))
    parametrize.remove_parametrizations(layer, "weight")
    assert list(prunable(layer)) == ["weight"]


@pytest.mark.parametrize("layer", [nn.LazyLinear(3), nn.LazyConv2d(3, 1)])
def test_a_lazy_layer_is_an_error_by_name(layer):
    with pytest.raises(LitPruneError, match=r"0\.weight is not initialised"):
        prunable(nn.Sequential(layer))


def test_a_lazy_layer_is_prunable_after_a_batch():
    model = nn.Sequential(nn.LazyLinear(3))
    model(torch.ones(1, 2))
    assert list(prunable(model)) == ["0.weight"]


def test_names_of_compiled_modules_are_those_of_the_plain_model():
    whole = torch.compile(three_layers())
    inside = three_layers()
    inside["body"] = torch.compile(inside["body"])
    plain = ["stem.weight", "body.weight", "head.weight"]
    assert list(prunable(whole)) == list(prunable(inside)) == plain
    assert list(prunable(whole, include="body.weight")) == ["body.weight"]
