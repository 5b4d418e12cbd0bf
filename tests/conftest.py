"""What all tests share: hypothesis profiles, and the witness that a model was left alone."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

# Everybody tries the same examples, so a red test is red for all; `--hypothesis-profile=search`
# looks for new ones.
settings.register_profile("repeatable", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("repeatable")

# The tensors of tests are tiny: more threads only wait for one another.
torch.set_num_threads(1)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def _traces(model: nn.Module) -> dict[str, object]:
    """Everything about a model and the global generators that looking must not change."""
    traces: dict[str, object] = {
        "python generator": random.getstate(),
        "numpy generator": repr(np.random.get_state(legacy=False)),
        "torch generator": bits(torch.get_rng_state()),
        "modules": [(name, id(module)) for name, module in model.named_modules()],
    }
    for name, module in model.named_modules():
        traces[f"{name}.training"] = module.training
        traces[f"{name} parameters"] = [(n, id(p)) for n, p in module._parameters.items()]
        traces[f"{name} buffers"] = [(n, id(b)) for n, b in module._buffers.items()]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        traces[f"{name} storage"] = tensor.data_ptr()
        traces[f"{name} values"] = (tensor.dtype, tensor.shape, tensor.stride(), bits(tensor))
        traces[f"{name}.requires_grad"] = tensor.requires_grad
        traces[f"{name}.grad"] = id(tensor.grad)
        traces[f"{name}.grad values"] = tensor.grad is not None and bits(tensor.grad)
    return traces


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    before = _traces(model)
    held = [p.grad for p in model.parameters()]  # so that no other gradient takes its id
    yield
    after = _traces(model)
    assert len(held) == len(list(model.parameters()))
    assert [key for key in before if before[key] != after.get(key)] == []
    assert after.keys() == before.keys()


@pytest.fixture
def untouched() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """``with untouched(model):`` fails unless the model and the global generators stay."""
    return _untouched
