"""Augmentation of whole batches, against torchvision one image at a time."""

from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from lit_prune.data.augment import Augmentation, cropped, flipped, rotated


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count=12, channels=3, height=7, width=9, dtype=torch.uint8, seed=1) -> Tensor:
    values = torch.randint(1, 256, (count, channels, height, width), generator=source(seed))
    return values.to(dtype)


CHANGES = {
    "flip": Augmentation(flip=True),
    "crop": Augmentation(crop=2),
    "rotate": Augmentation(rotate=20.0),
    "mirrored": Augmentation(crop=2, reflect=True),
    "all": Augmentation(flip=True, crop=2, rotate=20.0),
}


def test_each_image_is_flipped_or_not():
    batch = images(count=200)
    changed = flipped(batch, source())
    choices = Counter()
    for before, after in zip(batch, changed, strict=True):
        is_flipped = torch.equal(after, reference.horizontal_flip(before))
        assert is_flipped or torch.equal(after, before)
        choices[is_flipped] += 1
    assert 70 < choices[True] < 130


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("padding", [1, 3])
def test_each_image_is_a_window_of_its_padded_self(padding, reflect):
    batch = images(count=40 * (2 * padding + 1) ** 2, channels=2)
    changed = cropped(batch, padding, source(), reflect)
    choices = Counter()
    offsets = list(product(range(2 * padding + 1), repeat=2))
    for before, after in zip(batch, changed, strict=True):
        padded = reference.pad(before, [padding], padding_mode="reflect" if reflect else "constant")
        found = [
            (top, left)
            for top, left in offsets
            if torch.equal(after, reference.crop(padded, top, left, 7, 9))
        ]
        assert len(found) == 1
        choices[found[0]] += 1
    assert set(choices) == set(offsets)
    assert max(choices.values()) < 4 * min(choices.values())


@pytest.mark.parametrize("size", [(9, 9), (8, 8), (6, 11)], ids=["odd", "even", "not square"])
@pytest.mark.parametrize("drawn", [0.0, 0.2, 0.5, 0.9])
def test_an_image_is_turned_as_torchvision_turns_it(monkeypatch, size, drawn):
    batch = images(count=3, height=size[0], width=size[1], dtype=torch.float32)
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.full((count,), drawn))
    changed = rotated(batch, 30.0, source())
    angle = (2 * drawn - 1) * 30
    expected = reference.rotate(batch, angle, InterpolationMode.BILINEAR)
    torch.testing.assert_close(changed, expected, rtol=1e-3, atol=0.05)


def test_a_quarter_turn_moves_every_pixel_to_its_place(monkeypatch):
    batch = images(height=8, width=8)
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.ones(count))
    changed = rotated(batch, 90.0, source())
    assert torch.equal(changed, torch.rot90(batch, 1, (2, 3)))


def test_turns_go_both_ways_and_no_further_than_asked():
    dot = torch.zeros(400, 1, 65, 65)
    dot[:, :, 32, 61:64] = 1.0
    changed = rotated(dot, 20.0, source())
    row = torch.arange(65.0).view(1, 65, 1) - 32
    column = torch.arange(65.0).view(1, 1, 65) - 32
    mass = changed[:, 0]
    angles = torch.atan2((mass * row).sum((1, 2)), (mass * column).sum((1, 2))).rad2deg()
    assert angles.abs().max() < 20.5
    assert angles.max() > 18
    assert angles.min() < -18
    assert angles.mean().abs() < 2


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shape_and_dtype_are_kept_and_the_original_is_left_alone(change, dtype):
    batch = images(dtype=dtype)
    before = batch.clone()
    changed = change(batch, source())
    assert changed.shape == batch.shape
    assert changed.dtype == dtype
    assert torch.equal(batch, before)
    assert not torch.equal(changed, batch)
    assert changed.max() <= 255
    assert changed.min() >= 0


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_generator_determines_the_change_and_the_global_one_is_left_alone(change):
    state = torch.get_rng_state()
    first = change(images(), source(4))
    torch.rand(3)
    assert torch.equal(change(images(), source(4)), first)
    assert not torch.equal(change(images(), source(5)), first)
    torch.set_rng_state(state)
    change(images(), source(4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_equal_images_of_a_batch_are_changed_each_in_its_own_way(change):
    batch = images(count=1).expand(30, -1, -1, -1)
    changed = change(batch, source())
    assert len({bytes(image.flatten().tolist()) for image in changed}) > 1


def test_no_augmentation_changes_nothing():
    batch = images()
    assert torch.equal(Augmentation()(batch, source()), batch)
