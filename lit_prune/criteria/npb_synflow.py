"""NPB on SynFlow: synaptic flow with rounds of random masks in between."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_prune.criteria.synflow import SynFlow
from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError
from lit_prune.probe import Probe, default_generator

__all__ = ["NPBSynFlow"]


@dataclass(frozen=True)
class NPBSynFlow(Criterion):
    """SynFlow whose masks are drawn anew at random every so many rounds, for more nodes.

    In a random round the scores are standard normal numbers: the mask becomes a random one of that
    round's density, drawn from all connections. In every other round they are those of
    :class:`SynFlow`, which prunes what the last draw has left: a removed connection has no flow, so
    that it comes back in random rounds only. An effective target is met by pruning anew, since
    these masks do not nest.

    This is the first form of node-path balancing, by its public code, since its text could not be
    consulted: of 100 rounds, those with ``round % every == 0`` and ``round + 1 <= until`` are
    random, the first (round 0) among them.

    Source: Pham et al. 2023, "Towards data-agnostic pruning at initialization: what makes a good
    sparse mask?", in its first form, an ICLR 2023 submission.

    Needs: an example input, of which only the shape matters.

    Departs: the code's values of ``every`` and ``until`` were not found; those here are ours, and
    leave the last 59 rounds to SynFlow. A draw may keep connections on no path, which have no flow
    either; here those that are removed rank below them, at -1.

    Args:
        every: a random round comes after every so many rounds.
        until: the number of rounds after which none is random any more, whatever the number of
            rounds; with 0 this is SynFlow. Choose it below the number of rounds, so that the last
            round is none of them.
    """

    every: int = 10
    until: int = 50

    rounds: ClassVar[int] = 100
    regrows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            LitPruneError: one of them is out of range.
        """
        for name, value, least in (("every", self.every, 1), ("until", self.until, 0)):
            if not isinstance(value, int) or value < least:
                raise LitPruneError(
                    f"NPBSynFlow: {name}={value} is out of range: a whole number from {least} up"
                )

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return random numbers in a random round, else the synaptic flow, and -1 where removed.

        Raises:
            LitPruneError: that of :class:`SynFlow`.
        """
        if not self._is_random(probe.round):
            flows = SynFlow()(probe)
            return {
                n: flow.masked_fill_(~probe.masks[n].to(flow.device), -1)
                for n, flow in flows.items()
            }
        source = probe.generator or default_generator()
        return {
            name: torch.randn(mask.shape, generator=source).to(mask.device)
            for name, mask in probe.masks.items()
        }

    def _is_random(self, number: int) -> bool:
        return number % self.every == 0 and number + 1 <= self.until
