"""What holding the masks costs: steps with the mask manager against the same steps without."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from benchmarks.clock import table
from lit_prune import LitClassifier, MaskManager
from lit_prune.backbones import LeNet300100
from lit_prune.cli import quiet
from lit_prune.criteria import Random


class Steps(Callback):
    """Times every step after the first few."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step > 3:
            self.seconds.append(time.perf_counter() - self.start)


def seconds_of_steps(
    model: nn.Module, shape: tuple[int, ...], steps: int, masked: bool
) -> list[float]:
    watch = Steps()
    count = shape[0] * min(steps, 100)  # an epoch of many steps, as in life
    data = TensorDataset(torch.randn(count, *shape[1:]), torch.randint(10, (count,)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            callbacks=[watch, *([MaskManager(Random(), "100x")] if masked else [])],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            default_root_dir=Path(folder),
        )
        trainer.fit(LitClassifier(model), DataLoader(data, batch_size=shape[0]))
    return watch.seconds


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure(
    name: str, make: Any, shape: tuple[int, ...], steps: int, turns: int
) -> tuple[str, ...]:
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(turns):
        for masked in times:
            times[masked] += seconds_of_steps(make(), shape, steps, masked)
    plain, held = median(times[False]), median(times[True])
    return name, f"{1e3 * plain:.2f}", f"{1e3 * held:.2f}", f"{held / plain:.3f}"


def main() -> None:
    quiet()
    rows = [
        ("", "plain ms", "masked ms", "ratio"),
        measure("LeNet-300-100, batch 100 (<= 1.15)", LeNet300100, (100, 784), 400, 7),
        measure(
            "ResNet-18 32x32, batch 128 (<= 1.05)",
            lambda: resnet18(num_classes=10),
            (128, 3, 32, 32),
            10,
            4,
        ),
    ]
    table("A training step with the mask manager", rows)


if __name__ == "__main__":
    main()
