"""PHEW against walks one after the other in plain Python, and by what its ranking promises."""

import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_prune import Connectivity, LitPruneError, Masks, Probe, prunable, prune
from lit_prune.criteria import PHEW
from lit_prune.criteria.phew import _BLOCK
from lit_prune.errors import NonFiniteScores
from lit_prune.quotas import Uniform


def mlp(*widths, seed=0):
    torch.manual_seed(seed)
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """Two convolutions beside a shortcut of strided pixels, and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 12, 3, 2, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4))
        return self.head(F.relu(self.two(F.relu(self.one(x))) + shortcut).mean((2, 3)))


NETS = pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: mlp(6, 20, 12, 4), (1, 6)), (Residual, (1, 3, 8, 8))],
    ids=["mlp", "residual"],
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scores_of(model, shape, keep, seed=0, masks=None, **settings):
    masks = masks or Masks.dense(model)
    probe = Probe(model, masks, example=shape, generator=seeded(seed), keep=keep)
    return PHEW(**settings)(probe)


def flat(scores):
    return torch.cat([score.flatten() for score in scores.values()])


# --- the algorithm of the paper


def one_after_the_other(weights, keep, draw):
    """PHEW on a chain of linear layers as the paper says it: one walk, then the next."""
    sizes, kept, walk = [np.abs(w.detach().numpy()) for w in weights], {}, 0

    def step(odds):
        return draw.choices(range(len(odds)), weights=odds)[0]

    while len(kept) < keep:
        is_forward, layers = walk % 2 == 0, range(len(sizes))
        unit = walk // 2 % (sizes[0].shape[1] if is_forward else sizes[-1].shape[0])
        for layer in layers if is_forward else reversed(layers):
            if is_forward:
                found = step(sizes[layer][:, unit])
                edge = layer, found, unit
            else:
                found = step(sizes[layer][unit])
                edge = layer, unit, found
            kept.setdefault(edge)
            unit = found
        walk += 1
    return list(kept)[:keep]


def test_it_keeps_what_walks_one_after_the_other_keep():
    model, keep, runs = mlp(4, 6, 5, 3), 25, 300
    weights, expected, found = prunable(model), Counter(), Counter()
    for seed in range(runs):
        expected.update(one_after_the_other(weights.values(), keep, random.Random(seed)))
        masks = prune(model, PHEW(), keep, example=(1, 4), generator=seeded(seed))
        for layer, mask in enumerate(masks.values()):
            found.update((layer, *place) for place in mask.nonzero().tolist())
    assert sum(found.values()) == sum(expected.values()) == keep * runs
    for edge in expected | found:
        p = (found[edge] + expected[edge]) / (2 * runs)
        assert abs(found[edge] - expected[edge]) <= 4.5 * (2 * runs * p * (1 - p)) ** 0.5 + 1


@NETS
@pytest.mark.parametrize("kernels", [False, True])
def test_connections_rank_by_their_first_visit(make, shape, kernels):
    model = make()
    keep = Masks.dense(model).total // 10
    scores = flat(scores_of(model, shape, keep, kernels=kernels))
    generator = seeded()
    torch.randint(2**62, (), generator=generator)  # the probe's own seed
    walker = Connectivity(model, shape).walker(prunable(model), Masks.dense(model), kernels)
    visits, first = walker.visits(range(_BLOCK), generator), {}
    rows = zip(visits.walks, visits.places, visits.connections, strict=True)
    for _, _, connection in sorted((int(w), int(p), int(c)) for w, p, c in rows):
        first.setdefault(connection)
    assert len(first) > keep
    assert scores.argsort(descending=True, stable=True)[: len(first)].tolist() == list(first)


# --- the ranking


@NETS
def test_visited_connections_have_scores_of_their_own_and_the_rest_goes_by_size(make, shape):
    model = make()
    torch.manual_seed(0)
    total = Masks.dense(model).total
    scores = flat(scores_of(model, shape, keep=5))
    sizes = flat({n: w.detach().abs() for n, w in prunable(model).items()})
    visited = scores > 1
    assert 5 <= int(visited.sum()) < total
    assert scores[visited].unique().numel() == int(visited.sum())
    assert scores[visited].min() == 2
    assert torch.allclose(scores[~visited], sizes[~visited] / sizes.max())


@NETS
def test_masks_of_smaller_budgets_nest(make, shape):
    model = make()
    found = [
        prune(model, PHEW(), keep, example=shape, generator=seeded(3)) for keep in (20, 40, 70)
    ]
    assert found[0] <= found[1] <= found[2]
    assert [masks.kept for masks in found] == [20, 40, 70]


@NETS
@pytest.mark.parametrize("kernels", [False, True])
def test_all_that_is_kept_but_the_last_walk_lies_on_a_path(make, shape, kernels):
    model = make()
    connectivity = Connectivity(model, shape, "channel")
    walker = connectivity.walker(prunable(model), Masks.dense(model), kernels)
    for keep in (30, 60, 90):
        masks = prune(model, PHEW(kernels), keep, example=shape, generator=seeded())
        assert connectivity.effective(masks).kept > keep - walker.length


@NETS
def test_large_weights_are_kept_and_which_ones_is_drawn(make, shape):
    model = make()
    runs = [prune(model, PHEW(), "10x", example=shape, generator=seeded(n)) for n in (0, 1)]
    assert runs[0] != runs[1]
    for name, weight in prunable(model).items():
        size = weight.detach().abs()
        assert all(size[masks[name]].mean() > size.mean() for masks in runs)


def test_an_effective_target_is_met_from_the_visits():
    masks = prune(Residual(), PHEW(), "5x effective", example=(1, 3, 8, 8), generator=seeded())
    effective = Connectivity(Residual(), (1, 3, 8, 8)).effective(masks)
    assert effective.kept == math.ceil(masks.total / 5)


# --- when walks end


def test_walks_end_when_all_is_visited():
    model = mlp(3, 4, 2)
    with torch.no_grad():
        for weight in prunable(model).values():
            weight.fill_(1)
    scores = flat(scores_of(model, (1, 3), keep=20))
    assert scores.sort().values.tolist() == list(range(2, 22))


def test_walks_end_when_they_find_hardly_anything_new():
    model, keep = mlp(60, 50, 40), 4990
    visited = {name: score > 1 for name, score in scores_of(model, (1, 60), keep).items()}
    assert 4000 < int(flat(visited).sum()) < keep
    masks = prune(model, PHEW(), keep, example=(1, 60), generator=seeded())
    for name, weight in prunable(model).items():
        size = weight.detach().abs()
        assert not (visited[name] & ~masks[name]).any()
        assert size[masks[name] & ~visited[name]].min() > size[~masks[name]].max()


def test_weights_that_no_walk_can_meet_do_not_keep_it_going():
    model = mlp(4, 4, 4)
    with torch.no_grad():
        model[0].weight[1:] = 0
        model[2].weight[:, 1:] = 0
    visited = flat(scores_of(model, (1, 4), keep=32)) > 1
    assert int(visited.sum()) == 8


def test_nothing_is_visited_where_there_is_no_path():
    model = mlp(4, 5, 3)
    masks = Masks({**Masks.dense(model), "2.weight": torch.zeros(3, 5, dtype=torch.bool)})
    scores = scores_of(model, (1, 4), keep=10, masks=masks)
    size = model[0].weight.detach().abs()
    assert torch.allclose(scores["0.weight"], size / size.max())
    assert not scores["2.weight"].any()


# --- masks and layers


def test_a_later_round_walks_only_what_is_kept():
    model = Residual()
    masks = prune(model, PHEW(), "4x", example=(1, 3, 8, 8), generator=seeded())
    scores = scores_of(model, (1, 3, 8, 8), keep=masks.kept // 3, masks=masks)
    assert all(not score[~masks[name]].any() for name, score in scores.items())
    visited = Masks({name: score > 1 for name, score in scores.items()})
    alone = Connectivity(model, (1, 3, 8, 8), "channel").effective(visited)
    assert visited.kept > masks.kept // 3
    assert alone == visited


def test_layers_that_are_not_pruned_are_walked_by_their_weights():
    model = mlp(3, 4, 4, 2)
    with torch.no_grad():
        model[0].weight[1:] = 0
        model[2].weight.copy_(torch.eye(4))
        model[4].weight[:, 1:] = 0
    masks = Masks.dense(model, exclude="2.weight")
    scores = scores_of(model, (1, 3), keep=5, masks=masks)
    assert list(scores) == ["0.weight", "4.weight"]
    # By the identity between them, walks never leave the units 0.
    assert (scores["0.weight"] > 1).any(1).tolist() == [True, False, False, False]
    assert (scores["4.weight"] > 1).any(0).tolist() == [True, False, False, False]


def test_layers_whose_weights_cannot_be_followed_are_walked_all_the_same():
    model = mlp(3, 4, 4, 2)
    torch.nn.utils.parametrizations.weight_norm(model[2])
    masks = Masks.dense(model, exclude="2.weight")
    scores = scores_of(model, (1, 3), keep=5, masks=masks)
    assert int((flat(scores) > 1).sum()) == 12 + 8


# --- what it needs


def test_it_needs_a_budget_and_an_example_and_takes_no_quota():
    model = mlp(3, 4, 2)
    with pytest.raises(LitPruneError, match=r"^PHEW needs a budget[^\n]*$"):
        PHEW()(Probe(model, Masks.dense(model), example=(1, 3)))
    with pytest.raises(LitPruneError, match="example"):
        PHEW()(Probe(model, Masks.dense(model), keep=5))
    with pytest.raises(LitPruneError, match=r"^[^\n]*quota=None$"):
        prune(model, PHEW(), "2x", quota=Uniform(), example=(1, 3))


def test_weights_that_are_no_numbers_are_named():
    model = mlp(3, 4, 2)
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteScores, match=r"2\.weight"):
        scores_of(model, (1, 3), keep=5)


def test_sizes_of_any_scale_rank():
    for dtype, scale in ((torch.float64, 1e300), (torch.float32, 1e-40), (torch.bfloat16, 1e30)):
        model = mlp(3, 6, 2).to(dtype)
        with torch.no_grad():
            for weight in prunable(model).values():
                weight.mul_(scale)
        masks, example = Masks.dense(model), torch.ones(1, 3, dtype=dtype)
        scores = flat(PHEW()(Probe(model, masks, example=example, generator=seeded(), keep=1)))
        assert scores.isfinite().all()
        assert scores.max() == scores.numel() + 1
