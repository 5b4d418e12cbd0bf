"""Quotas taken from a criterion."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Size

from lit_prune.criterion import Criterion, QuotaLike, require_object
from lit_prune.errors import LitPruneError
from lit_prune.masks import Masks
from lit_prune.quotas.quota import Pruned, Quota

__all__ = ["FromCriterion"]


@dataclass(frozen=True)
class FromCriterion(Quota):
    """The layer counts of another criterion's masks: random/snip is ``Random`` with these.

    ``criterion`` prunes the same network to the same total, from the same seed, in its own number
    of rounds, and each layer keeps as many connections as there.

    Source: Vysogorets and Kempe 2021, "Connectivity matters", arXiv 2107.02306 (random/snip,
    random/synflow).

    Reaches: every total.

    Departs: the code prunes anew at every step of an effective target's search; here one run of the
    criterion ranks all its counts.

    Args:
        criterion: whose counts to take; what it needs (data, an example) must be given.
    """

    criterion: Criterion

    def __post_init__(self) -> None:
        """Check the criterion.

        Raises:
            LitPruneError: it is none.
        """
        require_object(type(self).__name__, "criterion", self.criterion)

    @property
    def regrows(self) -> bool:
        """Whether counts may rise in a layer as they fall in all; quotas of quotas included."""
        own = getattr(self.criterion, "regrows", False)
        return own or getattr(getattr(self.criterion, "quota", None), "regrows", False)

    def __call__(self, shapes: dict[str, Size], keep: int) -> dict[str, int]:
        """Not possible without a network.

        Raises:
            LitPruneError: always; ``prune`` and ``MaskManager`` bind the quota to their network.
        """
        name = _name(self.criterion)
        raise LitPruneError(
            f"FromCriterion({name}) needs a network: pass it to prune or MaskManager"
        )

    def bound(self, pruned: Pruned) -> QuotaLike:
        """Return the quota of one network."""
        return _OfMasks(_name(self.criterion), pruned(self.criterion), self.regrows)


def _name(criterion: object) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)


@dataclass(frozen=True, eq=False)
class _OfMasks:
    """The layer counts of the masks of any total."""

    name: str
    masks_of: Callable[[int], Masks]
    regrows: bool

    def __call__(self, shapes: dict[str, Size], keep: int) -> dict[str, int]:
        masks = self.masks_of(keep)
        if masks.kept != keep:
            raise LitPruneError(
                f"no quota can be taken from {self.name}: its masks keep {masks.kept} connections "
                f"where {keep} are asked for"
            )
        return {row.name: row.kept for row in masks.layers()}
