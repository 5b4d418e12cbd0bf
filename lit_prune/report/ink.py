"""How plots look: colours that the colour-blind tell apart, and ink of the page's own colour."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from lit_prune.report.groups import Method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["INK", "Look", "as_svg", "looks", "new_figure", "set_log", "strip", "styled"]

# Stands for the colour of the page's text, whatever that is.
INK = "#010203"
# The colours of Okabe and Ito, each readable on white and on black, and a grey for their black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7B6B", "#A6A032")
_STYLES: tuple[tuple[Any, str], ...] = (
    ("-", "o"),
    ((0, (6, 2)), "s"),
    ((0, (2, 1)), "^"),
    ((0, (6, 2, 1, 2)), "D"),
    ((0, (6, 2, 1, 2, 1, 2)), "v"),
    ((0, (12, 3)), "P"),
)
_WIDTH = 10.4
_RC: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.titlecolor", "grid.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.grid": True,
    "grid.alpha": 0.15,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "lit_prune",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn: colour by its criterion, line and marker by what else it is."""

    colour: str
    style: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Of a line."""
        return {"color": self.colour, "linestyle": self.style, "linewidth": 1.4}

    @property
    def dot(self) -> dict[str, Any]:
        """Of its markers."""
        return {"marker": self.marker, "markersize": 4.5}

    def mark(self, is_hollow: bool) -> dict[str, Any]:
        """Return the look of a point with its deviation."""
        face = "none" if is_hollow else self.colour
        bar = {"ecolor": self.colour, "elinewidth": 1, "capsize": 2, "linestyle": ""}
        return {**self.dot, **bar, "color": self.colour, "markerfacecolor": face}


def looks(methods: Sequence[Method]) -> dict[Method, Look]:
    """Return a look for every method, the same in all plots."""
    ordered = sorted(methods, key=lambda method: (method.family, method.name))
    families = list(dict.fromkeys(method.family for method in ordered))
    colours = dict(zip(families, cycle(_COLOURS)))
    # More families than colours go on with other markers.
    first = {family: number // len(_COLOURS) * 2 for number, family in enumerate(families)}
    found: dict[Method, Look] = {}
    for method in ordered:
        style, marker = _STYLES[first[method.family] % len(_STYLES)]
        first[method.family] += 1
        found[method] = Look(colours[method.family], style, marker)
    return found


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style, and leave that of others alone."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def new_figure(height: float) -> "Figure":
    """Return an empty figure of the page's width; ``height`` in inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def set_log(axes: "Axes", which: str, plain: bool = True) -> None:
    """Make an axis logarithmic; ``plain`` numbers are written out, others as 1e9."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_minor_formatter(NullFormatter())
    low, high = axis.get_view_interval()
    form = ",.6g" if plain else ".0e"
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:{form}}".replace("e+0", "e")))
    if plain and high / max(low, 1e-9) < 30:
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))


def strip(axes: "Axes", numbers: Sequence[float], place: float, look: Look) -> None:
    """Draw numbers as dots in a row."""
    dot = {"color": look.colour, "alpha": 0.7, "linestyle": "", **look.dot}
    axes.plot(numbers, [place] * len(numbers), **dot)


def as_svg(figure: "Figure") -> str:
    """Return a figure as an SVG to stand inside a page, with the page's ink."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', text, count=1)
