"""IGQ: ideal-gas quotas."""

from dataclasses import dataclass

from torch import Size

from lit_prune.quotas.quota import Quota, apportion, sizes_of

__all__ = ["IGQ"]


@dataclass(frozen=True)
class IGQ(Quota):
    r"""Ideal-gas quotas: layers are compressed like columns of gas by one common force F.

    .. math:: s_l = 1 - \frac{1}{F n_l + 1}, \quad \sum_l n_l s_l = S N

    with sparsity :math:`s_l` and size :math:`n_l`; F is solved for the total.

    Source: Vysogorets and Kempe 2021, "Connectivity matters", arXiv 2107.02306.

    Reaches: every total.

    Departs: counts sum to the total exactly; the code bisects F until it is nearly met.
    """

    def __call__(self, shapes: dict[str, Size], keep: int) -> dict[str, int]:
        """Return the counts; F is solved from ``keep`` (as its inverse, the level here)."""
        sizes = sizes_of(shapes).clip(1)
        return apportion("IGQ", shapes, keep, lambda inverse: inverse / (sizes + inverse))
