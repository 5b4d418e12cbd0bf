"""Schedules: when to prune and how far. A new file in this folder is a new schedule."""

from typing import TYPE_CHECKING, Any

from lit_prune.schedules.schedule import Schedule
from lit_prune.shelf import members

globals().update(members(__name__, __path__, Schedule))

__all__ = ["Schedule", *members(__name__, __path__, Schedule)]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
