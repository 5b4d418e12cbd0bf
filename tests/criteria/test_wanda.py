"""Wanda against inputs caught by hooks, against Jacobians, and attention written out."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev

from lit_prune import LitPruneError, Masks, Probe, prune
from lit_prune.criteria import Wanda
from lit_prune.errors import LitPruneWarning, NonFiniteScores
from lit_prune.quotas import Uniform


def run_only(model, batch):
    """A loss for layers that classify nothing."""
    return model(*batch).sum()


def products(model, batches, masks=None, loss=run_only):
    """The plain product, |w| * ||x||."""
    return Wanda(per_output=False)(Probe(model, masks or Masks.dense(model), batches, loss=loss))


def assert_same(scores, expected):
    assert list(scores) == list(expected)
    for name, score in scores.items():
        assert expected[name].any()
        torch.testing.assert_close(score, expected[name].detach(), rtol=1e-9, atol=1e-12)


def numbers(*shape, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


# --- linear layers


def mlp():
    torch.manual_seed(0)
    layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5))
    model = nn.Sequential(*layers, nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def caught(model, batches, masks=None):
    """|w| * ||x|| with the inputs of all linear layers, as forward hooks see them in eval mode."""
    model = deepcopy(model).eval()
    masks = masks or Masks.dense(model)
    masks.apply(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    inputs = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: inputs[name].append(args[0].detach().flatten(0, -2))
        )
    for batch in batches:
        model(*batch)
    norms = {name: torch.cat(xs).norm(dim=0) for name, xs in inputs.items()}
    return {f"{n}.weight": layer.weight.abs() * norms[n] for n, layer in layers.items()}


@pytest.mark.parametrize("sizes", [(5,), (4, 4, 4), (7, 1)], ids=["one", "equal", "unequal"])
def test_scores_of_linear_layers_are_weights_by_norms_of_their_inputs(sizes):
    batches = [(numbers(n, 6, seed=n),) for n in sizes]
    assert_same(products(mlp(), batches), caught(mlp(), batches))


@pytest.mark.parametrize("shape", [(2, 7, 6), (2, 3, 4, 6)])
def test_tokens_and_further_dimensions_are_so_many_inputs_more(shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)).double()
    batches = [(numbers(*shape),), (numbers(*shape, seed=2),)]
    assert_same(products(model, batches), caught(model, batches))


def test_squares_are_added_up_over_batches():
    model, first, second = mlp(), (numbers(4, 6),), (numbers(3, 6, seed=2),)
    whole = (torch.cat([first[0], second[0]]),)
    assert_same(products(model, [first, second]), products(model, [whole]))
    apart = [products(model, [batch]) for batch in (first, second)]
    for name, score in products(model, [first, second]).items():
        squares = apart[0][name] ** 2 + apart[1][name] ** 2
        assert torch.allclose(score, squares.sqrt(), rtol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_runs_in_eval_mode(training):
    batches = [(numbers(5, 6),)]
    assert_same(products(mlp().train(training), batches), caught(mlp(), batches))


def test_pruned_weights_score_nothing_and_what_they_fed_is_seen_without_them():
    model, batches = mlp(), [(numbers(5, 6),)]
    draw = torch.Generator().manual_seed(2)
    dense = Masks.dense(model)
    masks = Masks({n: torch.rand(m.shape, generator=draw) < 0.6 for n, m in dense.items()})
    scores = products(model, batches, masks)
    assert_same(scores, caught(model, batches, masks))
    assert all(not scores[name][~mask].any() for name, mask in masks.items())


def test_a_layer_that_is_run_twice_has_the_inputs_of_both():
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4).double()

        def forward(self, x):
            return self.fc(torch.tanh(self.fc(x)))

    model, batches = Twice(), [(numbers(5, 4),)]
    twice = caught(model, batches)
    assert_same(products(model, batches), twice)
    once = model.fc.weight.abs() * batches[0][0].norm(dim=0)
    assert (twice["fc.weight"] > once).all()


def test_a_single_vector_is_an_input_too():
    model = nn.Linear(6, 3).double()
    x = numbers(6)
    assert_same(products(model, [(x,)]), {"weight": model.weight.abs() * x.abs()})


# --- convolutions


def by_jacobian(model, x):
    """Each output is linear in the weights: its derivative is what a weight is multiplied by."""
    model = deepcopy(model).eval()
    weights = dict(Masks.dense(model).parameters(model))

    def output(weights):
        return functional_call(model, weights, (x,)).flatten()

    jacobians = jacrev(output)({n: w.detach() for n, w in weights.items()})
    return {n: w.abs() * jacobians[n].square().sum(0).sqrt() for n, w in weights.items()}


CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 6, 5)),
    "strided and padded": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 7, 6)),
    "padded to the same size": (nn.Conv2d(2, 3, (3, 5), padding="same"), (2, 2, 5, 6)),
    "dilated": (nn.Conv2d(2, 3, 3, dilation=2, padding=2), (2, 2, 6, 6)),
    "in groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, stride=2), (2, 4, 6, 6)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 5)),
    "1x1": (nn.Conv2d(4, 3, 1, bias=False), (2, 4, 3, 3)),
    "without a batch": (nn.Conv2d(2, 3, 3), (2, 5, 5)),
    "1d": (nn.Conv1d(3, 4, 3, padding=1, stride=2), (2, 3, 9)),
    "3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 3, 4, 3)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3), (2, 3, 4, 5)),
    "transposed, strided": (
        nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1),
        (2, 3, 4, 4),
    ),
    "transposed, in groups": (nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2), (2, 4, 4, 4)),
    "transposed, 1d": (nn.ConvTranspose1d(2, 3, 4, stride=3), (2, 2, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_scores_of_a_convolution_are_weights_by_what_they_are_multiplied_by(name):
    layer, shape = CONVOLUTIONS[name]
    layer, x = deepcopy(layer).double(), numbers(*shape)
    assert_same(products(layer, [(x,)]), by_jacobian(layer, x))


def test_taps_are_the_rows_of_the_unfolded_input():
    layer = nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)).double()
    x = numbers(5, 3, 8, 7)
    columns = F.unfold(x, (3, 2), (1, 2), (1, 0), (2, 1))  # (batch, taps, positions)
    norms = columns.transpose(0, 1).flatten(1).norm(dim=1).view(3, 3, 2)
    assert_same(products(layer, [(x,)]), {"weight": layer.weight.abs() * norms})


def test_a_corner_that_only_meets_padding_scores_nothing():
    layer, x = nn.Conv2d(1, 2, 3, padding=1).double(), numbers(4, 1, 1, 1)
    score = products(layer, [(x,)])["weight"]
    expected = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    expected[:, 0, 1, 1] = layer.weight[:, 0, 1, 1].detach().abs() * x.norm()
    assert torch.allclose(score, expected)


def test_a_network_of_convolutions_is_seen_layer_by_layer():
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, stride=2)
    model = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(inplace=True), second).double()
    model = model.to(memory_format=torch.channels_last)
    x = numbers(3, 2, 7, 7)
    hidden = model.eval()[:3](x)
    expected = by_jacobian(first, x)["weight"], by_jacobian(second, hidden)["weight"]
    scores = products(model.train(), [(x,)])
    assert_same(scores, dict(zip(("0.weight", "3.weight"), expected, strict=True)))


# --- attention


class Attending(nn.Module):
    def __init__(self, batch_first=False, **sizes):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, **sizes)

    def forward(self, query, key, value):
        return self.attention(query, key, value, need_weights=False)[0]


def attended(attention, query, key, value, weights):
    """What attention hands to its output projection; inputs of (batch, tokens, channels)."""
    wq, wk, wv = weights
    bq, bk, bv = attention.in_proj_bias.chunk(3)
    pairs = ((query, wq, bq), (key, wk, bk), (value, wv, bv))
    q, k, v = (F.linear(x, w, b).unflatten(2, (2, 2)).transpose(1, 2) for x, w, b in pairs)
    found = torch.softmax(q @ k.mT / math.sqrt(2), -1) @ v
    return found.transpose(1, 2).flatten(2)


def norm_of(x):
    return x.flatten(0, -2).norm(dim=0)


def expected_of(model, query, key, value):
    """|w| * ||x|| for the three projections and the one behind; (batch, tokens, channels)."""
    attention = model.attention
    if packed := attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    else:
        weights = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
    parts = [w.abs() * norm_of(x) for w, x in zip(weights, (query, key, value), strict=True)]
    names = [f"attention.{name}_proj_weight" for name in "qkv"]
    rows = {"attention.in_proj_weight": torch.cat(parts)} if packed else {}
    rows = rows or dict(zip(names, parts, strict=True))
    inner = norm_of(attended(attention, query, key, value, weights))
    return {**rows, "attention.out_proj.weight": attention.out_proj.weight.abs() * inner}


def attending(**sizes):
    torch.manual_seed(0)
    model = Attending(**sizes).double()
    nn.init.normal_(model.attention.in_proj_bias)
    return model


def assert_attention(model, query, key, value, is_self=False):
    batch = [x if model.attention.batch_first else x.transpose(0, 1) for x in (query, key, value)]
    batch = [batch[0]] * 3 if is_self else batch
    assert_same(products(model, [batch]), expected_of(model, query, key, value))


def test_self_attention_has_one_input_for_all_rows():
    x = numbers(2, 5, 4)
    assert_attention(attending(), x, x, x, is_self=True)


def test_cross_attention_has_other_inputs_for_keys_and_values():
    query, memory = numbers(2, 5, 4), numbers(2, 3, 4, seed=2)
    model = attending()
    x = [query.transpose(0, 1), memory.transpose(0, 1)]
    scores = products(model, [(x[0], x[1], x[1])])
    assert_same(scores, expected_of(model, query, memory, memory))


def test_queries_keys_and_values_of_their_own_are_told_apart():
    query, key, value = (numbers(2, n, 4, seed=n) for n in (5, 3, 3))
    assert_attention(attending(), query, key, value + 1)
    assert_attention(attending(batch_first=True), query, key, value + 1)


def test_keys_and_values_of_other_widths_have_weights_of_their_own():
    query, key, value = numbers(2, 5, 4), numbers(2, 3, 6, seed=2), numbers(2, 3, 2, seed=3)
    assert_attention(attending(kdim=6, vdim=2), query, key, value)


def test_self_attention_is_seen_with_the_batch_first_too():
    x = numbers(2, 5, 4)
    assert_attention(attending(batch_first=True), x, x, x, is_self=True)


@pytest.mark.parametrize("batch_first", [False, True])
def test_every_layer_of_an_encoder_is_seen(batch_first):
    torch.manual_seed(0)
    options = {"activation": "gelu", "batch_first": batch_first}
    scores = products(nn.TransformerEncoderLayer(4, 2, 8, **options), [(torch.randn(2, 5, 4),)])
    assert len(scores) == 4
    assert all(score.all() for score in scores.values())


# --- places inside each output


def conv_net():
    """Without ReLU, behind which an input may be zero for all images, and its products tie."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3, groups=3), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(24, 10), nn.Tanh(), nn.Linear(10, 3)),
    )


def images(*sizes):
    draw = torch.Generator().manual_seed(3)
    return [(torch.randn(n, 2, 6, 6, generator=draw), torch.arange(n) % 3) for n in sizes]


def test_places_are_those_of_the_products_inside_each_output():
    model, batches = conv_net(), images(4, 4)
    probe = Probe(model, Masks.dense(model), batches)
    places, plain = Wanda()(probe), Wanda(per_output=False)(probe)
    for name, place in places.items():
        rows, scores = place.flatten(1), plain[name].flatten(1)
        n = rows.shape[1]
        count = (scores[:, None] <= scores[:, :, None]).sum(2)  # brute force; there are no ties
        assert torch.allclose(rows, count / n)
        assert float(rows.max()) == 1


@given(st.integers(0, 396))
def test_every_output_unit_keeps_the_same_share(keep):
    masks = prune(conv_net(), Wanda(), keep, batches=images(4))
    assert masks.kept == keep
    least, most = [], []
    for mask in masks.values():
        kept, n = mask.flatten(1).sum(1), mask[0].numel()
        assert kept.max() - kept.min() <= 1
        least.append(float(kept.max() - 1) / n)
        most.append(float(kept.min() + 1) / n)
    # One share, rounded up or down to whole connections, is that of all layers.
    assert max(least) <= min(most)


def test_every_output_unit_keeps_the_same_number_in_rounds_and_with_a_quota():
    for asked in ({"rounds": 4}, {"quota": Uniform()}, {"rounds": 3, "quota": Uniform()}):
        masks = prune(conv_net(), Wanda(), 100, batches=images(4), **asked)
        for mask in masks.values():
            kept = mask.flatten(1).sum(1)
            assert kept.max() - kept.min() <= 1


def test_an_output_unit_keeps_its_highest_products():
    model, batches = conv_net(), images(5)
    plain = Wanda(per_output=False)(Probe(model, Masks.dense(model), batches))
    for name, mask in prune(model, Wanda(), "60%", batches=batches).items():
        for row, scores in zip(mask.flatten(1), plain[name].flatten(1), strict=True):
            if row.any() and not row.all():
                assert scores[row].min() > scores[~row].max()


def test_without_places_a_quota_ranks_the_products_of_a_layer_together():
    model, batches = conv_net(), images(5)
    plain = Wanda(per_output=False)(Probe(model, Masks.dense(model), batches))
    masks = prune(model, Wanda(per_output=False), "70%", Uniform(), batches=batches)
    for name, mask in masks.items():
        assert plain[name][mask].min() > plain[name][~mask].max()
    assert masks != prune(model, Wanda(), "70%", Uniform(), batches=batches)


def test_the_least_input_may_be_worth_more_than_the_least_weight():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 3.0]]))
    batches = [(torch.tensor([[10.0, 1.0]]),)]
    assert prune(model, Wanda(), 1, batches=batches, loss=run_only)["weight"].tolist() == [
        [True, False]
    ]


def test_a_transposed_convolution_has_no_rows_of_output_units():
    model = nn.Sequential(nn.ConvTranspose2d(4, 3, 2))
    batches = [(numbers(2, 4, 3, 3).float(),)]
    with pytest.raises(LitPruneError, match=r"0\.weight is of a transposed convolution"):
        prune(model, Wanda(), "50%", batches=batches, loss=run_only)
    assert prune(model, Wanda(False), "50%", batches=batches, loss=run_only).kept == 24


def test_places_of_wide_units_are_exact_in_half_precision():
    torch.manual_seed(0)
    model = nn.Linear(1000, 4, bias=False).bfloat16()
    index = torch.arange(1000)  # a thousand different numbers of eight bits each
    levels = (128 + index % 128) * 2.0 ** (index // 128)
    assert levels.bfloat16().unique().numel() == 1000
    with torch.no_grad():
        model.weight.copy_(torch.stack([levels[torch.randperm(1000)] for _ in range(4)]))
    batches = [(torch.ones(1, 1000).bfloat16(),)]
    probe = Probe(model, Masks.dense(model), batches, loss=run_only)
    assert all(row.unique().numel() == 1000 for row in Wanda()(probe)["weight"])


def test_large_inputs_do_not_overflow_in_half_precision():
    model = nn.Linear(4, 2).half()
    x = torch.tensor([[300.0, 10.0, 400.0, 1.0]]).half()
    score = products(model, [(x,)])["weight"]
    assert torch.allclose(score.float(), (model.weight.abs() * x).float(), rtol=1e-2)


@pytest.mark.parametrize("density", [0.9, 0.7, 0.5])
def test_units_with_inputs_that_are_always_zero_lose_the_same_share(density):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 10))
    x = torch.randn(8, 20)
    x[:, :12] = 0  # as the borders of images are, or units behind a ReLU
    masks = prune(model, Wanda(), {"density": density}, batches=[(x,)], loss=run_only)
    for mask in masks.values():
        kept, n = mask.sum(1), mask.shape[1]
        assert kept.max() - kept.min() <= 1
        assert abs(float(kept.float().mean()) - density * n) <= 1


def test_ties_inside_a_unit_do_not_go_by_index():
    model = nn.Linear(16, 8, bias=False)
    nn.init.ones_(model.weight)
    masks = prune(model, Wanda(), "50%", batches=[(torch.ones(1, 16),)], loss=run_only)
    assert len({tuple(row) for row in masks["weight"].tolist()}) > 1


# --- what is wrong


@pytest.mark.parametrize("per_output", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_an_error_that_names_the_layer(bad, per_output):
    model = conv_net()
    with torch.no_grad():
        model[7].weight[1, 1] = bad
    with pytest.raises(NonFiniteScores, match=r"7\.weight"):
        prune(model, Wanda(per_output), "50%", batches=images(4), loss=run_images)


NO_WEIGHTS = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def run_images(model, batch):
    return model(batch[0]).sum()


@NO_WEIGHTS
def test_layers_without_weights_are_no_hindrance():
    for empty in (nn.Linear(3, 0), nn.Linear(0, 3)):
        model = nn.Sequential(nn.Linear(6, 3).double())
        model.empty = empty.double()
        model.forward = model[0].forward
        scores = Wanda()(Probe(model, Masks.dense(model), [(numbers(2, 6),)], loss=run_only))
        assert scores["empty.weight"].numel() == 0
        assert scores["0.weight"].max() == 1


@NO_WEIGHTS
def test_several_layers_without_weights_are_no_hindrance():
    model = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 0), nn.Linear(0, 3)).double()
    scores = Wanda()(Probe(model, Masks.dense(model), [(numbers(2, 6),)], loss=run_only))
    assert scores["0.weight"].max() == 1


def test_frozen_and_compiled_networks_are_scored_alike():
    model, batches = conv_net(), images(4)
    expected = prune(model, Wanda(), "70%", batches=batches)
    assert prune(model.requires_grad_(False), Wanda(), "70%", batches=batches) == expected
    compiled = torch.compile(conv_net(), backend="eager")
    assert prune(compiled, Wanda(), "70%", batches=batches) == expected


@pytest.mark.parametrize("batches", [(), None, iter(())])
@pytest.mark.parametrize("per_output", [False, True])
def test_without_batches_there_is_nothing_to_score(batches, per_output):
    with pytest.raises(LitPruneError, match="Wanda needs training data: pass batches="):
        prune(conv_net(), Wanda(per_output), "50%", batches=batches)


def test_units_and_layers_that_nothing_passes_come_last():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10)
    )
    model.unused = nn.Linear(8, 8)
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    with torch.no_grad():
        model[2].weight[:10] = 0
    with pytest.warns(LitPruneWarning, match=r"Wanda saw nothing enter unused\.weight"):
        masks = prune(model, Wanda(), "4x", batches=[(torch.randn(8, 100),)], loss=run_only)
    assert not masks["2.weight"][:10].any()
    assert not masks["unused.weight"].any()


def test_a_product_with_a_turned_weight_is_seen():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4).double()

        def forward(self, x):
            return x @ self.fc.weight.t()

    model, x = Turned(), numbers(5, 6)
    assert_same(products(model, [(x,)]), {"fc.weight": model.fc.weight.abs() * x.norm(dim=0)})
