"""Folders of images: in memory where they fit, else read by workers; the same laws for both."""

import numpy as np
import pytest
import torch
from PIL import Image

from lit_prune import LitPruneError
from lit_prune.data import ImageFolder

CLASSES = ("cat", "dog", "emu")
SIZE = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten training and four test images a class; red is the class, blue runs across."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 10), ("test", 4)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                shade = np.zeros((SIZE, SIZE + 2, 3), dtype=np.uint8)
                shade[..., 0], shade[..., 1] = 100 * label, 10 * i
                shade[..., 2] = 20 * np.arange(SIZE + 2)
                Image.fromarray(shade).save(folder / split / name / f"{i}.png")
    return folder


def folder(root, memory, **kwargs):
    torch.manual_seed(0)
    arguments = {"image_size": SIZE, "workers": 1, "batch_size": 4, "val_fraction": 0.2} | kwargs
    data = ImageFolder(str(root), memory=memory, **arguments)
    data.setup("fit")
    return data


IN_MEMORY, STREAMED = 4.0, 0.0
BOTH = pytest.mark.parametrize("memory", [IN_MEMORY, STREAMED], ids=["memory", "streamed"])


def samples(loader):
    inputs, labels = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(labels)


@BOTH
def test_every_image_is_seen_once_in_its_split(root, memory):
    data = folder(root, memory)
    counts = {
        name: torch.bincount(samples(loader)[1], minlength=3)
        for name, loader in (
            ("train", data.train_dataloader()),
            ("val", data.val_dataloader()),
            ("test", data.test_dataloader()),
        )
    }
    assert counts["train"].sum() == 24
    assert counts["val"].sum() == 6
    assert (counts["train"] + counts["val"]).tolist() == [10, 10, 10]
    assert counts["test"].tolist() == [4, 4, 4]


@BOTH
def test_labels_are_those_of_the_folders(root, memory):
    inputs, labels = samples(folder(root, memory).test_dataloader())
    reds = inputs[:, 0].mean(dim=(1, 2))
    order = [reds[labels == label].unique() for label in range(3)]
    assert [len(shades) for shades in order] == [1, 1, 1]
    assert order[0] < order[1] < order[2]


@BOTH
def test_images_have_the_size_asked_for_and_the_classes_are_counted(root, memory):
    data = folder(root, memory, image_size=6)
    assert data.example().shape == (1, 3, 6, 6)
    assert data.num_classes == 3
    assert samples(data.train_dataloader())[0].shape == (24, 3, 6, 6)


@BOTH
def test_an_epoch_repeats_to_the_bit_and_another_differs(root, memory):
    loader = folder(root, memory, flip=True, crop=1).train_dataloader()
    first, again = samples(loader), samples(loader)
    loader.batch_sampler.sampler.set_epoch(1)
    other = samples(loader)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_two_workers_give_the_batches_that_one_gives_in_evaluation(root):
    alone = samples(folder(root, STREAMED, workers=1).test_dataloader())
    helped = samples(folder(root, STREAMED, workers=2).test_dataloader())
    assert torch.equal(alone[0], helped[0])
    assert torch.equal(alone[1], helped[1])


@BOTH
def test_the_global_random_state_is_left_alone(root, memory):
    loader = folder(root, memory).train_dataloader()
    before = torch.get_rng_state()
    samples(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_root_without_images_says_what_it_must_hold(tmp_path):
    with pytest.raises(LitPruneError, match=r"data\.root=.*train/<class>/ and test/<class>/"):
        ImageFolder(str(tmp_path)).setup("fit")


def test_splits_of_different_classes_are_an_error_that_names_one(root, tmp_path):
    for split, name in (("train", "cat"), ("test", "dog")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / name / "0.png")
    with pytest.raises(LitPruneError, match="differ in the class 'cat'"):
        ImageFolder(str(tmp_path)).setup("fit")
