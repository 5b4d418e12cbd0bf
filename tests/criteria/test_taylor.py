"""Taylor against loops over batches."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_prune import LitPruneError, Masks, Probe, prune
from lit_prune.criteria import SNIP, Taylor
from lit_prune.quotas import Uniform


def small(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.Linear(5, 3))
    return nn.Sequential(*layers).to(dtype)


def batches_of(*sizes, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 6, generator=draw, dtype=dtype), torch.arange(n) % 3) for n in sizes]


def reference(model, batches, masks=None):
    """The mean of (w * dL/dw)^2, one batch and one backward pass at a time."""
    model = deepcopy(model)
    masks = masks or Masks.dense(model)
    masks.apply(model)
    found = {name: [] for name in masks}
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, weight in masks.parameters(model).items():
            found[name].append((weight.detach() * weight.grad) ** 2)
    return {name: sum(each) / len(batches) for name, each in found.items()}


def assert_same(scores, expected):
    assert list(scores) == list(expected)
    for name, score in scores.items():
        largest = float(expected[name].max())
        assert largest > 0
        torch.testing.assert_close(score, expected[name], rtol=1e-9, atol=1e-12 * largest)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [(6,), (5, 5, 5), (7, 3)], ids=["one", "equal", "unequal"])
def test_scores_are_those_of_a_loop(sizes, training):
    model, batches = small().train(training), batches_of(*sizes)
    scores = Taylor()(Probe(model, Masks.dense(model), batches))
    assert_same(scores, reference(model, batches))


def test_pruned_weights_take_no_part_and_score_nothing():
    model, batches = small(), batches_of(6, 4)
    draw = torch.Generator().manual_seed(2)
    dense = Masks.dense(model)
    masks = Masks({n: torch.rand(m.shape, generator=draw) < 0.6 for n, m in dense.items()})
    scores = Taylor()(Probe(model, masks, batches))
    assert_same(scores, reference(model, batches, masks))
    assert all(not scores[name][~mask].any() for name, mask in masks.items())


def test_one_batch_gives_the_order_of_snip():
    model, batches = small(), batches_of(9)
    probe = Probe(model, Masks.dense(model), batches)
    taylor, snip = Taylor()(probe), SNIP()(probe)
    assert all(torch.allclose(taylor[name], snip[name] ** 2) for name in snip)
    for keep in range(0, 104, 3):
        one, other = (prune(model, c, keep, batches=batches) for c in (Taylor(), SNIP()))
        assert one == other
    by_layer = [prune(model, c, 30, Uniform(), batches=batches) for c in (Taylor(), SNIP())]
    assert by_layer[0] == by_layer[1]


def test_gradients_that_cancel_are_important_all_the_same():
    def signed(model, batch):
        return batch * model(torch.ones(1, 2)).sum()

    model = nn.Linear(2, 1)
    probe = Probe(model, Masks.dense(model), [1.0, -1.0], loss=signed)
    assert not SNIP()(probe)["weight"].any()
    assert torch.allclose(Taylor()(probe)["weight"], model.weight.detach() ** 2)


def test_it_is_a_mean_and_not_a_sum():
    model, batch = small(), batches_of(5)
    once, thrice = (Taylor()(Probe(model, Masks.dense(model), batch * n)) for n in (1, 3))
    assert all(torch.allclose(once[name], thrice[name]) for name in once)


def test_frozen_weights_are_scored_alike():
    model, batches = small(), batches_of(6, 4)
    free = Taylor()(Probe(model, Masks.dense(model), batches))
    model.requires_grad_(False)
    frozen = Taylor()(Probe(model, Masks.dense(model), batches))
    assert all(torch.equal(free[name], frozen[name]) for name in free)


def test_weights_that_the_loss_does_not_see_score_nothing():
    model = small()
    model.unused = nn.Linear(2, 2).double()
    model.forward = lambda x: model[4](model[3](model[0](x)))
    scores = Taylor()(Probe(model, Masks.dense(model), batches_of(4)))
    assert scores["0.weight"].any()
    assert not scores["unused.weight"].any()


@pytest.mark.parametrize("batches", [(), None, iter(())])
def test_without_batches_there_is_nothing_to_score(batches):
    with pytest.raises(LitPruneError, match="Taylor needs training data: pass batches="):
        prune(small(), Taylor(), "50%", batches=batches)
