"""Training batches for scoring, read apart from training."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from lit_prune.probe import same_random_state

__all__ = ["TrainingBatches"]


class TrainingBatches:
    """Training batches for scoring, so many in each round: further ones every time.

    They are what ``training_step`` would get, hooks of the module and the data module included, on
    the trainer's device. Training does not miss a batch, or see another order or other random
    numbers, for it. When the loaders are at their end, they start again; no round has a batch
    twice. Asked for an earlier round, they start anew and give the same batches.

    Each of many processes reads its own share, as in training. They may have one seed: what they
    draw by it, such as augmentations, meets other samples on each.

    Args:
        trainer: whose loaders are read.
        count: how many batches a round has; fewer where there are no more.
        seed: of the random numbers of the loaders; each round has its own.
    """

    def __init__(self, trainer: Trainer, count: int, seed: int) -> None:
        self._trainer = trainer
        self._count = count
        self._seed = seed
        self._next = 0
        self._loaders = tree_map(_apart, trainer.train_dataloader)
        self._stream: Iterator[Any] = iter(())
        self._states: list[Tensor] = []

    def __call__(self, turn: int = 0) -> list[Any]:
        """Return the batches of round ``turn``, from 0 on."""
        if turn < self._next:
            self._next, self._stream, self._states = 0, iter(()), []
        while self._next < turn:
            self._read()
        return self._read()

    def _read(self) -> list[Any]:
        seed = (self._seed + self._next) % 2**63
        with same_random_state(seed), self._own_generators():
            batches = list(islice(self._stream, self._count))
            if len(batches) < self._count:
                self._stream = _read_from_start(self._trainer, self._loaders)
                batches += islice(self._stream, self._count - len(batches))
        self._next += 1
        return batches

    def close(self) -> None:
        """End the worker processes that read the batches."""
        self._stream = iter(())

    @contextmanager
    def _own_generators(self) -> Iterator[None]:
        """Let the loaders' generators go on where the last round left them, and training's not."""
        with _same_generators(self._loaders) as generators:
            for generator, state in zip(generators, self._states, strict=False):
                generator.set_state(state)
            yield
            self._states = [generator.get_state() for generator in generators]


def _read_from_start(trainer: Trainer, loaders: Any) -> Iterator[Any]:
    """Yield one pass of batches; worker processes end with whoever holds this."""
    strategy, combined = trainer.strategy, trainer.fit_loop._combined_loader
    mode = "max_size_cycle" if combined is None else combined._mode
    for batch, _, _ in CombinedLoader(loaders, mode):
        # In the order of Lightning's own loop.
        converted = strategy.precision_plugin.convert_input(batch)
        ready = trainer.lightning_module._on_before_batch_transfer(converted)
        yield strategy.batch_to_device(ready, dataloader_idx=0)


def _apart(loader: Any) -> Any:
    """Return a loader of the same batches that shares no worker processes with training."""
    if not isinstance(loader, DataLoader):
        return loader
    apart = copy(loader)
    apart._iterator = None
    # Workers that stay would not draw a seed of each round; a loader guards the attribute.
    vars(apart)["persistent_workers"] = False
    return apart


@contextmanager
def _same_generators(loaders: Any) -> Iterator[list[torch.Generator]]:
    """Put back the generators that loaders and their samplers have of their own."""
    parts = ("sampler", "batch_sampler")
    owners = [o for x in tree_leaves(loaders) for o in (x, *(getattr(x, p, None) for p in parts))]
    found = [getattr(owner, "generator", None) for owner in owners]
    generators = [generator for generator in found if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
