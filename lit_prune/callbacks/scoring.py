"""Scoring: how the mask manager finds masks for a module in training, and measures them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from lit_prune.callbacks.training_batches import TrainingBatches
from lit_prune.connectivity import Connectivity, UnsupportedOp
from lit_prune.criteria import Criterion
from lit_prune.errors import LitPruneError, LitPruneWarning, TargetMissed, first_line
from lit_prune.masks import Masks
from lit_prune.measure import Measurement, measure, unmeasured
from lit_prune.probe import Example, Loss, Probe, undisturbed
from lit_prune.prune import Observer, Search, prune_by_rounds, require_life
from lit_prune.quotas import Quota
from lit_prune.ranks import ALONE, DistributedRanks, Ranks
from lit_prune.spine import budgets, last, rounds_of
from lit_prune.targets import Target
from lit_prune.weights import load_weights

__all__ = ["Scoring", "ranks_of"]

CriterionLike = Criterion | Callable[[Probe], dict[str, Tensor]]
QuotaLike = Quota | Callable[[dict[str, torch.Size], int], dict[str, int]]


@dataclass(frozen=True)
class Scoring:
    """How masks are found; the attributes are arguments of :class:`MaskManager`."""

    criterion: CriterionLike | None
    target: Target | None
    quota: QuotaLike | None
    rounds: int | None
    batches: int
    loss: Loss | None
    example: Example
    search: Search
    prune_ineffective: bool
    allow_collapse: bool
    floor: int | str | None
    masks_file: str | None
    scored_weights: str | None = None

    def count(self, total: int) -> int | None:
        """Return how many of ``total`` connections the target or the file of masks keeps."""
        if self.target is not None:
            return self.target.count(total)
        return None if self.masks_file is None else Masks.load(self.masks_file).kept

    def pruned(
        self,
        masks: Masks,
        keep: int,
        trainer: Trainer,
        pl_module: LightningModule,
        generator: torch.Generator,
        observe: Observer | None = None,
    ) -> Masks:
        """Return the masks that keep ``keep`` connections, counted as the target counts them.

        What scored them is shown to ``observe``.

        Raises:
            RanksDiffer: the processes that train together come to different ones.
        """
        found = self._stored(pl_module)
        if found is None and keep >= masks.kept:
            # What is ineffective went with the last prune, and took more than was asked for.
            return masks
        if found is None:
            found = self._searched(masks, keep, trainer, pl_module, generator, observe)
        ranks_of(trainer).require_same(found)
        return found

    def _searched(
        self,
        masks: Masks,
        keep: int,
        trainer: Trainer,
        pl_module: LightningModule,
        generator: torch.Generator,
        observe: Observer | None,
    ) -> Masks:
        assert self.criterion is not None
        data = TrainingBatches(trainer, self.batches, generator.initial_seed())
        example = self.example
        if example is None and keep < masks.total:
            # Criteria that need neither go without.
            with suppress(LitPruneError):
                example = self._inputs(masks, trainer, pl_module, generator.initial_seed())
        steps = prune_by_rounds(
            pl_module,
            masks,
            self.criterion,
            self._target(masks.total, keep),
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
            ranks_of(trainer),
            observe,
        )
        number = len(list(budgets(masks.kept, keep, rounds_of(self.criterion, self.rounds))))
        with warnings.catch_warnings():
            if not trainer.is_global_zero:
                # All have the same masks, and one warning is enough.
                warnings.simplefilter("ignore", TargetMissed)
            try:
                with self._scored(pl_module):
                    return last(_shown(steps, number, trainer), masks)
            finally:
                data.close()

    def measured(
        self, masks: Masks, trainer: Trainer, pl_module: LightningModule, seed: int
    ) -> tuple[Masks, Measurement, Masks | None]:
        """Return the masks, without what is ineffective if so wished, and what they leave.

        The last is what is effective of them; None where that is not known.

        A module that cannot be followed from an example is trained all the same.

        Raises:
            LitPruneError: nothing effective is left, and that is not allowed; or stored masks do
                not meet an effective target.
        """
        inputs = None
        try:
            inputs = self._inputs(masks, trainer, pl_module, seed)
            names = [escape(name) for name in masks]
            effective = Connectivity(pl_module, inputs, include=names).effective(masks)
        except LitPruneError as error:
            text = f"effective sparsity is not measured: {first_line(error)}"
            warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)
            if inputs is not None and isinstance(error, UnsupportedOp):
                return masks, measure(pl_module, masks, None, inputs), None
            return masks, unmeasured(masks), None
        if not self.allow_collapse:
            require_life(effective.kept)
        masks = effective if self.prune_ineffective else masks
        return masks, measure(pl_module, masks, effective, inputs), effective

    def require_stored(self, measurement: Measurement, total: int) -> None:
        """Check stored masks against an effective target, which is met from above.

        One that no threshold meets leaves a few more; many more are of another target.
        """
        kept = measurement.totals()["effective_kept"]
        target = self.target
        if self.masks_file is None or kept is None or target is None or target.measure == "direct":
            return
        wanted = target.count(total)
        text = (
            f"of the masks of {self.masks_file} {int(kept)} of {total} connections are effective, "
            f"the target {target} asks for {wanted}"
        )
        if not wanted <= kept <= 1.1 * wanted + 100:
            raise LitPruneError(text)
        if kept > wanted:
            warnings.warn_explicit(text, TargetMissed, "lit_prune", 0)

    @contextmanager
    def _scored(self, pl_module: LightningModule) -> Iterator[None]:
        """Lend the module with the weights that are to be scored."""
        if self.scored_weights is None:
            yield
            return
        with undisturbed(pl_module, seed=0):
            load_weights(getattr(pl_module, "backbone", pl_module), self.scored_weights)
            yield

    def _target(self, total: int, keep: int) -> Target:
        """Return the target itself where it is meant, so that messages say it as it was given."""
        if self.target is None:
            return Target(keep=keep)
        if self.target.count(total) == keep:
            return self.target
        return Target(keep=keep, measure=self.target.measure)

    def _stored(self, pl_module: LightningModule) -> Masks | None:
        """Load masks; they must be of this model, and a target beside them what they keep."""
        if self.masks_file is None:
            return None
        masks = Masks.load(self.masks_file)
        masks.parameters(pl_module)
        target = self.target
        if target is not None and target.measure == "direct":
            _require_count(self.masks_file, masks.kept, masks.total, target)
        return masks

    def _inputs(
        self, masks: Masks, trainer: Trainer, pl_module: LightningModule, seed: int
    ) -> tuple[Tensor, ...]:
        batches = [] if self.example is not None else TrainingBatches(trainer, 1, seed)()
        return Probe(pl_module, masks, batches, example=self.example).inputs()


def ranks_of(trainer: Trainer) -> Ranks:
    """Return the processes that train together."""
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
