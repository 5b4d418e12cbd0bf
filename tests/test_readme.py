"""Every code block of the README runs as it stands."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from lit_prune.__main__ import main as lit_prune
from lit_prune.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
ELSEWHERE = ("make ", "git ", "pip ", "tensorboard ", "cd ")

pytestmark = pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")


def blocks(*languages: str) -> list[str]:
    text = README.read_text() if README.exists() else ""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def commands() -> list[str]:
    lines = "".join(blocks("bash", "console", "sh")).replace("\\\n", " ").splitlines()
    typed = (line.removeprefix("$ ").strip() for line in lines)
    return [line for line in typed if line and not line.startswith(("#", *ELSEWHERE))]


def test_the_readme_has_code_and_commands():
    assert blocks("python")
    assert commands()


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) < 150


def rows(text: str) -> dict[str, str]:
    """Read a table of two columns."""
    return {line[:14].strip(): line[14:].strip() for line in text.splitlines() if line.strip()}


def test_the_end_of_the_quickstart_is_as_the_readme_shows_it(tmp_path, monkeypatch, capsys):
    """But for what the number of epochs, the time and the place make of it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    short = ["--run_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1"]
    assert main(["--config", "configs/quickstart.yaml", *short]) == 0
    printed = rows(capsys.readouterr().out)
    (shown,) = (table for block in blocks("text") if "connections" in (table := rows(block)))
    assert list(shown) == list(printed)
    changing = ("test accuracy", "seconds", "run folder", "look at it")
    assert {key: shown[key] for key in shown if key not in changing} == {
        key: printed[key] for key in printed if key not in changing
    }


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, code in enumerate(blocks("python"), 1):
        exec(compile(code, f"README.md, python block {number}", "exec"), namespace)


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    match shlex.split(command, comments=True):
        case ["python", "train.py", *args]:
            monkeypatch.setattr(sys, "argv", ["train.py"])
            short = ["--run_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1"]
            assert main([*args, *short]) == 0
            assert (tmp_path / "run" / "summary.json").exists()
        case ["python", "-m", "lit_prune", *args]:
            monkeypatch.setattr(sys, "argv", ["lit_prune"])
            assert lit_prune([*args, "--out", str(tmp_path / "out")]) == 0
            assert any((tmp_path / "out").iterdir())
        case _:
            raise AssertionError("a command that this test does not know")
