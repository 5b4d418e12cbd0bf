"""Measure: what a pruned network still is, layer by layer: connections, dead units and FLOPs."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lit_prune.errors import MasksMismatch
from lit_prune.masks import LayerRow, Masks
from lit_prune.names import plain_name
from lit_prune.probe import undisturbed

__all__ = [
    "Flops",
    "LayerMeasure",
    "Measurement",
    "count_flops",
    "groupings",
    "measure",
    "unmeasured",
]


class LayerMeasure(NamedTuple):
    """One layer of a pruned network as a row of a table.

    What hangs on effective connections is None where these are not known.

    Attributes:
        name: the weight's name, as in the masks.
        shape: its shape.
        total: how many connections it has.
        kept: how many of them the masks keep.
        sparsity: the share that the masks prune: 1 - kept / total.
        effective: how many are kept and lie on a path of kept connections from input to output.
        dead_in: how many input channels (features, of a linear layer) have no effective connection.
        dead_out: how many output channels or features have none.
        flops: FLOPs of the dense layer, as :func:`count_flops` counts them.
        effective_flops: flops * effective / total, to the nearest integer.
    """

    name: str
    shape: tuple[int, ...]
    total: int
    kept: int
    sparsity: float
    effective: int | None
    dead_in: int | None
    dead_out: int | None
    flops: int | None
    effective_flops: int | None


class Flops(NamedTuple):
    """The FLOPs of one forward pass: by the weight that they are spent on, and all others."""

    by_weight: Mapping[str, int]
    other: int


@dataclass(frozen=True)
class Measurement:
    """A pruned network, measured: one row a layer, and what belongs to no layer.

    Attributes:
        layers: one row for every mask, in their order.
        other_flops: FLOPs that no prunable weight takes part in, such as the products of attention;
            pruning saves none of them.
    """

    layers: tuple[LayerMeasure, ...]
    other_flops: int | None

    def collapsed(self) -> list[str]:
        """Name the layers with no effective connection left, or none kept where that is unknown."""
        left = {
            row.name: row.kept if row.effective is None else row.effective for row in self.layers
        }
        return [name for name, number in left.items() if not number]

    def totals(self) -> dict[str, float | None]:
        """Return the sums over all layers, as they stand in a summary.

        The keys are ``effective_kept``, ``effective_sparsity``, ``effective_compression`` (``inf``
        when nothing is effective), ``flops`` of the dense network, ``effective_flops``, and
        ``other_flops``, which the two before include.
        """
        total = sum(row.total for row in self.layers)
        kept = _sum(row.effective for row in self.layers)
        other = self.other_flops
        effective_flops = _sum([other, *(row.effective_flops for row in self.layers)])
        return {
            "effective_kept": kept,
            "effective_sparsity": None if kept is None else (total - kept) / max(total, 1),
            "effective_compression": None if kept is None else total / kept if kept else math.inf,
            "effective_flops": effective_flops,
            "flops": _sum([other, *(row.flops for row in self.layers)]),
            "other_flops": other,
        }

    def plain(self) -> dict[str, Any]:
        """Return the measurement as lists and numbers, which a checkpoint may hold."""
        return {"layers": [list(row) for row in self.layers], "other_flops": self.other_flops}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Measurement":
        """Read what :meth:`plain` wrote."""
        rows = (LayerMeasure(*row) for row in plain["layers"])
        return cls(tuple(rows), plain["other_flops"])


def measure(
    model: nn.Module, masks: Masks, effective: Masks | None, inputs: tuple[Tensor, ...]
) -> Measurement:
    """Return how much of ``model`` its ``masks`` leave, layer by layer.

    The model is only looked at and comes back bit-identical.

    Args:
        model: any module.
        masks: what is kept.
        effective: what of it lies on a path from input to output; None where that is not known.
        inputs: what the model is called with, a batch of 1: FLOPs are those of these inputs.

    Raises:
        MasksMismatch: the masks are of another model, or the effective ones of other masks.

    Examples:
        >>> model = nn.Linear(3, 2)
        >>> masks = Masks({"weight": torch.tensor([[True, False, True], [False, False, False]])})
        >>> [row] = measure(model, masks, masks, (torch.ones(1, 3),)).layers
        >>> row.effective, row.dead_in, row.dead_out, row.flops, row.effective_flops
        (2, 1, 1, 12, 4)
    """
    if effective is not None and not effective <= masks:
        raise MasksMismatch("the effective masks keep connections that the masks prune")
    flops = count_flops(model, masks, inputs)
    counts = _effective_counts(model, effective) if effective is not None else {}
    rows = [
        _row(layer, flops.by_weight[layer.name], counts.get(layer.name)) for layer in masks.layers()
    ]
    return Measurement(tuple(rows), flops.other)


def unmeasured(masks: Masks) -> Measurement:
    """Return what is known of masks without running their model: the counts of the masks."""
    rows = (LayerMeasure(*layer, None, None, None, None, None) for layer in masks.layers())
    return Measurement(tuple(rows), None)


def count_flops(model: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> Flops:
    """Return the FLOPs of one dense forward pass in eval mode, by the masked weight they belong to.

    Counted are the matrix products, convolutions and attentions that PyTorch's ``FlopCounterMode``
    counts, by its formulas: a multiplication and its addition are 2 FLOPs, products with padding
    count, and biases, norms, activations and pooling are free. All parts sum to its total. Neither
    sees what is no such operator (recurrent layers, matrix times vector), and this one does not see
    into the branches of ``torch.cond``.

    A product belongs to the weight that goes into it: as it is, as a view, or as a tensor computed
    from parameters and buffers alone (a cast, a normalised weight). If several go in, as when they
    are concatenated, they share it in proportion to their sizes. A weight that is used more than
    once, by calls or by ties, gets the sum of its uses, and one that is not used gets 0.

    Raises:
        MasksMismatch: the masks are of another model.
    """
    with undisturbed(model, seed=0), _in_plain_steps(), torch.no_grad():
        model.eval()
        with _FlopsByWeight(model, masks.parameters(model)) as counter:
            model(*(x.clone() for x in inputs))
    return Flops(counter.by_weight, counter.other)


def _row(layer: LayerRow, flops: int, counts: tuple[int, int, int] | None) -> LayerMeasure:
    if counts is None:
        return LayerMeasure(*layer, None, None, None, flops, None)
    effective = counts[0]
    return LayerMeasure(*layer, *counts, flops, round(flops * effective / max(layer.total, 1)))


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _effective_counts(model: nn.Module, effective: Masks) -> dict[str, tuple[int, int, int]]:
    """Return how many connections, dead inputs and dead outputs each layer has."""
    groups = groupings(model)
    counts = [
        torch.stack([mask.count_nonzero(), *_dead_units(mask, *groups.get(name, (1, False)))])
        for name, mask in effective.items()
    ]
    # One transfer for all layers, not one for each.
    found = torch.stack([count.to(counts[0].device) for count in counts]).tolist()
    return {name: (kept, i, o) for name, (kept, i, o) in zip(effective, found, strict=True)}


def groupings(model: nn.Module) -> dict[str, tuple[int, bool]]:
    """Return the groups of every convolution, by its weight's name, and whether it is transposed.

    Weights have the shape (out, in / groups, ...), of transposed convolutions (in, out / groups,
    ...): the rows of a group are joined with the columns of the same group.
    """
    return {
        plain_name(f"{prefix}.weight".lstrip(".")): (module.groups, module.transposed)
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _ConvNd)
    }


def _dead_units(mask: Tensor, groups: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """Count the inputs, then the outputs, that no connection is kept of."""
    joined = mask.flatten(2).any(2) if mask.dim() > 2 else mask
    rows = joined.any(1)
    columns = joined.unflatten(0, (groups, -1)).any(1)
    dead_rows, dead_columns = (~rows).sum(), (~columns).sum()
    return (dead_rows, dead_columns) if transposed else (dead_columns, dead_rows)


class _FlopsByWeight(TorchDispatchMode):
    """Adds up the FLOPs of everything that runs inside.

    ``_origins`` maps the storage of every tensor that depends on no input to the names of the
    weights that it was computed from. The storage is held, so that no other takes its place.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.by_weight = dict.fromkeys(weights, 0)
        self.other = 0
        self._sizes = {name: weight.numel() for name, weight in weights.items()}
        self._origins: dict[int, tuple[Any, frozenset[str]]] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._note(tensor, frozenset())
        for name, weight in weights.items():
            self._note(weight, frozenset({name}))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = getattr(function, "_overloadpacket", function)
        if operation not in flop_registry and hasattr(function, "decompose"):
            with self:
                output = function.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = function(*args, **kwargs)
        origins = [self._origin(tensor) for tensor in _tensors((args, kwargs))]
        formula = flop_registry.get(operation)
        if formula is not None:
            self._spend(formula(*args, **kwargs, out_val=output), origins)
        # What a product yields is an activation, even where all that goes in is constant.
        is_constant = formula is None and None not in origins
        names = _union(origins) if is_constant else None
        for tensor in _tensors(output):
            self._note(tensor, names)
        return output

    def _spend(self, flops: int, origins: list[frozenset[str] | None]) -> None:
        names = _union(origins)
        size = sum(self._sizes[name] for name in names)
        shares = {name: flops * self._sizes[name] // max(size, 1) for name in names}
        for name, share in shares.items():
            self.by_weight[name] += share
        self.other += flops - sum(shares.values())

    def _origin(self, tensor: Tensor) -> frozenset[str] | None:
        storage = _storage(tensor)
        return None if storage is None else self._origins.get(storage._cdata, (None, None))[1]

    def _note(self, tensor: Tensor, names: frozenset[str] | None) -> None:
        storage = _storage(tensor)
        if storage is not None and names is not None:
            self._origins[storage._cdata] = (storage, names)
        elif storage is not None:
            self._origins.pop(storage._cdata, None)


def _union(origins: list[frozenset[str] | None]) -> frozenset[str]:
    return frozenset(name for names in origins for name in names or ())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except NotImplementedError:  # a sparse tensor, for one, has none
        return None


@contextmanager
def _in_plain_steps() -> Iterator[None]:
    """Run without compiled functions and without the fused attention, which hide the products."""
    was_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fused)
