"""Node-path balancing: counts, paths counted anew in numpy, and what it is good for."""

import numpy as np
import pytest
import torch
from torch import nn

from lit_prune import LitPruneError, Masks, Probe, prune
from lit_prune.connectivity import Connectivity
from lit_prune.criteria import NPB, Random
from lit_prune.criteria import npb as module
from lit_prune.errors import LitPruneWarning
from lit_prune.quotas import ERK, Uniform

needs_solver = pytest.mark.skipif(
    bool(NPB(solver="auto")._missing()), reason="the extra npb is not installed"
)


def conv_net():
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(64, 10),
    )


class Graph(nn.Module):
    """A shortcut, groups, a transposed convolution, a concatenation and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.twice = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.body(x)) + x
        y = self.twice(torch.relu(self.twice(self.up(x))))
        return self.head(torch.cat([x.mean((2, 3)), y.amax((2, 3))], 1))


EXAMPLE, TOTAL = (1, 3, 8, 8), 9 * (3 * 32 + 32 * 64 + 64 * 64) + 640


def scored(model, keep=None, masks=None, counts=None, example=EXAMPLE, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    masks = masks or Masks.dense(model)
    probe = Probe(model, masks, example=example, generator=generator, keep=keep, counts=counts)
    return NPB(**settings)(probe)


def chosen(scores):
    return Masks({name: score >= 1 for name, score in scores.items()})


def counts_of(masks):
    return {row.name: row.kept for row in masks.layers()}


def pruned(model, criterion, target, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return prune(model, criterion, target, generator=generator, **{"example": EXAMPLE, **settings})


# --- counts


@pytest.mark.parametrize("keep", [0, 1, 40, 300, 5000, TOTAL])
def test_every_layer_keeps_what_the_quota_says(keep):
    model = conv_net()
    shapes = {name: mask.shape for name, mask in Masks.dense(model).items()}
    found = chosen(scored(model, keep))
    assert counts_of(found) == ERK()(shapes, keep)
    assert found == pruned(model, NPB(), keep) or keep in (0, TOTAL)


def test_its_own_quota_is_used_where_none_is_given():
    model = conv_net()
    shapes = {name: mask.shape for name, mask in Masks.dense(model).items()}
    for quota in (ERK(), Uniform()):
        assert counts_of(pruned(model, NPB(quota=quota), 500)) == quota(shapes, 500)
        assert counts_of(pruned(model, NPB(), 500, quota=quota)) == quota(shapes, 500)


@pytest.mark.parametrize("solver", ["heuristic", pytest.param("milp", marks=needs_solver)])
def test_only_what_is_kept_so_far_is_chosen(solver):
    model = Graph()
    draw = torch.Generator().manual_seed(3)
    dense = Masks.dense(model)
    masks = Masks({n: torch.rand(mask.shape, generator=draw) < 0.4 for n, mask in dense.items()})
    for share in (0.5, 1.0):
        counts = {name: int(mask.sum() * share) for name, mask in masks.items()}
        settings = {"masks": masks, "counts": counts, "example": (1, 2, 5, 5), "solver": solver}
        found = chosen(scored(model, **settings))
        assert found <= masks
        assert counts_of(found) == counts


def test_more_than_is_kept_so_far_is_not_chosen():
    model = conv_net()
    masks = chosen(scored(model, 500))
    counts = {name: int(mask.sum()) + 1 for name, mask in masks.items()}
    assert chosen(scored(model, masks=masks, counts=counts)) == masks


def test_rounds_end_on_the_same_count():
    model = conv_net()
    masks = pruned(model, NPB(), 300, rounds=3)
    assert counts_of(masks) == counts_of(pruned(model, NPB(), 300))


@pytest.mark.parametrize(("most", "first", "second"), [(9, 10, 0), (2, 8, 2), (1, 8, 2)])
def test_no_kernel_keeps_more_than_it_may_unless_it_has_to(most, first, second):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3))
    few = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    few[1, 0, 1:] = False  # nine paths reach one channel, and three the other
    masks = Masks({**Masks.dense(model), "0.weight": few})
    counts = {"0.weight": 12, "1.weight": 10}
    settings = {"alpha": 0.01, "beta": 0.0, "max_per_kernel": most, "example": (1, 1, 8, 8)}
    kernels = chosen(scored(model, masks=masks, counts=counts, **settings))["1.weight"].sum((2, 3))
    assert kernels.sum(0).tolist() == [first, second]
    assert kernels.max() <= max(most, 2)  # ten weights do not fit into eight kernels of one


@pytest.mark.parametrize("solver", ["heuristic", pytest.param("milp", marks=needs_solver)])
def test_chunks_leave_no_output_out(solver):
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 7, 3))
    counts = {"0.weight": 10, "1.weight": 70}
    masks = chosen(scored(model, counts=counts, solver=solver, largest=1, chunk=2))
    assert [int(part.sum()) for part in masks["1.weight"].split(2)] == [20, 20, 20, 10]
    assert masks["1.weight"].flatten(1).any(1).all()
    for chunk in masks["1.weight"].split(2):
        assert chunk.transpose(0, 1).flatten(1).any(1).all()  # each has all inputs


# --- paths


def kernels_of(mask, groups=1, transposed=False):
    """The matrix (outputs, inputs) of the numbers of weights, zero between groups."""
    mask = mask.flatten(2).sum(2).numpy() if mask.dim() > 2 else mask.numpy().astype(int)
    rows, columns = mask.shape
    matrix = np.zeros((rows, columns * groups))
    for row in range(rows):
        group = row // (rows // groups)
        matrix[row, group * columns : (group + 1) * columns] = mask[row]
    return matrix.T if transposed else matrix


def test_paths_are_those_through_the_layers_decided_before(monkeypatch):
    seen = []

    def spying(candidates, paths, budget, most):
        seen.append(paths.ravel())
        return module_room(candidates, paths, budget, most)

    module_room = module.room_for
    monkeypatch.setattr(module, "room_for", spying)
    torch.manual_seed(0)
    model = Graph()
    found = chosen(scored(model, 120, example=(1, 2, 5, 5), quota=Uniform()))
    stem = kernels_of(found["stem.weight"]) @ np.ones(2)
    body = kernels_of(found["body.weight"], 2) @ stem
    up = kernels_of(found["up.weight"], 2, transposed=True) @ (stem + body)
    once = kernels_of(found["twice.weight"]) @ up
    twice = kernels_of(found["twice.weight"]) @ once
    expected = [np.ones(2), stem, stem + body, up, np.concatenate([stem + body, twice])]
    assert len(seen) == len(expected) == 5
    for paths, reference in zip(seen, expected, strict=True):
        assert len(set(reference)) > 1 or len(reference) == 2
        np.testing.assert_allclose(paths, reference / reference.max(), rtol=1e-9)


def test_the_places_of_a_sequence_are_added(monkeypatch):
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.cat([x, self.embed(x)], 1))

    seen, room_for = [], module.room_for
    monkeypatch.setattr(module, "room_for", lambda *a: (seen.append(a[1].ravel()), room_for(*a))[1])
    found = chosen(
        scored(Sequence(), counts={"embed.weight": 7, "head.weight": 4}, example=(1, 3, 4))
    )
    paths = 1 + found["embed.weight"].sum(1).numpy()
    np.testing.assert_allclose(seen[1], paths / paths.max())


def test_a_hundred_layers_do_not_overflow():
    model = nn.Sequential(*(nn.Linear(30, 30) for _ in range(250)))
    masks = pruned(model, NPB(beta=0.0), "1.25x", example=(1, 30))
    paths = Connectivity(model, (1, 30)).paths(masks)
    assert 308 < paths < 250 * 1.48  # more than any float64 holds


def test_units_that_no_path_reaches_get_no_weights():
    model = conv_net()
    dead = torch.ones(32, 3, 3, 3, dtype=torch.bool)
    dead[4:9] = False
    masks = Masks({**Masks.dense(model), "0.weight": dead})
    found = chosen(scored(model, 800, masks))
    assert not found["3.weight"][:, 4:9].any()
    assert found["3.weight"][:, 9:].any()


def test_a_layer_that_is_not_used_is_kept_at_random():
    model = conv_net()
    model.unused = nn.Linear(30, 30)
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    scores = scored(model, 900)
    shapes = {name: mask.shape for name, mask in Masks.dense(model).items()}
    assert counts_of(chosen(scores)) == ERK()(shapes, 900)
    assert scores["unused.weight"].unique().numel() > 800


def test_the_parts_of_an_attention_share_its_budget():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x * 2, x * 3, need_weights=False)[0]

    found = chosen(scored(Attention(), 40, example=(1, 5, 6)))
    parts = [int(part.sum()) for part in found["attention.in_proj_weight"].chunk(3)]
    assert max(parts) - min(parts) <= 1
    assert found.kept == 40


# --- what it is good for


@pytest.mark.parametrize("solver", ["heuristic", pytest.param("milp", marks=needs_solver)])
def test_it_keeps_more_units_and_more_paths_alive_than_random_masks(solver):
    model = conv_net()
    connectivity = Connectivity(model, EXAMPLE)
    nodes = {"npb": [], "random": []}
    paths = {"npb": [], "random": []}
    for seed in range(3):
        for name, criterion in (("npb", NPB(solver=solver)), ("random", Random())):
            masks = pruned(model, criterion, "99%", seed, quota=ERK())
            nodes[name].append(sum(connectivity.nodes(masks).values()))
            paths[name].append(connectivity.paths(masks))
    assert np.mean(nodes["npb"]) > np.mean(nodes["random"]) + 5
    assert np.mean(paths["npb"]) > np.mean(paths["random"])


def test_alpha_trades_paths_for_units():
    model = conv_net()
    connectivity = Connectivity(model, EXAMPLE)
    masks = {alpha: pruned(model, NPB(alpha=alpha), "99%") for alpha in (0.01, 0.99)}
    units = {alpha: sum(connectivity.nodes(kept).values()) for alpha, kept in masks.items()}
    paths = {alpha: connectivity.paths(kept) for alpha, kept in masks.items()}
    assert units[0.01] < units[0.99]
    assert paths[0.01] > paths[0.99]


def test_the_cheapest_are_the_first_to_go():
    model = conv_net()
    connectivity = Connectivity(model, EXAMPLE)
    every_unit = sum(connectivity.nodes(Masks.dense(model)).values())

    def units_of_most(scores):
        """Units alive in four fifths of what is chosen in every layer."""
        fewer = {name: int((score >= 1).sum() * 0.8) for name, score in scores.items()}
        thresholds = {n: s.flatten().topk(fewer[n]).values[-1] for n, s in scores.items()}
        nodes = connectivity.nodes(Masks({n: s >= thresholds[n] for n, s in scores.items()}))
        return sum(nodes.values())

    for seed in range(3):
        scores = scored(model, 1000, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        shuffled = {
            n: torch.where(s >= 1, 1 + torch.rand(s.shape, generator=draw), s)
            for n, s in scores.items()
        }
        assert units_of_most(scores) == every_unit
        assert units_of_most(shuffled) < every_unit


# --- solvers


@needs_solver
@pytest.mark.parametrize("seed", range(3))
def test_both_solvers_find_allocations_of_the_same_value_from_dense_masks(seed, monkeypatch):
    values = {}
    for solver in ("heuristic", "milp"):
        values[solver] = []

        class Noting(module.Allocation):
            def places(self, kernels, candidates, draw, solver=solver):
                values[solver].append(self.value(kernels))
                return super().places(kernels, candidates, draw)

        with monkeypatch.context() as patch:
            patch.setattr(module, "Allocation", Noting)
            # Deeper layers have other paths, since optima are many.
            scored(nn.Sequential(nn.Conv2d(3, 8, 3)), 20 + seed, solver=solver)
    assert values["milp"] == pytest.approx(values["heuristic"], abs=1e-9)


@needs_solver
def test_by_itself_it_asks_the_solver_only_where_that_may_help(monkeypatch):
    model, asked = conv_net(), []

    def solved(self, known, seconds):
        asked.append(seconds)
        return known

    monkeypatch.setattr(module.Allocation, "solved", solved)
    for settings, programs in (
        ({"solver": "heuristic"}, 0),
        ({"solver": "auto"}, 0),
        ({"solver": "milp"}, 4),
        ({"solver": "milp", "largest": 2048, "chunk": 16}, 3 + 4),
    ):
        asked.clear()
        pruned(model, NPB(time_limit=7.0, **settings), "90%")
        assert asked == [7.0] * programs
    monkeypatch.setattr(module.Allocation, "is_solved_by", lambda self, kernels: False)
    pruned(model, NPB(time_limit=7.0), "90%")
    assert asked == [7.0] * (7 + 4)


def test_without_the_extra_the_solver_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "highspy" else True)
    with pytest.raises(LitPruneError, match=r'needs highspy: pip install "lit_prune\[npb\]"'):
        pruned(conv_net(), NPB(solver="milp"), "90%")


def test_without_the_extra_a_warning_says_where_it_would_help(monkeypatch, recwarn):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    pruned(conv_net(), NPB(), "90%")
    assert not [w for w in recwarn if issubclass(w.category, LitPruneWarning)]
    monkeypatch.setattr(module.Allocation, "is_solved_by", lambda self, kernels: False)
    pruned(conv_net(), NPB(solver="heuristic"), "90%")
    assert not [w for w in recwarn if issubclass(w.category, LitPruneWarning)]
    with pytest.warns(LitPruneWarning, match="cvxpy and highspy is missing") as caught:
        pruned(conv_net(), NPB(), "90%")
    assert len(caught) == 1


@needs_solver
def test_the_solver_touches_neither_the_model_nor_the_generators(untouched):
    model = conv_net()
    with untouched(model):
        first = scored(model, 200, solver="milp")
    again = scored(model, 200, solver="milp")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_another_generator_gives_other_masks():
    model = conv_net()
    assert chosen(scored(model, 200, seed=0)) != chosen(scored(model, 200, seed=1))


# --- errors


def test_without_a_budget_there_is_nothing_to_solve():
    with pytest.raises(LitPruneError, match="NPB needs a budget"):
        scored(conv_net())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "lp"}, "unknown solver 'lp'; known: auto, milp, heuristic"),
        ({"alpha": 1.5}, "alpha=1.5 is out of range: from 0 to 1"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"beta": -1}, "beta=-1 is out of range: from 0 up"),
        ({"max_per_kernel": 0}, "max_per_kernel=0"),
        ({"min_per_unit": 0}, "min_per_unit=0"),
        ({"chunk": 1.5}, "chunk=1.5"),
        ({"largest": 0}, "largest=0"),
        ({"time_limit": 0}, "time_limit=0"),
    ],
)
def test_fields_out_of_range_are_errors_that_name_them(settings, message):
    with pytest.raises(LitPruneError, match=message):
        NPB(**settings)
