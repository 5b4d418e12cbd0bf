"""The command: from a run or a file of masks to a table and a picture."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lit_prune.cli import quiet
from lit_prune.errors import LitPruneError, did_you_mean
from lit_prune.files import require_file_place, write_whole
from lit_prune.inspect.diagram import TooLarge, diagram_of
from lit_prune.inspect.findings import Findings, findings_of
from lit_prune.inspect.layer_table import report
from lit_prune.inspect.picture import FORMS, as_bytes, drawn
from lit_prune.inspect.subject import Place, Subject, place_of, subject_of
from lit_prune.options import Options
from lit_prune.run import layers_csv

__all__ = ["run"]

_USAGE = "python -m lit_prune inspect RUN|MASKS [options]"
_ABOUT = """\
Print what masks leave of a network, layer by layer: connections kept and effective, dead units,
FLOPs; and its paths and nodes. Draw a small network with live and dead connections. RUN is the
folder of a run, finished or not; MASKS is a file of masks, in a run folder or anywhere else.
Nothing is trained, and no weights are needed.

All other options are those of train.py (python train.py --help): with --config FILE, again for
more, they say which network the masks are of; without, they are added to the config of the run
(--data.root DIR).
"""
_HELP = {
    "--level": "the masks of a level of the run (default: the final ones, or those of the last "
    "level that ended)",
    "--example": "shape of an input of the network, without batch, as 1,28,28 (default: that of "
    "the data, which are read)",
    "--csv": "write the rows of the table, in full",
    "--out": f"where to draw, as {', '.join(FORMS)} by its suffix (default: network.png in the run "
    "folder or beside the masks, network_level_NN.png for a level)",
}


def run(args: Sequence[str]) -> None:
    """Run ``python -m lit_prune inspect`` with ``args``.

    Raises:
        LitPruneError: what is asked for is not there, does not belong together, or an option is
            mistaken.
    """
    quiet()
    asked, others = _asked(args)
    place = place_of(asked.path, asked.level)
    subject = subject_of(place, asked.example, others)
    findings = findings_of(subject)
    print(f"{_title(subject, place)}\n\n{report(findings, subject.unmasked)}\n")
    if asked.csv:
        write_whole(asked.csv, layers_csv(findings.measurement.layers))
        print(f"table: {asked.csv}")
    command = shlex.join(["python", "-m", "lit_prune", "inspect", *args])
    print(_pictured(subject, findings, place, asked.out or place.picture, command))


# What is asked for.


@dataclass(frozen=True)
class _Asked:
    path: Path
    level: int | None
    example: tuple[int, ...] | None
    csv: Path | None
    out: Path | None


def _asked(args: Sequence[str]) -> tuple[_Asked, list[str]]:
    """Return our own options and those of ``train.py``."""
    parser = _parser()
    asked, path, others = parser.parse_about(args)
    if path is None:
        raise LitPruneError(f"no run and no masks; usage: {_USAGE}")
    for option in (other.partition("=")[0] for other in others if other.startswith("--")):
        if "." not in option and (near := did_you_mean(option, parser._option_string_actions)):
            raise LitPruneError(f"unknown option {option!r}{near}")
    if asked.out is not None and asked.out.suffix[1:] not in FORMS:
        raise LitPruneError(f"--out {asked.out} has none of the suffixes .{', .'.join(FORMS)}")
    for option, file in (("--csv", asked.csv), ("--out", asked.out)):
        if file is not None:
            require_file_place(option, file)
    return _Asked(path, asked.level, _shape(asked.example), asked.csv, asked.out), others


def _parser() -> Options:
    parser = Options(_ABOUT, _HELP, usage=_USAGE)
    parser.add("--level", type=int, metavar="N")
    parser.add("--example", metavar="SHAPE")
    parser.add("--csv", type=Path, metavar="FILE")
    parser.add("--out", type=Path, metavar="FILE")
    return parser


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise LitPruneError(
            f"--example {text!r} is no shape: whole numbers from 1 up with commas between, without "
            "the batch, such as 1,28,28"
        )
    return sizes


# What is shown.


def _title(subject: Subject, place: Place) -> str:
    return f"{subject.name}: {place.masks}" if subject.model is not None else str(place.masks)


def _pictured(subject: Subject, findings: Findings, place: Place, out: Path, command: str) -> str:
    """Draw the network if it can be drawn; return a line that says where it is, or why not."""
    if findings.traced is None or subject.model is None or subject.inputs is None:
        return "no picture: which connections are live is not known"
    if find_spec("matplotlib") is None:
        return "no picture: it needs matplotlib: pip install 'lit_prune[report]'"
    effective = findings.traced.effective
    try:
        diagram = diagram_of(subject.model, subject.masks, effective, subject.inputs)
    except TooLarge as error:
        return f"no picture: {error}"
    figure = drawn(diagram, findings.measurement, _title(subject, place))
    write_whole(out, as_bytes(figure, out.suffix[1:], command))
    return f"picture: {out}"
