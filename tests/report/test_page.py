"""The page stands alone, parses, and takes names as they are; so do the tables."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import TOTAL, config, part, write_run

from lit_prune.report import Run, tasks_of
from lit_prune.report.figures import pictures
from lit_prune.report.page import page
from lit_prune.report.tables import latex, markdown

HOSTILE = "<script>alert('1')</script> & 50% #1 $x_{2}$ ~^\\ | `a` \"q\" http://evil.example"
VOID = {"meta", "br", "img", "link"}


class Reader(HTMLParser):
    """Checks that tags nest; keeps the text, the tags and all attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def run(path, accuracy=0.9, kept=100, effective=80, **changes):
    found = {"test_accuracy": accuracy, "total": TOTAL, "kept": kept, "seconds": 3.0}
    found |= {"effective_kept": effective, "effective_flops": 2 * effective, "flops": 2 * TOTAL}
    return Run(path, config(**changes), found)


def written(runs):
    return page(runs, tasks_of(runs), "python -m lit_prune report")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A page of many methods and states, with all its plots."""
    from lit_prune.report import read_runs

    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for number, name in enumerate(("SNIP", "Random", "SynFlow")):
            made = {"seed_everything": seed, "pruning__criterion": part(name)}
            write_run(root / f"{name}{seed}", 0.9 - 0.1 * number, **made)
            write_run(root / f"{name}e{seed}", 0.8, pruning__target="20x effective", **made)
    write_run(root / "dead", 0.1, 10, 0, pruning__target="100x")
    write_run(root / "dense", 0.95, TOTAL, TOTAL, pruning__target="1x")
    import matplotlib

    runs, before = read_runs([root]), dict(matplotlib.rcParams)
    text, figures = written(runs), pictures(tasks_of(runs)[0])
    assert dict(matplotlib.rcParams) == before
    return runs, text, figures


def test_the_page_parses_and_needs_nothing_else(drawn):
    runs, text, _ = drawn
    found = Reader(text)
    assert "script" not in found.tags
    assert "svg" in found.tags
    for tag, name, value in found.attributes:
        assert not re.search(r"(https?:)?//", value or ""), (tag, name, value)
        assert name not in ("src", "srcset") or value.startswith("data:")
        assert name != "href" or value.startswith(("#", "data:image/png;base64,"))
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "@import" not in text
    assert f"{len(runs)} runs: 13 finished, 1 collapsed." in text


def test_every_plot_has_words_that_name_its_methods(drawn):
    _, text, _ = drawn
    words = [value for tag, name, value in Reader(text).attributes if name == "aria-label"]
    assert len(words) == 6
    assert all("SNIP" in word and "SynFlow" in word for word in words)


def test_every_plot_says_its_n_and_is_well_formed(drawn):
    for picture in drawn[2]:
        assert re.search(r"n = \d", picture.caption)
        ElementTree.fromstring(picture.svg)
        assert "currentColor" in picture.svg


def test_the_words_tell_the_means(drawn):
    first = drawn[2][0]
    assert "SNIP at 10x: 90.0 %" in first.words
    assert "Random at 10x: 80.0 %" in first.words


def test_hostile_names_are_shown_as_they_are():
    runs = [
        run("a", pruning__criterion={"class_path": f"x.{HOSTILE}"}),
        run("b", pruning__rounds=HOSTILE),
        Run("c", config(seed_everything=1), error=HOSTILE),
    ]
    found = Reader(written(runs))
    assert "script" not in found.tags
    assert HOSTILE.rpartition(".")[2] in " ".join(found.text)
    assert HOSTILE in found.text


def plain(tex):
    """Undo the escapes of LaTeX, by their meaning in a document."""
    for escape, character in {
        r"\textbackslash{}": "\0",
        r"\textasciitilde{}": "~",
        r"\textasciicircum{}": "^",
        r"\textless{}": "<",
        r"\textgreater{}": ">",
        "{[}": "[",
        "{]}": "]",
        r"$\pm$": "±",
        r"$\infty$": "∞",
    }.items():
        tex = tex.replace(escape, character)
    return re.sub(r"\\([&%$#_{}])", r"\1", tex).replace("\0", "\\")


@given(st.text(st.sampled_from("ab &%$#_{}~^<>[]\\|"), min_size=1, max_size=12))
def test_latex_says_every_name_in_plain_characters(name):
    tasks = tasks_of([run("a", pruning__rounds=f"x{name}"), run("b")])
    lines = latex(tasks).splitlines()
    rows = [line for line in lines if line.endswith(r" \\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {12}
    cells = [plain(re.split(r"(?<!\\)& ?", line)[0].strip()) for line in rows]
    assert " ".join(f"SNIP, x{name} rounds".split()) in cells
    for line in rows:
        bare = re.sub(r"\\[&%$#_{}]|\$\\pm\$|\$\\infty\$|\\text\w+\{\}|\{[\[\]]\}", "", line)
        assert not re.search(r"[%$#_{}~^<>\[\]]", bare), line


@given(st.text(st.sampled_from("ab|`*_<>[]\\#\n"), min_size=1, max_size=12))
def test_markdown_keeps_its_columns(name):
    tasks = tasks_of([run("a", pruning__rounds=f"x{name}"), run("b")])
    rows = [line for line in markdown(tasks).splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in rows} == {14}
    assert len(rows) == 3


def test_tables_tell_numbers_and_notes():
    runs = [
        run("a", 0.9, 100, 80),
        run("b", 0.8, 100, 40, seed_everything=1),
        run("c", 0.1, 10, 0, pruning__target="100x"),
    ]
    text = markdown(tasks_of(runs))
    line = "| SNIP | 10x | 2 | 85.00 ± 7.07 | 100 | 60 | 10x | 16.7x | 3 | 1.20e2 | - |  |  |"
    assert line in text
    line = "| SNIP | 100x | 1 | 10.00 | 10 | 0 | 100x | ∞ | 3 | 0 | - |  | "
    assert f"{line}missing: 1; 1 of 1 collapsed |" in text
