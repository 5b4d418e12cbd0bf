"""The command, as tests call it."""

import pytest

import lit_prune.report.page as page
from lit_prune.__main__ import main


@pytest.fixture
def report(tmp_path, capsys, monkeypatch):
    """Run the command; return its exit code, its line of error, and the folder that it wrote.

    Nothing is drawn, which takes seconds, unless it is asked for.
    """

    def run(*args, out=None, draw=False):
        if not draw:
            monkeypatch.setattr(page, "pictures", lambda task: [])
        out = out or tmp_path / "out"
        code = main(["report", *map(str, args), "--out", str(out)])
        return code, capsys.readouterr().err.strip(), out

    return run
