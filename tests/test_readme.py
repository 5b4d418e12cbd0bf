"""Every code block of the README runs as it stands."""

import re
import shlex
import sys
from pathlib import Path

import pytest

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


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, code in enumerate(blocks("python"), 1):
        exec(compile(code, f"README.md, python block {number}", "exec"), namespace)


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_runs(command, tmp_path, monkeypatch):
    program, script, *args = shlex.split(command, comments=True)
    assert (program, script) == ("python", "train.py"), "a command that this test does not know"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    short = ["--run_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1"]
    assert main([*args, *short]) == 0
    assert (tmp_path / "run" / "summary.json").exists()
