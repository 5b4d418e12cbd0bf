"""Writes docs/methods.md: all criteria and quotas, from their docstrings and what they cost.

    python docs/make_methods.py

Costs stand in docs/results/criteria.csv, which ``python -m benchmarks.criteria --csv`` wrote.
"""

import csv
import inspect
import re
from pathlib import Path

from lit_prune import criteria, quotas
from lit_prune.shelf import members

DOCS = Path(__file__).resolve().parent
TITLE = "# Methods"
ABOUT = """\
Every criterion and quota, from their docstrings: `python docs/make_methods.py` writes this page,
and a test checks that it is up to date. Each works with direct and effective targets.

Cost is one round of scoring of ResNet-20 and of VGG-16 at 32x32, as a ratio to one forward and
backward: of the same batch of 128 for criteria that look at batches, of a batch of 1 for the
others; seconds are a whole prune to 99 %. `python -m benchmarks.criteria` measured it, see
[results.md](results.md)."""


def main() -> None:
    """Write the page."""
    (DOCS / "methods.md").write_text(page())


def page() -> str:
    """Return docs/methods.md."""
    costs = _costs(DOCS / "results" / "criteria.csv")
    scoring = members(criteria.__name__, criteria.__path__, criteria.Criterion)
    counting = members(quotas.__name__, quotas.__path__, quotas.Quota)
    parts = [
        TITLE,
        ABOUT,
        "## Criteria",
        _table(
            ("criterion", "paper", "year", "rounds", "needs", "cost", "departs from paper or code"),
            [_criterion_row(name, kind, costs) for name, kind in sorted(scoring.items())],
        ),
        "## Quotas",
        _table(
            ("quota", "paper", "year", "reaches", "departs from paper or code"),
            [_quota_row(name, kind) for name, kind in sorted(counting.items())],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _criterion_row(name: str, kind: type, costs: dict[str, str]) -> tuple[str, ...]:
    said = _said(kind)
    rounds = getattr(kind, "rounds", 1)
    own = str(rounds) if isinstance(rounds, int) else "the criterion's"
    return (f"`{name}`", *_source(said), own, said["Needs"], costs.get(name, ""), said["Departs"])


def _quota_row(name: str, kind: type) -> tuple[str, ...]:
    said = _said(kind)
    return (f"`{name}`", *_source(said), said["Reaches"], said["Departs"])


def _said(kind: type) -> dict[str, str]:
    """Return the paragraphs of a docstring that start with a word and a colon, by that word."""
    paragraphs = re.split(r"\n\s*\n", inspect.getdoc(kind) or "")
    found = (re.match(r"(Source|Needs|Reaches|Departs): (.+)", p, re.DOTALL) for p in paragraphs)
    return {f[1]: " ".join(f[2].split()).rstrip(".").replace("``", "`") for f in found if f}


def _source(said: dict[str, str]) -> tuple[str, str]:
    """Return the paper, with a link where it is on arXiv, and its year."""
    text = said["Source"]
    found = re.match(r'(?P<who>.+?) (?P<year>(19|20)\d\d), "(?P<title>.+?)",? ?(?P<where>.*)', text)
    if not found:
        return text, ""
    where = re.sub(r"arXiv (\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", found["where"])
    return f"{found['who']}, *{found['title']}*, {where}", found["year"]


def _costs(path: Path) -> dict[str, str]:
    """Return the costs by criterion, those of the first network first."""
    found: dict[str, list[str]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["criterion"], []).append(row["cost"])
    return {name: ", ".join(costs) for name, costs in found.items()}


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
