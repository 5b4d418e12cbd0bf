"""FORCE: foresight connection sensitivity."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_prune.criteria.snip import mean_gradients
from lit_prune.criterion import Criterion
from lit_prune.probe import Probe

__all__ = ["FORCE"]


@dataclass(frozen=True)
class FORCE(Criterion):
    r"""Foresight connection sensitivity, :math:`|w \, \partial L / \partial w|` at the pruned net.

    w is the weight of the dense network and the gradient that of the network as pruned so far, so
    that a removed connection has a score as well and may come back: every round ranks all
    connections again. The number kept falls exponentially over 60 rounds. An effective target is
    met by pruning anew, since these masks do not nest. The paper's Iter SNIP is ``SNIP`` in rounds.

    Source: de Jorge et al. 2021, "Progressive skeletonization: trimming more fat from a network at
    initialization", arXiv 2006.09081, eq. 4 and algorithm 1.

    Needs: batches, fresh ones in every round.

    Departs: the code keeps all that reach a threshold, ties included, and so everything once the
    threshold is zero; here counts are exact.
    """

    rounds: ClassVar[int] = 60
    regrows: ClassVar[bool] = True

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return the sensitivities of all connections, removed ones too.

        Raises:
            LitPruneError: the probe has no batches.
        """
        own = probe.masks.parameters(probe.model)
        dense = {name: weight.detach().clone() for name, weight in own.items()}
        with probe.masked() as model:
            weights = probe.masks.parameters(model)
            gradients = mean_gradients("FORCE", probe, list(weights.values()))
            pairs = zip(weights, gradients, strict=True)
            return {name: (dense[name] * g).abs() for name, g in pairs}
