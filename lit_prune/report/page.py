"""The page: one file that needs nothing else, on paper or in the dark."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from lit_prune.report.figures import Picture, pictures
from lit_prune.report.groups import Cell, Method, Task
from lit_prune.report.runs import Run, Status
from lit_prune.report.style import STYLE
from lit_prune.report.tables import COLUMNS, NOTE, cells_of

__all__ = ["SIGN", "page"]

SIGN = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta name="generator" content="lit_prune report">'
)

# What S3.2 hangs on, apart from the rate, by which methods are compared anyway.
_RECIPE = ("dataset", "network", "base_model", "finetune_epochs", "finetune_rates")


def page(runs: Sequence[Run], tasks: Sequence[Task], command: str) -> str:
    """Return ``index.html``.

    Args:
        runs: all of them.
        tasks: those with settings, grouped.
        command: what makes this page again.
    """
    title = ", ".join(task.title for task in tasks) or "no settings could be read"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{_counted(runs)}</p>',
        f"<pre>{escape(command)}</pre>",
        *(_task(task, len(tasks) > 1) for task in tasks),
        _unfinished(runs),
        _origin(runs),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'{SIGN}\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _counted(runs: Sequence[Run]) -> str:
    found = Counter(run.status for run in runs)
    states = [f"{found[status]} {status}" for status in Status if found[status]]
    return escape(f"{len(runs)} runs: {', '.join(states)}. All of them are in runs.csv.")


def _task(task: Task, with_title: bool) -> str:
    """Return the section of a network on a data set: pictures, tables, who may be compared."""
    parts = [f"<h2>{escape(task.title)}</h2>"] if with_title else []
    parts += map(_figure, pictures(task))
    for is_effective in (False, True):
        cells = [cell for cell in task.cells if cell.rate.is_effective == is_effective]
        if cells:
            parts.append(_table(cells, "Effective targets" if is_effective else "Direct targets"))
    parts += [f'<p class="note">{escape(NOTE)}</p>', _comparable(task), _methods(task)]
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _figure(picture: Picture) -> str:
    return (
        f'<figure>\n<h3>{escape(picture.title)}</h3>\n<div role="img" '
        f'aria-label="{escape(picture.words)}">{picture.svg}</div>\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>"
    )


# Tables.


def _table(cells: Sequence[Cell], title: str) -> str:
    """Return the methods of all rates, each rate under a heading of its own."""
    heads = [head for head in COLUMNS if head != "target"]
    top = (
        '<tr><th rowspan="2" scope="col">method</th><th rowspan="2" scope="col">n</th>'
        '<th rowspan="2" scope="col">accuracy %</th><th colspan="2">connections</th>'
        '<th colspan="2">compression</th><th rowspan="2" scope="col">seconds</th>'
        '<th colspan="2">FLOPs</th><th rowspan="2" scope="col">setup</th>'
        '<th rowspan="2" scope="col">notes</th></tr>\n<tr>'
        + "".join(f'<th scope="col">{name}</th>' for name in ("kept", "effective", "direct"))
        + "".join(f'<th scope="col">{name}</th>' for name in ("effective", "inference", "training"))
        + "</tr>"
    )
    bodies = "\n".join(_body(rate, list(of), len(heads)) for rate, of in _by_rate(cells))
    return (
        f'<h3>{escape(title)}</h3>\n<div class="wide"><table>\n<thead>{top}</thead>\n'
        f"{bodies}\n</table></div>"
    )


def _by_rate(cells: Iterable[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cells_of(cell)[1], []).append(cell)
    yield from found.items()


def _body(rate: str, cells: Sequence[Cell], columns: int) -> str:
    rows = "\n".join(_row(cell) for cell in cells)
    head = f'<tr><th colspan="{columns}" scope="rowgroup">{escape(rate)}</th></tr>'
    return f"<tbody>\n{head}\n{rows}\n</tbody>"


def _row(cell: Cell) -> str:
    name, _, *numbers, setup, notes = cells_of(cell)
    is_weak = cell.mark is not None and not {"S3.2", "S4.1", "S4.2"} & set(cell.mark)
    middle = "".join(f"<td>{escape(number)}</td>" for number in numbers)
    return (
        f'<tr><th scope="row">{escape(name)}</th>{middle}'
        f'<td class="{"weak" if is_weak else "mark"}">{escape(setup)}</td>'
        f'<td class="words">{escape(notes)}</td></tr>'
    )


# Who may be compared.


def _comparable(task: Task) -> str:
    """Return the sets of methods that share S3.2, and what parts them from the first set."""
    found: dict[tuple[Any, ...], list[Method]] = {}
    for method in task.methods:
        facts = task.of(method)[0].facts
        found.setdefault(tuple(getattr(facts, name) for name in _RECIPE), []).append(method)
    sets = sorted(found.items(), key=lambda item: (-len(item[1]), item[1][0].name))
    if len(sets) == 1:
        text = "All methods share S3.2 where their targets are the same."
        return f"<h3>What may be compared</h3>\n<p>{text}</p>"
    lines = [
        f"<li>{escape('; '.join(m.name for m in methods))}{_parted(key, sets[0][0])}</li>"
        for key, methods in sets
    ]
    return (
        "<h3>What may be compared</h3>\n<p>Methods of one line share S3.2 where their targets are "
        f"the same; those of different lines do not.</p>\n<ol>{''.join(lines)}</ol>"
    )


def _parted(key: tuple[Any, ...], first: tuple[Any, ...]) -> str:
    """Say which settings differ from those of the first set."""
    mine = dict(pair for fact in key for pair in fact)
    others = dict(pair for fact in first for pair in fact)
    names = [name for name in dict.fromkeys([*mine, *others]) if mine.get(name) != others.get(name)]
    lines = [
        f"<li><code>{escape(name)}</code>: {_value(mine.get(name))} "
        f"(first line: {_value(others.get(name))})</li>"
        for name in names
    ]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _value(value: Any) -> str:
    return "not set" if value is None else f"<code>{escape(str(value))}</code>"


def _methods(task: Task) -> str:
    """Return what the methods are: the settings that not all of them share."""
    settings = {method: dict(method.settings) for method in task.methods}
    keys = sorted({key for of in settings.values() for key in of})
    differing = [key for key in keys if len({repr(of.get(key)) for of in settings.values()}) > 1]
    rows = [
        f'<tr><th scope="row">{escape(method.name)}</th><td class="words">'
        + "<br>".join(f"{escape(key)}: {_value(of[key])}" for key in differing if key in of)
        + "</td></tr>"
        for method, of in settings.items()
    ]
    shared = [
        f"<li>{escape(key)}: {_value(next(iter(settings.values())).get(key))}</li>"
        for key in keys
        if key not in differing
    ]
    return (
        "<details><summary>Settings of the methods</summary>\n"
        f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>\n'
        f"<h4>Shared by all</h4><ul>{''.join(shared)}</ul></details>"
    )


# What is not in the numbers.


def _unfinished(runs: Sequence[Run]) -> str:
    """Return the runs of which there is no number, with the reason."""
    rows = [
        f'<tr><th scope="row">{escape(run.path)}</th><td class="mark">{run.status}</td>'
        f'<td class="words">{escape(run.error or "no summary yet")}</td></tr>'
        for run in runs
        if not run.is_done
    ]
    if not rows:
        return ""
    head = '<thead><tr><th scope="col">run</th><th scope="col">status</th><th>why</th></tr></thead>'
    return (
        "<section><h2>Runs without a result</h2>\n"
        f'<div class="wide"><table>{head}<tbody>{"".join(rows)}</tbody></table></div></section>'
    )


def _origin(runs: Sequence[Run]) -> str:
    """Return which code and versions the runs are of."""
    commits = Counter(str(run.summary.get("git_commit")) for run in runs if run.is_done)
    versions = Counter(_versions(run.summary.get("versions")) for run in runs if run.is_done)
    lines = [
        f"<li><code>{escape(text)}</code>: {number} runs</li>"
        for found in (commits, versions)
        for text, number in sorted(found.items())
    ]
    return f"<section><h2>Code and versions</h2>\n<ul>{''.join(lines)}</ul></section>"


def _versions(versions: Any) -> str:
    if not isinstance(versions, dict):
        return "versions unknown"
    return " ".join(f"{name} {version}" for name, version in versions.items())
