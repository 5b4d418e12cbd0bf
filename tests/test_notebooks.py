"""Notebooks are executed by nbmake; here, that what is committed is clean."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_a_title_and_explains_itself(path):
    cells = json.loads(path.read_text())["cells"]
    assert "".join(cells[0]["source"]).startswith(f"# {path.name[0]}. ")
    assert sum(cell["cell_type"] == "markdown" for cell in cells) >= 4
