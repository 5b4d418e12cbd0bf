"""Connectivity against the brute force of :mod:`oracle`, on random networks and on large ones."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import (
    EVERY_STEP,
    Network,
    attention,
    conv,
    conv_same,
    draw_masks,
    draw_scores,
    grouped,
    mixer,
    nets,
    pad,
    pick,
    transposed,
)
from oracle import (
    Convolution,
    Flatten,
    FromTokens,
    Graph,
    Linear,
    Net,
    Overwrite,
    Pad,
    Pick,
    Unflatten,
    Upsample,
    log10,
)
from torch import nn

from lit_prune import Connectivity, Masks
from lit_prune.backbones import LeNet300100


def every(forms):
    names = [f"{form}-{step.__name__}" for form, step in forms]
    return pytest.mark.parametrize(("form", "step"), forms, ids=names)


EVERY_FORM = every([*EVERY_STEP, ("map", attention)])
# What happens inside of an attention is one path or many, as one likes.
EVERY_COUNTABLE_FORM = every(EVERY_STEP)
EVERY_RESOLUTION = pytest.mark.parametrize("resolution", ["element", "channel"])


def keeps_channels_whole(net):
    """Whether nothing tells the positions of a channel apart, so that their paths are one."""
    apart = (Overwrite, Unflatten, FromTokens, Upsample)
    return not any(isinstance(step, apart) for step in net.steps)


def example_of(net):
    return tuple(torch.ones(1, *shape) for shape in net.inputs)


def connectivity(net, resolution, model=None):
    return Connectivity(model or Network(net), example_of(net), resolution=resolution)


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def masks_of(arrays):
    return Masks(tensors(arrays))


def assert_same(found, expected):
    """The same names, shapes and values; numbers of any sign of zero."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)


def approximately(logarithm):
    return pytest.approx(logarithm, rel=1e-9, abs=1e-12)


# --- the same as brute force


@EVERY_RESOLUTION
@EVERY_FORM
@settings(max_examples=12)
@given(st.data())
def test_effective_masks_are_those_of_the_oracle(resolution, form, step, data):
    net = data.draw(nets(step, form))
    masks = data.draw(draw_masks(net.weights()))
    effective = connectivity(net, resolution).effective(masks_of(masks))
    assert list(effective) == list(Masks.dense(Network(net)))
    assert_same(effective, Graph(net, resolution).effective(masks))


@settings(max_examples=150)
@given(st.data())
def test_convolutions_of_every_shape_are_exact(data):
    shapes = [conv, conv_same, grouped, transposed]
    net = data.draw(nets(data.draw(st.sampled_from(shapes)), "map", others=[*shapes, pick, pad]))
    masks = data.draw(draw_masks(net.weights()))
    found, graph = connectivity(net, "element"), Graph(net, "element")
    assert_same(found.effective(masks_of(masks)), graph.effective(masks))
    assert found.paths(masks_of(masks)) == approximately(log10(graph.paths(masks)))


@settings(max_examples=20)
@given(st.data())
def test_a_linear_layer_over_positions_is_seen_between_elements(data):
    net = data.draw(nets(mixer, "map"))
    masks = data.draw(draw_masks(net.weights()))
    found = connectivity(net, "element")
    graph = Graph(net, "element")
    assert_same(found.effective(masks_of(masks)), graph.effective(masks))
    assert found.paths(masks_of(masks)) == approximately(log10(graph.paths(masks)))


@EVERY_RESOLUTION
@EVERY_FORM
@settings(max_examples=8)
@given(st.data())
def test_effective_scores_are_the_thresholds_of_the_oracle(resolution, form, step, data):
    net = data.draw(nets(step, form))
    scores = data.draw(draw_scores(net.weights()))
    found = connectivity(net, resolution).effective_scores(tensors(scores))
    assert_same(found, Graph(net, resolution).thresholds(scores))


@EVERY_RESOLUTION
@EVERY_COUNTABLE_FORM
@settings(max_examples=8)
@given(st.data())
def test_paths_are_those_of_the_oracle(resolution, form, step, data):
    net = data.draw(nets(step, form))
    masks = data.draw(draw_masks(net.weights()))
    found = connectivity(net, resolution).paths(masks_of(masks))
    assert isinstance(found, float)
    if resolution == "element" or keeps_channels_whole(net):
        expected = log10(Graph(net, resolution).paths(masks))
        assert found == approximately(expected)


@EVERY_RESOLUTION
@given(st.data())
def test_parameters_without_masks_are_always_there(resolution, data):
    net = data.draw(nets())
    drawn = data.draw(draw_masks(net.weights()))
    names = data.draw(st.sets(st.sampled_from(sorted(drawn)), min_size=1))
    masks = {name: drawn[name] for name in drawn if name in names}
    found, graph = connectivity(net, resolution), Graph(net, resolution)
    assert_same(found.effective(masks_of(masks)), graph.effective(masks))
    if resolution == "element" or keeps_channels_whole(net):
        expected = approximately(log10(graph.paths(masks)))
        assert found.paths(masks_of(masks)) == expected
    scores = {n: s for n, s in data.draw(draw_scores(net.weights())).items() if n in names}
    assert_same(found.effective_scores(tensors(scores)), graph.thresholds(scores))


# --- laws that need no oracle


@EVERY_RESOLUTION
@given(st.data())
def test_effective_masks_keep_less_once_and_in_order(resolution, data):
    net = data.draw(nets())
    found = connectivity(net, resolution)
    more, some = (masks_of(data.draw(draw_masks(net.weights()))) for _ in range(2))
    less = more & some
    effective = found.effective(more)
    assert effective <= more
    assert found.effective(effective) == effective
    assert found.paths(effective) == found.paths(more)
    assert found.effective(less) <= effective
    assert found.paths(less) <= found.paths(more)


@given(st.data())
def test_what_is_effective_between_elements_is_so_between_channels(data):
    net = data.draw(nets())
    masks = masks_of(data.draw(draw_masks(net.weights())))
    element, channel = (connectivity(net, r).effective(masks) for r in ("element", "channel"))
    assert element <= channel


@EVERY_RESOLUTION
@given(st.data())
def test_a_threshold_cuts_effective_scores_as_it_cuts_scores(resolution, data):
    net = data.draw(nets())
    found = connectivity(net, resolution)
    scores = tensors(data.draw(draw_scores(net.weights())))
    effective = found.effective_scores(scores)
    levels = sorted({x for s in scores.values() for x in s.unique().tolist()})
    between = [(low + high) / 2 for low, high in pairwise(levels)]
    beyond = [levels[0] - 1 - abs(levels[0]), levels[-1] + 1 + abs(levels[-1])]
    for level in [*levels, *between, *beyond]:
        masks = Masks({name: score >= level for name, score in scores.items()})
        assert found.effective(masks) == Masks({n: s >= level for n, s in effective.items()})


@EVERY_RESOLUTION
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("middle", [0.0, 1.0, -3e-5, 1e38, -1e38])
def test_scores_one_bit_apart_are_told_apart(resolution, dtype, middle):
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 4))
    draw = torch.Generator().manual_seed(0)
    up, down = torch.tensor(math.inf, dtype=dtype), torch.tensor(-math.inf, dtype=dtype)
    levels = [torch.tensor(middle, dtype=dtype)]
    for _ in range(4):
        levels = [levels[0].nextafter(down), *levels, levels[-1].nextafter(up)]
    assert len(set(levels)) == 9
    choices = torch.stack(levels)
    scores = {
        name: choices[torch.randint(9, weight.shape, generator=draw)]
        for name, weight in Masks.dense(model).items()
    }
    found = Connectivity(model, (1, 5), resolution=resolution)
    effective = found.effective_scores(scores)
    for level in choices:
        masks = Masks({name: score >= level for name, score in scores.items()})
        assert found.effective(masks) == Masks({n: s >= level for n, s in effective.items()})
    assert {x for s in effective.values() for x in s.unique().tolist()} <= set(choices.tolist())


@EVERY_RESOLUTION
@given(st.data())
def test_order_is_all_that_effective_scores_look_at(resolution, data):
    net = data.draw(nets())
    found = connectivity(net, resolution)
    scores = tensors(data.draw(draw_scores(net.weights())))
    plain = found.effective_scores(scores)
    for name, effective in found.effective_scores({n: bent(s) for n, s in scores.items()}).items():
        assert torch.equal(effective, bent(plain[name]))


def bent(scores):
    """Other numbers in the same order."""
    return scores.double() + 7 * scores.double().sign()


# --- the model and the example


def more_traces(model, inputs):
    """What the shared witness does not look at."""
    hooks = [
        (name, key, list(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "hooks" in key and isinstance(value, dict)
    ]
    keys = [(name, list(vars(module))) for name, module in model.named_modules()]
    settings = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    forwards = [(n, "forward" in vars(m), type(m)) for n, m in model.named_modules()]
    return hooks, keys, settings, forwards, [(x.clone(), x._version, x.grad) for x in inputs]


@EVERY_RESOLUTION
@pytest.mark.parametrize("training", [True, False])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_model_and_the_example_are_untouched(resolution, training, untouched, data):
    net = data.draw(nets())
    model = Network(net).train(training)
    for parameter in list(model.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    next(model.parameters()).requires_grad_(False)
    inputs = tuple(torch.randn(1, *shape) for shape in net.inputs)
    masks = masks_of(data.draw(draw_masks(net.weights())))
    scores = tensors(data.draw(draw_scores(net.weights())))
    aside = {n: m.clone() for n, m in masks.items()}, {n: s.clone() for n, s in scores.items()}
    before = repr(more_traces(model, inputs))
    with untouched(model):
        found = Connectivity(model, inputs, resolution=resolution)
        found.effective(masks)
        found.effective_scores(scores)
        found.paths(masks)
        found.nodes(masks)
    assert repr(more_traces(model, inputs)) == before
    assert all(torch.equal(masks[n], m) for n, m in aside[0].items())
    assert all(torch.equal(scores[n], s) for n, s in aside[1].items())


@EVERY_RESOLUTION
@settings(max_examples=20)
@given(st.data())
def test_neither_values_nor_modes_nor_batches_matter(resolution, data):
    net = data.draw(nets())
    masks = masks_of(data.draw(draw_masks(net.weights())))
    model = Network(net)
    plain = connectivity(net, resolution, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    inputs = tuple(torch.full((1, *shape), math.nan) for shape in net.inputs)
    odd = Connectivity(model.eval(), inputs, resolution=resolution)
    assert odd.effective(masks) == plain.effective(masks)
    assert odd.paths(masks) == plain.paths(masks)
    assert odd.nodes(masks) == plain.nodes(masks)
    if len(net.inputs) == 1:
        (shape,) = net.inputs
        for example in [(2, *shape), torch.zeros(1, *shape)]:
            other = Connectivity(model, example, resolution=resolution)
            assert other.effective(masks) == plain.effective(masks)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.left(x), {"right": [self.right(x)]}


@EVERY_RESOLUTION
def test_paths_may_end_at_any_of_many_outputs(resolution):
    model = TwoHeads()
    none = {n: torch.zeros_like(m) for n, m in Masks.dense(model).items()}
    none["stem.weight"][1, 2] = none["stem.weight"][3, 0] = True
    none["left.weight"][0, 1] = none["right.weight"][1, 3] = none["right.weight"][1, 2] = True
    masks = Masks(none)
    found = Connectivity(model, (1, 3), resolution=resolution)
    expected = {n: m.clone() for n, m in none.items()}
    expected["right.weight"][1, 2] = False
    assert found.effective(masks) == Masks(expected)
    assert found.paths(masks) == pytest.approx(math.log10(2))


# --- units


@EVERY_RESOLUTION
@EVERY_COUNTABLE_FORM
@settings(max_examples=5)
@given(st.data())
def test_nodes_are_the_channels_that_enter_a_layer_on_a_path(resolution, form, step, data):
    net = data.draw(nets(step, form))
    masks = data.draw(draw_masks(net.weights()))
    found = connectivity(net, resolution).nodes(masks_of(masks))
    expected = Graph(net, resolution).nodes(masks)
    if any(isinstance(step, Flatten) for step in net.steps):
        # Every place of a flattened input is a unit by itself; see below.
        expected["input"] = found["input"]
    assert found == expected


def test_every_place_of_a_flattened_input_is_a_unit():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    masks = Masks({"1.weight": torch.arange(24).view(2, 12) % 5 == 0})
    found = Connectivity(model, (1, 3, 2, 2)).nodes(masks)
    assert found == {"input": 5, "1.weight": 5, "output": 2}


def test_the_dense_lenet_has_all_its_paths_and_units():
    model = LeNet300100()
    for resolution in ("element", "channel"):
        found = Connectivity(model, (1, 784), resolution=resolution)
        assert 10 ** found.paths(Masks.dense(model)) == pytest.approx(235_200_000, rel=1e-9)
        assert found.nodes(Masks.dense(model)) == {
            "input": 784,
            "fc1.weight": 784,
            "fc2.weight": 300,
            "fc3.weight": 100,
            "output": 10,
        }
        assert found.effective(Masks.dense(model)) == Masks.dense(model)


def test_a_unit_counts_where_it_lives_not_where_its_layer_is_used_again():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(2, 1))
    masks = {"0.weight": torch.tensor([[False, False], [True, True]]), "3.weight": torch.ones(1, 2)}
    found = Connectivity(model, (1, 2)).nodes(Masks({n: m.bool() for n, m in masks.items()}))
    # Both inputs reach the second unit, and this one alone reaches itself.
    assert found == {"input": 2, "0.weight": 2 + 1, "3.weight": 1, "output": 1}


# --- places


class Rearranged(nn.Module):
    def __init__(self, change, layer):
        super().__init__()
        self.change, self.layer = change, layer

    def forward(self, x):
        return self.layer(self.change(x))


CHANGES = {
    "nothing": lambda x: x,
    "relu": torch.relu,
    "flip": lambda x: x.flip(2),
    "flip channels": lambda x: x.flip(1),
    "list of places": lambda x: x[:, :, [0, 1, 1]],
    "list of channels": lambda x: x[:, [1, 0]],
    "roll": lambda x: x.roll(1, 2),
    "pool": lambda x: F.avg_pool1d(x, 2, 1),
    "zeros": lambda x: F.pad(x, (1, 1)),
    "circular": lambda x: F.pad(x, (1, 1), mode="circular"),
    "reflect": lambda x: F.pad(x, (1, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 1), mode="replicate"),
    "upsample": lambda x: F.interpolate(x, scale_factor=2),
    "slice": lambda x: x[:, :, 1:],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("behind", [False, True], ids=["input", "hidden"])
def test_places_of_a_channel_are_one_however_they_are_arranged(change, behind):
    first = nn.Conv1d(2, 2, 1, groups=2) if behind else nn.Identity()
    model = nn.Sequential(first, Rearranged(change, nn.Conv1d(2, 1, 3, padding=1)))
    masks = Masks.dense(model)
    found = Connectivity(model, (1, 2, 4), resolution="channel")
    assert found.paths(masks) == approximately(math.log10(2 * 3))
    assert set(found.nodes(masks).values()) == {2, 1}
    assert found.nodes(masks)["input"] == 2


@pytest.mark.parametrize(("stride", "dilation", "extra"), [(1, 2, 1), (1, 3, 2), (2, 3, 2)])
def test_an_output_padding_of_a_stride_and_more_is_exact(stride, dilation, extra):
    up = {"stride": (stride,), "dilation": (dilation,), "extra": (extra,), "transposed": True}
    plain = Convolution((0,), "conv", "conv", 2, (1,), (1,), (0,), (1,))
    half = Pick((1,), 1, (1, 2, 3, 4), "slice")
    moved = Pad((2,), 1, 0)  # the first place of every channel is empty
    mixed = replace(plain, sources=(3,), layer="up", owner="up", kernel=(2,), **up)
    steps = (plain, half, moved, mixed, Flatten((4,), "flatten"))
    net = Net(((2, 5),), (*steps, Linear((5,), "head", "head.weight", 3)))
    generator = np.random.default_rng(stride + extra)
    graph = Graph(net, "element")
    for density in (0.3, 0.5, 0.7, 0.9):
        masks = {n: generator.random(shape) < density for n, shape in net.weights().items()}
        found = connectivity(net, "element")
        assert_same(found.effective(masks_of(masks)), graph.effective(masks))
        assert found.paths(masks_of(masks)) == approximately(log10(graph.paths(masks)))


# --- depth: products of floats would underflow or overflow


DEPTH, WIDTH = 200, 64


def deep(density, seed):
    """A deep chain and masks; the first unit of every layer is linked, so that there is a path."""
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH)]
    model = nn.Sequential(*(layer for pair in layers for layer in (pair, nn.ReLU())))
    generator = np.random.default_rng(seed)
    masks = {name: generator.random((WIDTH, WIDTH)) < density for name in Masks.dense(model)}
    for mask in masks.values():
        mask[0, 0] = True
    return model, masks


def chain_reference(masks):
    """Reachability and the number of paths of a chain of matrices."""
    matrices = list(masks.values())
    reached, needed = [np.ones(WIDTH, bool)], [np.ones(WIDTH, bool)]
    for matrix in matrices:
        reached.append((matrix & reached[-1]).any(1))
    for matrix in reversed(matrices):
        needed.append((matrix & needed[-1][:, None]).any(0))
    ends = zip(masks, matrices, reached[:-1], reversed(needed[:-1]), strict=True)
    effective = {name: m & tail & head[:, None] for name, m, tail, head in ends}
    ways = np.full(WIDTH, 1, object)
    for matrix in matrices:
        ways = matrix.astype(int).astype(object) @ ways
    return effective, sum(ways.tolist())


@EVERY_RESOLUTION
@pytest.mark.parametrize("density", [0.0, 1 / 64, 3 / 64, 0.5, 1.0])
def test_a_deep_chain_is_exact(resolution, density):
    model, masks = deep(density, 5)
    effective, paths = chain_reference(masks)
    found = Connectivity(model, (1, WIDTH), resolution=resolution)
    assert_same(found.effective(masks_of(masks)), effective)
    assert found.paths(masks_of(masks)) == approximately(log10(paths))
    masks["200.weight"][:] = False
    assert found.effective(masks_of(masks)).kept == 0
    assert found.paths(masks_of(masks)) == -math.inf


@EVERY_RESOLUTION
def test_effective_scores_of_a_deep_chain_cut_as_masks_do(resolution):
    model, masks = deep(1.0, 6)
    generator = np.random.default_rng(7)
    scores = {n: generator.normal(size=m.shape).astype(np.float32) for n, m in masks.items()}
    found = Connectivity(model, (1, WIDTH), resolution=resolution)
    effective = found.effective_scores(tensors(scores))
    for level in (-9.0, 0.0, 1.2, 1.4, 1.5, 1.6, 1.65, 1.7, 1.75, 1.8, 9.0):
        expected, _ = chain_reference({name: score >= level for name, score in scores.items()})
        assert_same({name: score >= level for name, score in effective.items()}, expected)
