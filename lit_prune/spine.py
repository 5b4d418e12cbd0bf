"""The spine of a prune: probe, score, rank, keep; again for every round."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from glob import escape
from typing import Any

import torch
from torch import Size, Tensor, nn

from lit_prune.connectivity import Connectivity
from lit_prune.criterion import CriterionLike, QuotaLike
from lit_prune.errors import LitPruneError, LitPruneWarning, MasksMismatch
from lit_prune.masks import Masks
from lit_prune.probe import Example, Loss, Probe, same_random_state, undisturbed
from lit_prune.quotas import Quota
from lit_prune.ranking import Floor, Ranking, rearranged
from lit_prune.ranks import ALONE, Ranks
from lit_prune.search import Trail

__all__ = ["BatchesLike", "Spine", "budgets", "last", "rounds_of", "shapes_of"]

BatchesLike = Iterable[Any] | Callable[[int], Iterable[Any]]
# Sets random numbers apart that a criterion must not miss.
_APART = 0x5DEECE66D


@dataclass(frozen=True)
class Spine:
    """One network and how it is scored, by one process or by many ``ranks`` together."""

    model: nn.Module
    criterion: CriterionLike
    batches: BatchesLike
    loss: Loss
    example: Example
    generator: torch.Generator
    quota: QuotaLike | None = None
    floor: Floor | None = None
    places: dict[str, Tensor] | None = None
    ranks: Ranks = ALONE

    def ready(
        self,
        masks: Masks,
        keep: int,
        quota: QuotaLike | None = None,
        floor: Floor | None = None,
    ) -> "Spine":
        """Return the spine with the quota, floor and rearrangement that ``masks`` are pruned by."""
        chosen = getattr(self.criterion, "quota", None) if quota is None else quota
        if isinstance(chosen, Quota):
            chosen = chosen.bound(_Others(self, masks, keep))
        if floor is not None and chosen is not None:
            raise LitPruneError("a floor and a quota both fix what a layer keeps: give one of them")
        places = None
        if (rearrange := getattr(self.criterion, "places", None)) is not None:
            # A source of its own, so that the criterion draws the same numbers without this.
            seed = int(torch.randint(2**62, (), generator=_copy(self.generator)))
            places = rearrange(masks, torch.Generator().manual_seed(seed ^ _APART))
        return replace(self, quota=chosen, floor=floor, places=places)

    @property
    def nests(self) -> bool:
        """Whether the masks of a smaller count lie in those of a larger one, one by one."""
        odd = ("regrows", "whole_filters")
        return not any(getattr(x, a, False) for x in (self.criterion, self.quota) for a in odd)

    def require_nesting(self, rounds: int) -> None:
        """Check that a quota can be followed in so many rounds.

        Raises:
            LitPruneError: its counts may rise in a layer as they fall in all, so that what one
                round leaves may not be enough for the next.
        """
        rises = getattr(self.quota, "regrows", False)
        if rises and rounds > 1 and not getattr(self.criterion, "regrows", False):
            raise LitPruneError(
                f"the quota is taken from a criterion whose connections return, and goes with one "
                f"round only, not with rounds={rounds}"
            )

    def rounds(self, masks: Masks, keep: int, number: int) -> Iterator[tuple[Masks, Ranking]]:
        """Yield the masks after each round, and the ranking that it went by."""
        start, example = masks, self.example
        for turn, budget in enumerate(budgets(masks.kept, keep, number)):
            data = self._data(turn)
            counts = None if self.quota is None else self.quota(shapes_of(masks), budget)
            probe = replace(self._probe(masks, data), example=example, keep=budget)
            probe = replace(probe, counts=counts, round=turn)
            ranking = self._ranking(probe, start)
            if example is None and isinstance(data, _OfOneRound) and data.were_read:
                # Not read again for its shape alone; some batches hold no input, and need none.
                with suppress(LitPruneError):
                    example = probe.inputs()
            masks = ranking.keep(budget)
            if self.places is None:
                yield masks, ranking
            else:
                yield Masks(rearranged(masks, self.places)), ranking.rearranged(self.places)

    def _ranking(self, probe: Probe, start: Masks) -> Ranking:
        regrows = getattr(self.criterion, "regrows", False)
        with undisturbed(self.model, seed=self.generator.initial_seed()):
            # Taken over in here, since the scores may be the lent weights themselves.
            scores = _checked(self.criterion(probe), probe.masks)
            # Machines may differ in the last bits; what follows must not.
            scores = self.ranks.first(scores)
            if probe.round == 0:
                _warn_if_constant(scores, self.criterion)
            return Ranking(
                scores,
                self.quota,
                among=start if regrows else probe.masks,
                finite=True,
                floor=self.floor,
                whole_filters=getattr(self.criterion, "whole_filters", False),
            )

    def connectivity(self, masks: Masks) -> Connectivity:
        """Return the connectivity of the network; only what the masks name is prunable."""
        names = [escape(name) for name in masks]
        with same_random_state(self.generator.initial_seed()):
            inputs = self._probe(masks, self._data(0)).inputs()
        return Connectivity(self.model, inputs, include=names)

    def _data(self, turn: int) -> Iterable[Any]:
        return _OfOneRound(self.batches, turn) if callable(self.batches) else self.batches

    def _probe(self, masks: Masks, data: Iterable[Any]) -> Probe:
        data, given = self.ranks.in_step(data), (self.loss, self.example, self.generator)
        return Probe(self.model, masks, data, *given, ranks=self.ranks)


@dataclass
class _OfOneRound:
    """The batches of one round, read when they are first looked at."""

    source: Callable[[int], Iterable[Any]]
    turn: int
    were_read: bool = False
    _batches: list[Any] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        if not self.were_read:
            self._batches = list(self.source(self.turn))
            self.were_read = True
        return iter(self._batches)


@dataclass(frozen=True)
class _Others:
    """Prunes the same network by other criteria, from the same masks and the same seed.

    Asked mostly for counts from ``keep`` up, so that iterated criteria run down to there once.
    """

    spine: Spine
    masks: Masks
    keep: int

    def __call__(self, criterion: CriterionLike) -> Callable[[int], Masks]:
        """Return what gives the masks of any count by ``criterion``."""
        found: list[Callable[[int], Masks]] = []

        def pruned(k: int) -> Masks:
            if not found:
                found.append(self._pruner(criterion))
            return found[0](k)

        return pruned

    def _pruner(self, criterion: CriterionLike) -> Callable[[int], Masks]:
        number, start = rounds_of(criterion, None), _copy(self.spine.generator)

        def ready(k: int) -> Spine:
            spine = replace(self.spine, criterion=criterion, generator=_copy(start))
            return spine.ready(self.masks, k)

        def anew(k: int) -> Masks:
            return last((m for m, _ in ready(k).rounds(self.masks, k, number)), self.masks)

        if not ready(self.keep).nests:
            return anew
        trail, before = Trail(self.masks, ready(self.keep).quota), self.masks
        for masks, ranking in ready(self.keep).rounds(self.masks, self.keep, number):
            trail.add(before, masks, ranking)
            before = masks
        return trail.keep


def _copy(generator: torch.Generator) -> torch.Generator:
    """Return a generator that draws what ``generator`` would draw next."""
    copy = torch.Generator().manual_seed(generator.initial_seed())
    copy.set_state(generator.get_state())
    return copy


def shapes_of(masks: Masks) -> dict[str, Size]:
    """Return the shape of each layer."""
    return {name: mask.shape for name, mask in masks.items()}


def _warn_if_constant(scores: Mapping[str, Tensor], criterion: CriterionLike) -> None:
    parts = [score for score in scores.values() if score.numel()]
    if sum(score.numel() for score in parts) < 2:
        return
    # Almost always the first two differ, and nothing more needs to be read.
    first = parts[0].flatten()[0]
    if all(bool((x.flatten()[:2] == first).all()) and bool((x == first).all()) for x in parts):
        name = getattr(criterion, "__name__", type(criterion).__name__)
        text = (
            f"{name} gives every connection the same score, {float(first):g}: which are kept is "
            "left to the fixed permutation that breaks ties"
        )
        warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)


def last(steps: Iterator[Masks], dense: Masks) -> Masks:
    """Return the last of ``steps``, or ``dense`` where there is none."""
    final = deque(steps, maxlen=1)
    return final[0] if final else dense


def rounds_of(criterion: CriterionLike, rounds: int | None) -> int:
    """Return the number of rounds asked for, or the criterion's own."""
    chosen = getattr(criterion, "rounds", 1) if rounds is None else rounds
    if not isinstance(chosen, int) or chosen < 1:
        raise LitPruneError(f"rounds={chosen} is out of range: a whole number from 1 up")
    return chosen


def budgets(total: int, keep: int, rounds: int) -> Iterator[int]:
    """Yield how many of ``total`` connections each round keeps: geometric, ending on ``keep``.

    Examples:
        >>> list(budgets(1000, 1, 3))
        [100, 10, 1]
    """
    if keep == total:
        return
    for done in range(1, rounds):
        yield max(keep, round(total * (keep / total) ** (done / rounds)))
    yield keep


def _checked(scores: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return the scores in the order of ``masks``, whose names and shapes they must have."""
    if scores.keys() != masks.keys():
        odd = sorted(scores.keys() ^ masks.keys())[0]
        raise MasksMismatch(f"the criterion must score the layers of probe.masks; see {odd}")
    for name, mask in masks.items():
        if scores[name].shape != mask.shape:
            shapes = f"{tuple(scores[name].shape)} instead of {tuple(mask.shape)}"
            raise MasksMismatch(f"the scores of {name} have the shape {shapes}")
    return {name: scores[name].to(mask.device) for name, mask in masks.items()}
