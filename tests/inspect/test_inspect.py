"""The command: its numbers are those of the run, what is not known is said, mistakes are a line."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lit_prune.inspect
from lit_prune import Masks
from lit_prune.__main__ import main
from lit_prune.backbones import LeNet300100
from lit_prune.cli import main as train

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
HERE = Path(__file__).stem
SHORT = [
    *("--config", QUICKSTART, "--trainer.limit_train_batches", "1", "--trainer.logger", "false"),
    *("--pruning.criterion", "Random", "--pruning.target", "100x"),
]
LEVELS = [
    *("--config", str(ROOT / "configs" / "schedules" / "iterative.yaml")),
    *("--pruning.schedule.levels", "2", "--pruning.schedule.epochs", "1"),
    *("--pruning.schedule.rewind_to", "0ep"),
]


@torch.library.custom_op("test_inspect::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    """An operation that no connectivity rule describes."""
    return x.flip(1)


@twist.register_fake
def _(x):
    return torch.empty_like(x)


class Twisted(nn.Module):
    """Ends in :func:`twist`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return twist(self.fc(x.flatten(1)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two levels."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    before = sys.argv[:]
    try:
        assert train([*SHORT, *LEVELS, "--run_dir", str(folder)]) == 0
    finally:
        sys.argv[:] = before
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of the run in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_prune"])
    shutil.copytree(trained, "run")
    return Path("run")


@pytest.fixture
def inspect(monkeypatch, capsys, tmp_path):
    """Run the command in this process; return (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_prune"])

    def call(*args):
        capsys.readouterr()
        code = main(["inspect", *map(str, args)])
        return (code, *capsys.readouterr())

    return call


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cells(out: str, layer: str) -> list[str]:
    (line,) = (line for line in out.splitlines() if line.split()[:1] == [layer])
    return line.split()[1:]


def value(out: str, name: str) -> str:
    (line,) = (line for line in out.splitlines() if line.startswith(name))
    return line.removeprefix(name).strip()


def test_the_numbers_are_those_of_the_run(run, inspect):
    before = files_of(run)
    code, out, err = inspect(run, "--csv", "rows.csv")
    assert (code, err) == (0, "")
    assert Path("rows.csv").read_text() == (run / "layers.csv").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert value(out, "direct sparsity").startswith(f"{summary['direct_sparsity']:.4%}")
    assert value(out, "effective sparsity").startswith(f"{summary['effective_sparsity']:.4%}")
    totals = cells(out, "total")
    assert totals[0] == f"{summary['total']:,}"
    assert totals[1] == f"{summary['kept']:,}"
    assert totals[3] == f"{summary['effective_kept']:,}"
    assert totals[-2] == f"{summary['flops'] / 1000:.1f}k"
    assert cells(out, "fc1")[:2] == ["300x784", "235,200"]
    assert cells(out, "fc1")[-2] == f"{235_200 / 266_200:.1%}"
    assert "picture: run/network.png" in out
    after = files_of(run)
    assert after.pop("network.png").startswith(b"\x89PNG")
    assert after == before


def test_a_run_with_a_picture_is_still_that_run(run, inspect, capsys):
    inspect(run)
    assert train([*SHORT, *LEVELS, "--run_dir", str(run)]) == 0
    assert (run / "network.png").exists()


def test_levels_are_shown_and_an_unfinished_run_by_its_last_one(run, inspect):
    files = sorted((run / "masks").iterdir())
    kept = [Masks.load(file).kept for file in files]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3
    for level, file in enumerate(files):
        out = inspect(run, "--level", level)[1]
        assert cells(out, "total")[1] == f"{kept[level]:,}"
        assert (f"picture: run/network_{file.stem}.png" in out) == (kept[level] <= 20_000)
    (run / "masks.safetensors").unlink()
    while files:
        assert cells(inspect(run)[1], "total")[1] == f"{kept.pop():,}"
        files.pop().unlink()
    code, _, err = inspect(run)
    assert code == 2
    assert "holds no masks yet" in err


@pytest.mark.parametrize("file", ["masks.safetensors", "masks/level_02.safetensors"])
def test_masks_in_a_run_belong_to_its_network(file, run, inspect):
    code, out, _ = inspect(run / file)
    assert code == 0
    assert cells(out, "total")[3] != "?"
    assert "picture: run/network" in out


def test_masks_alone_are_shown_as_far_as_they_go(run, inspect):
    Path("alone").mkdir()
    masks = Masks.load(run / "masks.safetensors")
    masks.save("alone/some.safetensors")
    code, out, err = inspect("alone/some.safetensors")
    assert (code, err) == (0, "")
    assert cells(out, "total")[:2] == [f"{masks.total:,}", f"{masks.kept:,}"]
    assert cells(out, "fc1")[4:] == ["?", "?", "?", "?", "?"]
    assert "pass --config" in out
    assert value(out, "effective sparsity") == value(out, "paths") == "unknown"
    assert not list(Path("alone").glob("*.png"))
    code, out, _ = inspect("alone/some.safetensors", "--config", QUICKSTART)
    assert code == 0
    assert "?" not in cells(out, "fc1")
    assert Path("alone/network_some.png").exists()


def test_masks_of_a_backbone_alone_are_known_too(inspect):
    Masks.dense(LeNet300100()).save("dense.safetensors")
    code, out, _ = inspect("dense.safetensors", "--config", QUICKSTART)
    assert code == 0
    assert value(out, "paths") == f"{784 * 300 * 100 * 10:,}"
    assert value(out, "nodes").startswith("1,194 of 1,194")
    assert "no picture: it would have 266,200 lines, at most 20,000 can be drawn" in out


def test_weights_that_masks_do_not_name_are_mentioned(inspect):
    dense = Masks.dense(LeNet300100())
    Masks({n: m for n, m in dense.items() if n != "fc3.weight"}).save("most.safetensors")
    out = inspect("most.safetensors", "--config", QUICKSTART)[1]
    assert "note: not in the masks, so counted as kept whole: fc3.weight (1,000 connections)" in out


def test_nothing_is_effective_in_a_collapsed_network(inspect):
    dense = Masks.dense(LeNet300100())
    gone = {**dense, "fc2.weight": torch.zeros(100, 300, dtype=torch.bool)}
    gone["fc1.weight"] = torch.rand(300, 784) < 0.01
    Masks(gone).save("gone.safetensors")
    code, out, _ = inspect("gone.safetensors", "--config", QUICKSTART)
    assert code == 0
    assert value(out, "paths") == "0"
    assert value(out, "effective sparsity") == "100.0000%  (inf)"
    assert value(out, "collapsed layers") == "fc1, fc2, fc3"
    assert "picture: network_gone.png" in out


def test_without_data_an_example_says_the_shape(run, inspect):
    absent = ["--data", "MNIST", "--data.root", "nowhere"]
    code, out, err = inspect(run, *absent, "--out", "a.png")
    assert (code, err) == (0, "")
    assert "no MNIST under data.root='nowhere'" in out
    assert "--example 1,28,28" in out
    assert not Path("a.png").exists()
    code, out, _ = inspect(run, *absent, "--example", "1,28,28", "--csv", "rows.csv")
    assert code == 0
    assert "note" not in out
    assert Path("rows.csv").read_text() == (run / "layers.csv").read_text()


def test_a_network_that_cannot_be_followed_has_flops_only(inspect):
    Masks.dense(Twisted()).save("twisted.safetensors")
    network = ["--config", QUICKSTART, "--model.backbone", f"{HERE}.Twisted"]
    code, out, err = inspect("twisted.safetensors", *network)
    assert (code, err) == (0, "")
    assert re.search("note: unknown is what hangs on paths: .*twist.*", out)
    assert cells(out, "fc")[4:] == ["?", "?", "?", "100.0%", "?"]
    assert "no picture" in out


def test_without_matplotlib_the_table_is_printed(run, inspect, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, _ = inspect(run)
    assert code == 0
    assert "pip install 'lit_prune[report]'" in out
    assert cells(out, "total")
    assert not (run / "network.png").exists()


def test_matplotlib_is_imported_only_where_it_draws():
    for path in Path(lit_prune.inspect.__file__).parent.glob("*.py"):
        lines = path.read_text().splitlines()
        assert not [line for line in lines if re.match("(import|from) matplotlib", line)]


MISTAKES = {
    "no path": ([], "usage"),
    "no such path": (["nowhere"], "no run and no masks at nowhere"),
    "no run": (["empty"], "empty is no run folder"),
    "no masks": (["run/config.yaml"], "config.yaml is cut, damaged or no safetensors file"),
    "weights": (["weights.safetensors"], "holds no masks: a is torch.float32"),
    "another network": (
        ["run/masks.safetensors", "--config", QUICKSTART, "--model.backbone", "LeNet5"],
        r"another model: backbone.fc1.weight is \(300, 784\) here",
    ),
    "a level that is not there": (
        ["run", "--level", "7"],
        "no masks of level 7; its levels: 0, 1, 2",
    ),
    "no number": (["run", "--level", "x"], "--level"),
    "a level of a file": (["run/masks.safetensors", "--level", "1"], "goes with a run folder"),
    "wrong suffix": (["run", "--out", "a.gif"], r"none of the suffixes .png, .svg, .pdf"),
    "no shape": (["run", "--example", "1,x"], "--example '1,x' is no shape"),
    "no size": (["run", "--example", "1,0,28"], "--example '1,0,28' is no shape"),
    "another shape": (["run", "--example", "3,5"], "does not take"),
    "a slip": (["run", "--exmple", "1,28,28"], "did you mean '--example'"),
    "an option of nobody": (["run", "--data.rot", "x"], "unknown argument 'rot'"),
    "no folder": (["run", "--out", "nowhere/a.png"], "there is no folder nowhere"),
    "a folder": (["run", "--csv", "empty"], "--csv empty is a folder, not a file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_on_stderr_and_code_2(name, run, inspect):
    from safetensors.torch import save_file

    Path("empty").mkdir()
    save_file({"a": torch.ones(2)}, "weights.safetensors")
    args, message = MISTAKES[name]
    code, _, err = inspect(*args)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err
