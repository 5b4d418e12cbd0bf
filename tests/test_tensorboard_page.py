"""The page that TensorBoard makes of two runs, opened in a real browser."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from lit_prune.cli import main

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from make_screenshots import browser, server, shown  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Debian's chromium and chromium-driver",
    ),
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


@pytest.fixture(scope="module")
def page(address):
    """The text of a tab once all of ``signs`` are there, as one line."""
    with browser() as driver:

        def text_of(tab, *signs, size=(1500, 12000)):
            return shown(
                driver, f"{address}#{tab}", size, lambda text: all(sign in text for sign in signs)
            )

        yield text_of


def test_scalars_are_grouped_and_there(page, runs):
    groups = ["compression 2 cards", "dead_units 6 cards", "density 3 cards", "sparsity 2 cards"]
    groups += ["density_effective 3 cards", "gradient_flow 4 cards", "level 5 cards"]
    # Of the groups, the first two are open; a card cuts its tag in two, and shows the last values.
    values = [f" {name} {(dead := _dead_inputs(runs / name))} {dead} " for name in RUNS]
    text = page("timeseries", *groups, "dead_units/fc3 /out", *values)
    assert [group for group in groups if group not in text] == []
    card = text.split("dead_units/fc1 /in")[1].split("dead_units/fc1 /out")[0]
    assert [value for value in values if value not in card] == []


def _dead_inputs(run):
    with (run / "layers.csv").open() as file:
        return next(csv.DictReader(file))["dead_in"]


def test_images_show_every_mask_and_the_overviews(page):
    tags = [f"masks/fc{number}" for number in (1, 2, 3)] + ["overview/density", "overview/scores"]
    text = page("images", *tags)
    assert {tag: text.count(tag) for tag in tags} == dict.fromkeys(tags, len(RUNS))


def test_the_table_of_runs_has_criteria_and_final_accuracies(page, runs):
    accuracies = {
        name: f"{json.loads((runs / name / 'summary.json').read_text())['test_accuracy']:.5g}"
        for name in RUNS
    }
    text = page("hparams", *accuracies.values(), size=(2400, 1200))
    for name, args in RUNS.items():
        row = rf" {name} .*?{args[-1]} .*?LeNet300100 .*?{re.escape(accuracies[name])}"
        assert re.search(row, text) or accuracies[name] in text.split(f" {name} ")[1], name
