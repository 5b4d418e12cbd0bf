"""Prune: masks that keep exactly as many connections as asked for."""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Literal, get_args

import torch
from torch import nn

from lit_prune.connectivity import Connectivity
from lit_prune.criterion import CriterionLike, QuotaLike
from lit_prune.errors import FloorOutOfRange, LitPruneError, LitPruneWarning, TargetMissed
from lit_prune.masks import Masks
from lit_prune.probe import Example, Loss, cross_entropy, default_generator
from lit_prune.prunable import Patterns
from lit_prune.ranking import Floor, Ranking, least_kept, require_floor
from lit_prune.ranks import ALONE, Ranks
from lit_prune.search import Found, Trail, first_enough, least_reachable, reprune, walk_back
from lit_prune.spine import BatchesLike, Spine, last, rounds_of, shapes_of
from lit_prune.targets import Target, TargetLike

__all__ = ["Observer", "Search", "prune", "prune_by_rounds", "require_life"]

Observer = Callable[[Ranking, Masks], None]
Search = Literal["curve", "reprune"]


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

    Examples:
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
    ranks: Ranks = ALONE,
    observe: Observer | None = None,
) -> Iterator[Masks]:
    """Yield the masks after every round of pruning; the arguments are those of :func:`prune`.

    Between two rounds the model may be looked at, and it is as it came. Nothing is yielded, and
    nothing scored, where the target keeps every connection. The last masks are those asked for; an
    effective target has its search after the rounds.

    Many ``ranks`` come to the same masks if all of them iterate to the end, with the same model and
    arguments and each with batches of its own. Scores are of the data of all ranks, and all random
    numbers are those of rank 0's generator.
    """
    _require_functions(criterion=criterion, quota=quota)
    if search not in get_args(Search):
        known = ", ".join(get_args(Search))
        raise LitPruneError(f"unknown search {search!r}; known: {known}")
    target = Target.parse(target)
    keep = target.count(masks.total)
    generator = default_generator() if generator is None else generator
    if not isinstance(generator, torch.Generator):
        raise LitPruneError(f"generator={generator!r} is no torch.Generator")
    generator.set_state(ranks.first({"generator": generator.get_state()})["generator"])
    data = _rereadable(batches)
    loss = loss or cross_entropy
    spine = Spine(model, criterion, data, loss, example, generator, ranks=ranks)
    spine = spine.ready(masks, keep, quota, floor)
    number = rounds_of(criterion, rounds)
    spine.require_nesting(number)
    needs_paths = keep < masks.total and (target.measure == "effective" or prune_ineffective)
    connectivity = spine.connectivity(masks) if needs_paths else None
    ranking: Ranking | None = None
    if target.measure == "direct" or keep == masks.total:
        if not getattr(criterion, "whole_filters", False):
            require_floor(floor, masks, keep)
        for step in spine.rounds(masks, keep, number):
            masks, ranking = step
            yield masks
        _say_if_rounded(masks, keep)
    else:
        assert connectivity is not None
        found, ranking = yield from _searched(spine, connectivity, masks, keep, number, search)
        if not allow_collapse:
            require_life(found.effective)
        _warn_if_missed(target, found, masks.total, keep)
        masks = found.masks
        yield masks
    if observe is not None and ranking is not None:
        observe(ranking, masks)
    if prune_ineffective and connectivity is not None:
        yield connectivity.effective(masks)
    if spine.places is not None:
        # The rearrangement drew from a copy; a generator that goes on gives another next time.
        torch.rand((), generator=generator)


def _require_functions(**given: object) -> None:
    for role, function in given.items():
        if isinstance(function, type) or (function is not None and not callable(function)):
            raise LitPruneError(f"{role}={function!r} is no function: pass an object, as in SNIP()")


def _rereadable(batches: BatchesLike | None) -> BatchesLike:
    """Return batches that every round can read."""
    data: BatchesLike = () if batches is None else batches
    if not isinstance(data, Iterable) and not callable(data):
        raise LitPruneError(
            f"batches={data!r} is neither iterable nor a function of the round's number"
        )
    return list(data) if isinstance(data, Iterator) else data


def _searched(
    spine: Spine, connectivity: Connectivity, dense: Masks, keep: int, number: int, search: Search
) -> Generator[Masks, None, tuple[Found, Ranking | None]]:
    """Yield the masks on the way to an effective target; return what was found.

    With it goes the ranking of the round that decided; None where that is not known.
    """
    if keep == 0:
        require_floor(spine.floor, dense, 0)
        nothing = Masks({name: torch.zeros_like(mask) for name, mask in dense.items()})
        return Found(nothing, 0), None
    start = least_reachable(spine.quota, dense, max(keep, least_kept(spine.floor, dense)))
    if search == "reprune" or not spine.nests:
        found, ranking = yield from _repruned(spine, connectivity, dense, keep, number, start)
    elif number == 1:
        _, ranking = next(spine.rounds(dense, start, 1))
        try:
            found = first_enough(connectivity, ranking, keep, low=start - 1)
        except FloorOutOfRange:
            require_floor(spine.floor, dense, keep)
            raise
    else:
        trail, before = Trail(dense, spine.quota), dense
        ranking, before_last = None, dense
        for masks, ranking in spine.rounds(dense, start, number):
            yield masks
            trail.add(before, masks, ranking)
            before_last, before = before, masks
        found = walk_back(connectivity, trail, keep)
        if not found.masks <= before_last:
            ranking = None
    if found.masks.kept == start > keep and found.effective > keep:
        # The quota or the floor cannot go where the target is; it says so best itself.
        if spine.quota is not None:
            spine.quota(shapes_of(dense), keep)
        require_floor(spine.floor, dense, keep)
    return found, ranking


def _repruned(
    spine: Spine, connectivity: Connectivity, dense: Masks, keep: int, number: int, start: int
) -> Generator[Masks, None, tuple[Found, Ranking | None]]:
    """Yield the masks of every attempt; return the best, and the last ranking that led to it."""
    state = spine.generator.get_state()
    tried: tuple[Masks, Ranking | None] = (dense, None)

    def pruned(k: int) -> Masks:
        nonlocal tried
        spine.generator.set_state(state)
        tried = (dense, None)
        for tried in spine.rounds(dense, k, number):  # noqa: B007 (the last one is wanted)
            pass
        return tried[0]

    ranking = None
    for found in reprune(connectivity, pruned, dense.kept, keep, start):
        if found.effective >= keep and found.masks is tried[0]:
            ranking = tried[1]
        yield found.masks
    return found, ranking


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


def _warn_if_missed(target: Target, found: Found, total: int, keep: int) -> None:
    if found.effective == keep:
        return
    text = (
        f"no threshold meets {target} ({keep} of {total} connections) exactly: {found.effective} "
        f"are effective, a sparsity of {1 - found.effective / total:.6%}"
    )
    if (after := found.next_effective) is not None:
        text += f"; the next possible one is {1 - after / total:.6%}, with {after}"
    # Written of no line of code: generators and progress bars lie between here and the caller.
    warnings.warn_explicit(text, TargetMissed, "lit_prune", 0)
