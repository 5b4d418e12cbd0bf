"""Order: which samples make which batch, derived from (seed, epoch, rank)."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Order"]


class Order:
    """The batches of an epoch, as indices.

    Shuffled, every rank gets as many batches as any other, and the first few samples serve twice
    where the ranks do not divide the total. Unshuffled, each sample is seen by exactly one rank.

    Args:
        total: the number of samples.
        batch_size: samples a batch on this rank. The last batch may be smaller; shuffled, a last
            batch of one sample, which batch norm cannot take, is joined to the one before.
        shuffle: a new order each epoch, else the order of the data.
        seed: what the order derives from, equal on all ranks.
        rank: of this process.
        ranks: how many processes there are.
    """

    def __init__(
        self,
        total: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._total, self._batch_size = total, batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._rank, self._ranks = rank, ranks
        self._epoch = 0

    @property
    def sampler(self) -> "Order":
        """Itself: Lightning sets the epoch of a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration belongs to."""
        self._epoch = epoch

    def generator(self) -> torch.Generator:
        """Return a source of random numbers for this epoch and rank alone."""
        return torch.Generator().manual_seed(self._seed_of_epoch() + self._rank + 1)

    def __len__(self) -> int:
        return len(self._bounds()) - 1

    def __iter__(self) -> Iterator[Tensor]:
        samples = self._everything()[self._rank :: self._ranks]
        bounds = self._bounds()
        for start, end in pairwise(bounds):
            yield samples[start:end]

    def _everything(self) -> Tensor:
        if not self._shuffle:
            return torch.arange(self._total)
        generator = torch.Generator().manual_seed(self._seed_of_epoch())
        order = torch.randperm(self._total, generator=generator)
        seen = self._total + -self._total % self._ranks
        return order[torch.arange(seen) % self._total]

    def _bounds(self) -> list[int]:
        seen = self._total + (-self._total % self._ranks if self._shuffle else 0)
        share = len(range(self._rank, seen, self._ranks))
        bounds = [*range(0, share, self._batch_size), share]
        if self._shuffle and len(bounds) > 2 and share - bounds[-2] == 1:
            del bounds[-2]
        return bounds

    def _seed_of_epoch(self) -> int:
        # Large steps, so that the seeds of neighbouring runs, epochs and ranks never meet.
        return (self._seed * 1_000_003 + self._epoch * 10_007) % 2**62
