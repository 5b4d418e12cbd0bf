"""The windows of HAR: their files, classes, normalisation and order."""

import shutil

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lit_prune import LitClassifier, LitPruneError
from lit_prune.backbones import FastGRNN
from lit_prune.data import HAR

SIGNALS = (
    "body_acc_x",
    "body_acc_y",
    "body_acc_z",
    "body_gyro_x",
    "body_gyro_y",
    "body_gyro_z",
    "total_acc_x",
    "total_acc_y",
    "total_acc_z",
)
TRAIN, TEST = 30, 12
WINDOWS = {"train": TRAIN, "test": TEST}


def values(split: str) -> np.ndarray:
    """What stands in the files, (N, 128, 9): every signal has its own scale, test is shifted."""
    generator = np.random.default_rng(WINDOWS[split])
    scale = np.logspace(-2, 2, 9)
    noise = generator.normal(size=(WINDOWS[split], 128, 9))
    return (noise + (split == "test")) * scale + np.arange(9)


def labels(split: str) -> np.ndarray:
    return np.arange(WINDOWS[split]) % 6 + 1


def write(folder, split: str) -> None:
    inner = folder / split / "Inertial Signals"
    inner.mkdir(parents=True)
    for i, signal in enumerate(SIGNALS):
        # As in the original: wide columns, exponents of three digits, a blank in front.
        lines = [
            "  ".join(["", *(f"{x:.9e}".replace("e+", "e+0").replace("e-", "e-0") for x in row)])
            for row in values(split)[:, :, i]
        ]
        (inner / f"{signal}_{split}.txt").write_text("\n".join(lines) + "\n")
    (folder / split / f"y_{split}.txt").write_text("".join(f"{n}\n" for n in labels(split)))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    parent = tmp_path_factory.mktemp("data")
    for split in WINDOWS:
        write(parent / "UCI HAR Dataset", split)
    return parent


@pytest.fixture
def copied(original, tmp_path):
    """A copy of the files that a test may damage."""
    shutil.copytree(original / "UCI HAR Dataset", tmp_path / "UCI HAR Dataset")
    return tmp_path


def ready(root, seed: int = 0, **arguments) -> HAR:
    torch.manual_seed(seed)
    data = HAR(str(root), **{"batch_size": 7, "val_fraction": 0.0, **arguments})
    data.setup("fit")
    return data


def gathered(loader) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, classes = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(classes)


def test_windows_are_read_as_they_stand_time_before_signals(original):
    data = ready(original)
    for split in WINDOWS:
        windows = data.read(train=split == "train").images
        assert windows.shape == (WINDOWS[split], 128, 9)
        assert windows.dtype == torch.float32
        np.testing.assert_allclose(windows.numpy(), values(split), rtol=1e-6)


def test_the_root_is_the_folder_or_the_one_around_it(original):
    outer, inner = ready(original), ready(original / "UCI HAR Dataset")
    for mine, same in zip(
        gathered(outer.test_dataloader()), gathered(inner.test_dataloader()), strict=True
    ):
        assert torch.equal(mine, same)


def test_har_2_merges_the_activities_as_fastgrnn_does(original):
    names = "walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying"
    first = {"sitting", "laying", "walking upstairs"}
    found = ready(original).read(train=True).labels
    assert found.tolist() == [int(names[n - 1] not in first) for n in labels("train")]
    assert HAR().num_classes == 2


def test_without_merging_there_are_six_activities_from_0(original):
    data = ready(original, binary=False)
    assert data.read(train=False).labels.tolist() == (labels("test") - 1).tolist()
    assert data.num_classes == 6


def test_a_split_of_training_has_mean_0_and_deviation_1_in_each_signal(original):
    x, _ = gathered(ready(original, val_fraction=0.3).train_dataloader())
    assert len(x) == TRAIN - 9
    torch.testing.assert_close(x.mean((0, 1)), torch.zeros(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std((0, 1), correction=0), torch.ones(9), rtol=1e-5, atol=0)


def test_the_other_splits_are_normalised_by_the_statistics_of_training(original):
    data = ready(original, val_fraction=0.3)
    x, _ = gathered(data.test_dataloader())
    raw = torch.from_numpy(values("test")).float()
    # The map is read off the test set, and its numbers are those of what is trained on.
    std = raw.std((0, 1)) / x.std((0, 1))
    mean = raw.mean((0, 1)) - std * x.mean((0, 1))
    torch.testing.assert_close(x, (raw - mean) / std, rtol=1e-3, atol=1e-4)
    trained, held_out = (
        gathered(loader)[0] * std + mean
        for loader in (data.train_dataloader(), data.val_dataloader())
    )
    torch.testing.assert_close(trained.mean((0, 1)), mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trained.std((0, 1), correction=0), std, rtol=1e-3, atol=1e-4)
    known = torch.from_numpy(values("train")).float()
    found = torch.cat([trained, held_out])
    order = torch.cdist(found.flatten(1), known.flatten(1)).argmin(1)
    assert sorted(order.tolist()) == list(range(TRAIN))
    torch.testing.assert_close(found, known[order], rtol=1e-3, atol=1e-2)


def test_a_signal_that_never_changes_becomes_zero(copied):
    for split, count in WINDOWS.items():
        path = copied / "UCI HAR Dataset" / split / "Inertial Signals" / f"body_acc_y_{split}.txt"
        path.write_text((" 3.0" * 128 + "\n") * count)
    x, _ = gathered(ready(copied).train_dataloader())
    assert not x[:, :, 1].any()
    assert x.isfinite().all()


def test_every_window_is_seen_once_with_its_label(original):
    data = ready(original, binary=False, val_fraction=0.2)
    raw = values("train")
    raw = torch.from_numpy((raw - raw.mean((0, 1))) / raw.std((0, 1))).float()
    seen = []
    for loader in (data.train_dataloader(), data.val_dataloader()):
        x, y = gathered(loader)
        nearest = torch.cdist(x.flatten(1), raw.flatten(1)).argmin(1)
        assert torch.equal(y, torch.from_numpy(labels("train"))[nearest] - 1)
        seen += nearest.tolist()
    assert sorted(seen) == list(range(TRAIN))
    assert len(data.val_dataloader()) == 1


def test_an_epoch_repeats_to_the_bit_and_another_differs(original):
    loader = ready(original).train_dataloader()
    first, again = gathered(loader), gathered(loader)
    loader.batch_sampler.set_epoch(1)
    other = gathered(loader)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[0].sum().round(), other[0].sum().round())


def test_split_and_order_derive_from_the_seed_and_leave_the_global_state_alone(original):
    def epoch(seed: int) -> torch.Tensor:
        data = ready(original, seed, val_fraction=0.2)
        before = torch.get_rng_state()
        x, _ = gathered(data.train_dataloader())
        assert torch.equal(torch.get_rng_state(), before)
        return x

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


def test_the_example_is_one_window_as_the_network_gets_it(original):
    data = ready(original)
    example = data.example()
    assert example.shape == (1, 128, 9)
    x, _ = gathered(data.train_dataloader())
    assert (x == example).all((1, 2)).sum() == 1


def test_without_a_fraction_there_is_no_validation(original):
    assert ready(original).val_dataloader() == []


def test_a_trainer_trains_fastgrnn_on_it(original):
    torch.manual_seed(0)
    module = LitClassifier(FastGRNN(2, hidden=8))
    before = module.backbone.U.weight.detach().clone()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    data = HAR(str(original), batch_size=10, val_fraction=0.2)
    trainer.fit(module, datamodule=data)
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    assert trainer.global_step == 3
    assert 0 <= found["test/accuracy"] <= 1
    assert not torch.equal(module.backbone.U.weight, before)


# --- mistakes


def test_a_root_without_the_data_set_names_it(tmp_path):
    with pytest.raises(LitPruneError) as raised:
        HAR(str(tmp_path / "nowhere")).setup("fit")
    message = str(raised.value)
    for word in ("nowhere", "Human Activity Recognition Using Smartphones", "UCI", "--data.root"):
        assert word in message
    assert "\n" not in message


def _gone(path) -> None:
    path.unlink()


def _cut(path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def _torn(path) -> None:
    path.write_text(path.read_text()[:-40])


def _words(path) -> None:
    path.write_text(path.read_text().replace("1", "one", 1))


def _comment(path) -> None:
    path.write_text(path.read_text() + "# 1 2 3\n")


def _empty(path) -> None:
    path.write_text("")


def _binary(path) -> None:
    path.write_bytes(bytes(range(256)) * 9)


def _nan(path) -> None:
    text = path.read_text().split(maxsplit=1)
    path.write_text(f"nan {text[1]}")


def _narrow(path) -> None:
    path.write_text("1.0 2.0\n" * TRAIN)


SIGNAL = "Inertial Signals/body_gyro_z_train.txt"
LABELS = "y_train.txt"


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (SIGNAL, _gone, "missing"),
        (SIGNAL, _cut, "29 lines of 128 numbers"),
        (SIGNAL, _torn, "damaged"),
        (SIGNAL, _words, "one"),
        (SIGNAL, _comment, "row 31"),
        (SIGNAL, _empty, "no data"),
        (SIGNAL, _binary, "damaged"),
        (SIGNAL, _nan, "not finite"),
        (SIGNAL, _narrow, "30 lines of 2 numbers"),
        (LABELS, _gone, "missing"),
        (LABELS, _words, "one"),
        (LABELS, _empty, "no data"),
        (LABELS, _narrow, "1.0"),
    ],
)
def test_a_missing_or_damaged_file_is_one_line_with_its_path_and_what_is_expected(
    copied, name, damage, said
):
    path = copied / "UCI HAR Dataset" / "train" / name
    damage(path)
    with pytest.raises(LitPruneError) as raised:
        ready(copied)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert said in message
    assert ("1 to 6" if name == LABELS else "30 lines of 128 finite numbers") in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"), [("7\n" * 30, "the label 7"), ("0\n" * 30, "the label 0")]
)
def test_labels_beyond_the_six_activities_are_refused(copied, text, said):
    path = copied / "UCI HAR Dataset" / "train" / LABELS
    path.write_text(text)
    with pytest.raises(LitPruneError, match=said):
        ready(copied)


def test_several_labels_a_line_are_refused(copied):
    (copied / "UCI HAR Dataset" / "train" / LABELS).write_text("1 2\n" * 15)
    with pytest.raises(LitPruneError, match="2 numbers a line"):
        ready(copied)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"batch_size": 0}, "batch_size=0"), ({"val_fraction": 1.0}, "val_fraction=1.0")],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, named):
    with pytest.raises(LitPruneError, match=named):
        HAR(**arguments)


def test_a_fraction_that_leaves_nothing_to_train_on_is_refused(original):
    with pytest.raises(LitPruneError, match=r"val_fraction=0\.99"):
        ready(original, val_fraction=0.99)
