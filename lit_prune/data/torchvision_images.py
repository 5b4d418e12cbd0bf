"""Data sets whose files torchvision reads and downloads."""

from abc import abstractmethod
from typing import Any

from lit_prune.data.batches import Images
from lit_prune.data.images import ImagesInMemory
from lit_prune.errors import LitPruneError

__all__ = ["TorchvisionImages"]


class TorchvisionImages(ImagesInMemory):
    """Images of a torchvision data set under ``root``.

    Args:
        root: the folder that holds torchvision's files of the data set.
        download: fetch the files into ``root`` if they are not there.
        **kwargs: the arguments of ``ImagesInMemory``.
    """

    def __init__(self, root: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.download = download

    @abstractmethod
    def open(self, train: bool, download: bool = False) -> Any:
        """Return torchvision's data set."""

    def prepare_data(self) -> None:
        """Download the files if asked to; only one process of a machine does.

        Raises:
            LitPruneError: the files cannot be fetched or written.
        """
        if not self.download:
            return
        try:
            self.open(train=True, download=True)
            self.open(train=False, download=True)
        except (RuntimeError, OSError) as error:
            name = type(self).__name__
            raise LitPruneError(f"cannot download {name} to {self.root!r}: {error}") from error

    def read(self, train: bool) -> Images:
        """Return the images.

        Raises:
            LitPruneError: ``root`` does not hold the data set.
        """
        try:
            return self.convert(self.open(train))
        except RuntimeError as error:
            name = type(self).__name__
            raise LitPruneError(
                f"no {name} under data.root={self.root!r}: name the folder that holds it by "
                "--data.root, or fetch it with --data.download true"
            ) from error

    @abstractmethod
    def convert(self, dataset: Any) -> Images:
        """Return the images of torchvision's data set as tensors."""
