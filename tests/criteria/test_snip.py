"""SNIP against gradients worked out by hand in numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_prune import LitPruneError, Masks, Probe, prune
from lit_prune.criteria import SNIP


def network(*widths, dtype=torch.float64):
    torch.manual_seed(0)
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def batches_of(width, classes, sizes=(4, 4), dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, width, generator=draw, dtype=dtype),
            torch.randint(classes, (n,), generator=draw),
        )
        for n in sizes
    ]


def arrays_of(model, masks):
    """Weights (with what is pruned at zero) and biases of an MLP."""
    names = list(Masks.dense(model))
    parameters = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    keep = {name: mask.numpy() for name, mask in masks.items()}
    weights = [parameters[n] * keep[n] if n in keep else parameters[n] for n in names]
    biases = [parameters[n.replace("weight", "bias")] for n in names]
    return names, weights, biases


def gradients(weights, biases, x, y):
    """Back-propagation by hand: mean cross-entropy, ReLU between the layers."""
    inputs, pre = [x], []
    for weight, bias in zip(weights, biases, strict=True):
        pre.append(inputs[-1] @ weight.T + bias)
        inputs.append(np.maximum(pre[-1], 0))
    exponentials = np.exp(pre[-1] - pre[-1].max(1, keepdims=True))
    delta = exponentials / exponentials.sum(1, keepdims=True)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    found = []
    for layer in reversed(range(len(weights))):
        found.insert(0, delta.T @ inputs[layer])
        delta = delta @ weights[layer] * (pre[layer - 1] > 0 if layer else 1)
    return found


def reference(model, batches, masks=None):
    """|w * mean over batches of dL/dw|."""
    masks = masks or Masks.dense(model)
    names, weights, biases = arrays_of(model, masks)
    each = [gradients(weights, biases, x.double().numpy(), y.numpy()) for x, y in batches]
    means = [np.mean(layer, axis=0) for layer in zip(*each, strict=True)]
    scores = {n: abs(w * g) for n, w, g in zip(names, weights, means, strict=True)}
    return {name: scores[name] for name in masks}


def assert_same(scores, expected, rtol=1e-10):
    assert list(scores) == list(expected)
    for name, score in scores.items():
        largest = abs(expected[name]).max()
        assert largest > 0
        np.testing.assert_allclose(score.numpy(), expected[name], rtol, atol=rtol * largest)


@pytest.mark.parametrize("widths", [(5, 3), (5, 7, 3), (6, 8, 5, 4)])
@pytest.mark.parametrize("sizes", [(6,), (4, 4, 4), (7, 2)], ids=["one", "equal", "unequal"])
def test_scores_are_those_of_numpy(widths, sizes):
    model, batches = network(*widths), batches_of(widths[0], widths[-1], sizes)
    scores = SNIP()(Probe(model, Masks.dense(model), batches))
    assert_same(scores, reference(model, batches))


def test_scores_in_float32_are_those_of_numpy():
    model = network(6, 8, 5, 4, dtype=torch.float32)
    batches = batches_of(6, 4, dtype=torch.float32)
    scores = SNIP()(Probe(model, Masks.dense(model), batches))
    assert_same(scores, reference(model, batches), rtol=2e-5)


def test_gradients_are_averaged_before_the_absolute_value():
    model = network(5, 7, 3)
    batches = batches_of(5, 3, (4, 4))
    together = SNIP()(Probe(model, Masks.dense(model), batches))
    apart = [SNIP()(Probe(model, Masks.dense(model), [batch])) for batch in batches]
    for name, score in together.items():
        mean_of_scores = (apart[0][name] + apart[1][name]) / 2
        assert (score <= mean_of_scores + 1e-12).all()
        assert (score < mean_of_scores * 0.99).any()  # where the two gradients differ in sign


def test_equal_batches_are_as_good_as_one_large_batch():
    model = network(5, 7, 3)
    first, second = batches_of(5, 3, (4, 4))
    whole = tuple(torch.cat(pair) for pair in zip(first, second, strict=True))
    two = SNIP()(Probe(model, Masks.dense(model), [first, second]))
    one = SNIP()(Probe(model, Masks.dense(model), [whole]))
    assert all(torch.allclose(one[name], two[name], rtol=1e-9, atol=1e-15) for name in one)


def test_pruned_weights_take_no_part_and_score_nothing():
    model, batches = network(6, 8, 5, 4), batches_of(6, 4)
    draw = torch.Generator().manual_seed(2)
    dense = Masks.dense(model)
    masks = Masks({n: torch.rand(m.shape, generator=draw) < 0.6 for n, m in dense.items()})
    scores = SNIP()(Probe(model, masks, batches))
    assert_same(scores, reference(model, batches, masks))
    assert all(not scores[name][~mask].any() for name, mask in masks.items())


def test_only_the_layers_of_the_masks_are_scored():
    model, batches = network(5, 7, 3), batches_of(5, 3)
    masks = Masks({"2.weight": torch.rand(3, 7) < 0.5})
    assert_same(SNIP()(Probe(model, masks, batches)), reference(model, batches, masks))


def test_another_loss_is_used_where_one_is_given():
    model, batches = network(4, 3), batches_of(4, 3)

    def sum_of_outputs(model, batch):
        return model(batch[0]).sum()

    scores = SNIP()(Probe(model, Masks.dense(model), batches, loss=sum_of_outputs))
    inputs = sum(x.sum(0) for x, _ in batches) / 2  # the gradient of every row
    assert torch.allclose(scores["0.weight"], (model[0].weight * inputs).abs())


def test_frozen_weights_are_scored_alike():
    model, batches = network(5, 7, 3), batches_of(5, 3)
    free = SNIP()(Probe(model, Masks.dense(model), batches))
    model.requires_grad_(False)
    frozen = SNIP()(Probe(model, Masks.dense(model), batches))
    assert all(torch.equal(free[name], frozen[name]) for name in free)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_scored_in_the_mode_that_it_is_in(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train(training)
    x, y = torch.randn(8, 5) * 3 + 1, torch.arange(8) % 3
    scores = SNIP()(Probe(model, Masks.dense(model), [(x, y)]))
    hidden = model[0](x)
    if training:
        normed = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    else:
        normed = hidden / (1 + 1e-5) ** 0.5
    loss = F.cross_entropy(model[2](normed), y)
    expected = torch.autograd.grad(loss, [model[0].weight, model[2].weight])
    for name, gradient in zip(("0.weight", "2.weight"), expected, strict=True):
        weight = model.get_parameter(name)
        assert torch.allclose(scores[name], (weight * gradient).abs(), rtol=1e-3, atol=1e-6)


def test_weights_that_the_loss_does_not_see_score_nothing():
    model = network(4, 3)
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: model[0](x)
    scores = SNIP()(Probe(model, Masks.dense(model), batches_of(4, 3)))
    assert scores["0.weight"].all()
    assert not scores["unused.weight"].any()


@pytest.mark.parametrize("batches", [(), [], None, iter(())])
def test_without_batches_there_is_nothing_to_score(batches):
    with pytest.raises(LitPruneError, match="SNIP needs training data: pass batches="):
        prune(network(4, 3), SNIP(), "50%", batches=batches)
