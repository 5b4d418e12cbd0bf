"""MaskManager: holds the masks through training."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from glob import escape
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from lit_prune.callbacks.training_batches import TrainingBatches
from lit_prune.connectivity import Connectivity, UnsupportedOp
from lit_prune.criteria import Criterion
from lit_prune.errors import LitPruneError, LitPruneWarning, TargetMissed, first_line
from lit_prune.masks import Masks, bits_of, zero_pruned_
from lit_prune.measure import Measurement, measure, unmeasured
from lit_prune.probe import Example, Loss, Probe
from lit_prune.prunable import Patterns
from lit_prune.prune import Search, prune_by_rounds, require_life
from lit_prune.quotas import Quota
from lit_prune.ranks import ALONE, DistributedRanks, Ranks
from lit_prune.schedules import Schedule
from lit_prune.schedules.at_init import AtInit
from lit_prune.spine import budgets, last, rounds_of
from lit_prune.targets import Target
from lit_prune.weights import reinitialise

__all__ = ["MaskManager"]

_FLOPS = ("flops/effective", "effective_flops")


class MaskManager(Callback):
    """Prunes a LightningModule when training starts, and keeps it pruned to the bit.

    From the prune on, every pruned weight, its gradient and the optimizer state of its shape are
    exactly zero after every optimizer step. Masks are named as in the module's state dict
    (``backbone.fc1.weight``); the module and its checkpoints keep their plain keys, and the masks
    travel in this callback's state, so that a resumed run continues with them.

    Works with your own LightningModule and Trainer: its ``training_step`` is never called for
    scoring; the loss is cross-entropy of ``forward`` on batches of ``(x, y)``, or ``loss``.

    Args:
        criterion: scores connections, higher = keep: a ``Criterion`` or a function of that form.
        target: how far: ``100x``, ``99%``, ``2662``, ``100x effective``, or a ``Target``.
        quota: fixes how many connections each layer keeps; None ranks all together.
        rounds: in how many rounds to score; None takes the criterion's own number.
        batches: how many training batches criteria may look at in a round; each round has further
            ones.
        loss: ``loss(module, batch)`` for scoring; None is cross-entropy on ``(x, y)``.
        example: an input or its shape; None takes one from the first batch.
        generator: the source of all randomness; None is one seeded by ``torch.initial_seed()``. Of
            many processes rank 0's counts.
        include: name pattern or patterns of what may be pruned.
        exclude: pattern or patterns of what may not.
        schedule: when to prune and how far each time.
        masks: a file of masks to use instead of scoring; a target beside it must be what it keeps.
        search: how an effective target is found, ``"curve"`` or ``"reprune"`` (see ``prune``).
        prune_ineffective: also remove what is kept but ineffective.
        allow_collapse: train a network of which nothing is effective, instead of an error.
        floor: every layer keeps at least so many connections, as a number or as in ``"0.05%"`` of
            the whole network.
        reinitialise: after pruning, draw new weights under the same masks (every module's
            ``reset_parameters``): a control that tells whether masks know their initialization.

    Attributes:
        masks: the current masks; None before training starts.
        measurement: what they leave, layer by layer: effective connections, dead units, FLOPs.

    Raises:
        LitPruneError: neither masks nor both a criterion and a target are given.
    """

    def __init__(
        self,
        criterion: Criterion | Callable[[Probe], dict[str, Tensor]] | None = None,
        target: Target | str | int | float | None = None,
        quota: Quota | Callable[[dict[str, torch.Size], int], dict[str, int]] | None = None,
        rounds: int | None = None,
        batches: int = 1,
        loss: Loss | None = None,
        example: Example = None,
        generator: torch.Generator | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        schedule: Schedule = AtInit(),  # noqa: B008 (frozen)
        masks: str | None = None,
        search: Search = "curve",
        prune_ineffective: bool = False,
        allow_collapse: bool = False,
        floor: int | str | None = None,
        reinitialise: bool = False,
    ) -> None:
        if masks is None and (criterion is None or target is None):
            raise LitPruneError("pruning needs a criterion and a target, or masks=FILE")
        if batches < 1:
            raise LitPruneError(f"batches={batches} is out of range: at least 1")
        self.criterion = criterion
        self.target = None if target is None else Target.parse(target)
        self.quota = quota
        self.rounds = rounds
        self.batches = batches
        self.loss = loss
        self.example = example
        self.generator = generator
        self.include, self.exclude = include, exclude
        self.schedule = schedule
        self.masks_file = masks
        self.search: Search = search
        self.prune_ineffective = prune_ineffective
        self.allow_collapse = allow_collapse
        self.floor = floor
        self.reinitialise = reinitialise
        self.masks: Masks | None = None
        self.measurement: Measurement | None = None
        self._seed: int | None = None
        self._first_epoch: int | None = None
        self._epochs_asked = 0
        self._pruned: list[tuple[nn.Parameter, Tensor]] = []
        self._proven_at: int | None = None

    # The hooks, in the order in which Lightning calls them.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the seed of the run; refuse strategies that cut parameters into shards."""
        if self._seed is None:
            self._seed = int(trainer.strategy.broadcast(torch.initial_seed()))
        if stage == "fit" and not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise LitPruneError(
                f"masks need whole parameters on every rank; {type(trainer.strategy).__name__} "
                "does not give them; use trainer.strategy=ddp or a single device"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put stored or restored masks to work again."""
        if self._first_epoch is None:
            self._first_epoch = trainer.current_epoch
        if self.masks is not None:
            _ranks(trainer).require_same(self.masks)
            if self.measurement is None:
                self._measured(self.masks, trainer, pl_module)
            self._hold(self.masks, trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune where the schedule says so; log the sparsity."""
        epoch = trainer.current_epoch - (self._first_epoch or 0)
        if epoch >= self._epochs_asked:
            self._epochs_asked = epoch + 1
            self._follow_schedule(epoch, trainer, pl_module)
        if self.masks is not None:
            pl_module.log("sparsity/direct", self.masks.sparsity, sync_dist=True)
        if self.measurement is not None:
            found = self.measurement.totals()
            for tag, key in (("sparsity/effective", "effective_sparsity"), _FLOPS):
                if (value := found[key]) is not None:
                    pl_module.log(tag, float(value), sync_dist=True)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Zero the gradients of pruned weights: after unscaling, before clipping and the step."""
        for weight, bits in self._pruned:
            if weight.grad is not None:
                zero_pruned_(weight.grad, bits)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """After the first step with new masks, prove that the optimizer leaves zeros zero."""
        if self._proven_at is not None and trainer.global_step > self._proven_at:
            self._proven_at = None
            self._prove(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prove it again, before the epoch's checkpoint: a first step may have moved nothing."""
        self._prove(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the masks and the place in the schedule, as plain tensors and numbers."""
        return {
            "masks": None if self.masks is None else dict(self.masks.to("cpu")),
            "first_epoch": self._first_epoch,
            "epochs_asked": self._epochs_asked,
            "measurement": None if self.measurement is None else self.measurement.plain(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the masks and the place in the schedule of a checkpoint."""
        self.masks = None if state_dict["masks"] is None else Masks(state_dict["masks"])
        self._first_epoch = state_dict["first_epoch"]
        self._epochs_asked = state_dict["epochs_asked"]
        if (measured := state_dict.get("measurement")) is not None:
            self.measurement = Measurement.from_plain(measured)

    # What the hooks do.

    def _follow_schedule(self, epoch: int, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.masks_file is not None:
            if epoch == 0:
                masks = self._stored(self.masks_file, pl_module)
                _ranks(trainer).require_same(masks)
                masks = self._measured(masks, trainer, pl_module)
                self._require_effective(self.masks_file, masks.total)
                self._draw_anew(trainer, pl_module)
                self._hold(masks, trainer, pl_module)
            return
        assert self.target is not None
        masks = self.masks or Masks.dense(pl_module, self.include, self.exclude)
        keep = self.schedule.keep_from(epoch, masks.total, self.target.count(masks.total))
        if keep is not None:
            masks = self._prune(masks, keep, trainer, pl_module)
            _ranks(trainer).require_same(masks)
            masks = self._measured(masks, trainer, pl_module)
            self._draw_anew(trainer, pl_module)
            self._hold(masks, trainer, pl_module)

    def _draw_anew(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.reinitialise:
            # Ranks may differ in their seeds; their weights must not.
            seed = trainer.strategy.broadcast(self._generator().initial_seed())
            reinitialise(pl_module, int(seed))
            for optimizer in trainer.optimizers:
                optimizer.state.clear()

    def _stored(self, path: str, pl_module: LightningModule) -> Masks:
        """Load masks; they must be of this model, and a target beside them what they keep."""
        masks = Masks.load(path)
        masks.parameters(pl_module)
        target = self.target
        if target is not None and target.measure == "direct":
            _require_count(path, masks.kept, masks.total, target)
        return masks

    def _require_effective(self, path: str, total: int) -> None:
        """Check stored masks against an effective target, which is met from above.

        One that no threshold meets leaves a few more; many more are of another target.
        """
        assert self.measurement is not None
        kept = self.measurement.totals()["effective_kept"]
        if kept is None or self.target is None or self.target.measure == "direct":
            return
        wanted = self.target.count(total)
        text = (
            f"of the masks of {path} {int(kept)} of {total} connections are effective, the target "
            f"{self.target} asks for {wanted}"
        )
        if not wanted <= kept <= 1.1 * wanted + 100:
            raise LitPruneError(text)
        if kept > wanted:
            warnings.warn_explicit(text, TargetMissed, "lit_prune", 0)

    def _prune(
        self, masks: Masks, keep: int, trainer: Trainer, pl_module: LightningModule
    ) -> Masks:
        assert self.criterion is not None
        assert self.target is not None
        exact = Target(keep=keep, measure=self.target.measure)
        target = self.target if self.target.count(masks.total) == keep else exact
        generator = self._generator()
        data = TrainingBatches(trainer, self.batches, generator.initial_seed())
        example = self.example
        if example is None and keep < masks.total:
            # Criteria that need neither go without.
            with suppress(LitPruneError):
                example = self._inputs(masks, trainer, pl_module)
        steps = prune_by_rounds(
            pl_module,
            masks,
            self.criterion,
            target,
            self.quota,
            self.rounds,
            data,
            self.loss,
            example,
            generator,
            self.search,
            self.prune_ineffective,
            self.allow_collapse,
            self.floor,
            _ranks(trainer),
        )
        number = len(list(budgets(masks.kept, keep, rounds_of(self.criterion, self.rounds))))
        with warnings.catch_warnings():
            if not trainer.is_global_zero:
                # All have the same masks, and one warning is enough.
                warnings.simplefilter("ignore", TargetMissed)
            try:
                return last(_shown(steps, number, trainer), masks)
            finally:
                data.close()

    def _measured(self, masks: Masks, trainer: Trainer, pl_module: LightningModule) -> Masks:
        """Measure what the masks leave; return them, without what is ineffective if so wished.

        A module that cannot be followed from an example is trained all the same.

        Raises:
            LitPruneError: nothing effective is left, and that is not allowed.
        """
        self.measurement, inputs = unmeasured(masks), None
        try:
            inputs = self._inputs(masks, trainer, pl_module)
            names = [escape(name) for name in masks]
            effective = Connectivity(pl_module, inputs, include=names).effective(masks)
        except LitPruneError as error:
            why = first_line(error)
            text = f"effective sparsity is not measured: {why}"
            warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)
            if inputs is not None and isinstance(error, UnsupportedOp):
                self.measurement = measure(pl_module, masks, None, inputs)
            return masks
        if not self.allow_collapse:
            require_life(effective.kept)
        masks = effective if self.prune_ineffective else masks
        self.measurement = measure(pl_module, masks, effective, inputs)
        return masks

    def _inputs(
        self, masks: Masks, trainer: Trainer, pl_module: LightningModule
    ) -> tuple[Tensor, ...]:
        seed = self._generator().initial_seed()
        batches = [] if self.example is not None else TrainingBatches(trainer, 1, seed)()
        return Probe(pl_module, masks, batches, example=self.example).inputs()

    def _generator(self) -> torch.Generator:
        return self.generator or torch.Generator().manual_seed(self._seed or 0)

    def _prove(self, trainer: Trainer) -> None:
        for optimizer in trainer.optimizers:
            _require_zeros(optimizer, self._pruned)

    def _hold(self, masks: Masks, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on these masks hold: in the weights, their gradients and optimizer states."""
        weights = masks.parameters(pl_module)
        self.masks = Masks({name: masks[name].to(w.device) for name, w in weights.items()})
        self.masks.apply(pl_module)
        self._pruned = [
            (weight, bits_of(self.masks[name]))
            for name, weight in weights.items()
            if not bool(self.masks[name].all())
        ]
        for weight, bits in self._pruned:
            if weight.grad is not None:
                zero_pruned_(weight.grad, bits)
            for state in _states_of(weight, trainer.optimizers):
                zero_pruned_(state, bits)
        self._proven_at = trainer.global_step


def _ranks(trainer: Trainer) -> Ranks:
    """Return the processes that prune together."""
    if trainer.world_size > 1 and dist.is_available() and dist.is_initialized():
        return DistributedRanks(device=trainer.strategy.root_device)
    return ALONE


def _require_count(path: str, kept: int, total: int, target: Target) -> None:
    if target.count(total) != kept:
        raise LitPruneError(
            f"the masks of {path} keep {kept} of {total} connections, the target {target} asks for "
            f"{target.count(total)}"
        )


def _shown(steps: Iterator[Masks], number: int, trainer: Trainer) -> Iterator[Masks]:
    bar = trainer.progress_bar_callback
    shown = bar is not None and getattr(bar, "is_enabled", False)
    return iter(tqdm(steps, "scoring round", number, leave=False, disable=not shown))


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
