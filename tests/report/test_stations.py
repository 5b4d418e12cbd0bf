"""Levels of iterative runs: as many rows as there are, and means over seeds by numpy."""

import csv
import math

import numpy as np
import pytest
from run_folders import TOTAL, schedule, write_csv, write_run

from lit_prune.report import read_runs, tasks_of
from lit_prune.report.figures import pictures
from lit_prune.report.levels import levels_csv, stations

HEAD = "level,epoch,kept,direct_sparsity,effective_sparsity,collapsed_layers,test_accuracy"
# Of each seed and level: kept, effective, accuracy.
LEVELS = {
    0: [(TOTAL, TOTAL, 0.90), (500, 480, 0.92), (100, 50, 0.85)],
    1: [(TOTAL, TOTAL, 0.91), (500, 460, 0.93), (100, 0, 0.10)],
    2: [(TOTAL, TOTAL, 0.89), (500, 500, 0.88), (100, 70, 0.86)],
}


def write(folder, seed, levels, accuracy=0.9, name="Iterative"):
    made = {"pruning__schedule": schedule(name, levels=2), "seed_everything": seed}
    write_run(folder, accuracy, **made)
    rows = [
        [n, 5 * (n + 1), kept, 1 - kept / TOTAL, "" if live is None else 1 - live / TOTAL, 0, score]
        for n, (kept, live, score) in enumerate(levels)
    ]
    write_csv(folder / "levels.csv", HEAD, rows)


@pytest.fixture
def seeds(tmp_path):
    for seed, levels in LEVELS.items():
        write(tmp_path / f"seed{seed}", seed, levels)
    return tmp_path


def cells(folder):
    [task] = tasks_of(read_runs([folder]))
    return task, task.cells


def test_a_station_is_the_mean_over_seeds(seeds):
    _, [cell] = cells(seeds)
    found = np.array([LEVELS[seed] for seed in LEVELS])
    along = stations(cell)
    assert len(along) == 3
    for n, station in enumerate(along):
        kept, effective, accuracy = found[:, n].T
        assert station.direct == pytest.approx(TOTAL / kept.mean())
        assert station.effective == pytest.approx(TOTAL / effective.mean())
        assert station.accuracy.mean == pytest.approx(accuracy.mean())
        assert station.accuracy.std == pytest.approx(accuracy.std(ddof=1))


def test_every_level_of_every_run_is_a_row(seeds):
    write(seeds / "unfinished", 3, LEVELS[0][:2], accuracy=None)
    task, _ = cells(seeds)
    rows = list(csv.DictReader(levels_csv([task]).splitlines()))
    assert len(rows) == 3 * 3 + 2
    for row in rows:
        kept, effective, accuracy = LEVELS[int(row["seed"]) % 3][int(row["level"])]
        assert int(row["kept"]) == kept
        assert float(row["effective_sparsity"]) == pytest.approx(1 - effective / TOTAL)
        assert float(row["test_accuracy"]) == accuracy
        if row["seed"] == "3":
            # Unfinished runs do not tell how many connections there are.
            assert row["direct_compression"] == row["effective_compression"] == ""
        else:
            found = float(row["direct_compression"]), float(row["effective_compression"])
            assert found == (TOTAL / kept, TOTAL / effective if effective else math.inf)
        assert int(row["epoch"]) == 5 * (int(row["level"]) + 1)
    assert {row["target"] for row in rows} == {"10x"}


def test_levels_that_only_some_seeds_have_are_left_out(seeds):
    write(seeds / "short", 3, LEVELS[0][:2])
    _, [cell] = cells(seeds)
    assert len(stations(cell)) == 2


def test_what_is_not_known_is_not_guessed(tmp_path):
    write(tmp_path / "a", 0, [(TOTAL, None, 0.9), (100, None, 0.8)])
    task, [cell] = cells(tmp_path)
    assert [station.effective for station in stations(cell)] == [None, None]
    rows = list(csv.DictReader(levels_csv([task]).splitlines()))
    assert [row["effective_compression"] for row in rows] == ["", ""]

    write(tmp_path / "a", 0, [(TOTAL, TOTAL, ""), (100, 80, 0.8)])
    _, [cell] = cells(tmp_path)
    assert [station.direct for station in stations(cell)] == [10]


def test_runs_of_one_level_have_no_picture_of_their_own(seeds):
    task, _ = cells(seeds)
    titles = [picture.title for picture in pictures(task)]
    assert sum("levels" in title for title in titles) == 1
    [words] = [p.words for p in pictures(task) if "levels" in p.title]
    assert "90.0 % at 1x, 91.0 % at 2x, 60.3 % at 10x" in words
    for folder in seeds.iterdir():
        write(folder, int(folder.name[-1]), LEVELS[0][:1])
    task, _ = cells(seeds)
    assert not any("levels" in picture.title for picture in pictures(task))
