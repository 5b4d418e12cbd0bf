"""Every recipe runs with every method file, on small generated data of the right shape."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_prune import criteria
from lit_prune.cli import main
from lit_prune.criteria import Criterion
from lit_prune.data.batches import Images
from lit_prune.data.cifar import CIFAR10, CIFAR100
from lit_prune.data.mnist import MNIST
from lit_prune.shelf import members

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted((ROOT / "configs" / "methods").glob("*.yaml"))
OTHERS = {"mnist_lenet300100_short", "mnist_lenet300100_imp"}
RECIPES = sorted(p for p in (ROOT / "configs").glob("*_*.yaml") if p.stem not in OTHERS)
QUICK = {"mnist_lenet300100", "cifar10_lenet5"}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
# These differ from another recipe by their training and data alone: one method will do.
WITH_ONE_METHOD = {"cifar10_resnet20_short"}
FOLDERS = {"tinyimagenet": 200, "imagenet": 10, "cifar10_resnet20_short": 10}


def generated(classes, shape, count=24):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), generator=draw, dtype=torch.uint8)
    return Images(images, torch.arange(count) % classes)


@pytest.fixture(scope="session")
def root_of(tmp_path_factory):
    """Folders of generated files, written when they are asked for."""
    written = {}

    def root(dataset):
        if dataset not in written:
            written[dataset] = tmp_path_factory.mktemp(dataset)
            if dataset in FOLDERS:
                _write_folders(written[dataset], FOLDERS[dataset])
            if dataset == "har":
                _write_har(written[dataset])
        return written[dataset]

    return root


def _write_folders(root, classes):
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(classes):
            folder = root / split / f"n{number:08}"
            folder.mkdir(parents=True)
            pixels = draw.integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "image.png")


def _write_har(root):
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        signals = root / "UCI HAR Dataset" / split / "Inertial Signals"
        signals.mkdir(parents=True)
        for kind in ("body_acc", "body_gyro", "total_acc"):
            for axis in "xyz":
                np.savetxt(signals / f"{kind}_{axis}_{split}.txt", draw.normal(size=(12, 128)))
        np.savetxt(signals.parent / f"y_{split}.txt", np.arange(12) % 6 + 1, fmt="%d")


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    for kind, classes, shape in ((MNIST, 10, (1, 28, 28)), (CIFAR10, 10, (3, 32, 32))):
        monkeypatch.setattr(kind, "read", lambda self, train, c=classes, s=shape: generated(c, s))
    monkeypatch.setattr(CIFAR100, "read", lambda self, train: generated(100, (3, 32, 32)))


def pairs():
    for recipe in RECIPES:
        marks = [] if recipe.stem in QUICK else [pytest.mark.slow]
        for method in METHODS[-1:] if recipe.stem in WITH_ONE_METHOD else METHODS:
            yield pytest.param(recipe, method, id=f"{recipe.stem}-{method.stem}", marks=marks)


@pytest.mark.parametrize(("recipe", "method"), list(pairs()))
def test_a_recipe_runs_with_a_method(recipe, method, root_of, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py"])
    run = tmp_path / "run"
    batch = "2" if recipe.stem == "imagenet_resnet50" else "6"
    options = {
        "--config": [recipe, method],
        "--data.root": [
            root_of(recipe.stem if recipe.stem in FOLDERS else recipe.stem.partition("_")[0])
        ],
        "--data.batch_size": [batch],
        "--run_dir": [run],
        "--trainer.max_epochs": ["1"],
        "--trainer.limit_train_batches": ["2"],
        "--trainer.limit_test_batches": ["1"],
        "--trainer.enable_checkpointing": ["false"],
        "--trainer.accelerator": ["cpu"],
        "--pruning.target": ["10x"],
        # Two rounds of an iterated method may leave no path.
        "--pruning.allow_collapse": ["true"],
    }
    if recipe.parent / "methods" / "npb_synflow.yaml" != method:
        options["--pruning.rounds"] = ["2"]
    else:
        options["--pruning.rounds"] = ["4"]
    if recipe.stem == "imagenet_resnet50":
        options["--model.backbone.init_args.num_classes"] = [str(FOLDERS["imagenet"])]
    args = [str(part) for key, values in options.items() for v in values for part in (key, v)]
    assert main(args) == 0
    summary = json.loads((run / "summary.json").read_text())
    wanted = -(-summary["total"] // 10)
    assert summary["epochs"] == 1
    if method.stem == "l1_filter":
        assert wanted <= summary["kept"] < 1.3 * wanted
    else:
        assert summary["kept"] in (wanted, wanted - 1)
    assert summary["effective_kept"] <= summary["kept"]


def test_every_criterion_has_a_method_file():
    named = " ".join(path.read_text() for path in METHODS)
    for name in members(criteria.__name__, criteria.__path__, Criterion):
        if name != "SameQuotaRandom":  # random_snip and random_synflow are this, as a quota
            assert f"class_path: {name}\n" in named
