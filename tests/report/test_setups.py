"""The setups of arXiv 2301.05219, table 2: a lattice of shared facts, and what breaks each."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import config, part, schedule, write_run

from lit_prune.report import Run, read_runs, tasks_of
from lit_prune.report.setups import SETUPS, Facts, difference, facts_of, satisfied, strictest

# As the paper's table has it: what each setup adds to which.
PAPER = {
    "S1": (None, {"dataset", "network", "rate"}),
    "S2": ("S1", {"base_model"}),
    "S3.1": ("S2", {"finetune_epochs"}),
    "S3.2": ("S3.1", {"finetune_rates"}),
    "S4.1": ("S3.2", {"pruning_epochs"}),
    "S4.2": ("S3.2", {"pruning_rates"}),
    "SX-A": ("S1", {"total_epochs"}),
    "SX-B": ("S1", {"training_flops"}),
}
NAMES = [field.name for field in fields(Facts)]

small = st.integers(0, 1).map(lambda n: (("key", n),))
facts = st.builds(
    Facts, *[small] * (len(NAMES) - 1), training_flops=st.sampled_from([None, 1e9, 1.04e9, 2e9])
)


def needed(setup):
    weaker, more = PAPER[setup]
    return more | (needed(weaker) if weaker else set())


def test_setups_are_those_of_the_paper():
    assert {name: set(of) for name, of in SETUPS.items()} == {name: needed(name) for name in PAPER}


@given(facts, facts)
def test_setups_are_symmetric_and_each_includes_the_weaker(one, other):
    shared = satisfied(one, other)
    assert shared == satisfied(other, one)
    for setup in shared:
        assert PAPER[setup][0] in {None, *shared}
    for setup in SETUPS:
        assert (difference(one, other, setup) is None) == (setup in shared)
    top = strictest(shared)
    assert set(top) <= shared
    assert all(any(needed(s) <= needed(t) for t in top) for s in shared)


@given(facts, st.sampled_from(NAMES))
def test_one_fact_breaks_exactly_the_setups_that_contain_it(one, name):
    one = replace(one, training_flops=1e9)
    changed = 3e9 if name == "training_flops" else (("key", 2),)
    other = replace(one, **{name: changed})
    assert set(SETUPS) - satisfied(one, other) == {s for s in SETUPS if name in needed(s)}


def shared(one, other):
    mine, others = (facts_of(Run("r", config(**change))) for change in (one, other))
    return set(strictest(satisfied(mine, others)))


AFTER = {"epochs": 30, "finetune_epochs": 90, "rate": {"0": 0.01, "30": 0.001}}
ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({}, {}, {"S4.1", "S4.2", "SX-A"}),
        ({}, {"seed_everything": 3}, {"S4.1", "S4.2", "SX-A"}),
        ({}, {"pruning__criterion": part("Random")}, {"S4.1", "S4.2", "SX-A"}),
        ({}, {"pruning__target": "20x"}, set()),
        ({}, {"pruning__target": "10x effective"}, set()),
        ({}, {"data__init_args__flip": True}, set()),
        ({}, {"model__backbone": {"class_path": "lit_prune.backbones.VGG"}}, set()),
        ({}, {"pruning__exclude": "*fc3*"}, set()),
        ({}, {"trainer__max_epochs": 40}, {"S2"}),
        ({}, {"model__optimizer": ADAM}, {"S3.1", "SX-A"}),
        ({}, {"data__init_args__batch_size": 50}, {"S3.1", "SX-A"}),
        ({}, {"pruning__scored_weights": "dense.ckpt"}, {"S1"}),
        ({}, {"model__weights": "dense.ckpt"}, {"S1"}),
        # RigL: the same network and epochs, but it goes on pruning.
        ({}, {"pruning__schedule": schedule("Regrow", every="1ep")}, {"S2", "SX-A"}),
        (
            {"pruning__schedule": schedule("Gradual", begin="2ep", end="10ep")},
            {"pruning__schedule": schedule("Gradual", begin="2ep", end="10ep", power=1)},
            {"S4.1", "S4.2", "SX-A"},
        ),
        (
            {"pruning__schedule": schedule("AfterTraining", **AFTER)},
            {"pruning__schedule": schedule("AfterTraining", **AFTER | {"rate": 0.01})},
            {"S3.1", "SX-A"},
        ),
        (
            {"pruning__schedule": schedule("AfterTraining", **AFTER)},
            {"pruning__schedule": schedule("AfterTraining", **AFTER | {"epochs": 60})},
            {"S1"},
        ),
        (  # P60F60 and P30F90
            {"pruning__schedule": schedule("AfterTraining", **AFTER)},
            {
                "pruning__schedule": schedule(
                    "AfterTraining", **AFTER | {"epochs": 60, "finetune_epochs": 60}
                )
            },
            {"SX-A"},
        ),
        (  # held rates of its own: the module's scheduler trains the base model only
            {"pruning__schedule": schedule("AfterTraining", **AFTER | {"epochs": 0})},
            {
                "pruning__schedule": schedule("AfterTraining", **AFTER | {"epochs": 0}),
                "model__scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR"},
            },
            {"S4.1", "S4.2", "SX-A"},
        ),
        (
            {"pruning__schedule": schedule("Iterative", levels=3, epochs=20)},
            {"pruning__schedule": schedule("Iterative", levels=3, epochs=20, rewind="fine_tune")},
            {"S3.1", "SX-A"},
        ),
        (  # a schedule that is not ours is like itself alone
            {"pruning__schedule": {"class_path": "mine.Schedule"}},
            {"pruning__schedule": {"class_path": "mine.Schedule"}},
            {"S4.1", "S4.2", "SX-A"},
        ),
        (
            {"pruning__schedule": {"class_path": "mine.Schedule"}},
            {"pruning__schedule": {"class_path": "mine.Other"}},
            {"SX-A"},
        ),
    ],
)
def test_settings_make_the_facts(one, other, expected):
    assert shared(one, other) == expected
    assert shared(other, one) == expected


def test_the_reference_is_of_the_largest_set_or_the_named_one():
    def run(path, **changes):
        return Run(path, config(**changes), {"total": 10, "kept": 1, "test_accuracy": 0.5})

    runs = [
        run("a", pruning__criterion=part("GraSP"), trainer__max_epochs=7),
        run("b", pruning__criterion=part("Random")),
        run("c"),
    ]
    marks = {c.method.name: (c.mark, c.is_reference) for c in tasks_of(runs)[0].cells}
    assert marks["GraSP"] == (("S2",), False)
    assert marks["Random"][1]
    assert marks["SNIP"] == (("S4.1", "S4.2", "SX-A"), False)
    marks = {c.method.name: (c.mark, c.is_reference) for c in tasks_of(runs, "GraSP")[0].cells}
    assert marks["GraSP"][1]
    assert marks["SNIP"] == marks["Random"] == (("S2",), False)
    assert tasks_of(runs[:1])[0].cells[0].mark is None


@pytest.mark.parametrize(
    ("change", "setup", "told"),
    [
        ({"trainer__max_epochs": 40}, "S3.1", "epochs of fine-tuning is 20 and 40"),
        ({"trainer__max_epochs": 40}, "S2", None),
        ({"model__optimizer": ADAM}, "S3.2", "model.optimizer.class_path is 'torch.optim.SGD' and"),
        ({"pruning__scored_weights": "d.ckpt"}, "S2", "scored_weights is not set and 'd.ckpt'"),
        ({"data__init_args__flip": True}, "S1", "data.init_args.flip is not set and True"),
        ({"pruning__target": "20x", "trainer__max_epochs": 40}, "S3.2", None),
    ],
)
def test_require_refuses_by_name_before_anything_is_written(tmp_path, report, change, setup, told):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", **change)
    code, error, out = report(tmp_path / "runs", "--require", setup)
    if told is None:
        assert (code, error) == (0, "")
        return
    assert code == 2
    assert told in error
    assert "/a and " in error
    assert "/b do not share the setup" in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_a_run_that_was_ended_early_is_not_of_the_length_that_its_config_says(tmp_path):
    whole, short = (read_runs([write_run(tmp_path / str(n), epochs=n)])[0] for n in (20, 2))
    assert "S3.1" in satisfied(facts_of(whole), facts_of(whole))
    shared = set(satisfied(facts_of(whole), facts_of(short)))
    assert "S2" in shared
    assert not shared & {"S3.1", "S3.2", "S4.1", "S4.2", "SX-A"}


def test_folders_of_other_images_are_other_data_sets_and_places_of_mnist_are_not(tmp_path):
    def facts(kind, root, name):
        data = {"class_path": f"lit_prune.data.{kind}", "init_args": {"root": root}}
        return facts_of(read_runs([write_run(tmp_path / name, data=data)])[0])

    flowers, cars = (facts("ImageFolder", f"/data/{x}", x) for x in ("flowers", "cars"))
    elsewhere = facts("ImageFolder", "other/flowers", "elsewhere")
    assert flowers.dataset == elsewhere.dataset != cars.dataset
    assert facts("MNIST", "/a", "a").dataset == facts("MNIST", "/b", "b").dataset
