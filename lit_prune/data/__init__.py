"""Data modules: a new file in this folder is a new data set; any other comes by path."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule

from lit_prune.shelf import members

globals().update(members(__name__, __path__, LightningDataModule))

__all__ = list(members(__name__, __path__, LightningDataModule))

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
