"""Masks: which connections are kept, and the algebra of that."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lit_prune.errors import LitPruneError, MasksMismatch, UnreadableFile
from lit_prune.files import write_whole
from lit_prune.names import plain_name
from lit_prune.prunable import Patterns, prunable

__all__ = ["LayerRow", "Masks", "bits_of", "zero_pruned_"]


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(mask: Tensor) -> Tensor:
    """Return ``mask`` as integers: all bits set where kept, none where pruned."""
    return mask.view(torch.int8).neg()


def zero_pruned_(tensor: Tensor, bits: Tensor) -> Tensor:
    """Set ``tensor`` to zero in place where ``bits`` (of :func:`bits_of`) are zero.

    Anding the bits fills whatever stands there, infinities and NaN included, which a product would
    turn into NaN; and it is ten times as fast as ``masked_fill_`` on a CPU.
    """
    tensor.view(_INTEGERS[tensor.dtype.itemsize]).bitwise_and_(bits)
    return tensor


class LayerRow(NamedTuple):
    """One layer of a network as a row of a table."""

    name: str
    shape: tuple[int, ...]
    total: int
    kept: int
    sparsity: float


class Masks(Mapping[str, Tensor]):
    """A frozen mapping from parameter names to bool tensors: True is kept, False is pruned.

    ``masks & other`` keeps what both keep; ``masks <= other`` says whether other keeps all of it.

    Args:
        tensors: one bool tensor of the parameter's shape for every prunable parameter.

    Raises:
        LitPruneError: nothing is given, or a value is not a bool tensor.

    Examples:
        >>> masks = Masks({"fc.weight": torch.tensor([[True, False], [False, False]])})
        >>> masks.kept, masks.total, masks.sparsity, masks.compression
        (1, 4, 0.75, 4.0)
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            raise LitPruneError("masks of no parameter at all: the model has nothing to prune")
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
                kind = getattr(tensor, "dtype", type(tensor).__name__)
                raise LitPruneError(f"a mask is a bool tensor, but {name} is {kind}")
        self._tensors = dict(tensors)

    @classmethod
    def dense(cls, model: nn.Module, include: Patterns = None, exclude: Patterns = None) -> "Masks":
        """Return masks that keep every prunable connection.

        Args:
            model: whose connections; a name in the masks is that of its parameter.
            include: name pattern or patterns of what may be pruned; None is what :func:`prunable`
                takes by itself.
            exclude: pattern or patterns of what may not.
        """
        weights = prunable(model, include, exclude)
        return cls({n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Masks(kept={self.kept} of {self.total}, layers={len(self)})"

    @property
    def total(self) -> int:
        """The number of prunable connections."""
        return sum(mask.numel() for mask in self.values())

    @property
    def kept(self) -> int:
        """The number of connections that are kept."""
        return sum(self._kept_by_layer())

    @property
    def density(self) -> float:
        """The share of connections that are kept: kept / total."""
        return self.kept / self.total

    @property
    def sparsity(self) -> float:
        """The share of connections that are pruned: 1 - kept / total."""
        return (self.total - self.kept) / self.total

    @property
    def compression(self) -> float:
        """Total / kept, or ``inf`` when nothing is kept."""
        kept = self.kept
        return self.total / kept if kept else math.inf

    def layers(self) -> list[LayerRow]:
        """Return one row a layer, in order: name, shape, total, kept, sparsity."""
        rows = zip(self.items(), self._kept_by_layer(), strict=True)
        return [
            LayerRow(name, tuple(mask.shape), n := mask.numel(), kept, (n - kept) / max(n, 1))
            for (name, mask), kept in rows
        ]

    def _kept_by_layer(self) -> list[int]:
        if all(mask.device.type == "cpu" for mask in self.values()):
            # Three times as fast as torch's count_nonzero.
            return [int(np.count_nonzero(mask.numpy())) for mask in self.values()]
        # One transfer for all layers, not one for each.
        counts = [torch.count_nonzero(mask) for mask in self.values()]
        return [int(count) for count in torch.stack(counts).tolist()]

    def __and__(self, other: "Masks") -> "Masks":
        self._require_same_layers(other)
        return Masks({n: mask & other[n].to(mask.device) for n, mask in self.items()})

    def __le__(self, other: "Masks") -> bool:
        self._require_same_layers(other)
        return not any(bool((mask & ~other[n].to(mask.device)).any()) for n, mask in self.items())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.keys() == other.keys() and all(
            torch.equal(mask, other[n].to(mask.device)) for n, mask in self.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def to(self, device: torch.device | str) -> "Masks":
        """Return the same masks on another device."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def relative_to(self, prefix: str) -> "Masks":
        """Return the masks of the submodule ``prefix`` alone, under its own parameter names.

        Examples:
            >>> masks = Masks({"backbone.fc.weight": torch.ones(2, 2, dtype=torch.bool)})
            >>> list(masks.relative_to("backbone"))
            ['fc.weight']
        """
        start = prefix.removesuffix(".") + "."
        inside = {n.removeprefix(start): m for n, m in self.items() if n.startswith(start)}
        if not inside:
            raise MasksMismatch(f"no mask lies under {prefix!r}; there are {_some(list(self))}")
        return Masks(inside)

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters of ``model`` that these masks belong to, by the masks' names.

        Raises:
            MasksMismatch: a name is missing in the model or has another shape there.
        """
        everything = model.named_parameters(remove_duplicate=False)
        known = {plain_name(name): weight for name, weight in everything}
        problems = _differences(self, known)
        if problems:
            raise MasksMismatch(f"these masks are of another model: {problems}")
        return {name: known[name] for name in self}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every pruned weight of ``model`` to zero, in place.

        Raises:
            MasksMismatch: the masks are of another model; nothing is changed then.
        """
        for name, weight in self.parameters(model).items():
            zero_pruned_(weight, bits_of(self[name].to(weight.device)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the masks to ``path`` as safetensors; the file appears whole or not at all.

        The metadata keep the order of the layers, which safetensors sorts by name.
        """
        tensors = {n: mask.clone(memory_format=torch.contiguous_format) for n, mask in self.items()}
        write_whole(path, save(tensors, metadata={"order": json.dumps(list(self))}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Masks":
        """Read masks that :meth:`save` wrote.

        Raises:
            UnreadableFile: there is no such file, it is cut, or it holds no masks.
        """
        if not Path(path).is_file():
            raise UnreadableFile(f"no masks at {path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                order = json.loads((file.metadata() or {}).get("order", "[]"))
                names = order if set(order) == set(file.keys()) else file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, ValueError, TypeError) as error:
            raise UnreadableFile(
                f"{path} is cut, damaged or no safetensors file: {error}"
            ) from error
        for name, tensor in tensors.items():
            if tensor.dtype != torch.bool:
                raise UnreadableFile(f"{path} holds no masks: {name} is {tensor.dtype}, not bool")
        if not tensors:
            raise UnreadableFile(f"{path} holds no masks: it is empty")
        return cls(tensors)

    def _require_same_layers(self, other: "Masks") -> None:
        problems = _differences(self, other) or _differences(other, self)
        if problems:
            raise MasksMismatch(f"these masks are of different models: {problems}")


def _differences(masks: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> str:
    missing = [name for name in masks if name not in known]
    if missing:
        prefixed = next((k for k in known if k.endswith(f".{missing[0]}")), None)
        shorter = next((k for k in known if missing[0].endswith(f".{k}")), None)
        hint = ""
        if prefixed:
            hint = f" (it has {prefixed})"
        elif shorter:
            hint = (
                f" (it has {shorter}: use relative_to({missing[0].removesuffix('.' + shorter)!r}))"
            )
        return f"no {_some(missing)} in the other{hint}"
    reshaped = [n for n in masks if masks[n].shape != known[n].shape]
    return "; ".join(
        f"{n} is {tuple(masks[n].shape)} here and {tuple(known[n].shape)} there"
        for n in reshaped[:3]
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
