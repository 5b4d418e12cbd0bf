"""Measure: FLOPs against closed forms and PyTorch's own counter, dead units against plain loops."""

import copy
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import FlopCounterMode

from lit_prune import Masks
from lit_prune.backbones import LeNet5, LeNet300100
from lit_prune.errors import MasksMismatch
from lit_prune.measure import count_flops, measure


def flops_of(model, *inputs):
    return count_flops(model, Masks.dense(model), inputs)


def random_masks(masks, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Masks({n: torch.rand(m.shape, generator=generator) < density for n, m in masks.items()})


# --- FLOPs: closed forms


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_connection_of_a_linear_layer_costs_two_flops(batch_norm):
    flops = flops_of(LeNet300100(batch_norm=batch_norm), torch.randn(1, 1, 28, 28))
    assert dict(flops.by_weight) == {
        "fc1.weight": 2 * 784 * 300,
        "fc2.weight": 2 * 300 * 100,
        "fc3.weight": 2 * 100 * 10,
    }
    assert sum(flops.by_weight.values()) == 2 * 266_200
    assert flops.other == 0


def test_a_connection_of_a_convolution_costs_two_flops_a_place():
    places = {"conv1": 28 * 28, "conv2": 10 * 10, "fc1": 1, "fc2": 1, "fc3": 1}
    model = LeNet5()
    flops = flops_of(model, torch.randn(1, 1, 28, 28))
    assert dict(flops.by_weight) == {
        f"{name}.weight": 2 * model.get_submodule(name).weight.numel() * many
        for name, many in places.items()
    }


CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@st.composite
def convolutions(draw):
    """A convolution of any kind, how many dimensions it has, and the size of an image for it."""
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())

    def sizes(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * dims))

    groups = draw(st.integers(1, 3))
    layer = (TRANSPOSED if transposed else CONVOLUTIONS)[dims - 1](
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        sizes(1, 3),
        stride=sizes(1, 2),
        padding=sizes(0, 1),
        dilation=sizes(1, 2),
        groups=groups,
        bias=draw(st.booleans()),
    )
    return layer, sizes(5, 7)


@given(convolutions())
def test_convolutions_follow_the_closed_form(drawn):
    layer, size = drawn
    image = torch.randn(1, layer.in_channels, *size)
    with torch.no_grad():
        result = layer(image).shape[2:]
    places = math.prod(size if layer.transposed else result)
    pairs = layer.in_channels * layer.out_channels // layer.groups
    expected = 2 * pairs * math.prod(layer.kernel_size) * places
    assert flops_of(layer, image) == ({"weight": expected}, 0)


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}]
)
def test_other_paddings_are_counted_as_well(options):
    layer = nn.Conv2d(2, 3, 3, **options)
    assert flops_of(layer, torch.randn(1, 2, 6, 5)).by_weight == {"weight": 2 * 2 * 3 * 9 * 30}
    assert flops_of(layer, torch.randn(2, 6, 5)).by_weight == {"weight": 2 * 2 * 3 * 9 * 30}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("leading", [(), (1,), (1, 5), (1, 2, 5)])
def test_a_linear_layer_is_counted_at_every_place(leading, bias):
    flops = flops_of(nn.Linear(3, 4, bias=bias), torch.randn(*leading, 3))
    assert flops == ({"weight": 2 * 3 * 4 * math.prod(leading)}, 0)


# --- FLOPs: attention


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("length", [1, 5])
def test_the_projections_of_attention_are_counted_apart_from_its_products(length, need_weights):
    class Attention(SelfAttention):
        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)[0]

    flops = flops_of(Attention(), torch.randn(1, length, 8))
    assert dict(flops.by_weight) == {
        "attention.in_proj_weight": 2 * length * 3 * 8 * 8,
        "attention.out_proj.weight": 2 * length * 8 * 8,
    }
    assert flops.other == 2 * 2 * length * length * 8  # q k', and its softmax times v


class FlexAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.inward(x).view(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.outward(flex_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flexible_attention_is_counted():
    flops = flops_of(FlexAttention(), torch.randn(1, 16, 8))
    expected = {"inward.weight": 2 * 16 * 8 * 24, "outward.weight": 2 * 16 * 8 * 8}
    assert flops == (expected, 2 * 2 * 16 * 16 * 8)


class CrossAttention(SelfAttention):
    def forward(self, x, y, z):
        return self.attention(x, y, z)[0]


def test_cross_attention_sums_what_each_part_of_a_packed_weight_sees():
    inputs = (torch.randn(1, 5, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 8))
    flops = flops_of(CrossAttention(), *inputs)
    assert flops.by_weight["attention.in_proj_weight"] == 2 * (5 + 3 + 3) * 8 * 8
    assert flops.other == 2 * 2 * 5 * 3 * 8


def test_projections_of_their_own_sizes_are_counted_one_by_one():
    inputs = (torch.randn(1, 5, 8), torch.randn(1, 3, 6), torch.randn(1, 3, 4))
    flops = flops_of(CrossAttention(kdim=6, vdim=4), *inputs)
    assert dict(flops.by_weight) == {
        "attention.q_proj_weight": 2 * 5 * 8 * 8,
        "attention.k_proj_weight": 2 * 3 * 8 * 6,
        "attention.v_proj_weight": 2 * 3 * 8 * 4,
        "attention.out_proj.weight": 2 * 5 * 8 * 8,
    }


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def fastpath(request):
    """Whether PyTorch may run attention as one fused step, which hides its products."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield request.param
    torch.backends.mha.set_fastpath_enabled(was)


def test_the_fused_encoder_layer_is_counted_in_its_parts(fastpath):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    flops = flops_of(layer.eval(), torch.randn(1, 5, 8))
    assert dict(flops.by_weight) == {
        "self_attn.in_proj_weight": 2 * 5 * 3 * 8 * 8,
        "self_attn.out_proj.weight": 2 * 5 * 8 * 8,
        "linear1.weight": 2 * 5 * 8 * 16,
        "linear2.weight": 2 * 5 * 8 * 16,
    }
    assert flops.other == 2 * 2 * 5 * 5 * 8
    assert torch.backends.mha.get_fastpath_enabled() == fastpath


def test_the_fused_path_is_allowed_again_after_an_error(fastpath):
    with pytest.raises(RuntimeError, match="shape"):
        flops_of(nn.Linear(3, 2), torch.randn(1, 4))
    assert torch.backends.mha.get_fastpath_enabled() == fastpath


# --- FLOPs: which weight a product belongs to


class Units(nn.Module):
    """Two layers of 4 units, used as the given function says."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.gain = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("table", torch.randn(3, 4))
        self.register_buffer("gate", torch.ones(4, 4))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


ONE = 2 * 4 * 4  # the FLOPs of one layer for one input


def in_bfloat16(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.b(m.a(x))


def in_place(m, x):
    weight = torch.empty(4, 4)
    weight.copy_(m.b.weight).mul_(m.gain)
    return x @ weight.T @ m.a.weight


def through_a_freed_copy(m, x):
    for _ in range(8):
        m.a.weight.clone()  # another tensor takes its memory
        x = torch.from_numpy(x.numpy() + 1)
        x = x + (x.T @ x).sum()
    return m.b(m.a(x))


def beside_an_activation(m, x):
    both = x.expand(2, 4, 4).clone()
    torch.mul(m.a.weight, 2, out=both[0])
    return both[1] @ m.b.weight


def over_a_copy(m, x):
    scratch = m.a.weight.clone()
    scratch.copy_(x.expand(4, 4))
    return scratch @ m.b.weight


def over_a_copy_by_a_product(m, x):
    scratch = m.a.weight.clone()
    torch.mm(x.expand(4, 4), m.a.weight, out=scratch)
    return scratch @ m.b.weight


# What is done in the forward pass, and the FLOPs of a, of b, and of neither.
USES = {
    "each once": (lambda m, x: m.b(m.a(x)), (ONE, ONE, 0)),
    "one twice": (lambda m, x: m.a(m.a(x)), (2 * ONE, 0, 0)),
    "none": (lambda m, x: x @ x.T, (0, 0, 2 * 4)),
    "not prunable": (lambda m, x: m.b(x @ m.gain), (0, ONE, ONE)),
    "transposed": (lambda m, x: x @ m.a.weight @ m.b.weight, (ONE, ONE, 0)),
    "a slice": (lambda m, x: x[:, :2] @ m.a.weight[1:3], (ONE // 2, 0, 0)),
    "a detached view": (lambda m, x: x @ m.a.weight.detach().view(2, 8).view(4, 4), (ONE, 0, 0)),
    "einsum": (lambda m, x: torch.einsum("ni,oi->no", x, m.a.weight), (ONE, 0, 0)),
    "batched": (lambda m, x: torch.bmm(x[None], m.a.weight[None]), (ONE, 0, 0)),
    "on the left": (lambda m, x: m.a.weight @ x.T, (ONE, 0, 0)),
    "cast": (in_bfloat16, (ONE, ONE, 0)),
    "gated by a parameter": (lambda m, x: x @ (m.a.weight * m.gain), (ONE, 0, 0)),
    "gated by a buffer": (lambda m, x: x @ (m.a.weight * m.gate), (ONE, 0, 0)),
    "normalised": (lambda m, x: x @ ((m.a.weight - m.a.weight.mean(0)) / 2), (ONE, 0, 0)),
    "in place": (in_place, (ONE, ONE, 0)),
    "joined": (lambda m, x: x @ torch.cat([m.a.weight, m.b.weight], 1), (ONE, ONE, 0)),
    "joined in part": (lambda m, x: x @ (m.a.weight + m.b.weight), (ONE // 2, ONE // 2, 0)),
    "a product of both": (lambda m, x: x @ (m.a.weight @ m.b.weight), (2 * ONE, 2 * ONE, ONE)),
    "of a table": (lambda m, x: x @ m.b(m.a(m.table)).sum(0).diag(), (3 * ONE, 3 * ONE, ONE)),
    "scaled by a weight": (lambda m, x: m.b(x * m.a.weight.norm()), (0, ONE, 0)),
    "looked up": (lambda m, x: m.b(F.embedding(x.long(), m.a.weight)), (0, 4 * ONE, 0)),
    "next to a freed copy": (through_a_freed_copy, (ONE, ONE, 8 * 2 * 16)),
    "beside an activation": (beside_an_activation, (0, 4 * ONE, 0)),
    "over a copy": (over_a_copy, (0, 4 * ONE, 0)),
    "over a copy by a product": (over_a_copy_by_a_product, (4 * ONE, 4 * ONE, 0)),
}


@pytest.mark.parametrize(("function", "expected"), USES.values(), ids=USES)
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference mode"])
def test_a_product_belongs_to_the_weight_that_goes_into_it(function, expected, inference):
    model = Units(function)
    with torch.inference_mode(inference):
        flops = flops_of(model, torch.ones(1, 4))
    assert (flops.by_weight["a.weight"], flops.by_weight["b.weight"], flops.other) == expected


class SumOfWeights(nn.Module):
    """Two weights, one twice as large as the other, that go into one product."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return x @ (self.a.weight + self.b.weight)[:1].T


def test_what_cannot_be_shared_out_evenly_belongs_to_none():
    assert flops_of(SumOfWeights(), torch.ones(1, 4)) == ({"a.weight": 2, "b.weight": 5}, 1)


def test_tied_weights_sum_their_uses():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    flops = flops_of(model, torch.randn(1, 4))
    assert flops == ({"0.weight": 2 * ONE, "3.weight": 2 * 4 * 2}, 0)


def test_only_what_is_masked_is_counted_by_name():
    model = LeNet300100()
    masks = Masks.dense(model, exclude="fc3*")
    flops = count_flops(model, masks, (torch.randn(1, 784),))
    assert list(flops.by_weight) == ["fc1.weight", "fc2.weight"]
    assert flops.other == 2 * 100 * 10


def conv_net():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.Conv2d(4, 4, 3, groups=2, padding=1), nn.Dropout(0.5), nn.MaxPool2d(2)),
        *(nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 5)),
    )


def transformer():
    return nn.Transformer(8, 2, 1, 1, 16, batch_first=True)


NETWORKS = {
    "LeNet-5": (LeNet5, (1, 1, 32, 32)),
    "convolutions": (conv_net, (1, 3, 10, 10)),
    "attention": (SelfAttention, (1, 5, 8)),
    "transformer": (
        lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
        ((1, 4, 8), (1, 3, 8)),
    ),
    "channels last": (lambda: conv_net().to(memory_format=torch.channels_last), (1, 3, 10, 10)),
    **{name: (lambda use=use: Units(use), (1, 4)) for name, (use, _) in USES.items()},
}


@pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_all_parts_sum_to_the_total_of_pytorch(build, shape):
    model = build().eval()
    inputs = [torch.ones(s) for s in (shape if isinstance(shape[0], tuple) else (shape,))]
    flops = flops_of(model, *inputs)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert counter.get_total_flops() > 0
    assert sum(flops.by_weight.values()) + flops.other == counter.get_total_flops()


def test_a_compiled_function_is_counted_in_its_parts():
    product = torch.compile(lambda x, w: torch.relu(x @ w), fullgraph=True)
    model = Units(lambda m, x: product(x, m.a.weight))
    assert flops_of(model, torch.ones(1, 4)).by_weight["a.weight"] == ONE


# --- dead units


def dead_by_hand(layer, mask):
    """Walk all connections and note the channels that they join."""
    inputs, outputs = set(), set()
    rows, columns = mask.shape[:2]
    groups = getattr(layer, "groups", 1)
    for row, column in product(range(rows), range(columns)):
        if mask[row, column].any():
            joined = row // (rows // groups) * columns + column
            is_transposed = getattr(layer, "transposed", False)
            outputs.add(joined if is_transposed else row)
            inputs.add(row if is_transposed else joined)
    many_in = getattr(layer, "in_channels", None) or layer.in_features
    many_out = getattr(layer, "out_channels", None) or layer.out_features
    return many_in - len(inputs), many_out - len(outputs)


@given(convolutions(), st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]), st.integers(0, 2**32))
def test_dead_channels_are_those_that_no_connection_joins(drawn, density, seed):
    layer, size = drawn
    masks = random_masks(Masks.dense(layer), density, seed)
    image = torch.randn(1, layer.in_channels, *size)
    [row] = measure(layer, masks, masks, (image,)).layers
    assert (row.dead_in, row.dead_out) == dead_by_hand(layer, masks["weight"])
    assert row.effective == int(masks["weight"].sum())


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 1), st.integers(0, 2**32))
def test_dead_features_are_those_that_no_connection_joins(many_in, many_out, density, seed):
    layer = nn.Linear(many_in, many_out)
    masks = random_masks(Masks.dense(layer), density, seed)
    [row] = measure(layer, masks, masks, (torch.ones(1, many_in),)).layers
    assert (row.dead_in, row.dead_out) == dead_by_hand(layer, masks["weight"])


def test_units_without_any_effective_connection_are_dead():
    layer = nn.Conv2d(4, 4, 2, groups=2)
    kept = torch.zeros(4, 2, 2, 2, dtype=torch.bool)
    kept[3, 1, 0, 1] = kept[3, 1, 1, 1] = True  # joins channel 3 to channel 3
    dense = Masks.dense(layer)
    [row] = measure(layer, dense, Masks({"weight": kept}), (torch.ones(1, 4, 3, 3),)).layers
    assert (row.kept, row.effective, row.dead_in, row.dead_out) == (32, 2, 3, 3)


def test_the_rows_of_packed_projections_are_outputs():
    model = SelfAttention()
    masks = Masks.dense(model)
    masks["attention.in_proj_weight"][:, :3] = False
    masks["attention.in_proj_weight"][8:10] = False
    row = measure(model, masks, masks, (torch.ones(1, 2, 8),)).layers[0]
    assert (row.shape, row.dead_in, row.dead_out) == ((24, 8), 3, 2)


# --- rows and totals


def test_a_row_begins_with_what_the_masks_say():
    model = conv_net()
    masks = random_masks(Masks.dense(model), 0.5)
    effective = masks & random_masks(masks, 0.5, seed=1)
    rows = measure(model, masks, effective, (torch.ones(1, 3, 10, 10),)).layers
    assert [row[:5] for row in rows] == masks.layers()
    assert [row.effective for row in rows] == [row.kept for row in effective.layers()]
    assert [row._fields[:5] for row in rows] == [row._fields for row in masks.layers()]


def test_a_dense_network_is_all_effective():
    model = conv_net()
    masks = Masks.dense(model)
    found = measure(model, masks, masks, (torch.ones(1, 3, 10, 10),))
    assert all((row.dead_in, row.dead_out) == (0, 0) for row in found.layers)
    assert all(row.flops == row.effective_flops > 0 for row in found.layers)


@given(convolutions(), st.floats(0, 1), st.integers(0, 2**32))
def test_an_effective_connection_costs_what_it_costs_in_the_dense_layer(drawn, density, seed):
    layer, size = drawn
    masks = random_masks(Masks.dense(layer), density, seed)
    assume(layer.weight.numel() > 1)
    [row] = measure(layer, masks, masks, (torch.randn(1, layer.in_channels, *size),)).layers
    assert row.effective_flops * row.total == row.flops * row.effective


def test_totals_sum_the_rows_and_what_belongs_to_none():
    model = SelfAttention()
    masks = Masks.dense(model)
    kept = Masks({name: torch.zeros_like(mask) for name, mask in masks.items()})
    kept["attention.in_proj_weight"][:12, :4] = True
    kept["attention.out_proj.weight"][:4, :2] = True
    found = measure(model, masks, kept, (torch.ones(1, 5, 8),))
    assert found.other_flops == 800
    assert found.totals() == {
        "effective_kept": 48 + 8,
        "effective_sparsity": 200 / 256,
        "effective_compression": 256 / 56,
        "effective_flops": 2 * 5 * 56 + 800,
        "flops": 2 * 5 * 256 + 800,
        "other_flops": 800,
    }


@given(st.floats(0, 1), st.integers(0, 2**32))
def test_totals_are_those_of_the_effective_masks(density, seed):
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    masks = Masks.dense(model)
    effective = random_masks(masks, density, seed)
    totals = measure(model, masks, effective, (torch.ones(1, 3),)).totals()
    assert totals["effective_kept"] == effective.kept
    assert totals["effective_sparsity"] == effective.sparsity
    assert totals["effective_compression"] == effective.compression
    assert totals["effective_flops"] == 2 * effective.kept
    assert totals["flops"] == 2 * masks.total


def test_a_collapsed_network_is_compressed_without_end():
    model = nn.Linear(3, 2)
    masks = Masks.dense(model)
    nothing = Masks({"weight": torch.zeros(2, 3, dtype=torch.bool)})
    found = measure(model, masks, nothing, (torch.ones(1, 3),))
    totals = found.totals()
    assert (found.layers[0].dead_in, found.layers[0].dead_out) == (3, 2)
    assert (totals["effective_kept"], totals["effective_flops"]) == (0, 0)
    assert (totals["effective_sparsity"], totals["effective_compression"]) == (1.0, math.inf)


def test_where_paths_are_not_known_nothing_is_said_of_them():
    model = SelfAttention()
    masks = random_masks(Masks.dense(model), 0.5)
    inputs = (torch.ones(1, 5, 8),)
    unknown, known = (measure(model, masks, paths, inputs) for paths in (None, masks))
    for row, other in zip(unknown.layers, known.layers, strict=True):
        gaps = {"effective": None, "dead_in": None, "dead_out": None, "effective_flops": None}
        assert row == other._replace(**gaps)
    assert unknown.totals() == {
        "effective_kept": None,
        "effective_sparsity": None,
        "effective_compression": None,
        "effective_flops": None,
        "flops": known.totals()["flops"],
        "other_flops": 800,
    }


# --- names, and models that are wrapped


class Wrapper(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)


@pytest.mark.parametrize(
    "wrapped",
    [Wrapper, torch.compile, lambda m: torch.compile(Wrapper(m))],
    ids=["wrapped", "compiled", "compiled wrapper"],
)
def test_a_wrapper_only_changes_the_names(wrapped):
    plain = conv_net()
    masks = random_masks(Masks.dense(plain), 0.05)
    image = torch.ones(1, 3, 10, 10)
    expected = measure(plain, masks, masks, (image,)).layers
    model = wrapped(plain)
    names = list(Masks.dense(model))
    renamed = Masks(dict(zip(names, masks.values(), strict=True)))
    found = measure(model, renamed, renamed, (image,)).layers
    assert [row.name for row in found] == names
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    assert any(row.dead_in for row in found)


def test_prefixed_names_find_their_convolutions():
    model = Wrapper(nn.ConvTranspose1d(4, 2, 1, groups=2))
    masks = Masks({"backbone.weight": torch.tensor([[1], [0], [0], [0]]).bool()[..., None]})
    [row] = measure(model, masks, masks, (torch.ones(1, 4, 3),)).layers
    assert (row.dead_in, row.dead_out) == (3, 1)


def test_a_shared_convolution_goes_by_any_of_its_names():
    model = nn.Sequential(nn.Conv1d(4, 4, 1, groups=2))
    model.append(model[0])
    masks = Masks({"1.weight": torch.ones(4, 2, 1, dtype=torch.bool)})
    masks["1.weight"][:2] = False
    [row] = measure(model, masks, masks, (torch.ones(1, 4, 3),)).layers
    assert (row.dead_in, row.dead_out) == (2, 2)
    assert row.flops == 2 * 2 * 8 * 3


def test_masks_of_another_model_are_refused():
    model, masks = nn.Linear(3, 2), Masks.dense(nn.Linear(3, 4))
    with pytest.raises(MasksMismatch, match=r"weight is \(4, 3\) here and \(2, 3\) there"):
        measure(model, masks, masks, (torch.ones(1, 3),))
    with pytest.raises(MasksMismatch, match="no weight in the other"):
        measure(Wrapper(model), Masks.dense(model), None, (torch.ones(1, 3),))


def test_effective_masks_of_other_masks_are_refused():
    model = nn.Linear(3, 2)
    masks = Masks({"weight": torch.zeros(2, 3, dtype=torch.bool)})
    with pytest.raises(MasksMismatch, match="keep connections that the masks prune"):
        measure(model, masks, Masks.dense(model), (torch.ones(1, 3),))
    with pytest.raises(MasksMismatch, match="different models"):
        measure(model, masks, Masks.dense(Wrapper(model)), (torch.ones(1, 3),))


# --- the model is only looked at


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("inference", [False, True])
def test_the_model_comes_back_as_it_was(untouched, mode, inference):
    model = nn.Sequential(conv_net(), nn.Linear(5, 8), nn.Unflatten(1, (1, 8)), SelfAttention())
    getattr(model, mode)()
    model[0][1].eval()
    model(torch.randn(2, 3, 10, 10)).sum().backward()
    model[1].bias.requires_grad_(False)
    masks = random_masks(Masks.dense(model), 0.5)
    before = copy.deepcopy(dict(masks))
    with untouched(model), torch.inference_mode(inference):
        measure(model, masks, masks, (torch.ones(1, 3, 10, 10),))
    assert masks == Masks(before)
    model(torch.randn(2, 3, 10, 10)).sum().backward()


def test_the_model_comes_back_as_it_was_after_an_error(untouched):
    model = conv_net()
    masks = Masks.dense(model)
    with untouched(model), pytest.raises(RuntimeError):
        measure(model, masks, masks, (torch.ones(1, 7, 10, 10),))


def test_the_inputs_stay_as_they_are():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))
    inputs = -torch.ones(1, 3)
    flops_of(model, inputs)
    assert torch.equal(inputs, -torch.ones(1, 3))


def test_layers_are_counted_in_eval_mode():
    flops = flops_of(Units(lambda m, x: m.a(x) if m.training else m.b(x)), torch.ones(1, 4))
    assert dict(flops.by_weight) == {"a.weight": 0, "b.weight": ONE}


def test_sparse_tensors_are_no_obstacle():
    model = Units(lambda m, x: torch.sparse.mm(torch.eye(4).to_sparse(), m.a.weight) @ x.T)
    flops = flops_of(model, torch.ones(1, 4))
    assert flops == ({"a.weight": 0, "b.weight": 0}, ONE)


def test_branches_of_cond_are_run_unseen():
    model = Units(lambda m, x: m.a(torch.cond(x.sum() > 0, m.b, m.b, (x,))))
    assert flops_of(model, torch.ones(1, 4)) == ({"a.weight": ONE, "b.weight": 0}, 0)
