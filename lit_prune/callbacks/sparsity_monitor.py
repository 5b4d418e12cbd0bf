"""SparsityMonitor: what pruning does to a network, for the eye, in TensorBoard."""

import io
import logging
import math
import time
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.optim import Optimizer

from lit_prune.callbacks import board
from lit_prune.callbacks.histogram import Scores, histograms, scores_of, thresholds
from lit_prune.callbacks.levels import Levels, is_last_epoch
from lit_prune.callbacks.mask_manager import MaskManager, manager_of
from lit_prune.callbacks.pictures import density_bars, mask_picture, score_picture
from lit_prune.errors import LitPruneError, first_line
from lit_prune.masks import Masks
from lit_prune.measure import Measurement
from lit_prune.names import titles
from lit_prune.probe import Probe, looked_at
from lit_prune.prune import Observer
from lit_prune.ranking import Ranking

__all__ = ["SparsityMonitor"]

_log = logging.getLogger(__name__)


class SparsityMonitor(Callback):
    """Writes what a :class:`MaskManager` does into TensorBoard, laid out to be looked at.

    Scalars go to every logger of the trainer: ``density/LAYER``, ``density_effective/LAYER``,
    ``dead_units/LAYER/in`` and ``out``, ``compression/...``, ``gradient_flow/LAYER`` (the norm of
    the live gradients), ``learning_rate``, ``score_threshold/LAYER`` (the least score that a prune
    kept), and ``level/...`` by the number of the level, if there is a :class:`Levels`. TensorBoard
    also gets masks as pixels, densities as bars, scores with their threshold, histograms of live
    weights and of scores, the graph, a layout for its custom scalars and a row in its table of
    hyperparameters; see docs/tensorboard.md.

    It only looks: a training ends on the same bits with and without it. Stands behind the mask
    manager in the trainer's callbacks, and behind :class:`Levels`.

    Args:
        settings: what the run is, as words and numbers, for the table of hyperparameters; all runs
            that are to be compared have the same keys. None leaves the table alone.
        every_n_epochs: how many epochs lie at least between two pictures of masks that change, of
            scores, and between two histograms of weights. The end of a training is always shown.

    Raises:
        LitPruneError: ``every_n_epochs`` is less than 1; or the trainer has no mask manager, or has
            it behind this.
    """

    def __init__(
        self, settings: Mapping[str, str | int | float] | None = None, every_n_epochs: int = 5
    ) -> None:
        if every_n_epochs < 1:
            raise LitPruneError(f"every_n_epochs={every_n_epochs} is out of range: at least 1")
        self.settings = None if settings is None else dict(settings)
        self.every_n_epochs = every_n_epochs
        # What is written already; a checkpoint knows it.
        self._begun: list[str] = []
        self._levels = 0
        self._drawn_at: int | None = None
        self._is_drawn = False
        self._scores_at: int | None = None
        self._is_end_shown = False
        self._seconds = 0.0
        self._since = time.monotonic()
        # What was seen last.
        self._masks: Masks | None = None
        self._measurement: Measurement | None = None
        self._wants_graph = False
        self._titles: dict[str, str] = {}
        # Who looks over the manager's shoulder: this, and whoever did before.
        self._observer: Observer | None = None
        self._other_observer: Observer | None = None

    # The hooks, in the order in which Lightning calls them.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the mask manager, and look over its shoulder when it prunes."""
        manager = manager_of(trainer, self)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if callbacks.index(manager) > callbacks.index(self):
            raise LitPruneError(
                "SparsityMonitor looks at what MaskManager did: it stands behind it in the "
                "trainer's callbacks"
            )
        if manager.observe is not self._observer:
            self._other_observer = manager.observe
        if trainer.is_global_zero and trainer.loggers:
            self._observer = partial(self._show_scores, trainer)
            manager.observe = self._observer

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look away."""
        manager_of(trainer, self).observe = self._other_observer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is written once: the layout, and what the run is."""
        manager = manager_of(trainer, self)
        masks = manager.current()
        self._since = time.monotonic()
        self._titles = titles(masks)
        if self._drawn_at is not None:
            # Of a resumed run; its checkpoint says whether they are drawn.
            self._masks = masks
        fresh = [each for each in _tensorboards(trainer) if _name(each) not in self._begun]
        for logger in fresh:
            board.lay_out(logger.experiment)
            if self.settings is not None:
                board.introduce(logger.experiment, self.settings)
        self._wants_graph = bool(fresh)
        self._begun += [_name(logger) for logger in fresh]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what each layer has, and draw what a prune has left."""
        self._is_end_shown = False
        manager = manager_of(trainer, self)
        self._write_layers(trainer, manager, trainer.global_step)
        self._notice(manager)
        if self._may_draw(trainer.current_epoch):
            self._draw(trainer, manager, trainer.current_epoch, trainer.global_step)
            self._write_weights(trainer, pl_module, manager, trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the graph, as it runs on the first input of the first batch."""
        if self._wants_graph:
            self._wants_graph = False
            self._write_graph(trainer, pl_module, batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Write gradient flow and learning rates, at steps where a log is due."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (trainer.global_step + 1) % every:
            return
        if trainer.is_global_zero and trainer.loggers:
            flow = self._gradients(trainer, pl_module, optimizer)
            _write(trainer, {**flow, **_rates(trainer)}, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what has changed since the epoch's start, and the levels that ended."""
        manager, epoch = manager_of(trainer, self), trainer.current_epoch
        # The next epoch begins at the next step.
        step = trainer.global_step - 1
        self._write_levels(trainer)
        if manager.measurement is not self._measurement:
            self._write_layers(trainer, manager, step)
        self._notice(manager)
        is_last = is_last_epoch(trainer)
        self._is_end_shown = is_last
        if self._may_draw(epoch) or (is_last and not self._is_drawn):
            self._draw(trainer, manager, epoch, step)
        if is_last or (epoch + 1) % self.every_n_epochs == 0:
            self._write_weights(trainer, pl_module, manager, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the end of a training that was stopped, and how long all sessions took.

        A run killed after it was stopped trains no further, so that only this hook is called.
        """
        manager, step = manager_of(trainer, self), trainer.global_step - 1
        if manager.measurement is None:
            return  # Nothing was trained.
        self._write_levels(trainer)
        if not self._is_end_shown:
            self._is_end_shown = True
            self._titles = titles(manager.current())
            if not self._is_drawn:
                self._draw(trainer, manager, trainer.current_epoch, step)
            self._write_weights(trainer, pl_module, manager, step)
        if trainer.is_global_zero:
            _write(trainer, {"seconds": self._seconds_so_far()}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return what is written already."""
        return {
            "begun": list(self._begun),
            "levels": self._levels,
            "drawn_at": self._drawn_at,
            "is_drawn": self._is_drawn,
            "scores_at": self._scores_at,
            "is_end_shown": self._is_end_shown,
            "seconds": self._seconds_so_far(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over from a checkpoint, so that nothing is written twice."""
        self._begun, self._levels = list(state_dict["begun"]), state_dict["levels"]
        self._drawn_at, self._is_drawn = state_dict["drawn_at"], state_dict["is_drawn"]
        self._scores_at = state_dict["scores_at"]
        self._is_end_shown = state_dict.get("is_end_shown", True)
        self._seconds = state_dict["seconds"]

    # What is written.

    def _write_layers(self, trainer: Trainer, manager: MaskManager, step: int) -> None:
        masks, self._measurement = manager.result()
        if trainer.is_global_zero and trainer.loggers:
            values = board.of_layers(self._measurement, masks.compression, self._titles)
            _write(trainer, values, step)

    def _write_levels(self, trainer: Trainer) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        rows = [row for each in callbacks if isinstance(each, Levels) for row in each.rows]
        for row in rows[self._levels :] if trainer.is_global_zero else []:
            for logger in trainer.loggers:
                # Only TensorBoard knows more than one kind of steps.
                is_board = isinstance(logger, TensorBoardLogger)
                step = row.level if is_board else trainer.global_step
                logger.log_metrics(board.of_level(row), step=step)
        self._levels = len(rows)

    def _gradients(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> dict[str, float]:
        masks = manager_of(trainer, self).current()
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found = {
            name: weight.grad
            for name, weight in masks.parameters(pl_module).items()
            if id(weight) in own and weight.grad is not None
        }
        if not found:
            return {}
        norms = torch._foreach_norm(list(found.values()))
        scale = _scale(trainer, optimizer)
        scaled = torch.stack([norm.float().to(norms[0].device) for norm in norms]).tolist()
        values = [norm / scale for norm in scaled]
        named = zip(found, values, strict=True)
        flow = {f"gradient_flow/{self._titles[name]}": value for name, value in named}
        return {**flow, _of_all("gradient_flow", trainer, optimizer): math.hypot(*values)}

    def _show_scores(self, trainer: Trainer, ranking: Ranking, masks: Masks) -> None:
        if self._other_observer is not None:
            self._other_observer(ranking, masks)
        step, epoch = trainer.global_step, trainer.current_epoch
        known = thresholds(ranking.scores, masks)
        values = {f"score_threshold/{self._titles[name]}": x for name, x in known.items()}
        if known and ranking.quota is None:
            values = {"score_threshold/all": min(known.values())}
        _write(trainer, values, step)
        if self._scores_at is None or epoch - self._scores_at >= self.every_n_epochs:
            self._scores_at = epoch
            self._draw_scores(trainer, scores_of(ranking.scores, masks), step)

    def _draw_scores(self, trainer: Trainer, scores: Mapping[str, Scores], step: int) -> None:
        for logger in _tensorboards(trainer) if scores else []:
            writer = logger.experiment
            for name, found in scores.items():
                group = "scores_log10" if found.is_log else "scores"
                tag = f"{group}/{self._titles[name]}"
                board.add_histogram(writer, tag, found.histogram, step)
            picture = score_picture(scores, self._titles)
            writer.add_image("overview/scores", picture, step, dataformats="HWC")

    def _notice(self, manager: MaskManager) -> None:
        """Note whether the masks are others than before; mostly they are the same object."""
        masks = manager.current()
        if masks is not self._masks:
            if self._masks is None or masks != self._masks:
                self._is_drawn = False
            self._masks = masks

    def _may_draw(self, epoch: int) -> bool:
        last = self._drawn_at
        return not self._is_drawn and (last is None or epoch - last >= self.every_n_epochs)

    def _draw(self, trainer: Trainer, manager: MaskManager, epoch: int, step: int) -> None:
        self._drawn_at, self._is_drawn = epoch, True
        boards = _tensorboards(trainer)
        if not boards:
            return
        masks, measurement = manager.result()
        effective = manager.effective()
        pictures = {"overview/density": density_bars(measurement.layers, self._titles)}
        for name, mask in masks.items():
            if mask.numel():
                live = None if effective is None else effective[name]
                pictures[f"masks/{self._titles[name]}"] = mask_picture(mask, live)
        for logger in boards:
            for tag, picture in pictures.items():
                logger.experiment.add_image(tag, picture, step, dataformats="HWC")

    def _write_weights(
        self, trainer: Trainer, pl_module: LightningModule, manager: MaskManager, step: int
    ) -> None:
        boards = _tensorboards(trainer)
        if not boards:
            return
        masks = manager.current()
        weights = masks.parameters(pl_module)
        live = {name: w.detach()[masks[name]] for name, w in weights.items()}
        finite = {name: x[x.isfinite()] for name, x in live.items()}
        for name, found in histograms(finite).items():
            for logger in boards:
                tag = f"live_weights/{self._titles[name]}"
                board.add_histogram(logger.experiment, tag, found, step)

    def _write_graph(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        manager = manager_of(trainer, self)
        masks = manager.current()
        example = manager.scoring.example
        try:
            with looked_at(pl_module), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                inputs = Probe(pl_module, masks, [batch], example=example).inputs()
                for logger in _tensorboards(trainer):
                    # What cannot be traced is printed before it is raised.
                    with redirect_stdout(io.StringIO()):
                        logger.experiment.add_graph(pl_module, inputs)
        except Exception as error:
            # Whatever a tracer dislikes in a module, its training goes on.
            _log.info("there is no graph in TensorBoard: %s", first_line(error))

    def _seconds_so_far(self) -> float:
        return self._seconds + time.monotonic() - self._since


def _tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the TensorBoard loggers that this process writes to."""
    loggers: list[Logger] = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def _name(logger: TensorBoardLogger) -> str:
    """Return what a resumed run knows a logger by, wherever its folder lies."""
    return f"{logger.name}/{logger.version}"


def _write(trainer: Trainer, values: Mapping[str, float], step: int) -> None:
    finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
    for logger in trainer.loggers if finite else []:
        logger.log_metrics(finite, step=step)


def _rates(trainer: Trainer) -> dict[str, float]:
    """Return the learning rate of every group of parameters; of one alone without a number."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    rates = [float(group["lr"]) for group in groups if "lr" in group]
    if len(rates) == 1:
        return {"learning_rate": rates[0]}
    return {f"learning_rate/{number}": rate for number, rate in enumerate(rates)}


def _of_all(group: str, trainer: Trainer, optimizer: Optimizer) -> str:
    """Return the tag of a sum over the layers of an optimizer; numbered where there are several."""
    if len(trainer.optimizers) == 1:
        return f"{group}/all"
    return f"{group}/all/{[id(each) for each in trainer.optimizers].index(id(optimizer))}"


def _scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """Return by what gradients are still multiplied: fused optimizers divide in their step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())
