"""UnderWay: a training under way, and what a schedule may have done to it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_prune.acts import Grow
from lit_prune.callbacks.hold import Hold, averages
from lit_prune.callbacks.scoring import Scoring, ranks_of
from lit_prune.callbacks.snapshot import Snapshot
from lit_prune.masks import Masks
from lit_prune.measure import Measurement
from lit_prune.prune import Observer
from lit_prune.rewiring import rewired
from lit_prune.weights import reinitialise

__all__ = ["Standing", "UnderWay"]

# Sets the random numbers of one prune apart from those of the next.
_APART = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Standing:
    """Where a training stands: all that a resumed one must know.

    Attributes:
        masks: what is kept; None before training starts.
        measurement: what the masks leave; None where they changed since it was made.
        changes: how many times masks were looked for.
        snapshot: what a rewind puts back.
        picked: what will be kept, where a schedule has picked what to remove.
        strength: of the L2 penalty on what is picked.
        everywhere: whether the penalty is on every connection instead.
        rates: the learning rates of the last optimizer step, group by group.
        held: those that no longer follow the module's schedule; None where they do.
    """

    masks: Masks | None = None
    measurement: Measurement | None = None
    changes: int = 0
    snapshot: Snapshot | None = None
    picked: Masks | None = None
    strength: float = 0.0
    everywhere: bool = False
    rates: tuple[float, ...] = ()
    held: tuple[float, ...] | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as plain tensors and numbers, which a checkpoint may hold."""
        return {
            **{n: getattr(self, n) for n in ("changes", "strength", "everywhere")},
            "rates": [float(rate) for rate in self.rates],
            "held": None if self.held is None else [float(rate) for rate in self.held],
            "masks": None if self.masks is None else dict(self.masks.to("cpu")),
            "picked": None if self.picked is None else dict(self.picked.to("cpu")),
            "measurement": None if self.measurement is None else self.measurement.plain(),
            "snapshot": None if self.snapshot is None else self.snapshot.plain(),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Standing":
        """Read what :meth:`plain` wrote."""
        kinds: dict[str, Callable[[Any], Any]] = {
            "rates": tuple,
            "held": tuple,
            "masks": Masks,
            "picked": Masks,
            "measurement": Measurement.from_plain,
            "snapshot": Snapshot.from_plain,
        }
        given = {name: value for name, value in plain.items() if value is not None}
        return cls(**{n: kinds[n](x) if n in kinds else x for n, x in given.items()})


class UnderWay:
    """A training under way: the acts of a schedule, done to a Lightning module.

    Args:
        scoring: how masks are found.
        trainer: the trainer.
        pl_module: the module in training.
        standing: where the training stands, with masks.
        seed: of all randomness, equal on all ranks.
        generator: a source of randomness instead.
        observe: is shown what scores every prune.
    """

    def __init__(
        self,
        scoring: Scoring,
        trainer: Trainer,
        pl_module: LightningModule,
        standing: Standing,
        seed: int,
        generator: torch.Generator | None,
        observe: Observer | None = None,
    ) -> None:
        assert standing.masks is not None
        self._standing = standing
        self._rates: list[Any] = list(standing.rates)
        self._scoring = scoring
        self._trainer, self._module = trainer, pl_module
        self._seed, self._generator = seed, generator
        self._observe = observe
        self._effective: Masks | None = None
        self._ranks = ranks_of(trainer)
        self._ranks.require_same(standing.masks)
        self._hold = Hold(standing.masks, trainer, pl_module)
        self._pulled: list[tuple[Optimizer, nn.Parameter, Tensor]] = []
        self._take_hold_of_pulled()
        if standing.held is not None:
            self._rest_schedulers()

    @property
    def standing(self) -> Standing:
        """Where the training stands."""
        return replace(self._standing, rates=tuple(self._rates))

    @property
    def masks(self) -> Masks:
        """What is kept."""
        return self._hold.masks

    # What a schedule asks for.

    def prune(self, keep: int) -> None:
        """Prune down to ``keep`` connections, and measure what is left."""
        self._settle(self._found(keep))

    def pick(self, keep: int) -> None:
        """Choose what a prune down to ``keep`` would remove, and remove nothing yet."""
        self._stand(picked=self._found(keep), everywhere=False)
        self._take_hold_of_pulled()

    def push(self, strength: float, everywhere: bool) -> None:
        """Set the L2 penalty on what is picked, or on every connection."""
        self._stand(strength=strength, everywhere=everywhere)
        self._take_hold_of_pulled()

    def prune_picked(self) -> None:
        """Remove what was picked, and measure what is left."""
        assert self._standing.picked is not None
        masks = self._standing.picked
        self._stand(picked=None, strength=0.0)
        self._settle(masks)
        self._take_hold_of_pulled()

    def rewire(self, share: float, by: Grow) -> None:
        """Replace a share of every layer's connections; what is left is measured later."""
        weights = self.masks.parameters(self._module)
        growth = self._random(weights) if by == "random" else self._gradients(weights)
        masks = rewired(self.masks, weights, growth, share)
        self._ranks.require_same(masks)
        self._take_over(masks)
        self._effective = None
        self._stand(measurement=None)

    def remember(self, weights: bool) -> None:
        """Take a snapshot."""
        self._stand(snapshot=Snapshot.taken(self._trainer, self._module, weights))

    def rewind_weights(self) -> None:
        """Put back everything of the snapshot; pruned weights stay zero."""
        assert self._standing.snapshot is not None
        self._standing.snapshot.put_back(self._trainer, self._module)
        self._take_over(self.masks)

    def rewind_rates(self) -> None:
        """Put back the learning-rate schedule of the snapshot."""
        assert self._standing.snapshot is not None
        self._standing.snapshot.put_back_rates(self._trainer)

    def hold_rate(self, rate: float | None) -> None:
        """Train on with ``rate``, or the last; the module's schedule rests."""
        groups = self._groups()
        # Before the first step the last rate is the one at hand.
        rates = self._rates or [group["lr"] for group in groups]
        if rate is not None:
            rates = [rate] * len(groups)
        self._stand(held=tuple(float(each) for each in rates))
        self.keep_rate()
        self._rest_schedulers()

    # What the mask manager asks for.

    def keep_rate(self) -> None:
        """Set a held rate again, whatever a schedule that is stepped by hand made of it."""
        if self._standing.held is None:
            return
        for group, rate in zip(self._groups(), self._standing.held, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def draw_anew(self) -> None:
        """Draw new weights under the same masks; optimizers and averages start anew."""
        # Ranks may differ in their generators; their weights must not.
        seed = int(self._trainer.strategy.broadcast(self._first_seed()))
        reinitialise(self._module, (seed + _APART * (self._standing.changes - 1)) % 2**63)
        for optimizer in self._trainer.optimizers:
            optimizer.state.clear()
        for average in averages(self._trainer):
            average.module.load_state_dict(self._module.state_dict())
            average.n_averaged.zero_()
        self._take_over(self.masks)

    def measure(self) -> None:
        """Measure what the masks leave, unless they are measured."""
        if self._standing.measurement is None:
            as_it_is = replace(self._scoring, prune_ineffective=False)
            seed = self._first_seed()
            found = as_it_is.measured(self.masks, self._trainer, self._module, seed)
            _, measurement, self._effective = found
            self._stand(measurement=measurement)

    def effective(self) -> Masks | None:
        """Return what is effective of the masks, which are measured; None where it is not known."""
        found = self._standing.measurement
        assert found is not None
        if self._effective is None and found.totals()["effective_kept"] is not None:
            # A resumed training knows its measurement only.
            self._stand(measurement=None)
            self.measure()
        return self._effective

    def gradients_are_finite(self) -> bool:
        """Whether the gradients of all weights are finite: a scaled loss may overflow."""
        weights = self.masks.parameters(self._module).values()
        return all(bool(w.grad.isfinite().all()) for w in weights if w.grad is not None)

    def before_step(self, optimizer: Optimizer) -> None:
        """Pull what is pushed, zero the gradients of what is pruned, note the rates."""
        if self._pulled:
            self._pull(optimizer)
        self._hold.zero_gradients()
        rates = (group["lr"] for group in self._groups())
        self._rates = [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]

    def require_zeros(self) -> None:
        """Check that every pruned weight and its optimizer states are zero."""
        self._hold.require_zeros()

    # How it is done.

    def _stand(self, **changes: Any) -> None:
        self._standing = replace(self._standing, **changes)

    def _groups(self) -> list[dict[str, Any]]:
        return [g for optimizer in self._trainer.optimizers for g in optimizer.param_groups]

    def _pull(self, optimizer: Optimizer) -> None:
        """Add the gradient of the penalty to the weights that ``optimizer`` is about to step."""
        scale = 1.0
        if _unscales_by_itself(optimizer):
            scaler = getattr(self._trainer.precision_plugin, "scaler", None)
            scale = 1.0 if scaler is None else scaler.get_scale()
        for owner, weight, pulled in self._pulled:
            if owner is optimizer and weight.grad is not None:
                strength = self._standing.strength * scale
                weight.grad.addcmul_(weight.detach(), pulled, value=strength)

    def _found(self, keep: int) -> Masks:
        """Return the masks of a prune down to ``keep``."""
        generator = self._source()
        masks = self._scoring.pruned(
            self.masks, keep, self._trainer, self._module, generator, self._observe
        )
        self._stand(changes=self._standing.changes + 1)
        return masks

    def _settle(self, masks: Masks) -> None:
        """Measure masks and take them over."""
        masks, measurement, self._effective = self._scoring.measured(
            masks, self._trainer, self._module, self._first_seed()
        )
        self._scoring.require_stored(measurement, masks.total)
        self._stand(measurement=measurement)
        self._take_over(masks)

    def _take_over(self, masks: Masks) -> None:
        self._hold = Hold(masks, self._trainer, self._module)
        self._stand(masks=self._hold.masks)

    def _take_hold_of_pulled(self) -> None:
        """Note which weights the penalty is on."""
        standing, masks = self._standing, self.masks
        kept = standing.picked
        self._pulled = []
        if not standing.strength or (kept is None and not standing.everywhere):
            return
        weights = masks.parameters(self._module)
        for owner, weight, name in _owned(self._trainer.optimizers, weights):
            pulled = masks[name]
            if not standing.everywhere and kept is not None:
                pulled = pulled & ~kept[name].to(pulled.device)
            self._pulled.append((owner, weight, pulled.to(weight.dtype)))

    def _rest_schedulers(self) -> None:
        """Let Lightning step the module's schedules no more; some raise past their end."""
        if self._module.automatic_optimization:
            self._trainer.strategy.lr_scheduler_configs = []

    def _first_seed(self) -> int:
        return self._seed if self._generator is None else self._generator.initial_seed()

    def _source(self) -> torch.Generator:
        """Return the source of randomness for the next prune."""
        if self._generator is not None:
            return self._generator
        seed = (self._seed + _APART * self._standing.changes) % 2**63
        return torch.Generator().manual_seed(seed)

    def _random(self, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        source = self._source()
        source.set_state(self._ranks.first({"state": source.get_state()})["state"])
        self._stand(changes=self._standing.changes + 1)
        drawn = {name: torch.rand(w.shape, generator=source) for name, w in weights.items()}
        return {name: drawn[name].to(w.device) for name, w in weights.items()}

    def _gradients(self, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(w) if w.grad is None else w.grad.abs()
            for name, w in weights.items()
        }


def _owned(
    optimizers: list[Optimizer], weights: dict[str, nn.Parameter]
) -> Iterator[tuple[Optimizer, nn.Parameter, str]]:
    """Yield every weight with its optimizer and its name."""
    names = {id(weight): name for name, weight in weights.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if id(weight) in names:
                    yield optimizer, weight, names[id(weight)]


def _unscales_by_itself(optimizer: Optimizer) -> bool:
    """Whether gradients of a scaled loss are still scaled before the step: fused ones do that."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)
