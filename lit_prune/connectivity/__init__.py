"""Connectivity: which connections of a network lie on a path from its input to its output."""

from lit_prune.connectivity import rules
from lit_prune.connectivity.connectivity import Connectivity, Curve, Resolution
from lit_prune.connectivity.rule import Wire, rule
from lit_prune.connectivity.wiring import Signal, UnsupportedOp, Weight

__all__ = [
    "Connectivity",
    "Curve",
    "Resolution",
    "Signal",
    "UnsupportedOp",
    "Weight",
    "Wire",
    "rule",
    "rules",
]
