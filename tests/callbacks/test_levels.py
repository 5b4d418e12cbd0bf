"""Levels: a row and a file of masks for every level, and nothing else is touched."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from scheduled import OPTIMIZERS, SCHEDULES, STEPS, Scheduled, fit, manager_of, same_bits, scheduled
from test_mask_manager import Dots, Small, connectivity, data, loader, make_trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_prune import LitClassifier, LitPruneError, MaskManager, Masks
from lit_prune.callbacks import Levels, SeededEpochs
from lit_prune.criteria import Magnitude, Random
from lit_prune.measure import count_flops
from lit_prune.schedules import Gradual, Iterative

pytestmark = [
    pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]

HEADER = [
    *("level", "epoch", "kept", "direct_sparsity", "effective_sparsity", "collapsed_layers"),
    *("effective_flops", "val_accuracy", "test_accuracy", "seconds"),
]
# The epochs after which a level of each schedule of SCHEDULES ends, and what it keeps.
ENDS = {
    "at init": [(2, 222)],
    "after training": [(1, 1108), (3, 222)],
    "after training, last rate": [(2, 1108), (3, 222)],
    "weights to 1ep": [(2, 1108), (3, 496), (4, 222)],
    "weights to 5it": [(2, 1108), (3, 496), (4, 222)],
    "init": [(1, 1108), (2, 496), (3, 222)],
    "learning rate": [(2, 1108), (3, 496), (4, 222)],
    "fine tune": [(2, 1108), (3, 496), (4, 222)],
    "share": [(1, 1108), (2, 443), (3, 177)],
    "gradual in epochs": [(1, 1108), (2, 333), (3, 222)],
    # Prunes after steps 3, 5, 7 and 9: those within an epoch are one level.
    "gradual in steps": [(1, 596), (2, 236), (3, 222)],
    "random regrowth": [(3, 222)],
    "gradient regrowth": [(4, 222)],
    # What was picked is removed after step 9, in epoch 2.
    "greg 1": [(2, 1108), (3, 222)],
    "greg 2": [(1, 1108), (3, 222)],
    "slow greg 1": [(2, 1108), (3, 222)],
    "slow greg 2": [(2, 1108), (3, 222)],
}


def samples(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 4, 4, generator=generator)
    return TensorDataset(x, torch.randint(3, (count,), generator=generator))


class Measured(Scheduled):
    """Somebody's own module, with data of its own, which logs its accuracies."""

    test_data = samples(50, seed=7)

    def train_dataloader(self) -> DataLoader:
        return loader()

    def val_dataloader(self) -> DataLoader:
        return DataLoader(samples(20, seed=8), 10)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_data, 20)

    def validation_step(self, batch, batch_idx: int) -> None:
        self.log("val/accuracy", self.accuracy(batch))

    def test_step(self, batch, batch_idx: int) -> None:
        self.log("test/accuracy", self.accuracy(batch))

    def accuracy(self, batch) -> Tensor:
        return (self(batch[0]).argmax(1) == batch[1]).float().mean()


class InOrder(Measured):
    """Trains on batches in a fixed order: a shuffled one hangs on when the loader is asked."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(data(), 6)


class AtEnds(pl.Callback):
    """Notes masks and weights at the end of every epoch, ahead of ``Levels``."""

    def __init__(self, manager: MaskManager) -> None:
        self.manager = manager
        self.masks: list[Masks] = []
        self.weights: list[dict[str, Tensor]] = []
        self.val: list[float | None] = []
        self.measured: list[dict] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.masks.append(self.manager.masks)
        state = pl_module.state_dict().items()
        self.weights.append({name: tensor.clone() for name, tensor in state})
        val = trainer.callback_metrics.get("val/accuracy")
        self.val.append(None if val is None else float(val))
        self.measured.append(self.manager.measurement.totals())


def written(folder: Path) -> list[dict[str, str]]:
    with (folder / "levels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "masks").iterdir())


def train(module, *callbacks, epochs=-1, seed=1, **kwargs) -> pl.Trainer:
    trainer = make_trainer(*callbacks, epochs=epochs, **kwargs)
    torch.manual_seed(seed)
    trainer.fit(module)
    return trainer


def apart(weights: dict[str, Tensor]) -> float:
    """Test those weights with a trainer that never trained."""
    module = scheduled(kind=Measured)
    module.load_state_dict(weights)
    (found,) = make_trainer().test(module, verbose=False)
    return found["test/accuracy"]


def test_every_schedule_has_its_levels_here():
    assert set(ENDS) == set(SCHEDULES)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_rows_and_files_of_every_schedule(tmp_path, name):
    manager, levels = manager_of(name), Levels(tmp_path)
    ends = AtEnds(manager)
    train(scheduled(kind=Measured), manager, ends, levels, epochs=SCHEDULES[name][1])

    rows = written(tmp_path)
    assert (tmp_path / "levels.csv").read_text().splitlines()[0] == ",".join(HEADER)
    assert [(int(row["epoch"]), int(row["kept"])) for row in rows] == ENDS[name]
    assert [int(row["level"]) for row in rows] == list(range(len(rows)))
    assert files(tmp_path) == [f"level_{n:02}.safetensors" for n in range(len(rows))]
    assert len(levels.rows) == len(rows)
    for row, kept in zip(rows, levels.rows, strict=True):
        last = int(row["epoch"]) - 1
        masks = Masks.load(tmp_path / "masks" / f"level_{int(row['level']):02}.safetensors")
        assert masks == ends.masks[last]
        assert masks.kept == int(row["kept"])
        assert float(row["direct_sparsity"]) == masks.sparsity
        effective = connectivity(scheduled(), masks).effective(masks)
        assert float(row["effective_sparsity"]) == pytest.approx(1 - effective.kept / masks.total)
        flops = count_flops(scheduled(), masks, (torch.zeros(1, 1, 4, 4),)).by_weight
        shares = [f * effective[n].float().mean().item() for n, f in flops.items()]
        assert float(row["effective_flops"]) == pytest.approx(sum(shares), abs=len(shares))
        empty = sum(not bool(mask.any()) for mask in effective.values())
        assert int(row["collapsed_layers"]) == empty
        assert float(row["val_accuracy"]) == ends.val[last]
        assert float(row["test_accuracy"]) == pytest.approx(apart(ends.weights[last]))
        assert float(row["seconds"]) >= 0
        assert list(row.values())[:-1] == [str(value) for value in kept[:-1]]


def test_accuracies_tell_levels_apart(tmp_path):
    """Else the comparison above would say little."""
    manager = MaskManager(Random(), "100x", schedule=Iterative(3, 2), allow_collapse=True)
    levels = Levels()
    train(scheduled(kind=Measured), manager, levels)
    assert len({row.test_accuracy for row in levels.rows}) > 2
    assert len({row.val_accuracy for row in levels.rows}) > 1


def test_a_collapsed_layer_is_counted():
    def only_first(shapes, keep):
        return dict.fromkeys(shapes, 0) | {next(iter(shapes)): min(keep, 36)}

    manager = MaskManager(Random(), 20, quota=only_first, allow_collapse=True)
    levels = Levels()
    train(scheduled(kind=Measured), manager, levels, epochs=1)
    (row,) = levels.rows
    assert row.collapsed_layers == 3
    assert row.effective_sparsity == 1
    assert row.direct_sparsity < 1


class Numbers(pl.Callback):
    """Notes the global random states before every batch."""

    def __init__(self) -> None:
        self.states: list = []

    def on_train_batch_start(self, *args) -> None:
        self.states.append((bytes(torch.get_rng_state().numpy()), str(np.random.get_state())))


class Shuffled(Measured):
    """Draws random numbers when it is tested."""

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_data, 20, shuffle=True)

    def test_step(self, batch, batch_idx: int) -> None:
        torch.rand(3)
        super().test_step(batch, batch_idx)


class Split(Measured):
    """Draws random numbers when it makes its test data."""

    def test_dataloader(self) -> DataLoader:
        torch.randperm(5)
        return super().test_dataloader()


@pytest.mark.parametrize(
    "kind",
    [
        Measured,
        Shuffled,
        Split,
    ],
)
@pytest.mark.parametrize("name", ["weights to 1ep", "gradual in epochs", "greg 1"])
def test_training_is_the_same_to_the_bit_with_and_without(name, kind):
    def ended(*callbacks):
        manager, numbers = manager_of(name), Numbers()
        module = scheduled(kind=kind, dropout=0.5)
        epochs = SCHEDULES[name][1]
        trainer = train(module, manager, *callbacks, numbers, epochs=epochs)
        return module, trainer, manager, numbers

    plain, one, manager, before = ended()
    levels = Levels()
    module, other, managed, after = ended(levels)
    assert len(levels.rows) > 1
    assert all(row.test_accuracy is not None for row in levels.rows)
    assert before.states == after.states
    assert manager.masks == managed.masks
    same_bits(plain.state_dict(), module.state_dict())
    same_bits(one.optimizers[0].state_dict(), other.optimizers[0].state_dict())
    assert module.trainer is other
    assert module.training == plain.training


def test_the_metrics_of_our_classifier_are_not_mixed_up():
    """Torchmetrics that collect over a test and over validation start from nothing."""

    def ended(*callbacks):
        torch.manual_seed(3)
        module = LitClassifier(Small(dropout=0.5), OPTIMIZERS["adam"])
        manager = manager_of("weights to 1ep")
        ends = AtEnds(manager)
        trainer = make_trainer(SeededEpochs(), manager, ends, *callbacks, epochs=-1)
        trainer.fit(module, datamodule=Dots(batch_size=10, val_fraction=0.3))
        return module, ends

    plain, before = ended()
    levels = Levels()
    module, after = ended(levels)
    assert before.val == after.val
    assert len(set(before.val)) > 1
    same_bits(plain.state_dict(), module.state_dict())
    for row in levels.rows:
        fresh = LitClassifier(Small(dropout=0.5))
        fresh.load_state_dict(after.weights[row.epoch - 1])
        trainer = make_trainer()
        (found,) = trainer.test(fresh, datamodule=Dots(batch_size=10), verbose=False)
        assert row.test_accuracy == pytest.approx(found["test/accuracy"])
        assert row.val_accuracy == after.val[row.epoch - 1]


def test_averaged_weights_are_tested_where_there_are_any():
    manager, averaging = manager_of("weights to 1ep"), EMAWeightAveraging(decay=0.9)
    averages = []

    class Note(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            state = averaging._average_model.module.state_dict()
            averages.append({name: tensor.clone() for name, tensor in state.items()})

    levels = Levels()
    train(scheduled(kind=Measured), manager, averaging, Note(), levels)
    for row in levels.rows:
        assert row.test_accuracy == pytest.approx(apart(averages[row.epoch - 1]))


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    levels = Levels()
    train(scheduled(kind=Measured), manager_of("share"), levels)
    assert len(levels.rows) == 3
    assert not list(tmp_path.iterdir())


def test_without_validation_or_test_data_their_columns_are_empty(tmp_path):
    fit(scheduled(), manager_of("share"), Levels(tmp_path))
    rows = written(tmp_path)
    assert [int(row["kept"]) for row in rows] == [1108, 443, 177]
    assert {(row["val_accuracy"], row["test_accuracy"]) for row in rows} == {("", "")}


class Untested(Measured):
    test_step = pl.LightningModule.test_step


class Otherwise(Measured):
    """Calls its accuracy by another name."""

    def test_step(self, batch, batch_idx: int) -> None:
        self.log("test_acc", self.accuracy(batch))


@pytest.mark.parametrize("kind", [Untested, Otherwise])
def test_a_module_that_tests_otherwise_has_no_test_accuracy(kind):
    levels = Levels()
    train(scheduled(kind=kind), manager_of("share"), levels)
    assert [row.test_accuracy for row in levels.rows] == [None] * 3
    assert None not in [row.val_accuracy for row in levels.rows]


def test_where_effective_connections_are_not_known_the_kept_ones_are_counted(tmp_path):
    class Forwardless(Measured):
        forward = pl.LightningModule.forward

        def training_step(self, batch, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def accuracy(self, batch) -> Tensor:
            return (self.net(batch[0]).argmax(1) == batch[1]).float().mean()

    with pytest.warns(UserWarning, match="is not measured"):
        train(scheduled(kind=Forwardless), manager_of("share"), Levels(tmp_path))
    rows = written(tmp_path)
    assert [row["effective_sparsity"] for row in rows] == [""] * 3
    assert [row["collapsed_layers"] for row in rows] == ["0"] * 3
    assert "" not in [row["test_accuracy"] for row in rows]


class Stop(pl.Callback):
    """Stops the training after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, [(1, 1108)]),
        (STEPS, [(1, 1108)]),
        (STEPS + 1, [(2, 1108)]),
        (2 * STEPS, [(2, 1108)]),
        (2 * STEPS + 2, [(2, 1108), (3, 496)]),
        (3 * STEPS, [(2, 1108), (3, 496)]),
        (4 * STEPS, [(2, 1108), (3, 496), (4, 222)]),
    ],
)
def test_a_training_that_is_stopped_early_has_a_last_row(tmp_path, step, expected):
    train(scheduled(kind=Measured), manager_of("weights to 1ep"), Levels(tmp_path), Stop(step))
    rows = written(tmp_path)
    assert [(int(row["epoch"]), int(row["kept"])) for row in rows] == expected
    assert len(files(tmp_path)) == len(rows)


@pytest.mark.parametrize(("steps", "epoch"), [(2, 1), (4, 1), (6, 2)])
def test_a_training_that_ends_by_its_steps_has_one_row(tmp_path, steps, epoch):
    module = scheduled(kind=Measured)
    train(module, manager_of("at init"), Levels(tmp_path), epochs=5, max_steps=steps)
    (row,) = written(tmp_path)
    assert (row["level"], row["epoch"], row["kept"]) == ("0", str(epoch), "222")


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_resumed_training_writes_the_same_rows_and_files(tmp_path, epoch):
    def run(folder, resume=None):
        manager, levels = manager_of("weights to 1ep"), Levels(folder)
        saver = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer = make_trainer(
            SeededEpochs(), manager, levels, saver, epochs=-1, enable_checkpointing=True
        )
        torch.manual_seed(1)
        trainer.fit(scheduled(kind=InOrder), ckpt_path=resume, weights_only=True)
        return [{**row, "seconds": None} for row in written(folder)]

    whole = run(tmp_path / "whole")
    again = run(tmp_path / "again", tmp_path / "whole" / f"epoch={epoch}.ckpt")
    assert again == whole
    ended = sum(int(row["epoch"]) <= epoch + 1 for row in whole)
    for name in files(tmp_path / "whole")[ended:]:
        one, two = (Masks.load(tmp_path / run / "masks" / name) for run in ("whole", "again"))
        assert one == two


def test_rows_are_there_before_the_checkpoint_of_their_epoch(tmp_path):
    seen = []

    class Note(ModelCheckpoint):
        def _save_checkpoint(self, trainer, filepath) -> None:
            exists = (tmp_path / "levels.csv").exists()
            seen.append([int(row["epoch"]) for row in written(tmp_path)] if exists else [])
            super()._save_checkpoint(trainer, filepath)

    saver = Note(tmp_path / "c", save_top_k=-1, save_on_train_epoch_end=True)
    manager, levels = manager_of("weights to 1ep"), Levels(tmp_path)
    train(scheduled(kind=Measured), manager, levels, saver, enable_checkpointing=True)
    assert seen == [[], [2], [2, 3], [2, 3, 4]]


def test_seconds_go_on_over_a_resumed_level():
    levels = Levels()
    levels.load_state_dict({"rows": [], "seconds": 1000.0})
    train(scheduled(kind=Measured), manager_of("share"), levels)
    assert levels.rows[0].seconds > 1000
    assert all(0 <= row.seconds < 500 for row in levels.rows[1:])
    state = Levels().state_dict()
    assert state["rows"] == []
    assert 0 <= state["seconds"] < 500


# --- What is known to fall short.


class LogsLater(pl.Callback):
    """A callback of one's own, after ``Levels``, which logs at an epoch's end."""

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log("mine", 1.0)


def test_a_callback_that_comes_later_may_log():
    trainer = train(scheduled(kind=Measured), manager_of("share"), Levels(), LogsLater())
    assert trainer.callback_metrics["mine"] == 1


class TwoTests(Measured):
    """Has two sets of test data."""

    def test_dataloader(self) -> list[DataLoader]:
        return [super().test_dataloader()] * 2

    def test_step(self, batch, batch_idx: int, dataloader_idx: int) -> None:
        super().test_step(batch, batch_idx)


class Stream(IterableDataset):
    def __iter__(self):
        yield from data()


class EndlessTest(Measured):
    """Has test data without a length."""

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Stream(), 6)


@pytest.mark.parametrize("kind", [TwoTests, EndlessTest])
def test_test_data_of_any_form_do_not_end_the_training(kind):
    levels = Levels()
    train(scheduled(kind=kind), manager_of("share"), levels)
    assert len(levels.rows) == 3


def test_no_test_batches_do_not_end_the_training():
    levels = Levels()
    train(scheduled(kind=Measured), manager_of("share"), levels, limit_test_batches=0)
    assert [row.test_accuracy for row in levels.rows] == [None] * 3


class InStages(pl.LightningDataModule):
    """Sets up its test data for a test alone, as Lightning's documentation shows."""

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train = data()
        if stage == "test":
            self.test = Measured.test_data

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, 6, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 20)


def test_a_data_module_that_sets_up_its_test_data_for_a_test():
    levels = Levels()
    trainer = make_trainer(manager_of("share"), levels, epochs=-1)
    trainer.fit(scheduled(kind=Measured), datamodule=InStages())
    assert None not in [row.test_accuracy for row in levels.rows]


class Negated(pl.LightningDataModule):
    """Prepares its batches where they arrive."""

    def train_dataloader(self) -> DataLoader:
        return loader()

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Measured.test_data, 20)

    def on_after_batch_transfer(self, batch, dataloader_idx: int):
        return -batch[0], batch[1]


def test_hooks_of_a_data_module_prepare_the_test_batches_too():
    manager, levels, module = manager_of("at init"), Levels(), scheduled(kind=Measured)
    trainer = make_trainer(manager, levels, epochs=2)
    trainer.fit(module, datamodule=Negated())
    (found,) = trainer.test(module, datamodule=Negated(), verbose=False)
    assert levels.rows[-1].test_accuracy == pytest.approx(found["test/accuracy"])
    assert found["test/accuracy"] != apart(module.state_dict())


def test_a_level_that_was_not_validated_has_no_validation_accuracy():
    levels = Levels()
    module = scheduled(kind=Measured)
    train(module, manager_of("share"), levels, check_val_every_n_epoch=2)
    assert [row.val_accuracy is None for row in levels.rows] == [True, False, True]


def test_without_a_mask_manager_the_mistake_is_said():
    with pytest.raises(LitPruneError, match="MaskManager"):
        train(scheduled(kind=Measured), Levels(), epochs=1)


@pytest.mark.parametrize("name", ["random regrowth"])
def test_levels_may_come_before_the_mask_manager(name):
    levels = Levels()
    train(scheduled(kind=Measured), levels, manager_of(name), epochs=SCHEDULES[name][1])
    assert len(levels.rows) == 1


def test_data_without_a_length_have_levels_in_steps():
    manager = MaskManager(Magnitude(), "5x", schedule=Gradual("1it", "6it", "2it"))
    levels, batches = Levels(), DataLoader(Stream(), 6)
    fit(scheduled(), manager, levels, batches=batches, epochs=-1, max_steps=12)
    assert levels.rows[-1].kept == 222
