"""Lightning with all of ours on, against a bare PyTorch loop over the same tensors.

LeNet-300-100, batches of 100 of 60,000 random images of MNIST's shape, SGD with momentum and
decay, at 100x. Ours is what train.py runs: logging, progress bar, masks, seeds, checkpoints.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from benchmarks.clock import table
from lit_prune import LitClassifier, MaskManager
from lit_prune.backbones import LeNet300100
from lit_prune.cli import make_trainer, quiet
from lit_prune.criteria import Random
from lit_prune.data.batches import Images
from lit_prune.data.images import ImagesInMemory
from lit_prune.run import RunFolder

TURNS, EPOCHS = 5, 2


class Noise(ImagesInMemory):
    """Random images of MNIST's shape."""

    def read(self, train: bool) -> Images:
        count = 60_000 if train else 1_000
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return Images(images, torch.randint(10, (count,), generator=generator))


class Stopwatch(Callback):
    """Times the epochs alone, without start-up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, *args: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


def bare(images: torch.Tensor, labels: torch.Tensor) -> float:
    model = LeNet300100()
    sgd = optimizer(model.parameters())
    start = time.perf_counter()
    order = torch.randperm(len(images))
    for index in order.split(100):
        sgd.zero_grad()
        F.cross_entropy(model(images[index]), labels[index]).backward()
        sgd.step()
    return time.perf_counter() - start


def ours(data: Noise, bar: bool) -> float:
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "max_epochs": EPOCHS,
            "enable_progress_bar": bar,
            "callbacks": [watch],
            "accelerator": "cpu",
        }
        trainer = make_trainer(settings, MaskManager(Random(), "100x"), RunFolder(Path(folder)))
        trainer.fit(LitClassifier(LeNet300100(), optimizer), datamodule=data)
    return min(watch.seconds)


def main() -> None:
    quiet()
    data = Noise(val_fraction=0)
    data.setup("fit")
    floats = data.read(train=True)
    images = floats.images.float().sub(127.5).div(74.0)
    seconds: dict[str, list[float]] = {"bare loop": [], "lit_prune": []}
    for _ in range(TURNS):
        seconds["bare loop"].append(min(bare(images, floats.labels) for _ in range(EPOCHS)))
        seconds["lit_prune"].append(ours(data, bar=True))
    best = {name: min(times) for name, times in seconds.items()}
    rows = [("", "steps/s", "relative")]
    for name, value in best.items():
        rows.append((name, f"{600 / value:.0f}", f"{best['bare loop'] / value:.2f}"))
    table("Training LeNet-300-100, batch 100 (at least 0.65 wanted)", rows)


if __name__ == "__main__":
    main()
