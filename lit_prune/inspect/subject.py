"""Subject: what is inspected: masks, and the network that they belong to as far as it is known."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from lit_prune.cli import MISTAKES, TrainCLI, parsed
from lit_prune.data.images import ImagesInMemory
from lit_prune.errors import LitPruneError, first_line
from lit_prune.masks import Masks
from lit_prune.probe import Probe
from lit_prune.prunable import prunable

__all__ = ["Place", "Subject", "place_of", "subject_of"]

# What is not needed to know a network, and may be absent on this machine.
_UNNEEDED = (
    *("--model.weights", "null", "--pruning.masks", "null", "--pruning.scored_weights", "null"),
    *("--trainer.callbacks", "null", "--trainer.plugins", "null", "--trainer.logger", "false"),
)


class Place(NamedTuple):
    """Where masks lie: the file, and the run folder that it belongs to, if it does."""

    masks: Path
    run: Path | None

    @property
    def picture(self) -> Path:
        """Where their picture goes: beside them, under the run folder itself in a run."""
        stem = self.masks.stem
        name = "network.png" if stem == "masks" else f"network_{stem}.png"
        return (self.run or self.masks.parent) / name


@dataclass(frozen=True)
class Subject:
    """What is inspected.

    Attributes:
        masks: what is kept.
        model: the network; None where no config names it.
        inputs: what it is called with, a batch of 1; None where that is not known.
        notes: a line for everything that is not known, and why.
    """

    masks: Masks
    model: nn.Module | None
    inputs: tuple[Tensor, ...] | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The class of the network, or of its backbone."""
        return type(getattr(self.model, "backbone", self.model)).__name__

    @property
    def unmasked(self) -> dict[str, int]:
        """The sizes of the weights that could be pruned and are not named by the masks."""
        if self.model is None:
            return {}
        weights = prunable(self.model).items()
        return {name: weight.numel() for name, weight in weights if name not in self.masks}


# Where the masks lie.


def place_of(path: Path, level: int | None) -> Place:
    """Return the masks that ``path``, a run folder or a file of masks, stands for.

    Of a run these are the final masks, else those of its last level; or those of ``level``.

    Raises:
        LitPruneError: there are none.
    """
    if path.is_file():
        if level is not None:
            raise LitPruneError(f"--level {level} goes with a run folder, and {path} is a file")
        return Place(path, _run_around(path))
    if not path.exists():
        raise LitPruneError(f"no run and no masks at {path}: no such file or folder")
    if not _is_run(path):
        raise LitPruneError(f"{path} is no run folder: it holds no config.yaml")
    levels = _levels(path)
    if level is not None:
        return Place(_level(path, levels, level), path)
    final = path / "masks.safetensors"
    if not final.exists() and not levels:
        raise LitPruneError(
            f"{path} holds no masks yet: neither masks.safetensors, which a run writes at its end, "
            "nor masks/level_NN.safetensors, which it writes as a level ends"
        )
    return Place(final if final.exists() else levels[max(levels)], path)


def _run_around(masks: Path) -> Path | None:
    folder = masks.absolute().parent
    if _is_run(folder):
        return masks.parent
    return masks.parent.parent if folder.name == "masks" and _is_run(folder.parent) else None


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _levels(run: Path) -> dict[int, Path]:
    found = {
        int(match[1]): path
        for path in (run / "masks").glob("level_*.safetensors")
        if (match := re.fullmatch(r"level_(\d+)\.safetensors", path.name))
    }
    return dict(sorted(found.items()))


def _level(run: Path, levels: dict[int, Path], level: int) -> Path:
    if level not in levels:
        there = ", ".join(map(str, levels)) or "none"
        raise LitPruneError(f"{run} has no masks of level {level}; its levels: {there}")
    return levels[level]


# The network.


def subject_of(place: Place, shape: tuple[int, ...] | None, options: Sequence[str]) -> Subject:
    """Load masks, and build the network that they belong to.

    Args:
        place: where the masks lie.
        shape: of an input of the network, without batch; None takes an input from the data.
        options: those of ``train.py``. With ``--config`` they name the network; else they are added
            to the run's own config; without both the network is not known.

    Raises:
        LitPruneError: masks or config cannot be read, or do not belong together.
    """
    masks = Masks.load(place.masks)
    cli = _parsed(place, options)
    if cli is None:
        return Subject(masks, None, None, ("unknown is what hangs on the network: pass --config",))
    model = _part(cli.network(), masks)
    masks.parameters(model)
    try:
        return Subject(masks, model, _inputs(cli, model, masks, shape), ())
    except _NoExample as error:
        return Subject(masks, model, None, (str(error),))


def _parsed(place: Place, options: Sequence[str]) -> TrainCLI | None:
    names_config = any(re.match(r"(-c|--config)(=|$)", option) for option in options)
    own = ["--config", str(place.run / "config.yaml")] if place.run and not names_config else []
    return parsed([*own, *options, *_UNNEEDED]) if own or options else None


def _part(module: nn.Module, masks: Masks) -> nn.Module:
    """Return the backbone where the masks were made for it alone, without a LightningModule."""
    is_inside = all(name.startswith("backbone.") for name in masks)
    return module if is_inside else module.get_submodule("backbone")


class _NoExample(Exception):
    """There is no input to call a network with."""


def _inputs(
    cli: TrainCLI, model: nn.Module, masks: Masks, shape: tuple[int, ...] | None
) -> tuple[Tensor, ...]:
    """Return an input of the given shape, of the config's, or from its data, which are read."""
    example = (1, *shape) if shape else cli.manager().scoring.example
    if example is not None:
        return Probe(model, masks, example=example).inputs()
    data = cli.datamodule()
    try:
        return _from(data, model, masks)
    except (OSError, *MISTAKES) as error:
        why = first_line(error)
        where = type(data).__name__
        text = f"unknown is what hangs on an input: no example from {where}: {why}"
        raise _NoExample(f"{text}; pass its shape instead: --example 1,28,28") from error


def _from(data: LightningDataModule, model: nn.Module, masks: Masks) -> tuple[Tensor, ...]:
    """Take an input from the data that lie here; nothing is downloaded."""
    data.setup("fit")
    if isinstance(data, ImagesInMemory):
        return (data.example(),)
    return Probe(model, masks, data.train_dataloader()).inputs()
