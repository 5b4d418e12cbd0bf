"""The curve command: its points are those of train.py, its files whole, its mistakes one line."""

import ast
import csv
import io
import math
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from torch import nn

from lit_prune import Masks, Target, cli, curve
from lit_prune.__main__ import main
from lit_prune.curve import GRID, Row, draw
from lit_prune.errors import LitPruneWarning
from lit_prune.module import LitClassifier
from lit_prune.quotas import IGQ, Uniform

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ["--config", str(ROOT / "configs" / "quickstart.yaml")]
HERE = Path(__file__).stem
TOTAL = 266_200


class OneLayer(nn.Module):
    """All that is kept is effective."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))


class Chain(nn.Module):
    """784-1-10: all that is kept is effective while both layers keep something, then nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(784, 1), nn.Linear(1, 10)

    def forward(self, x):
        return self.wide(self.narrow(x.flatten(1)))


@torch.library.custom_op("test_curve::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    """An operation that no connectivity rule describes."""
    return x.flip(1)


class Twisted(nn.Module):
    """Ends in :func:`twist`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return twist(self.fc(x.flatten(1)))


CALLS: list[int | None] = []


def plain(probe):
    """A criterion that counts how often it scores."""
    CALLS.append(None)
    return {name: torch.arange(mask.numel()).view(mask.shape) for name, mask in probe.masks.items()}


def budgeted(probe):
    """A criterion whose scores hang on how many connections will be kept."""
    CALLS.append(probe.keep)
    return {
        name: torch.arange(mask.numel()).view(mask.shape).roll(probe.keep)
        for name, mask in probe.masks.items()
    }


def one_nan(probe):
    """A criterion that fails in one place."""
    scores = {name: torch.ones(mask.shape) for name, mask in probe.masks.items()}
    scores["backbone.fc2.weight"][3, 4] = float("nan")
    return scores


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call the command; return (exit code, stdout, stderr, folder)."""
    monkeypatch.setattr("sys.argv", ["lit_prune"])
    monkeypatch.chdir(tmp_path)

    def call(typed: str, config=QUICKSTART):
        folder = tmp_path / "out"
        capsys.readouterr()
        code = main(["curve", *config, "--out", str(folder), *shlex.split(typed)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err, folder

    return call


def rows_of(folder: Path) -> list[Row]:
    kinds = (str, str, int, float, float, int, int, int)
    lines = list(csv.DictReader((folder / "curve.csv").open()))
    assert all(tuple(line) == Row._fields for line in lines)
    return [
        Row(*(kind(value) for kind, value in zip(kinds, line.values(), strict=True)))
        for line in lines
    ]


def test_the_command_writes_a_point_for_every_criterion_quota_seed_and_compression(run, tmp_path):
    code, out, err, folder = run(
        "--criteria Random SNIP SynFlow --quotas ERK IGQ --compressions 1 10 300x "
        "--pruning.rounds 2 --seeds 2"
    )
    assert (code, err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == ["curve.csv", "curve.png"]
    assert list(tmp_path.iterdir()) == [folder], "something else is left behind"
    rows = rows_of(folder)
    keeps = [TOTAL, 26_620, 888]
    wanted = product(["Random", "SNIP", "SynFlow"], ["global", "ERK", "IGQ"], [0, 1], keeps)
    assert sorted((r.criterion, r.quota, r.seed, r.kept) for r in rows) == sorted(wanted)
    for row in rows:
        assert row.total == TOTAL
        assert row.direct_compression == TOTAL / row.kept
        left = row.effective_kept
        assert row.effective_compression == (TOTAL / left if left else math.inf)
        assert row.effective_kept <= row.kept
    assert all(row.effective_kept == TOTAL for row in rows if row.kept == TOTAL)
    assert any(row.effective_kept < row.kept for row in rows)
    for words in ("LeNet300100 on Digits", "2 seeds", "SynFlow", "IGQ", "300x", str(folder)):
        assert words in out


def pruned_by_train(args: str, folder: Path) -> Masks:
    short = "--trainer.max_epochs 1 --trainer.limit_train_batches 1 --trainer.logger false"
    assert cli.main([*QUICKSTART, *shlex.split(f"{args} {short} --run_dir {folder}")]) == 0
    return Masks.load(folder / "masks.safetensors")


@pytest.mark.parametrize(
    ("criterion", "quota", "others"),
    [
        ("SNIP", None, ""),
        ("SNIP", "ERK", "--pruning.batches 3 --data.rotate 9 --seed_everything 5"),
        ("SNIP", None, "--model.backbone.batch_norm true --pruning.rounds 3"),
        ("Random", None, ""),
        ("Random", "IGQ", "--seed_everything 5"),
        ("SynFlow", "IGQ", "--pruning.rounds 5"),
        ("Magnitude", None, "--pruning.exclude 'backbone.fc3*' --model.backbone.num_classes 10"),
    ],
)
def test_a_point_is_the_mask_that_train_would_get(criterion, quota, others, run, monkeypatch):
    seen = {}
    row = curve._row

    def noting(name, quota, seed, masks, effective):
        seen[quota, masks.kept] = masks
        return row(name, quota, seed, masks, effective)

    monkeypatch.setattr(curve, "_row", noting)
    quotas = f"--quotas {quota}" if quota else "--quotas"
    code, _, err, folder = run(f"{others} --criteria {criterion} {quotas} --compressions 30 10 2")
    assert (code, err) == (0, "")
    named = f"--pruning.quota {quota}" if quota else ""
    trained = pruned_by_train(
        f"{others} --pruning.criterion {criterion} {named} --pruning.target 10x", folder / "run"
    )
    assert trained.kept == Target(compression=10).count(trained.total)
    assert seen[quota or "global", trained.kept] == trained


def test_no_step_of_training_is_taken(run, monkeypatch):
    def step(*args):
        raise AssertionError("a step of training")

    monkeypatch.setattr(LitClassifier, "training_step", step)
    monkeypatch.setattr(LitClassifier, "validation_step", step)
    assert run("--criteria Random --quotas --compressions 10")[0] == 0


# Closed forms.


def test_in_one_layer_all_that_is_kept_is_effective(run):
    _, out, _, folder = run(f"--model.backbone {HERE}.OneLayer --criteria Random SNIP")
    rows = rows_of(folder)
    assert {row.quota for row in rows} == {"global", "Uniform", "ERK", "IGQ"}
    assert all(row.effective_kept == row.kept for row in rows)
    keeps = [Target.parse(f"{text}x").count(7840) for text in GRID]
    of_one = [row.kept for row in rows if (row.criterion, row.quota) == ("SNIP", "ERK")]
    assert of_one == sorted(set(keeps), reverse=True)
    assert "OneLayer" in out


def test_a_chain_is_effective_until_its_smaller_layer_is_gone(run):
    _, out, _, folder = run(f"--model.backbone {HERE}.Chain --criteria Random --quotas Uniform IGQ")
    shapes = {"narrow": torch.Size((1, 784)), "wide": torch.Size((10, 1))}
    rows = [row for row in rows_of(folder) if row.quota != "global"]
    for row in rows:
        counts = {"Uniform": Uniform(), "IGQ": IGQ()}[row.quota](shapes, row.kept)
        assert row.effective_kept == (row.kept if min(counts.values()) else 0)
    uniform = [row for row in rows if row.quota == "Uniform"]
    assert [row.effective_kept for row in uniform].count(0) == 1, "one row after the collapse"
    assert math.isinf(uniform[-1].effective_compression)
    assert (folder / "curve.csv").read_text().count(",inf,")
    assert f"{uniform[-1].direct_compression:.3g}x" in out


def test_asked_for_compressions_are_kept_beyond_the_collapse(run):
    typed = f"--model.backbone {HERE}.Chain --criteria Random --quotas Uniform"
    _, _, _, folder = run(f"{typed} --compressions 30 100 300 300.0 1e9")
    rows = [row for row in rows_of(folder) if row.quota == "Uniform"]
    assert [(row.kept, row.effective_kept) for row in rows] == [(27, 0), (8, 0), (3, 0), (1, 0)]


# Which seeds, and how often is scored.


def test_seeds_follow_the_seed_of_the_config(run):
    typed = "--criteria Random SNIP --quotas ERK --compressions 30"
    _, _, _, folder = run(f"{typed} --seed_everything 7 --seeds 3")
    rows = rows_of(folder)
    assert {row.seed for row in rows} == {7, 8, 9}
    assert len({row.effective_kept for row in rows if row.criterion == "SNIP"}) > 1
    _, _, _, folder = run(f"{typed} --seed_everything 8")
    assert rows_of(folder) == [row for row in rows if row.seed == 8]


def test_a_criterion_of_one_round_scores_once(run):
    CALLS.clear()
    assert run(f"--criteria {HERE}.plain --quotas ERK IGQ --compressions 1 2 4 8")[0] == 0
    assert len(CALLS) == 1


def test_a_criterion_that_asks_for_the_budget_scores_for_every_target(run):
    CALLS.clear()
    assert run(f"--criteria {HERE}.budgeted --quotas ERK --compressions 1 2 4")[0] == 0
    assert CALLS == [TOTAL // 2, TOTAL // 4] * 2


def test_rounds_score_anew_for_every_target(run):
    CALLS.clear()
    typed = f"--criteria {HERE}.plain --quotas --compressions 2 4 --pruning.rounds 3"
    assert run(typed)[0] == 0
    assert len(CALLS) == 6


def test_where_a_quota_does_not_reach_there_is_no_point(run):
    code, out, err, folder = run("--criteria Random --quotas UniformPlus --compressions 100 1e5")
    assert (code, err) == (0, "")
    assert [(r.quota, r.kept) for r in rows_of(folder)] == [
        ("global", 2662),
        ("global", 3),
        ("UniformPlus", 2662),
    ]
    assert "quota ends" in out


# What is left of the rows, and the figure.


def row(quota: str, seed: int, kept: int, effective: int, criterion: str = "SNIP") -> Row:
    compression = 1000 / effective if effective else math.inf
    return Row(criterion, quota, seed, 1000 / kept, compression, kept, effective, 1000)


def test_the_grid_ends_where_no_seed_has_anything_left():
    rows = [
        *(row("global", 0, kept, eff) for kept, eff in ((1000, 1000), (100, 0), (10, 0), (1, 0))),
        *(row("global", 1, kept, eff) for kept, eff in ((1000, 1000), (100, 9), (10, 0), (1, 0))),
        *(row("ERK", 0, kept, eff) for kept, eff in ((1000, 9), (100, 0), (10, 3), (1, 0))),
        *(row("IGQ", 0, kept, 1) for kept in (1000, 100, 10, 1)),
        *(row("Uniform", 0, kept, 0) for kept in (1000, 100)),
    ]
    left = curve._until_nothing_is_left(rows)
    assert [r for r in rows if r not in left] == [rows[3], rows[7], rows[-1]]


def test_mean_and_range_of_seeds():
    rows = [row("ERK", seed, 100, effective) for seed, effective in enumerate((100, 10, 1))]
    (point,) = curve._curve(rows)
    assert point == (10, pytest.approx(100), 10, 1000)
    (point,) = curve._curve([*rows, row("ERK", 3, 100, 0)])
    assert point == (10, math.inf, 10, math.inf)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)


def has_colour(png: bytes, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(png) == wanted).all(1).any())


def test_the_figure_is_a_png_with_a_colour_for_each_criterion_and_leaves_no_state():
    settings, figures = dict(matplotlib.rcParams), pyplot.get_fignums()
    alive = [row("global", 0, kept, kept, "A") for kept in (1000, 100, 10)]
    dead = [row("ERK", 0, kept, kept // 99, "B") for kept in (1000, 100, 10)]
    png = draw([*alive, *dead], "a title", "the command")
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.size) == ("PNG", (1200, 800))
    assert image.info["Description"] == "the command"
    assert all(has_colour(png, colour) for colour in curve._COLOURS[:2])
    assert not has_colour(png, curve._COLOURS[2])
    assert draw(alive, "a title", "") != draw(dead, "a title", "") != draw(dead, "another", "")
    assert (dict(matplotlib.rcParams), pyplot.get_fignums()) == (settings, figures)


@pytest.mark.parametrize("effective", [0, 1, 5])
def test_a_single_point_can_be_drawn(effective):
    png = draw([row("global", 0, 5, effective)], "a title", "")
    assert has_colour(png, curve._COLOURS[0])


def test_matplotlib_is_imported_only_where_it_draws():
    source = Path(curve.__file__).read_text()
    assert "pyplot" not in source
    named = [
        node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert named
    assert "matplotlib" not in "".join(map(ast.unparse, named))


# Mistakes.

MISTAKES = {
    "unknown criterion": ("--criteria Random SNIPP", ["SNIPP", "did you mean 'SNIP'"]),
    "unknown quota": ("--quotas ERK erq", ["'erq'", "ERK, ERKPlus, FromCriterion, IGQ"]),
    "no criterion": ("--criteria", ["--criteria"]),
    "a criterion of null": ("--criteria null", ["criterion"]),
    "compression below 1": ("--compressions 10 0.5", ["0.5x", "at least 1x"]),
    "negative compression": ("--compressions -3", ["-3"]),
    "compression in words": ("--compressions ten", ["ten"]),
    "compression nan": ("--compressions nan", ["nan"]),
    "no seed": ("--seeds 0", ["--seeds 0", "at least 1"]),
    "seeds in words": ("--seeds two", ["--seeds", "two"]),
    "out is a file": ("--out {here}/file", ["{here}/file", "is a file"]),
    "out lies in a file": ("--out {here}/file/a/b", ["{here}/file", "is a file"]),
    "slip of an option": ("--quota ERK", ["'--quota'", "'--quotas'"]),
    "unknown option": ("--trainer.acelerator cpu", ["trainer.acelerator", "trainer.accelerator"]),
    "stray word": ("--seeds 1 bogus", ["bogus"]),
    "run folder": ("--run_dir {here}/x", ["--out"]),
    "overwrite": ("--overwrite", ["--out"]),
    "unknown backbone": ("--model.backbone LeNet6", ["LeNet6", "LeNet5"]),
    "no config": ("--config {here}/none.yaml", ["none.yaml"]),
    "no data": ("--data MNIST --data.root {here}", ["MNIST", "{here}"]),
    "input does not fit": ("--model.backbone LeNet5 --data.channels 3", ["LeNet5", "(3, 28, 28)"]),
    "unknown operation": (f"--model.backbone {HERE}.Twisted", ["twist"]),
    "nan score": (f"--criteria {HERE}.one_nan", ["backbone.fc2.weight", "NaN"]),
    "nothing to prune": ("--pruning.exclude '*'", ["nothing to prune"]),
    "no batch": ("--trainer.limit_train_batches 0", ["limit_train_batches"]),
    "rounds": ("--pruning.rounds 0", ["rounds=0"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_on_stderr_and_code_2(name, run, tmp_path, recwarn):
    (tmp_path / "file").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    typed, named = MISTAKES[name]
    code, out, err, _ = run(typed.format(here=tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert len(err) < 600
    for words in named:
        assert words.format(here=tmp_path) in err
    assert sorted(tmp_path.rglob("*")) == before
    shown = [w for w in recwarn if not issubclass(w.category, DeprecationWarning | FutureWarning)]
    assert [str(w.message) for w in shown] == []


def test_without_matplotlib_the_extra_is_named_before_anything_is_scored(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    CALLS.clear()
    code, _, err, folder = run(f"--criteria {HERE}.plain")
    assert (code, CALLS) == (2, [])
    assert "pip install 'lit_prune[report]'" in err
    assert not folder.exists()


def test_options_of_train_are_no_slips(run):
    code, _, err, _ = run(
        f"--config={QUICKSTART[1]} --seed_everything 3 --data Digits --pruning.quota IGQ "
        "--criteria Random --quotas --compressions 10"
    )
    assert (code, err) == (0, "")


def test_help_says_which_curves_are_drawn(run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["curve", "--help"])
    assert not stop.value.code
    out = capsys.readouterr().out
    for words in ("--criteria", "--quotas", "--compressions", "--seeds", "--out", "global", "100"):
        assert words in out


def test_the_default_folder_is_named_after_the_config(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["lit_prune"])
    monkeypatch.chdir(tmp_path)
    typed = "--criteria Random --quotas --compressions 10"
    assert main(["curve", *QUICKSTART, *shlex.split(typed)]) == 0
    assert (tmp_path / "curves" / "quickstart" / "curve.csv").exists()


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], ["no command", "curve"]),
        (["curv"], ["'curv'", "did you mean 'curve'"]),
        (["bogus"], ["'bogus'", "known: curve"]),
    ],
)
def test_a_missing_or_unknown_command_prints_the_usage(args, named, capsys):
    assert main(args) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert all(words in captured.err for words in ["usage: python -m lit_prune", *named])


def test_the_package_is_a_program():
    command = [sys.executable, "-m", "lit_prune"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "curve" in helped.stdout


def test_a_pair_that_does_not_go_together_is_left_out_with_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit_prune"])
    asked = "--criteria PHEW Random --quotas ERK --compressions 10x"
    out = tmp_path / "curve"
    with pytest.warns(LitPruneWarning, match="PHEW by ERK is left out: PHEW's walks decide"):
        code = main(["curve", *QUICKSTART, *asked.split(), "--out", str(out)])
    assert code == 0
    pairs = {tuple(line.split(",")[:2]) for line in (out / "curve.csv").read_text().splitlines()}
    assert pairs - {("criterion", "quota")} == {
        *(("PHEW", "global"), ("Random", "global"), ("Random", "ERK"))
    }
