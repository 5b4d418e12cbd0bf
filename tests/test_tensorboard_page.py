"""The page that TensorBoard makes of two runs, opened in a real browser."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from lit_prune.cli import main

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from make_screenshots import browser, server  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium"),
]

COMMON = [
    *("--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.max_epochs", "2"),
    *("--trainer.limit_train_batches", "4", "--trainer.log_every_n_steps", "2"),
]
RUNS = {"one": ["--pruning.criterion", "Magnitude"], "two": ["--pruning.criterion", "Random"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, args in RUNS.items():
        assert main([*COMMON, *args, "--run_dir", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def address(runs):
    with server(runs) as address:
        yield address


def shown(address: str, tab: str, size: str = "1500,12000") -> str:
    """The text of a tab, as one line."""
    page = browser(f"{address}#{tab}", "--dump-dom", f"--window-size={size}")
    page = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_scalars_are_grouped_and_there(address):
    text = shown(address, "timeseries")
    groups = ["compression 2 cards", "dead_units 6 cards", "density 3 cards", "sparsity 2 cards"]
    groups += ["density_effective 3 cards", "gradient_flow 4 cards"]
    places = [text.find(group) for group in groups]
    assert -1 not in places, dict(zip(groups, places, strict=True))
    for tag in ("density/fc1", "dead_units/fc1/in", "level/test_accuracy", "masks/fc1"):
        assert tag in text
    for name in RUNS:
        assert f" {name} " in text


def test_images_show_every_mask_and_the_overviews(address):
    text = shown(address, "images")
    for tag in ("masks/fc1", "masks/fc2", "masks/fc3", "overview/density", "overview/scores"):
        assert text.count(tag) == len(RUNS), tag


def test_the_table_of_runs_has_criteria_and_final_accuracies(address, runs):
    text = shown(address, "hparams", "2400,1200")
    for name, args in RUNS.items():
        summary = json.loads((runs / name / "summary.json").read_text())
        accuracy = f"{summary['test_accuracy']:.5g}"
        row = re.search(rf" {name} .*?LeNet300100 .*?{args[-1]} .*?{re.escape(accuracy)}", text)
        assert row, (name, accuracy)
