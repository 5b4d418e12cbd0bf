"""PHEW: paths of large weights, found by random walks without data."""

from dataclasses import dataclass
from glob import escape

import numpy as np
import torch
from torch import Tensor, nn

from lit_prune.connectivity import Connectivity
from lit_prune.connectivity.walks import Visits, Walker
from lit_prune.criterion import Criterion
from lit_prune.errors import LitPruneError
from lit_prune.probe import Probe, default_generator
from lit_prune.prunable import prunable

__all__ = ["PHEW"]

# So many walks are walked at once.
_BLOCK = 2048
# Walks end when no more than one visit in so many is of something new.
_RARE = 50


@dataclass(frozen=True)
class PHEW(Criterion):
    """Paths with higher edge weights: what random walks biased by the weights visit first.

    Walks from input units and from output units alternate, both taken in turn, until ``probe.keep``
    connections are visited. A walk goes on with a probability in proportion to ``|w|``, and at a
    convolution to the L1 norm of the kernel, of which it then keeps one weight;
    :class:`~lit_prune.connectivity.walks.Walker` says how walks go in any module. A connection
    scores by its first visit, the earlier the higher, so that every budget keeps what the walks
    visit until then, and masks nest.

    The walks go on until a tenth more than ``probe.keep`` is visited, for searches that need some
    more. They end sooner if all that they can reach is visited, or if in a block of 2048 walks no
    more than one visit in 50 was new (a share that can only fall), since the last connections take
    forever: so there are at most 50 visits for each connection, and one block. What is not visited
    ranks below by ``|w|``. Pruned connections are not walked; layers that are not pruned at all are
    walked by their own weights, where these can be followed.

    Source: Patil and Dovrolis 2021, "PHEW: constructing sparse networks that learn fast and
    generalize well without training data", arXiv 2010.11354.

    Needs: a budget, an example, and no quota.

    Departs: the last walk is cut off where the budget ends, and the code completes it. Kernel taps
    that only ever touch padding are not drawn, which the code draws as all others.

    Args:
        kernels: keep all weights of every kernel that a walk goes through, not one.
    """

    kernels: bool = False

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        """Return scores from 2 up for what walks visit, and from 0 to 1 for all else.

        Raises:
            LitPruneError: there is no budget, or a quota, which walks cannot follow.
        """
        keep = _budget(probe)
        generator = probe.generator or default_generator()
        with probe.masked() as model:
            connectivity, weights = _known(model, probe)
            walker = connectivity.walker(weights, probe.masks, self.kernels)
            wanted = keep + keep // 10 + walker.length
            visited = _in_order_of_first_visit(walker, wanted, generator)
            sizes = {name: weights[name].detach().abs() for name in probe.masks}
        return _scores(walker, visited, sizes)


def _budget(probe: Probe) -> int:
    if probe.counts is not None:
        raise LitPruneError("PHEW's walks decide how many connections each layer keeps: quota=None")
    if probe.keep is None:
        raise LitPruneError("PHEW needs a budget, how many connections to keep: pass keep=")
    return probe.keep


def _known(model: nn.Module, probe: Probe) -> tuple[Connectivity, dict[str, nn.Parameter]]:
    """Return the connectivity and its weights: all that are prunable, or those of the masks.

    A layer may be excluded since paths through its weights cannot be followed.
    """
    inputs = probe.inputs()
    try:
        return Connectivity(model, inputs), prunable(model)
    except LitPruneError:
        names = [escape(name) for name in probe.masks]
        return Connectivity(model, inputs, include=names), prunable(model, names)


def _in_order_of_first_visit(walker: Walker, wanted: int, generator: torch.Generator) -> np.ndarray:
    """Return the numbers of at least ``wanted`` connections if so many are found in time."""
    is_seen = np.zeros(walker.size, dtype=bool)
    found: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    missing, start = min(wanted, walker.connections), 0
    while missing > 0:
        visits = walker.visits(range(start, start + _BLOCK), generator)
        new = _first_visits(visits, is_seen)
        is_seen[new] = True
        found.append(new)
        missing -= len(new)
        start += _BLOCK
        if len(new) * _RARE <= len(visits.connections):
            break
    return np.concatenate(found)


def _first_visits(visits: Visits, is_seen: np.ndarray) -> np.ndarray:
    """Return the connections that are visited and not seen yet, in the order of the visits."""
    is_new = ~is_seen[visits.connections]
    connections = visits.connections[is_new]
    order = np.lexsort((visits.places[is_new], visits.walks[is_new]))
    _, first = np.unique(connections[order], return_index=True)
    return connections[order][np.sort(first)]


def _scores(walker: Walker, visited: np.ndarray, sizes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rank what is visited above all else, without ties; the rest by its size."""
    dtype = torch.float32 if len(visited) < 2**24 - 2 else torch.float64
    flat = torch.zeros(walker.size, dtype=dtype)
    flat[torch.from_numpy(visited)] = torch.arange(len(visited) + 1, 1, -1, dtype=dtype)
    largest = max(float(size.max()) for size in sizes.values() if size.numel()) or 1.0
    scores = {}
    for name, first in walker.by_weight(flat).items():
        rest = (sizes[name].cpu().double() / largest).to(dtype)
        scores[name] = torch.where(first > 0, first, rest).to(sizes[name].device)
    return scores
