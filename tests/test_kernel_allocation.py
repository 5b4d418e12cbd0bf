"""Kernel allocation against every allocation there is, and against the formula written anew."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_prune.kernel_allocation import Allocation, room_for


def objective(program, kernels):
    """The formula of the paper, term by term."""
    groups, inputs, outputs = program.room.shape
    units = groups * (inputs + outputs)
    nodes, paths, used = units, 0.0, 0
    for g, i in product(range(groups), range(inputs)):
        nodes -= max(0, program.least - sum(int(kernels[g, i, j]) for j in range(outputs)))
        paths += program.paths[g, i] * sum(int(kernels[g, i, j]) for j in range(outputs))
    for g, j in product(range(groups), range(outputs)):
        nodes -= max(0, program.least - sum(int(kernels[g, i, j]) for i in range(inputs)))
    for kernel in kernels.ravel():
        used -= max(0, 1 - int(kernel))
    # The most paths: weight by weight, the inputs with the most paths first.
    each = [
        p for p, room in zip(program.paths.ravel(), program.room.sum(2).ravel(), strict=True)
        for _ in range(room)
    ]  # fmt: skip
    most = sum(sorted(each, reverse=True)[: program.budget])
    share = (program.budget + used) / program.budget
    value = program.alpha * nodes / units + program.beta * share
    return value + (1 - program.alpha) * (paths / most if most else 0)


def every_allocation(program):
    sizes = [range(int(room) + 1) for room in program.room.ravel()]
    for numbers in product(*sizes):
        if sum(numbers) == program.budget:
            yield np.array(numbers).reshape(program.room.shape)


def drawn(seed, largest=6, kinds=("dense", "masked", "sparse", "grouped", "both")):
    """A random layer: all kernels alike, or some weights of each pruned; in one or more groups."""
    draw = np.random.default_rng(seed)
    kind = kinds[seed % len(kinds)]
    groups = int(draw.integers(2, 4)) if kind in ("grouped", "both") else 1
    inputs, outputs = draw.integers(1, largest + 1, 2)
    taps = int(draw.integers(1, 5))
    density = {"masked": 0.5, "both": 0.5, "sparse": 0.2}.get(kind, 1.0)
    room = draw.binomial(taps, density, (groups, inputs, outputs))
    room[0, 0, 0] = max(room[0, 0, 0], 1)
    return Allocation(
        paths=np.exp(draw.normal(0, draw.choice([0, 0.3, 2]), (groups, inputs))),
        room=room,
        budget=int(draw.integers(1, room.sum() + 1)),
        alpha=float(draw.choice([0.01, 0.5, 0.99])),
        beta=float(draw.choice([0, 0.001, 1])),
        least=int(draw.choice([1, 1, 2])),
    )


def tiny(seed):
    """A layer of which every allocation can be tried."""
    draw = np.random.default_rng(seed)
    shape = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 2, 1), (1, 2, 2), (1, 1, 4)][seed % 6]
    room = draw.integers(0 if seed % 2 else 2, 3, shape)
    room[0, 0, 0] = 2
    return Allocation(
        np.exp(draw.normal(0, 1, shape[:2])), room, int(draw.integers(1, room.sum() + 1)),
        float(draw.choice([0.01, 0.5, 0.99])), float(draw.choice([0, 1])), 1 + seed % 2,
    )  # fmt: skip


def gained(program, kernels):
    """The objective above that of keeping nothing, which may be any number."""
    return program.value(kernels) - program.value(np.zeros_like(kernels))


def solved(program):
    pytest.importorskip("cvxpy")
    pytest.importorskip("highspy")
    return program.solved(heuristic(program), 60.0)


def heuristic(program):
    return program.heuristic(np.random.default_rng(0))


def assert_allowed(program, kernels):
    assert kernels.shape == program.room.shape
    assert kernels.sum() == program.budget
    assert (kernels >= 0).all()
    assert (kernels <= program.room).all()


@given(st.integers(0, 10**6))
def test_the_value_is_the_formula(seed):
    program = drawn(seed)
    kernels = np.minimum(program.room, np.random.default_rng(seed).integers(0, 3, 1))
    assert program.value(kernels) == pytest.approx(objective(program, kernels), abs=1e-9)


@pytest.mark.parametrize("seed", range(24))
def test_nothing_is_better_than_what_the_solver_finds(seed):
    program = tiny(seed)
    best = max(objective(program, kernels) for kernels in every_allocation(program))
    found = solved(program)
    assert_allowed(program, found)
    assert objective(program, found) == pytest.approx(best, abs=1e-7)


@pytest.mark.parametrize("seed", range(24))
def test_nothing_exceeds_the_bound(seed):
    program = tiny(seed)
    best = max(objective(program, kernels) for kernels in every_allocation(program))
    assert program.bound >= best - 1e-9
    assert program.is_solved_by(heuristic(program)) <= (
        objective(program, heuristic(program)) == pytest.approx(best, abs=1e-6)
    )


@given(st.integers(0, 10**6))
def test_the_heuristic_keeps_to_the_budget_and_the_room(seed):
    program = drawn(seed, largest=12)
    assert_allowed(program, heuristic(program))


@given(st.integers(0, 10**6))
def test_the_heuristic_is_an_optimum_where_all_kernels_are_alike(seed):
    program = drawn(seed, largest=12, kinds=("dense", "grouped"))
    assert program.is_solved_by(heuristic(program))  # which nothing exceeds


@pytest.mark.parametrize("seed", range(40))
def test_the_heuristic_comes_close_to_the_solver_everywhere(seed):
    program = drawn(seed, largest=12)
    known, best = gained(program, heuristic(program)), gained(program, solved(program))
    assert 0.98 * best <= known <= best + 1e-7
    assert best <= program.bound - program.value(np.zeros_like(program.room)) + 1e-7


def test_an_exchange_mends_what_the_room_prevents():
    room = np.array([[[9, 9, 0, 0], [0, 0, 1, 1]]])  # two outputs only have the poorer input
    program = Allocation(np.array([[1.05, 1.0]]), room, 4, alpha=0.5, beta=0.0)
    kernels = heuristic(program)
    assert kernels.tolist() == [[[1, 1, 0, 0], [0, 0, 1, 1]]]
    assert not program.is_solved_by(np.array([[[2, 1, 0, 0], [0, 0, 1, 0]]]))


def test_units_come_before_paths_if_they_weigh_more():
    paths = np.array([[1.0, 5.0, 1.0, 1.0]])
    program = Allocation(paths, np.full((1, 4, 3), 9), 6, alpha=0.99, beta=0.0)
    kernels = heuristic(program)
    assert kernels.sum(2).tolist() == [[1, 3, 1, 1]]
    assert kernels.any(1).all()


def test_paths_come_before_units_if_they_weigh_more():
    paths = np.array([[1.0, 5.0, 1.0, 1.0]])
    program = Allocation(paths, np.full((1, 4, 3), 9), 6, alpha=0.01, beta=0.0)
    kernels = heuristic(program)
    assert kernels.sum(2).tolist() == [[0, 6, 0, 0]]
    assert kernels.any(1).all()


def test_kernels_are_opened_before_any_is_filled_if_they_weigh_more():
    paths = np.array([[1.0, 5.0]])
    opened = heuristic(Allocation(paths, np.full((1, 2, 3), 9), 6, alpha=0.01, beta=1.0))
    filled = heuristic(Allocation(paths, np.full((1, 2, 3), 9), 6, alpha=0.01, beta=0.1))
    assert (opened == 1).all()
    assert filled.tolist() == [[[0, 0, 0], [2, 2, 2]]]


def test_the_last_outputs_of_equal_worth_go_together():
    program = Allocation(np.ones((1, 20)), np.full((1, 20, 20), 9), 40, alpha=0.5, beta=1.0)
    for_output = np.sort(heuristic(program)[0].sum(0))
    assert for_output[:18].tolist() == [1] * 18  # all are reached, and what is left is not strewn
    assert program.is_solved_by(heuristic(program))


@given(st.integers(0, 10**6), st.integers(1, 5) | st.none())
def test_chunks_share_out_the_budget_and_every_output(seed, outputs):
    program = drawn(seed, largest=12)
    owner = np.zeros_like(program.room)
    budgets = []
    for place, part in program.chunks(outputs):
        owner[place] += 1
        budgets.append(part.budget)
        assert np.array_equal(part.room, program.room[place])
        assert part.paths.shape == part.room.shape[:2]
        assert 0 <= part.budget <= part.room.sum()
        share = program.budget * part.room.sum() / program.room.sum()
        assert abs(part.budget - share) < 1
    assert (owner == 1).all()
    assert sum(budgets) == program.budget


def test_a_layer_with_leftovers_has_a_last_smaller_chunk():
    program = Allocation(np.ones((1, 2)), np.full((1, 2, 7), 9), 20, 0.5, 1.0)
    assert [part.room.shape for _, part in program.chunks(3)] == [(1, 2, 3), (1, 2, 3), (1, 2, 1)]


def test_without_a_budget_nothing_is_kept():
    program = Allocation(np.ones((1, 2)), np.full((1, 2, 2), 9), 0, 0.5, 1.0)
    assert not solved(program).any()


def test_what_is_known_counts_if_the_solver_finds_nothing_better_in_time():
    pytest.importorskip("cvxpy")
    pytest.importorskip("highspy")
    program = Allocation(np.ones((1, 30)), np.full((1, 30, 30), 9), 100, 0.5, 1.0)
    known = heuristic(program)
    assert_allowed(program, program.solved(known, 1e-9))
    poor = np.zeros_like(known)
    poor[0, 0, :25] = 4
    assert not program.is_solved_by(poor)
    assert program.is_solved_by(program.solved(poor, 60.0))


def test_room_is_bounded_and_raised_where_the_budget_needs_it():
    candidates = np.ones((1, 2, 3, 25), dtype=bool)
    candidates[0, 0, 0, 4:] = False
    paths = np.ones((1, 2))
    rooms = [room_for(candidates, paths, n, 9) for n in (10, 49, 50, 129)]
    assert [room.max() for room in rooms] == [9, 9, 10, 25]
    assert all(room[0, 0, 0] == 4 for room in rooms)


def test_inputs_that_no_path_reaches_have_room_only_if_nothing_else_is_left():
    candidates, paths = np.ones((1, 2, 3, 4), dtype=bool), np.array([[0.0, 1.0]])
    assert room_for(candidates, paths, 12, 1).sum(2).tolist() == [[0, 12]]
    assert room_for(candidates, paths, 13, 1).sum(2).tolist() == [[9, 9]]


@given(st.integers(0, 10**6))
def test_places_are_drawn_among_the_candidates_of_each_kernel(seed):
    program = drawn(seed)
    draw = np.random.default_rng(seed)
    candidates = np.arange(int(program.room.max())) < program.room[..., None]
    candidates = draw.permuted(candidates, axis=3)
    kernels = program.heuristic(draw)
    places = program.places(kernels, candidates, draw)
    assert np.array_equal((places >= 0).sum(3), kernels)
    assert not (places >= 0)[~candidates].any()
    assert np.sort(places[places >= 0]).tolist() == list(range(program.budget))


def test_the_weights_of_a_kernel_are_drawn_evenly():
    program = Allocation(np.ones((1, 100)), np.full((1, 100, 100), 1), 10000, 0.5, 1.0)
    candidates = np.ones((1, 100, 100, 9), dtype=bool)
    kernels = np.ones((1, 100, 100), dtype=int)
    places = program.places(kernels, candidates, np.random.default_rng(0))
    assert ((places >= 0).sum((0, 1, 2)) > 1000).all()  # 1111 each


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_the_dearest_weights_serve_every_unit(seed, least):
    draw = np.random.default_rng(seed)
    program = Allocation(draw.random((1, 6)), np.full((1, 6, 5), 9), 80, 0.99, 0.0, least)
    kernels = program.heuristic(draw)
    places = program.places(kernels, np.ones((1, 6, 5, 9), dtype=bool), draw)
    for n, fewer in pairwise(range(80, least * 11 - 1, -1)):
        dearest = (places >= 80 - fewer).sum(3)
        assert dearest.sum() == fewer < n
        assert (dearest.sum(2) >= least).all()
        assert (dearest.sum(1) >= least).all()


def test_the_dearest_weights_keep_every_kernel_in_use():
    draw = np.random.default_rng(0)
    program = Allocation(np.ones((1, 6)), np.full((1, 6, 5), 9), 80, alpha=0.0, beta=1.0)
    kernels = program.heuristic(draw)
    places = program.places(kernels, np.ones((1, 6, 5, 9), dtype=bool), draw)
    assert (kernels > 0).sum() == 30
    assert ((places >= 50).sum(3) == 1).all()
