"""docs/methods.md is what its docstrings and measurements say."""

import runpy
from pathlib import Path

import pytest

from lit_prune import criteria, quotas
from lit_prune.criteria import Criterion
from lit_prune.quotas import Quota
from lit_prune.shelf import members

ROOT = Path(__file__).resolve().parents[1]
MAKER = runpy.run_path(str(ROOT / "docs" / "make_methods.py"))
CRITERIA = members(criteria.__name__, criteria.__path__, Criterion)
QUOTAS = members(quotas.__name__, quotas.__path__, Quota)
PAGE = (ROOT / "docs" / "methods.md").read_text()


def row_of(name):
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def test_the_page_is_up_to_date():
    assert MAKER["page"]() == PAGE, "run python docs/make_methods.py"


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_has_paper_year_needs_cost_and_departure(name):
    _, paper, year, rounds, needs, cost, departs = row_of(name)
    assert "arxiv.org" in paper or "NeurIPS" in paper or "ICLR" in paper
    assert 2010 <= int(year) <= 2026
    assert all([rounds, needs, cost, departs])


@pytest.mark.parametrize("name", QUOTAS)
def test_every_quota_has_a_source_a_reach_and_a_departure(name):
    assert all(row_of(name)[i] for i in (1, 3, 4))


@pytest.mark.parametrize("name", ["SNIP", "GraSP", "FORCE", "Taylor", "Wanda"])
def test_what_needs_batches_says_so(name):
    assert "batches" in row_of(name)[4]
