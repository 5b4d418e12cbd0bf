"""Controls: what is left of a criterion's merit when one thing about its masks is changed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.criteria.random import Random
from lit_prune.criterion import Criterion, QuotaLike, require_object
from lit_prune.masks import Masks
from lit_prune.probe import Probe
from lit_prune.quotas import FromCriterion

__all__ = ["Inverted", "SameQuotaRandom", "Shuffled"]


@dataclass(frozen=True)
class _Control(Criterion):
    """Prunes as another criterion does, but for one thing."""

    criterion: Criterion

    def __post_init__(self) -> None:
        """Check the criterion.

        Raises:
            LitPruneError: it is none.
        """
        require_object(type(self).__name__, "criterion", self.criterion)

    @property
    def rounds(self) -> int:  # type: ignore[override]
        """The rounds of the criterion."""
        return getattr(self.criterion, "rounds", 1)

    @property
    def regrows(self) -> bool:  # type: ignore[override]
        """Whether the criterion's removed connections may return."""
        return getattr(self.criterion, "regrows", False)

    @property
    def whole_filters(self) -> bool:  # type: ignore[override]
        """Whether the criterion keeps whole filters, before they are shuffled."""
        return getattr(self.criterion, "whole_filters", False)

    @property
    def quota(self) -> QuotaLike | None:
        """The quota of the criterion."""
        return getattr(self.criterion, "quota", None)

    def places(self, masks: Masks, generator: torch.Generator) -> dict[str, Tensor] | None:
        """Return what the criterion itself rearranges, which mostly is nothing."""
        own = getattr(self.criterion, "places", None)
        return None if own is None else own(masks, generator)


@dataclass(frozen=True)
class Shuffled(_Control):
    """The final masks of another criterion, permuted at random inside each layer.

    Layers keep as many connections as before, at other places. A method whose networks train as
    well when shuffled has found layer densities, and no connections. One permutation a layer is
    drawn for a prune, and the criterion itself prunes all its rounds undisturbed, so that masks
    nest as before. An effective target is met by the shuffled masks.

    Source: Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing the
    mark?", arXiv 2009.08576, section 5.

    Needs: what the criterion needs.

    Departs: in nothing.

    Args:
        criterion: whose masks to permute.
    """

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the scores of the criterion; it is the final masks that are permuted."""
        return self.criterion(probe)

    def places(self, masks: Masks, generator: torch.Generator) -> dict[str, Tensor]:
        """Return a random permutation of what is kept of each layer."""
        before = super().places(masks, generator)
        places = {name: _shuffled(mask, generator) for name, mask in masks.items()}
        return places if before is None else {n: before[n][place] for n, place in places.items()}


@dataclass(frozen=True)
class Inverted(_Control):
    """What another criterion values least: in every round its lowest scores are kept.

    If a criterion's order means anything, this is much worse than random.

    Source: Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing the
    mark?", arXiv 2009.08576, section 6.

    Needs: what the criterion needs.

    Departs: in nothing.

    Args:
        criterion: whose scores to negate.
    """

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the negative scores of the criterion."""
        return {name: -score for name, score in self.criterion(probe).items()}


@dataclass(frozen=True)
class SameQuotaRandom(Criterion):
    """Random pruning with the layer counts of another criterion: ``Random`` by ``FromCriterion``.

    Its masks have the distribution of those of :class:`Shuffled`, since a permuted mask is a random
    one with its count; but nothing of the criterion's masks is used besides the counts, and a quota
    that is given takes their place.

    Source: Su et al. 2020, "Sanity-checking pruning methods: random tickets can win the jackpot",
    arXiv 2009.11094.

    Needs: what the criterion needs.

    Departs: in nothing.

    Args:
        criterion: whose counts to take.
    """

    criterion: Criterion

    def __post_init__(self) -> None:
        """Check the criterion.

        Raises:
            LitPruneError: it is none.
        """
        require_object(type(self).__name__, "criterion", self.criterion)

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return uniform random scores."""
        return Random()(probe)

    @property
    def quota(self) -> QuotaLike:
        """The layer counts of the criterion's masks."""
        return FromCriterion(self.criterion)


def _shuffled(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Return a permutation of the flat indices of what is kept; the rest stays."""
    kept = mask.flatten().cpu().nonzero().squeeze(1)
    places = torch.arange(mask.numel())
    places[kept] = kept[torch.randperm(len(kept), generator=generator)]
    return places.to(mask.device)
