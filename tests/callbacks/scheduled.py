"""What the tests of schedules share: a module with a schedule, every schedule, and witnesses."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from test_mask_manager import Own, loader, make_trainer
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from lit_prune import MaskManager
from lit_prune.criteria import Magnitude
from lit_prune.schedules import (
    AfterTraining,
    AtInit,
    Gradual,
    GReg1,
    GReg2,
    Iterative,
    Regrow,
    Schedule,
)

# Four batches, hence optimizer steps, in an epoch.
STEPS = 4

OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": partial(Adam, lr=0.01),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
}

# Every schedule at work, with the epochs of its training; -1 where it says so itself.
SCHEDULES: dict[str, tuple[Schedule, int]] = {
    "at init": (AtInit(), 2),
    "after training": (AfterTraining(1, 2, rate={0: 0.02, 1: 0.01}), -1),
    "after training, last rate": (AfterTraining(2, 1), -1),
    "weights to 1ep": (Iterative(2, 2, rewind_to="1ep"), -1),
    "weights to 5it": (Iterative(2, 2, rewind_to="5it"), -1),
    "init": (Iterative(2, 1, rewind="init"), -1),
    "learning rate": (Iterative(2, 2, rewind="learning_rate", rewind_to="1ep"), -1),
    "fine tune": (Iterative(2, 2, rewind="fine_tune", rewind_to="1ep"), -1),
    "share": (Iterative(2, 1, share=0.6), -1),
    "gradual in steps": (Gradual("1it", "9it", "2it"), 3),
    "gradual in epochs": (Gradual("0ep", "2ep"), 3),
    "random regrowth": (Regrow("3it", 0.5, "random", until="9it"), 3),
    "gradient regrowth": (Regrow("1ep", 0.5, "gradient", until="3ep"), 4),
    "greg 1": (GReg1("2it", "2it", step=0.05, ceiling=0.15, settle="1it"), 3),
    "greg 2": (GReg2("1it", "1it", spread=0.02, parting=0.06, step=0.05, ceiling=0.15), 3),
    # Penalties that outlast an epoch: of what is picked, and of everything.
    "slow greg 1": (GReg1("1it", "5it", step=0.05, ceiling=0.1), 3),
    "slow greg 2": (GReg2("1it", "5it", spread=0.05, parting=0.05, step=0.05, ceiling=0.1), 3),
}


class Scheduled(Own):
    """Somebody's own module, with a learning-rate schedule."""

    def __init__(
        self,
        optimizer: Callable = OPTIMIZERS["sgd"],
        scheduler: Callable | None = None,
        interval: str = "epoch",
        frequency: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer, **kwargs)
        self.make_scheduler, self.interval, self.frequency = scheduler, interval, frequency

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        how = {"interval": self.interval, "frequency": self.frequency}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **how}}


def scheduled(*args: Any, kind: type[Scheduled] = Scheduled, **kwargs: Any) -> Scheduled:
    torch.manual_seed(0)
    return kind(*args, **kwargs)


def manager_of(name: str, target: Any = "5x", criterion: Any = None, **kwargs: Any) -> MaskManager:
    """A mask manager with the schedule of that name in SCHEDULES."""
    schedule, _ = SCHEDULES[name]
    target = target if schedule.wants_target else None
    return MaskManager(criterion or Magnitude(), target, schedule=schedule, **kwargs)


def fit(module, *callbacks, epochs: int = -1, batches=None, ckpt=None, **kwargs) -> pl.Trainer:
    trainer = make_trainer(*callbacks, epochs=epochs, **kwargs)
    torch.manual_seed(1)
    data = loader() if batches is None else batches
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


@dataclass(frozen=True)
class Moment:
    """Everything that is trained, at one moment, by names."""

    epoch: int
    step: int
    weights: dict[str, Tensor]
    states: dict[str, dict[str, Any]]
    rates: list[float]
    masks: dict[str, Tensor]


def moment(trainer: pl.Trainer, module: pl.LightningModule, manager: MaskManager) -> Moment:
    names = {parameter: name for name, parameter in module.named_parameters()}
    states = {
        names[parameter]: {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in state.items()
        }
        for optimizer in trainer.optimizers
        for parameter, state in optimizer.state.items()
    }
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return Moment(
        trainer.current_epoch,
        trainer.global_step,
        {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
        states,
        [float(group["lr"]) for group in groups],
        {name: mask.clone() for name, mask in manager.masks.items()},
    )


class Witness(pl.Callback):
    """Notes all at the start of every batch and after every step, and the rate of every step."""

    def __init__(self, manager: MaskManager) -> None:
        self.manager = manager
        self.before: list[Moment] = []
        self.after: list[Moment] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self.before.append(moment(trainer, pl_module, self.manager))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer, pl_module, *args: Any) -> None:
        self.after.append(moment(trainer, pl_module, self.manager))

    def first_of(self, epoch: int) -> Moment:
        """All as the first batch of that epoch came."""
        return next(m for m in self.before if m.epoch == epoch)


class Law(pl.Callback):
    """After every optimizer step: weight, gradient and state are zero where pruned."""

    def __init__(self, manager: MaskManager) -> None:
        self.manager = manager
        self.steps = 0
        self.kept: list[int] = []
        self.states: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(partial(self.check, pl_module))

    def check(self, module, optimizer, *_) -> None:
        masks = self.manager.masks
        self.steps += 1
        self.kept.append(masks.kept)
        for name, weight in masks.parameters(module).items():
            pruned = ~masks[name]
            assert (weight[pruned] == 0).all(), name
            assert weight.grad is None or (weight.grad[pruned] == 0).all(), name
            for key, state in optimizer.state.get(weight, {}).items():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    self.states.add(key)
                    assert (state[pruned] == 0).all(), (name, key)


def mostly_slow(values: Iterable[Any], quick: set[Any]) -> list[Any]:
    """Return the values as parameters of a test, those that are not ``quick`` marked as slow."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


def same_bits(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same_bits(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            same_bits(left, right)
    else:
        assert one == other
