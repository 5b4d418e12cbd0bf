"""Options: the word that a command is about is found wherever it stands."""

from itertools import permutations
from pathlib import Path

import pytest

from lit_prune import LitPruneError
from lit_prune.options import Options

PARTS = (["runs/a"], ["--level", "2"], ["--data.root", "x"], ["--data.size=3"])


def options() -> Options:
    made = Options("What it does.", {"--level": "which"}, usage="it RUN")
    made.add("--level", type=int)
    return made


@pytest.mark.parametrize("order", permutations(range(len(PARTS))), ids=str)
def test_options_and_what_a_command_is_about_come_in_any_order(order):
    asked, about, others = options().parse_about([word for n in order for word in PARTS[n]])
    assert (asked.level, about) == (2, Path("runs/a"))
    theirs = [word for n in order if n > 1 for word in PARTS[n]]
    assert others == theirs


def test_nothing_and_stray_words_are_told_apart():
    assert options().parse_about(["--data.root", "x"])[1:] == (None, ["--data.root", "x"])
    assert options().parse_about(["a", "b"])[1:] == (Path("a"), ["b"])


def test_a_mistake_is_raised_in_one_line():
    with pytest.raises(LitPruneError, match="invalid int value: 'two'"):
        options().parse_about(["a", "--level", "two"])
