"""Findings: all that is found out about a subject."""

from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape

from torch import Tensor, nn

from lit_prune.connectivity import Connectivity, UnsupportedOp
from lit_prune.errors import first_line
from lit_prune.inspect.subject import Subject
from lit_prune.masks import Masks
from lit_prune.measure import Measurement, measure, unmeasured

__all__ = ["Findings", "Traced", "findings_of"]


@dataclass(frozen=True)
class Traced:
    """What connectivity says of a network.

    Attributes:
        connectivity: the network, ready for further questions.
        effective: which connections lie on a path from input to output.
        log_paths: the decimal logarithm of the number of such paths; ``-inf`` if there is none.
        nodes: how many units on such paths enter each layer, and how many leave the network.
        all_nodes: how many do so in the dense network.
    """

    connectivity: Connectivity
    effective: Masks
    log_paths: float
    nodes: Mapping[str, int]
    all_nodes: Mapping[str, int]


@dataclass(frozen=True)
class Findings:
    """What is found out about a subject.

    Attributes:
        masks: what is kept.
        measurement: a row for each layer.
        traced: what follows from the paths of the network; None where these are not known.
        notes: a line for everything that is not known, and why.
    """

    masks: Masks
    measurement: Measurement
    traced: Traced | None
    notes: tuple[str, ...]


def findings_of(subject: Subject) -> Findings:
    """Find out what can be known.

    Raises:
        LitPruneError: the network does not take the example.
    """
    masks, model, inputs = subject.masks, subject.model, subject.inputs
    if model is None or inputs is None:
        return Findings(masks, unmeasured(masks), None, subject.notes)
    try:
        traced = _traced(model, masks, inputs)
    except UnsupportedOp as error:
        note = f"unknown is what hangs on paths: {first_line(error)}"
        return Findings(masks, measure(model, masks, None, inputs), None, (*subject.notes, note))
    found = measure(model, masks, traced.effective, inputs)
    return Findings(masks, found, traced, subject.notes)


def _traced(model: nn.Module, masks: Masks, inputs: tuple[Tensor, ...]) -> Traced:
    connectivity = Connectivity(model, inputs, include=[escape(name) for name in masks])
    return Traced(
        connectivity,
        connectivity.effective(masks),
        connectivity.paths(masks),
        _entering(connectivity.nodes(masks)),
        _entering(connectivity.nodes(Masks.dense(model, [escape(name) for name in masks]))),
    )


def _entering(nodes: Mapping[str, int]) -> dict[str, int]:
    """Leave out the ends that are inputs, since the first layers count them."""
    return {name: number for name, number in nodes.items() if name != "input"}
