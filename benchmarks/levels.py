"""What a level of iterative pruning costs besides its training: prune, rewind, measure, write."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.clock import table
from lit_prune import LitClassifier, MaskManager
from lit_prune.backbones import ResNet18
from lit_prune.callbacks import Levels
from lit_prune.callbacks.scoring import Scoring
from lit_prune.callbacks.under_way import UnderWay
from lit_prune.cli import quiet
from lit_prune.criteria import Magnitude
from lit_prune.schedules import Iterative

LEVELS = 5
PARTS = {
    "scoring": (Scoring, "pruned"),
    "effective masks and FLOPs": (Scoring, "measured"),
    "snapshot": (UnderWay, "remember"),
    "rewind": (UnderWay, "rewind_weights"),
    "row and masks": (Levels, "_end_level"),
    "all at a level's start": (MaskManager, "on_train_epoch_start"),
}


@contextmanager
def timed(seconds: dict[str, list[float]]) -> Iterator[None]:
    """Note how long each part takes whenever it is done."""

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def run(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                seconds[name].append(time.perf_counter() - start)

        return run

    with ExitStack() as stack:
        for name, (owner, method) in PARTS.items():
            patched = watched(name, getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, patched))
        yield


def main() -> None:
    quiet()
    seconds: dict[str, list[float]] = defaultdict(list)
    data = TensorDataset(torch.randn(64, 3, 32, 32), torch.randint(10, (64,)))
    with tempfile.TemporaryDirectory() as folder, timed(seconds):
        schedule = Iterative(LEVELS, 1, share=0.2)
        trainer = Trainer(
            max_epochs=-1,
            callbacks=[MaskManager(Magnitude(), schedule=schedule), Levels(folder)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            default_root_dir=Path(folder),
        )
        trainer.fit(LitClassifier(ResNet18()), DataLoader(data, batch_size=32))
    assert len(seconds["scoring"]) == LEVELS
    # The first epoch prunes nothing, and its start takes the snapshot.
    starts = seconds["all at a level's start"][1:]
    rest = [a - b for a, b in zip(starts, seconds["scoring"], strict=True)]
    writes = seconds["row and masks"][1:]
    own = statistics.median(a + b for a, b in zip(rest, writes, strict=True))
    rows = [(name, f"{statistics.median(seconds[name]):.2f}") for name in PARTS]
    rows += [("a level's own cost, without scoring (<= 2)", f"{own:.2f}")]
    table("A level of ResNet-18, 32x32, in seconds", [("", "median"), *rows])


if __name__ == "__main__":
    main()
