"""Criteria: one paper, one file. A new file in this folder is a new criterion."""

from typing import TYPE_CHECKING, Any

from lit_prune.criterion import Criterion, CriterionLike
from lit_prune.shelf import members

globals().update(members(__name__, __path__, Criterion))

__all__ = ["Criterion", "CriterionLike", *members(__name__, __path__, Criterion)]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
