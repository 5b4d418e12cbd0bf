"""Every config opens with the line that runs it, and that line is understood."""

import shlex
from pathlib import Path

import pytest

from lit_prune.cli import parsed

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))


def test_there_are_configs():
    assert Path("configs/quickstart.yaml") in CONFIGS


@pytest.mark.parametrize("config", CONFIGS, ids=map(str, CONFIGS))
def test_the_first_line_of_a_config_runs_it(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py"])
    first = config.read_text().splitlines()[0]
    base = "configs/mnist_lenet300100_short.yaml --config " * (config.parent.name == "methods")
    assert first.startswith(f"# python train.py --config {base}{config}")
    _, _, _, *args = shlex.split(first)
    settings = parsed(args).settings()
    assert {"seed_everything", "trainer", "model", "data", "pruning"} <= set(settings)
    assert settings["trainer"]["max_epochs"] >= 1
    assert settings["pruning"]["target"]
