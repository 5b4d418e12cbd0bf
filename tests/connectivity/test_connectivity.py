"""What Connectivity takes, what it leaves alone, and how it says no."""

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune import Connectivity, LitPruneError, Masks, Ranking, UnsupportedOp
from lit_prune.connectivity import rule
from lit_prune.errors import MasksMismatch, NonFiniteScores


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


def effective(model, example=(1, 4)):
    rows = Connectivity(model, example).effective(Masks.dense(model)).layers()
    return {row.name: row.kept for row in rows}


ALL = {"0.weight": 20, "2.weight": 15}


class Of(nn.Module):
    """A network of a function of its two layers."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.second, self.run = nn.Linear(4, 4), nn.Linear(4, 4), forward

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    "example",
    [(1, 4), torch.rand(1, 4), (torch.rand(1, 4),), [torch.rand(1, 4)], torch.Size([1, 4])],
)
def test_an_example_is_a_tensor_some_tensors_or_a_shape(example):
    assert effective(mlp(), example) == ALL


@pytest.mark.parametrize(
    "example", [(1, 6.0), "abc", {"x": torch.rand(1, 4)}, (torch.rand(1), None)]
)
def test_anything_else_is_named(example):
    with pytest.raises(LitPruneError, match="is no tensor, tuple of tensors, or shape"):
        Connectivity(mlp(), example)


@pytest.mark.parametrize("example", [None, (), []])
def test_an_example_is_needed(example):
    with pytest.raises(LitPruneError, match="example="):
        Connectivity(mlp(), example)


def test_an_example_that_does_not_fit_is_told_with_its_shape():
    with pytest.raises(LitPruneError, match=r"Sequential does not take .* shape \(1, 5\)"):
        Connectivity(mlp(), (1, 5))


def test_the_example_and_the_model_stay_as_they_are():
    model, example = nn.Sequential(nn.ReLU(inplace=True), *mlp()), torch.randn(1, 4)
    model[1].weight.grad = torch.ones(5, 4)
    model[1].cache = torch.zeros(3)
    before, shown = copy.deepcopy(model.state_dict()), example.clone()
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    hooks = len(nn.modules.module._global_forward_hooks)
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    connectivity = Connectivity(model, example)
    connectivity.effective(Masks.dense(model))
    assert torch.equal(example, shown)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert torch.equal(model[1].weight.grad, torch.ones(5, 4))
    assert model.training
    assert len(nn.modules.module._global_forward_hooks) == hooks
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


def test_a_cache_that_forward_writes_to_is_put_back():
    def forward(self, x):
        self.cache.add_(1)
        self.kept = x
        return self.second(self.first(x))

    model = Of(forward)
    model.cache = torch.zeros(2)
    Connectivity(model, (1, 4))
    assert torch.equal(model.cache, torch.zeros(2))
    assert not hasattr(model, "kept")


@pytest.mark.parametrize("warm", [False, True])
def test_autocast_changes_nothing(warm):
    model = mlp()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if warm:
            model(torch.rand(1, 4))
        assert effective(model) == ALL


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_grad_mode_will_do(context):
    model = mlp()
    with context():
        assert effective(model) == ALL
    model(torch.rand(2, 4)).sum().backward()


@dataclass
class Inner:
    value: Any


@dataclass(slots=True)
class Slots:
    value: Any
    more: Any = field(default=None)


class Named(dict):
    pass


class Plain:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize(
    "wrap", [Inner, Slots, Plain, lambda y: Named(y=y), lambda y: Inner([{"y": Slots(y)}])]
)
def test_outputs_are_found_however_nested(wrap):
    model = Of(lambda self, x: (self.first(x), wrap(self.second(x))))
    assert effective(model) == {"first.weight": 16, "second.weight": 16}


def test_two_weights_may_share_one_memory():
    model = Of(lambda self, x: self.second(self.first(x)))
    model.second.weight.data = model.first.weight.data
    assert effective(model) == {"first.weight": 16, "second.weight": 16}
    whole = torch.rand(4, 8)
    model.first.weight, model.second.weight = (nn.Parameter(half) for half in whole.split(4, 1))
    masks = Masks({"first.weight": torch.eye(4) > 0, "second.weight": torch.rand(4, 4) > 0.5})
    assert Connectivity(model, (1, 4)).effective(masks) == masks


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda s, x: s.first(x) + s.first.weight.data.clamp_(-1, 1)[0], "writes to a parameter"),
        (lambda s, x: (s.first.bias.data.mul_(2), s.first(x))[1], "writes to a parameter"),
        (lambda s, x: F.linear(x, s.first.weight[:1].expand(4, -1)), "repeats elements of .*first"),
        (lambda s, x: F.linear(x, s.first.weight + s.shift), "turns zeros of .*first.weight"),
        (lambda s, x: F.linear(x, s.first.weight.flip(0)), "first.weight"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name_and_leaves_the_model_alone(forward, words):
    model = Of(forward)
    model.shift = nn.Parameter(torch.zeros(4, 4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedOp, match=words) as caught:
        Connectivity(model, (1, 4))
    for word in ("aten::", "(4, 4)" if "writes" not in words else "shapes", "the model itself"):
        assert word in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_runs_on_a_copy_of_its_weight_is_refused():
    class Merged(nn.Linear):
        def forward(self, x):
            return x @ self.copy

    model = nn.Sequential(nn.Linear(4, 4), Merged(4, 4))
    model[1].copy = model[1].weight.detach().T.contiguous()
    with pytest.raises(UnsupportedOp, match=r"Merged ran without reading 1.weight.*exclude="):
        Connectivity(model, (1, 4))
    dense = Masks.dense(model, exclude="1.weight")
    assert Connectivity(model, (1, 4), exclude="1.weight").effective(dense) == dense


def test_a_rule_that_fails_is_named():
    @torch.library.custom_op("lit_prune_tests::broken_rule", mutates_args=())
    def broken(x: Tensor) -> Tensor:
        return x.clone()

    @rule("lit_prune_tests::broken_rule")
    def no_rule(wire, x):
        return wire.merge(x, shape=1 / 0)

    with pytest.raises(UnsupportedOp, match=r"broken_rule .* has a rule that fails: ZeroDivision"):
        Connectivity(Of(lambda self, x: broken(self.first(x))), (1, 4))


def test_a_model_without_a_path_or_a_weight_is_refused():
    with pytest.raises(LitPruneError, match="no output of Of depends on its input"):
        Connectivity(Of(lambda self, x: torch.zeros(1)), (1, 4))
    with pytest.raises(LitPruneError, match="BatchNorm1d has no prunable weight"):
        Connectivity(nn.BatchNorm1d(4), (1, 4))


def test_layers_without_elements_are_on_no_path():
    model = Of(lambda self, x: (self.none(x), self.first(x)))
    model.none = nn.Linear(4, 0)
    assert effective(model)["none.weight"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.55, 0.9])
def test_thresholds_hold_in_the_type_of_the_scores(dtype, threshold):
    model = mlp()
    scores = {n: torch.rand(m.shape).to(dtype) for n, m in Masks.dense(model).items()}
    connectivity = Connectivity(model, (1, 4))
    found = connectivity.effective_scores(scores)
    assert {value.dtype for value in found.values()} == {dtype}
    masks = Masks({name: score >= threshold for name, score in scores.items()})
    wanted = Masks({name: value >= threshold for name, value in found.items()})
    assert connectivity.effective(masks) == wanted


def test_a_curve_is_that_of_its_masks():
    model = mlp()
    dense = Masks.dense(model)
    scores = {n: torch.randint(-3, 6, m.shape).float() for n, m in dense.items()}
    connectivity = Connectivity(model, (1, 4))
    curve = connectivity.curve(scores)
    assert curve.keep[0] == curve.total == dense.total
    for keep, direct, measured in zip(
        *map(Tensor.tolist, (curve.keep, curve.direct, curve.effective)), strict=True
    ):
        masks = Ranking(scores).keep(keep)
        assert direct == pytest.approx(masks.sparsity)
        assert measured == pytest.approx(connectivity.effective(masks).sparsity)


def test_what_belongs_to_another_model_is_refused():
    connectivity = Connectivity(mlp(), (1, 4))
    with pytest.raises(MasksMismatch, match=r"other\.weight is no prunable weight"):
        connectivity.effective(Masks({"other.weight": torch.ones(1, dtype=torch.bool)}))
    with pytest.raises(MasksMismatch, match=r"0.weight is \(2, 2\) here and \(5, 4\)"):
        connectivity.effective_scores({"0.weight": torch.ones(2, 2)})
    with pytest.raises(NonFiniteScores, match=r"0\.weight hold NaN"):
        connectivity.effective_scores({"0.weight": torch.full((5, 4), torch.nan)})
    with pytest.raises(LitPruneError, match="beyond 2"):
        connectivity.effective_scores({"0.weight": torch.full((5, 4), 2**60)})
    with pytest.raises(MasksMismatch, match="not one weight"):
        connectivity.curve({})
    with pytest.raises(LitPruneError, match="unknown resolution 'pixel'; known: element, channel"):
        Connectivity(mlp(), (1, 4), resolution="pixel")
