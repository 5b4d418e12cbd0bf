"""The spine: probe, score, rank, keep; again for every round."""

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from glob import escape
from typing import Any, Literal, get_args

import torch
from torch import Size, Tensor, nn

from lit_prune.connectivity import Connectivity
from lit_prune.criterion import CriterionLike, QuotaLike
from lit_prune.errors import LitPruneError, LitPruneWarning, MasksMismatch, TargetMissed
from lit_prune.masks import Masks
from lit_prune.probe import Example, Loss, Probe, cross_entropy, default_generator, undisturbed
from lit_prune.prunable import Patterns
from lit_prune.quotas import Quota
from lit_prune.ranking import Floor, Ranking, least_kept, require_floor
from lit_prune.search import Found, Trail, first_enough, least_reachable, reprune, walk_back
from lit_prune.targets import Target, TargetLike

__all__ = [
    "BatchesLike",
    "Search",
    "budgets",
    "last",
    "prune",
    "prune_by_rounds",
    "require_life",
    "rounds_of",
]

Search = Literal["curve", "reprune"]
BatchesLike = Iterable[Any] | Callable[[int], Iterable[Any]]


def prune(
    model: nn.Module,
    criterion: CriterionLike,
    target: TargetLike,
    quota: QuotaLike | None = None,
    rounds: int | None = None,
    batches: BatchesLike | None = None,
    loss: Loss | None = None,
    example: Example = None,
    generator: torch.Generator | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    search: Search = "curve",
    prune_ineffective: bool = False,
    allow_collapse: bool = False,
    floor: Floor | None = None,
) -> Masks:
    """Return masks that keep exactly as many connections of ``model`` as ``target`` says.

    The model is only looked at and comes back bit-identical; ``masks.apply(model)`` prunes it.
    The global random states are not touched.

    An effective target is met from above: the masks have at least the effective connections asked
    for, and without the next connection in the ranking they would have less. Where none has exactly
    so many, the last before it is kept and :class:`TargetMissed` warns.

    Args:
        model: any module.
        criterion: scores connections, higher = keep: a ``Criterion`` or a function of that form.
        target: a ``Target`` or what ``Target.parse`` reads, such as ``"100x"`` or ``"100x
            effective"``; ``"1x"`` keeps everything and scores nothing.
        quota: fixes how many each layer keeps, and the criterion ranks inside layers; None is the
            criterion's own, and if it has none ranks all connections together.
        rounds: scores anew in so many rounds along a geometric path of densities; None takes the
            criterion's own number.
        batches: training batches for criteria that need data, iterated anew in each round; or a
            function that gives those of a round, by its number from 0 on.
        loss: ``loss(model, batch)``; None is cross-entropy on ``(x, y)``.
        example: an input, or its shape with the batch; None takes one from ``batches``.
        generator: the source of all randomness; None is one seeded by ``torch.initial_seed()``.
        include: name pattern or patterns of what may be pruned (see :func:`prunable`).
        exclude: pattern or patterns of what may not.
        search: how an effective target is found. ``"curve"`` scores once, or in its rounds down to
            the direct count, and searches the ranking by connectivity; ``"reprune"`` prunes anew,
            with fresh scores, until the effective rate meets the target: for criteria whose masks
            do not nest.
        prune_ineffective: also remove what is kept but ineffective; by default it stays, as in the
            paper.
        allow_collapse: return masks of which nothing is effective instead of an error, where
            effective connections are asked for.
        floor: a minimum threshold: every layer keeps at least so many connections, or all it has;
            ``"0.05%"`` is a share of the whole network. The rest is ranked together. Source: Gupta
            et al. 2022, "Is complexity required for neural network pruning?", arXiv 2209.14624.

    Raises:
        NonFiniteScores: a score is NaN or infinite; the layer is named.
        UnsupportedOp: connectivity is asked for and the model has an operation without a rule.
        LitPruneError: what is asked for cannot be met.

    >>> from lit_prune.criteria import Magnitude
    >>> model = nn.Linear(10, 10)
    >>> prune(model, Magnitude(), "4x").kept
    25
    """
    masks = Masks.dense(model, include, exclude)
    steps = prune_by_rounds(
        model,
        masks,
        criterion,
        target,
        quota,
        rounds,
        batches,
        loss,
        example,
        generator,
        search,
        prune_ineffective,
        allow_collapse,
        floor,
    )
    return last(steps, masks)


def prune_by_rounds(
    model: nn.Module,
    masks: Masks,
    criterion: CriterionLike,
    target: TargetLike,
    quota: QuotaLike | None = None,
    rounds: int | None = None,
    batches: BatchesLike | None = None,
    loss: Loss | None = None,
    example: Example = None,
    generator: torch.Generator | None = None,
    search: Search = "curve",
    prune_ineffective: bool = False,
    allow_collapse: bool = False,
    floor: Floor | None = None,
) -> Iterator[Masks]:
    """Yield the masks after every round of pruning; the arguments are those of :func:`prune`.

    Between two rounds the model may be looked at, and it is as it came. Nothing is yielded, and
    nothing scored, where the target keeps every connection. The last masks are those asked for; an
    effective target has its search after the rounds.
    """
    for role, given in (("criterion", criterion), ("quota", quota)):
        if isinstance(given, type) or (given is not None and not callable(given)):
            raise LitPruneError(f"{role}={given!r} is no function: pass an object, as in SNIP()")
    if search not in get_args(Search):
        known = ", ".join(get_args(Search))
        raise LitPruneError(f"unknown search {search!r}; known: {known}")
    target = Target.parse(target)
    keep = target.count(masks.total)
    generator = generator or default_generator()
    data: BatchesLike = () if batches is None else batches
    if isinstance(data, Iterator):
        data = list(data)
    spine = _Spine(model, criterion, data, loss or cross_entropy, example, generator)
    spine = spine.ready(masks, keep, quota, floor)
    number = rounds_of(criterion, rounds)
    needs_paths = keep < masks.total and (target.measure == "effective" or prune_ineffective)
    connectivity = spine.connectivity(masks) if needs_paths else None
    if target.measure == "direct" or keep == masks.total:
        require_floor(floor, masks, keep)
        for step, _ in spine.rounds(masks, keep, number):
            masks = step
            yield masks
        _say_if_rounded(masks, keep)
    else:
        assert connectivity is not None
        found = yield from _searched(spine, connectivity, masks, keep, number, search)
        if not allow_collapse:
            require_life(found.effective)
        _warn_if_missed(target, found, masks.total, keep)
        masks = found.masks
        yield masks
    if prune_ineffective and connectivity is not None:
        yield connectivity.effective(masks)


@dataclass(frozen=True)
class _Spine:
    """One network and how it is scored."""

    model: nn.Module
    criterion: CriterionLike
    batches: BatchesLike
    loss: Loss
    example: Example
    generator: torch.Generator
    quota: QuotaLike | None = None
    floor: Floor | None = None
    places: dict[str, Tensor] | None = None

    def ready(
        self,
        masks: Masks,
        keep: int,
        quota: QuotaLike | None = None,
        floor: Floor | None = None,
    ) -> "_Spine":
        """Return the spine with the quota, floor and rearrangement that ``masks`` are pruned by."""
        chosen = getattr(self.criterion, "quota", None) if quota is None else quota
        if isinstance(chosen, Quota):
            chosen = chosen.bound(_Others(self, masks, keep))
        if floor is not None and chosen is not None:
            raise LitPruneError("a floor and a quota both fix what a layer keeps: give one of them")
        places = None
        if (rearrange := getattr(self.criterion, "places", None)) is not None:
            # A source of its own, so that the criterion draws the same numbers without this.
            apart = torch.Generator().manual_seed(self.generator.initial_seed() ^ _APART)
            places = rearrange(masks, apart)
        return replace(self, quota=chosen, floor=floor, places=places)

    @property
    def nests(self) -> bool:
        """Whether the masks of a smaller count lie in those of a larger one, one by one."""
        odd = ("regrows", "whole_filters")
        return not any(getattr(x, a, False) for x in (self.criterion, self.quota) for a in odd)

    def rounds(self, masks: Masks, keep: int, number: int) -> Iterator[tuple[Masks, Ranking]]:
        """Yield the masks after each round, and the ranking that it went by."""
        start, example = masks, self.example
        for turn, budget in enumerate(budgets(masks.kept, keep, number)):
            data = self._data(turn)
            counts = None if self.quota is None else self.quota(_shapes(masks), budget)
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
                yield Masks(_taken(masks, self.places)), ranking.rearranged(self.places)

    def _ranking(self, probe: Probe, start: Masks) -> Ranking:
        regrows = getattr(self.criterion, "regrows", False)
        with undisturbed(self.model, seed=self.generator.initial_seed()):
            # Taken over in here, since the scores may be the lent weights themselves.
            scores = _checked(self.criterion(probe), probe.masks)
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
        return Connectivity(self.model, self._probe(masks, self._data(0)).inputs(), include=names)

    def _data(self, turn: int) -> Iterable[Any]:
        return _OfOneRound(self.batches, turn) if callable(self.batches) else self.batches

    def _probe(self, masks: Masks, data: Iterable[Any]) -> Probe:
        return Probe(self.model, masks, data, self.loss, self.example, self.generator)


_APART = 0x5DEECE66D


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

    spine: _Spine
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
        seed = self.spine.generator.initial_seed()
        number = rounds_of(criterion, None)

        def ready(k: int) -> _Spine:
            generator = torch.Generator().manual_seed(seed)
            spine = replace(self.spine, criterion=criterion, generator=generator)
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


def _shapes(masks: Masks) -> dict[str, Size]:
    return {name: mask.shape for name, mask in masks.items()}


def _taken(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor with its elements taken from ``places``."""
    return {
        name: x.flatten()[places[name].to(x.device)].view(x.shape) for name, x in tensors.items()
    }


def _searched(
    spine: _Spine, connectivity: Connectivity, dense: Masks, keep: int, number: int, search: Search
) -> Generator[Masks, None, Found]:
    """Yield the masks on the way to an effective target, and return what was found."""
    if keep == 0:
        nothing = Masks({name: torch.zeros_like(mask) for name, mask in dense.items()})
        return Found(nothing, 0)
    start = least_reachable(spine.quota, dense, max(keep, least_kept(spine.floor, dense)))
    if search == "reprune" or not spine.nests:
        state = spine.generator.get_state()

        def pruned(k: int) -> Masks:
            spine.generator.set_state(state)
            return last((masks for masks, _ in spine.rounds(dense, k, number)), dense)

        for found in reprune(connectivity, pruned, dense.kept, keep, start):
            yield found.masks
    elif number == 1:
        _, ranking = next(spine.rounds(dense, start, 1))
        found = first_enough(connectivity, ranking, keep, low=start - 1)
    else:
        trail, before = Trail(dense, spine.quota), dense
        for masks, ranking in spine.rounds(dense, start, number):
            yield masks
            trail.add(before, masks, ranking)
            before = masks
        found = walk_back(connectivity, trail, keep)
    if found.masks.kept == start > keep and found.effective > keep:
        # The quota or the floor cannot go where the target is; it says so best itself.
        if spine.quota is not None:
            spine.quota(_shapes(dense), keep)
        require_floor(spine.floor, dense, keep)
    return found


def require_life(effective: int) -> None:
    """Check that some connections are effective.

    Raises:
        LitPruneError: none is.
    """
    if not effective:
        raise LitPruneError(
            "nothing effective is left: no path of kept connections leads from the input to the "
            "output; pass allow_collapse=True to go on all the same"
        )


def _say_if_rounded(masks: Masks, keep: int) -> None:
    if masks.kept > keep:
        text = f"whole filters are kept: {masks.kept} connections instead of {keep}"
        warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)


def _warn_if_constant(scores: Mapping[str, Tensor], criterion: CriterionLike) -> None:
    parts = [score for score in scores.values() if score.numel()]
    # Almost always the first two differ, and nothing more needs to be read.
    first = parts[0].flatten()[0]
    if all(bool((x.flatten()[:2] == first).all()) and bool((x == first).all()) for x in parts):
        name = getattr(criterion, "__name__", type(criterion).__name__)
        text = (
            f"{name} gives every connection the same score, {float(first):g}: which are kept is "
            "left to the fixed permutation that breaks ties"
        )
        warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)


def _warn_if_missed(target: Target, found: Found, total: int, keep: int) -> None:
    if found.next_effective is None or found.effective == keep:
        return
    reached, after = (1 - n / total for n in (found.effective, found.next_effective))
    # Written of no line of code: generators and progress bars lie between here and the caller.
    warnings.warn_explicit(
        f"no threshold meets {target} ({keep} of {total} connections) exactly: {found.effective} "
        f"are effective, a sparsity of {reached:.6%}; the next possible one is {after:.6%}, with "
        f"{found.next_effective}",
        TargetMissed,
        "lit_prune",
        0,
    )


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
