"""Means, deviations and compressions of seeds, against numpy; names and missing seeds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import TOTAL, config, part, schedule, write_run

from lit_prune.report import Run, read_runs, tasks_of

NUMBERS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(1, TOTAL), st.integers(0, TOTAL), st.floats(0.1, 1e4)),
    min_size=1,
    max_size=5,
)


def run(path, accuracy=0.9, kept=100, effective=80, seconds=1.0, **changes):
    found = {"test_accuracy": accuracy, "total": TOTAL, "kept": kept, "seconds": seconds}
    found |= {"effective_kept": effective, "effective_flops": 2 * effective}
    return Run(path, config(**changes), found)


def only_cell(runs):
    [task] = tasks_of(runs)
    [cell] = task.cells
    return cell


@given(NUMBERS)
def test_seeds_come_to_what_numpy_says(numbers):
    runs = [
        run(f"r{seed}", accuracy, kept, min(effective, kept), seconds, seed_everything=seed)
        for seed, (accuracy, kept, effective, seconds) in enumerate(numbers)
    ]
    cell = only_cell(runs)
    accuracy, kept, effective, seconds = (
        np.array(column, float) for column in zip(*numbers, strict=True)
    )
    effective = np.minimum(effective, kept)
    assert cell.accuracy.n == len(numbers)
    assert math.isclose(cell.accuracy.mean, accuracy.mean(), abs_tol=1e-12)
    if len(numbers) == 1:
        assert cell.accuracy.std is None
    else:
        assert math.isclose(cell.accuracy.std, accuracy.std(ddof=1), rel_tol=1e-7, abs_tol=1e-9)
    assert math.isclose(cell.direct_compression, TOTAL / kept.mean())
    with np.errstate(divide="ignore"):
        assert math.isclose(cell.effective_compression, np.float64(TOTAL) / effective.mean())
    assert math.isclose(cell.seconds, seconds.mean())
    dead = int((effective == 0).sum())
    assert (f"{dead} of {len(numbers)} collapsed" in cell.notes) == (dead > 0)


def test_collapsed_runs_count_and_others_without_result_do_not():
    runs = [
        run("a", 0.8, seed_everything=0),
        run("b", 0.1, 100, 0, seed_everything=1),
        Run("c", config(seed_everything=2)),
        Run("d", config(seed_everything=3), error="killed"),
    ]
    cell = only_cell(runs)
    assert cell.accuracy.n == 2
    assert math.isclose(cell.accuracy.mean, 0.45)
    assert cell.notes == ["1 of 4 failed", "1 of 4 unfinished", "1 of 4 collapsed"]


def test_a_seed_that_is_there_twice_counts_once_and_the_finished_one_does():
    runs = [Run("a", config()), run("b", 0.7), run("c", 0.5)]
    cell = only_cell(runs)
    assert (cell.accuracy.mean, cell.accuracy.n) == (0.7, 1)
    assert cell.notes == ["seed 0 twice", "seed 0 twice"]
    assert {one.path for one in cell.runs} == {"a", "b", "c"}


def test_what_is_not_effective_by_unknown_rules_is_unknown():
    cell = only_cell(
        [
            run("a", effective=80),
            Run(
                "b",
                config(seed_everything=1),
                {"test_accuracy": 0.5, "total": TOTAL, "kept": 10, "effective_kept": None},
            ),
        ]
    )
    assert cell.effective_compression is None
    assert cell.direct_compression == TOTAL / 55
    assert "collapsed" not in " ".join(cell.notes)


@pytest.mark.parametrize(
    "one", ["10x", "90%", {"compression": 10}, {"density": 0.1}, "100", {"keep": 100}]
)
def test_equal_targets_are_one_rate_however_written(one):
    cell = only_cell([run("a"), run("b", pruning__target=one, seed_everything=1)])
    assert (str(cell.rate), len(cell.runs)) == ("10x", 2)


def test_direct_and_effective_targets_are_apart():
    [task] = tasks_of([run("a"), run("b", pruning__target="10x effective")])
    assert [str(cell.rate) for cell in task.cells] == ["10x", "10x effective"]
    assert [cell.rate.is_effective for cell in task.cells] == [False, True]


def test_a_schedule_with_a_share_has_its_own_rate():
    share = schedule("Iterative", levels=2, epochs=5, share=0.5)
    cell = only_cell([run("a", pruning__target=None, pruning__schedule=share)])
    assert str(cell.rate) == "4x"


def names(*changes):
    runs = [run(f"r{number}", **change) for number, change in enumerate(changes)]
    return sorted(method.name for task in tasks_of(runs) for method in task.methods)


def test_names_are_short_and_say_what_differs():
    random, erk = part("Random"), part("ERK", "quotas")
    assert names(
        {},
        {"pruning__rounds": 300},
        {"pruning__criterion": random, "pruning__quota": erk},
        {"pruning__criterion": part("Shuffled", criterion=part("SNIP"))},
        {"pruning__criterion": part("Magnitude"), "pruning__scored_weights": "dense/seed=0/a"},
        {"pruning__schedule": schedule("AfterTraining", epochs=3, finetune_epochs=4)},
        {"pruning__target": "1x", "pruning__criterion": random},
    ) == [
        "Dense",
        "Magnitude (trained)",
        "Random, ERK",
        "SNIP",
        "SNIP, 300 rounds",
        "SNIP, AfterTraining",
        "Shuffled SNIP",
    ]
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}}
    assert names({}, {"model__optimizer": adam}) == ["SNIP, Adam", "SNIP, SGD"]
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2, "momentum": 0.9}}
    assert names({}, {"model__optimizer": sgd}) == ["SNIP, lr=0.1", "SNIP, lr=0.2"]


@given(
    st.sets(
        st.sampled_from(
            [
                ("pruning__rounds", 7),
                ("pruning__floor", "1%"),
                ("trainer__max_epochs", 3),
                ("model__label_smoothing", 0.1),
                ("pruning__batches", 10),
                ("pruning__search", "reprune"),
                ("trainer__gradient_clip_val", 1.0),
                ("model__other", (1, 2)),
            ]
        )
    ),
    st.data(),
)
def test_methods_never_share_a_name(changes, data):
    subsets = data.draw(
        st.sets(
            st.frozensets(st.sampled_from(sorted(changes, key=str)))
            if changes
            else st.just(frozenset()),
            min_size=1,
            max_size=6,
        )
    )
    runs = []
    for number, subset in enumerate(sorted(subsets, key=repr)):
        runs.append(run(f"r{number}", **dict(subset)))
    found = [method.name for task in tasks_of(runs) for method in task.methods]
    assert len(found) == len(subsets)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "change",
    [
        {"seed_everything": 5},
        {"data__init_args__root": "/elsewhere"},
        {"trainer__logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}},
        {"trainer__accelerator": "gpu"},
        {"pruning__floor": 0},
        {"pruning__scored_weights": None},
    ],
)
def test_seeds_and_places_make_no_other_method(change):
    [task] = tasks_of([run("a"), run("b", **change)])
    assert len(task.methods) == 1


def test_trained_weights_of_each_seed_are_one_method():
    runs = [
        run(f"r{seed}", seed_everything=seed, pruning__scored_weights=f"d/seed={seed}/last.ckpt")
        for seed in range(3)
    ]
    assert only_cell(runs).accuracy.n == 3


def test_networks_and_data_are_tasks_of_their_own():
    vgg = {"class_path": "lit_prune.backbones.VGG"}
    tasks = tasks_of(
        [run("a"), run("b", model__backbone=vgg), run("c", data__init_args__flip=True)]
    )
    assert [task.title for task in tasks] == [
        "LeNet300100 on MNIST #1",
        "LeNet300100 on MNIST #2",
        "VGG on MNIST",
    ]


def test_training_flops_follow_from_levels(tmp_path):
    # 3 passes x (4 epochs dense + 6 epochs of what is effective) x 60,000 samples.
    write_run(tmp_path / "a", kept=100, effective=80, levels=[(4, TOTAL), (10, 100)])
    write_run(tmp_path / "b", kept=100, effective=80, levels=[(4, TOTAL), (7, 300), (10, 100)])
    first, second = read_runs([tmp_path])
    flops = 3 * (4 * 2 * TOTAL + 6 * 2 * 80)
    from lit_prune.report.cost import training_flops, training_flops_a_sample

    assert training_flops_a_sample(first) == flops
    assert training_flops(first) == flops * 60_000
    assert training_flops_a_sample(second) is None
