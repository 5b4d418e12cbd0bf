"""Weights from local files, read without running any code that they might hold."""

import os
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_prune.errors import LitPruneError, UnreadableFile, first_line
from lit_prune.names import plain_name
from lit_prune.probe import same_random_state

__all__ = ["load_weights", "read_state_dict", "reinitialise"]

_FRESH = 0x2545F491


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a state dict, a safetensors file or a Lightning checkpoint into ``model``.

    In a checkpoint of a LightningModule the weights of its ``backbone`` are taken.

    Raises:
        UnreadableFile: the file is missing, cut, or holds objects other than tensors.
        LitPruneError: the weights are of another model; what differs is named.
    """
    state = read_state_dict(path)
    own = {plain_name(name): name for name in model.state_dict()}
    if not own.keys() & state.keys():
        state = {n.removeprefix("backbone."): t for n, t in state.items()}
    try:
        model.load_state_dict({own.get(name, name): tensor for name, tensor in state.items()})
    except RuntimeError as error:
        detail = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise LitPruneError(f"{path} does not fit {type(model).__name__}: {detail}") from error


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a state dict, safetensors file or checkpoint, under plain names.

    Raises:
        UnreadableFile: the file is missing, cut, or holds objects other than tensors.
    """
    if not Path(path).is_file():
        raise UnreadableFile(f"no weights at {path}: no such file")
    content = _read(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UnreadableFile(f"{path} holds no state dict of tensors")
    return {plain_name(name): tensor for name, tensor in state.items()}


def reinitialise(model: nn.Module, seed: int) -> None:
    """Draw all parameters of ``model`` anew, in place, by the ``reset_parameters`` of its modules.

    Parts first, then what they are parts of, so that a network that initialises its layers in a way
    of its own has the last word. Statistics of norms start anew. The global random states are not
    touched, and the numbers are not those that a new network would draw under ``seed``. What a
    module draws in its constructor alone, such as torchvision's networks, is not known: its layers
    are drawn as PyTorch draws them.

    Raises:
        LitPruneError: a parameter belongs to no module that knows how to draw it.
    """
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        # What is not drawn shows.
        parameter.detach().fill_(float("nan"))
    with same_random_state(seed ^ _FRESH), torch.no_grad():
        for module in reversed(list(model.modules())):
            for name in ("_reset_parameters", "reset_parameters"):
                draw = getattr(module, name, None)
                if callable(draw) and not _needs_arguments(draw):
                    draw()
    for name, parameter in model.named_parameters():
        if bool(parameter.isnan().any()):
            with torch.no_grad():
                for known, old in before.items():
                    model.get_parameter(known).copy_(old)
            raise LitPruneError(
                f"{plain_name(name)} cannot be drawn anew: no module around it has a method "
                "reset_parameters()"
            )


def _needs_arguments(function: Callable[..., Any]) -> bool:
    named = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    given = signature(function).parameters.values()
    return any(p.default is p.empty and p.kind in named for p in given)


def _read(path: str | os.PathLike[str]) -> Any:
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UnreadableFile(
            f"{path} is damaged, or holds objects other than tensors, which are never loaded"
        ) from error
    except (RuntimeError, EOFError, SafetensorError, OSError) as error:
        raise UnreadableFile(f"{path} is cut or damaged: {first_line(error)}") from error
