"""Random walks against enumeration of all paths, and by the laws of paths."""

import math
from collections import defaultdict
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import EVERY_STEP, Network, attention, draw_masks, nets
from torch import nn

from lit_prune import Connectivity, LitPruneError, Masks, prunable
from lit_prune.connectivity.walks import Table
from lit_prune.errors import MasksMismatch, NonFiniteScores

EVERY_FORM = pytest.mark.parametrize(
    ("form", "step"),
    [*EVERY_STEP, ("map", attention)],
    ids=[f"{form}-{step.__name__}" for form, step in [*EVERY_STEP, ("map", attention)]],
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def walker_of(model, shape, masks=None, kernels=False, **patterns):
    masks = masks or Masks.dense(model, **patterns)
    return Connectivity(model, shape).walker(prunable(model), masks, kernels)


def paths_of(walker, walks, seed=0):
    """Each walk as the connections that it visits, (name, index), in its own order."""
    numbers = walker.by_weight(torch.arange(walker.size))
    labels = {}
    for name, places in numbers.items():
        for index in np.ndindex(*places.shape):
            labels[int(places[index])] = name, index
    visits, found = walker.visits(range(walks), seeded(seed)), {}
    rows = zip(visits.walks, visits.places, visits.connections, strict=True)
    for walk, place, connection in rows:
        path = found.setdefault(int(walk), {})
        assert place not in path
        path[int(place)] = labels[int(connection)]
    return {n: tuple(label for _, label in sorted(found[n].items())) for n in sorted(found)}


def as_masks(paths, like):
    masks = {name: torch.zeros_like(mask) for name, mask in like.items()}
    for name, index in (label for path in paths for label in path):
        masks[name][index] = True
    return Masks(masks)


def assert_paths_occur_as_expected(paths, expected):
    """``expected``: by the number of a walk, the probability of each path."""
    counts, hoped, spread = defaultdict(int), defaultdict(float), defaultdict(float)
    for number, path in paths.items():
        chances = expected(number)
        assert math.isclose(sum(chances.values()), 1)
        assert chances.get(path, 0) > 0, (number, path)
        counts[number % 2, path] += 1
        for each, p in chances.items():
            hoped[number % 2, each] += p
            spread[number % 2, each] += p * (1 - p)
    assert len(hoped) > 4
    for key, mean in hoped.items():
        assert abs(counts[key] - mean) < 4.5 * spread[key] ** 0.5 + 1e-6, key


# --- tables


def sequential_pick(odds, u):
    """One walker at one unit, in plain Python."""
    odds = odds if any(odds) else [1] * len(odds)
    total, passed = sum(odds), 0
    for choice, size in enumerate(odds):
        passed += size
        if u * total < passed:
            return choice
    raise AssertionError


@given(st.data())
def test_a_table_picks_as_a_walker_alone_would(data):
    rows, choices = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 4), min_size=choices, max_size=choices)
    odds = [data.draw(row) for _ in range(rows)]
    # Numbers on neither side of a border, where floats and integers may part.
    steps = st.integers(0, 1000).map(lambda n: (n + 0.5) / 1001)
    draws = data.draw(st.lists(steps, min_size=1, max_size=20))
    at = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=20)))
    at = np.resize(at, len(draws))
    table = Table(np.array(odds, np.float64), np.ones((rows, choices), bool))
    found = table.pick(at, lambda n: np.array(draws)[:n])
    expected = [sequential_pick(odds[r], u) for r, u in zip(at, draws, strict=True)]
    assert found.tolist() == expected


def test_a_table_holds_the_probabilities_exactly():
    odds = np.array([[1.0, 3, 0, 4], [0, 0, 0, 0], [0, 0, 5, 0]])
    possible = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool)
    expected = [[1 / 8, 3 / 8, 0, 1 / 2], [1 / 2, 0, 0, 1 / 2], [0, 0, 1, 0]]
    assert Table(odds, possible).chances().tolist() == expected


def test_a_table_never_picks_what_has_no_chance():
    odds = np.zeros((3000, 3))
    odds[:, 1] = np.logspace(-300, 300, 3000)
    rows = np.repeat(np.arange(3000), 3)
    ends = np.tile([0, 0.5, 1 - 2.0**-53], 3000)
    assert set(Table(odds, odds > 0).pick(rows, lambda n: ends)) == {1}


# --- probabilities against the enumeration of all paths


def shares(sizes):
    """``sizes`` by key, as probabilities; uniform if all are zero."""
    total = sum(sizes.values())
    return {k: v / total if total else 1 / len(sizes) for k, v in sizes.items()}


def mlp_chances(weights, masks=None):
    """The probability of every path of a chain of linear layers, by the number of the walk."""
    sizes = [np.abs(w.detach().double().numpy()) for w in weights.values()]
    kept = [np.ones(s.shape, bool) if masks is None else masks[n].numpy()
            for n, s in zip(weights, sizes, strict=True)]  # fmt: skip
    names, last = list(weights), len(weights) - 1
    reached = [np.ones(sizes[0].shape[1], bool)]
    for mask in kept:
        reached.append((mask & reached[-1]).any(1))
    leads = [np.ones(sizes[-1].shape[0], bool)]
    for mask in reversed(kept):
        leads.insert(0, (mask & leads[0][:, None]).any(0))
    alive = [r & b for r, b in zip(reached, leads, strict=True)]

    def forward(unit, layer):
        if layer > last:
            return {(): 1.0}
        to = [j for j in np.flatnonzero(alive[layer + 1]) if kept[layer][j, unit]]
        steps = shares({j: sizes[layer][j, unit] for j in to})
        return {
            ((names[layer], (j, unit)), *rest): p * q
            for j, p in steps.items()
            for rest, q in forward(j, layer + 1).items()
        }

    def backward(unit, layer):
        if layer < 0:
            return {(): 1.0}
        to = [i for i in np.flatnonzero(alive[layer]) if kept[layer][unit, i]]
        steps = shares({i: sizes[layer][unit, i] for i in to})
        return {
            ((names[layer], (unit, i)), *rest): p * q
            for i, p in steps.items()
            for rest, q in backward(i, layer - 1).items()
        }

    starts = np.flatnonzero(alive[0]), np.flatnonzero(alive[-1])
    every = [
        {u: forward(u, 0) for u in starts[0]},
        {u: backward(u, last) for u in starts[1]},
    ]

    def expected(number):
        side = starts[number % 2]
        return every[number % 2][side[number // 2 % len(side)]]

    return expected


def small_mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


def test_walks_through_an_mlp_have_the_probabilities_of_its_paths():
    model = small_mlp()
    paths = paths_of(walker_of(model, (1, 2)), 5000)
    assert list(paths) == list(range(5000))
    assert_paths_occur_as_expected(paths, mlp_chances(prunable(model)))


def test_masks_leave_out_dead_ends_and_rescale_the_rest():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    masks = Masks.dense(model)
    masks["0.weight"][0] = False  # unit 0 has no input
    masks["2.weight"][:, 1] = False  # unit 1 leads nowhere
    masks["2.weight"][2, 3] = False
    masks["4.weight"][1] = False  # an output that nothing comes to
    paths = paths_of(walker_of(model, (1, 3), masks), 5000)
    assert_paths_occur_as_expected(paths, mlp_chances(prunable(model), masks))


def test_weights_of_zero_are_chosen_uniformly_where_there_are_no_others():
    model = small_mlp()
    with torch.no_grad():
        model[0].weight[:, 0] = 0
        model[2].weight[1] = 0
        model[2].weight[0, 1] = 0
    paths = paths_of(walker_of(model, (1, 2)), 5000)
    assert_paths_occur_as_expected(paths, mlp_chances(prunable(model)))


class TinyConv(nn.Module):
    """Two kernels of two taps on four places, pooled, and flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.norm = nn.Conv1d(2, 2, 2), nn.BatchNorm1d(2)
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        x = F.avg_pool1d(F.relu(self.norm(self.conv(x))), 2, stride=1)
        return self.linear(x.flatten(1))


def tiny_conv_chances(conv, linear):
    """Channels by the L1 norms of kernels, taps by sizes; then the pool shows 2 of 3 places."""
    conv, linear = (np.abs(w.detach().double().numpy()) for w in (conv, linear))
    norms = conv.sum(2)
    # A place of three, drawn uniformly, is seen by the first window, by both, or by the second.
    column_of_place = {0: 1 / 3 + 1 / 6, 1: 1 / 6 + 1 / 3}

    def chances(number):
        unit, found = number // 2 % 2, {}
        for j, i, tap, place, o in product(range(2), repeat=5):
            column = 2 * j + place  # of the flattened map of two channels with two places
            in_conv, in_linear = ("conv.weight", (j, i, tap)), ("linear.weight", (o, column))
            through_tap = conv[j, i, tap] / norms[j, i]
            if number % 2 == 0 and i == unit:
                p = norms[j, i] / norms[:, i].sum() * through_tap
                p *= column_of_place[place] * linear[o, column] / linear[:, column].sum()
                found[in_conv, in_linear] = p
            if number % 2 == 1 and o == unit:
                p = linear[o, column] / linear[o].sum()
                found[in_linear, in_conv] = p * norms[j, i] / norms[j].sum() * through_tap
        return found

    return chances


def test_walks_through_a_convolution_have_the_probabilities_of_its_paths():
    model = TinyConv()
    paths = paths_of(walker_of(model, (1, 2, 4)), 6000)
    chances = tiny_conv_chances(model.conv.weight, model.linear.weight)
    assert_paths_occur_as_expected(paths, chances)


class Branches(nn.Module):
    """An identity and two layers side by side."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.one(x) + self.two(x) + x)


class Join(nn.Module):
    """A residual join."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(self.body(x)) + x)


def lengths_by_direction(paths):
    found = [[len(path) for n, path in paths.items() if n % 2 == way] for way in range(2)]
    return [np.bincount(lengths, minlength=4) / len(lengths) for lengths in found]


def test_a_residual_join_takes_either_branch_with_the_same_probability():
    paths = paths_of(walker_of(Join(), (1, 2)), 8000)
    for share in lengths_by_direction(paths):
        assert share[[0, 1]].sum() == 0
        assert share[3] == pytest.approx(0.5, abs=4.5 * 0.5 / 4000**0.5)


class EarlyExit(nn.Module):
    """An output that is computed on with."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x)
        return x, self.head(x)


def test_an_output_that_is_used_further_is_an_end_half_of_the_time():
    forward, backward = lengths_by_direction(paths_of(walker_of(EarlyExit(), (1, 2)), 8000))
    assert forward[1] == pytest.approx(0.5, abs=4.5 * 0.5 / 4000**0.5)
    assert backward[1] == 3 / 5  # three of the five output units are the stem's


def test_a_branch_that_leads_nowhere_is_never_taken():
    model = Join()
    masks = Masks.dense(model)
    masks["body.weight"][1:] = False
    masks["head.weight"][:, 0] = False
    shares_of = lengths_by_direction(paths_of(walker_of(model, (1, 2), masks), 200))
    assert [share[2] for share in shares_of] == [1, 1]


# --- laws of walks, in networks of every kind


@EVERY_FORM
@settings(max_examples=12)
@given(st.data())
def test_every_walk_is_a_path_from_an_input_to_an_output(form, step, data):
    net = data.draw(nets(step, form))
    model, shapes = Network(net), [(1, *shape) for shape in net.inputs]
    example = tuple(torch.ones(shape) for shape in shapes)
    masks = Masks({n: torch.from_numpy(m) for n, m in data.draw(draw_masks(net.weights())).items()})
    masks = data.draw(st.sampled_from([masks, Masks.dense(model)]))
    fine, coarse = (Connectivity(model, example, r) for r in ("element", "channel"))
    kernels = data.draw(st.booleans())
    walker = fine.walker(prunable(model), masks, kernels)
    assert fine.effective(masks).kept <= walker.connections <= coarse.effective(masks).kept
    paths = paths_of(walker, 40 if walker.connections else 0, data.draw(st.integers(0, 99)))
    assert len(paths) == (40 if walker.connections else 0)
    assert as_masks(paths.values(), masks) <= masks
    for number in list(paths)[:4]:
        assert len(paths[number]) <= walker.length
        alone = as_masks([paths[number]], masks)
        assert coarse.effective(alone) == alone


def everywhere(model, shape, walks=4000, **settings):
    walker = walker_of(model, shape, **settings)
    return walker, as_masks(paths_of(walker, walks).values(), Masks.dense(model))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(4, 2, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = torch.cat([x, self.one(x)], 1)
        x = torch.cat([x, self.two(x)], 1)
        return self.head(x.mean((2, 3)))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(2, 3, 1), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x)
        gate = self.gate(x.mean((2, 3)))
        return self.head((x * gate.sigmoid()[:, :, None, None]).amax((2, 3)))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, x):
        x = torch.cat([self.token, x], 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0])


def separable():
    return nn.Sequential(
        *(nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.Conv2d(4, 6, 1, groups=2), nn.MaxPool2d(2)),
        *(nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)),
    )


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (small_mlp, (1, 2)),
        (TinyConv, (1, 2, 4)),
        (Join, (1, 2)),
        (Branches, (1, 2)),
        (Concat, (1, 2, 2, 2)),
        (Gated, (1, 2, 3, 3)),
        (Attending, (1, 3, 4)),
        (separable, (1, 4, 4, 4)),
    ],
)
def test_walks_come_everywhere(make, shape):
    torch.manual_seed(0)
    model = make()
    for weight in prunable(model).values():
        weight.data.uniform_(1, 2)
    walker, visited = everywhere(model, shape)
    assert visited == Connectivity(model, shape, "channel").effective(Masks.dense(model))
    assert visited.kept == walker.connections
    assert walker.by_weight(torch.arange(walker.size)).keys() == visited.keys()


def test_walks_of_kernels_visit_all_weights_of_every_kernel_and_no_pruned_one():
    torch.manual_seed(0)
    model = separable()
    masks = Masks.dense(model)
    masks["0.weight"][:, :, 0] = False
    paths = paths_of(walker_of(model, (1, 4, 4, 4), masks, kernels=True), 300)
    for path in paths.values():
        alone = as_masks([path], masks)
        for name, mask in alone.items():
            kernels = mask.flatten(2) if mask.dim() > 2 else mask[..., None]
            (whole,) = kernels[kernels.any(2)]
            kept = 6 if name == "0.weight" else len(whole)
            assert int(whole.sum()) == kept


def test_units_of_both_ends_are_taken_in_turn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 5))
    for number, path in paths_of(walker_of(model, (1, 3, 2, 2)), 60).items():
        _, first = path[0]
        assert first[1 - number % 2] == number // 2 % (5 if number % 2 else 3)


def test_inputs_that_no_convolution_takes_are_units_one_by_one():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    paths = paths_of(walker_of(model, (1, 3, 2, 2)), 48)
    assert [path[0][1][1] for n, path in paths.items() if n % 2 == 0] == [*range(12)] * 2


def test_outputs_of_a_convolution_are_units_by_channel():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Sigmoid())
    paths = paths_of(walker_of(model, (1, 2, 4, 4)), 24)
    assert [path[0][1][0] for n, path in paths.items() if n % 2] == [0, 1, 2] * 4


def test_taps_that_only_touch_padding_are_not_walked():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(2, 2))
    walker = walker_of(model, (1, 2, 1, 1))
    taps = {path[n % 2][1][2:] for n, path in paths_of(walker, 200).items()}
    assert taps == {(1, 1)}
    assert walker.connections == 4 + 4


def test_layers_that_share_a_weight_visit_the_same_connections():
    torch.manual_seed(0)
    first, last = nn.Linear(3, 3), nn.Linear(3, 3)
    last.weight = first.weight
    walker, visited = everywhere(nn.Sequential(first, nn.ReLU(), last), (1, 3))
    assert walker.connections == visited.kept == 9
    assert walker.length == 2


def test_the_layout_in_memory_does_not_matter():
    torch.manual_seed(0)
    model = separable()
    plain = paths_of(walker_of(model, (1, 4, 4, 4)), 100)
    turned = model.to(memory_format=torch.channels_last)
    assert paths_of(walker_of(turned, (1, 4, 4, 4)), 100) == plain


def test_layers_without_masks_are_walked_by_their_weights_and_not_counted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].weight.copy_(2 * torch.eye(3))
    walker = walker_of(model, (1, 3), exclude="1.weight")
    assert walker.connections == 18
    for number, path in paths_of(walker, 300).items():
        (_, (unit, _)), (_, (_, other)) = path if number % 2 == 0 else path[::-1]
        assert unit == other


def test_layers_whose_weights_are_not_known_are_walked_uniformly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2)[..., None])
    masks = Masks.dense(model, exclude="1.weight")
    connectivity = Connectivity(model, (1, 2, 3), exclude="1.weight")
    paths = paths_of(connectivity.walker(prunable(model, exclude="1.weight"), masks), 4000)
    straight = [path[0][1][n % 2] == path[1][1][1 - n % 2] for n, path in paths.items()]
    assert np.mean(straight) == pytest.approx(0.5, abs=4.5 * 0.5 / 4000**0.5)


def test_nothing_is_walked_where_there_is_no_path():
    model = small_mlp()
    masks = Masks({**Masks.dense(model), "2.weight": torch.zeros(2, 3, dtype=torch.bool)})
    walker = walker_of(model, (1, 2), masks)
    assert walker.connections == 0
    assert len(walker.visits(range(10), seeded()).connections) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_named(value):
    model = small_mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    with pytest.raises(NonFiniteScores, match=r"2\.weight"):
        walker_of(model, (1, 2))


def test_what_is_of_another_network_is_refused():
    connectivity = Connectivity(small_mlp(), (1, 2))
    weights, masks = prunable(small_mlp()), Masks.dense(small_mlp())
    odd = nn.Linear(4, 4)
    with pytest.raises(MasksMismatch):
        connectivity.walker(weights, Masks.dense(odd))
    with pytest.raises(LitPruneError):
        connectivity.walker(prunable(odd), masks)


def test_the_generator_decides_and_nothing_else_is_touched(untouched):
    model = Join()
    with untouched(model):
        walker = walker_of(model, (1, 2))
        first = paths_of(walker, 100, seed=5)
    torch.manual_seed(99)
    assert paths_of(walker_of(model, (1, 2)), 100, seed=5) == first
    assert paths_of(walker, 100, seed=6) != first
