"""The spine: probe, score, rank, keep; again for every round."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.criteria import CriterionLike
from lit_prune.errors import LitPruneError, MasksMismatch
from lit_prune.masks import Masks
from lit_prune.probe import Example, Loss, Probe, cross_entropy, default_generator, undisturbed
from lit_prune.prunable import Patterns
from lit_prune.ranking import QuotaLike, Ranking
from lit_prune.targets import Target, TargetLike

__all__ = ["budgets", "last", "prune", "prune_by_rounds", "rounds_of"]


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
) -> Masks:
    """Return masks that keep exactly as many connections of ``model`` as ``target`` says.

    The model is only looked at and comes back bit-identical; ``masks.apply(model)`` prunes it.
    The global random states are not touched.

    Args:
        model: any module.
        criterion: scores connections, higher = keep: a ``Criterion`` or a function of that form.
        target: a ``Target`` or what ``Target.parse`` reads, such as ``"100x"``; ``"1x"`` keeps
            everything and scores nothing.
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

    Raises:
        NonFiniteScores: a score is NaN or infinite; the layer is named.
        LitPruneError: what is asked for cannot be met.

    >>> from lit_prune.criteria import Magnitude
    >>> model = nn.Linear(10, 10)
    >>> prune(model, Magnitude(), "4x").kept
    25
    """
    masks = Masks.dense(model, include, exclude)
    steps = prune_by_rounds(
        model, masks, criterion, target, quota, rounds, batches, loss, example, generator
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
) -> Iterator[Masks]:
    """Yield the masks after every round of pruning; the arguments are those of :func:`prune`.

    Between two rounds the model may be looked at, and it is as it came. Nothing is yielded, and
    nothing scored, where the target keeps every connection.
    """
    for role, given in (("criterion", criterion), ("quota", quota)):
        if isinstance(given, type) or (given is not None and not callable(given)):
            raise LitPruneError(f"{role}={given!r} is no function: pass an object, as in SNIP()")
    keep = Target.parse(target).count(masks.total)
    generator = generator or default_generator()
    data = () if batches is None else batches
    if isinstance(data, Iterator):
        data = list(data)
    for budget in budgets(masks.total, keep, rounds_of(criterion, rounds)):
        probe = Probe(model, masks, data, loss or cross_entropy, example, generator, budget)
        with undisturbed(model, seed=generator.initial_seed()):
            # Taken over in here, since the scores may be the lent weights themselves.
            scores = _checked(criterion(probe), masks)
            ranking = Ranking(scores, quota, among=masks, finite=True)
            del scores
        masks = ranking.keep(budget)
        yield masks


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
