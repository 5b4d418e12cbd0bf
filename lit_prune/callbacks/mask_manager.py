"""MaskManager: holds the masks through training."""

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim import Optimizer

from lit_prune.acts import Due, Prune
from lit_prune.callbacks.scoring import CriterionLike, QuotaLike, Scoring
from lit_prune.callbacks.under_way import Standing, UnderWay
from lit_prune.errors import LitPruneError, LitPruneWarning
from lit_prune.masks import Masks
from lit_prune.measure import Measurement
from lit_prune.probe import Example, Loss
from lit_prune.prunable import Patterns
from lit_prune.prune import Observer, Search
from lit_prune.schedules import Schedule
from lit_prune.schedules.at_init import AtInit
from lit_prune.targets import Target
from lit_prune.timing import Course, Time

__all__ = ["MaskManager", "manager_of"]

_FLOPS = ("flops/effective", "effective_flops")


class MaskManager(Callback):
    """Prunes a LightningModule when its schedule says so, and keeps it pruned to the bit.

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
        schedule: when to prune and how far each time, and what to rewind. One that knows how long
            the training takes must agree with ``Trainer(max_epochs=...)``, or sets it where that
            is -1.
        masks: a file of masks to use instead of scoring; a target beside it must be what it keeps,
            and the schedule must prune but once.
        search: how an effective target is found, ``"curve"`` or ``"reprune"`` (see ``prune``).
        prune_ineffective: also remove what is kept but ineffective.
        allow_collapse: train a network of which nothing is effective, instead of an error.
        floor: every layer keeps at least so many connections, as a number or as in ``"0.05%"`` of
            the whole network.
        reinitialise: after pruning, draw new weights under the same masks (every module's
            ``reset_parameters``): a control that tells whether masks know their initialization.
        scored_weights: a file of weights that are scored in place of the module's own, such as the
            last checkpoint of a dense run: a trained network is pruned, and training begins from
            the initialization (arXiv 2107.02306). The schedule must prune but once.

    Attributes:
        masks: the current masks; None before training starts.
        measurement: what they leave, layer by layer: effective connections, dead units, FLOPs.
        scoring: how masks are found.
        standing: where the training stands: all that a checkpoint holds of it.
        observe: is shown the ranking and the masks of every prune, if set before training starts.

    Raises:
        LitPruneError: neither masks nor both a criterion and a target are given; or the schedule
            has its own say how far to prune, and there is a target too.
    """

    def __init__(
        self,
        criterion: CriterionLike | None = None,
        target: Target | str | int | float | None = None,
        quota: QuotaLike | None = None,
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
        scored_weights: str | None = None,
    ) -> None:
        _require_purpose(criterion, target, masks, schedule)
        if masks is not None and scored_weights is not None:
            raise LitPruneError(
                f"masks={masks} scores nothing, so scored_weights={scored_weights} goes without it"
            )
        if batches < 1:
            raise LitPruneError(f"batches={batches} is out of range: at least 1")
        self.schedule = schedule
        self.target = None if target is None else Target.parse(target)
        self.reinitialise = reinitialise
        self.include, self.exclude = include, exclude
        self.generator = generator
        self.observe: Observer | None = None
        self.scoring = Scoring(
            criterion,
            self.target,
            quota,
            rounds,
            batches,
            loss,
            example,
            search,
            prune_ineffective,
            allow_collapse,
            floor,
            masks,
            scored_weights,
        )
        self._seed: int | None = None
        self._standing = Standing()
        self._training: UnderWay | None = None
        # The place in the schedule: what is due, how much of it is done, and where it began.
        self._plan: list[Due] = []
        self._course: Course | None = None
        self._done = 0
        self._first_epoch: int | None = None
        self._first_step = 0
        self._proven_at: int | None = None
        self._logged: dict[str, float] = {}
        self._sets_length = False

    @property
    def masks(self) -> Masks | None:
        """The current masks; None before training starts."""
        return self._standing.masks if self._training is None else self._training.masks

    @property
    def measurement(self) -> Measurement | None:
        """What the masks leave, layer by layer."""
        return (self._training or self).standing.measurement

    def current(self) -> Masks:
        """Return the masks of a training under way or at its end.

        Raises:
            LitPruneError: no training has started.
        """
        if self.masks is None:
            raise LitPruneError("there are no masks yet: they come when a training starts")
        return self.masks

    def result(self) -> tuple[Masks, Measurement]:
        """Return the masks and what they leave.

        Raises:
            LitPruneError: they have not been measured: no epoch has started.
        """
        if self.measurement is None:
            raise LitPruneError("masks are not measured yet: that comes when an epoch starts")
        return self.current(), self.measurement

    @property
    def standing(self) -> Standing:
        """Where the training stands."""
        return self._standing if self._training is None else self._training.standing

    # The hooks, in the order in which Lightning calls them.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the seed of the run, refuse what shards parameters, agree on the length."""
        if self._seed is None:
            self._seed = int(trainer.strategy.broadcast(torch.initial_seed()))
        if stage == "fit":
            _require_whole_parameters(trainer)
            # What is open needs a number before optimizers are made, where one is known already.
            self._sets_length = trainer.max_epochs == -1 and self.schedule.fixes_length
            if self._sets_length and (length := self.schedule.length(None)) is not None:
                trainer.fit_loop.max_epochs = trainer.current_epoch + length

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the training, and put stored or restored masks to work."""
        if self._first_epoch is None:
            self._first_epoch, self._first_step = trainer.current_epoch, trainer.global_step
        steps = _steps_an_epoch(trainer, pl_module)
        self._agree_on_length(trainer, steps)
        standing = self.standing
        if standing.masks is None:
            dense = Masks.dense(pl_module, self.include, self.exclude)
            standing = replace(standing, masks=dense)
        assert self._seed is not None
        self._training = UnderWay(
            *(self.scoring, trainer, pl_module, standing, self._seed, self.generator, self.observe)
        )
        self._proven_at = trainer.global_step
        self._plan_course(trainer, self._training.masks.total, steps)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what is due with this epoch; log the sparsity."""
        self._do_what_is_due(trainer, trainer.current_epoch)
        assert self._training is not None
        self._training.measure()
        self._log_sparsity(trainer, pl_module, trainer.global_step)

    def on_train_batch_start(self, *args: Any) -> None:
        """Keep a rate that a schedule holds."""
        assert self._training is not None
        self._training.keep_rate()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Zero the gradients of pruned weights: after unscaling, before clipping and the step."""
        assert self._training is not None
        self._do_what_is_due(trainer, trainer.current_epoch, in_step=True)
        self._training.before_step(optimizer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Do what is due after so many steps; prove that the optimizer leaves zeros zero."""
        if self._proven_at is not None and trainer.global_step > self._proven_at:
            self._proven_at = None
            self._prove()
        # What is due with an epoch waits for its start.
        self._do_what_is_due(trainer, epoch=-1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prove it again, before the epoch's checkpoint: a first step may have moved nothing.

        Sparsity that changed in the epoch is logged; at its last step, since the next epoch starts
        where this one ends.
        """
        assert self._training is not None
        self._prove()
        self._training.measure()
        if self._sparsity() != self._logged:
            self._log_sparsity(trainer, pl_module, trainer.global_step - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the training was ended before its schedule."""
        left = len(self._plan) - self._done
        if left and trainer.is_global_zero:
            text = (
                f"the training ended in epoch {trainer.current_epoch}, before its schedule "
                f"{type(self.schedule).__name__}: {left} of {len(self._plan)} acts are not done, "
                f"the next one is due at {self._plan[self._done].time}"
            )
            warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)

    def state_dict(self) -> dict[str, Any]:
        """Return where the training and its schedule stand, as plain tensors and numbers."""
        return {
            **self.standing.plain(),
            "first_epoch": self._first_epoch,
            "first_step": self._first_step,
            "done": self._done,
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over where a checkpoint stands."""
        state = dict(state_dict)
        self._first_epoch = state.pop("first_epoch")
        self._first_step = state.pop("first_step")
        self._done = state.pop("done")
        generator = state.pop("generator")
        if self.generator is not None and generator is not None:
            self.generator.set_state(generator)
        self._standing, self._training = Standing.from_plain(state), None

    # What else a run asks for.

    def measure(self) -> Measurement:
        """Return what the masks leave, measured now if they have changed."""
        if self._training is not None:
            self._training.measure()
        return self.result()[1]

    def effective(self) -> Masks | None:
        """Return the connections that are kept and lie on a path; None where that is not known.

        It is known of a training under way, and after one that this object has seen.
        """
        if self._training is None:
            return None
        self._training.measure()
        return self._training.effective()

    def ends_level(self, epoch: int) -> bool:
        """Whether a new level of sparsity begins in the epoch after ``epoch``."""
        if self._course is None:
            return False
        following = epoch + 1 - (self._first_epoch or 0)
        starts = (due.time for due in self._plan if due.act.opens_level)
        return any(_epoch(time, self._course) == following for time in starts)

    # How it is done.

    def _agree_on_length(self, trainer: Trainer, steps: int | None) -> None:
        """Let the trainer take as many epochs as the schedule, where that knows.

        Raises:
            LitPruneError: the trainer was told otherwise.
        """
        if not self.schedule.fixes_length:
            return
        name, length = type(self.schedule).__name__, self.schedule.length(steps)
        if length is None:
            raise LitPruneError(
                f"the schedule {name} counts epochs from a point in optimizer steps, and "
                "the training data do not say how many batches they have; name it in epochs"
            )
        if trainer.max_steps != -1:
            raise LitPruneError(
                f"the schedule {name} takes {length} epochs, and "
                f"trainer.max_steps={trainer.max_steps} may end it before; leave it out"
            )
        end = (self._first_epoch or 0) + length
        if self._sets_length:
            trainer.fit_loop.max_epochs = end
        elif trainer.max_epochs != end:
            after = f" after the {self._first_epoch} before" if self._first_epoch else ""
            raise LitPruneError(
                f"the schedule {name} takes {length} epochs{after}, and trainer.max_epochs is "
                f"{trainer.max_epochs}: set it to {end}, or leave it out of a config (-1 in your "
                "own Trainer)"
            )

    def _plan_course(self, trainer: Trainer, total: int, steps: int | None) -> None:
        epochs = trainer.max_epochs
        self._course = Course(
            total=total,
            keep=self.scoring.count(total) if self.schedule.wants_target else None,
            epochs=None if epochs in (None, -1) else epochs - (self._first_epoch or 0),
            steps=steps,
        )
        self._plan = self.schedule.plan(self._course)
        _require_within(self.schedule, self._plan, self._course)
        _require_steps(self.schedule, self._plan, self._course, trainer.max_steps)
        _require_no_swa(trainer, self._plan)
        leaves_nothing = any(isinstance(act, Prune) and not act.keep for _, act in self._plan)
        if leaves_nothing and self._course.keep is None and not self.scoring.allow_collapse:
            raise LitPruneError(
                f"the schedule {self.schedule} leaves none of {total} connections; allow_collapse "
                "trains such a network all the same"
            )
        prunes = sum(due.act.prunes for due in self._plan)
        for name in ("masks_file", "scored_weights"):
            if (file := getattr(self.scoring, name)) is not None and prunes != 1:
                raise LitPruneError(
                    f"{name.removesuffix('_file')}={file} goes with a schedule that prunes once; "
                    f"{type(self.schedule).__name__} prunes {prunes} times"
                )

    def _do_what_is_due(self, trainer: Trainer, epoch: int, in_step: bool = False) -> None:
        """Do all acts whose time has come: that of epochs up to ``epoch``, and of steps done."""
        training, before = self._training, self._done
        assert training is not None
        while self._done < len(self._plan):
            time, act = self._plan[self._done]
            now = epoch if time.unit == "ep" else trainer.global_step - self._first_step
            is_early = now - (self._first_epoch or 0) * (time.unit == "ep") < time.count
            if is_early or (act.takes_gradients and not in_step):
                break
            if act.takes_gradients and not training.gradients_are_finite():
                break
            act.do(training)
            self._done += 1
        done = self._plan[before : self._done]
        if self.reinitialise and any(due.act.opens_level for due in done):
            training.draw_anew()
        if done:
            self._proven_at = trainer.global_step

    def _sparsity(self) -> dict[str, float]:
        masks, measurement = self.result()
        found = measurement.totals()
        values = {
            "sparsity/direct": masks.sparsity,
            "sparsity/effective": found["effective_sparsity"],
            _FLOPS[0]: found[_FLOPS[1]],
        }
        return {tag: float(value) for tag, value in values.items() if value is not None}

    def _log_sparsity(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        self._logged = self._sparsity()
        for tag, value in self._logged.items():
            pl_module.log(tag, value, logger=False, sync_dist=True)
        # Written at once: what an epoch averages is written after its checkpoint, where a kill
        # would lose it.
        for logger in trainer.loggers:
            logger.log_metrics(self._logged, step=step)

    def _prove(self) -> None:
        assert self._training is not None
        self._training.require_zeros()


def manager_of(trainer: Trainer, asker: Callback) -> MaskManager:
    """Return the trainer's mask manager.

    Raises:
        LitPruneError: there is none; it says which callback asks.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    found = [callback for callback in callbacks if isinstance(callback, MaskManager)]
    if not found:
        name = type(asker).__name__
        raise LitPruneError(f"{name} needs a MaskManager among the trainer's callbacks")
    return found[0]


def _require_purpose(
    criterion: object, target: object, masks: str | None, schedule: Schedule
) -> None:
    """Check that it is said, once, what to prune down to."""
    name = type(schedule).__name__
    if not schedule.wants_target:
        if target is not None:
            raise LitPruneError(
                f"the schedule {schedule} says how far to prune, and so does the target {target}: "
                "give one of them"
            )
        if criterion is None:
            raise LitPruneError(f"pruning by the schedule {name} needs a criterion")
    elif masks is None and (criterion is None or target is None):
        raise LitPruneError("pruning needs a criterion and a target, or masks=FILE")


def _require_whole_parameters(trainer: Trainer) -> None:
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        raise LitPruneError(
            f"masks need whole parameters on every rank; {type(trainer.strategy).__name__} "
            "does not give them; use trainer.strategy=ddp or a single device"
        )


def _require_within(schedule: Schedule, plan: list[Due], course: Course) -> None:
    """Check that all of the plan happens before the training ends."""
    if course.epochs is None or not plan:
        return
    last = plan[-1].time
    if (epoch := _epoch(last, course)) is not None and epoch >= course.epochs:
        raise LitPruneError(
            f"the schedule {type(schedule).__name__} has work to do at {last}, and the training "
            f"ends with epoch {course.epochs}"
        )


def _require_steps(schedule: Schedule, plan: list[Due], course: Course, limit: int) -> None:
    """Check that ``max_steps`` leave room for all of the plan, as far as epochs tell."""
    if limit == -1 or not plan:
        return
    last = plan[-1].time
    if last.unit == "it" or course.steps is not None:
        step = course.step(last)
        if step >= limit:
            raise LitPruneError(
                f"the schedule {type(schedule).__name__} has work to do at {last}, after step "
                f"{step}, and trainer.max_steps={limit} ends the training before"
            )


def _require_no_swa(trainer: Trainer, plan: list[Due]) -> None:
    """Check that no average runs over weights from before and after a prune."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    is_there = any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks)
    if is_there and any(due.time.count for due in plan):
        raise LitPruneError(
            "StochasticWeightAveraging changes optimizers behind a schedule that prunes during "
            "training; use lightning.pytorch.callbacks.WeightAveraging"
        )


def _epoch(time: Time, course: Course) -> int | None:
    """Return the epoch in which a time lies; None where that cannot be known."""
    return None if time.unit == "it" and course.steps is None else course.epoch(time)


def _steps_an_epoch(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """Return how many optimizer steps an epoch has; None where only training will show."""
    batches = trainer.num_training_batches
    if math.isinf(batches) or not pl_module.automatic_optimization:
        return None
    return math.ceil(batches / trainer.accumulate_grad_batches)
