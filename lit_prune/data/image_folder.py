"""ImageFolder: images as files, one folder a class."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from lit_prune.data.batches import Images
from lit_prune.data.images import ImagesInMemory
from lit_prune.data.order import Order
from lit_prune.errors import LitPruneError, first_line

__all__ = ["ImageFolder"]

_GIGABYTE = 2**30


class ImageFolder(ImagesInMemory):
    """Images under ``root/train/<class>/`` and ``root/test/<class>/``, in colour.

    CIFAR-10 as images, TinyImageNet and ImageNet come in this form. Images that fit into
    ``memory`` gigabytes are read once and kept as tensors; they are scaled so that the short side
    is ``image_size`` and cut in the centre. Larger data sets are read from disk in every epoch by
    worker processes, as is usual for ImageNet: training images by a random resized crop and a
    flip, test images scaled to 8/7 of ``image_size`` and cut in the centre, normalised by the
    statistics of ImageNet. Without a ``val_fraction`` there is no validation.

    Args:
        root: the folder that holds train/ and test/.
        image_size: height and width that the network gets.
        memory: gigabytes that images may take in memory.
        workers: processes, at least one, that read images which do not fit in memory; their random
            changes derive from the seed, the epoch and the rank.
        **kwargs: the arguments of ``ImagesInMemory``.
    """

    def __init__(
        self,
        root: str = "data",
        image_size: int = 32,
        memory: float = 4.0,
        workers: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if image_size < 1:
            raise LitPruneError(f"data.image_size={image_size} is out of range: at least 1")
        if workers < 1:
            raise LitPruneError(f"data.workers={workers} is out of range: at least 1")
        self.root = root
        self.image_size = image_size
        self.memory = memory
        self.workers = workers
        self._streams: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Read the images if they fit in memory, else only list them."""
        self._agree_on_seed()
        if self._streams or self._splits:
            return
        train, test = self._folder("train"), self._folder("test")
        if train.classes != test.classes:
            odd = sorted({*train.classes} ^ {*test.classes})[0]
            raise LitPruneError(f"{self.root}: train/ and test/ differ in the class {odd!r}")
        self.num_classes = len(train.classes)
        size = (len(train) + len(test)) * 3 * self.image_size**2
        if size <= self.memory * _GIGABYTE:
            super().setup(stage)
        else:
            self._stream(train, test)

    def read(self, train: bool) -> Images:
        """Return all images of one folder."""
        folder = self._folder("train" if train else "test")
        shrink = _centred(self.image_size, self.image_size)

        def tensor(path: str) -> Tensor:
            return shrink(v2.functional.pil_to_tensor(folder.loader(path)))

        paths, labels = zip(*folder.samples, strict=True)
        with ThreadPoolExecutor() as pool:
            images = torch.stack(list(pool.map(tensor, paths)))
        return Images(images, torch.tensor(labels))

    def example(self) -> Tensor:
        """Return one training image as a batch (1, 3, H, W), after ``setup``."""
        return super().example() if self._splits else self._streams["test"][0][0][None]

    def _batches(self, split: str, *args: Any, **kwargs: Any) -> Any:
        if self._splits:
            return super()._batches(split, *args, **kwargs)
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        data, shuffle = self._streams[split], split == "train"
        order = Order(len(data), self.batch_size, shuffle, self._seed or 0, rank, ranks)
        return _Stream(data, order, self.workers)

    def _has(self, split: str) -> bool:
        return split in self._splits or split in self._streams

    def _folder(self, name: str) -> datasets.ImageFolder:
        try:
            return datasets.ImageFolder(str(Path(self.root) / name))
        except FileNotFoundError as error:
            raise LitPruneError(
                f"no images under data.root={self.root!r}: it must hold train/<class>/ and "
                f"test/<class>/ folders of images ({first_line(error)})"
            ) from error

    def _stream(self, train: datasets.ImageFolder, test: datasets.ImageFolder) -> None:
        plain = v2.Compose([v2.PILToTensor(), *_evaluated(self.image_size)])
        train.transform = v2.Compose([v2.PILToTensor(), *_trained(self.image_size)])
        test.transform = plain
        kept, held_out = self._split(len(train))
        self._streams = {"test": test, "train": torch.utils.data.Subset(train, kept.tolist())}
        if len(held_out):
            unchanged = datasets.ImageFolder(train.root, plain)
            self._streams["val"] = torch.utils.data.Subset(unchanged, held_out.tolist())


class _Stream:
    """Batches read from disk by worker processes, in an order that (seed, epoch) determines."""

    def __init__(self, data: Any, order: Order, workers: int) -> None:
        self._data = data
        self._workers = workers
        self.batch_sampler = order

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The loader is made anew, and late: it draws the workers' seeds and starts to read at once.
        batches = [index.tolist() for index in self.batch_sampler]
        yield from DataLoader(
            self._data,
            batch_sampler=batches,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
            generator=self.batch_sampler.generator(),
        )


def _centred(scaled: int, cut: int) -> v2.Compose:
    return v2.Compose([v2.Resize(scaled, antialias=True), v2.CenterCrop(cut)])


def _normalised() -> list[Any]:
    return [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]


def _trained(size: int) -> list[Any]:
    return [
        v2.RandomResizedCrop(size, antialias=True),
        v2.RandomHorizontalFlip(),
        *_normalised(),
    ]


def _evaluated(size: int) -> list[Any]:
    return [_centred(size * 8 // 7, size), *_normalised()]
