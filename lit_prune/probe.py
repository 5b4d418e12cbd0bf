"""Probe: all that a criterion may look at, and the promise that looking changes nothing."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.errors import LitPruneError
from lit_prune.masks import Masks
from lit_prune.ranks import ALONE, Ranks

__all__ = [
    "Example",
    "Loss",
    "Probe",
    "cross_entropy",
    "default_generator",
    "looked_at",
    "same_random_state",
    "undisturbed",
]

Loss = Callable[[nn.Module, Any], Tensor]
Example = Tensor | tuple[Tensor, ...] | tuple[int, ...] | None


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of ``model`` on ``batch = (x, y)``, moved to its device."""
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise LitPruneError("the default loss takes batches of (x, y): pass loss= for any other")
    inputs, labels = batch
    device = next(model.parameters()).device
    return F.cross_entropy(model(inputs.to(device)), labels.to(device))


def default_generator() -> torch.Generator:
    """Return a CPU generator seeded by ``torch.initial_seed()``; the global one is not touched."""
    return torch.Generator().manual_seed(torch.initial_seed())


@dataclass(frozen=True)
class Probe:
    """All that a criterion may look at.

    Attributes:
        model: the network with its own weights, pruned ones included; ``masked()`` gives the
            network as pruned so far.
        masks: what is kept so far; scores are wanted for these parameters.
        batches: training batches, in the form that ``loss`` takes; may be iterated repeatedly.
        loss: ``loss(model, batch)``, a scalar tensor.
        example: an input of the model (a tensor or a tuple of them) or its shape, batch included.
        generator: the source of all randomness, on the CPU; None means :func:`default_generator`.
        keep: how many connections this round will keep, for criteria that need a budget.
        counts: how many each layer will keep, where a quota fixes it.
        round: the number of the round, from 0 on.
        ranks: averages over all processes, of which each has its own batches. A criterion that
            looks at data reduces by it what is linear in the data, before any absolute value or
            square. The processes have batches of the same number and size, so that their batches
            of one number are together one batch of the whole.
    """

    model: nn.Module
    masks: Masks
    batches: Iterable[Any] = ()
    loss: Loss = cross_entropy
    example: Example = None
    generator: torch.Generator | None = None
    keep: int | None = None
    counts: Mapping[str, int] | None = None
    round: int = 0
    ranks: Ranks = ALONE

    @contextmanager
    def masked(self) -> Iterator[nn.Module]:
        """Lend the model with its pruned weights set to zero; afterwards it is as it was.

        Inside, anything may be done to it: values, gradients, buffers, mode and the global random
        state all come back. Randomness inside (dropout) follows the probe's generator.
        """
        generator = self.generator or default_generator()
        seed = int(torch.randint(2**62, (), generator=generator))
        with undisturbed(self.model, seed):
            self.masks.apply(self.model)
            yield self.model

    def inputs(self) -> tuple[Tensor, ...]:
        """Return one example input, batch of 1, on the model's device.

        Raises:
            LitPruneError: there is neither an example nor a batch.
        """
        device = next(self.model.parameters()).device
        return tuple(x[:1].to(device) for x in self._example_tensors())

    def _example_tensors(self) -> tuple[Tensor, ...]:
        if isinstance(self.example, Tensor):
            return (self.example,)
        if self.example:
            shape = [n for n in self.example if isinstance(n, int)]
            return (self._ones(shape),) if shape else tuple(self.example)  # type: ignore[arg-type]
        for batch in self.batches:
            first = batch[0] if isinstance(batch, list | tuple) else batch
            if not isinstance(first, Tensor):
                kind = type(first).__name__
                raise LitPruneError(f"the first batch holds a {kind}, no input: pass example=")
            return (first,)
        raise LitPruneError("this criterion needs an example input: pass example= or batches=")

    def _ones(self, shape: list[int]) -> Tensor:
        """Return ones in the type of the model's numbers."""
        kinds = [p.dtype for p in self.model.parameters() if p.is_floating_point()]
        return torch.ones(shape, dtype=kinds[0] if kinds else None)


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Whatever happens to ``model`` or to the global random state inside is undone at the end.

    Values and gradients of parameters, buffers, ``requires_grad`` and the mode of every submodule
    return to the bit, in their own storage; so do the generators of torch, numpy and Python, which
    are seeded by ``seed`` inside. Scoring runs eagerly, so a compiled model is not compiled again.
    """
    with ExitStack() as stack:
        stack.enter_context(same_random_state(seed))
        tensors = chain(model.parameters(), model.buffers(), _loose_tensors(model))
        stack.enter_context(_same_tensors(list(tensors), model))
        stack.enter_context(_same_attributes(model))
        stack.enter_context(_same_modes(model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_eager(model))
        yield


@contextmanager
def looked_at(model: nn.Module) -> Iterator[None]:
    """Lend a model for looking in eval mode: cheaper than :func:`undisturbed`, for a forward pass.

    Parameters are not copied, so nothing may write to them; buffers, modes, attributes of all
    modules and the global random states return as they were.
    """
    with ExitStack() as stack:
        stack.enter_context(same_random_state(0))
        stack.enter_context(_same_tensors([*model.buffers(), *_loose_tensors(model)], model))
        stack.enter_context(_same_attributes(model))
        stack.enter_context(_same_modes(model))
        stack.enter_context(_eager(model))
        model.eval()
        yield


@contextmanager
def same_random_state(seed: int) -> Iterator[None]:
    """Seed torch, numpy and Python inside; afterwards their generators go on as before."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        # torch.manual_seed would queue a seed for devices that are not in use yet.
        (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Run eagerly what is compiled."""
    is_compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl for m in model.modules())
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
        yield


def _loose_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that modules hold as plain attributes, or in a list or dict of theirs."""
    for module in model.modules():
        for key, value in vars(module).items():
            held = [value]
            if key not in _REGISTERED and isinstance(value, dict):
                held = list(value.values())
            elif isinstance(value, list | tuple):
                held = list(value)
            for x in held:
                if isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and x.is_leaf:
                    yield x


@contextmanager
def _same_attributes(model: nn.Module) -> Iterator[None]:
    """Put back what modules note on themselves as they run, such as caches of biases."""
    noted: list[tuple[nn.Module, str, Any, Any]] = [
        (module, key, value, value.copy() if isinstance(value, dict | list | set) else None)
        for module in model.modules()
        for key, value in vars(module).items()
        if key not in _REGISTERED
    ]
    names = [(module, set(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, known in names:
            for key in set(vars(module)) - known:
                del vars(module)[key]
        for module, key, value, content in noted:
            vars(module)[key] = value
            if isinstance(value, dict | set):
                value.clear()
                value.update(content)
            elif isinstance(value, list):
                value[:] = content


# Kept by the guards of tensors and modes; hooks may be handles of others.
_REGISTERED = {"training", "_parameters", "_buffers", "_modules"}


@contextmanager
def _same_tensors(tensors: list[Tensor], model: nn.Module) -> Iterator[None]:
    """Work on copies: the tensors' own storage is set aside, and put back at the end."""
    aside = [(tensor, tensor.data, tensor.grad, tensor.requires_grad) for tensor in tensors]
    # A ScriptModule's are read-only.
    homes: list[Any] = [
        home
        for module in model.modules()
        for home in (module._parameters, module._buffers)
        if isinstance(home, dict)
    ]
    registered = [(home, dict(home)) for home in homes]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.clone()
            tensor.grad = None
        yield
    finally:
        for home, content in registered:
            home.clear()
            home.update(content)
        for tensor, data, grad, requires_grad in aside:
            tensor.grad = None
            tensor.data = data
            tensor.grad = grad
            tensor.requires_grad_(requires_grad)


@contextmanager
def _same_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
