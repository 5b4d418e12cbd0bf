"""Quotas: how many connections each layer keeps. A new file in this folder is a new quota."""

from typing import TYPE_CHECKING, Any

from lit_prune.quotas.quota import Quota
from lit_prune.shelf import members

globals().update(members(__name__, __path__, Quota))

__all__ = ["Quota", *members(__name__, __path__, Quota)]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
