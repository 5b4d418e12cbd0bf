"""The pages of docs/: every room is in the reference, and all of it can be built."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lit_prune

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "api"
PACKAGE = Path(lit_prune.__file__).parent
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"} - {"__init__"} | {
    path.parent.name for path in PACKAGE.glob("*/__init__.py")
}


def test_every_room_is_on_one_page_of_the_reference():
    pages = [path.read_text() for path in API.glob("*.md")]
    named = [name for page in pages for name in re.findall(r"^::: lit_prune\.(\w+)$", page, re.M)]
    assert sorted(named) == sorted(ROOMS)


def test_the_reference_opens_with_the_public_names():
    named = re.findall(r"^\| \[`(\w+)`\]", (API / "index.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(lit_prune.__all__)


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    there = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    assert listed == there


def test_pages_link_to_files_that_are_there():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("launch/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "criteria.html").read_text()
    assert "lit_prune.criteria.synflow.SynFlow" in page
