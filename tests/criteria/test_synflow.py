"""SynFlow against closed forms, explicit kernels, enumerated paths and flows written in numpy."""

import operator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer, mobilenetv3
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.ops import SqueezeExcitation

from lit_prune import Connectivity, LitPruneError, Masks, Probe, prune
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


# --- any network: derivatives of a flow that is written down once more in numpy


def complex_step(flow, weights):
    """w * dR/dw of an analytic ``flow(weights)``, without any differences: Im R(w + ih) / h."""
    scores = {}
    for name, weight in weights.items():
        moved = {n: w.astype(np.complex128) for n, w in weights.items()}
        scores[name] = np.zeros(weight.shape)
        for at in np.ndindex(weight.shape):
            moved[name][at] += 1e-30j
            scores[name][at] = flow(moved).imag / 1e-30 * weight[at]
            moved[name][at] = weight[at]
    return scores


# --- products, differences and constants


class Gate(nn.Module):
    """Two flows that meet in ``function``."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = units(6, 5), units(6, 5), units(5, 4)
        self.function = function

    def forward(self, x):
        return self.c(self.function(self.a(x), self.b(x)))


def sum_of_two(weights):
    """What ``c(a(x) + b(x))`` would score."""
    a, b, c = weights.values()
    back, flow = c.sum(0), (a + b).sum(1)
    found = (back[:, None] * a, back[:, None] * b, c * flow)
    return dict(zip(weights, found, strict=True))


def in_place(function):
    def run(x, y):
        getattr(x, function)(y)
        return x

    return run


def halves(x, y):
    return F.glu(torch.cat([x, y], 1))


def product_of_all(x, y):
    return torch.stack([x, y]).prod(0)


MEETINGS = {
    "x * y": operator.mul,
    "x *= y": operator.imul,
    "torch.mul": torch.mul,
    "torch.multiply": torch.multiply,
    "x.mul": torch.Tensor.mul,
    "x.__mul__": lambda x, y: x.__mul__(y),
    "x.__rmul__": lambda x, y: x.__rmul__(y),
    "x.mul_": in_place("mul_"),
    "x.mul(other=)": lambda x, y: x.mul(other=y),
    "x / y": operator.truediv,
    "x /= y": operator.itruediv,
    "x.div_": in_place("div_"),
    "torch.true_divide": torch.true_divide,
    "x / y, rounded": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "x + y": operator.add,
    "x += y": operator.iadd,
    "x - y": operator.sub,
    "x -= y": operator.isub,
    "x.sub_": in_place("sub_"),
    "torch.rsub": torch.rsub,
    "x - (1 - y)": lambda x, y: x - (1 - y),
    "-x - y": lambda x, y: -x - y,
    "x ** y": operator.pow,
    "torch.maximum": torch.maximum,
    "torch.max": torch.max,
    "x.min": lambda x, y: x.min(y),
    "torch.where": lambda x, y: torch.where(x > y, x, y),
    "torch.lerp": lambda x, y: torch.lerp(x, y, 0.1),
    "torch.addcmul": lambda x, y: torch.addcmul(torch.ones(5), x, y),
    "torch.addcdiv": lambda x, y: torch.addcdiv(torch.ones(5), x, y),
    "F.glu": halves,
    "x.prod": product_of_all,
    "sigmoid(x) * tanh(y)": lambda x, y: torch.sigmoid(x) * torch.tanh(y),
    "zeros +=": lambda x, y: torch.zeros(1, 5).add_(x) * y,
    "zeros[:] =": lambda x, y: written(x) * y,
}


def written(x):
    """The same numbers in memory that was a constant."""
    memory = torch.ones(2, 5)
    memory[:1] = x
    return memory[:1]


@pytest.mark.parametrize("function", MEETINGS.values(), ids=MEETINGS)
def test_where_two_flows_meet_they_add(function):
    model = Gate(function)
    assert_same(synflow(model, (1, 6)), sum_of_two(weights_of(model)))


NUMBERS = torch.linspace(-2, 2, 5)  # one of them is zero
BLOCKED = torch.tensor([True, False, True, False, False])

# The share of a flow that a function of it passes on.
PASSED = {
    "1 - x": (lambda x: 1 - x, 1),
    "x - 1": (lambda x: x - 1, 1),
    "-x": (operator.neg, 1),
    "x.neg_": (lambda x: x.neg_(), 1),
    "x + numbers": (lambda x: x + NUMBERS, 1),
    "numbers + x": (lambda x: NUMBERS + x, 1),
    "x += numbers": (lambda x: operator.iadd(x, NUMBERS), 1),
    "numbers.add(x, alpha)": (lambda x: torch.add(NUMBERS, x, alpha=-3), 3),
    "x + wider numbers": (lambda x: (x + torch.ones(3, 5)).sum(0, keepdim=True), 3),
    "x + infinity": (lambda x: x + torch.full((5,), -torch.inf), 1),
    "x * -3": (lambda x: x * -3, 3),
    "-3 * x": (lambda x: -3 * x, 3),
    "x *= -3": (lambda x: operator.imul(x, -3), 3),
    "x * numbers": (lambda x: x * NUMBERS, NUMBERS.abs()),
    "numbers * x": (lambda x: NUMBERS * x, NUMBERS.abs()),
    "x * (numbers > 0)": (lambda x: x * (NUMBERS > 0), NUMBERS > 0),
    "x * (1 - numbers)": (lambda x: x * (1 - NUMBERS), (1 - NUMBERS).abs()),
    "x * sigmoid(numbers)": (lambda x: x * NUMBERS.sigmoid(), NUMBERS.sigmoid()),
    "x / -2": (lambda x: x / -2, 0.5),
    "-2 / x": (lambda x: -2 / x, 2),
    "x.reciprocal": (torch.reciprocal, 1),
    "x.masked_fill": (lambda x: x.masked_fill(BLOCKED, -torch.inf), 1),
    "torch.where": (lambda x: torch.where(BLOCKED, x, -torch.inf), 1),
    "maximum": (lambda x: torch.maximum(x, torch.full((5,), 1e9)), 1),
    "clamp": (lambda x: x.clamp(0, 1e-3), 1),
    "x ** 2": (lambda x: x**2, 1),
    "2 ** x": (lambda x: 2**x, 1),
    "exp": (torch.exp, 1),
    "rsqrt": (torch.rsqrt, 1),
    "round": (torch.round, 1),
    "sign": (torch.sign, 1),
    "detach": (lambda x: x.detach(), 1),
    "data": (lambda x: x.data, 1),
    "half": (lambda x: x.half().float(), 1),
    "to": (lambda x: x.to(torch.bfloat16), 1),
    "dropout": (lambda x: F.dropout(x, 0.9), 1),
    "normalize": (F.normalize, 1),
    "softmax over any dimension": (lambda x: x[None, None].softmax(-1)[0, 0], 1),
    "addmm": (lambda x: torch.addmm(torch.ones(5), x, -torch.eye(5)), 1),
    "cat": (lambda x: torch.cat([torch.ones(1, 5), x]).sum(0, keepdim=True), 1),
    "stack": (lambda x: torch.stack([x, torch.ones(1, 5)]).sum(0), 1),
    "var": (lambda x: x[:, None].var(1, unbiased=False), 1),
    "std_mean": (lambda x: torch.std_mean(x[:, None], 1, False)[0], 1),
}


@pytest.mark.parametrize(("function", "share"), PASSED.values(), ids=PASSED)
def test_constants_are_factors_without_sign_and_no_sources(function, share):
    torch.manual_seed(0)
    model = nn.Sequential(units(6, 5), Function(function), units(5, 4))
    first, last = weights_of(model).values()
    shares = np.broadcast_to(np.asarray(share, np.float64), 5)
    expected = {
        "0.weight": (last.sum(0) * shares)[:, None] * first,
        "2.weight": last * shares * first.sum(1),
    }
    assert_same(synflow(model, (1, 6)), expected)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_a_network_may_decide_by_its_numbers():
    def halved(x):
        return x / 2 if float(x.sum()) > 0 and x.long().max() < 1e9 and bool(x.any()) else x

    model = mlp(lambda _: Function(halved), widths=(6, 5, 4))
    expected = chain_reference(weights_of(model))
    assert_same(synflow(model, (1, 6)), {name: score / 2 for name, score in expected.items()})


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        with torch.no_grad():
            features = self.body(x)
        assert not torch.rand(()).requires_grad
        return self.head(features)


def test_flow_goes_through_no_grad():
    model = Frozen()
    assert_same(synflow(model, (1, 6)), chain_reference(weights_of(model)))
    assert torch.is_grad_enabled()


class Tokens(nn.Module):
    """A class token, position embeddings, and a bias by another name."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.places = nn.Parameter(torch.randn(1, 6, 4))
        self.offset = nn.Parameter(torch.randn(2))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.places
        return F.linear(x, self.head.weight, self.offset)


def test_parameters_that_are_added_are_no_sources():
    torch.manual_seed(0)
    model = Tokens()
    chain = chain_reference(weights_of(model))
    assert_same(synflow(model, (1, 5, 3)), {name: 5 * score for name, score in chain.items()})


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor([-2.0, 0.5, 0, 1]))

    def forward(self, x):
        return self.b(self.scale * self.a(x))


def test_a_scale_that_is_no_weight_is_a_factor():
    torch.manual_seed(0)
    model = Scaled()
    first, last = weights_of(model).values()
    scale = np.array([2, 0.5, 0, 1])
    expected = {
        "a.weight": (last.sum(0) * scale)[:, None] * first,
        "b.weight": last * scale * first.sum(1),
    }
    assert_same(synflow(model, (1, 3)), expected)


class Excluded(nn.Module):
    """A branch of constants: weights through which nothing flows from the input."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.constants = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(5, 4)

    def forward(self, x):
        return self.b(self.a(x) + self.constants(torch.ones(1, 5)))


def test_weights_of_a_constant_score_nothing():
    model = Excluded()
    scores, weights = synflow(model, (1, 3)), weights_of(model)
    assert not scores.pop("constants.weight").any()
    del weights["constants.weight"]
    assert_same(scores, chain_reference(weights))


class Rewritten(nn.Module):
    """Goes on with a tensor while it writes to its own copy, in three ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.a(x)
        y = torch.tanh(h)
        y += self.b(h)
        z = h + 1
        z *= y
        return self.c(z + h)


def test_writing_to_an_activation_leaves_its_input_as_it_was():
    torch.manual_seed(0)
    model = Rewritten()

    def flow(w):
        h = w["a.weight"].sum(1)
        y = h + w["b.weight"] @ h
        return (w["c.weight"] @ (h + y + h)).sum()

    assert_same(synflow(model, (1, 3)), complex_step(flow, weights_of(model)))


def written_out_norm(x):
    mean = x.mean(1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + 1e-5)


def variance_norm(x):
    return (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True) + 1e-5)


@pytest.mark.parametrize("norm", [written_out_norm, variance_norm])
def test_a_norm_that_is_written_out_lets_no_negative_flow_through(norm):
    model = nn.Sequential(units(6, 5), Function(norm), units(5, 4))
    first, last = synflow(model, (1, 6)).values()
    assert (first > 0).all()
    assert (last > 0).all()
    assert first.sum() == pytest.approx(last.sum(), rel=1e-5)


# --- weights that the network computes from its weights


class Step(torch.autograd.Function):
    """Binary weights with a straight-through gradient, of which torch functions see nothing."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class OwnWeight(nn.Linear):
    def __init__(self, computed):
        super().__init__(3, 2)
        self.computed = computed

    def forward(self, x):
        return F.linear(x, self.computed(self.weight))


@pytest.mark.parametrize(
    "computed",
    [Step.apply, torch.tanh, lambda w: w * 1, lambda w: -w, lambda w: w.half(), lambda w: w + 1],
    ids=["custom", "tanh", "product", "negative", "cast", "sum"],
)
def test_a_computed_weight_is_a_weight_and_no_flow(computed):
    model = OwnWeight(computed)
    assert_same(synflow(model, (1, 3)), weights_of(model))  # its own gradient is one everywhere


def test_a_standardised_weight_has_no_negative_scores():
    torch.manual_seed(0)
    model = OwnWeight(lambda w: w - w.mean())
    (weight,) = weights_of(model).values()
    assert_same(synflow(model, (1, 3)), {"weight": weight * 2})  # each weight counts once and n/n


class MaskedLinear(nn.Linear):
    def forward(self, x):
        self.weight.data *= torch.tensor([[1.0, 0, 1], [0, 1, 1]])
        return super().forward(x)


def test_a_network_may_write_to_the_data_of_its_weights():
    model = MaskedLinear(3, 2)
    kept = np.array([[1, 0, 1], [0, 1, 1]])
    assert_same(synflow(model, (1, 3)), {"weight": weights_of(model)["weight"] * kept})


# --- products of matrices: the mean over what is summed


class Matrices(nn.Module):
    """Two matrices from the input, (3, 4) and (4, 2), that meet in ``function``."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(3, 12), nn.Linear(3, 8), nn.Linear(2, 2)
        self.function = function

    def forward(self, x):
        left, right = self.a(x).view(1, 3, 4), self.b(x).view(1, 4, 2)
        return self.c(self.function(left, right).view(3, 2))


def mean_of_products(w):
    left = w["a.weight"].sum(1).reshape(3, 4)
    right = w["b.weight"].sum(1).reshape(4, 2)
    out = left.mean(1)[:, None] + right.mean(0)[None, :]
    return (out @ w["c.weight"].T).sum()


MATRIX_PRODUCTS = {
    "a @ b": operator.matmul,
    "torch.matmul": torch.matmul,
    "a.matmul(other=)": lambda a, b: a.matmul(other=b),
    "torch.bmm": torch.bmm,
    "a[0].mm": lambda a, b: a[0].mm(b[0]),
    "torch.mv": lambda a, b: torch.stack([torch.mv(a[0], v) for v in b[0].T], 1),
    "torch.dot": lambda a, b: torch.stack([torch.dot(u, v) for u in a[0] for v in b[0].T]),
    "torch.einsum": lambda a, b: torch.einsum("bif,bfj->bij", a, b),
    "torch.einsum of a list": lambda a, b: torch.einsum("...if,...fj->...ij", [a, b]),
    "torch.tensordot": lambda a, b: torch.tensordot(a[0], b[0], dims=1),
    "torch.baddbmm": lambda a, b: torch.baddbmm(torch.ones(1, 3, 2), a, b),
    "F.linear": lambda a, b: F.linear(a[0], b[0].T, torch.ones(2)),
    "F.conv1d": lambda a, b: F.conv1d(a.mT, b[0].T[:, :, None]).mT.contiguous(),
    "with softmax": lambda a, b: a.softmax(-1) @ b,
}


@pytest.mark.parametrize("function", MATRIX_PRODUCTS.values(), ids=MATRIX_PRODUCTS)
def test_a_product_of_flows_passes_the_mean_of_each_factor(function):
    model = Matrices(function)
    assert_same(synflow(model, (1, 3)), complex_step(mean_of_products, weights_of(model)))


def test_a_product_with_a_weight_by_any_function_is_a_layer():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            x = x @ self.a.weight.T
            x = torch.einsum("nf,gf->ng", x, self.b.weight)
            return torch.addmm(self.c.bias, x, self.c.weight.t())

    torch.manual_seed(0)
    model = Products()
    assert_same(synflow(model, (1, 3)), chain_reference(weights_of(model)))


# --- attention


class Attention(nn.Module):
    """Different tokens, an attention of two heads by ``attend``, and a layer."""

    def __init__(self, attend, keys=2):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(2, 12), nn.Linear(4, 3)
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 2 * keys), nn.Linear(4, 2 * keys)
        self.attend = attend

    def forward(self, x):
        tokens = self.embed(x).view(1, 3, 4)
        parts = (layer(tokens).unflatten(2, (-1, 2)) for layer in (self.q, self.k, self.v))
        out = self.attend(*(part.transpose(1, 2) for part in parts))
        return self.head(out.transpose(1, 2).flatten(2))


def attention_flow(w, heads=2):
    """Token by token and head by head, from packed or separate projections."""
    if "attention.in_proj_weight" in w:
        w = w | dict(zip("qkv", np.split(w["attention.in_proj_weight"], 3), strict=True))
    q, k, v = (w.get(n, w.get(f"{n}.weight", w.get(f"attention.{n}_proj_weight"))) for n in "qkv")
    tokens = w["embed.weight"].sum(1).reshape(3, 4)
    outputs = []
    for query in tokens:
        merged = []
        for head in range(heads):
            features = np.arange(4 // heads) + head * 4 // heads
            shared = features % len(k) if len(k) < 4 else features
            keys = np.array([k[shared] @ token[: k.shape[1]] for token in tokens])
            values = np.array([v[shared] @ token[: v.shape[1]] for token in tokens])
            merged.append(values.mean(0) + (q[features] @ query).mean() + keys.mean())
        outputs.append(np.concatenate(merged))
    out = np.array(outputs)
    if "attention.out_proj.weight" in w:
        out = out @ w["attention.out_proj.weight"].T
    return (out @ w["head.weight"].T).sum()


def by_hand(q, k, v):
    scores = (q @ k.transpose(-2, -1)).masked_fill(~CAUSAL, -torch.inf)
    return scores.softmax(dim=-1) @ v


def by_einsum(q, k, v):
    scores = torch.einsum("bhif,bhjf->bhij", q, k) + torch.zeros(3, 3).masked_fill(~CAUSAL, -1e9)
    return torch.einsum("bhij,bhjf->bhif", F.softmax(scores, -1, dtype=torch.float32), v)


CAUSAL = torch.ones(3, 3, dtype=torch.bool).tril()
ATTENTIONS = {
    "sdpa": F.scaled_dot_product_attention,
    "causal sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "masked sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=CAUSAL),
    "added mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, -1e9 * ~CAUSAL),
    "by hand": by_hand,
    "by einsum": by_einsum,
}


@pytest.mark.parametrize("attend", ATTENTIONS.values(), ids=ATTENTIONS)
def test_an_attention_passes_the_means_of_values_queries_and_keys(attend):
    model = Attention(attend)
    assert_same(synflow(model, (1, 2)), complex_step(attention_flow, weights_of(model)))


def test_heads_of_queries_may_share_one_of_keys():
    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    model = Attention(attend, keys=1)
    assert_same(synflow(model, (1, 2)), complex_step(attention_flow, weights_of(model)))


class MultiHead(nn.Module):
    def __init__(self, shape=(1, 3, 4), needs=False, features=4, **options):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(2, 12), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(
            4, 2, kdim=features, vdim=features, batch_first=shape[0] == 1, **options
        )
        self.shape, self.needs, self.features = shape, needs, features

    def forward(self, x):
        tokens = self.embed(x).view(self.shape)
        others = tokens[..., : self.features]
        return self.head(self.attention(tokens, others, others, need_weights=self.needs)[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shape": (3, 1, 4)},
        {"shape": (3, 4)},
        {"needs": True},
        {"features": 3},
        {"bias": False},
        {"add_bias_kv": True, "add_zero_attn": True},
    ],
    ids=str,
)
def test_an_attention_of_torch_is_scored_likewise(options):
    model = MultiHead(**options)
    assert_same(synflow(model, (1, 2)), complex_step(attention_flow, weights_of(model)))


class Looks(MultiHead):
    """Returns where its attention looks."""

    def __init__(self, averages):
        super().__init__()
        self.averages = averages

    def forward(self, x):
        tokens = self.embed(x).view(self.shape)
        return self.attention(tokens, tokens, tokens, average_attn_weights=self.averages)[1]


@pytest.mark.parametrize(("averages", "maps"), [(True, 1), (False, 2)])
def test_where_an_attention_looks_is_a_flow_of_queries_and_keys(averages, maps):
    model = Looks(averages)
    scores = synflow(model, (1, 2))
    projections = scores["attention.in_proj_weight"]
    tokens = weights_of(model)["embed.weight"].sum(1).reshape(3, 4)
    query, key, _ = np.split(weights_of(model)["attention.in_proj_weight"], 3)
    # Every query meets three keys, every key three queries; a head is the mean of two features.
    flow = maps * 3 * ((tokens @ query.T).sum() + (tokens @ key.T).sum()) / 4
    assert projections[:8].sum() == pytest.approx(float(flow), rel=1e-5)
    assert scores["embed.weight"].sum() == pytest.approx(float(flow), rel=1e-5)
    assert not projections[8:].any()
    assert not scores["attention.out_proj.weight"].any()


# --- networks of gates and attentions


class GRU(nn.Module):
    def __init__(self, inputs=4, units=5):
        super().__init__()
        self.w, self.u = nn.Linear(inputs, 3 * units), nn.Linear(units, 3 * units)
        self.head = nn.Linear(units, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), self.u.in_features)
        for step in x.unbind(1):
            seen, told = self.w(step).chunk(3, 1), self.u(h).chunk(3, 1)
            z, r = torch.sigmoid(seen[0] + told[0]), torch.sigmoid(seen[1] + told[1])
            h = (1 - z) * torch.tanh(seen[2] + r * told[2]) + z * h
        return self.head(h)


class GatedCell(nn.Module):
    def __init__(self, inputs=4, units=5):
        super().__init__()
        self.w, self.u = nn.Linear(inputs, units, False), nn.Linear(units, units, False)
        self.gate, self.update = nn.Parameter(torch.ones(units)), nn.Parameter(torch.ones(units))
        self.zeta, self.nu = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-4.0))
        self.head = nn.Linear(units, 3)

    def forward(self, x):
        h = torch.zeros(len(x), self.u.in_features)
        for step in x.unbind(1):
            both = self.w(step) + self.u(h)
            z, new = torch.sigmoid(both + self.gate), torch.tanh(both + self.update)
            h = (torch.sigmoid(self.zeta) * (1 - z) + torch.sigmoid(self.nu)) * new + z * h
        return self.head(h)


def gru_flow(w, steps=5):
    seen, h = w["w.weight"].sum(1), np.zeros(5)
    for step in range(steps):
        told = w["u.weight"] @ h
        z, r = seen[:5] + told[:5], seen[5:10] + told[5:10]
        # A first state of zeros is a constant: it is no flow, but a factor that stops one.
        n = seen[10:] + r + told[10:] if step else seen[10:]
        h = z + n + z + h if step else z + n
    return (w["head.weight"] @ h).sum()


def fastgrnn_flow(w, steps=5):
    seen, h = w["w.weight"].sum(1), np.zeros(5)
    for step in range(steps):
        z = seen + w["u.weight"] @ h
        h = z / (1 + np.exp(-1)) + z + (z + h if step else 0)
    return (w["head.weight"] @ h).sum()


@pytest.mark.parametrize(("cell", "flow"), [(GRU, gru_flow), (GatedCell, fastgrnn_flow)])
def test_a_gated_cell_is_scored_step_by_step(cell, flow):
    torch.manual_seed(0)
    model = cell()
    assert_same(synflow(model, (1, 5, 4)), complex_step(flow, weights_of(model)))


@pytest.mark.parametrize("cell", [GRU, GatedCell])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hundred_and_twenty_eight_steps_of_a_gated_cell_neither_overflow_nor_vanish(cell, dtype):
    torch.manual_seed(0)
    model = cell(9, 80).to(dtype)
    scores = SynFlow()(Probe(model, Masks.dense(model), example=(1, 128, 9)))
    assert all(score.isfinite().all() and (score > 0).all() for score in scores.values())
    # All paths cross these two.
    flow = scores["head.weight"].double().sum().item()
    assert scores["w.weight"].double().sum().item() == pytest.approx(flow, rel=1e-9)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("cell", [GRU, GatedCell])
def test_the_flow_of_a_gated_cell_grows_by_the_same_factor_in_every_step(cell):
    torch.manual_seed(0)
    model = cell()
    flows = [np.log(synflow(model, (1, n, 4))["head.weight"].sum()) for n in (40, 60, 80)]
    assert flows[2] - flows[1] == pytest.approx(flows[1] - flows[0], rel=1e-6)
    assert flows[1] > flows[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_of_torch_pass_the_mean_of_their_input(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 2)
            self.layer = kind(4, 5, 2, batch_first=True)

        def forward(self, x):
            return self.b(self.layer(self.a(x))[0][:, -1])

    torch.manual_seed(0)
    model = Recurrent()
    first, last = weights_of(model).values()
    mean = first.sum(1).mean()
    expected = {"a.weight": last.sum() / 4 * first, "b.weight": last * mean}
    assert_same(synflow(model, (1, 7, 3)), expected)


def encoder(batch_first=True):
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=True),
        nn.Linear(8, 3),
    )


def torchvision_vit():
    return VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)


def timm_vit():
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=5,
    )


def timm_vit_by_hand():
    """Its attention in matrix products and softmax, instead of one function."""
    model = timm_vit()
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def squeeze_excitation():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), SqueezeExcitation(6, 2), nn.Flatten(), nn.Linear(6 * 4 * 4, 3)
    )


def mobilenet_block():
    config = InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0)
    block = mobilenetv3.InvertedResidual(config, nn.BatchNorm2d)
    return nn.Sequential(nn.Conv2d(3, 8, 1), block, nn.Flatten(), nn.Linear(8 * 36, 3))


def efficientnet_block():
    config = MBConvConfig(2, 3, 1, 8, 8, 1)
    block = MBConv(config, 0.2, nn.BatchNorm2d)
    return nn.Sequential(nn.Conv2d(3, 8, 1), block, nn.Flatten(), nn.Linear(8 * 36, 3))


# Networks, their inputs, and two layers that all paths cross.
GATED = {
    "sdpa": (
        lambda: Attention(F.scaled_dot_product_attention),
        (1, 2),
        ("embed.weight", "head.weight"),
    ),
    "MultiheadAttention": (
        MultiHead,
        (1, 2),
        ("embed.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"),
    ),
    "MultiheadAttention, batch second": (
        lambda: MultiHead((3, 1, 4)),
        (1, 2),
        ("embed.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"),
    ),
    "TransformerEncoderLayer": (encoder, (1, 6, 5), ("0.weight", "3.weight")),
    "TransformerEncoderLayer, batch second": (
        lambda: encoder(batch_first=False),
        (1, 1, 5),
        ("0.weight", "3.weight"),
    ),
    "torchvision's ViT": (
        torchvision_vit,
        (1, 3, 32, 32),
        ("conv_proj.weight", "heads.head.weight"),
    ),
    "timm's ViT": (timm_vit, (1, 3, 32, 32), ("patch_embed.proj.weight", "head.weight")),
    "timm's ViT by hand": (
        timm_vit_by_hand,
        (1, 3, 32, 32),
        ("patch_embed.proj.weight", "head.weight"),
    ),
    "SqueezeExcitation": (squeeze_excitation, (1, 3, 6, 6), ("0.weight", "3.weight")),
    "MobileNetV3's block": (mobilenet_block, (1, 3, 6, 6), ("0.weight", "3.weight")),
    "EfficientNet's block": (efficientnet_block, (1, 3, 6, 6), ("0.weight", "3.weight")),
    "GRU": (GRU, (1, 4, 4), ("w.weight", "head.weight")),
    "GatedCell": (GatedCell, (1, 4, 4), ("w.weight", "head.weight")),
}


def built(make):
    """Build a network in which no parameter is zero, as a class token or head may be at first."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_()
    return model.eval()


@pytest.mark.parametrize(("make", "shape", "cuts"), GATED.values(), ids=GATED)
def test_the_flow_into_every_cut_is_the_same(make, shape, cuts):
    model = built(make)
    scores = synflow(model, shape)
    first, *others = (scores[cut].sum() for cut in cuts)
    assert others == pytest.approx([first] * len(others), rel=1e-4)


@pytest.mark.parametrize(("make", "shape", "cuts"), GATED.values(), ids=GATED)
@pytest.mark.parametrize("density", [1, 0.5, 0.2])
def test_what_lies_on_a_path_has_flow_and_nothing_else_has(make, shape, cuts, density):
    model = built(make)
    masks = some_masks(model, density) if density < 1 else Masks.dense(model)
    effective = Connectivity(model, shape).effective(masks)
    scores = synflow(model, shape, masks)
    for name, score in scores.items():
        assert np.array_equal(score > 0, effective[name].numpy()), name


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


def test_a_cast_to_a_narrow_type_cuts_no_flow_off():
    model = wire(1e30, 1e30, 1e30)
    model.insert(2, Function(lambda x: x.to(torch.float32)))
    assert_same(synflow(model, (1, 1)), chain_reference(weights_of(model)), rtol=1e-12)


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


def test_an_output_that_depends_on_no_input_is_an_error():
    model = nn.Sequential(nn.Linear(4, 3), Function(torch.zeros_like))
    with pytest.raises(LitPruneError, match="no output of the network depends on its input"):
        synflow(model, (1, 4))


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


def test_a_cell_that_nothing_reaches_has_no_flow_however_its_gradients_grow():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.keep, self.head = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = x.new_zeros(len(x), 8)
            for _ in range(128):
                h = torch.tanh(self.read(x) + self.keep(h))
            return self.head(h)

    torch.manual_seed(0)
    model = Cell()
    nn.init.constant_(model.keep.weight, 2.0)  # 16 ** 128 is beyond float32
    masks = {name: torch.ones_like(mask) for name, mask in Masks.dense(model).items()}
    masks["read.weight"] = torch.zeros(8, 2, dtype=torch.bool)
    scores = SynFlow()(Probe(model, Masks(masks), example=(1, 2)))
    assert all(score.eq(0).all() for score in scores.values())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_of_no_weights_is_no_hindrance():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.z, self.b = nn.Linear(6, 8), nn.Linear(0, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.b(self.a(x).relu() + self.z(x[:, :0]))

    assert prune(Beside(), SynFlow(), 20, rounds=3, example=(1, 6)).kept == 20
