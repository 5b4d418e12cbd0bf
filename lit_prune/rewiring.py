"""Rewiring: some connections of every layer for as many others."""

from collections.abc import Mapping

from torch import Tensor

from lit_prune.errors import LitPruneError
from lit_prune.masks import Masks
from lit_prune.selection import largest

__all__ = ["rewired"]


def rewired(
    masks: Masks, weights: Mapping[str, Tensor], growth: Mapping[str, Tensor], share: float
) -> Masks:
    """Return masks that keep as many connections of every layer as ``masks`` do, but others.

    Of the n connections that a layer keeps, ``round(share * n)`` of the least magnitude drop out;
    then as many grow that have the most ``growth`` among all that are not kept, those dropped
    included. Ties go by the fixed permutation of all rankings.

    Args:
        masks: what is kept now.
        weights: the weights, by the masks' names.
        growth: what a connection promises that is not kept; finite, by the masks' names.
        share: of a layer's connections, how much is dropped, 0 to 1.

    Raises:
        LitPruneError: the share is out of range.

    Examples:
        >>> import torch
        >>> masks = Masks({"w": torch.tensor([True, True, False, False])})
        >>> weights, growth = torch.tensor([3.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.1, 0.2, 0.9])
        >>> rewired(masks, {"w": weights}, {"w": growth}, share=0.5)["w"].tolist()
        [True, False, False, True]
    """
    if not 0 <= share <= 1:
        raise LitPruneError(f"share={share} is out of range: 0 to 1")
    return Masks({n: _layer(mask, weights[n], growth[n], share) for n, mask in masks.items()})


def _layer(mask: Tensor, weight: Tensor, growth: Tensor, share: float) -> Tensor:
    kept = int(mask.count_nonzero())
    number = round(share * kept)
    if not number:
        return mask.clone()
    [stays] = largest([weight.detach().abs()], kept - number, among=[mask])
    [grown] = largest([growth], number, among=[~stays])
    return stays | grown
