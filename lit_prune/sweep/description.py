"""What is swept: a file with configs, fixed options and grids, read and checked for mistakes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_prune.errors import LitPruneError, did_you_mean

__all__ = ["Axis", "Description", "Grid"]

# The values of an axis: what they are called, and the options of train.py that each sets.
Axis = Mapping[str, Mapping[str, Any]]
Grid = Mapping[str, Axis]

_KEYS = ("config", "set", "grid", "slurm")
_OURS = {
    "run_dir": "the sweep names the run folders",
    "overwrite": "delete the run folders that are to be run anew",
    "print_config": "it prints and runs nothing",
    "help": "it prints and runs nothing",
}


@dataclass(frozen=True)
class Description:
    """A sweep as its file describes it.

    Attributes:
        name: the stem of the file.
        configs: the base configs of all trials.
        fixed: options of ``train.py`` for all trials.
        grids: each stands for the product of its axes.
        slurm: parameters of the jobs on a SLURM cluster.
    """

    name: str
    configs: tuple[str, ...]
    grids: tuple[Grid, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Description":
        """Read a sweep file.

        Raises:
            LitPruneError: it cannot be read, or something in it is mistaken.
        """
        content = _content(path)
        try:
            return cls._of(path.stem, content)
        except LitPruneError as error:
            raise LitPruneError(f"{path}: {error}") from error

    @classmethod
    def _of(cls, name: str, content: Mapping[str, Any]) -> "Description":
        for key in content:
            if key not in _KEYS:
                near = did_you_mean(str(key), _KEYS)
                raise LitPruneError(f"unknown key {key!r}{near}; known: {', '.join(_KEYS)}")
        return cls(
            name,
            configs=tuple(_files("config", content.get("config"))),
            grids=_grids(content.get("grid")),
            fixed=_fixed(content.get("set") or {}),
            slurm=_mapping("slurm", content.get("slurm") or {}),
        )


class _Loader(yaml.SafeLoader):
    """Reads 4:00:00 as it is written, and not as 14400, a number to the base of 60."""


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return node.value if ":" in node.value else loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _number)


def _content(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise LitPruneError(f"cannot read the sweep file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LitPruneError(f"sweep file {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise LitPruneError(f"sweep file {path} is empty or holds no keys")
    return content


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LitPruneError(f"{where}={value!r} is no mapping of keys to values")
    return {str(key): item for key, item in value.items()}


def _fixed(value: Any) -> dict[str, Any]:
    if "config" in (options := _options("set", value)):
        raise LitPruneError("set.config: all trials' config files go under the key 'config'")
    return options


def _options(where: str, value: Any) -> dict[str, Any]:
    """Check options of ``train.py``; what they mean is checked when they are parsed."""
    options = _mapping(where, value)
    for key, item in options.items():
        if key in _OURS:
            raise LitPruneError(f"{where}.{key} cannot be set: {_OURS[key]}")
        if key == "config":
            _files(f"{where}.config", item)
    return options


def _files(where: str, value: Any) -> list[str]:
    """Return one config file or several as a list, having checked that they are there."""
    files = value if isinstance(value, list) else [value]
    if value is None or not files:
        raise LitPruneError(f"no {where}: which config files do all trials share?")
    for file in files:
        if not isinstance(file, str):
            raise LitPruneError(f"{where}={file!r} is no path of a config file")
        if not Path(file).is_file():
            raise LitPruneError(f"{where}={file} is missing: no such file")
    return files


def _grids(value: Any) -> tuple[Grid, ...]:
    grids = value if isinstance(value, list) else [value]
    if not value or not all(grids):
        raise LitPruneError("grid is empty: name options of train.py and their values")
    return tuple(_grid(grid) for grid in grids)


def _grid(value: Any) -> Grid:
    return {key: _axis(key, values) for key, values in _mapping("grid", value).items()}


def _axis(key: str, values: Any) -> Axis:
    """Return the values of an axis, each as the options it sets.

    A list holds the values of one option; a mapping holds names for several options at once.
    """
    where = f"grid.{key}"
    if not isinstance(values, list | dict):
        raise LitPruneError(
            f"{where}={values!r} is neither a list of values nor a mapping of names to options"
        )
    if not values:
        raise LitPruneError(f"{where} is empty: it has no values")
    if isinstance(values, dict):
        return {str(name): _options(f"{where}.{name}", of) for name, of in values.items()}
    axis: dict[str, Mapping[str, Any]] = {}
    for value in values:
        label = text_of(key, value)
        if label in axis:
            raise LitPruneError(f"{where} names {label!r} twice")
        axis[label] = _options(where, {key: value})
    return axis


def text_of(key: str, value: Any) -> str:
    """Return what a value of an option is called: as it is typed, and config files by their stem.

    Examples:
        >>> text_of("pruning.target", "100x"), text_of("config", "configs/methods/random_erk.yaml")
        ('100x', 'random_erk')
    """
    if key != "config":
        return as_typed(value)
    return "+".join(
        Path(str(file)).stem for file in (value if isinstance(value, list) else [value])
    )


def as_typed(value: Any) -> str:
    """Write a value of a YAML file as it is typed on the command line.

    Examples:
        >>> [as_typed(value) for value in ("100x", 0.1, True, None, [1, "a"])]
        ['100x', '0.1', 'true', 'null', '[1, "a"]']
    """
    return value if isinstance(value, str) else json.dumps(value, default=str)
