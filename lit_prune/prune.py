"""The spine: probe, score, rank, keep; again for every round."""

import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from glob import escape
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_prune.connectivity import Connectivity
from lit_prune.criterion import CriterionLike, QuotaLike
from lit_prune.errors import LitPruneError, MasksMismatch, TargetMissed
from lit_prune.masks import Masks
from lit_prune.probe import Example, Loss, Probe, cross_entropy, default_generator, undisturbed
from lit_prune.prunable import Patterns
from lit_prune.ranking import Ranking
from lit_prune.search import Found, Trail, first_enough, least_reachable, reprune, walk_back
from lit_prune.targets import Target, TargetLike

__all__ = ["Search", "budgets", "last", "prune", "prune_by_rounds", "require_life", "rounds_of"]

Search = Literal["curve", "reprune"]


def prune(
    model: nn.Module,
    criterion: CriterionLike,
    target: TargetLike,
    quota: QuotaLike | None = None,
    rounds: int | None = None,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    example: Example = None,
    generator: torch.Generator | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    search: Search = "curve",
    prune_ineffective: bool = False,
    allow_collapse: bool = False,
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
        quota: fixes how many each layer keeps, and the criterion ranks inside layers; None ranks
            all connections together.
        rounds: scores anew in so many rounds along a geometric path of densities; None takes the
            criterion's own number.
        batches: training batches for criteria that need data; iterated anew in each round.
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
    )
    return last(steps, masks)


def prune_by_rounds(
    model: nn.Module,
    masks: Masks,
    criterion: CriterionLike,
    target: TargetLike,
    quota: QuotaLike | None = None,
    rounds: int | None = None,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    example: Example = None,
    generator: torch.Generator | None = None,
    search: Search = "curve",
    prune_ineffective: bool = False,
    allow_collapse: bool = False,
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
    data = () if batches is None else batches
    if isinstance(data, Iterator):
        data = list(data)
    spine = _Spine(model, criterion, quota, data, loss or cross_entropy, example, generator)
    number = rounds_of(criterion, rounds)
    needs_paths = keep < masks.total and (target.measure == "effective" or prune_ineffective)
    connectivity = spine.connectivity(masks) if needs_paths else None
    if target.measure == "direct" or keep == masks.total:
        for step, _ in spine.rounds(masks, keep, number):
            masks = step
            yield masks
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
    quota: QuotaLike | None
    batches: Iterable[Any]
    loss: Loss
    example: Example
    generator: torch.Generator

    def rounds(self, masks: Masks, keep: int, number: int) -> Iterator[tuple[Masks, Ranking]]:
        """Yield the masks after each round, and the ranking that it went by."""
        for budget in budgets(masks.kept, keep, number):
            probe = self._probe(masks, budget)
            with undisturbed(self.model, seed=self.generator.initial_seed()):
                # Taken over in here, since the scores may be the lent weights themselves.
                scores = _checked(self.criterion(probe), masks)
                ranking = Ranking(scores, self.quota, among=masks, finite=True)
                del scores
            masks = ranking.keep(budget)
            yield masks, ranking

    def connectivity(self, masks: Masks) -> Connectivity:
        """Return the connectivity of the network; only what the masks name is prunable."""
        names = [escape(name) for name in masks]
        return Connectivity(self.model, self._probe(masks).inputs(), include=names)

    def _probe(self, masks: Masks, budget: int | None = None) -> Probe:
        return Probe(
            self.model, masks, self.batches, self.loss, self.example, self.generator, budget
        )


def _searched(
    spine: _Spine, connectivity: Connectivity, dense: Masks, keep: int, number: int, search: Search
) -> Generator[Masks, None, Found]:
    """Yield the masks on the way to an effective target, and return what was found."""
    if keep == 0:
        nothing = Masks({name: torch.zeros_like(mask) for name, mask in dense.items()})
        return Found(nothing, 0)
    start = least_reachable(spine.quota, dense, keep)
    if search == "reprune":
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
        # The quota cannot go where the target is; it says so best itself.
        assert spine.quota is not None
        spine.quota({name: mask.shape for name, mask in dense.items()}, keep)
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
