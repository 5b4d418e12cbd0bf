"""The zero law and what else MaskManager promises, on a LightningModule that is not ours."""

import math
import random
from collections import Counter
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, RMSprop, Rprop
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import (
    Connectivity,
    LitClassifier,
    LitPruneError,
    MaskManager,
    Masks,
    Probe,
    Ranking,
    Target,
    prune,
)
from lit_prune.acts import Due, Prune
from lit_prune.callbacks import SeededEpochs, scoring
from lit_prune.connectivity import UnsupportedOp
from lit_prune.criteria import SNIP, Criterion, Magnitude, Random, SynFlow
from lit_prune.data import Digits
from lit_prune.data.batches import Images
from lit_prune.data.images import ImagesInMemory
from lit_prune.measure import Measurement, measure
from lit_prune.quotas import ERK, Uniform
from lit_prune.schedules import Schedule
from lit_prune.timing import Course, Time

pytestmark = pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed")

PRUNABLE = ["net.0.weight", "net.4.weight", "net.7.weight"]
TOTAL = 4 * 1 * 3 * 3 + 16 * 64 + 3 * 16


class Small(nn.Sequential):
    """A convolution, two linear layers, batch norm and dropout: 1,108 prunable connections."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(16, 3),
        )


class Own(pl.LightningModule):
    """Somebody's own module; it counts the calls of its training step."""

    def __init__(self, optimizer=None, dropout: float = 0.0, compiled: str | None = None) -> None:
        super().__init__()
        net = Small(dropout)
        self.net = torch.compile(net, backend=compiled) if compiled else net
        self.make_optimizer = optimizer or partial(SGD, lr=0.1)
        self.steps_taken = 0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        x, y = batch
        self.steps_taken += 1
        self.seen.append(x.detach().clone())
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def data(count: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 4, 4, generator=generator)
    return TensorDataset(x, torch.randint(3, (count,), generator=generator))


def loader(batch_size: int = 6, **kwargs) -> DataLoader:
    return DataLoader(data(), batch_size, shuffle=True, **kwargs)


def own(*args, seed: int = 0, **kwargs) -> Own:
    torch.manual_seed(seed)
    return Own(*args, **kwargs)


def make_trainer(*callbacks: pl.Callback, epochs: int = 2, **kwargs) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **quiet | kwargs)


def train(module: pl.LightningModule, *callbacks: pl.Callback, batches=None, **kwargs):
    trainer = make_trainer(*callbacks, **kwargs)
    torch.manual_seed(1)
    trainer.fit(module, loader() if batches is None else batches)
    return trainer


class ZeroLaw(pl.Callback):
    """After every single optimizer step: weight, gradient and state are zero where pruned."""

    def __init__(self, manager: MaskManager) -> None:
        self.manager = manager
        self.steps = 0
        self.states: Counter[str] = Counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(partial(self.check, pl_module))

    def check(self, module, optimizer, *_) -> None:
        self.steps += 1
        masks = self.manager.masks
        assert masks is not None
        assert masks.kept < masks.total
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, weight in masks.parameters(module).items():
            if id(weight) not in mine:
                continue
            pruned = ~masks[name]
            assert (weight[pruned] == 0).all(), name
            assert (weight.grad[pruned] == 0).all(), name
            for key, state in optimizer.state[weight].items():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    self.states[key] += 1
                    assert (state[pruned] == 0).all(), (name, key)


OPTIMIZERS = {
    "sgd": (partial(SGD, lr=0.1), set()),
    "sgd momentum decay": (
        partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
        {"momentum_buffer"},
    ),
    "sgd nesterov": (
        partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        {"momentum_buffer"},
    ),
    "adam": (partial(Adam, lr=0.01, weight_decay=0.01), {"exp_avg", "exp_avg_sq"}),
    "adam amsgrad": (partial(Adam, lr=0.01, amsgrad=True), {"max_exp_avg_sq"}),
    "adamw": (partial(AdamW, lr=0.01, weight_decay=0.1), {"exp_avg", "exp_avg_sq"}),
    "adamw amsgrad": (partial(AdamW, lr=0.01, amsgrad=True), {"max_exp_avg_sq"}),
    "rmsprop": (partial(RMSprop, lr=0.01, weight_decay=0.01), {"square_avg"}),
    "rmsprop momentum": (partial(RMSprop, lr=0.01, momentum=0.9), {"momentum_buffer"}),
    "rmsprop centered": (
        partial(RMSprop, lr=0.01, momentum=0.9, centered=True),
        {"grad_avg", "square_avg"},
    ),
    "adagrad": (partial(Adagrad, lr=0.05, weight_decay=0.01), {"sum"}),
    "adagrad full start": (
        partial(Adagrad, lr=0.05, initial_accumulator_value=0.5),
        {"sum"},
    ),
}
IMPLEMENTATIONS = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
TRAINERS = {
    "clipped by norm": {"gradient_clip_val": 0.01},
    "clipped by value": {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
    "accumulated": {"accumulate_grad_batches": 2},
    "bf16": {"precision": "bf16-mixed"},
    "all at once": {
        "gradient_clip_val": 0.1,
        "accumulate_grad_batches": 3,
        "precision": "bf16-mixed",
    },
}


def _optimizer_cases():
    for name, (make, states) in OPTIMIZERS.items():
        for how, extra in IMPLEMENTATIONS.items():
            try:
                make([nn.Parameter(torch.ones(2))], **extra)
            except (TypeError, RuntimeError):
                continue
            yield pytest.param(partial(make, **extra), states, {}, id=f"{name}, {how}")


def _trainer_cases():
    for name in ("sgd nesterov", "adamw amsgrad"):
        for how, settings in TRAINERS.items():
            yield pytest.param(*OPTIMIZERS[name], settings, id=f"{name}, {how}")


def test_cpu_has_all_three_implementations_of_sgd_and_adam():
    ids = [case.id for case in _optimizer_cases()]
    for name in ("sgd nesterov", "adam", "adamw amsgrad"):
        assert {f"{name}, {how}" for how in IMPLEMENTATIONS} <= set(ids)


@pytest.mark.parametrize(
    ("optimizer", "states", "settings"), [*_optimizer_cases(), *_trainer_cases()]
)
def test_pruned_weight_gradient_and_state_are_zero_after_every_step(optimizer, states, settings):
    manager = MaskManager(Random(), "3x")
    module = own(optimizer)
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    law = ZeroLaw(manager)
    trainer = train(module, manager, law, **settings)

    epochs, batches, per_step = 2, 4, settings.get("accumulate_grad_batches", 1)
    assert law.steps == trainer.global_step == epochs * math.ceil(batches / per_step)
    assert states <= set(law.states)
    assert manager.masks.total == TOTAL
    assert manager.masks.kept == Target(compression=3).count(TOTAL)
    moved = [
        (weight != start[name])[manager.masks[name]]
        for name, weight in manager.masks.parameters(module).items()
    ]
    assert torch.cat(moved).float().mean() > 0.4, "live weights do not train"


def test_two_optimizers_stepped_by_hand_obey_the_zero_law():
    class Manual(Own):
        automatic_optimization = False

        def configure_optimizers(self):
            early, *late = self.net.parameters()
            return [SGD([early], lr=0.1, momentum=0.9), Adam(late, lr=0.01)]

        def training_step(self, batch, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

    torch.manual_seed(0)
    module, manager = Manual(), MaskManager(Random(), "5x")
    law = ZeroLaw(manager)
    train(module, manager, law)
    assert law.steps == 2 * 2 * 4
    assert {"momentum_buffer", "exp_avg"} <= set(law.states)


def test_a_prune_in_the_middle_of_training_zeroes_the_state_that_went_before():
    class Later(Schedule):
        def plan(self, course: Course) -> list[Due]:
            keeps = {1: 2 * course.keep, 2: course.keep}
            return [Due(Time(epoch, "ep"), Prune(keep)) for epoch, keep in keeps.items()]

    class FromFirstPrune(ZeroLaw):
        def check(self, *args) -> None:
            if self.manager.masks.sparsity:
                super().check(*args)

    for optimizer in (partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=0.01)):
        manager = MaskManager(Magnitude(), "10x", schedule=Later())
        law = FromFirstPrune(manager)
        train(own(optimizer), manager, law, epochs=4)
        assert law.steps == 3 * 4
        assert manager.masks.kept == Target(compression=10).count(TOTAL)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_looks_at_live_weights_only(algorithm):
    limit = {"norm": 0.05, "value": 0.003}[algorithm]
    manager = MaskManager(Random(), "5x")
    module = own(partial(SGD, lr=1.0))
    x, y = next(iter(DataLoader(data(), 6)))
    batches = DataLoader(TensorDataset(x, y), 6)
    expected = own(partial(SGD, lr=1.0))
    train(
        module,
        manager,
        batches=batches,
        epochs=1,
        gradient_clip_val=limit,
        gradient_clip_algorithm=algorithm,
    )

    manager.masks.apply(expected)
    F.cross_entropy(expected(x), y).backward()
    full_norm = nn.utils.get_total_norm([p.grad for p in expected.parameters()])
    for name, weight in manager.masks.parameters(expected).items():
        weight.grad[~manager.masks[name]] = 0
    gradients = list(expected.parameters())
    if algorithm == "norm":
        live_norm = nn.utils.clip_grad_norm_(gradients, limit)
        assert live_norm < 0.95 * full_norm, "the case does not tell the two norms apart"
        assert live_norm > limit
    else:
        nn.utils.clip_grad_value_(gradients, limit)
    for name, weight in expected.named_parameters():
        wanted = (weight - weight.grad).detach()
        torch.testing.assert_close(module.get_parameter(name).detach(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_pruned_gradient_that_is_not_finite_becomes_zero(bad, clip):
    manager = MaskManager(Random(), "5x")

    class Poisoned(Own):
        def on_after_backward(self) -> None:
            for name, weight in manager.masks.parameters(self).items():
                weight.grad[~manager.masks[name]] = bad

    torch.manual_seed(0)
    module = Poisoned(partial(SGD, lr=0.1, momentum=0.9))
    law = ZeroLaw(manager)
    train(module, manager, law, gradient_clip_val=clip)
    assert law.steps == 8
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_net_is_pruned_under_its_plain_names(backend):
    torch.compiler.reset()
    manager = MaskManager(SNIP(), "5x")
    law = ZeroLaw(manager)
    train(own(partial(SGD, lr=0.1, momentum=0.9), compiled=backend), manager, law, epochs=1)
    assert law.steps == 4
    assert list(manager.masks) == PRUNABLE

    plain = MaskManager(SNIP(), "5x")
    train(own(partial(SGD, lr=0.1, momentum=0.9)), plain, epochs=1)
    assert manager.masks == plain.masks
    assert manager.measurement == plain.measurement
    torch.compiler.reset()


REFUSED = {"Rprop": partial(Rprop, lr=0.01), "Adamax": partial(Adamax, lr=0.01)}
if hasattr(torch.optim, "Muon"):
    REFUSED["Muon"] = lambda params: torch.optim.Muon([p for p in params if p.ndim == 2], lr=0.01)


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_moves_pruned_weights_is_refused_by_name(name):
    module = own(REFUSED[name])
    with pytest.raises(LitPruneError, match=name) as raised:
        train(module, MaskManager(Random(), "5x"), epochs=1)
    assert "\n" not in str(raised.value)
    assert module.steps_taken == 1


def test_a_refused_optimizer_may_train_a_dense_net():
    module = own(REFUSED["Rprop"])
    train(module, MaskManager(Random(), "1x"), epochs=1)
    assert module.steps_taken == 4


CRITERIA = {"random": Random(), "magnitude": Magnitude(), "snip": SNIP(), "synflow": SynFlow()}


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
@pytest.mark.parametrize(
    ("target", "keep"),
    [("10x", 111), ("90%", 111), (400, 400), (Target(density=0.5), 554), ("3x", 370)],
)
def test_exactly_as_many_are_kept_as_asked_for(criterion, target, keep):
    manager = MaskManager(criterion, target, rounds=3)
    module = own()
    train(module, manager, epochs=1)
    assert manager.masks.kept == keep
    assert list(manager.masks) == PRUNABLE
    alive = sum(int((p != 0).sum()) for p in manager.masks.parameters(module).values())
    assert alive == keep


@pytest.mark.parametrize("quota", [Uniform(), ERK(), lambda shapes, _: dict.fromkeys(shapes, 20)])
def test_a_quota_rules_the_layers(quota):
    manager = MaskManager(Random(), 60, quota=quota)
    train(own(), manager, epochs=1)
    counts = {row.name: row.kept for row in manager.masks.layers()}
    assert counts == quota({n: m.shape for n, m in manager.masks.items()}, 60)


def test_the_masks_are_those_of_prune_on_the_same_batches():
    """An oracle that shares no code with the callback's own bookkeeping."""
    batches = DataLoader(data(), 6)
    manager = MaskManager(SNIP(), "5x", batches=2)
    train(own(), manager, batches=batches, epochs=1)
    first_two = [batch for batch, _ in zip(batches, range(2), strict=False)]
    assert manager.masks == prune(own().train(), SNIP(), "5x", batches=first_two)
    assert manager.masks != prune(own().train(), SNIP(), "5x", batches=first_two[:1])


def test_include_and_exclude_choose_what_is_pruned():
    manager = MaskManager(Random(), "5x", include="net.*", exclude=["net.7.*"])
    train(own(), manager, epochs=1)
    assert list(manager.masks) == PRUNABLE[:2]
    with pytest.raises(LitPruneError, match=r"backbone\.\*"):
        train(own(), MaskManager(Random(), "5x", include="backbone.*"), epochs=1)


def test_scoring_never_calls_the_training_step():
    seen = []

    class AfterPruning(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            seen.append((pl_module.steps_taken, manager.masks is not None))

    manager = MaskManager(SNIP(), "5x", batches=4)
    module = own()
    train(module, manager, AfterPruning(), epochs=1)
    assert seen == [(0, True)]
    assert module.steps_taken == 4


def test_a_dense_target_scores_nothing_and_changes_no_bit():
    """One batch is looked at, to measure."""

    def untouchable(probe):
        raise AssertionError("scored")

    class Forbidden(DataLoader):
        epochs = 0

        def __iter__(self):
            type(self).epochs += 1
            return super().__iter__()

    def ended(*callbacks):
        Forbidden.epochs = 0
        module = own(partial(SGD, lr=0.1, momentum=0.9), dropout=0.5)
        train(module, *callbacks, batches=Forbidden(data(), 6, shuffle=True))
        return module, Forbidden.epochs

    plain, times = ended()
    for target in ("1x", "0%", TOTAL):
        manager = MaskManager(untouchable, target)
        module, times_here = ended(manager)
        assert times_here == times + 1
        assert manager.masks.kept == manager.masks.total == TOTAL
        for name, value in plain.state_dict().items():
            assert torch.equal(value, module.state_dict()[name]), name


class Trace(pl.Callback):
    """Notes the global random states before every batch, and the module before the first."""

    def __init__(self) -> None:
        self.states: list = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module, *_) -> None:
        numbers = (random.getstate(), str(np.random.get_state()))
        self.states.append((torch.get_rng_state().tolist(), *numbers))
        if trainer.global_step == 0:
            self.buffers = {n: b.clone() for n, b in pl_module.named_buffers()}
            self.weights = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
            self.modes = [m.training for m in pl_module.modules()]
            self.grads = [p.grad for p in pl_module.parameters()]


class Jittered(Own):
    """Augments its batches where they arrive, with random numbers of the global generator."""

    def on_after_batch_transfer(self, batch, dataloader_idx: int):
        x, y = batch
        return x + torch.rand_like(x), y


def _compared(criterion, make_loader=loader, kind=Own, **asked):
    """Trace the same run without and with pruning; the traces must agree up to the masks."""

    def traced(*callbacks):
        torch.manual_seed(0)
        trace, module = Trace(), kind(dropout=0.5)
        np.random.seed(5)
        random.seed(5)
        train(module, *callbacks, trace, batches=make_loader())
        return trace, module

    plain, plain_module = traced()
    asked = {"target": "5x", "rounds": 2} | asked
    manager = MaskManager(criterion, batches=3, **asked)
    trace, module = traced(manager)
    assert len(module.seen) == len(plain_module.seen) == 8
    assert all(map(torch.equal, module.seen, plain_module.seen))
    assert trace.states == plain.states
    assert trace.modes == plain.modes
    assert trace.grads == [None] * len(trace.grads)
    for name, buffer in plain.buffers.items():
        assert torch.equal(buffer, trace.buffers[name]), name
    for name, weight in plain.weights.items():
        kept = manager.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(torch.where(kept, weight, 0), trace.weights[name]), name


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_scoring_disturbs_neither_module_nor_data_nor_random_states(criterion):
    _compared(criterion)


@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_searching_disturbs_neither_module_nor_data_nor_random_states(criterion, search):
    _compared(criterion, target="5x effective", search=search, prune_ineffective=True)


def test_measuring_disturbs_neither_module_nor_data_nor_random_states():
    _compared(Random(), target="1x")


def test_scoring_takes_no_batch_away_from_worker_processes():
    _compared(SNIP(), lambda: loader(num_workers=1))


def test_scoring_takes_no_batch_away_from_persistent_worker_processes():
    _compared(SNIP(), lambda: loader(num_workers=1, persistent_workers=True))


def test_scoring_does_not_change_the_order_of_a_loader_with_its_own_generator():
    _compared(SNIP(), lambda: loader(generator=torch.Generator().manual_seed(2)))


def test_scoring_gives_back_the_random_numbers_that_augmentation_draws():
    _compared(SNIP(), kind=Jittered)


def test_several_loaders_are_scored_in_the_form_in_which_they_train():
    class Two(Own):
        def training_step(self, batch, batch_idx: int) -> Tensor:
            return super().training_step(batch["one"], batch_idx)

    def loss(net, batch):
        return F.cross_entropy(net(batch["one"][0]), batch["one"][1])

    torch.manual_seed(0)
    manager = MaskManager(SNIP(), "5x", loss=loss)
    one, two = DataLoader(data(), 6), DataLoader(data(), 3)
    train(Two(), manager, batches={"one": one, "two": two}, epochs=1)
    plain = MaskManager(SNIP(), "5x")
    train(own(), plain, batches=DataLoader(data(), 6), epochs=1)
    assert manager.masks == plain.masks


def test_the_module_and_its_checkpoints_keep_their_plain_keys(tmp_path):
    manager = MaskManager(Random(), "5x")
    module = own()
    trainer = train(module, manager, epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert list(module.state_dict()) == list(own().state_dict())
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert list(content["state_dict"]) == list(own().state_dict())
    own().load_state_dict(content["state_dict"])
    (state,) = content["callbacks"].values()
    assert Masks(state["masks"]) == manager.masks
    assert Measurement.from_plain(state["measurement"]) == manager.measurement


def test_the_sparsity_is_logged():
    manager = MaskManager(Random(), "5x")
    trainer = train(own(), manager, epochs=1)
    assert trainer.callback_metrics["sparsity/direct"] == pytest.approx(manager.masks.sparsity)


class Dots(ImagesInMemory):
    """Forty small grey images of three classes, some of them dim."""

    num_classes = 3

    def read(self, train: bool) -> Images:
        generator = torch.Generator().manual_seed(int(train))
        images = torch.randint(256, (40, 1, 4, 4), generator=generator).to(torch.uint8)
        return Images(images, torch.randint(3, (40,), generator=generator))


SCHEDULES = {
    "constant": None,
    "multistep": partial(MultiStepLR, milestones=[1, 3], gamma=0.1),
    "step": partial(StepLR, step_size=2, gamma=0.5),
    "cosine": partial(CosineAnnealingLR, T_max=5),
}


def _fit(folder, epochs: int, scheduler, optimizer, resume=None, criterion=None):
    torch.manual_seed(3)
    module = LitClassifier(Small(dropout=0.5), optimizer, scheduler)
    manager = MaskManager(criterion or SNIP(), "5x")
    saver = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = make_trainer(SeededEpochs(), manager, saver, epochs=epochs, enable_checkpointing=True)
    images = Dots(batch_size=7, crop=1, flip=True, val_fraction=0.2)
    trainer.fit(module, datamodule=images, ckpt_path=resume, weights_only=True)
    return module, manager, trainer


def _same_bits(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _same_bits(one[key], other[key])
    elif isinstance(one, list | tuple):
        for left, right in zip(one, other, strict=True):
            _same_bits(left, right)
    else:
        assert one == other


@pytest.mark.parametrize("scheduler", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("optimizer", ["sgd nesterov", "adamw amsgrad"])
def test_a_resumed_run_ends_on_the_bits_of_an_undisturbed_one(tmp_path, scheduler, optimizer):
    make, _ = OPTIMIZERS[optimizer]
    module, manager, trainer = _fit(tmp_path / "whole", 5, scheduler, make)

    def unasked(probe):
        raise AssertionError("a resumed run has its masks")

    for epoch in (0, 2, 3):
        kept = tmp_path / "whole" / f"epoch={epoch}.ckpt"
        again, masks, end = _fit(
            tmp_path / str(epoch), 5, scheduler, make, resume=kept, criterion=unasked
        )
        assert end.global_step == trainer.global_step
        assert masks.masks == manager.masks
        assert masks.measurement == manager.measurement
        _same_bits(again.state_dict(), module.state_dict())
        _same_bits(end.optimizers[0].state_dict(), trainer.optimizers[0].state_dict())


def test_a_resumed_run_on_digits_obeys_the_zero_law(tmp_path):
    def fit(epochs, resume=None):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
        manager = MaskManager(SynFlow(), "20x")
        law = ZeroLaw(manager)
        trainer = make_trainer(SeededEpochs(), manager, law, epochs=epochs)
        module = LitClassifier(net, OPTIMIZERS["adamw"][0])
        trainer.fit(module, datamodule=Digits(), ckpt_path=resume, weights_only=True)
        return trainer, module, manager, law

    trainer, _, first, _ = fit(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    _, resumed, second, law = fit(2, tmp_path / "one.ckpt")
    _, whole, third, _ = fit(2)
    assert law.steps == 13
    assert first.masks == second.masks == third.masks
    _same_bits(resumed.state_dict(), whole.state_dict())


def test_a_run_resumed_in_the_middle_of_an_epoch_keeps_its_masks(tmp_path):
    first, saver = MaskManager(Random(), "5x"), ModelCheckpoint(tmp_path, every_n_train_steps=3)
    train(own(), first, saver, epochs=1, enable_checkpointing=True)
    second = MaskManager(Random(), "5x")
    law = ZeroLaw(second)
    trainer = make_trainer(second, law)
    trainer.fit(own(), loader(), ckpt_path=saver.best_model_path, weights_only=True)
    assert law.steps == trainer.global_step - 3 == 5
    assert second.masks == first.masks


def test_a_dense_checkpoint_may_be_pruned_when_training_goes_on(tmp_path):
    optimizer = partial(SGD, lr=0.1, momentum=0.9)
    train(own(optimizer), epochs=2).save_checkpoint(tmp_path / "dense.ckpt")
    manager = MaskManager(Magnitude(), "5x")
    law = ZeroLaw(manager)
    trainer = make_trainer(manager, law, epochs=4)
    trainer.fit(own(optimizer), loader(), ckpt_path=tmp_path / "dense.ckpt", weights_only=True)
    assert law.steps == 8
    assert manager.masks.kept == Target(compression=5).count(TOTAL)


def test_stored_masks_are_used_as_they_are(tmp_path):
    stored = MaskManager(Random(), "5x")
    train(own(), stored, epochs=1)
    stored.masks.save(tmp_path / "m.safetensors")

    module, manager = own(seed=7), MaskManager(masks=str(tmp_path / "m.safetensors"))
    law = ZeroLaw(manager)
    train(module, manager, law)
    assert law.steps == 8
    assert manager.masks == stored.masks


def test_stored_masks_of_another_model_are_an_error_that_names_what_differs(tmp_path):
    path = str(tmp_path / "m.safetensors")
    module = own()
    for foreign, named in (
        ({"fc.weight": torch.ones(2, 2, dtype=torch.bool)}, "fc.weight"),
        ({"net.4.weight": torch.ones(16, 63, dtype=torch.bool)}, r"net\.4\.weight.*\(16, 63\)"),
    ):
        Masks(foreign).save(path)
        with pytest.raises(LitPruneError, match=named):
            train(module, MaskManager(masks=path), epochs=1)
    with pytest.raises(LitPruneError, match="no such file"):
        train(module, MaskManager(masks=path + "x"), epochs=1)
    assert module.steps_taken == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "criterion"),
        ({"criterion": Random()}, "target"),
        ({"target": "2x"}, "criterion"),
        ({"criterion": Random(), "target": "2x", "batches": 0}, "batches=0"),
        ({"criterion": Random(), "target": "120%"}, "120%"),
    ],
)
def test_half_a_request_is_refused_at_once(arguments, named):
    with pytest.raises(LitPruneError, match=named):
        MaskManager(**arguments)


def test_rounds_below_one_are_refused():
    with pytest.raises(LitPruneError, match="rounds=0"):
        train(own(), MaskManager(Random(), "2x", rounds=0), epochs=1)


def test_a_score_of_nan_names_the_layer():
    class Broken(Criterion):
        def __call__(self, probe):
            scores = Random()(probe)
            scores["net.4.weight"][3, 5] = float("nan")
            return scores

    module = own()
    with pytest.raises(LitPruneError, match=r"net\.4\.weight.*NaN"):
        train(module, MaskManager(Broken(), "5x"), epochs=1)
    assert module.steps_taken == 0


# --- effective targets, and what is measured


def connectivity(module: pl.LightningModule, masks: Masks) -> Connectivity:
    return Connectivity(module, (1, 1, 4, 4), include=list(masks))


def effective_kept(manager: MaskManager) -> int | None:
    return manager.measurement.totals()["effective_kept"]


@pytest.mark.parametrize("target", ["3x effective", "90% effective", "40 effective"])
@pytest.mark.parametrize("quota", [None, ERK()], ids=str)
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_an_effective_target_is_met_and_with_one_less_it_would_not_be(criterion, quota, target):
    """Again by the ranking alone: the definition, and no search."""
    batches = DataLoader(data(), 6)
    manager = MaskManager(criterion, target, quota, rounds=1)
    module = own()
    law = ZeroLaw(manager)
    train(module, manager, law, batches=batches, epochs=1)
    assert law.steps == 4

    dense = Masks.dense(own())
    generator = torch.Generator().manual_seed(1)  # as `train` seeds
    probe = Probe(own().train(), dense, list(batches)[:1], generator=generator)
    ranking = Ranking(criterion(probe), quota)
    kept, wanted = manager.masks.kept, Target.parse(target).count(TOTAL)
    assert manager.masks == ranking.keep(kept)
    paths = connectivity(module, dense)
    assert effective_kept(manager) == paths.effective(manager.masks).kept >= wanted
    assert paths.effective(ranking.keep(kept - 1)).kept < wanted


@pytest.mark.parametrize("rounds", [None, 4])
@pytest.mark.parametrize("search", ["curve", "reprune"])
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_an_effective_target_gives_the_masks_of_prune(criterion, search, rounds):
    batches = DataLoader(data(), 6)
    asked = {"target": "5x effective", "rounds": rounds, "search": search}
    manager = MaskManager(criterion, batches=2, **asked)
    train(own(), manager, batches=batches, epochs=1)
    model = own().train()
    torch.manual_seed(1)  # as `train` does
    read = list(batches)

    def of_round(turn):
        first = 2 * turn % len(read)
        return read[first : first + 2]

    assert len(read) % 2 == 0
    assert manager.masks == prune(model, criterion, batches=of_round, **asked)


def test_the_search_is_as_asked_for():
    class Counting(Magnitude):
        times = 0

        def __call__(self, probe):
            type(self).times += 1
            return super().__call__(probe)

    def masks(search):
        Counting.times = 0
        manager = MaskManager(Counting(), "5x effective", search=search)
        train(own(), manager, epochs=1)
        return manager.masks, Counting.times

    by_curve, once = masks("curve")
    by_pruning, often = masks("reprune")
    assert by_curve == by_pruning
    assert once == 1 < often


def test_an_unknown_search_is_refused():
    module = own()
    with pytest.raises(LitPruneError, match=r"unknown search 'fast'; known: curve, reprune"):
        train(module, MaskManager(Random(), "5x", search="fast"), epochs=1)
    assert module.steps_taken == 0


@pytest.mark.parametrize("target", ["5x", "5x effective"])
def test_ineffective_connections_go_on_request(target):
    def managed(**asked):
        manager = MaskManager(Random(), target, **asked)
        law, module = ZeroLaw(manager), own(partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01))
        train(module, manager, law)
        assert law.steps == 8
        return manager

    plain, bare = managed(), managed(prune_ineffective=True)
    assert bare.masks == connectivity(own(), plain.masks).effective(plain.masks)
    assert bare.masks.kept == effective_kept(bare) == effective_kept(plain) < plain.masks.kept


def the_first_layer(shapes, keep):
    """A quota that leaves nothing of the later layers: many are kept, and none is effective."""
    return dict.fromkeys(shapes, 0) | {next(iter(shapes)): keep}


@pytest.mark.parametrize(
    "asked",
    [
        {"target": "100%"},
        {"target": "100% effective"},
        {"target": 20, "quota": the_first_layer},
        {"target": 20, "quota": the_first_layer, "prune_ineffective": True},
        {"target": 1, "rounds": 5},
    ],
    ids=lambda asked: " ".join(map(str, asked)) + f" {asked['target']}",
)
def test_nothing_effective_is_an_error_unless_allowed(asked):
    module = own()
    with pytest.raises(LitPruneError, match=r"nothing effective is left.*allow_collapse") as raised:
        train(module, MaskManager(Random(), **asked), epochs=1)
    assert "\n" not in str(raised.value)
    assert module.steps_taken == 0

    manager = MaskManager(Random(), **asked, allow_collapse=True)
    law = ZeroLaw(manager)
    train(own(), manager, law, epochs=1)
    assert law.steps == 4
    assert effective_kept(manager) == 0
    assert manager.measurement.totals()["effective_flops"] == 0


def test_stored_masks_of_which_nothing_is_effective_are_an_error_unless_allowed(tmp_path):
    file = str(tmp_path / "masks.safetensors")
    masks = Masks.dense(own())
    masks = Masks(dict(masks) | {PRUNABLE[1]: torch.zeros_like(masks[PRUNABLE[1]])})
    masks.save(file)
    with pytest.raises(LitPruneError, match=r"nothing effective is left.*allow_collapse"):
        train(own(), MaskManager(masks=file), epochs=1)
    manager = MaskManager(masks=file, allow_collapse=True)
    train(own(), manager, epochs=1)
    assert manager.masks == masks
    assert effective_kept(manager) == 0


@pytest.mark.parametrize("target", ["1x", "5x", "5x effective"])
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_the_measurement_is_that_of_the_masks(criterion, target):
    manager, module = MaskManager(criterion, target), own()
    train(module, manager, epochs=1)
    effective = connectivity(own(), manager.masks).effective(manager.masks)
    assert manager.measurement == measure(
        own(), manager.masks, effective, (torch.randn(1, 1, 4, 4),)
    )
    by_name = {row.name: row for row in manager.measurement.layers}
    assert list(by_name) == PRUNABLE
    for name, mask in effective.items():
        dead = (~mask.flatten(1).any(1)).sum()
        places = 16 if name == PRUNABLE[0] else 1
        row = by_name[name]
        assert (row.kept, row.effective) == (manager.masks[name].sum(), mask.sum())
        assert row.dead_out == dead
        assert row.flops == 2 * places * mask.numel()
        assert row.effective_flops == 2 * places * mask.sum()


def test_only_what_may_be_pruned_is_counted():
    asked = {"include": "net.*", "exclude": PRUNABLE[1]}
    manager = MaskManager(Random(), "2x effective", **asked)
    train(own(), manager, epochs=1)
    assert [row.name for row in manager.measurement.layers] == [PRUNABLE[0], PRUNABLE[2]]
    paths = Connectivity(own(), (1, 1, 4, 4), **asked)
    wanted = Target.parse("2x").count(manager.masks.total)
    assert effective_kept(manager) == paths.effective(manager.masks).kept >= wanted


@pytest.mark.parametrize("target", ["2x", "2x effective"])
def test_a_layer_that_is_left_out_need_not_be_prunable(target):
    module = own()
    torch.nn.utils.parametrizations.weight_norm(module.net[7])
    manager = MaskManager(Random(), target, exclude="net.7.*")
    train(module, manager, epochs=1)
    assert [row.name for row in manager.measurement.layers] == PRUNABLE[:2]
    assert effective_kept(manager) > 0


def test_every_prune_is_measured_anew():
    class Later(Schedule):
        def plan(self, course: Course) -> list[Due]:
            keeps = {1: 2 * course.keep, 2: course.keep}
            return [Due(Time(epoch, "ep"), Prune(keep)) for epoch, keep in keeps.items()]

    class Note(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_end(self, trainer, pl_module):
            logged = trainer.callback_metrics.get("sparsity/effective")
            self.seen.append((manager.masks, manager.measurement, logged))

    manager, note = MaskManager(Magnitude(), "10x effective", schedule=Later()), Note()
    train(own(), manager, note, epochs=4)
    dense, found, logged = note.seen[0]
    assert (dense.sparsity, found.totals()["effective_sparsity"], logged) == (0, 0, 0)
    wanted = Target(compression=10).count(TOTAL)
    paths = connectivity(own(), manager.masks)
    for epoch, least in ((1, 2 * wanted), (2, wanted), (3, wanted)):
        masks, found, logged = note.seen[epoch]
        totals = found.totals()
        assert totals["effective_kept"] == paths.effective(masks).kept >= least
        assert logged == pytest.approx(totals["effective_sparsity"])
    assert note.seen[2][0] <= note.seen[1][0]
    assert note.seen[2][0].kept < note.seen[1][0].kept


@pytest.mark.parametrize("target", ["5x", "5x effective"])
def test_the_effective_sparsity_and_flops_are_logged_every_epoch(target, tmp_path):
    def logged(folder):
        events = EventAccumulator(str(folder)).Reload()
        tags = ("sparsity/direct", "sparsity/effective", "flops/effective")
        return [[event.value for event in events.Scalars(tag)] for tag in tags]

    manager = MaskManager(Random(), target)
    logger = TensorBoardLogger(tmp_path / "whole", "", "")
    trainer = train(own(), manager, epochs=3, logger=logger, log_every_n_steps=1)
    totals = manager.measurement.totals()
    expected = [manager.masks.sparsity, totals["effective_sparsity"], totals["effective_flops"]]
    assert logged(tmp_path / "whole") == [[pytest.approx(value)] * 3 for value in expected]
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    again = MaskManager(Random(), target)
    logger = TensorBoardLogger(tmp_path / "resumed", "", "")
    trainer = make_trainer(again, epochs=5, logger=logger, log_every_n_steps=1)
    trainer.fit(own(), loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert logged(tmp_path / "resumed") == [[pytest.approx(value)] * 2 for value in expected]


def test_a_measurement_survives_a_checkpoint_and_is_not_made_again(tmp_path, monkeypatch):
    first = MaskManager(SNIP(), "5x effective")
    trainer = train(own(), first, epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    def refuse(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(scoring, "measure", refuse)
    monkeypatch.setattr(scoring, "Connectivity", refuse)
    second = MaskManager(SNIP(), "5x effective")
    law = ZeroLaw(second)
    make_trainer(second, law, epochs=2).fit(
        own(), loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert law.steps == 4
    assert second.masks == first.masks
    assert second.measurement == first.measurement
    assert second.state_dict()["measurement"] == first.state_dict()["measurement"]


def _stored(tmp_path, criterion, target) -> tuple[str, MaskManager]:
    first = MaskManager(criterion, target)
    train(own(), first, epochs=1)
    file = str(tmp_path / "masks.safetensors")
    first.masks.save(file)
    return file, first


def test_stored_masks_must_have_what_an_effective_target_beside_them_asks_for(tmp_path):
    file, first = _stored(tmp_path, Random(), "5x")
    count = effective_kept(first)
    assert count < first.masks.kept == 222

    again = MaskManager(target=f"{count} effective", masks=file)
    train(own(), again, epochs=1)
    assert again.masks == first.masks
    assert again.measurement == first.measurement

    module = own()
    asked = f"{count} of 1108 connections are effective, the target 5x effective asks for 222"
    with pytest.raises(LitPruneError, match=asked):
        train(module, MaskManager(target="5x effective", masks=file), epochs=1)
    with pytest.raises(LitPruneError, match=f"keep 222 of 1108 .* {count} asks for {count}"):
        train(module, MaskManager(target=count, masks=file), epochs=1)
    assert module.steps_taken == 0


@pytest.mark.parametrize("criterion", [Magnitude(), Random(), SNIP()], ids=str)
@pytest.mark.parametrize("target", ["1 effective", "60 effective", "10x effective", "5x effective"])
def test_the_masks_that_an_effective_target_gave_are_taken_beside_it(criterion, target, tmp_path):
    file, first = _stored(tmp_path, criterion, target)
    again = MaskManager(criterion, target, masks=file)
    train(own(), again, epochs=1)
    assert again.masks == first.masks
    assert again.measurement == first.measurement


@torch.library.custom_op("lit_prune_tests::unknown", mutates_args=())
def unknown(x: Tensor) -> Tensor:
    return x + 1


torch.library.register_autograd("lit_prune_tests::unknown", lambda context, gradient: gradient)


class Unknown(Own):
    """Ends in an operation that connectivity has no rule for."""

    def forward(self, x: Tensor) -> Tensor:
        return unknown(super().forward(x))


class Forwardless(Own):
    """Has no forward; all is done in its training step."""

    forward = pl.LightningModule.forward

    def training_step(self, batch, batch_idx: int) -> Tensor:
        x, y = batch
        self.steps_taken += 1
        return F.cross_entropy(self.net(x), y)


def _trained_unmeasured(module, why, *callbacks, **kwargs) -> MaskManager:
    """Train, and read the one warning that it gives."""
    manager = MaskManager(Random(), "5x")
    law = ZeroLaw(manager)
    with pytest.warns(UserWarning, match="is not measured") as told:
        train(module, manager, law, *callbacks, **kwargs)
    (line,) = [str(w.message) for w in told if "measured" in str(w.message)]
    assert line.startswith("effective sparsity is not measured: ")
    assert why in line
    assert "\n" not in line
    assert law.steps == 8
    assert manager.masks.kept == Target(compression=5).count(TOTAL)
    assert effective_kept(manager) is None
    rows = manager.measurement.layers
    assert [row.kept for row in rows] == [row.kept for row in manager.masks.layers()]
    for row in rows:
        assert (row.effective, row.dead_in, row.dead_out, row.effective_flops) == (None,) * 4
    return manager


def test_a_model_that_cannot_be_followed_trains_all_the_same():
    torch.manual_seed(0)
    manager = _trained_unmeasured(Unknown(), "lit_prune_tests::unknown")
    assert manager.measurement.totals()["flops"] == 2 * (16 * 36 + 1024 + 48)


def test_a_model_without_a_forward_trains_all_the_same():
    torch.manual_seed(0)
    manager = _trained_unmeasured(Forwardless(), "forward")
    assert manager.measurement.totals()["flops"] is None


def test_what_is_not_measured_is_not_logged_and_travels_all_the_same(tmp_path):
    torch.manual_seed(0)
    manager = MaskManager(Random(), "5x")
    trainer = train(Unknown(), manager, epochs=1)
    assert "sparsity/direct" in trainer.callback_metrics
    assert not {"sparsity/effective", "flops/effective"} & set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = MaskManager(Random(), "5x")
    make_trainer(again, epochs=2).fit(
        Unknown(), loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert again.measurement == manager.measurement


@pytest.mark.parametrize("asked", [{"target": "5x effective"}, {"prune_ineffective": True}])
def test_an_effective_target_needs_a_model_that_can_be_followed(asked):
    torch.manual_seed(0)
    module = Unknown()
    with pytest.raises(UnsupportedOp, match="lit_prune_tests::unknown"):
        train(module, MaskManager(Random(), **{"target": "5x"} | asked), epochs=1)
    assert module.steps_taken == 0


def test_masks_of_a_model_that_cannot_be_followed_are_taken_beside_an_effective_target(tmp_path):
    file, first = _stored(tmp_path, Random(), "5x")
    torch.manual_seed(0)
    manager = MaskManager(target="5x effective", masks=file)
    with pytest.warns(UserWarning, match="is not measured"):
        train(Unknown(), manager, epochs=1)
    assert manager.masks == first.masks


class Dictionaries(Own):
    """Takes its batches as dictionaries."""

    def training_step(self, batch, batch_idx: int) -> Tensor:
        return super().training_step((batch["image"], batch["label"]), batch_idx)


def _dictionaries() -> DataLoader:
    return DataLoader([{"image": x, "label": y} for x, y in data()], 6)


def test_a_batch_of_another_form_needs_a_loss_of_its_own():
    torch.manual_seed(0)
    module = Dictionaries()
    with pytest.raises(LitPruneError, match="loss=") as raised:
        train(module, MaskManager(SNIP(), "5x"), batches=_dictionaries(), epochs=1)
    assert "\n" not in str(raised.value)

    def loss(net, batch):
        return F.cross_entropy(net(batch["image"]), batch["label"])

    manager = MaskManager(SNIP(), "5x", loss=loss)
    train(module, manager, batches=_dictionaries(), epochs=1)
    plain = MaskManager(SNIP(), "5x")
    train(own(), plain, batches=DataLoader(data(), 6), epochs=1)
    assert manager.masks == plain.masks


def test_batches_of_another_form_are_not_measured_and_train_all_the_same():
    torch.manual_seed(0)
    manager = _trained_unmeasured(Dictionaries(), "", batches=_dictionaries())
    assert manager.measurement.totals()["flops"] is None


@pytest.mark.parametrize("target", ["5x", "5x effective"])
def test_an_example_serves_criteria_that_need_no_data(target):
    torch.manual_seed(0)
    module, manager = Dictionaries(), MaskManager(SynFlow(), target, example=(1, 1, 4, 4))
    train(module, manager, batches=_dictionaries(), epochs=1)
    wanted = Target(compression=5).count(TOTAL)
    if target == "5x":
        assert manager.masks.kept == wanted
    effective = connectivity(own(), manager.masks).effective(manager.masks)
    assert effective_kept(manager) == effective.kept
    assert target == "5x" or effective.kept >= wanted


def test_a_generator_of_ones_own_fixes_the_masks():
    def masks(seed: int, start: int) -> Masks:
        manager = MaskManager(Random(), "5x", generator=torch.Generator().manual_seed(seed))
        train(own(seed=start), manager, epochs=1)
        return manager.masks

    assert masks(1, 0) == masks(1, 5)
    assert masks(1, 0) != masks(2, 0)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_strategy_that_cuts_parameters_is_refused_before_training(stage):
    strategy = object.__new__(FSDPStrategy)
    manager = MaskManager(Random(), "5x")
    fake = SimpleNamespace(strategy=strategy)
    if stage == "fit":
        with pytest.raises(LitPruneError, match="FSDPStrategy"):
            manager.setup(fake, own(), stage)
    else:
        manager.setup(fake, own(), stage)


class Leak(pl.Callback):
    """Moves a pruned weight behind the optimizer's back, in the middle of the first epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if batch_idx == 2:
            with torch.no_grad():
                pl_module.net[4].weight.fill_(1.0)


def test_the_zero_law_is_proven_again_at_the_end_of_an_epoch():
    with pytest.raises(LitPruneError, match="SGD moves pruned weights"):
        train(own(), MaskManager(Random(), "5x"), Leak(), epochs=1)


def test_stored_masks_must_keep_what_a_target_beside_them_asks_for(tmp_path):
    file = tmp_path / "masks.safetensors"
    first = MaskManager(Random(), "5x")
    train(own(), first, epochs=1)
    first.masks.save(file)

    again = MaskManager(Random(), "5x", masks=str(file))
    train(own(), again, epochs=1)
    assert again.masks == first.masks
    with pytest.raises(LitPruneError, match=r"keep 222 of 1108 .* 10x asks for 111"):
        train(own(), MaskManager(Random(), "10x", masks=str(file)), epochs=1)
