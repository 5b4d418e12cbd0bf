"""TrainingBatches: what training sees, further ones in every round, and training undisturbed."""

import gc
import multiprocessing
import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lit_prune import MaskManager
from lit_prune.callbacks.training_batches import TrainingBatches
from lit_prune.criteria import SNIP, Criterion, Random
from lit_prune.data.batches import Images
from lit_prune.data.images import ImagesInMemory

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`"),
]


class Own(pl.LightningModule):
    """Notes what its training step is given, and a random number of every step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.seen, self.numbers = [], []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        self.seen.append(plain(batch))
        self.numbers.append((torch.rand(()).item(), np.random.rand(), random.random()))
        return self(torch.ones(1, dtype=self.net.weight.dtype)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def plain(batch):
    """A batch as lists of numbers, which can be compared."""
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    if isinstance(batch, dict):
        return {name: plain(part) for name, part in batch.items()}
    return [plain(part) for part in batch] if isinstance(batch, list | tuple) else batch


class Dots(ImagesInMemory):
    """Forty small images of three classes, shifted and mirrored at random."""

    num_classes = 3

    def __init__(self):
        super().__init__(batch_size=6, flip=True, crop=1)

    def read(self, train):
        generator = torch.Generator().manual_seed(int(train))
        images = torch.randint(256, (40, 1, 4, 4), generator=generator).to(torch.uint8)
        return Images(images, torch.randint(3, (40,), generator=generator))


class Look(pl.Callback):
    """Asks for rounds at the start of every epoch."""

    def __init__(self, turns=(0,), count=1, seed=3):
        self.turns, self.count, self.seed = turns, count, seed
        self.found, self.raw = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        batches = TrainingBatches(trainer, self.count, self.seed)
        self.raw = [batches(turn) for turn in self.turns]
        self.found = [plain(found) for found in self.raw]
        batches.close()


def fit(loader, *callbacks, module=None, epochs=1, **settings):
    module = module or Own()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    trainer = pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **quiet | settings)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    trainer.fit(module, loader)
    return module


def numbers(count=12):
    x = torch.arange(float(count))
    return TensorDataset(x, x.long() % 3)


def looked(loader, turns=(0,), count=1, seed=3, **settings):
    look = Look(turns, count, seed)
    module = fit(loader, look, **settings)
    return look.found, module.seen


# --- what a round has


def test_the_first_rounds_have_the_first_batches_of_training():
    found, seen = looked(DataLoader(numbers(), 2), (0, 1, 2), count=2)
    assert found == [seen[:2], seen[2:4], seen[4:]]


def test_a_data_module_of_ours_gives_what_training_sees_however_it_is_shuffled():
    data = Dots()
    look = Look((0, 1), 2)
    module = fit(data, look)
    assert [*look.found[0], *look.found[1]] == module.seen[:4]
    again = Look((0, 1), 2, seed=99)  # the order derives from the data's own seed
    fit(Dots(), again)
    assert again.found == look.found


def test_rounds_differ_and_a_pass_has_every_batch_once():
    loader = DataLoader(numbers(), 2, shuffle=True)
    found, seen = looked(loader, range(3), count=2)
    samples = [x for turn in found for x, _ in turn]
    assert sorted(x for pair in samples for x in pair) == list(range(12))
    assert found[0] != found[1] != found[2]
    assert samples != [x for x, _ in seen]  # the order of training is not given away


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_at_the_end_the_loaders_start_again_and_no_round_has_a_batch_twice(count):
    found, seen = looked(DataLoader(numbers(), 2), range(8), count)
    flat = [batch for turn in found for batch in turn]
    assert flat == [seen[i % 6] for i in range(8 * count)]
    for turn in found:
        assert all(turn.count(batch) == 1 for batch in turn)


@pytest.mark.parametrize("shuffle", [False, True])
def test_where_a_loader_has_less_a_round_has_less(shuffle):
    found, seen = looked(DataLoader(numbers(), 2, shuffle=shuffle), range(3), count=100)
    for turn in found:
        assert len(turn) == 6
        assert sorted(x for pair, _ in turn for x in pair) == list(range(12))
    assert (found[0] == seen) is not shuffle
    assert (found[0] == found[1]) is not shuffle


def test_the_last_smaller_batch_is_a_batch_too():
    found, seen = looked(DataLoader(numbers(7), 3), range(2), count=2)
    assert [[len(x) for x, _ in turn] for turn in found] == [[3, 3], [1, 3]]
    assert found[0] == seen[:2]


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*numbers().tensors, strict=True)


class Noisy(Dataset):
    """Draws from all three global generators for every sample."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.rand(2) + index, np.random.rand() + random.random()


def with_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weighted(generator):
    sampler = WeightedRandomSampler([1.0] * 6 + [5.0] * 6, 12, generator=generator)
    return DataLoader(numbers(), 2, sampler=sampler)


LOADERS = {
    "in order": lambda: DataLoader(numbers(), 2),
    "shuffled": lambda: DataLoader(numbers(), 2, shuffle=True),
    "with a generator": lambda: DataLoader(numbers(), 2, shuffle=True, generator=with_generator()),
    "with a sampler's generator": lambda: DataLoader(
        numbers(), 2, sampler=RandomSampler(numbers(), generator=with_generator())
    ),
    "weighted": lambda: weighted(with_generator()),
    "weighted, globally": lambda: weighted(None),
    "with a batch sampler": lambda: DataLoader(
        numbers(), batch_sampler=BatchSampler(SequentialSampler(numbers()), 2, False)
    ),
    "a stream": lambda: DataLoader(Stream(), 2),
    "random samples": lambda: DataLoader(Noisy(), 2, shuffle=True),
    "two at once": lambda: [DataLoader(numbers(), 2, shuffle=True), DataLoader(numbers(4), 1)],
    "ours": lambda: Dots(),
}
EVERY_LOADER = pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)


@EVERY_LOADER
def test_an_earlier_round_has_the_same_batches_again(make):
    found, _ = looked(make(), (0, 1, 2, 0, 2, 1, 5, 0), count=2)
    assert found[3] == found[7] == found[0]
    assert found[4] == found[2]
    assert found[5] == found[1]
    fresh, _ = looked(make(), (2,), count=2)
    assert fresh[0] == found[2]


@EVERY_LOADER
def test_training_sees_the_same_order_and_the_same_random_numbers(make):
    alone = fit(make(), epochs=2)
    watched = fit(make(), Look((0, 1, 0, 4), 2), epochs=2)
    assert watched.seen == alone.seen
    assert watched.numbers == alone.numbers


@EVERY_LOADER
def test_the_seed_decides_and_the_global_generators_do_not(make):
    class Drawing(Look):
        def on_train_epoch_start(self, trainer, pl_module):
            torch.rand(5), np.random.rand(3), random.random()
            super().on_train_epoch_start(trainer, pl_module)

    looks = [Look((0, 1, 2), 2), Drawing((0, 1, 2), 2)]
    for look in looks:
        fit(make(), look)
    assert looks[0].found == looks[1].found


def test_another_seed_gives_another_order():
    loader = DataLoader(numbers(), 2, shuffle=True)
    one, other = (looked(loader, (0,), 6, seed)[0] for seed in (3, 4))
    assert one != other


def test_rounds_differ_where_samples_are_drawn_with_replacement():
    sampler = RandomSampler(
        numbers(1000), replacement=True, num_samples=128, generator=with_generator()
    )
    found, _ = looked(DataLoader(numbers(1000), 16, sampler=sampler), (0, 1), count=2)
    assert found[0] != found[1]


def with_workers(persistent):
    return DataLoader(numbers(), 2, True, num_workers=1, persistent_workers=persistent)


@pytest.mark.slow
def test_workers_are_not_shared_with_training():
    alone, look = fit(with_workers(True), epochs=2), Look((0, 1, 2, 3), 2)
    watched = fit(with_workers(True), look, epochs=2)
    assert watched.seen == alone.seen
    assert watched.numbers == alone.numbers
    assert look.found[0] != look.found[1]


@pytest.mark.slow
def test_workers_give_an_earlier_round_again():
    found, _ = looked(with_workers(False), (0, 1, 0, 1), 2)
    assert found[:2] == found[2:]


@pytest.mark.slow
def test_workers_end_with_the_rounds():
    class Counting(Look):
        def on_train_epoch_start(self, trainer, pl_module):
            before = len(multiprocessing.active_children())
            super().on_train_epoch_start(trainer, pl_module)
            self.left = len(multiprocessing.active_children()) - before
            gc.collect()  # where they end at last; this takes seconds

    look = Counting((0, 1), 2)
    fit(with_workers(False), look)
    assert len(look.found) == 2
    assert look.left == 0


@pytest.mark.slow
def test_workers_end_when_a_mask_manager_has_pruned():
    class Counting(pl.Callback):
        def __init__(self):
            self.alive = 0

        def on_train_epoch_start(self, trainer, pl_module):
            self.alive = len(multiprocessing.active_children())

    before, after = Counting(), Counting()
    module = Own()
    module.net = nn.Linear(1, 4)
    manager = MaskManager(SNIP(), 1, batches=2, loss=anything)
    gc.disable()
    try:
        fit(with_workers(False), before, manager, after, module=module)
    finally:
        gc.enable()
        gc.collect()  # where they end otherwise; this takes seconds
    assert manager.masks.kept == 1
    assert before.alive == after.alive


def anything(model, batch):
    return model(batch[0][:, None]).sum()


# --- as a training step would get them


def test_hooks_of_the_module_are_applied():
    class Hooked(Own):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 2, batch[1]]

    look = Look((0, 1))
    module = fit(DataLoader(numbers(), 2), look, module=Hooked())
    assert [found[0] for found in look.found] == module.seen[:2]
    assert look.found[1][0][0] == [4.0, 6.0]


def test_the_hook_before_the_transfer_is_applied():
    class Hooked(Own):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] + 100, batch[1]]

    look = Look((0,))
    module = fit(DataLoader(numbers(), 2), look, module=Hooked())
    assert module.seen[0][0] == [100.0, 101.0]
    assert look.found[0] == module.seen[:1]


def test_hooks_of_the_data_module_are_applied():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(numbers(), 2, shuffle=True)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [-batch[0] + torch.rand(()), batch[1]]

    look = Look((0, 0))
    alone, watched = fit(Data()), fit(Data(), look)
    assert max(look.found[0][0][0]) <= 1
    assert look.found[0] == look.found[1]
    assert watched.seen == alone.seen


def test_inputs_have_the_precision_of_training():
    look = Look()
    fit(DataLoader(numbers(), 2), look, precision="64-true")
    assert look.raw[0][0][0].dtype == torch.float64


def test_several_loaders_at_once_give_their_batches_together():
    def loaders():
        return {"a": DataLoader(numbers(), 2), "b": DataLoader(numbers(6), 3)}

    found, seen = looked(loaders(), (0, 1), count=2)
    assert found == [seen[:2], seen[2:4]]
    assert found[0][1].keys() == {"a", "b"}


@pytest.mark.parametrize("mode", ["min_size", "max_size"])
def test_several_loaders_are_combined_as_in_training(mode):
    loaders = CombinedLoader([DataLoader(numbers(), 2), DataLoader(numbers(4), 2)], mode)
    found, seen = looked(loaders, (0,), count=4)
    assert found[0] == seen[:4]


def test_it_begins_with_the_epoch_that_is_to_be_trained():
    """In a later epoch our loaders have another order."""
    look = Look((0,), 2)
    module = fit(Dots(), look, epochs=2)
    per_epoch = len(module.seen) // 2
    assert look.found[0] == module.seen[per_epoch : per_epoch + 2]
    assert look.found[0] != module.seen[:2]


def test_every_seed_of_torch_serves():
    look = Look((0, 1), seed=2**64 - 1)
    fit(DataLoader(numbers(), 2, shuffle=True), look)
    assert len(look.found) == 2


def test_a_mask_manager_hands_every_round_further_batches():
    class Reader(Criterion):
        rounds = 3

        def __init__(self):
            self.seen = []

        def __call__(self, probe):
            self.seen.append(plain(list(probe.batches)))
            return Random()(probe)

    module, reader = Own(), Reader()
    module.net = nn.Linear(1, 8)
    manager = MaskManager(reader, 3, batches=2, example=(1, 1))
    fit(DataLoader(numbers(), 2), manager, module=module)
    assert reader.seen == [module.seen[:2], module.seen[2:4], module.seen[4:6]]
    assert manager.masks.kept == 3
