"""HAR: what people do, from the sensors of the telephone that they carry."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_prune.data.batches import Images
from lit_prune.data.images import ImagesInMemory
from lit_prune.errors import LitPruneError, UnreadableFile, first_line

__all__ = ["HAR"]

_FOLDER = "UCI HAR Dataset"
_ACTIVITIES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
_FIRST_OF_HAR_2 = {"sitting", "laying", "walking upstairs"}
_SIGNALS = [f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"]
_STEPS = 128


class HAR(ImagesInMemory):
    """7,352 training and 2,947 test windows of 9 signals at 128 time steps, (N, 128, 9).

    The signals are the acceleration without gravity, the angular velocity and the acceleration, x,
    y and z of each. They are normalised by the mean and standard deviation of the windows that are
    trained on, one a signal. The windows are no images, but are split, ordered and cut into batches
    as these are. Those of the test set are of other people than those of training, but validation
    is drawn from the same people, and as windows overlap by half, it shares samples with training.

    HAR-2 merges the six activities into two classes, in the way of FastGRNN (Kusupati et al. 2018,
    arXiv 1901.02358): {sitting, laying, walking upstairs} is 0 and {standing, walking, walking
    downstairs} is 1. It is not the split into rest and motion.

    Args:
        root: the folder ``UCI HAR Dataset``, or the one that holds it. There is no download.
        batch_size: windows a batch, per process.
        val_fraction: share of the training windows set aside for validation, by a split that
            derives from the seed of the run; 0 is no validation.
        binary: the two classes of HAR-2; else the six activities, numbered from 0.

    Source: Anguita et al. 2013, "A public domain dataset for human activity recognition using
    smartphones", ESANN; the data set "Human Activity Recognition Using Smartphones" of the UCI
    Machine Learning Repository.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 100,
        val_fraction: float = 0.1,
        binary: bool = True,
    ) -> None:
        super().__init__(batch_size, val_fraction)
        self.root = root
        self.binary = binary
        self.num_classes = 2 if binary else len(_ACTIVITIES)

    def setup(self, stage: str) -> None:
        """Read the windows, once, and split validation off.

        Raises:
            LitPruneError: ``root`` does not hold the data set, or a file is missing or damaged.
        """
        self._agree_on_seed()
        if self._splits:
            return
        everything, test = self.read(train=True), self.read(train=False)
        kept, held_out = self._split(len(everything))
        if not len(kept):
            raise LitPruneError(f"data.val_fraction={self.val_fraction} leaves nothing to train on")
        train = everything[kept]
        std, mean = torch.std_mean(train.images.double(), dim=(0, 1), correction=0)
        self._mean, self._std = mean.float(), std.float()
        self._splits = {"train": train, "test": test}
        if len(held_out):
            self._splits["val"] = everything[held_out]

    def read(self, train: bool) -> Images:
        """Return the training or the test windows (N, 128, 9), as float32 and as in the files."""
        split = "train" if train else "test"
        folder = _found(self.root) / split
        labels = self._labels(folder / f"y_{split}.txt")
        paths = [folder / "Inertial Signals" / f"{name}_{split}.txt" for name in _SIGNALS]
        signals = [_signal(path, len(labels)) for path in paths]
        return Images(torch.from_numpy(np.stack(signals, axis=-1)), labels)

    def _labels(self, path: Path) -> Tensor:
        numbers = _table(path, np.int64, "a number from 1 to 6 a line")
        odd = [n for n in np.unique(numbers).tolist() if not 1 <= n <= len(_ACTIVITIES)]
        if numbers.shape[1] != 1 or odd:
            what = f"the label {odd[0]}" if odd else f"{numbers.shape[1]} numbers a line"
            raise UnreadableFile(f"{path} is damaged: {what}, where 1 to 6 is expected, one a line")
        merged = [int(name not in _FIRST_OF_HAR_2) for name in _ACTIVITIES]
        classes = torch.tensor(merged) if self.binary else torch.arange(len(_ACTIVITIES))
        return classes[torch.from_numpy(numbers[:, 0] - 1)]

    def _normalise(self, windows: Tensor) -> Tensor:
        mean, std = self._mean.to(windows.device), self._std.to(windows.device)
        # A signal that never changes becomes zero.
        return (windows - mean) / std.where(std > 0, 1.0)


def _found(root: str) -> Path:
    for folder in (Path(root), Path(root) / _FOLDER):
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return folder
    raise LitPruneError(
        f"no HAR under data.root={root!r}: unpack 'Human Activity Recognition Using Smartphones' "
        f"of the UCI Machine Learning Repository, and name its folder {_FOLDER!r} by --data.root"
    )


def _signal(path: Path, count: int) -> np.ndarray:
    wanted = f"{count} lines of {_STEPS} finite numbers"
    values = _table(path, np.float32, wanted)
    if values.shape != (count, _STEPS):
        lines, numbers = values.shape
        raise UnreadableFile(
            f"{path} is damaged: {lines} lines of {numbers} numbers, where {wanted} are expected"
        )
    if not np.isfinite(values).all():
        raise UnreadableFile(f"{path} is damaged: a number is not finite; {wanted} are expected")
    return values


def _table(path: Path, kind: type, wanted: str) -> np.ndarray:
    """Return the numbers of a text file, a row a line.

    Raises:
        UnreadableFile: it is missing, or holds something else.
    """
    try:
        # An empty file is only a warning.
        with warnings.catch_warnings(action="error", category=UserWarning):
            return np.loadtxt(path, dtype=kind, comments=None, ndmin=2)
    except FileNotFoundError as error:
        raise UnreadableFile(f"{path} is missing; it must hold {wanted}") from error
    except (OSError, ValueError, UserWarning) as error:
        why = first_line(error).partition(";")[0]
        raise UnreadableFile(f"{path} is damaged: {why}; it must hold {wanted}") from error
