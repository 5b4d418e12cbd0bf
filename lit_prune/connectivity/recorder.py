"""Recorder: runs a module once and writes down what its operations connect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from lit_prune.connectivity.rule import Wire, out_names, rule_of
from lit_prune.connectivity.wiring import (
    Copies,
    Signal,
    Step,
    UnsupportedOp,
    Weight,
    Wiring,
)
from lit_prune.errors import LitPruneError, first_line

__all__ = ["no_fast_attention", "record"]


def record(model: nn.Module, inputs: tuple[Any, ...], weights: dict[str, nn.Parameter]) -> Wiring:
    """Run ``model`` on ``inputs`` and return its wiring.

    The operations run as ever, on their own numbers, whatever Python decides in between; they are
    noted as they pass PyTorch's dispatcher, below autograd and before any of them is taken apart.

    Raises:
        UnsupportedOp: an operation has no rule; its name, shapes and module are named.
    """
    recorder = _Recorder(model, weights)
    marked = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    with (
        torch.no_grad(),
        torch._C._AutoDispatchBelowAutograd(),
        no_fast_attention(),
        # A cast from autocast's cache would be no part of a weight.
        torch.autocast(next(iter(weights.values())).device.type, enabled=False),
        recorder.modules(),
    ):
        # Marked on copies, since the model may be given one tensor twice, and may write to it.
        aliases = {id(x): x.detach().clone() for x in marked}
        signals = tuple(recorder.mark(x) for x in aliases.values())
        given = tree_map_only(Tensor, lambda x: aliases[id(x)], inputs)
        with recorder:
            result = _run(model, given)
        ends = dict.fromkeys(recorder.signal(x) for x in _tensors(result))
        ends.pop(None, None)
    recorder.require_read()
    if not ends:
        raise LitPruneError(
            f"no output of {type(model).__name__} depends on its input; numbers that leave PyTorch "
            f"(numpy, tolist) are not followed"
        )
    return Wiring(
        device=next(iter(weights.values())).device,
        weights={name: weight.shape for name, weight in weights.items()},
        strides={name: weight.stride() for name, weight in weights.items()},
        inputs=signals,
        outputs=tuple(signal for signal in ends if signal is not None),
        steps=recorder.steps,
    ).without_dead_ends()


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    try:
        return model(*inputs)
    except LitPruneError:
        raise
    except Exception as error:
        given = ", ".join(str(tuple(x.shape)) for x in tree_leaves(inputs))
        raise LitPruneError(
            f"{type(model).__name__} does not take the example of shape {given}: "
            f"{first_line(error)}"
        ) from error


def _tensors(result: Any) -> Iterator[Tensor]:
    """Yield the tensors of a model's output, however nested."""
    if isinstance(result, Tensor):
        yield result
        return
    parts: Iterable[Any] = ()
    if isinstance(result, Mapping):
        parts = result.values()
    elif isinstance(result, tuple | list | set):
        parts = result
    elif is_dataclass(result):
        parts = [getattr(result, field.name) for field in fields(result)]
    elif hasattr(result, "__dict__"):
        parts = vars(result).values()
    for part in parts:
        yield from _tensors(part)


@contextmanager
def no_fast_attention() -> Iterator[None]:
    """Let MultiheadAttention and TransformerEncoderLayer use operations that can be seen."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Recorder(TorchDispatchMode):
    """Knows of every live tensor whether it is a signal, a weight's part or a constant.

    Tensors are known by identity, weights' parts by their storage. Where an operation writes in
    place, the storage keeps a list of writes, and whoever shares the memory catches up with them
    when it is used next.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, weights: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._known: Any = WeakIdKeyDictionary()  # tensor -> (signal or weight, writes seen)
        # A storage's writes, with the storage itself, so that its number is not given anew.
        self._writes: dict[int, tuple[Any, list[tuple[_Place, Signal | None]]]] = {}
        self._homes: dict[int, list[tuple[str, nn.Parameter]]] = {}
        for name, weight in weights.items():
            self._homes.setdefault(_storage_of(weight), []).append((name, weight))
        self._own = {_storage_of(parameter) for parameter in model.parameters()}
        self._copies: dict[int, _Copy] = {}
        self._read: set[str] = set()
        self._ran: set[int] = set()
        self._owners = {
            name: module for name, weight in weights.items() for module in _owners(model, weight)
        }
        self._names = {id(m): name or "the model itself" for name, m in model.named_modules()}
        self._inside: list[nn.Module] = []

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Keep track of the module that runs, for messages."""
        hooks = nn.modules.module
        enter = hooks.register_module_forward_pre_hook(lambda m, _: self._enter(m))
        leave = hooks.register_module_forward_hook(lambda *_: self._leave(), always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def _enter(self, module: nn.Module) -> None:
        self._inside.append(module)
        self._ran.add(id(module))

    def require_read(self) -> None:
        """Check that every layer that ran has read its weight, and no copy made earlier."""
        for name, module in self._owners.items():
            if id(module) in self._ran and name not in self._read:
                raise UnsupportedOp(
                    f"{type(module).__name__} ran without reading {name}: if it uses a copy made "
                    f"earlier, paths cannot be followed; exclude={name!r} takes it as present"
                )

    def _leave(self) -> None:
        self._inside.pop()

    def mark(self, tensor: Tensor) -> Signal:
        """Make ``tensor`` an end of the network."""
        signal = Signal(tensor.shape)
        self._know(tensor, signal)
        return signal

    def signal(self, tensor: Tensor) -> Signal | None:
        """Return the signal that ``tensor`` carries, if any."""
        found = self._look_up(tensor)
        return found if isinstance(found, Signal) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and note what it connects."""
        kwargs = kwargs or {}
        seen = {id(x): self._look_up(x) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in _written(func, args, kwargs):
            if _storage_of(tensor) in self._own:
                raise self._unsupported(func, args, "writes to a parameter of the network")
        if not any(seen.values()):
            result = func(*args, **kwargs)
            self._forget_overwritten(func, args, kwargs)
            return result
        if not isinstance(func, OpOverload):
            raise self._unsupported(func, args, "takes functions, and is not looked into")
        rule = rule_of(func)
        if rule is None and func.has_kernel_for_dispatch_key(_COMPOSITE):
            with self:
                return func.decompose(*args, **kwargs)
        marks = tree_map_only(Tensor, lambda x: seen[id(x)] or x, (args, kwargs))
        result = func(*args, **kwargs)
        if rule is None:
            if func._schema.is_mutable or any(isinstance(x, Tensor) for x in tree_iter(result)):
                raise self._unsupported(func, args, f"has no connectivity rule; {_hint(func)}")
            return result
        wire = Wire(self.steps, func, args, kwargs, result, seen)
        try:
            operands = {n: x for n, x in marks[1].items() if n not in out_names(func)}
            found = rule(wire, *marks[0], **operands)
        except UnsupportedOp as error:
            raise self._unsupported(func, args, f"{error}; {_hint(func)}") from error
        except Exception as error:
            why = f"has a rule that fails: {type(error).__name__}: {first_line(error)}"
            raise self._unsupported(func, args, why) from error
        if found is NotImplemented:
            with self:
                return func.decompose(*args, **kwargs)
        self._note(func, args, kwargs, result, found)
        return result

    # What is known of tensors.

    def _know(self, tensor: Tensor, meaning: Signal | Weight | None) -> None:
        self._known[tensor] = (meaning, len(self._writes_to(tensor)))
        if isinstance(meaning, Weight) and _storage_of(tensor) not in self._homes:
            place = _place_of(tensor)
            self._copies[_storage_of(tensor)] = _Copy(tensor.untyped_storage(), place, meaning)

    def _writes_to(self, tensor: Tensor) -> list[tuple[_Place, Signal | None]]:
        return self._writes.get(_storage_of(tensor), (None, []))[1]

    def _look_up(self, tensor: Tensor) -> Signal | Weight | None:
        meaning, version = self._known.get(tensor, (None, 0))
        if tensor not in self._known and (home := self._homes.get(_storage_of(tensor))):
            part = _part(tensor, home)
            self._read.add(part.name)
            return part
        if tensor not in self._known and (copy := self._copies.get(_storage_of(tensor))):
            return copy.part(tensor)
        writes = self._writes_to(tensor)
        for place, signal in writes[version:]:
            meaning = self._overlaid(tensor, meaning, place, signal)
        if len(writes) > version:
            self._known[tensor] = (meaning, len(writes))
        return meaning

    def _overlaid(
        self, tensor: Tensor, meaning: Any, place: _Place, signal: Signal | None
    ) -> Signal | None:
        """Return what ``tensor`` carries once ``signal`` was written to ``place`` in its memory."""
        mine = _addresses(_place_of(tensor))
        written = _addresses(place)
        if tuple(place) == tuple(_place_of(tensor)):
            return signal
        sources = torch.full((int(max(mine.max(), written.max())) + 1,), -1, device="cpu")
        if meaning is not None:
            sources[mine.flatten()] = torch.arange(mine.numel())
        start = mine.numel() if meaning is not None else 0
        new = torch.arange(written.numel()) + start if signal is not None else torch.tensor(-1)
        sources[written.flatten()] = new
        source = sources[mine].to(tensor.device)
        inputs = tuple(x for x in (meaning, signal) if x is not None)
        if not inputs or bool((source < 0).all()):
            return None
        if meaning is not None and torch.equal(sources[mine].flatten(), torch.arange(mine.numel())):
            return meaning
        for part in inputs:
            if isinstance(part, Weight):
                raise UnsupportedOp(f"writes to a part of a copy of the prunable {part.name}")
        found = Signal(tensor.shape)
        self.steps.append(Copies(inputs, (found,), source))
        return found

    def _forget_overwritten(self, func: Any, args: Any, kwargs: Any) -> None:
        """A constant was written: whoever shares the memory carries it from now on."""
        for tensor in _written(func, args, kwargs):
            if _storage_of(tensor) in self._writes:
                self._write(tensor, None)

    def _write(self, tensor: Tensor, signal: Signal | None) -> None:
        storage = tensor.untyped_storage()
        _, writes = self._writes.setdefault(_storage_of(tensor), (storage, []))
        writes.append((_place_of(tensor), signal))
        self._known[tensor] = (signal, len(writes))

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any, found: Any) -> None:
        """Remember what the results carry, and what was written in place."""
        written = _written(func, args, kwargs)
        meanings = found if isinstance(found, tuple | list) else [found] * max(1, len(written))
        for tensor, signal in zip(written, meanings, strict=False):
            if copy := self._copies.get(_storage_of(tensor)):
                if signal is not self._known.get(tensor, (None, 0))[0]:
                    why = f"writes to a part of a copy of the prunable {copy.weight.name}"
                    raise self._unsupported(func, args, why)
                continue
            if self._known.get(tensor, (None, 0))[0] is not signal:
                self._write(tensor, signal)
        if written:
            return
        results = result if isinstance(result, tuple | list) else [result]
        for tensor, meaning in zip(results, meanings, strict=False):
            if isinstance(tensor, Tensor) and meaning is not None:
                if meaning.shape != tensor.shape:
                    shapes = f"{tuple(meaning.shape)}, but it returned {tuple(tensor.shape)}"
                    raise self._unsupported(func, args, f"has a rule that leads to {shapes}")
                self._know(tensor, meaning)

    def _unsupported(self, func: Any, args: Any, why: str) -> UnsupportedOp:
        shapes = [tuple(x.shape) for x in tree_iter(args) if isinstance(x, Tensor)]
        module = self._inside[-1] if self._inside else None
        where = f" in {self._names.get(id(module), 'a module')}" if module is not None else ""
        kind = f" ({type(module).__name__})" if module is not None else ""
        return UnsupportedOp(
            f"{_name(func)} on shapes {', '.join(map(str, shapes))}{where}{kind} {why}"
        )


def _name(func: Any) -> str:
    is_plain = isinstance(func, OpOverload)
    return func.overloadpacket._qualified_op_name if is_plain else func.name()


def _hint(func: Any) -> str:
    name = _name(func)
    return f'add a rule: a function under @rule("{name}"), as in lit_prune/connectivity/rules/'


_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_Place = tuple[tuple[int, ...], tuple[int, ...], int]


def _place_of(tensor: Tensor) -> _Place:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _addresses(place: _Place) -> Tensor:
    """Return where in the storage every element lies."""
    shape, strides, offset = place
    found = torch.tensor(offset)
    for size, stride in zip(shape, strides, strict=True):
        found = found[..., None] + torch.arange(size) * stride
    return found


def _storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class _Copy:
    """A weight's numbers in memory of their own, cast or scaled; held, so that it stays theirs."""

    storage: Any
    place: _Place
    weight: Weight

    def part(self, tensor: Tensor) -> Weight:
        """Return which part of the weight ``tensor`` is, which lies in the same memory."""
        _, strides, offset = self.place
        if strides != self.weight.stride:
            name = self.weight.name
            raise UnsupportedOp(f"a part of a copy of the prunable {name} in another order is used")
        start = int(tensor.storage_offset()) - offset + self.weight.offset
        return Weight(self.weight.name, tuple(tensor.shape), tensor.stride(), start)


def _owners(model: nn.Module, weight: nn.Parameter) -> Iterator[nn.Module]:
    """Yield the layer that holds ``weight`` alone, as its own."""
    holders = [m for m in model.modules() if any(p is weight for p in m._parameters.values())]
    if len(holders) == 1 and not isinstance(holders[0], nn.MultiheadAttention):
        yield holders[0]


def _part(tensor: Tensor, home: Sequence[tuple[str, nn.Parameter]]) -> Weight:
    """Return which part of which weight lies in the memory of ``tensor``."""
    same = [(name, weight) for name, weight in home if weight is tensor]
    found = same or [(name, weight) for name, weight in home if _lies_in(tensor, weight)]
    if len(found) != 1:
        names = ", ".join(name for name, _ in home)
        raise UnsupportedOp(
            f"a tensor of shape {tuple(tensor.shape)} shares memory with the prunable {names}, and "
            f"is a part of {'none' if not found else 'several'}; exclude= takes them as present"
        )
    name, weight = found[0]
    start = int(tensor.storage_offset() - weight.storage_offset())
    return Weight(name, tuple(tensor.shape), tensor.stride(), start)


def _lies_in(tensor: Tensor, weight: Tensor) -> bool:
    if weight.is_contiguous():
        start = int(tensor.storage_offset() - weight.storage_offset())
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        return start >= 0 and start + reach < max(weight.numel(), 1)
    whole = _addresses(_place_of(weight)).flatten()
    return bool(torch.isin(_addresses(_place_of(tensor)).flatten(), whole).all())


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation writes to in place."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    named = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    targets = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    return [named[n] for n in targets if isinstance(named.get(n), Tensor)]
