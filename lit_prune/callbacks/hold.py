"""Hold: masks at work in a training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from lit_prune.errors import LitPruneError
from lit_prune.masks import Masks, bits_of, zero_pruned_

__all__ = ["Hold", "averaged", "averages"]


class Hold:
    """Keeps pruned weights, their gradients, optimizer states and running averages zero.

    Attributes:
        masks: what is kept, on the devices of the weights.
    """

    def __init__(self, masks: Masks, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = masks.parameters(pl_module)
        self.masks = Masks({name: masks[name].to(w.device) for name, w in weights.items()})
        self._optimizers = trainer.optimizers
        self._pruned = [
            (weight, bits_of(self.masks[name]))
            for name, weight in weights.items()
            if not bool(self.masks[name].all())
        ]
        self.masks.apply(pl_module)
        for average in averages(trainer):
            self.masks.apply(average.module)
        for weight, bits in self._pruned:
            for state in _states_of(weight, self._optimizers):
                zero_pruned_(state, bits)
        self.zero_gradients()

    def zero_gradients(self) -> None:
        """Set the gradients of all pruned weights to zero."""
        for weight, bits in self._pruned:
            if weight.grad is not None:
                zero_pruned_(weight.grad, bits)

    def require_zeros(self) -> None:
        """Check that the optimizers left zeros zero.

        Raises:
            LitPruneError: one did not; it is named.
        """
        for optimizer in self._optimizers:
            _require_zeros(optimizer, self._pruned)


def averages(trainer: Trainer) -> Iterator[AveragedModel]:
    """Yield the running averages of the weights that Lightning's callbacks hold."""
    for callback in _averaging(trainer):
        if callback._average_model is not None:
            yield callback._average_model


@contextmanager
def averaged(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Lend the module with its averaged weights, where there are any, as validation sees it."""
    holders = [c for c in _averaging(trainer) if c._average_model is not None]
    for callback in holders:
        callback._swap_models(pl_module)
    try:
        yield
    finally:
        for callback in reversed(holders):
            callback._swap_models(pl_module)


def _averaging(trainer: Trainer) -> list[WeightAveraging]:
    callbacks: Iterable[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, WeightAveraging)]


def _states_of(weight: nn.Parameter, optimizers: list[Optimizer]) -> list[Tensor]:
    """Return the optimizer states of the weight's own shape."""
    states = [o.state[weight] for o in optimizers if weight in o.state]
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return [tensor for tensor in tensors if tensor.shape == weight.shape]


def _require_zeros(optimizer: Optimizer, pruned: list[tuple[nn.Parameter, Tensor]]) -> None:
    for weight, bits in pruned:
        for tensor in (weight.detach(), *_states_of(weight, [optimizer])):
            if bool((tensor[bits == 0] != 0).any()):
                raise LitPruneError(
                    f"{type(optimizer).__name__} moves pruned weights, or keeps a state for them "
                    "that cannot be zero; use SGD, Adam, AdamW, RMSprop or Adagrad"
                )
