"""The curve of effective against direct compression, for any configured network, untrained.

The first figure of Vysogorets and Kempe 2021, "Connectivity matters", arXiv 2107.02306.
"""

import argparse
import io
import math
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from importlib.util import find_spec
from itertools import cycle, product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from lit_prune.callbacks import Levels, MaskManager
from lit_prune.callbacks.training_batches import TrainingBatches
from lit_prune.cli import MISTAKES, TrainCLI, parsed, quiet, require_fit
from lit_prune.connectivity import Connectivity
from lit_prune.criterion import CriterionLike, QuotaLike
from lit_prune.errors import (
    LitPruneError,
    LitPruneWarning,
    QuotaOutOfRange,
    did_you_mean,
    first_line,
)
from lit_prune.files import as_csv, require_folder_place, write_all
from lit_prune.masks import Masks
from lit_prune.options import Options
from lit_prune.probe import Probe
from lit_prune.prune import prune_by_rounds
from lit_prune.run import RunFolder
from lit_prune.spine import last, rounds_of
from lit_prune.targets import Target, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["Plan", "Row", "draw", "points", "run"]

GLOBAL = "global"
# Four points a decade, as numbers that a target can repeat: --pruning.target 17.8x.
GRID = [f"{float(f'{10 ** (i / 4):.3g}'):g}" for i in range(17)]

_ABOUT = """\
Draw effective against direct compression (total / kept connections) of a network at
initialization: the first figure of Vysogorets and Kempe 2021, arXiv 2107.02306. Nothing is
trained. Prints a table and writes OUT/curve.csv and OUT/curve.png.

All other options are those of train.py (python train.py --help): --config FILE, again for more,
--model.backbone, --data, --seed_everything, --pruning.batches, ... A point of the curve is the mask
that train.py would get, on one device, with the same options and --pruning.criterion,
--pruning.quota and --pruning.target.
"""
_MORE = """\
Which curves: each criterion ranks all connections together ("global"), and then inside the layers
by each quota. A criterion of one round scores once for all points. One of many rounds runs anew for
every point, since the masks on the way to a higher compression are others: SynFlow takes 100 rounds
a point. --pruning.rounds N sets the rounds of all criteria.
"""

_HELP = {
    "--criteria": "short names or class paths, as in pruning.criterion "
    "(default: Random SNIP SynFlow)",
    "--quotas": "names, as in pruning.quota; none is only global (default: Uniform ERK IGQ)",
    "--compressions": "direct compressions from 1 up (default: four a decade from 1 to 10,000, "
    "as far as anything effective is left)",
    "--seeds": "how many seeds, from seed_everything on, shown as geometric mean and range "
    "(default: 1)",
    "--out": "where to write (default: curves/<config>)",
}

# Nothing is trained, logged or kept; what is pruned is up to the curve.
_UNTRAINED = shlex.split(
    "--trainer.max_epochs 1 --trainer.max_steps -1 --trainer.min_epochs null "
    "--trainer.min_steps null --trainer.limit_val_batches 0 --trainer.fast_dev_run false "
    "--trainer.logger false --trainer.callbacks null --trainer.enable_checkpointing false "
    "--trainer.enable_progress_bar false --trainer.profiler null --trainer.devices 1 "
    "--trainer.num_nodes 1 --trainer.strategy auto --model.scheduler null "
    "--pruning.target 1x --pruning.masks null"
)


class Row(NamedTuple):
    """One point: a pruned network.

    Attributes:
        criterion: its name, as asked for.
        quota: its name, or ``"global"`` where all connections are ranked together.
        seed: of the weights, the data and the criterion.
        direct_compression: total / kept.
        effective_compression: total / effective_kept; ``inf`` where nothing effective is left.
        kept: how many connections the masks keep.
        effective_kept: how many of them lie on a path of kept ones from input to output.
        total: how many prunable connections there are.
    """

    criterion: str
    quota: str
    seed: int
    direct_compression: float
    effective_compression: float
    kept: int
    effective_kept: int
    total: int


@dataclass(frozen=True)
class Plan:
    """What is computed: every criterion with every quota (None: globally) at every target."""

    criteria: Mapping[str, CriterionLike]
    quotas: Mapping[str, QuotaLike | None]
    targets: Sequence[Target]


def run(args: Sequence[str]) -> None:
    """Run ``python -m lit_prune curve`` with ``args``.

    Raises:
        LitPruneError: what is asked for cannot be met, or an option is mistaken.
    """
    quiet()
    asked, others = _asked(args)
    cli = _parsed(others, asked.criteria[0])
    first = torch.initial_seed() % 2**32
    folder = _folder(asked.out, cli.config)
    if find_spec("matplotlib") is None:
        raise LitPruneError("a figure needs matplotlib: pip install 'lit_prune[report]'")
    plan = _plan(asked, others)
    rows: list[Row] = []
    for seed in range(first, first + asked.seeds):
        rows += points(_parsed(others, asked.criteria[0], seed=seed), plan, folder)
    rows = rows if asked.compressions else _until_nothing_is_left(rows)
    title = _title(cli.settings(), asked.seeds)
    command = shlex.join(["python", "-m", "lit_prune", "curve", *args])
    write_all(
        folder, {"curve.csv": as_csv(Row._fields, rows), "curve.png": draw(rows, title, command)}
    )
    print(f"{_table(rows, title)}\n\nin {folder}: curve.csv, curve.png")


# What is asked for.


def _asked(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the curve, and those of ``train.py``."""
    parser = _parser()
    asked, others = parser.parse_known_args(args)
    _require_no_slip(others, list(parser._option_string_actions))
    if asked.seeds < 1:
        raise LitPruneError(f"--seeds {asked.seeds} is out of range: at least 1")
    return asked, others


def _parser() -> Options:
    parser = Options(_ABOUT, _HELP, prog="python -m lit_prune curve", more=_MORE)
    parser.add("--criteria", nargs="+", metavar="NAME", default=["Random", "SNIP", "SynFlow"])
    parser.add("--quotas", nargs="*", metavar="NAME", default=["Uniform", "ERK", "IGQ"])
    parser.add("--compressions", nargs="+", metavar="C")
    parser.add("--seeds", type=int, metavar="N", default=1)
    parser.add("--out", type=Path, metavar="DIR")
    return parser


def _require_no_slip(others: Sequence[str], known: Sequence[str]) -> None:
    """Check that no option left to ``train.py``, whose own have dots, is a slip of one of ours."""
    options = (other.partition("=")[0] for other in others if other.startswith("--"))
    for option in options:
        if "." not in option and (near := did_you_mean(option, known)):
            raise LitPruneError(f"unknown option {option!r}{near}")


def _parsed(
    others: list[str], criterion: str, quota: str = "null", seed: int | None = None
) -> TrainCLI:
    """Parse a run of ``train.py`` with this criterion and quota; seed as it does."""
    pruning = ["--pruning.criterion", criterion, "--pruning.quota", quota]
    seeded = [] if seed is None else ["--seed_everything", str(seed)]
    return parsed([*others, *_UNTRAINED, *pruning, *seeded])


def _plan(asked: argparse.Namespace, others: list[str]) -> Plan:
    """Look up all names, as ``train.py`` would, before anything is scored."""
    targets = [Target.parse(f"{text.removesuffix('x')}x") for text in asked.compressions or GRID]
    first = asked.criteria[0]
    criteria = {name: _parsed(others, name).manager() for name in asked.criteria}
    quotas = {name: _parsed(others, first, name).manager() for name in asked.quotas}
    # Neither can be None but by the name "null", which adds no curve.
    scored = _given({name: manager.scoring.criterion for name, manager in criteria.items()})
    given = _given({name: manager.scoring.quota for name, manager in quotas.items()})
    return Plan(scored, {GLOBAL: None, **given}, targets)


def _given(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if value is not None}


def _folder(out: Path | None, config: Any) -> Path:
    """Return where to write, having checked that this is possible, and nothing else is expected."""
    if config.run_dir or config.overwrite:
        raise LitPruneError("a curve is no run: it takes --out, not --run_dir or --overwrite")
    stems = [Path(str(path)).stem for path in config.get("config") or []]
    folder = out or Path("curves") / ("-".join(stems) or "curve")
    require_folder_place("--out", folder)
    return folder


def _title(settings: Mapping[str, Any], seeds: int) -> str:
    backbone, data = settings["model"]["backbone"], settings["data"]
    names = [part["class_path"].rpartition(".")[2] for part in (backbone, data)]
    number = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return f"{names[0]} on {names[1]} at initialization, {number}"


# What is computed.


def points(cli: TrainCLI, plan: Plan, folder: Path) -> list[Row]:
    """Return the points of ``plan`` for the network, the data and the seed that ``cli`` parsed.

    A training is set up as ``train.py`` does it and ended before its first step, so that devices,
    batches, seeds and modes are those of a run.

    Raises:
        UnsupportedOp: the network has an operation that connectivity has no rule for.
        LitPruneError: the criteria cannot score this network.
    """
    model, datamodule, manager, trainer = cli.objects(RunFolder(folder))
    require_fit(model, datamodule)
    look = _Look(manager, plan)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[callbacks.index(manager)] = look
    # Nothing is trained, and no level ends.
    callbacks[:] = [callback for callback in callbacks if not isinstance(callback, Levels)]
    try:
        trainer.fit(model, datamodule=datamodule)
    except MISTAKES as error:
        if isinstance(error, LitPruneError):
            raise
        kind = type(error).__name__
        raise LitPruneError(f"the network cannot be pruned: {kind}: {first_line(error)}") from error
    if look.rows is None:
        raise LitPruneError("not one training batch: see trainer.limit_train_batches and the data")
    return look.rows


class _Look(Callback):
    """Takes the place of the mask manager: prunes where it would, and stops before the first step.

    Attributes:
        rows: the points; None before training starts.
    """

    def __init__(self, manager: MaskManager, plan: Plan) -> None:
        self.rows: list[Row] | None = None
        self._manager, self._plan, self._seed = manager, plan, 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the seed of the run."""
        generator = self._manager.generator or torch.default_generator
        self._seed = generator.initial_seed()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the points."""
        network = _Network(pl_module, self._manager, trainer, self._seed)
        self.rows = list(_rows(network, self._plan))
        trainer.should_stop = True


@dataclass(frozen=True)
class _Network:
    """A network with all that pruning it needs."""

    module: LightningModule
    manager: MaskManager
    trainer: Trainer
    seed: int

    def dense(self) -> Masks:
        return Masks.dense(self.module, self.manager.include, self.manager.exclude)

    def inputs(self, dense: Masks) -> tuple[Tensor, ...]:
        example = self.manager.scoring.example
        batches = [] if example is not None else TrainingBatches(self.trainer, 1, self.seed)()
        return Probe(self.module, dense, batches, example=example).inputs()

    def connectivity(self, dense: Masks) -> Connectivity:
        names = [escape(name) for name in dense]
        return Connectivity(self.module, self.inputs(dense), include=names)

    def rounds(
        self,
        dense: Masks,
        criterion: CriterionLike,
        quota: QuotaLike | None,
        keep: int,
        number: int,
    ) -> Iterator[Masks]:
        return prune_by_rounds(
            self.module,
            dense,
            criterion,
            Target(keep=keep),
            quota,
            number,
            TrainingBatches(self.trainer, self.manager.scoring.batches, self.seed),
            self.manager.scoring.loss,
            self.inputs(dense),
            torch.Generator().manual_seed(self.seed),
            floor=self.manager.scoring.floor,
        )


def _rows(network: _Network, plan: Plan) -> Iterator[Row]:
    dense = network.dense()
    connectivity = network.connectivity(dense)
    keeps = sorted({target.count(dense.total) for target in plan.targets}, reverse=True)
    reached = {name: _reached(quota, dense, keeps) for name, quota in plan.quotas.items()}
    rounds = {n: rounds_of(c, network.manager.scoring.rounds) for n, c in plan.criteria.items()}
    scored = {n: _ScoredOnce(c) if rounds[n] == 1 else c for n, c in plan.criteria.items()}
    work = sum(rounds.values()) * sum(k < dense.total for ks in reached.values() for k in ks)
    with tqdm(total=work, unit="round", leave=False, disable=None) as bar:
        for name, quota in product(plan.criteria, plan.quotas):
            bar.set_description(f"{name}, {quota}")
            try:
                for keep in reached[quota]:
                    steps = network.rounds(
                        dense, scored[name], plan.quotas[quota], keep, rounds[name]
                    )
                    masks = last(_counted(steps, bar), dense)
                    yield _row(name, quota, network.seed, masks, connectivity.effective(masks))
            except LitPruneError as error:
                if quota == GLOBAL:
                    raise
                # Some criteria go with no quota, and all others with many.
                text = f"{name} by {quota} is left out: {first_line(error)}"
                warnings.warn_explicit(text, LitPruneWarning, "lit_prune", 0)


def _row(criterion: str, quota: str, seed: int, masks: Masks, effective: Masks) -> Row:
    compressions = (masks.compression, effective.compression)
    return Row(criterion, quota, seed, *compressions, masks.kept, effective.kept, masks.total)


def _counted(steps: Iterator[Masks], bar: Any) -> Iterator[Masks]:
    for step in steps:
        bar.update()
        yield step


def _reached(quota: QuotaLike | None, dense: Masks, keeps: Sequence[int]) -> list[int]:
    """Return which of ``keeps`` the quota can keep at all."""
    shapes = {name: mask.shape for name, mask in dense.items()}
    found = []
    for keep in keeps:
        try:
            _ = quota and quota(shapes, keep)
        except QuotaOutOfRange:
            continue
        except LitPruneError:
            pass  # a quota of a network, which says so itself if it cannot
        found.append(keep)
    return found


class _ScoredOnce:
    """A criterion of one round: its scores of the dense network serve every quota and target.

    Unless it looks at the budget, which is another one at every target.
    """

    def __init__(self, criterion: CriterionLike) -> None:
        self._criterion = criterion
        self._scores: dict[str, Tensor] | None = None
        self.__name__ = getattr(criterion, "__name__", type(criterion).__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._criterion, name)

    def __call__(self, probe: Probe) -> dict[str, Tensor]:
        if self._scores is not None:
            return self._scores
        watched = _WatchedProbe(**vars(probe))
        scores = self._criterion(watched)
        if not watched.budget_was_asked:
            self._scores = {name: score.detach() for name, score in scores.items()}
        return scores


class _WatchedProbe(Probe):
    """Notes whether somebody asks for the budget."""

    budget_was_asked = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("keep", "counts"):
            object.__setattr__(self, "budget_was_asked", True)
        return super().__getattribute__(name)


def _until_nothing_is_left(rows: Sequence[Row]) -> list[Row]:
    """Return the rows up to the first compression at which no seed has anything effective left."""
    found = []
    for pair in _by_pair(rows).values():
        dead = {row.kept for row in pair} - {row.kept for row in pair if row.effective_kept}
        alive = min((row.kept for row in pair if row.effective_kept), default=math.inf)
        end = max((kept for kept in dead if kept < alive), default=0)
        found += [row for row in pair if row.kept >= end]
    return found


# What is shown.


class Point(NamedTuple):
    """The points of all seeds at one direct compression: geometric mean and range.

    ``effective`` and ``highest`` are infinite where a seed has nothing effective left.
    """

    direct: float
    effective: float
    lowest: float
    highest: float


def _by_pair(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each criterion and quota."""
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row.criterion, row.quota), []).append(row)
    return pairs


def _curve(pair: Sequence[Row]) -> list[Point]:
    """Return the points of one criterion and quota, the densest first."""
    found: dict[float, list[float]] = {}
    for row in sorted(pair, key=lambda row: row.direct_compression):
        found.setdefault(row.direct_compression, []).append(row.effective_compression)
    return [
        Point(direct, math.exp(fmean(map(math.log, seeds))), min(seeds), max(seeds))
        for direct, seeds in found.items()
    ]


def _end(curve: Sequence[Point]) -> float | None:
    """Return the first direct compression at which a seed has nothing effective left."""
    return next((point.direct for point in curve if math.isinf(point.highest)), None)


def _table(rows: Sequence[Row], title: str) -> str:
    """Return the effective compressions at the powers of ten, a line for each curve."""
    directs = sorted({row.direct_compression for row in rows})
    shown = directs if len(directs) < 7 else _near_powers_of_ten(directs)
    lines = [["criterion", "quota", *map(times, shown), "nothing left at"]]
    for names, pair in _by_pair(rows).items():
        curve = _curve(pair)
        values = {point.direct: times(point.effective) for point in curve}
        cells = [values.get(direct, "-") for direct in shown]
        lines.append([*names, *cells, _how_it_ends(curve, directs[-1])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [_aligned(line, widths) for line in lines]
    return "\n".join([f"{title}: effective compression by direct compression", "", *texts])


def _near_powers_of_ten(numbers: Sequence[float]) -> list[float]:
    """Return for every power of ten in their range the nearest of ``numbers``.

    Examples:
        >>> _near_powers_of_ten([1.0, 3.0, 9.9, 31.0, 98.0])
        [1.0, 9.9, 98.0]
    """
    powers = range(round(math.log10(numbers[0])), round(math.log10(numbers[-1])) + 1)
    return sorted({min(numbers, key=lambda n: abs(math.log10(n) - power)) for power in powers})


def _how_it_ends(curve: Sequence[Point], last: float) -> str:
    end = _end(curve)
    if end is not None:
        return times(end)
    return "quota ends" if curve[-1].direct < last else "-"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    names = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*names, *numbers])


# The colours of Okabe and Ito, which colour-blind people can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Line style and marker of each quota.
_STYLES: tuple[Any, ...] = (
    ("-", "o"),
    ((0, (6, 2)), "s"),
    ((0, (2, 1)), "^"),
    ((0, (6, 2, 1, 2)), "D"),
    ((0, (6, 2, 1, 2, 1, 2)), "v"),
    ((0, (12, 3)), "P"),
)


def draw(rows: Sequence[Row], title: str, command: str) -> bytes:
    """Return the figure as a PNG of 1200 x 800 pixels; ``command`` goes into its metadata.

    Both axes are logarithmic. A cross at the top marks where nothing effective is left.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4), dpi=125, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title)
    pairs = _by_pair(rows)
    colours = dict(zip(dict.fromkeys(name for name, _ in pairs), cycle(_COLOURS)))
    styles = dict(zip(dict.fromkeys(quota for _, quota in pairs), cycle(_STYLES)))
    _set_axes(axes, rows)
    crosses: dict[float, int] = {}
    for (criterion, quota), pair in pairs.items():
        _draw_curve(axes, _curve(pair), colours[criterion], styles[quota], crosses)
    several = len({row.seed for row in rows}) > 1
    _add_legends(figure, colours, styles, "nothing effective\nis left" + " in a seed" * several)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Description": command})
    return content.getvalue()


def _set_axes(axes: "Axes", rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    finite = [r.effective_compression for r in rows if r.effective_kept]
    direct = [r.direct_compression for r in rows]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(direct) / 1.1, max(direct) * 1.3)
    axes.set_ylim(min(direct) / 1.1, max([*finite, *direct]) * 3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda number, _: times(number)))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("direct compression (all / kept connections)")
    axes.set_ylabel("effective compression (all / effective connections)")
    axes.grid(alpha=0.3)
    axes.plot(axes.get_xlim(), axes.get_xlim(), ":", color="0.4", zorder=1)


def _draw_curve(
    axes: "Axes", curve: Sequence[Point], colour: str, style: Any, crosses: dict[float, int]
) -> None:
    """Draw mean and range, and a cross where the curve ends; ``crosses`` counts those by place."""
    end = _end(curve)
    alive = [point for point in curve if end is None or point.direct < end]
    xs, means, lows, highs = zip(*alive, strict=True) if alive else ([], [], [], [])
    linestyle, marker = style
    axes.plot(xs, means, color=colour, linestyle=linestyle, marker=marker, markersize=3.5)
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    if end is None:
        return
    bottom, top = axes.get_ylim()
    height = top * (bottom / top) ** (0.02 + 0.025 * crosses.setdefault(end, 0))
    crosses[end] += 1
    axes.plot([end], [height], color=colour, marker="x", markersize=7, markeredgewidth=2)
    if alive:
        axes.plot([xs[-1], end], [means[-1], height], color=colour, linestyle=linestyle, alpha=0.3)


def _add_legends(
    figure: "Figure", colours: Mapping[str, str], styles: Mapping[str, Any], cross: str
) -> None:
    """Put colours, styles and marks beside the axes."""
    from matplotlib.lines import Line2D

    def line(label: str, **look: Any) -> "Line2D":
        return Line2D([], [], label=label, **look)

    names = [line(name, color=colour, linewidth=4) for name, colour in colours.items()]
    quotas = [
        line(quota, color="0.2", linestyle=style, marker=marker, markersize=3.5)
        for quota, (style, marker) in styles.items()
    ]
    marks = [
        line("all that is kept\nis effective", color="0.4", linestyle=":"),
        line(cross, color="0.2", linestyle="", marker="x", markeredgewidth=2),
    ]
    headed = [line("criterion", linestyle=""), *names, line("", linestyle="")]
    headed += [line("quota", linestyle=""), *quotas, line("", linestyle=""), *marks]
    legend = figure.legend(handles=headed, loc="outside right upper", frameon=False, handlelength=4)
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() in ("criterion", "quota") else "normal")
