"""Ranks: the processes that prune one network together, each on its own share of the data."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_prune.errors import LitPruneError, RanksDiffer

__all__ = ["ALONE", "Alone", "DistributedRanks", "Ranks"]


class Ranks(ABC):
    """What a criterion and the spine need to know of the processes that prune together.

    All ranks call the same methods in the same order, with tensors of the same shapes. Nothing is
    looked up: whoever prunes on many ranks passes the object, so that pruning on one of them alone
    waits for nobody.
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """How many there are."""

    @abstractmethod
    def mean(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the averages over all ranks, of the same bits on each.

        All ranks weigh the same, since their batches are of the same number and size.
        """

    @abstractmethod
    def sum(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the sums over all ranks, of the same bits on each."""

    @abstractmethod
    def first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return rank 0's tensors."""

    @abstractmethod
    def in_step(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Return this rank's batches, of which every rank must have as many.

        Raises:
            LitPruneError: while they are read, on all ranks, if some have one more than others.
        """

    @abstractmethod
    def require_same(self, masks: Mapping[str, Tensor]) -> None:
        """Check that all ranks hold the same masks, by a hash of each layer.

        Raises:
            RanksDiffer: on all ranks, if two differ; the first layer that does is named.
        """


@dataclass(frozen=True)
class Alone(Ranks):
    """One process: there is nothing to agree on, and everything is as it came."""

    @property
    def count(self) -> int:
        """One."""
        return 1

    def mean(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the tensors."""
        return list(tensors)

    def sum(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the tensors."""
        return list(tensors)

    def first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors."""
        return dict(tensors)

    def in_step(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Return the batches."""
        return batches

    def require_same(self, masks: Mapping[str, Tensor]) -> None:
        """Do nothing."""


ALONE = Alone()


@dataclass(frozen=True)
class DistributedRanks(Ranks):
    """The processes of a group of ``torch.distributed``, which is initialized already.

    Args:
        group: whose processes; None is all of them.
        device: where tensors travel: NCCL carries those of a GPU only. None is where they are.
    """

    group: dist.ProcessGroup | None = None
    device: torch.device | None = None

    @property
    def count(self) -> int:
        """The size of the group."""
        return dist.get_world_size(self.group)

    def mean(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the averages; those of half precision are taken in float32."""
        return [self._total(tensor, 1 / self.count) for tensor in tensors]

    def sum(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the sums; those of half precision are taken in float32."""
        return [self._total(tensor, 1) for tensor in tensors]

    def first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return rank 0's tensors, each on the device of this rank's own."""
        return {
            name: self._from_first(self._ready(x, x.dtype)).to(x.device)
            for name, x in tensors.items()
        }

    def in_step(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Return this rank's batches; before each one the ranks ask whether all have it."""
        return _InStep(self, batches)

    def require_same(self, masks: Mapping[str, Tensor]) -> None:
        """Compare the masks with those of rank 0."""
        everywhere = self.gathered({name: _fingerprint(mask) for name, mask in masks.items()})
        for layer in dict.fromkeys(chain(*everywhere)):
            known = everywhere[0].get(layer)
            for rank, prints in enumerate(everywhere):
                if prints.get(layer) != known:
                    raise RanksDiffer(
                        f"the masks of {layer} differ between rank 0 and rank {rank}: mostly one "
                        "reads another file of masks there, has other settings, or a quota that "
                        "is not the same everywhere"
                    )

    def gathered(self, value: Any) -> list[Any]:
        """Return what each rank gave, rank 0's first."""
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, self.group)
        return values

    def _total(self, tensor: Tensor, share: float) -> Tensor:
        """Return the sum of ``share`` of each rank's tensor."""
        wide = tensor.dtype if tensor.dtype.itemsize > 2 else torch.float32
        total = self._ready(tensor, wide)
        if share != 1:
            # Before the sum, which might be out of range where the mean is not.
            total *= share
        if total.numel():
            dist.all_reduce(total, group=self.group)
        # Ranks may add in other orders; the last bits must not tell.
        return self._from_first(total).to(tensor.device, tensor.dtype)

    def _from_first(self, tensor: Tensor) -> Tensor:
        """Return the tensor with rank 0's values, in place."""
        if tensor.numel():
            dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def _ready(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a copy that may travel."""
        device = tensor.device if self.device is None else self.device
        form = torch.contiguous_format
        return tensor.detach().to(device, dtype, copy=True, memory_format=form)


@dataclass(frozen=True)
class _InStep:
    """Batches that all ranks read together, so that none waits for another's next one."""

    ranks: DistributedRanks
    batches: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        end = object()
        batches = iter(self.batches)
        for number in range(2**63):
            batch = next(batches, end)
            have = self.ranks.gathered(batch is not end)
            if not any(have):
                return
            if not all(have):
                raise LitPruneError(
                    f"the ranks have different numbers of batches: rank {have.index(False)} has "
                    f"{number}, and rank {have.index(True)} more; give every rank as many"
                )
            yield batch


def _fingerprint(mask: Tensor) -> str:
    """Return what tells a mask from others: its shape and a hash of its values."""
    values = mask.contiguous().cpu().numpy().tobytes()
    return f"{tuple(mask.shape)} {hashlib.sha256(values).hexdigest()}"
