"""docs/results.md says what its rows say, and each row how it came about."""

import runpy
import shlex
import statistics
from pathlib import Path

import pytest

from lit_prune.cli import parsed

ROOT = Path(__file__).resolve().parents[1]
MAKER = runpy.run_path(str(ROOT / "docs" / "make_results.py"))
PAGE = (ROOT / "docs" / "results.md").read_text()
ROWS = MAKER["read_rows"]()
TRAINED = MAKER["read_rows"](MAKER["TRAINED"])


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(name):
    """The cells of a table, by its first column and by its head."""
    body = PAGE.split(f"<!-- {name}: by docs/make_results.py -->")[1]
    head, _, *lines = body.split(f"<!-- end of {name} -->")[0].strip().splitlines()
    return {cells(line)[0]: dict(zip(cells(head), cells(line), strict=True)) for line in lines}


def test_the_tables_are_up_to_date():
    assert MAKER["with_tables"](PAGE, ROWS) == PAGE, "run python docs/make_results.py"


@pytest.mark.parametrize("method", MAKER["METHODS"])
@pytest.mark.parametrize("kind", ["direct", "effective"])
def test_a_cell_is_mean_and_deviation_of_the_runs(method, kind):
    for compression in MAKER["COMPRESSIONS"]:
        target = compression + ("" if kind == "direct" else " effective")
        found = [
            100 * float(row["test_accuracy"])
            for row in ROWS
            if (row["sweep"], row["method"], row["target"]) == ("mnist_lenet300100", method, target)
        ]
        cell = table(kind)[MAKER["METHODS"][method]][compression]
        if len(found) == 3:
            expected = f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} ("
            assert cell.startswith(expected)
        else:
            assert f"n={len(found)}" in cell or not found


def test_the_short_training_is_shown_by_mean_and_deviation():
    for method, name in {"random_igq": "random, IGQ", "snip": "SNIP", "synflow": "SynFlow"}.items():
        for target in ("10x effective", "100x effective"):
            found = [
                100 * float(row["test_accuracy"])
                for row in TRAINED
                if (row["method"], row["target"]) == (method, target)
            ]
            assert len(found) == 3
            cell = table("ResNet-20, trained")[name][target]
            assert cell.startswith(
                f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} ("
            )


def test_every_row_says_how_it_came_about(monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = ROWS + TRAINED
    assert len({row["command"] for row in rows}) == len(rows)
    for row in [*ROWS[::40], *TRAINED[::7]]:
        python, script, *args = shlex.split(row["command"])
        assert (python, script) == ("python", "train.py")
        assert parsed(args).settings()["seed_everything"] == int(row["seed"])
    for row in rows:
        assert len(row["git_commit"].removesuffix("-dirty")) == 40
        assert "torch" in row["versions"]
        assert row["test_accuracy"]


def test_direct_targets_are_met_exactly_and_effective_ones_never_overshot():
    for row in ROWS + TRAINED:
        kept, effective, total = (int(row[k]) for k in ("kept", "effective_kept", "total"))
        wanted = total / float(row["target"].split("x")[0])
        assert effective <= kept
        if row["target"].endswith("effective"):
            assert effective >= wanted
        else:
            assert wanted <= kept < wanted + 1
