"""Settings of a run as flat keys and values, and which of them can change what is found."""

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

__all__ = ["below", "flat", "part_name", "telling"]

Settings = Mapping[str, Any]

# What says where things lie, how they are shown, or on what they run, and not what is found.
_INCIDENTAL = (
    *("seed_everything", "pruning.target", "pruning.example", "pruning.allow_collapse"),
    *("data.init_args.download", "data.init_args.num_workers", "data.init_args.pin_memory"),
    *("trainer.accelerator", "trainer.logger", "trainer.plugins", "trainer.profiler"),
    *("trainer.default_root_dir", "trainer.model_registry", "trainer.log_every_n_steps"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.barebones"),
    *("trainer.enable_checkpointing", "trainer.enable_autolog_hparams", "trainer.benchmark"),
    *("trainer.deterministic", "trainer.detect_anomaly", "trainer.inference_mode"),
    *("trainer.num_sanity_val_steps", "trainer.limit_predict_batches"),
    *("trainer.limit_val_batches", "trainer.val_check_interval"),
    *("trainer.check_val_every_n_epoch", "trainer.use_distributed_sampler"),
)
# The content of these is known by their name; of other data it is the folder that tells.
_FIXED_DATA = {"MNIST", "CIFAR10", "CIFAR100", "HAR", "Digits"}
_ROOT = "data.init_args.root"
# These say nothing when they are zero.
_ZERO_IS_NONE = {"pruning.floor"}
_SEED_IN_PATH = re.compile(r"(seed[a-z_]*[=_-]?)\d+", re.IGNORECASE)


def flat(tree: Settings, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a config by dotted keys; lists as JSON.

    Examples:
        >>> flat({"model": {"lr": 0.1, "steps": [1, 2]}, "seed": 0})
        {'model.lr': 0.1, 'model.steps': '[1, 2]', 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            plain = value is None or isinstance(value, str | int | float)
            found[f"{prefix}{key}"] = value if plain else json.dumps(value, default=str)
    return found


def telling(settings: Settings) -> dict[str, Any]:
    """Return those flat settings that can change what is found, for all seeds and targets alike.

    None and False are left out, so that an option that is newer than a run makes no difference. A
    seed's number in the path of a file becomes ``*``, and of the folder of the data its name is
    left, where another folder would be other data.

    Examples:
        >>> telling({"pruning.masks": "dense/seed=3/a.st", "seed_everything": 3})
        {'pruning.masks': 'dense/seed=*/a.st'}
    """
    known = {**settings, _ROOT: _data_folder(settings)}
    return {
        key: _SEED_IN_PATH.sub(r"\1*", value) if isinstance(value, str) else value
        for key, value in known.items()
        if not (value is None or value is False)
        and not (key in _ZERO_IS_NONE and str(value).strip("0.%") == "")
        and not any(key == one or key.startswith(f"{one}.") for one in _INCIDENTAL)
    }


def _data_folder(settings: Settings) -> str | None:
    kind, root = str(settings.get("data.class_path", "")), settings.get(_ROOT)
    if root is None or kind.rpartition(".")[2] in _FIXED_DATA:
        return None
    return PurePath(str(root)).name


def below(settings: Settings, *prefixes: str) -> dict[str, Any]:
    """Return the settings whose key is one of ``prefixes`` or lies below it.

    Examples:
        >>> below({"data.flip": True, "database": 1}, "data")
        {'data.flip': True}
    """
    return {
        key: value
        for key, value in settings.items()
        if any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
    }


def part_name(part: Any) -> str:
    """Return what a part of a config is called: its class, and the classes it is made of.

    Examples:
        >>> snip = {"class_path": "lit_prune.criteria.SNIP"}
        >>> shuffled = "lit_prune.criteria.Shuffled"
        >>> part_name({"class_path": shuffled, "init_args": {"criterion": snip}})
        'Shuffled SNIP'
    """
    if not isinstance(part, Mapping):
        return "" if part is None else str(part).rpartition(".")[2]
    name = str(part.get("class_path", "")).rpartition(".")[2]
    inner = part.get("init_args") or {}
    parts = [value for value in inner.values() if isinstance(value, Mapping)]
    return " ".join([name, *(part_name(value) for value in parts if "class_path" in value)])
