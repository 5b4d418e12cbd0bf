"""L1Filter: whole filters, the same share of every layer, counts rounded up and said so."""

import math
import warnings
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_prune import Connectivity, LitPruneError, Masks, Probe, Ranking, Target, prune
from lit_prune.criteria import L1Filter
from lit_prune.errors import LitPruneWarning, NonFiniteScores
from lit_prune.prune import prune_by_rounds
from lit_prune.quotas import ERK, Uniform

pytestmark = pytest.mark.filterwarnings("ignore::lit_prune.errors.LitPruneWarning")


def conv_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3)),
    )


NAMES = ["0.weight", "3.weight", "6.weight", "8.weight"]
FILTERS = {"0.weight": 8, "3.weight": 6, "6.weight": 10, "8.weight": 3}
SIZES = {"0.weight": 18, "3.weight": 36, "6.weight": 24, "8.weight": 10}  # of one filter
TOTAL = sum(FILTERS[name] * SIZES[name] for name in NAMES)
BESTS = 18 + 36 + 24  # one filter of every layer but the last


def filters_of(masks):
    """How many filters each layer keeps; all of a filter is kept, or nothing."""
    found = {}
    for name, mask in masks.items():
        rows = mask.flatten(1)
        assert not rows.numel() or torch.equal(rows.any(1), rows.all(1)), name
        found[name] = int(rows.any(1).sum())
    return found


def norms_of(model, name):
    return model.get_parameter(name).detach().double().abs().flatten(1).sum(1).numpy()


@given(st.integers(0, TOTAL), st.integers(1, 4))
def test_filters_are_kept_or_removed_as_a_whole_and_counts_rounded_up(keep, rounds):
    masks = prune(conv_net(), L1Filter(), keep, rounds=rounds)
    counts = filters_of(masks)
    assert masks.kept == sum(counts[name] * SIZES[name] for name in NAMES)
    assert keep <= masks.kept < keep + max(SIZES.values())


def test_one_filter_less_would_be_too_few():
    model = conv_net()
    scores = L1Filter()(Probe(model, Masks.dense(model)))
    ranking = Ranking(scores, whole_filters=True)
    chain = [ranking.keep(k) for k in range(TOTAL + 1)]
    possible = sorted({masks.kept for masks in chain})
    assert len(possible) == sum(FILTERS.values()) + 1  # filter after filter
    assert [masks.kept for masks in chain] == [
        next(count for count in possible if count >= k) for k in range(TOTAL + 1)
    ]
    assert chain[100] == prune(model, L1Filter(), 100)


def test_inside_a_layer_the_filters_of_the_largest_norm_stay():
    model = conv_net()
    for keep in (60, 200, 400):
        masks = prune(model, L1Filter(), keep)
        for name, count in filters_of(masks).items():
            largest = np.argsort(norms_of(model, name))[FILTERS[name] - count :]
            assert set(masks[name].flatten(1).any(1).nonzero().flatten().tolist()) == set(largest)


def test_the_score_is_the_place_and_the_last_layer_and_the_best_filters_are_above():
    model = conv_net()
    scores = L1Filter()(Probe(model, Masks.dense(model)))
    assert list(scores) == NAMES
    rows = {name: score.flatten(1) for name, score in scores.items()}
    for name, row in rows.items():
        assert (row == row[:, :1]).all()
        ranks = np.argsort(np.argsort(norms_of(model, name)))
        others = ranks < FILTERS[name] - 1
        places = (ranks + 1) / FILTERS[name] + (name == NAMES[-1])
        np.testing.assert_allclose(row[others, 0], places[others])
    best = [float(row.max()) for row in rows.values()]
    second = [float(row[:, 0].sort().values[-2]) for row in rows.values()]
    assert best[3] > max(best[:3])
    assert min(best[:3]) > second[3] > float(rows[NAMES[3]].min()) > max(second[:3])


@given(st.integers(BESTS + 30, TOTAL))
def test_all_layers_lose_the_same_share_of_their_filters(keep):
    counts = filters_of(prune(conv_net(), L1Filter(), keep))
    assert counts.pop("8.weight") == 3
    # One share, rounded up or down to whole filters.
    least = max((count - 1) / FILTERS[name] for name, count in counts.items())
    most = min((count + 1) / FILTERS[name] for name, count in counts.items())
    assert least <= most


def test_the_last_layer_is_spared_until_all_others_have_one_filter_left():
    for keep in (BESTS + 30, 200, TOTAL - 30):
        assert filters_of(prune(conv_net(), L1Filter(), keep))["8.weight"] == 3
    assert list(filters_of(prune(conv_net(), L1Filter(), BESTS + 20)).values()) == [1, 1, 1, 2]


def test_no_layer_loses_its_last_filter_while_one_each_fits():
    for keep in range(BESTS + 10, TOTAL, 9):
        assert min(filters_of(prune(conv_net(), L1Filter(), keep)).values()) >= 1
    assert list(filters_of(prune(conv_net(), L1Filter(), BESTS + 10)).values()) == [1] * 4
    assert filters_of(prune(conv_net(), L1Filter(), 10))["8.weight"] == 1


def test_masks_nest():
    chain = [prune(conv_net(), L1Filter(), keep) for keep in range(0, TOTAL + 1, 7)]
    assert all(smaller <= larger for smaller, larger in pairwise(chain))


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_rounds_nest_and_end_where_one_round_ends(rounds):
    dense = Masks.dense(conv_net())
    steps = list(prune_by_rounds(conv_net(), dense, L1Filter(), 150, rounds=rounds))
    assert len(steps) == rounds
    assert all(later <= earlier for earlier, later in pairwise([dense, *steps]))
    for masks in steps:
        filters_of(masks)
    # The norms of filters do not change as others go.
    assert steps[-1] == prune(conv_net(), L1Filter(), 150)


def test_a_count_that_is_rounded_is_said_with_both_numbers():
    with pytest.warns(LitPruneWarning, match="whole filters are kept: 210 connections instead of"):
        assert prune(conv_net(), L1Filter(), 193).kept == 210
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prune(conv_net(), L1Filter(), 210).kept == 210
        assert prune(conv_net(), L1Filter(), "1x").kept == TOTAL


@pytest.mark.parametrize("quota", [Uniform(), ERK()])
@given(keep=st.integers(0, TOTAL))
def test_a_quota_s_counts_are_rounded_up_layer_by_layer(quota, keep):
    masks = prune(conv_net(), L1Filter(), keep, quota)
    wanted = quota({name: mask.shape for name, mask in masks.items()}, keep)
    for name, count in filters_of(masks).items():
        assert count == math.ceil(wanted[name] / SIZES[name])


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("target", ["2x effective", "5x effective", "31 effective"])
def test_an_effective_target_is_met_by_the_fewest_filters(target, rounds, search):
    model, wanted = conv_net(), Target.parse(target).count(TOTAL)
    masks = prune(model, L1Filter(), target, rounds=rounds, search=search, example=(1, 2, 6, 6))
    filters_of(masks)
    connectivity = Connectivity(model, (1, 2, 6, 6))
    assert connectivity.effective(masks).kept >= wanted
    smaller = (prune(model, L1Filter(), keep) for keep in range(masks.kept - 1, -1, -1))
    next_smaller = next(m for m in smaller if m.kept < masks.kept)
    assert connectivity.effective(next_smaller).kept < wanted


def test_filters_that_are_gone_count_as_the_lowest_however_large_they_were():
    model = conv_net()
    masks = Masks.dense(model)
    for name, mask in masks.items():
        mask[int(norms_of(model, name).argmax())] = False
    scores = L1Filter()(Probe(model, masks))
    for name, mask in masks.items():
        alive, rows = mask.flatten(1).any(1), scores[name].flatten(1)[:, 0]
        assert rows[alive].min() > rows[~alive].max()


def test_masks_inside_of_filters_are_kept_or_removed_with_them():
    model, draw = conv_net(), torch.Generator().manual_seed(1)
    dense = Masks.dense(model)
    start = Masks({n: torch.rand(m.shape, generator=draw) < 0.5 for n, m in dense.items()})
    for masks in prune_by_rounds(model, start, L1Filter(), 100, rounds=3):
        assert masks <= start
        for name, mask in masks.items():
            alive = mask.flatten(1).any(1)
            assert torch.equal(mask[alive], start[name][alive])
    assert 100 <= masks.kept < 100 + max(SIZES.values())


def test_equal_filters_do_not_all_go_at_once():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    for layer in model:
        nn.init.ones_(layer.weight)
    kept = [prune(model, L1Filter(), keep).kept for keep in range(0, 37, 4)]
    assert kept == [0, 6, 10, 16, 16, 20, 24, 28, 32, 36]


def test_excluded_layers_are_left_alone():
    masks = prune(conv_net(), L1Filter(), "50%", exclude="0.weight")
    assert list(masks) == NAMES[1:]
    assert filters_of(masks)["8.weight"] == 3


def test_without_the_outputs_no_layer_is_spared():
    masks = prune(conv_net(), L1Filter(), "50%", exclude="8.weight")
    assert filters_of(masks)["6.weight"] < 10


def test_a_transposed_convolution_is_refused_by_name():
    model = nn.Sequential(nn.ConvTranspose2d(4, 3, 2), nn.Conv2d(3, 2, 1))
    with pytest.raises(LitPruneError, match=r"0\.weight is of a transposed convolution"):
        prune(model, L1Filter(), 30)
    assert prune(model, L1Filter(), 3, exclude="0.weight").kept == 3


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_weights_is_no_hindrance():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    model.insert(0, nn.Linear(0, 3))
    masks = prune(model, L1Filter(), 15)
    assert filters_of(masks) == {"0.weight": 0, "1.weight": 1, "2.weight": 3}


@pytest.mark.parametrize("keep", [3, 6, 8])
def test_a_floor_keeps_a_filter_of_every_layer_or_says_that_it_cannot(keep):
    model = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    with suppress(LitPruneError):
        masks = prune(model, L1Filter(), keep, floor=1)
        assert min(filters_of(masks).values()) >= 1


def test_a_floor_keeps_filters_that_would_be_gone():
    assert filters_of(prune(conv_net(), L1Filter(), 120))["0.weight"] == 1
    masks = prune(conv_net(), L1Filter(), 120, floor=19)
    assert masks.kept < 120 + max(SIZES.values())
    assert [int(mask.sum()) >= 19 for mask in masks.values()] == [True] * 4
    assert filters_of(masks)["0.weight"] == 2


def test_nan_is_an_error_that_names_the_layer():
    model = conv_net()
    with torch.no_grad():
        model[3].weight[2, 1, 0, 0] = math.nan
    with pytest.raises(NonFiniteScores, match=r"3\.weight"):
        prune(model, L1Filter(), 100)


def test_infinity_is_an_error_that_names_the_layer():
    model = conv_net()
    with torch.no_grad():
        model[3].weight[2, 1, 0, 0] = math.inf
    with pytest.raises(LitPruneError, match=r"3\.weight"):
        prune(model, L1Filter(), 100)


def test_half_precision_does_not_overflow():
    model = nn.Sequential(nn.Linear(400, 3), nn.Linear(3, 2)).half()
    with torch.no_grad():
        for row, size in enumerate((3e3, 1e3, 2e3)):
            model[0].weight[row] = size  # a norm of up to 1.2e6
    masks = prune(model, L1Filter(), 806)
    assert masks["0.weight"].any(1).tolist() == [True, False, True]


def test_neither_data_nor_generator_is_used(untouched):
    def unread(turn):
        raise AssertionError("no batch is needed")

    model, generator = conv_net(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    with untouched(model):
        prune(model, L1Filter(), 100, batches=unread, generator=generator, rounds=2)
    assert torch.equal(generator.get_state(), before)
