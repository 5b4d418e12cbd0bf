"""Images in memory: split, normalisation, batches, and the data sets that come with it."""

import pickle
import struct

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.datasets import cifar

from lit_prune import LitClassifier, LitPruneError
from lit_prune.data import CIFAR10, CIFAR100, MNIST, Digits
from lit_prune.data.batches import Images
from lit_prune.data.images import ImagesInMemory


class Numbered(ImagesInMemory):
    """Forty-one images whose every pixel is the image's number; test images start at 200."""

    def __init__(self, colours: int = 1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.colours = colours
        self.reads = 0

    def read(self, train: bool) -> Images:
        self.reads += 1
        first, count = (0, 41) if train else (200, 9)
        labels = torch.arange(first, first + count)
        images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, self.colours, 4, 4)
        return Images(images.contiguous(), labels)


class Speckled(ImagesInMemory):
    """Colour images with channels of different mean and spread; the last is constant."""

    def read(self, train: bool) -> Images:
        generator = np.random.default_rng(int(train))
        means, spreads = [[90.0, 120.0, 30.0], [40.0, 20.0, 0.0]]
        images = generator.normal(means, spreads, (50, 6, 5, 3)).clip(0, 255).astype(np.uint8)
        return Images(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.zeros(50))


def ready(kind, seed: int = 0, **kwargs) -> ImagesInMemory:
    torch.manual_seed(seed)
    data = kind(**kwargs)
    data.setup("fit")
    return data


def labels(batches) -> list[int]:
    return [int(label) for _, y in batches for label in y]


def test_training_images_have_mean_0_and_deviation_1_in_each_channel():
    data = ready(Speckled, val_fraction=0.0)
    x = torch.cat([x for x, _ in data.train_dataloader()]).double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-5)
    deviation = x.std((0, 2, 3), correction=0)
    torch.testing.assert_close(deviation[:2], torch.ones(2).double(), rtol=1e-5, atol=0)
    assert deviation[2] == 0, "a constant channel stays finite"


def test_test_images_are_normalised_by_the_training_images():
    data = ready(Speckled, val_fraction=0.0)
    train = data.read(train=True).images.double()
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3), correction=0).clamp(min=1)
    raw = data.read(train=False).images.double()
    expected = (raw - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    x = torch.cat([x for x, _ in data.test_dataloader()])
    torch.testing.assert_close(x.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.9])
def test_validation_is_disjoint_from_training_and_both_are_all_there_is(fraction):
    data = ready(Numbered, val_fraction=fraction)
    train, val = labels(data.train_dataloader()), labels(data.val_dataloader())
    assert len(val) == round(fraction * 41)
    assert sorted(train + val) == list(range(41))
    assert labels(data.test_dataloader()) == list(range(200, 209))


def test_the_split_derives_from_the_seed_of_the_run():
    def held_out(seed):
        return labels(ready(Numbered, seed=seed, val_fraction=0.3).val_dataloader())

    assert held_out(1) == held_out(1)
    assert held_out(1) != held_out(2)


def test_without_a_fraction_there_is_no_validation():
    data = ready(Numbered, val_fraction=0.0)
    assert list(data.val_dataloader()) == []
    assert sorted(labels(data.train_dataloader())) == list(range(41))


def test_images_and_labels_stay_together():
    data = ready(Numbered, val_fraction=0.2, batch_size=6)
    everything = np.arange(41.0)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for x, y in loader:
            pixels = x * everything.std() + everything.mean()
            assert torch.allclose(pixels.mean((1, 2, 3)).double(), y.double(), atol=1e-3)


def test_an_epoch_is_the_same_when_read_twice_and_another_one_later():
    data = ready(Speckled, flip=True, crop=2, rotate=9.0, batch_size=8)
    loader = data.train_dataloader()

    def epoch(number):
        loader.batch_sampler.set_epoch(number)
        return torch.cat([x for x, _ in loader])

    assert torch.equal(epoch(0), epoch(0))
    assert torch.equal(epoch(3), epoch(3))
    assert not torch.equal(epoch(0), epoch(1))


def test_only_training_images_are_augmented():
    plain = ready(Speckled, batch_size=50)
    changed = ready(Speckled, batch_size=50, flip=True, crop=3, rotate=20.0)

    def batch(loader):
        return next(iter(loader))[0]

    assert torch.equal(batch(plain.val_dataloader()), batch(changed.val_dataloader()))
    assert torch.equal(batch(plain.test_dataloader()), batch(changed.test_dataloader()))
    assert not torch.equal(batch(plain.train_dataloader()), batch(changed.train_dataloader()))


def test_three_channels_repeat_grey_images():
    data = ready(Numbered, channels=3)
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape[1:] == data.example().shape[1:] == (3, 4, 4)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, 2])
    grey, _ = next(iter(ready(Numbered).train_dataloader()))
    assert torch.equal(x[:, :1], grey)


def test_images_in_colour_are_taken_as_they_are_but_never_made_grey():
    assert ready(Numbered, colours=3, channels=3).example().shape == (1, 3, 4, 4)
    with pytest.raises(LitPruneError, match=r"channels=1.*have 3"):
        ready(Numbered, colours=3, channels=1)


def test_images_are_read_once():
    data = ready(Numbered)
    data.setup("fit")
    data.setup("test")
    assert data.reads == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"val_fraction": -0.1}, "val_fraction=-0.1"),
        ({"channels": 2}, "channels=2"),
        ({"crop": -1}, "crop=-1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, named):
    with pytest.raises(LitPruneError, match=named):
        Numbered(**arguments)


def test_a_trainer_sees_another_order_in_each_epoch_and_the_same_in_a_second_run():
    class Notes(LitClassifier):
        def on_train_start(self):
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append((self.current_epoch, batch[1].tolist()))
            return super().training_step((batch[0], batch[1] % 10), batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step((batch[0], batch[1] % 10), batch_idx)

    def seen():
        torch.manual_seed(6)
        module = Notes(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)))
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = pl.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **quiet)
        torch.manual_seed(7)
        trainer.fit(module, datamodule=Numbered(batch_size=8))
        by_epoch = {}
        for epoch, batch in module.seen:
            by_epoch.setdefault(epoch, []).extend(batch)
        return by_epoch

    first = seen()
    assert sorted(first[0]) == sorted(first[1]) == sorted(first[2])
    assert first[0] != first[1] != first[2]
    assert seen() == first


def test_digits_are_1437_and_360_images_of_28_by_28_split_by_class():
    digits = Digits()
    train, test = digits.read(train=True), digits.read(train=False)
    assert train.images.shape == (1437, 1, 28, 28)
    assert test.images.shape == (360, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.images.max() == test.images.max() == 255
    in_test = torch.bincount(test.labels, minlength=10)
    in_all = in_test + torch.bincount(train.labels, minlength=10)
    assert (in_test - in_all / 5).abs().max() < 1
    assert torch.equal(train.images, Digits().read(train=True).images)


def test_digits_and_their_labels_are_those_of_the_small_ones_they_come_from():
    from sklearn.datasets import load_digits

    small = load_digits()
    test = Digits().read(train=False)
    shrunk = nn.functional.interpolate(test.images.float(), (8, 8), mode="area") * 16 / 255
    distances = torch.cdist(shrunk.flatten(1), torch.from_numpy(small.data).float())
    nearest = distances.argmin(dim=1)
    assert len(set(nearest.tolist())) > 350
    assert test.labels.tolist() == small.target[nearest].tolist()


@pytest.mark.parametrize("kind", [MNIST, CIFAR10, CIFAR100])
def test_a_root_without_data_says_what_to_do(kind, tmp_path):
    with pytest.raises(LitPruneError) as raised:
        ready(kind, root=str(tmp_path / "nowhere"))
    message = str(raised.value)
    for word in (kind.__name__, "nowhere", "--data.root", "--data.download true"):
        assert word in message
    assert "\n" not in message


def _write_idx(path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def _fake_mnist(root, train: int = 30, test: int = 10) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for stem, count in (("train", train), ("t10k", test)):
        pictures = generator.integers(256, size=(count, 28, 28), dtype=np.uint8)
        _write_idx(folder / f"{stem}-images-idx3-ubyte", pictures)
        _write_idx(folder / f"{stem}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)


def test_mnist_is_read_from_torchvisions_files(tmp_path):
    _fake_mnist(tmp_path)
    data = ready(MNIST, root=str(tmp_path), val_fraction=0.0, batch_size=10)
    train = data.read(train=True)
    assert train.images.shape == (30, 1, 28, 28)
    assert train.labels.tolist() == [i % 10 for i in range(30)]
    raw = (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16:]
    assert train.images.flatten().tolist() == list(raw)
    assert len(data.train_dataloader()) == 3


def test_cut_files_are_one_clear_error(tmp_path):
    _fake_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(LitPruneError, match="MNIST"):
        ready(MNIST, root=str(tmp_path))


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_cifar_is_read_channels_first_and_shifted_and_flipped(kind, tmp_path, monkeypatch):
    original = getattr(cifar, kind.__name__)
    folder = tmp_path / original.base_folder
    folder.mkdir()
    rows = np.random.default_rng(0).integers(256, size=(8, 3072), dtype=np.uint8)
    numbers = list(range(8))
    key = "labels" if kind is CIFAR10 else "fine_labels"
    for name, _ in [*original.train_list, *original.test_list]:
        (folder / name).write_bytes(pickle.dumps({"data": rows, key: numbers}))
    meta = {original.meta["key"]: [str(i) for i in range(kind.num_classes)]}
    (folder / original.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(cifar, "check_integrity", lambda *args: True)

    data = ready(kind, root=str(tmp_path))
    test = data.read(train=False)
    assert test.images.shape == (8, 3, 32, 32)
    assert test.images.is_contiguous()
    assert torch.equal(test.images, torch.from_numpy(rows).view(8, 3, 32, 32))
    assert test.labels.tolist() == numbers
    assert len(data.read(train=True)) == 8 * len(original.train_list)
    assert (data.augmentation.flip, data.augmentation.crop) == (True, 4)
    assert data.num_classes == {"CIFAR10": 10, "CIFAR100": 100}[kind.__name__]
