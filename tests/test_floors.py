"""The floors of the house, kept by reading the imports: they only go down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lit_prune

ROOT = Path(lit_prune.__file__).parent
FLOORS = [
    {
        *("errors", "files", "names", "prunable", "masks", "probe", "criterion", "ranks"),
        *("selection", "shelf", "weights"),
    },
    {"ranking", "quotas", "backbones", "connectivity", "kernel_allocation", "linear_paths"},
    {"criteria"},
    {"acts", "measure", "prune", "rewiring", "schedules", "search", "spine", "targets", "timing"},
    {"callbacks", "module", "data"},
    {
        *(
            "__main__",
            "cli",
            "complaint",
            "curve",
            "headline",
            "inspect",
            "options",
            "processes",
            "report",
        ),
        *("run", "sweep"),
    },
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LIGHTNING_FLOOR = 4
GROUND = {"torch", "safetensors", "numpy"}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities"}

FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
EVERY_FILE = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def room_of(path):
    """The file or folder of lit_prune that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(source, package):
    """Yield the full name of everything that a module of ``package`` imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            home = ".".join([*above, *([node.module] if node.module else [])])
            home = home if node.level else node.module
            yield from (f"{home}.{alias.name}" for alias in node.names)


def imports_of(path):
    package = ".".join(["lit_prune", *path.relative_to(ROOT).parts[:-1]])
    return set(imported(path.read_text(), package))


def rooms_used(path):
    """The rooms of lit_prune that a file imports; "" is the package's own face."""
    names = [name.split(".") for name in imports_of(path)]
    inside = {parts[1] if len(parts) > 1 else "" for parts in names if parts[0] == "lit_prune"}
    return {room if room in FLOOR_OF or (ROOT / room).exists() else "" for room in inside}


def outsiders_used(path):
    return {name.split(".")[0] for name in imports_of(path)} - {"lit_prune"}


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("import torch.nn as nn, os", {"torch.nn", "os"}),
        ("from lit_prune.masks import Masks", {"lit_prune.masks.Masks"}),
        ("from lit_prune import masks", {"lit_prune.masks"}),
        ("def f():\n    from lit_prune import prune", {"lit_prune.prune"}),
        ("from .criterion import Criterion", {"lit_prune.criteria.criterion.Criterion"}),
        ("from . import criterion", {"lit_prune.criteria.criterion"}),
        ("from ..masks import Masks", {"lit_prune.masks.Masks"}),
        ("from .. import data", {"lit_prune.data"}),
    ],
)
def test_imports_are_read_in_all_their_forms(line, names):
    assert set(imported(line, "lit_prune.criteria")) == names


def test_there_is_a_house():
    assert {"masks", "prune", "criteria"} <= {room_of(path) for path in FILES}
    assert rooms_used(ROOT / "ranking.py") == {"criterion", "errors", "masks", "selection"}
    assert "torch" in outsiders_used(ROOT / "masks.py")
    assert len(FLOOR_OF) == sum(len(rooms) for rooms in FLOORS)


def floor_of(path):
    room = room_of(path)
    assert room in FLOOR_OF, f"decide on which floor {room} lies, in {__file__}"
    return FLOOR_OF[room]


@EVERY_FILE
def test_imports_only_go_down(path):
    room, here = room_of(path), floor_of(path)
    for other in rooms_used(path) - {room}:
        there = FLOOR_OF.get(other, LIGHTNING_FLOOR)  # the public face offers the whole spine
        assert there <= here, f"{room} (floor {here}) imports {other or 'lit_prune'} ({there})"
        assert there < here or here != 1, f"{room} and {other} of floor 1 must not know each other"


@EVERY_FILE
def test_the_ground_floor_stands_on_torch_and_the_standard_library(path):
    if floor_of(path) == 0:
        assert outsiders_used(path) <= GROUND | sys.stdlib_module_names


@EVERY_FILE
def test_lightning_is_seen_from_its_floor_up_only(path):
    if floor_of(path) < LIGHTNING_FLOOR:
        assert not outsiders_used(path) & LIGHTNING


@EVERY_FILE
def test_every_file_is_named_by_a_noun(path):
    assert path.name not in {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}


@pytest.mark.parametrize("line", ["import lit_prune", "from lit_prune.criteria import SNIP"])
def test_the_core_imports_without_lightning(line):
    check = f"{line}\nimport sys\nprint(sorted({LIGHTNING!r} & set(sys.modules)))"
    shown = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
