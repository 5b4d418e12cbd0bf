"""The board: tags, layout and tables of what TensorBoard shows of a run."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_prune.callbacks.histogram import Histogram
from lit_prune.callbacks.levels import LevelRow
from lit_prune.measure import Measurement

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["METRICS", "add_histogram", "introduce", "lay_out", "of_layers", "of_level"]

# The columns of the table of all runs: the last value of each tag.
METRICS = (
    "test/accuracy",
    "sparsity/direct",
    "sparsity/effective",
    "compression/effective",
    "val/accuracy",
    "seconds",
)

# TensorBoard shows five columns of settings at first: those in which runs are said to differ.
_FIRST = {"backbone", "criterion", "quota", "schedule", "target"}

# Category, chart, and the tags of its lines, as regular expressions.
_LAYOUT = {
    "sparsity": {
        "direct and effective sparsity": ["sparsity/direct", "sparsity/effective"],
        "direct and effective compression": ["compression/direct", "compression/effective"],
    },
    "accuracy": {
        "of training and validation": ["train/accuracy", "val/accuracy"],
        "by level": ["level/val_accuracy", "level/test_accuracy"],
    },
    "layers": {
        "density": ["density/.*"],
        "effective density": ["density_effective/.*"],
        "gradient flow": ["gradient_flow/.*"],
    },
}


def lay_out(writer: "SummaryWriter") -> None:
    """Write which scalars the tab of custom scalars overlays."""
    writer.add_custom_scalars(
        {
            category: {chart: ["Multiline", tags] for chart, tags in charts.items()}
            for category, charts in _LAYOUT.items()
        }
    )


def introduce(writer: "SummaryWriter", settings: Mapping[str, str | int | float]) -> None:
    """Write what a run is: its row of the table of runs, which its metrics fill as they come.

    The columns are those of the run that TensorBoard finds first.
    """
    # Imported late: it takes longer than to read a config, and not every command needs it.
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    columns, start, end = hparams(dict(settings), dict.fromkeys(METRICS, 0.0))
    content = columns.value[0].metadata.plugin_data
    table = HParamsPluginData.FromString(content.content)
    for column in table.experiment.hparam_infos:
        column.differs = column.name in _FIRST
    content.content = table.SerializeToString()
    for summary in (columns, start, end):
        writer._get_file_writer().add_summary(summary)


def of_layers(
    measurement: Measurement, compression: float, titles: Mapping[str, str]
) -> dict[str, float]:
    """Return the scalars of what masks leave, by their tags; without what is not known."""
    found = measurement.totals()["effective_compression"]
    values: dict[str, float | None] = {
        "compression/direct": compression,
        "compression/effective": found,
    }
    for row in measurement.layers:
        title, total = titles[row.name], max(row.total, 1)
        effective = None if row.effective is None else row.effective / total
        values[f"density/{title}"] = row.kept / total
        values[f"density_effective/{title}"] = effective
        values[f"dead_units/{title}/in"] = row.dead_in
        values[f"dead_units/{title}/out"] = row.dead_out
    return _known(values)


def of_level(row: LevelRow) -> dict[str, float]:
    """Return the scalars of a level of sparsity, by their tags; without what is not known."""
    names = ("direct_sparsity", "effective_sparsity", "collapsed_layers")
    found = {name: getattr(row, name) for name in (*names, "val_accuracy", "test_accuracy")}
    return _known({f"level/{name}": value for name, value in found.items()})


def add_histogram(writer: "SummaryWriter", tag: str, found: Histogram, step: int) -> None:
    """Write a histogram that is counted already."""
    number, edges = sum(found.counts), found.edges
    moments = (found.least, found.most, number, found.total, found.squares)
    writer.add_histogram_raw(tag, *moments, edges[1:], list(found.counts), global_step=step)


def _known(values: Mapping[str, Any]) -> dict[str, float]:
    given = {tag: float(value) for tag, value in values.items() if value is not None}
    return {tag: value for tag, value in given.items() if math.isfinite(value)}
