"""Pruning of neural networks, measured by effective sparsity.

The core works in any PyTorch script; what needs Lightning is imported on first use only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_prune.connectivity import Connectivity, UnsupportedOp
from lit_prune.errors import LitPruneError
from lit_prune.masks import Masks
from lit_prune.probe import Probe
from lit_prune.prunable import prunable
from lit_prune.prune import prune
from lit_prune.ranking import Ranking
from lit_prune.targets import Target

if TYPE_CHECKING:
    from lit_prune.callbacks.mask_manager import MaskManager
    from lit_prune.module import LitClassifier

__version__ = "0.1.0"

__all__ = [
    "Connectivity",
    "LitClassifier",
    "LitPruneError",
    "MaskManager",
    "Masks",
    "Probe",
    "Ranking",
    "Target",
    "UnsupportedOp",
    "prunable",
    "prune",
]

_LIGHTNING_NAMES = {
    "LitClassifier": "lit_prune.module",
    "MaskManager": "lit_prune.callbacks.mask_manager",
}


def __getattr__(name: str) -> Any:
    if name in _LIGHTNING_NAMES:
        return getattr(import_module(_LIGHTNING_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
