"""SynFlow against closed forms, explicit kernels, enumerated paths and a wider type of number."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_prune import LitPruneError, Masks, Probe, prune
from lit_prune.criteria import SynFlow
from lit_prune.errors import NonFiniteScores


def synflow(model, example, masks=None):
    scores = SynFlow()(Probe(model, masks or Masks.dense(model), example=example))
    return {name: score.double().numpy() for name, score in scores.items()}


def some_masks(model, share=0.6):
    draw = torch.Generator().manual_seed(2)
    dense = Masks.dense(model)
    return Masks({n: torch.rand(mask.shape, generator=draw) < share for n, mask in dense.items()})


def weights_of(model, masks=None):
    """|W| of every prunable layer, zero where pruned, in the widest type that numpy has."""
    masks = masks or Masks.dense(model)
    return {
        name: abs(weight.detach().double().numpy().astype(np.longdouble)) * masks[name].numpy()
        for name, weight in masks.parameters(model).items()
    }


def assert_same(scores, expected, rtol=2e-5):
    assert list(scores) == list(expected)
    for name, score in scores.items():
        assert expected[name].max() > 0
        np.testing.assert_allclose(score, expected[name].astype(np.float64), rtol, err_msg=name)


# --- chains of linear layers: R = 1^T |W_L| ... |W_1| 1 in closed form


def chain_reference(weights):
    """score(w_ij) = b_i |w_ij| f_j, with f the flow into a layer and b the flow out of it."""
    flows = [np.ones(next(iter(weights.values())).shape[1], np.longdouble)]
    for weight in weights.values():
        flows.append(weight @ flows[-1])
    back, scores = np.ones(len(flows[-1]), np.longdouble), {}
    for (name, weight), flow in zip(reversed(weights.items()), reversed(flows[:-1]), strict=True):
        scores[name] = back[:, None] * weight * flow
        back = back @ weight
    return dict(reversed(scores.items()))


def mlp(*between, widths=(6, 8, 5, 4), bias=True):
    """An MLP with fresh modules of the kinds ``between`` behind every layer but the last."""
    torch.manual_seed(0)
    layers = []
    for before, after in pairwise(widths):
        layers += [units(before, after, bias), *(kind(after) for kind in between)]
    return nn.Sequential(*layers[: -len(between) or None])


def units(before, after, bias=True):
    """A linear layer whose flows lie where activations are flat, steep, bent and saturated."""
    layer = nn.Linear(before, after, bias=bias)
    with torch.no_grad():
        layer.weight *= torch.logspace(-1.5, 1, after)[:, None]
    return layer


def relu(_):
    return nn.ReLU()


def odd_norm(width):
    """A batch norm whose statistics and parameters would change every flow."""
    norm = nn.BatchNorm1d(width)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.uniform_(0.5, 3)
    return norm


@pytest.mark.parametrize(
    "between", [(), (relu,), (odd_norm, relu)], ids=["linear", "relu", "norm and relu"]
)
@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_is_scored_by_the_closed_form(between, bias):
    model = mlp(*between, bias=bias)
    assert_same(synflow(model, (1, 6)), chain_reference(weights_of(model)))


def test_pruned_weights_let_nothing_through():
    model = mlp(odd_norm, relu)
    masks = some_masks(model)
    scores = synflow(model, (1, 6), masks)
    assert_same(scores, chain_reference(weights_of(model, masks)))
    assert all(not scores[name][~mask.numpy()].any() for name, mask in masks.items())


def test_layers_that_are_not_masked_let_everything_through():
    model = mlp(relu)
    masks = Masks({"2.weight": some_masks(model)["2.weight"]})
    whole = Masks({**Masks.dense(model), **masks})
    expected = chain_reference(weights_of(model, whole))
    assert_same(synflow(model, (1, 6), masks), {"2.weight": expected["2.weight"]})


@pytest.mark.parametrize("masked", [False, True])
def test_every_layer_of_a_chain_carries_the_whole_flow(masked):
    model = mlp(odd_norm, relu, widths=(9, 12, 12, 7, 3))
    masks = some_masks(model) if masked else Masks.dense(model)
    weights = list(weights_of(model, masks).values())
    flow = float((np.linalg.multi_dot(weights[::-1]) @ np.ones(9)).sum())
    for score in synflow(model, (1, 9), masks).values():
        assert score.sum() == pytest.approx(flow, rel=1e-5)
        assert (score >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_of_model_is_scored(dtype):
    model = mlp(odd_norm, relu).to(dtype)
    rtol = 1e-12 if dtype == torch.float64 else 2e-5
    example = torch.zeros(1, 6, dtype=dtype)  # only its shape matters
    assert_same(synflow(model, example), chain_reference(weights_of(model)), rtol)
    assert_same(synflow(model, (1, 6)), chain_reference(weights_of(model)), rtol)


# --- convolutions: every product of kernel and place by itself


def conv_forward(kernel, flow, stride, padding):
    """Yield (out channel, row, column), kernel index and input place of every product."""
    _, height, width = flow
    many_out, many_in, kernel_rows, kernel_columns = kernel.shape
    for row in range((height + 2 * padding - kernel_rows) // stride + 1):
        for column in range((width + 2 * padding - kernel_columns) // stride + 1):
            for at in np.ndindex(many_out, many_in, kernel_rows, kernel_columns):
                y, x = row * stride + at[2] - padding, column * stride + at[3] - padding
                if 0 <= y < height and 0 <= x < width:
                    yield (at[0], row, column), at, (at[1], y, x)


def conv_net_reference(weights, size, layers):
    """Convolutions of (stride, padding), average pooling by 2 where marked, then one linear."""
    kernels, head = list(weights.values())[:-1], list(weights.values())[-1]
    flow, tape = np.ones(size), []
    for kernel, (stride, padding, pools) in zip(kernels, layers, strict=True):
        products = list(conv_forward(kernel, flow.shape, stride, padding))
        tape.append((flow, kernel, products, pools))
        flow = np.zeros([1 + max(out[i] for out, _, _ in products) for i in range(3)])
        for out, at, place in products:
            flow[out] += kernel[at] * tape[-1][0][place]
        if pools:
            channels, height, width = flow.shape
            flow = flow.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))
    back = head.sum(0)
    scores = [np.outer(np.ones(len(head)), flow.ravel()) * head]
    back = back.reshape(flow.shape)
    for inflow, kernel, products, pools in reversed(tape):
        if pools:
            back = back.repeat(2, 1).repeat(2, 2) / 4
        score, further = np.zeros(kernel.shape), np.zeros(inflow.shape)
        for out, at, place in products:
            score[at] += back[out] * kernel[at] * inflow[place]
            further[place] += back[out] * kernel[at]
        scores.insert(0, score)
        back = further
    return dict(zip(weights, scores, strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_a_conv_net_is_scored_product_by_product(masked):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.running_var.uniform_(0.5, 3)
    norm.running_mean.uniform_(0.5, 3)
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(3, 4, (2, 3), stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        nn.Linear(24, 5),
    )
    masks = some_masks(model) if masked else Masks.dense(model)
    weights = weights_of(model, masks)
    expected = conv_net_reference(weights, (2, 8, 6), [(1, 1, True), (2, 1, False)])
    assert_same(synflow(model, (1, 2, 8, 6), masks), expected)


def test_max_pooling_lets_the_largest_flow_through():
    model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.MaxPool1d(2), nn.Conv1d(1, 1, 2))
    expected = 2 * abs(float(model[0].weight.detach())) * model[2].weight.detach().abs() / 2
    scores = synflow(model, (1, 1, 4))
    np.testing.assert_allclose(scores["2.weight"], expected, 1e-5)


# --- other shapes of networks


class Skips(nn.Module):
    """Identity and parallel shortcuts, in three units a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))
        self.norm = odd_norm(3)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)) + x)
        x = torch.relu(self.b(x) + self.c(x))
        return self.d(x)


def enumerated(edges, sources, sinks):
    """Sum the products of the weights along every path, for every edge on it."""
    scores, followers = {}, {}
    for start, end, weight, key in edges:
        followers.setdefault(start, []).append((end, weight, key))

    def walk(unit, product, keys):
        if unit in sinks:
            for key in keys:
                scores[key] = scores.get(key, 0) + product
        for end, weight, key in followers.get(unit, ()):
            walk(end, product * weight, [*keys, key])

    for source in sources:
        walk(source, 1.0, [])
    return scores


@pytest.mark.parametrize("masked", [False, True])
def test_a_network_with_shortcuts_is_scored_path_by_path(masked):
    torch.manual_seed(0)
    model = Skips()
    masks = some_masks(model) if masked else Masks.dense(model)
    weights = weights_of(model, masks)
    ends = {"a": ("x", "h"), "b": ("h", "k"), "c": ("h", "k"), "d": ("k", "y")}
    edges = [(f"x{i}", f"h{i}", 1.0, "identity") for i in range(3)]
    for name, (start, end) in ends.items():
        for (i, j), weight in np.ndenumerate(weights[f"{name}.weight"]):
            edges.append((f"{start}{j}", f"{end}{i}", weight, (f"{name}.weight", i, j)))
    found = enumerated(edges, ["x0", "x1", "x2"], {"y0", "y1", "y2"})
    expected = {
        name: np.array([[found[name, i, j] for j in range(3)] for i in range(3)])
        for name in weights
    }
    assert_same(synflow(model, (1, 3), masks), expected)


class SumOfWeights(nn.Module):
    """Two weights that share one gradient."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return F.linear(x, self.a.weight.abs() + self.b.weight.abs())


def test_weights_that_share_a_gradient_are_scored_apart():
    model = SumOfWeights()
    assert_same(synflow(model, (1, 3)), weights_of(model))  # the gradient is one everywhere


class TwoInputsTwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x, y):
        return {"sum": self.a(x), "more": [self.b(y), None, torch.tensor([3])]}


def test_many_inputs_and_outputs_are_summed():
    model = TwoInputsTwoOutputs()
    example = (torch.randn(2, 3), torch.randn(2, 4))
    assert_same(synflow(model, example), weights_of(model))


def test_an_example_comes_from_the_batches_where_none_is_given():
    model = mlp(relu)
    batches = [(torch.randn(5, 6), torch.zeros(5))]
    scores = SynFlow()(Probe(model, Masks.dense(model), batches=batches))
    expected = synflow(model, (1, 6))
    assert all(np.array_equal(scores[name].double(), expected[name]) for name in expected)


@pytest.mark.parametrize(
    "example", [(1, 6), (8, 6), torch.Size((2, 6)), torch.randn(4, 6), (torch.randn(4, 6),)]
)
def test_only_the_shape_of_the_example_matters_and_not_its_batch(example):
    model = mlp(relu)
    assert_same(synflow(model, example), chain_reference(weights_of(model)))


# --- norms and activations are the identity


# Those that are the identity on a flow, which is positive, prove nothing: ReLU, ELU and the like.
ACTIVATIONS = [
    *(nn.ReLU6, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.LogSigmoid),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign, nn.Tanhshrink),
    *(nn.Softshrink, nn.Hardshrink),
]
NORMS = {
    "BatchNorm1d": odd_norm,
    "LayerNorm": nn.LayerNorm,
    "RMSNorm": nn.RMSNorm,
    "GroupNorm": lambda width: nn.GroupNorm(1, width),
    "Dropout": lambda width: nn.Dropout(0.5),
    "LogSoftmax": lambda width: nn.LogSoftmax(1),
    "inplace SiLU": lambda width: nn.SiLU(inplace=True),
}
BYPASSED = {kind.__name__: lambda width, kind=kind: kind() for kind in ACTIVATIONS} | NORMS


@pytest.mark.parametrize("kind", BYPASSED.values(), ids=BYPASSED)
def test_a_module_that_is_bypassed_changes_no_score(kind):
    model = mlp(kind)
    assert_same(synflow(model, (1, 6)), chain_reference(weights_of(model)))


FUNCTIONS = {
    "torch.tanh": torch.tanh,
    "torch.tanh_": torch.tanh_,
    "F.tanh": F.tanh,
    "x.tanh": lambda x: x.tanh(),
    "x.tanh_": lambda x: x.tanh_(),
    "torch.sigmoid": torch.sigmoid,
    "F.sigmoid": F.sigmoid,
    "x.sigmoid": lambda x: x.sigmoid(),
    "x.sigmoid_": lambda x: x.sigmoid_(),
    "F.gelu": F.gelu,
    "F.silu": F.silu,
    "torch.selu_": torch.selu_,
    "F.hardtanh_": F.hardtanh_,
    "F.log_softmax": lambda x: F.log_softmax(x, 1),
    "torch.log_softmax": lambda x: torch.log_softmax(x, 1),
    "x.log_softmax": lambda x: x.log_softmax(1),
    "F.silu(input=)": lambda x: F.silu(input=x),
    "F.layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "torch.layer_norm": lambda x: torch.layer_norm(x, x.shape[1:]),
}


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = units(6, 5), units(5, 4), function

    def forward(self, x):
        return self.function(self.b(self.function(self.a(x))))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_that_is_bypassed_changes_no_score(function):
    torch.manual_seed(0)
    model = Functional(function)
    assert_same(synflow(model, (1, 6)), chain_reference(weights_of(model)))


# --- the range of numbers


@pytest.mark.parametrize("log10", [-200, -100, -30, 0, 30, 60, 200])
def test_a_hundred_layers_neither_overflow_nor_vanish(log10):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(100)))
    flow = next(iter(chain_reference(weights_of(model)).values())).sum()
    with torch.no_grad():
        for layer in model:
            layer.weight *= float((np.longdouble(10) ** log10 / flow) ** np.longdouble(0.01))
    expected = chain_reference(weights_of(model))
    assert np.log10(next(iter(expected.values())).sum()) == pytest.approx(log10, abs=0.1)
    assert_same(synflow(model, (1, 20)), expected, rtol=5e-5)


def test_a_hundred_layers_of_common_width_are_scored():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(100)))
    for layer in model:
        nn.init.kaiming_normal_(layer.weight)
    scores = synflow(model, (1, 256))
    sums = np.array([score.sum() for score in scores.values()])
    assert np.isfinite(sums).all()
    assert sums[0] > 1e38  # float32 would have overflowed
    np.testing.assert_allclose(sums, sums[0], 1e-10)
    assert prune(model, SynFlow(), "90%", rounds=2, example=(1, 256)).compression >= 9.9


def test_a_flow_beyond_float64_is_an_error():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(12)))
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(1e30)
    with pytest.raises(LitPruneError, match="overflows float64"):
        synflow(model, (1, 3))


def wire(*weights, dtype=torch.float32):
    """A chain of single units."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False, dtype=dtype) for _ in weights))
    with torch.no_grad():
        for layer, weight in zip(model, weights, strict=True):
            layer.weight.fill_(weight)
    return model


@pytest.mark.parametrize(
    "weights",
    [
        (1e-20, 1e-10, 1e25, 1e25),  # backwards it overflows float32 on the way
        (1e25, 1e25, 1e-20, 1e-10),  # forwards
        (1e-25, 1e-25, 1e25, 1e25),
        (1e20, 1e-30, 1e-30, 1e20, 1e20),
        (1e-19, 1e-19, 1e30),
        (1e30, 1e-38, 1e-8, 1e10),
    ],
    ids=str,
)
def test_a_moderate_flow_through_extreme_weights_is_scored(weights):
    model = wire(*weights)
    assert_same(synflow(model, (1, 1)), chain_reference(weights_of(model)), rtol=1e-5)


class Parallel(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


def test_a_branch_of_extreme_weights_counts_beside_a_moderate_one():
    model = Parallel(wire(1.0), wire(1e-25, 1e-25, 1e25, 1e25))
    scores = np.concatenate([score.ravel() for score in synflow(model, (1, 1)).values()])
    np.testing.assert_allclose(scores, 1, 1e-5)  # both branches carry a flow of one


@pytest.mark.parametrize("weights", [(1e-60, 1e60), (1e-60, 1e-60), (1e100, 1e-100, 1e-50)])
def test_a_model_of_float64_is_scored_in_float64(weights):
    model = wire(*weights, dtype=torch.float64)
    example = torch.ones(1, 1, dtype=torch.float64)
    assert_same(synflow(model, example), chain_reference(weights_of(model)), rtol=1e-12)


def test_a_network_without_any_path_scores_nothing():
    model = mlp(relu)
    masks = Masks({**Masks.dense(model), "2.weight": torch.zeros(5, 8, dtype=torch.bool)})
    assert all(not score.any() for score in synflow(model, (1, 6), masks).values())


def test_a_graph_that_is_still_held_changes_nothing():
    model = mlp(relu, widths=(6, *[20] * 40, 3))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight *= 10
    before = synflow(model, (1, 6))
    output = model(torch.randn(1, 6))
    after = synflow(model, (1, 6))
    assert output.requires_grad
    assert all(np.array_equal(before[name], after[name]) for name in before)


# --- errors


def test_without_an_example_there_is_nothing_to_score():
    with pytest.raises(LitPruneError, match=r"pass example= or batches="):
        prune(mlp(relu), SynFlow(), "50%")


def test_numbers_of_tokens_have_no_flow():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    with pytest.raises(LitPruneError, match="SynFlow needs inputs of floating point"):
        synflow(model, torch.zeros(1, 2, dtype=torch.int64))


def test_a_hundred_rounds_are_the_default():
    assert SynFlow().rounds == 100


def test_many_rounds_keep_every_layer_of_a_chain_alive():
    model = mlp(relu, widths=(20, 40, 40, 10))
    masks = prune(model, SynFlow(), 30, example=(1, 20))
    assert masks.kept == 30
    assert all(row.kept for row in masks.layers())


def test_a_softmax_over_logits_is_passed_and_changes_nothing():
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    ending = nn.Sequential(*plain, nn.Softmax(dim=1))
    scores = [SynFlow()(Probe(m, Masks.dense(m), example=(1, 4))) for m in (plain, ending)]
    assert all(torch.equal(scores[0][name], scores[1][name]) for name in scores[0])


def test_a_weight_that_is_nan_is_an_error_that_names_its_layer():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteScores, match=r"1\.weight"):
        SynFlow()(Probe(model, Masks.dense(model), example=(1, 4)))
