"""The oracle itself: against what PyTorch computes, against enumeration, against closed forms."""

import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import EVERY_STEP, Network, attention, draw_masks, draw_scores, mixer, nets, pool
from oracle import (
    AdaptivePool,
    Attend,
    Convolution,
    Elementwise,
    Flatten,
    Graph,
    Linear,
    Merge,
    Net,
    Pool,
    Reduce,
    Softmax,
    ToTokens,
    Upsample,
    log10,
)
from torch import nn

from lit_prune import Masks

FORMS = [*EVERY_STEP, ("map", mixer)]
EVERY_FORM = pytest.mark.parametrize(
    ("form", "step"), FORMS, ids=[f"{form}-{step.__name__}" for form, step in FORMS]
)


def positive(net):
    """The same graph made of sums and means alone: no two paths cancel or switch off another."""
    kinds = {Elementwise: "clone", Merge: "add", Reduce: "sum", Pool: "avg", AdaptivePool: "avg"}
    plain = (Elementwise(s.sources, "clone") if type(s) is Softmax else s for s in net.steps)
    steps = [
        replace(s, kind=kinds[type(s)], **({"layer": ""} if type(s) is Elementwise else {}))
        if type(s) in kinds
        else s
        for s in plain
    ]
    # The mean of a dilated pool is no operation of PyTorch.
    dilated = any(type(s) is Pool and max(s.dilation) > 1 for s in steps)
    return None if dilated else replace(net, steps=tuple(steps))


@EVERY_FORM
@settings(max_examples=25)
@given(st.data())
def test_a_positive_network_computes_what_the_oracle_says(form, step, data):
    net = positive(data.draw(nets(step, form)))
    if net is None:
        return
    model, masks = Network(net).double(), data.draw(draw_masks(net.weights()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, mask in masks.items():
            model.get_parameter(name).copy_(torch.from_numpy(mask))
    total = model(*(torch.ones(1, *shape).double() for shape in net.inputs)).sum()
    total.backward()
    graph = Graph(net, "element")
    effective = graph.effective(masks)
    for name, mask in masks.items():
        grad = model.get_parameter(name).grad
        there = np.zeros_like(mask) if grad is None else (grad > 0).numpy()
        np.testing.assert_array_equal(effective[name], mask & there)
    if not any(isinstance(s, Pool | AdaptivePool) for s in net.steps):
        assert graph.paths(masks) == total.item()


@given(st.data())
def test_an_output_of_a_pool_shows_the_elements_of_its_window(data):
    drawn = data.draw(nets(pool, "map", others=[pool]))
    net = replace(drawn, steps=tuple(s for s in drawn.steps if isinstance(s, Pool)))
    net = replace(net, inputs=net.inputs[:1], steps=(replace(net.steps[0], sources=(0,)),))
    shape = net.inputs[0]
    lit = torch.eye(math.prod(shape)).reshape(-1, *shape)  # one image for every element
    shown = (Network(net)(lit) > 0).flatten(1).nonzero().tolist()
    many = len(lit)
    edges = [(tail, head - many) for tail, head, _ in Graph(net, "element").edges]
    assert sorted(edges) == sorted(map(tuple, shown))


def test_attention_depends_on_the_rows_of_the_heads_that_are_kept():
    torch.manual_seed(0)
    layer, width = "attention0", 4
    rows = (Linear((1,), "", f"{layer}.in_proj_weight", width, r * width, 12) for r in range(3))
    steps = (
        ToTokens((0,)),
        *rows,
        Attend((2, 3, 4), layer, 2, "fused"),
        Linear((5,), "", f"{layer}.out_proj.weight", width),
    )
    net = Net(((width, 3),), steps)
    for unit in range(width):
        masks = dense(net)
        masks[f"{layer}.out_proj.weight"][:, np.arange(width) != unit] = False
        model = Network(net).double()
        with torch.no_grad():
            model.attention0.out_proj.weight *= torch.from_numpy(masks[f"{layer}.out_proj.weight"])
        (model(torch.randn(1, width, 3).double()) * torch.randn(3, width)).sum().backward()
        effective = Graph(net, "element").effective(masks)[f"{layer}.in_proj_weight"]
        assert np.array_equal(effective, (model.attention0.in_proj_weight.grad != 0).numpy())
        assert effective.sum() == (1 + 2 + 2) * width
    values = dense(net)
    values[f"{layer}.in_proj_weight"][: 2 * width] = False
    assert len(set(Graph(net, "element").edges)) == len(Graph(net, "element").edges)
    assert Graph(net, "element").paths(values) == (3 * width) * width * (3 * width)


@pytest.mark.parametrize("step", [step for _, step in [*FORMS, ("map", attention)]])
@settings(max_examples=15)
@given(st.data())
def test_shapes_are_those_of_the_module_and_it_can_be_trained(step, data):
    net = data.draw(nets(step, next(form for form, s in [*FORMS, ("map", attention)] if s is step)))
    model = Network(net).eval()
    inputs = [torch.randn(2, *shape) for shape in net.inputs]
    before = [x.clone() for x in inputs]
    output = model(*inputs)
    output.sum().backward()
    assert tuple(output.shape[1:]) == net.values()[-1].shape
    assert {n: tuple(m.shape) for n, m in Masks.dense(model).items()} == net.weights()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("resolution", ["element", "channel"])
@given(st.data())
def test_the_sweep_finds_what_enumeration_finds(resolution, data):
    graph = Graph(data.draw(nets()), resolution)
    masks, scores = (data.draw(draw(graph.shapes)) for draw in (draw_masks, draw_scores))
    if graph.paths({n: np.ones_like(m) for n, m in masks.items()}) > 2000:
        return
    whole = nx.MultiDiGraph()
    whole.add_edges_from((tail, head, {"label": label}) for tail, head, label in graph.edges)
    whole.add_edges_from(("start", unit, {"label": None}) for unit in graph.inputs)
    whole.add_edges_from((unit, "end", {"label": None}) for unit in graph.outputs)
    count = 0
    effective = {name: np.zeros_like(mask) for name, mask in masks.items()}
    best = {name: np.full(score.shape, -np.inf, score.dtype) for name, score in scores.items()}
    for path in nx.all_simple_edge_paths(whole, "start", "end"):
        labels = [whole.edges[edge]["label"] for edge in path]
        labels = [label for label in labels if label is not None]
        kept = all(masks[name][index] for name, index in labels)
        weakest = min((scores[name][index] for name, index in labels), default=-np.inf)
        count += kept
        for name, index in labels:
            effective[name][index] |= kept
            best[name][index] = max(best[name][index], weakest)
    assert graph.paths(masks) == count
    for name in masks:
        np.testing.assert_array_equal(graph.effective(masks)[name], effective[name])
        np.testing.assert_array_equal(graph.thresholds(scores)[name], best[name])


# --- closed forms


def convolution(source, layer, channels, kernel, padding):
    dims = len(kernel)
    return Convolution((source,), layer, layer, channels, kernel, (1,) * dims, padding, (1,) * dims)


def dense(net):
    return {name: np.ones(shape, bool) for name, shape in net.weights().items()}


def test_paths_of_a_dense_chain_are_the_product_of_its_widths():
    widths = (7, 5, 3, 4)
    steps = [Linear((i,), f"fc{i}", f"fc{i}.weight", n) for i, n in enumerate(widths[1:])]
    net = Net(((widths[0],),), tuple(steps))
    for resolution in ("element", "channel"):
        graph = Graph(net, resolution)
        assert graph.paths(dense(net)) == math.prod(widths)
        assert graph.nodes(dense(net)) == {
            "fc0.weight": 7,
            "fc1.weight": 5,
            "fc2.weight": 3,
            "input": 7,
            "output": 4,
        }


def test_paths_of_a_dense_convolution():
    net = Net(((2, 4, 5),), (convolution(0, "conv", 3, (3, 3), (0, 0)),))
    assert Graph(net, "element").paths(dense(net)) == 3 * (2 * 3) * 2 * 9
    assert Graph(net, "channel").paths(dense(net)) == 3 * 2 * 9
    assert Graph(net, "channel").nodes(dense(net)) == {"conv.weight": 2, "input": 2, "output": 3}


def test_taps_on_padding_alone_are_dead_between_elements_and_alive_between_channels():
    net = Net(((1, 1, 1),), (convolution(0, "conv", 1, (3, 3), (1, 1)),))
    alive = Graph(net, "element").effective(dense(net))["conv.weight"][0, 0]
    assert alive.tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert Graph(net, "channel").effective(dense(net))["conv.weight"].all()


def test_flattened_channels_feed_every_place_of_theirs():
    steps = (
        convolution(0, "conv", 2, (1,), (0,)),
        Upsample((1,), 2),
        Flatten((2,), "flatten"),
        Linear((3,), "head", "head.weight", 1),
    )
    net = Net(((1, 2),), steps)
    only = dense(net) | {"head.weight": np.eye(1, 8, 5, dtype=bool)}  # channel 1, place 1
    for resolution, paths in [("element", 1), ("channel", 1)]:
        graph = Graph(net, resolution)
        assert graph.paths(only) == paths
        assert graph.effective(only)["conv.weight"].ravel().tolist() == [False, True]
    assert Graph(net, "element").paths(dense(net)) == 8
    assert Graph(net, "channel").paths(dense(net)) == 8
    assert Graph(net, "channel").nodes(dense(net))["head.weight"] == 8


@given(st.data())
def test_both_resolutions_are_one_where_nothing_has_a_place(data):
    net = data.draw(nets(form="flat"))
    element, channel = Graph(net, "element"), Graph(net, "channel")
    assert sorted(map(repr, element.edges)) == sorted(map(repr, channel.edges))


def test_no_path_has_the_logarithm_minus_infinity():
    assert log10(0) == -math.inf
    assert log10(10**400) == pytest.approx(400, rel=1e-12)


def test_a_transposed_convolution_is_the_transpose_of_the_convolution():
    forwards = nn.Conv1d(1, 1, 3, 2, 1)
    there = convolution(0, "conv", 1, (3,), (1,))
    there = Net(((1, 5),), (replace(there, stride=(2,)),))
    back = replace(there.steps[0], transposed=True, extra=(0,))
    back = Net(((1, 3),), (back,))
    size = forwards(torch.zeros(1, 1, 5)).shape[-1]
    assert there.values()[1].shape == (1, size)
    turn = {(head - 5, tail, label) for tail, head, label in Graph(there, "element").edges}
    assert turn == {(tail, head - 3, label) for tail, head, label in Graph(back, "element").edges}
