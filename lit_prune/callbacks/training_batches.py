"""Training batches for scoring, read apart from training."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from lit_prune.probe import same_random_state

__all__ = ["training_batches"]


def training_batches(trainer: Trainer, count: int, seed: int) -> list[Any]:
    """Return the first ``count`` batches of the trainer's loaders, on its device.

    They are what ``training_step`` would get, hooks of the module and the data module included.
    Training does not miss a batch, or see another order or other random numbers, for it.
    """
    loaders = tree_map(_apart, trainer.train_dataloader)
    strategy = trainer.strategy
    with same_random_state(seed), _same_generators(loaders):
        found = islice(CombinedLoader(loaders, "max_size_cycle"), count)
        moved = [strategy.batch_to_device(batch, dataloader_idx=0) for batch, _, _ in found]
    return [strategy.precision_plugin.convert_input(batch) for batch in moved]


def _apart(loader: Any) -> Any:
    """Return a loader of the same batches that shares no worker processes with training."""
    if not isinstance(loader, DataLoader):
        return loader
    apart = copy(loader)
    apart._iterator = None
    return apart


@contextmanager
def _same_generators(loaders: Any) -> Iterator[None]:
    """Put back the generators that loaders and their samplers have of their own."""
    parts = ("sampler", "batch_sampler")
    owners = [o for x in tree_leaves(loaders) for o in (x, *(getattr(x, p, None) for p in parts))]
    found = [getattr(owner, "generator", None) for owner in owners]
    generators = [generator for generator in found if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
