"""A training by any schedule, resumed after any epoch, ends on the bits of an undisturbed one."""

from dataclasses import dataclass
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from scheduled import OPTIMIZERS, SCHEDULES, Law, manager_of, mostly_slow, same_bits
from test_mask_manager import Dots, Small, make_trainer
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, StepLR

from lit_prune import LitClassifier, MaskManager
from lit_prune.callbacks import Levels, SeededEpochs
from lit_prune.callbacks.levels import LevelRow
from lit_prune.criteria import SNIP, Magnitude, Random
from lit_prune.schedules import AfterTraining

pytestmark = [
    pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]

RATES = {
    "multistep": partial(MultiStepLR, milestones=[1, 2], gamma=0.3),
    "cosine": partial(CosineAnnealingLR, T_max=3),
}


@dataclass
class Run:
    """A training that has ended."""

    module: pl.LightningModule
    manager: MaskManager
    trainer: pl.Trainer
    rows: list[LevelRow]
    law: Law


def run(folder, name, resume=None, own_generator=False, scheduler="multistep", **settings) -> Run:
    """Train with dropout, flips and crops, from the start or from a checkpoint."""
    extra = settings.pop("callbacks", [])
    criterion = settings.pop("criterion", Magnitude())
    optimizer = OPTIMIZERS[settings.pop("optimizer", "sgd")]
    torch.manual_seed(3)
    module = LitClassifier(Small(dropout=0.5), optimizer, RATES[scheduler])
    generator = torch.Generator().manual_seed(5) if own_generator else None
    manager = manager_of(name, criterion=criterion, generator=generator)
    levels, law = Levels(folder), Law(manager)
    saver = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = make_trainer(
        *(SeededEpochs(), manager, levels, law, *extra, saver),
        **{"epochs": SCHEDULES[name][1], "enable_checkpointing": True} | settings,
    )
    images = Dots(batch_size=10, crop=1, flip=True, val_fraction=0.2)
    trainer.fit(module, datamodule=images, ckpt_path=resume, weights_only=True)
    return Run(module, manager, trainer, levels.rows, law)


def timeless(rows):
    return [row._replace(seconds=0) for row in rows]


def assert_same_end(one: Run, other: Run) -> None:
    same_bits(one.module.state_dict(), other.module.state_dict())
    for mine, yours in zip(one.trainer.optimizers, other.trainer.optimizers, strict=True):
        same_bits(mine.state_dict(), yours.state_dict())
    assert one.manager.masks == other.manager.masks
    assert one.manager.measurement == other.manager.measurement
    assert timeless(one.rows) == timeless(other.rows)
    assert one.trainer.global_step == other.trainer.global_step
    mine, yours = one.manager.state_dict(), other.manager.state_dict()
    same_bits(mine, yours)


def resumed_everywhere(tmp_path, name, **settings) -> None:
    fresh = settings.pop("callbacks", list)
    whole = run(tmp_path / "whole", name, callbacks=fresh(), **settings)
    last = whole.trainer.current_epoch
    assert whole.rows[-1].kept == whole.manager.masks.kept < whole.manager.masks.total
    for epoch in range(last - 1):
        checkpoint = tmp_path / "whole" / f"epoch={epoch}.ckpt"
        folder = tmp_path / f"from {epoch}"
        again = run(folder, name, resume=checkpoint, callbacks=fresh(), **settings)
        assert again.law.steps == whole.law.steps * (last - 1 - epoch) // last
        assert_same_end(again, whole)


QUICK = {
    *("after training, last rate", "weights to 5it", "learning rate", "fine tune"),
    *("gradual in steps", "random regrowth", "slow greg 1", "slow greg 2"),
}


@pytest.mark.parametrize("name", mostly_slow(SCHEDULES, QUICK))
def test_resumed_after_every_epoch(tmp_path, name):
    resumed_everywhere(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", list(RATES))
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_resumed_with_adam_and_every_schedule_of_rates(tmp_path, name, optimizer, scheduler):
    resumed_everywhere(tmp_path, name, optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize(
    "name",
    mostly_slow(["weights to 1ep", "random regrowth", "gradual in steps"], {"weights to 1ep"}),
)
def test_resumed_with_a_generator_of_ones_own(tmp_path, name):
    """Its state travels in the checkpoint: a criterion of random scores draws on."""
    resumed_everywhere(tmp_path, name, own_generator=True, criterion=Random())


@pytest.mark.parametrize("criterion", [SNIP(), Random()], ids=str)
def test_resumed_with_criteria_that_read_batches_or_draw(tmp_path, criterion):
    resumed_everywhere(tmp_path, "weights to 1ep", criterion=criterion)


@pytest.mark.parametrize(
    "name",
    mostly_slow(["weights to 5it", "fine tune", "gradient regrowth", "greg 2"], {"weights to 5it"}),
)
def test_resumed_with_an_average_of_weights(tmp_path, name):
    resumed_everywhere(tmp_path, name, callbacks=lambda: [EMAWeightAveraging(decay=0.8)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights to 1ep", "gradient regrowth", "greg 1"])
def test_resumed_under_bf16_and_clipping(tmp_path, name):
    resumed_everywhere(tmp_path, name, precision="bf16-mixed", gradient_clip_val=0.5)


@pytest.mark.parametrize("rate", [None, 0.02])
def test_resumed_where_a_schedule_of_rates_rests_it_goes_on_resting(tmp_path, monkeypatch, rate):
    """For several epochs: a fresh schedule would show with the second."""
    monkeypatch.setitem(SCHEDULES, "held", (AfterTraining(1, 4, rate), -1))
    monkeypatch.setitem(RATES, "halving", partial(StepLR, step_size=1, gamma=0.5))
    resumed_everywhere(tmp_path, "held", scheduler="halving")


def test_resumed_in_the_middle_of_an_epoch_and_of_a_level(tmp_path):
    """The plan goes on where it stood, though the epoch's start is not passed again."""

    def train(folder, resume=None):
        torch.manual_seed(3)
        module = LitClassifier(Small(), OPTIMIZERS["sgd"])
        manager = manager_of("gradual in steps")
        law = Law(manager)
        saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=2)
        trainer = make_trainer(manager, law, saver, epochs=3, enable_checkpointing=True)
        images = Dots(batch_size=10, val_fraction=0.0)
        trainer.fit(module, datamodule=images, ckpt_path=resume, weights_only=True)
        return law

    whole = train(tmp_path / "whole")
    for step in (2, 6, 10):
        (file,) = (tmp_path / "whole").glob(f"*step={step}.ckpt")
        again = train(tmp_path / str(step), file)
        assert whole.kept[step:] == again.kept


@pytest.mark.parametrize(
    "name",
    mostly_slow(["gradual in steps", "gradual in epochs", "slow greg 1"], {"gradual in steps"}),
)
def test_resumed_after_a_dense_training_that_was_another_fit(tmp_path, name):
    """Times count from where pruning began, also in a run that is resumed later."""
    dense = LitClassifier(Small(dropout=0.5), OPTIMIZERS["sgd"], RATES["multistep"])
    trainer = make_trainer(epochs=2)
    trainer.fit(dense, datamodule=Dots(batch_size=10, crop=1, flip=True, val_fraction=0.2))
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    start = {"epochs": 5, "resume": tmp_path / "dense.ckpt"}
    whole = run(tmp_path / "whole", name, **start)
    assert whole.law.kept == run(tmp_path / "alone", name).law.kept
    for epoch in (2, 3):
        start["resume"] = tmp_path / "whole" / f"epoch={epoch}.ckpt"
        assert_same_end(run(tmp_path / str(epoch), name, **start), whole)


def test_a_checkpoint_of_a_schedule_holds_plain_tensors_and_numbers(tmp_path):
    run(tmp_path, "greg 2", own_generator=True)
    files = list(tmp_path.glob("*.ckpt"))
    assert len(files) == 3
    for file in files:
        torch.load(file, weights_only=True)


def test_resumed_with_a_cycle_of_rates_and_momenta(tmp_path, monkeypatch):
    cycle = partial(OneCycleLR, max_lr=0.1, total_steps=8)
    monkeypatch.setitem(RATES, "cycle", cycle)
    resumed_everywhere(tmp_path, "weights to 1ep", scheduler="cycle")
