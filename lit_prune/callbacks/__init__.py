"""Callbacks: masks through training, and what a person sees of it."""

from lit_prune.callbacks.checkpoints import Checkpoints, WholeCheckpoints
from lit_prune.callbacks.finite_loss import FiniteLoss
from lit_prune.callbacks.levels import Levels
from lit_prune.callbacks.mask_manager import MaskManager
from lit_prune.callbacks.progress import Progress
from lit_prune.callbacks.seeded_epochs import SeededEpochs
from lit_prune.callbacks.sparsity_monitor import SparsityMonitor

__all__ = [
    "Checkpoints",
    "FiniteLoss",
    "Levels",
    "MaskManager",
    "Progress",
    "SeededEpochs",
    "SparsityMonitor",
    "WholeCheckpoints",
]
