"""Backbones: plain modules. A new file in this folder is a new one; any other comes by path."""

from typing import TYPE_CHECKING, Any

from torch import nn

from lit_prune.shelf import members

globals().update(members(__name__, __path__, nn.Module))

__all__ = list(members(__name__, __path__, nn.Module))

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
