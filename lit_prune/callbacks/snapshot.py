"""Snapshot: a moment of a training, to go back to."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_map

from lit_prune.callbacks.hold import averages
from lit_prune.names import plain_name

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The learning-rate schedule at a moment of a training, and all that is trained, if wished.

    Attributes:
        groups: of every optimizer, the settings of its parameter groups, learning rates included.
        schedulers: the states of the learning-rate schedulers.
        weights: parameters and buffers, by plain names, on the CPU, those too that a state dict
            leaves out; None where not wanted.
        optimizers: the states of the optimizers; None where not wanted.
    """

    groups: list[list[dict[str, Any]]]
    schedulers: list[dict[str, Any]]
    weights: dict[str, Tensor] | None = None
    optimizers: list[dict[str, Any]] | None = None

    @classmethod
    def taken(cls, trainer: Trainer, pl_module: LightningModule, weights: bool) -> "Snapshot":
        """Return the snapshot of now; without ``weights`` that of the schedule alone."""
        groups = [[_settings(g) for g in o.param_groups] for o in trainer.optimizers]
        schedulers = [_aside(c.scheduler.state_dict()) for c in trainer.lr_scheduler_configs]
        if not weights:
            return cls(groups, schedulers)
        state = {plain_name(name): tensor for name, tensor in _state(pl_module).items()}
        optimizers = [_aside(optimizer.state_dict()) for optimizer in trainer.optimizers]
        return cls(groups, schedulers, _aside(state), optimizers)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Snapshot":
        """Read what :meth:`plain` wrote."""
        return cls(**plain)

    def plain(self) -> dict[str, Any]:
        """Return the snapshot as dicts, lists and tensors, which a checkpoint may hold."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @torch.no_grad()
    def put_back(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make weights, buffers, optimizer states and rates what they were; averages start anew."""
        assert self.weights is not None
        assert self.optimizers is not None
        own = {plain_name(name): tensor for name, tensor in _state(pl_module).items()}
        for name, tensor in self.weights.items():
            own[name].copy_(tensor)
        for optimizer, state in zip(trainer.optimizers, self.optimizers, strict=True):
            # Optimizers keep what they are given, and change it.
            optimizer.load_state_dict(deepcopy(state))
        for average in averages(trainer):
            average.module.load_state_dict(pl_module.state_dict())
            average.n_averaged.zero_()
        self.put_back_rates(trainer)

    def put_back_rates(self, trainer: Trainer) -> None:
        """Make the learning-rate schedule what it was."""
        for optimizer, groups in zip(trainer.optimizers, self.groups, strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                _restore(group, settings)
        for config, state in zip(trainer.lr_scheduler_configs, self.schedulers, strict=True):
            config.scheduler.load_state_dict(deepcopy(state))


def _state(pl_module: LightningModule) -> dict[str, Tensor]:
    """Return all parameters and buffers, in their own storage."""
    named = [*pl_module.named_parameters(), *pl_module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return _aside({name: value for name, value in group.items() if name != "params"})


def _restore(group: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if isinstance(group.get(name), Tensor):
            # A rate that is a tensor is known to compiled optimizers by its place.
            group[name].copy_(value)
        else:
            group[name] = deepcopy(value)


def _aside(tree: Any) -> Any:
    """Return a copy of everything, tensors on the CPU."""
    return tree_map(
        lambda x: x.detach().to("cpu", copy=True) if isinstance(x, Tensor) else deepcopy(x), tree
    )
