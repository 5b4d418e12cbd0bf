"""One battery over every criterion that lies in the folder, on many small models."""

import random
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_prune import Masks, Probe, prune
from lit_prune import criteria as package
from lit_prune.criteria import SNIP, Criterion
from lit_prune.shelf import members

CRITERIA = members(package.__name__, package.__path__, Criterion)


def arguments(kind):
    """What a criterion must be given: controls wrap another."""
    needed = [f for f in fields(kind) if f.default is f.default_factory is MISSING]
    return {field.name: SNIP() for field in needed}


EVERY_CRITERION = pytest.mark.parametrize(
    "criterion", [c(**arguments(c)) for c in CRITERIA.values()], ids=list(CRITERIA)
)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.body, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm1(self.stem(x)))
        x = F.relu(self.norm2(self.body(x)) + x, inplace=True)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(4, 3)

    def forward(self, x):
        x = x.flatten(2).mT  # (batch, 36 places, 2 channels)
        x = self.norm(torch.cat([x, x**2], 2))
        return self.head(self.drop(x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


def mlp():
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(72, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(8, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)),
    )


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 1, groups=2), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)),
    )


def double():
    return mlp().double()


def frozen():
    model = cnn()
    model[0].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


def all_frozen():
    return Residual().requires_grad_(False)


def evaluating():
    return mlp().eval()


def partly_evaluating():
    model = mlp()
    model[2].eval()
    return model


def unused_and_tied():
    model = mlp()
    model.append(nn.Identity())
    model[-1].unused = nn.Linear(5, 5)
    model[-1].tied = nn.Linear(6, 3)
    model[-1].tied.weight = model[7].weight
    return model


def evaluating_attention():
    return Attention().eval()


def channels_last():
    return cnn().to(memory_format=torch.channels_last)


MODELS = [
    *(mlp, cnn, Residual, Attention, double, frozen, all_frozen, evaluating, partly_evaluating),
    *(evaluating_attention, unused_and_tied, channels_last),
]
EVERY_MODEL = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def made(make):
    """A model that has been trained on a little: odd statistics, and gradients on some weights."""
    torch.manual_seed(0)
    model = make()
    batch = batches_for(model)[0]
    if any(p.requires_grad for p in model.parameters()):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        next(p for p in model.parameters() if p.grad is not None).grad = None
    return model


def batches_for(model):
    draw = torch.Generator().manual_seed(3)
    dtype = next(model.parameters()).dtype
    return [
        (torch.randn(n, 2, 6, 6, generator=draw, dtype=dtype), torch.arange(n) % 3) for n in (5, 4)
    ]


def probe_of(model, masks=None, seed=1):
    batches = batches_for(model)
    return Probe(
        model,
        masks or Masks.dense(model),
        batches=batches,
        example=batches[0][0],
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        keep=10,
    )


def half_of(model):
    draw = torch.Generator().manual_seed(7)
    dense = Masks.dense(model)
    return Masks({n: torch.rand(mask.shape, generator=draw) < 0.7 for n, mask in dense.items()})


def test_every_file_of_the_folder_gives_a_criterion_to_the_package():
    files = {path.stem for path in Path(package.__path__[0]).glob("*.py")}
    homes = {criterion.__module__.rpartition(".")[2] for criterion in CRITERIA.values()}
    assert homes == files - {"__init__"}
    assert all(getattr(package, name) is criterion for name, criterion in CRITERIA.items())
    assert set(CRITERIA) <= set(package.__all__)


@EVERY_CRITERION
def test_a_criterion_is_a_frozen_value_with_its_number_of_rounds(criterion):
    assert type(criterion)(**arguments(type(criterion))) == criterion
    assert isinstance(criterion.rounds, int)
    assert criterion.rounds >= 1
    with pytest.raises(AttributeError):
        criterion.rounds = 3


@EVERY_CRITERION
@EVERY_MODEL
@pytest.mark.parametrize("choose", [Masks.dense, half_of], ids=["dense", "masked"])
def test_one_finite_score_for_every_connection(criterion, make, choose):
    model = made(make)
    probe = probe_of(model, choose(model))
    scores = criterion(probe)
    assert isinstance(scores, Mapping)
    assert list(scores) == list(probe.masks)
    for name, score in scores.items():
        assert score.shape == probe.masks[name].shape
        assert score.isfinite().all()
        assert not score.requires_grad


@EVERY_CRITERION
@EVERY_MODEL
def test_only_masked_layers_are_scored(criterion, make):
    model = made(make)
    first = next(iter(Masks.dense(model)))
    assert list(criterion(probe_of(model, Masks.dense(model, exclude=first)))) == [
        name for name in Masks.dense(model) if name != first
    ]


@EVERY_CRITERION
@EVERY_MODEL
def test_the_same_generator_gives_the_same_scores(criterion, make):
    model = made(make)
    first = criterion(probe_of(model))
    torch.manual_seed(99)  # what the global generators hold must not matter
    random.seed(99)
    np.random.seed(99)
    again = criterion(probe_of(model))
    assert all(torch.equal(first[name], again[name]) for name in first)


@EVERY_CRITERION
@EVERY_MODEL
def test_the_model_and_the_generators_are_untouched(criterion, make, untouched):
    model = made(make)
    with untouched(model):
        criterion(probe_of(model, half_of(model)))
    with untouched(model), torch.no_grad():
        criterion(probe_of(model))
    with untouched(model):
        criterion(probe_of(model, seed=None))


@EVERY_CRITERION
@EVERY_MODEL
def test_without_a_generator_the_initial_seed_decides(criterion, make):
    model = made(make)
    torch.manual_seed(4)
    first = criterion(probe_of(model, seed=None))
    torch.rand(3)  # the seed decides, and not how many numbers were drawn since
    again = criterion(probe_of(model, seed=None))
    assert all(torch.equal(first[name], again[name]) for name in first)


@EVERY_CRITERION
@EVERY_MODEL
def test_scores_are_those_of_the_network_as_pruned_so_far(criterion, make):
    model = made(make)
    masks = half_of(model)
    before = criterion(probe_of(model, masks))
    with torch.no_grad():
        for name, weight in masks.parameters(model).items():
            weight[~masks[name]] = 3.0
    after = criterion(probe_of(model, masks))
    for name, mask in masks.items():
        assert torch.equal(before[name][mask], after[name][mask])


@EVERY_CRITERION
@EVERY_MODEL
def test_prune_keeps_the_exact_count_and_leaves_no_trace(criterion, make, untouched):
    model = made(make)
    batches, total = batches_for(model), Masks.dense(model).total
    with untouched(model):
        masks = prune(model, criterion, total // 5, rounds=3, batches=batches)
    if criterion.whole_filters:
        assert total // 5 <= masks.kept < total // 5 + max(m[0].numel() for m in masks.values())
    else:
        assert masks.kept == total // 5
    masks.apply(model)
    assert all(int((model.get_parameter(n) != 0).sum()) <= int(m.sum()) for n, m in masks.items())


def reckless(probe):
    """All that a criterion of a user may do to a model."""
    model = probe.model.train(not probe.model.training)
    for module in model.modules():
        module.training = not module.training
    model.requires_grad_(True)
    for x, y in probe.batches:
        F.cross_entropy(model(x), y).backward()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    scores = {n: w.grad.clone().abs() for n, w in probe.masks.parameters(model).items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
            parameter.grad.zero_()
        for buffer in model.buffers():
            buffer.add_(1)
    for module in model.modules():
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = torch.zeros_like(buffer)
    torch.manual_seed(5)
    random.random()
    np.random.rand()
    return scores


@EVERY_MODEL
def test_a_reckless_function_leaves_no_trace(make, untouched):
    model = made(make)
    with untouched(model):
        masks = prune(model, reckless, "50%", rounds=2, batches=batches_for(model))
    assert masks.sparsity == pytest.approx(0.5, abs=0.01)


@EVERY_MODEL
def test_a_function_that_fails_leaves_no_trace(make, untouched):
    def failing(probe):
        with probe.masked():
            reckless(probe)
        raise ZeroDivisionError

    model = made(make)
    with untouched(model), pytest.raises(ZeroDivisionError):
        prune(model, failing, "50%", batches=batches_for(model))


def test_a_function_that_replaces_parameters_leaves_no_trace(untouched):
    def replacing(probe):
        scores = {
            name: w.detach().clone() for name, w in probe.masks.parameters(probe.model).items()
        }
        probe.model[1].weight = nn.Parameter(torch.zeros(8, 72))
        probe.model[1].bias = None
        return scores

    model = made(mlp)
    with untouched(model):
        prune(model, replacing, "50%")


def test_a_function_that_registers_or_drops_buffers_leaves_no_trace(untouched):
    def registering(probe):
        probe.model.register_buffer("activations", torch.zeros(3))
        del probe.model[2].running_mean
        return {name: torch.rand(mask.shape) for name, mask in probe.masks.items()}

    model = made(mlp)
    with untouched(model):
        prune(model, registering, "50%")


def test_the_generators_of_devices_are_not_seeded_before_they_exist(monkeypatch):
    # torch.manual_seed notes a seed for the devices even before the first of them is used.
    if torch.cuda.is_initialized():
        pytest.skip("the generators of the devices are saved and restored")
    model, seeds = made(mlp), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    prune(model, lambda p: {n: torch.rand(m.shape) for n, m in p.masks.items()}, "50%")
    assert seeds == []
