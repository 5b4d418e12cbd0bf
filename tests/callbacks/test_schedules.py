"""Every schedule in a Lightning training: rewinding, rates, the zero law, and the length."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from scheduled import (
    OPTIMIZERS,
    SCHEDULES,
    STEPS,
    Law,
    Scheduled,
    Witness,
    fit,
    manager_of,
    mostly_slow,
    same_bits,
    scheduled,
)
from test_mask_manager import PRUNABLE, TOTAL, connectivity, data, loader, make_trainer
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    StepLR,
)
from torch.utils.data import DataLoader, IterableDataset

from lit_prune import LitPruneError, MaskManager, Masks, Target
from lit_prune.acts import Due, Prune
from lit_prune.callbacks import Levels
from lit_prune.criteria import Magnitude, Random
from lit_prune.errors import LitPruneWarning, TargetMissed
from lit_prune.schedules import (
    AfterTraining,
    AtInit,
    Gradual,
    GReg1,
    GReg2,
    Iterative,
    Regrow,
    Schedule,
)
from lit_prune.timing import Course, Time

pytestmark = [
    pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

EVERY_SCHEDULE = pytest.mark.parametrize("name", list(SCHEDULES))
EVERY_OPTIMIZER = pytest.mark.parametrize("optimizer", list(OPTIMIZERS))


def watched(schedule: Schedule, module=None, target="5x", epochs=-1, **kwargs):
    """Train by a schedule, and what was seen of it."""
    manager = MaskManager(Magnitude(), target, schedule=schedule)
    witness = Witness(manager)
    fit(module or scheduled(), manager, witness, epochs=epochs, **kwargs)
    return witness, manager


def masked(tensor: Tensor, mask: Tensor | None) -> Tensor:
    return tensor if mask is None else torch.where(mask, tensor, torch.zeros(()))


def assert_rewound(now, then, masks) -> None:
    """All of ``now`` is what it was ``then``, to the bit; zero where masked."""
    assert now.weights.keys() == then.weights.keys()
    for name, tensor in then.weights.items():
        assert torch.equal(now.weights[name], masked(tensor, masks.get(name))), name
    assert now.states.keys() == then.states.keys()
    for name, state in then.states.items():
        mask = masks.get(name)
        for key, value in state.items():
            if isinstance(value, Tensor) and mask is not None and value.shape == mask.shape:
                value = masked(value, mask)
            same_bits(now.states[name][key], value)
    assert now.rates == then.rates


# --- Rewinding.

POINTS = {"0ep": 0, "1ep": 4, "3it": 3, "4it": 4, "6it": 6}


@pytest.mark.parametrize("point", POINTS)
@EVERY_OPTIMIZER
def test_a_level_begins_with_the_bits_of_the_rewinding_point(point, optimizer):
    """Weights, statistics of the batch norm, momentum, Adam's moments and steps, rates."""
    module = scheduled(OPTIMIZERS[optimizer], partial(MultiStepLR, milestones=[1, 2], gamma=0.5))
    witness, _manager = watched(Iterative(2, 3, rewind_to=point), module)
    steps = POINTS[point]
    if steps % STEPS == 0:
        then = witness.first_of(steps // STEPS)
    else:
        then = next(m for m in witness.after if m.step == steps)
    if steps:
        assert set(then.states) >= set(PRUNABLE)
        assert then.weights["net.1.running_mean"].abs().sum() > 0
    left = 3 - steps // STEPS
    kept = []
    for level in (1, 2):
        now = witness.first_of(3 + (level - 1) * left)
        before = next(m for m in reversed(witness.after) if m.epoch == now.epoch - 1)
        assert not torch.equal(
            before.weights["net.1.running_mean"], then.weights["net.1.running_mean"]
        )
        assert_rewound(now, then, now.masks)
        kept.append(sum(int(mask.sum()) for mask in now.masks.values()))
    assert kept == [round(TOTAL * (222 / TOTAL) ** 0.5), 222]
    assert witness.after[-1].epoch + 1 == 3 + 2 * left


def test_going_back_to_the_start_forgets_the_optimizer_s_state():
    witness, _ = watched(Iterative(2, 1, rewind="init"), scheduled(OPTIMIZERS["adam"]))
    assert witness.first_of(0).states == witness.first_of(1).states == witness.first_of(2).states
    assert witness.first_of(2).states == {}
    assert_rewound(witness.first_of(2), witness.first_of(0), witness.first_of(2).masks)


def test_what_is_trained_after_a_rewind_does_not_change_what_the_next_one_puts_back():
    """Three rewinds; each finds the same snapshot."""
    witness, _ = watched(Iterative(3, 2, rewind_to="1ep"), scheduled(OPTIMIZERS["adam"]))
    then = witness.first_of(1)
    for epoch in (2, 3, 4):
        assert_rewound(witness.first_of(epoch), then, witness.first_of(epoch).masks)


SCHEDULERS = {
    "multistep": (partial(MultiStepLR, milestones=[1, 2], gamma=0.1), "epoch"),
    "step": (partial(StepLR, step_size=2, gamma=0.3), "epoch"),
    "cosine": (partial(CosineAnnealingLR, T_max=3), "epoch"),
    "cosine in steps": (partial(CosineAnnealingLR, T_max=12), "step"),
    "warm-up in steps": (partial(LambdaLR, lr_lambda=lambda n: min(n + 1, 7) / 7), "step"),
    "multistep in steps": (partial(MultiStepLR, milestones=[2, 5, 9], gamma=0.5), "step"),
}


@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
@pytest.mark.parametrize("point", mostly_slow(POINTS, {"1ep", "6it"}))
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_level_repeats_the_rates_of_level_0_from_the_rewinding_point(
    scheduler, point, rewind
):
    make, interval = SCHEDULERS[scheduler]
    module = scheduled(OPTIMIZERS["sgd"], make, interval)
    witness, _ = watched(Iterative(2, 3, rewind, point), module)
    dense, rest = witness.rates[: 3 * STEPS], witness.rates[3 * STEPS :]
    assert len(set(dense)) > 1, "the case tells nothing"
    epoch = POINTS[point] // STEPS
    # A level begins at an epoch's start, with the rate of the point.
    repeated = dense[POINTS[point] :] if interval == "step" else dense[epoch * STEPS :]
    length = (3 - epoch) * STEPS
    assert len(rest) == 2 * length
    for level in (rest[:length], rest[length:]):
        assert level[: len(repeated)] == repeated


def test_learning_rate_rewinding_keeps_weights_statistics_and_states():
    module = scheduled(OPTIMIZERS["adam"], partial(MultiStepLR, milestones=[1], gamma=0.1))
    witness, _ = watched(Iterative(2, 2, "learning_rate"), module)
    for epoch in (2, 4):
        now = witness.first_of(epoch)
        before = next(m for m in reversed(witness.after) if m.epoch == epoch - 1)
        assert_rewound(replace(now, rates=[]), replace(before, rates=[]), now.masks)
        assert now.rates == witness.first_of(0).rates != before.rates


FADING = {
    "cosine to zero": (partial(CosineAnnealingLR, T_max=2), "epoch"),
    "cosine that would rise again": (partial(CosineAnnealingLR, T_max=1), "epoch"),
    "cosine in steps": (partial(CosineAnnealingLR, T_max=7), "step"),
    "one cycle that would raise": (partial(OneCycleLR, max_lr=0.1, total_steps=8), "step"),
    "multistep": (partial(MultiStepLR, milestones=[1, 2, 3], gamma=0.1), "epoch"),
}


@pytest.mark.parametrize("scheduler", FADING)
def test_fine_tuning_keeps_all_and_the_last_rate_that_was_used(scheduler):
    make, interval = FADING[scheduler]
    optimizer = partial(SGD, lr=0.1, momentum=0.9)
    witness, _ = watched(Iterative(2, 2, "fine_tune"), scheduled(optimizer, make, interval))
    dense, rest = witness.rates[: 2 * STEPS], witness.rates[2 * STEPS :]
    assert len(set(dense)) > 1
    assert rest == [dense[-1]] * 4 * STEPS
    for epoch in (2, 4):
        now = witness.first_of(epoch)
        before = next(m for m in reversed(witness.after) if m.epoch == epoch - 1)
        assert_rewound(replace(now, rates=[]), replace(before, rates=[]), now.masks)


def test_each_group_of_parameters_keeps_its_own_last_rate():
    def grouped(parameters):
        first, *others = parameters
        return SGD([{"params": [first], "lr": 0.3}, {"params": others}], lr=0.1)

    module = scheduled(grouped, partial(StepLR, step_size=1, gamma=0.5))
    witness, _ = watched(Iterative(1, 2, "fine_tune"), module)
    used = witness.first_of(1).rates
    assert used == [0.15, 0.05]
    assert witness.first_of(2).rates == witness.after[-1].rates == used


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (None, [0.05, 0.05, 0.05]),
        (0.02, [0.02, 0.02, 0.02]),
        (0, [0, 0, 0]),
        ({0: 0.02, 2: 0.001}, [0.02, 0.02, 0.001]),
        ({2: 0.001, 1: 0.01, 0: 0.02}, [0.02, 0.01, 0.001]),
    ],
)
def test_after_training_fine_tunes_by_the_rates_that_are_given(rate, expected):
    optimizer = partial(SGD, lr=0.1, momentum=0.9)
    module = scheduled(optimizer, partial(StepLR, step_size=1, gamma=0.5))
    witness, manager = watched(AfterTraining(2, 3, rate), module)
    assert witness.rates[::STEPS] == [0.1, 0.05, *expected]
    assert all(len(set(witness.rates[i : i + STEPS])) == 1 for i in range(0, 20, STEPS))
    kept = [sum(int(m.sum()) for m in witness.first_of(e).masks.values()) for e in range(5)]
    assert kept == [TOTAL, TOTAL, 222, 222, 222]
    now, before = witness.first_of(2), witness.after[2 * STEPS - 1]
    assert_rewound(replace(now, rates=[]), replace(before, rates=[]), now.masks)
    assert manager.masks.kept == 222


def test_a_rate_that_is_a_tensor_stays_the_same_tensor():
    def optimizer(parameters):
        return Adam(parameters, lr=torch.tensor(0.01), capturable=False, foreach=False)

    seen = []

    class Note(pl.Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            seen.append(id(trainer.optimizers[0].param_groups[0]["lr"]))

    witness, _ = watched(AfterTraining(1, 2, {0: 0.5, 1: 0.25}), scheduled(optimizer))
    assert witness.rates[::STEPS] == pytest.approx([0.01, 0.5, 0.25])
    manager = MaskManager(Magnitude(), "5x", schedule=Iterative(1, 2, "fine_tune"))
    module = scheduled(optimizer, partial(StepLR, step_size=1, gamma=0.5))
    fit(module, manager, Note())
    assert len(set(seen)) == 1


# --- The zero law.


def lawful(name, module=None, *callbacks, target="5x", times=1, **kwargs):
    """Train by a schedule of SCHEDULES under the law; return it, the manager and the trainer."""
    manager = manager_of(name, target)
    law = Law(manager)
    epochs = SCHEDULES[name][1]
    module = scheduled(dropout=0.2) if module is None else module
    length = epochs if epochs == -1 else epochs * times
    trainer = fit(module, manager, *callbacks, law, epochs=length, **kwargs)
    assert law.steps == trainer.global_step
    assert min(law.kept) == manager.masks.kept < TOTAL
    return law, manager, trainer


@EVERY_SCHEDULE
@pytest.mark.parametrize("optimizer", mostly_slow(OPTIMIZERS, {"sgd", "adamw"}))
def test_pruned_weight_gradient_and_state_are_zero_after_every_step(name, optimizer):
    law, manager, _trainer = lawful(name, scheduled(OPTIMIZERS[optimizer], dropout=0.2))
    assert law.states == ({"momentum_buffer"} if optimizer == "sgd" else {"exp_avg", "exp_avg_sq"})
    assert manager.masks.kept == (177 if name == "share" else 222)
    assert all(after <= before for before, after in pairwise(law.kept))


TRAINERS = {
    "bf16": {"precision": "bf16-mixed"},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.05},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
}
AT_WORK = ["weights to 1ep", "gradual in epochs", "random regrowth", "gradient regrowth", "greg 2"]


@pytest.mark.parametrize("how", TRAINERS)
@pytest.mark.parametrize(
    "name", mostly_slow(AT_WORK, {"weights to 1ep", "gradient regrowth", "greg 2"})
)
def test_the_zero_law_under_mixed_precision_accumulation_and_clipping(name, how):
    # Two steps an epoch: what is due at a step comes twice as late.
    times = TRAINERS[how].get("accumulate_grad_batches", 1)
    lawful(name, scheduled(OPTIMIZERS["adamw"]), times=times, **TRAINERS[how])


@pytest.mark.parametrize(
    "name", mostly_slow(["weights to 1ep", "gradient regrowth", "greg 1"], {"gradient regrowth"})
)
@pytest.mark.parametrize("whole", mostly_slow([False, True], {True}))
def test_the_zero_law_in_a_compiled_module(name, whole):
    torch.compiler.reset()
    module = scheduled(compiled=None if whole else "aot_eager")
    module = torch.compile(module, backend="eager") if whole else module
    _, manager, _ = lawful(name, module)
    assert list(manager.masks) == PRUNABLE
    plain = manager_of(name)
    fit(scheduled(), plain, epochs=SCHEDULES[name][1])
    assert manager.masks.kept == plain.masks.kept
    torch.compiler.reset()


class AverageLaw(pl.Callback):
    """The averaged weights of what is pruned are zero at every moment; counts the fresh starts."""

    def __init__(self, manager: MaskManager, averaging: WeightAveraging) -> None:
        self.manager, self.averaging = manager, averaging
        self.starts: list[int] = []
        self.checks = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self.check()
        average = self.averaging._average_model
        if int(average.n_averaged) == 0:
            self.starts.append(trainer.current_epoch)
            own = dict(pl_module.named_parameters())
            for name, value in average.module.named_parameters():
                assert torch.equal(value, own[name]), name

    def on_train_batch_end(self, *args) -> None:
        self.check()

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self.manager.masks.parameters(pl_module)
        for name, weight in self.manager.masks.parameters(pl_module).items():
            assert (weight[~self.manager.masks[name]] == 0).all()

    def check(self) -> None:
        self.checks += 1
        masks = self.manager.masks
        for name, weight in masks.parameters(self.averaging._average_model.module).items():
            assert (weight[~masks[name]] == 0).all(), name


@EVERY_SCHEDULE
def test_averaged_weights_of_what_is_pruned_are_zero_and_a_rewind_starts_the_average_anew(name):
    manager, averaging = manager_of(name), EMAWeightAveraging(decay=0.9)
    law, average = Law(manager), AverageLaw(manager, averaging)
    module = scheduled()
    trainer = fit(module, manager, averaging, law, average, epochs=SCHEDULES[name][1])
    assert average.checks == 2 * trainer.global_step
    rewinds = {"weights to 1ep": [2, 3], "weights to 5it": [2, 3], "init": [1, 2], "share": [1, 2]}
    assert average.starts == [0, *rewinds.get(name, [])]
    # The averaged weights are what is left in the end.
    for weight_name, weight in manager.masks.parameters(module).items():
        assert (weight[~manager.masks[weight_name]] == 0).all()


@pytest.mark.parametrize("first", [True, False])
def test_an_average_may_come_before_or_after_the_mask_manager(first):
    manager, averaging = manager_of("weights to 1ep"), WeightAveraging()
    average = AverageLaw(manager, averaging)
    callbacks = [averaging, manager] if first else [manager, averaging]
    fit(scheduled(), *callbacks, average)
    assert average.starts == [0, 2, 3]


class Overflowing(MixedPrecision):
    """fp16 on a CPU, with a scale so large that the first steps overflow and are skipped."""

    def __init__(self) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=3)
        super().__init__("16-mixed", "cpu", scaler)


class Finite(pl.Callback):
    """Notes before every step, ahead of the mask manager, whether it overflowed and the masks."""

    def __init__(self, manager: MaskManager) -> None:
        self.manager = manager
        self.overflowed: list[bool] = []
        self.masks: list[Masks] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        weights = self.manager.masks.parameters(pl_module).values()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self.overflowed.append(not all(bool(g.isfinite().all()) for g in gradients))
        self.masks.append(self.manager.masks)


@pytest.mark.parametrize("by", ["random", "gradient"])
def test_skipped_steps_of_fp16_keep_the_law_and_no_infinite_gradient_chooses(by):
    manager = MaskManager(Magnitude(), "5x", schedule=Regrow("1it", 0.5, by, until="20it"))
    finite, law = Finite(manager), Law(manager)
    trainer = fit(scheduled(), finite, manager, law, epochs=6, plugins=[Overflowing()])
    assert trainer.global_step == 6 * STEPS
    overflowed = finite.overflowed
    assert 0 < sum(overflowed) < len(overflowed)
    changed = [
        a != b for a, b in zip(finite.masks, [*finite.masks[1:], manager.masks], strict=True)
    ]
    assert not any(change for change, over in zip(changed, overflowed, strict=True) if over)
    assert sum(changed) > 5
    # What was due at a skipped step is made good at the next that is finite.
    first = overflowed.index(False)
    assert overflowed[1:first]
    assert changed[first]


@pytest.mark.parametrize("name", ["weights to 1ep", "gradual in steps", "greg 1", "fine tune"])
def test_the_zero_law_with_skipped_steps_of_fp16(name):
    manager = manager_of(name)
    law, finite = Law(manager), Finite(manager)
    trainer = fit(
        scheduled(), manager, finite, law, epochs=SCHEDULES[name][1], plugins=[Overflowing()]
    )
    assert 0 < sum(finite.overflowed) < trainer.global_step
    assert law.steps < trainer.global_step
    assert manager.masks.kept == 222


# --- How far.


@pytest.mark.parametrize(
    "target",
    mostly_slow(["10x", "90%", "400", "99% effective", "10x effective"], {"10x", "10x effective"}),
)
@pytest.mark.parametrize(
    "name", ["after training", "weights to 1ep", "init", "gradual in steps", "greg 1", "greg 2"]
)
def test_the_target_is_reached_exactly_at_the_last_level(name, target):
    manager = manager_of(name, target)
    fit(scheduled(), manager, epochs=SCHEDULES[name][1])
    wanted = Target.parse(target).count(TOTAL)
    if "effective" in target:
        assert manager.measurement.totals()["effective_kept"] >= wanted
    else:
        assert manager.masks.kept == wanted


def test_every_level_of_an_effective_target_is_effective_and_a_miss_is_told():
    with pytest.warns(TargetMissed) as told:
        witness, manager = watched(Iterative(3, 1), target="50x effective")
    wanted = Target.parse("50x").count(TOTAL)
    kept = manager.measurement.totals()["effective_kept"]
    assert (kept > wanted) == any(str(wanted) in str(w.message) for w in told)
    levels = [Masks(witness.first_of(epoch).masks) for epoch in range(4)]
    assert all(after <= before for before, after in pairwise(levels))
    for level, masks in enumerate(levels):
        budget = round(TOTAL * (wanted / TOTAL) ** (level / 3))
        effective = connectivity(scheduled(), masks).effective(masks).kept
        assert budget <= effective < 1.2 * budget + 5
    assert levels[-2].kept > round(TOTAL * (wanted / TOTAL) ** (2 / 3))


def test_levels_nest_and_keep_a_geometric_sequence():
    witness, _ = watched(Iterative(4, 1), target="16x")
    levels = [Masks(witness.first_of(epoch).masks) for epoch in range(5)]
    kept = [m.kept for m in levels]
    assert kept == [round(TOTAL * (kept[-1] / TOTAL) ** (level / 4)) for level in range(5)]
    assert kept[-1] == Target.parse("16x").count(TOTAL)
    assert all(after <= before for before, after in pairwise(levels))


def test_magnitude_prunes_what_the_level_trained_not_what_was_rewound():
    """An independent reference: the smallest weights at the end of the level before."""
    witness, _ = watched(Iterative(2, 2, rewind_to="1ep"), target="4x")
    for epoch, keep in ((2, 554), (3, 277)):
        before, now = witness.after[epoch * STEPS - 1], witness.first_of(epoch)
        flat = torch.cat([before.weights[n].abs().flatten() for n in PRUNABLE])
        threshold = flat.sort(descending=True).values[keep - 1]
        for name in PRUNABLE:
            assert torch.equal(now.masks[name], before.weights[name].abs() >= threshold)


def test_a_share_needs_no_target():
    witness, manager = watched(Iterative(2, 1, share=0.2), target=None)
    kept = [sum(int(m.sum()) for m in witness.first_of(e).masks.values()) for e in range(3)]
    assert kept == [1108, 886, 709]
    assert manager.target is None


def test_a_share_and_a_target_are_an_error_that_names_both():
    with pytest.raises(LitPruneError, match=r"share=0\.2.*target 10x") as raised:
        MaskManager(Magnitude(), "10x", schedule=Iterative(2, 1, share=0.2))
    assert "\n" not in str(raised.value)
    with pytest.raises(LitPruneError, match="criterion"):
        MaskManager(schedule=Iterative(2, 1, share=0.2))


@pytest.fixture
def stored(tmp_path):
    """A file of masks that keep 222 of 1108, and the masks."""
    manager = MaskManager(Random(), "5x")
    fit(scheduled(), manager, epochs=1)
    file = tmp_path / "masks.safetensors"
    manager.masks.save(file)
    return str(file), manager.masks


def test_stored_masks_are_pruned_to_after_training(stored):
    file, masks = stored
    manager = MaskManager(masks=file, schedule=AfterTraining(1, 1))
    witness = Witness(manager)
    fit(scheduled(), manager, witness)
    assert all(bool(mask.all()) for mask in witness.first_of(0).masks.values())
    assert Masks(witness.first_of(1).masks) == manager.masks == masks


@pytest.mark.parametrize(
    ("schedule", "number"), [(Iterative(2, 1), 2), (Gradual("0ep", "3ep"), 3)], ids=str
)
def test_stored_masks_with_several_prunes_are_an_error(stored, schedule, number):
    file, _ = stored
    manager = MaskManager(masks=file, schedule=schedule)
    module = scheduled()
    name = type(schedule).__name__
    with pytest.raises(LitPruneError, match=rf"masks=.*{name} prunes {number} times"):
        fit(module, manager, epochs=-1 if schedule.fixes_length else 5)
    assert module.steps_taken == 0


def test_new_weights_are_drawn_at_each_level_on_request():
    def first(**asked):
        manager = MaskManager(Magnitude(), "5x", schedule=Iterative(2, 1, "init"), **asked)
        witness = Witness(manager)
        fit(scheduled(), manager, witness)
        return witness

    plain, drawn = first(), first(reinitialise=True)
    name = PRUNABLE[1]
    then = plain.first_of(0).weights[name]
    for epoch in (1, 2):
        mask = drawn.first_of(epoch).masks[name]
        now = drawn.first_of(epoch).weights[name]
        assert (now[mask] != then[mask]).all()
        assert not now[~mask].any()
        assert drawn.first_of(epoch).states == {}
    assert Masks(plain.first_of(1).masks) == Masks(drawn.first_of(1).masks)


def test_new_weights_begin_without_the_optimizer_s_state():
    schedule = AfterTraining(1, 1)
    manager = MaskManager(Magnitude(), "5x", schedule=schedule, reinitialise=True)
    witness = Witness(manager)
    fit(scheduled(OPTIMIZERS["adam"]), manager, witness)
    assert set(witness.after[STEPS - 1].states) >= set(PRUNABLE)
    assert witness.first_of(1).states == {}


# --- The length.


def length_of(schedule, epochs=-1, **kwargs):
    manager = MaskManager(Magnitude(), "5x", schedule=schedule)
    trainer = fit(scheduled(), manager, epochs=epochs, **kwargs)
    assert trainer.max_epochs == trainer.current_epoch
    return trainer.current_epoch


def test_a_schedule_sets_the_length_where_the_trainer_leaves_it_open():
    assert length_of(Iterative(2, 3)) == 9
    assert length_of(Iterative(2, 3, rewind_to="2ep")) == 5
    assert length_of(Iterative(2, 3, rewind_to="5it")) == 7
    assert length_of(AfterTraining(1, 2)) == 3
    # Two steps an epoch.
    assert length_of(Iterative(2, 3, rewind_to="5it"), accumulate_grad_batches=2) == 5


def test_a_trainer_of_the_same_length_is_welcome_and_another_is_an_error_with_both_numbers():
    assert length_of(Iterative(1, 2), epochs=4) == 4
    for schedule, right in ((Iterative(1, 2), 4), (AfterTraining(1, 2), 3)):
        name = type(schedule).__name__
        for wrong in (2, 7):
            said = rf"{name} takes {right} epochs, and trainer.max_epochs is {wrong}: set it"
            with pytest.raises(LitPruneError, match=said) as raised:
                length_of(schedule, epochs=wrong)
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize("schedule", [Gradual("0ep", "2ep"), Gradual("1it", "9it", "2it")])
def test_max_steps_that_end_the_training_before_the_schedule_are_refused(schedule):
    manager = MaskManager(Magnitude(), "5x", schedule=schedule)
    with pytest.raises(LitPruneError, match=r"Gradual has work to do at .*max_steps=8"):
        fit(scheduled(), manager, epochs=5, max_steps=8)


def test_a_training_that_is_stopped_before_its_schedule_says_so():
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, *args) -> None:
            trainer.should_stop = True

    with pytest.warns(LitPruneWarning, match=r"ended in epoch 1, .* Gradual: 2 of 2 .* due at 1ep"):
        fit(
            scheduled(),
            MaskManager(Magnitude(), "5x", schedule=Gradual("0ep", "2ep")),
            Stop(),
            epochs=4,
        )


def test_stochastic_weight_averaging_is_refused_where_masks_change():
    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.05)
    with pytest.raises(LitPruneError, match="StochasticWeightAveraging"):
        fit(scheduled(), manager_of("share"), averaging)


def test_max_steps_may_end_it_too_early():
    with pytest.raises(LitPruneError, match=r"Iterative takes 4 epochs.*max_steps=9"):
        length_of(Iterative(1, 2), max_steps=9)
    with pytest.raises(LitPruneError, match=r"Iterative takes 4 epochs.*max_steps=9"):
        length_of(Iterative(1, 2), epochs=4, max_steps=9)


@pytest.mark.parametrize("schedule", [AtInit(), Gradual("1it", "2ep"), GReg1("1it", "1it", 0.5)])
def test_other_schedules_leave_the_length_to_the_trainer(schedule):
    assert length_of(schedule, epochs=3) == 3
    manager = MaskManager(Magnitude(), "5x", schedule=schedule)
    trainer = fit(scheduled(), manager, epochs=5, max_steps=10)
    assert trainer.global_step == 10


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (Gradual("0ep", "3ep"), "3ep"),
        (Gradual("1it", "13it"), "13it"),
        (GReg1("2ep", "2it", step=0.5), "3ep"),
        (Regrow("1it", until="5ep"), "19it"),
    ],
)
def test_a_schedule_that_ends_after_the_training_is_refused_by_name(schedule, last):
    module = scheduled()
    manager = MaskManager(Magnitude(), "5x", schedule=schedule)
    name = type(schedule).__name__
    with pytest.raises(LitPruneError, match=f"{name} has work to do at {last}.* epoch 3"):
        fit(module, manager, epochs=3)
    assert module.steps_taken == 0


class Endless(IterableDataset):
    """Samples without a length."""

    def __iter__(self):
        yield from data()


def endless() -> DataLoader:
    return DataLoader(Endless(), 6)


@pytest.mark.parametrize("schedule", [Iterative(2, 2, rewind_to="1ep"), Gradual("0ep", "2ep")])
def test_data_without_a_length_train_by_epochs(schedule):
    manager, levels = MaskManager(Magnitude(), "5x", schedule=schedule), Levels()
    epochs = -1 if schedule.fixes_length else 3
    trainer = fit(scheduled(), manager, levels, epochs=epochs, batches=endless())
    assert manager.masks.kept == 222
    assert trainer.current_epoch == (4 if schedule.fixes_length else 3)
    assert [row.kept for row in levels.rows][-1] == 222


@pytest.mark.parametrize("limits", [{"epochs": 3}, {"epochs": -1, "max_steps": 9}], ids=str)
def test_data_without_a_length_train_by_steps(limits):
    manager = MaskManager(Magnitude(), "5x", schedule=Gradual("1it", "6it", "2it"))
    fit(scheduled(), manager, Levels(), batches=endless(), **limits)
    assert manager.masks.kept == 222


@pytest.mark.parametrize("epochs", [-1, 4])
def test_a_point_in_steps_and_data_without_a_length_are_one_clear_line(epochs):
    manager = MaskManager(Magnitude(), "5x", schedule=Iterative(2, 2, rewind_to="3it"))
    with pytest.raises(LitPruneError, match="a point in optimizer steps") as raised:
        fit(scheduled(), manager, epochs=epochs, batches=endless())
    assert "None" not in str(raised.value)


# --- Growing regularisation.


class Pressed(pl.Callback):
    """Compares the gradient that the optimizer sees with the plain one and the penalty."""

    def __init__(self, manager: MaskManager) -> None:
        self.manager = manager
        self.seen: list[tuple[int, dict, dict, dict]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        weights = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters()}
        plain = dict(zip(weights, pl_module.plain, strict=True))
        self.seen.append((trainer.global_step, weights, gradients, plain))


class Plain(Scheduled):
    """Keeps the gradients as they were before any callback saw them."""

    def on_after_backward(self) -> None:
        self.plain = [p.grad.clone() for p in self.parameters()]


def pressed(schedule, **kwargs):
    manager = MaskManager(Magnitude(), "5x", schedule=schedule)
    notes, witness = Pressed(manager), Witness(manager)
    fit(scheduled(kind=Plain), manager, notes, witness, epochs=3, **kwargs)
    return notes.seen, witness, manager


def smallest(weights, number):
    """Marks of the connections of least magnitude in the whole network."""
    flat = torch.cat([weights[n].abs().flatten() for n in PRUNABLE])
    bound = flat.sort().values[number - 1]
    return {n: weights[n].abs() <= bound for n in PRUNABLE}


def test_greg1_adds_its_penalty_to_the_gradient_of_what_is_picked_and_removes_just_that():
    schedule = GReg1("2it", "2it", step=0.05, ceiling=0.12, settle="1it")
    seen, witness, manager = pressed(schedule)
    # Penalties by the step before which they hold: rises at 2, 4, 6, the prune at 9.
    strengths = {0: 0, 1: 0, 2: 0.05, 3: 0.05, 4: 0.1, 5: 0.1, 6: 0.12, 7: 0.12, 8: 0.12}
    picked = smallest(seen[2][1], TOTAL - 222)
    for step, weights, gradients, plain in seen[:9]:
        for name, gradient in gradients.items():
            pull = strengths[step] * weights[name]
            expected = plain[name] + (pull * picked[name] if name in picked else 0)
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
        assert all(bool(mask.all()) for mask in witness.before[step].masks.values())
    for step, _, gradients, plain in seen[9:]:
        now = witness.before[step].masks
        for name, gradient in gradients.items():
            expected = masked(plain[name], now.get(name))
            assert torch.equal(gradient, expected), (step, name)
        assert all(torch.equal(mask, ~picked[name]) for name, mask in now.items())
    assert all(torch.equal(mask, ~picked[name]) for name, mask in manager.masks.items())
    standing = manager.standing
    assert (standing.strength, standing.picked, standing.everywhere) == (0, None, False)


def test_greg2_presses_everything_and_then_what_it_picks():
    schedule = GReg2("1it", "1it", spread=0.1, parting=0.3, step=0.2, ceiling=0.6)
    seen, witness, manager = pressed(schedule)
    # 0.1, 0.2, 0.3 on all before steps 1 to 3; then 0.5 and 0.6 on what is picked at 4.
    everywhere, after = {1: 0.1, 2: 0.2, 3: 0.3}, {4: 0.5, 5: 0.6}
    picked = smallest(seen[4][1], TOTAL - 222)
    for step, weights, gradients, plain in seen[:6]:
        for name in PRUNABLE:
            pull = everywhere.get(step, 0) * weights[name]
            pull = pull + after.get(step, 0) * weights[name] * picked[name]
            torch.testing.assert_close(gradients[name], plain[name] + pull, rtol=1e-6, atol=1e-9)
        assert all(bool(mask.all()) for mask in witness.before[step].masks.values())
    assert all(torch.equal(mask, ~picked[name]) for name, mask in manager.masks.items())
    assert not bool(witness.before[6].masks[PRUNABLE[1]].all())


def test_greg_presses_once_a_step_under_accumulation():
    schedule = GReg1("0ep", "1it", step=0.5, ceiling=0.5, settle="1ep")
    seen, _, _ = pressed(schedule, accumulate_grad_batches=2)
    _step, weights, gradients, plain = seen[1]
    picked = smallest(seen[0][1], TOTAL - 222)
    for name in PRUNABLE:
        expected = plain[name] + 0.5 * weights[name] * picked[name]
        torch.testing.assert_close(gradients[name], expected, rtol=1e-6, atol=1e-9)


class ByHand(Scheduled):
    """Two optimizers, stepped by hand: both gradients first, then both steps."""

    automatic_optimization = False

    def configure_optimizers(self):
        early, *late = self.net.parameters()
        return [SGD([early], lr=0.1, momentum=0.9), Adam(late, lr=0.01)]

    def training_step(self, batch, batch_idx: int) -> None:
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.plain = self.net[7].weight.grad.clone()
        self.weight = self.net[7].weight.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        self.pressed = self.net[7].weight.grad.clone()


@pytest.mark.parametrize("name", ["weights to 1ep", "gradual in epochs", "init", "learning rate"])
def test_two_optimizers_stepped_by_hand(name):
    law, manager, _ = lawful(name, scheduled(kind=ByHand))
    assert law.states == {"momentum_buffer", "exp_avg", "exp_avg_sq"}
    assert manager.masks.kept == 222


def test_two_optimizers_are_pressed_once_each():
    schedule = GReg2("0ep", "1ep", spread=0.5, parting=0.5, step=0.1, ceiling=0.6)
    expected = []

    class Once(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            expected.append((pl_module.pressed, pl_module.plain + 0.5 * pl_module.weight))

    module = scheduled(kind=ByHand)
    manager = MaskManager(Magnitude(), "5x", schedule=schedule)
    fit(module, manager, Once(), epochs=3, limit_train_batches=1)
    torch.testing.assert_close(*expected[0])


def test_a_time_in_steps_means_the_same_with_two_optimizers():
    """Eight optimizer steps an epoch, so that 12it lie in the middle of epoch 1."""
    manager = MaskManager(Magnitude(), "5x", schedule=Gradual("0it", "12it", "6it"))
    witness = Witness(manager)
    fit(scheduled(kind=ByHand), manager, witness, epochs=2)
    assert manager.masks.kept == 222


# --- Dynamic sparse training.


class Choices(pl.Callback):
    """Notes weights, dense gradients, states and masks around the mask manager's own hook."""

    def __init__(self, manager: MaskManager, notes: list) -> None:
        self.manager, self.notes = manager, notes

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        weights = self.manager.masks.parameters(pl_module)
        self.notes.append(
            {
                "step": trainer.global_step,
                "masks": {n: m.clone() for n, m in self.manager.masks.items()},
                "weights": {n: w.detach().clone() for n, w in weights.items()},
                "gradients": {n: w.grad.clone() for n, w in weights.items()},
                "momentum": {
                    n: optimizer.state[w].get("momentum_buffer", torch.zeros_like(w)).clone()
                    if w in optimizer.state
                    else torch.zeros_like(w)
                    for n, w in weights.items()
                },
            }
        )


def choices(by, share=0.5, every="3it", until="11it", **kwargs):
    """Before and after the mask manager's hook, step by step."""
    manager = MaskManager(Magnitude(), "5x", schedule=Regrow(every, share, by, until))
    before, after = [], []
    fit(
        scheduled(OPTIMIZERS["sgd"]),
        Choices(manager, before),
        manager,
        Choices(manager, after),
        epochs=3,
        **kwargs,
    )
    return list(zip(before, after, strict=True))


@pytest.mark.parametrize("by", ["random", "gradient"])
def test_regrowth_keeps_the_count_of_every_layer_and_drops_the_smallest(by):
    changes = 0
    for before, after in choices(by):
        for name, mask in before["masks"].items():
            now = after["masks"][name]
            assert now.sum() == mask.sum()
            number = int((mask & ~now).sum())
            if before["step"] not in (3, 6, 9):
                assert number == 0
                continue
            changes += number
            gone, kept = mask & ~now, mask & now
            magnitudes = before["weights"][name].abs()
            share = 0.5 * torch.cos(torch.tensor(torch.pi * before["step"] / 11) / 2) ** 2
            dropped = round(float(share) * int(mask.sum()))
            assert number <= dropped
            if number:
                bound = magnitudes[mask].sort().values[dropped - 1]
                assert (magnitudes[gone] <= bound).all()
            assert kept.sum() + number == mask.sum()
    assert changes > 50


def test_rigl_grows_by_the_largest_dense_gradients_of_that_very_batch():
    for before, after in choices("gradient"):
        if before["step"] not in (3, 6, 9):
            continue
        for name, mask in before["masks"].items():
            kept = int(mask.sum())
            share = 0.5 * float(torch.cos(torch.tensor(torch.pi * before["step"] / 11) / 2)) ** 2
            number = round(share * kept)
            order = torch.where(mask, before["weights"][name].abs(), -1).flatten()
            stays = torch.zeros_like(mask).flatten()
            stays[order.argsort(descending=True)[: kept - number]] = True
            promise = torch.where(stays, -1, before["gradients"][name].abs().flatten())
            stays[promise.argsort(descending=True)[:number]] = True
            assert torch.equal(after["masks"][name].flatten(), stays), name
            # Dense: gradients of what is pruned are there to choose by.
            assert (before["gradients"][name][~mask] != 0).any()


def test_set_grows_at_random_and_the_seed_decides():
    first, again = choices("random"), choices("random")
    pairs = [(x[1]["masks"], y[1]["masks"]) for x, y in zip(first, again, strict=True)]
    assert all(Masks(x) == Masks(y) for x, y in pairs)
    name = PRUNABLE[1]
    grown = [
        after["masks"][name] & ~before["masks"][name]
        for before, after in first
        if before["step"] in (3, 6)
    ]
    assert all(marks.any() for marks in grown)
    assert not torch.equal(*grown)
    by_gradient = choices("gradient")
    assert not torch.equal(by_gradient[3][1]["masks"][name], first[3][1]["masks"][name])


@pytest.mark.parametrize("by", ["random", "gradient"])
def test_what_has_grown_starts_at_zero_without_momentum_and_trains(by):
    notes = choices(by)
    trained = 0
    for (before, after), (following, _) in pairwise(notes):
        for name, mask in after["masks"].items():
            grown = mask & ~before["masks"][name]
            gone = before["masks"][name] & ~mask
            assert not after["weights"][name][grown].any()
            assert not after["momentum"][name][grown].any()
            assert not after["weights"][name][gone].any()
            assert not after["momentum"][name][gone].any()
            if grown.any():
                # One step of SGD from zero: no momentum and no decay.
                step = -0.05 * after["gradients"][name][grown]
                torch.testing.assert_close(following["weights"][name][grown], step)
                trained += int((step != 0).sum())
    assert trained > 50


def test_regrowth_waits_for_a_whole_step_under_accumulation():
    notes = choices("gradient", every="2it", until="5it", accumulate_grad_batches=2)
    changed = [
        before["step"] for before, after in notes if Masks(before["masks"]) != Masks(after["masks"])
    ]
    assert changed == [2, 4]


def test_regrowth_may_go_on_until_the_end():
    manager = MaskManager(Magnitude(), "5x", schedule=Regrow("1ep", until="3ep"))
    trainer = fit(scheduled(), manager, epochs=3)
    assert trainer.current_epoch == 3


# --- What is known to fall short.


@pytest.mark.xfail(strict=True, reason="a level has more steps than the dense training had left")
@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_a_point_inside_an_epoch_does_not_run_a_rate_schedule_past_its_end(rewind):
    one_cycle = partial(OneCycleLR, max_lr=0.1, total_steps=2 * STEPS)
    module = scheduled(OPTIMIZERS["sgd"], one_cycle, "step")
    watched(Iterative(2, 2, rewind, "5it"), module)


@pytest.mark.xfail(strict=True, reason="Lightning counts a frequency from the start of the fit")
def test_levels_repeat_rates_that_change_every_second_epoch():
    make = partial(StepLR, step_size=1, gamma=0.5)
    witness, _ = watched(Iterative(2, 3), scheduled(OPTIMIZERS["sgd"], make, frequency=2))
    assert witness.rates[12:24] == witness.rates[24:] == witness.rates[:12]


class Counting(Scheduled):
    """Has a buffer that its state dict leaves out."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("batches", torch.zeros(()), persistent=False)
        self.counts: list[float] = []

    def training_step(self, batch, batch_idx: int) -> Tensor:
        self.counts.append(float(self.batches))
        self.batches += 1
        return super().training_step(batch, batch_idx)


def test_buffers_that_are_not_saved_are_rewound_too():
    module = scheduled(kind=Counting)
    fit(module, manager_of("init"))
    assert module.counts == [0, 1, 2, 3] * 3


class PreparesItself(Scheduled):
    """Makes its data in its own ``setup``, as Lightning's documentation shows."""

    def setup(self, stage: str) -> None:
        self.data = data()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, 6)


@pytest.mark.parametrize(
    "point",
    [
        "1ep",
        "5it",
    ],
)
def test_a_module_that_prepares_its_own_data(point):
    manager = MaskManager(Magnitude(), "5x", schedule=Iterative(2, 2, rewind_to=point))
    trainer = make_trainer(manager, epochs=-1)
    trainer.fit(scheduled(kind=PreparesItself))
    assert trainer.current_epoch == 4


@pytest.mark.parametrize("epochs", [-1, 8])
def test_a_dense_checkpoint_may_be_pruned_level_by_level(tmp_path, epochs):
    fit(scheduled(), epochs=2).save_checkpoint(tmp_path / "dense.ckpt")
    manager = MaskManager(Magnitude(), "5x", schedule=Iterative(2, 2))
    trainer = fit(scheduled(), manager, epochs=epochs, ckpt=tmp_path / "dense.ckpt")
    assert trainer.current_epoch == 8
    assert manager.masks.kept == 222


def test_a_fit_that_was_stopped_in_level_0_may_go_on_with_the_same_trainer():
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, *args) -> None:
            trainer.should_stop = True

    manager, module, stop = manager_of("fine tune"), scheduled(), Stop()
    trainer = fit(module, manager, stop)
    assert trainer.current_epoch == 1
    trainer.callbacks.remove(stop)
    trainer.should_stop = False
    trainer.fit(module, loader())
    assert trainer.current_epoch == 4


def test_ineffective_connections_may_go_at_every_prune():
    manager = MaskManager(Random(), "30x", schedule=Gradual("0ep", "4ep"), prune_ineffective=True)
    fit(scheduled(), manager, epochs=5)
    assert manager.masks.kept <= 37


def test_each_level_draws_weights_of_its_own():
    manager = MaskManager(Magnitude(), "5x", schedule=Iterative(2, 1, "init"), reinitialise=True)
    witness = Witness(manager)
    fit(scheduled(), manager, witness)
    one, two = witness.first_of(1), witness.first_of(2)
    both = one.masks[PRUNABLE[1]] & two.masks[PRUNABLE[1]]
    assert (one.weights[PRUNABLE[1]][both] != two.weights[PRUNABLE[1]][both]).all()


def test_the_penalty_is_not_scaled_down_by_fp16_and_a_fused_optimizer():
    def moved(**kwargs):
        schedule = GReg1("0it", "1it", step=0.5, ceiling=0.5, settle="2ep")
        manager = MaskManager(Magnitude(), "5x", schedule=schedule)
        witness = Witness(manager)
        optimizer = partial(SGD, lr=0.5, **kwargs)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        fit(scheduled(optimizer), manager, witness, epochs=3, plugins=[plugin])
        return witness.after[0].weights[PRUNABLE[1]]

    torch.testing.assert_close(moved(fused=True), moved(fused=False), rtol=1e-3, atol=1e-5)


def test_stored_masks_that_are_picked_must_meet_an_effective_target_too(stored):
    file, _ = stored
    schedule = GReg1("1it", "1it", step=0.5, ceiling=0.5)
    manager = MaskManager(target="900 effective", masks=file, schedule=schedule)
    with pytest.raises(LitPruneError, match="900 effective asks for 900"):
        fit(scheduled(), manager, epochs=2)


class Twice(Schedule):
    """Prunes twice to the same count, at the same moment."""

    def plan(self, course: Course) -> list[Due]:
        return [Due(Time(1, "ep"), Prune(course.keep))] * 2


def test_a_schedule_of_ones_own_may_do_several_acts_at_one_moment():
    witness, manager = watched(Twice(), epochs=2)
    assert manager.masks.kept == 222
    assert all(bool(mask.all()) for mask in witness.first_of(0).masks.values())


def test_the_loss_that_is_trained_is_that_of_the_masked_network():
    """The first step of a level, computed by hand."""
    module = scheduled(partial(SGD, lr=0.1), kind=Plain)
    manager = MaskManager(Magnitude(), "5x", schedule=Iterative(1, 1))
    notes = Pressed(manager)
    fit(module, manager, notes)
    _, weights, gradients, _ = notes.seen[STEPS]
    by_hand = scheduled(partial(SGD, lr=0.1))
    with torch.no_grad():
        for name, weight in by_hand.named_parameters():
            weight.copy_(weights[name])
    x = module.seen[STEPS]
    samples = dict(zip(map(str, data().tensors[0].tolist()), data().tensors[1], strict=True))
    y = torch.stack([samples[str(image)] for image in x.tolist()])
    F.cross_entropy(by_hand.train()(x), y).backward()
    for name, weight in by_hand.named_parameters():
        expected = masked(weight.grad, manager.masks.get(name))
        torch.testing.assert_close(gradients[name], expected, rtol=1e-5, atol=1e-7)


class StepsItself(Scheduled):
    """Optimizes by hand, and asks for its schedule of rates as Lightning's documentation shows."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()
        self.lr_schedulers().step()


@pytest.mark.parametrize("name", ["fine tune", "after training"])
def test_a_held_rate_leaves_a_schedule_to_who_asks_for_it(name):
    module = scheduled(scheduler=partial(StepLR, step_size=4, gamma=0.5), kind=StepsItself)
    manager = manager_of(name)
    fit(module, manager)
    assert manager.masks.kept == 222
