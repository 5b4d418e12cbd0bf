"""Run folders written by hand, with known numbers."""

import copy
import csv
import json
from pathlib import Path

import yaml

CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 20, "logger": None, "accelerator": "auto"},
    "model": {
        "backbone": {"class_path": "lit_prune.backbones.LeNet300100", "init_args": {"classes": 10}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
        "scheduler": None,
        "weights": None,
    },
    "data": {
        "class_path": "lit_prune.data.MNIST",
        "init_args": {"root": "data", "batch_size": 100, "val_fraction": 0.0, "flip": False},
    },
    "pruning": {
        "criterion": {"class_path": "lit_prune.criteria.SNIP"},
        "target": "10x",
        "quota": None,
        "rounds": None,
        "floor": None,
        "schedule": {"class_path": "lit_prune.schedules.AtInit"},
        "masks": None,
        "scored_weights": None,
    },
}
TOTAL = 1000


def config(**changes):
    """A config with some keys changed; a key's dots are written as double underscores."""
    made = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        *above, last = key.split("__")
        here = made
        for part in above:
            here = here[part]
        here[last] = value
    return made


def part(name, where="criteria", **given):
    return {"class_path": f"lit_prune.{where}.{name}", **({"init_args": given} if given else {})}


def schedule(name, **given):
    return part(name, "schedules", **given)


def write_run(
    folder, accuracy=0.9, kept=100, effective=80, seconds=10.0, levels=None, epochs=None, **changes
):
    """Write a run folder; of an accuracy None an unfinished one.

    It trained for ``epochs``, by default as many as its config or its levels say.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(**changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    if accuracy is None:
        return folder
    summary = {
        "test_accuracy": accuracy,
        "epochs": epochs or settings["trainer"]["max_epochs"] or (levels and levels[-1][0]),
        "seconds": seconds,
        "total": TOTAL,
        "kept": kept,
        "effective_kept": effective,
        "flops": 2 * TOTAL,
        "effective_flops": 2 * effective,
        "seed": settings["seed_everything"],
        "command": "python train.py",
        "git_commit": "0" * 40,
        "versions": {"torch": "2.0"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    write_csv(
        folder / "layers.csv",
        "name,shape,total,kept,sparsity,effective,dead_in,dead_out,flops,effective_flops",
        [
            ["backbone.a.weight", "8x100", 800, kept // 2, 0, effective // 2, 0, 0, 0, 0],
            [
                "backbone.b.weight",
                "2x100",
                200,
                (kept + 1) // 2,
                0,
                (effective + 1) // 2,
                0,
                0,
                0,
                0,
            ],
        ],
    )
    write_csv(
        folder / "levels.csv",
        "level,epoch,kept,direct_sparsity,effective_sparsity,collapsed_layers",
        [[n, *level, 0, 0, 0] for n, level in enumerate(levels or [(epochs or 20, kept)])],
    )
    return folder


def write_csv(file, head, rows):
    with file.open("w", newline="") as text:
        csv.writer(text).writerows([head.split(","), *rows])
