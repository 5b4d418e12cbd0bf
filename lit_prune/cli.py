"""One run from one command: parse, check, prune and train, test, sum up."""

import logging
import shlex
import signal
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lit_prune import backbones, criteria, data, quotas, schedules
from lit_prune.callbacks import (
    Checkpoints,
    FiniteLoss,
    Levels,
    MaskManager,
    Progress,
    SeededEpochs,
    SparsityMonitor,
    WholeCheckpoints,
)
from lit_prune.callbacks.checkpoints import EVENTS
from lit_prune.complaint import complaint
from lit_prune.data.images import ImagesInMemory
from lit_prune.errors import LitPruneError, LitPruneWarning, TrainingStopped, first_line
from lit_prune.headline import headline
from lit_prune.module import LitClassifier
from lit_prune.probe import undisturbed
from lit_prune.processes import in_slurm, queued_again, require_all
from lit_prune.run import RunFolder, environment, folder_name, mask_summary, writing
from lit_prune.schedules import Schedule
from lit_prune.shelf import members

__all__ = ["MISTAKES", "TrainCLI", "main", "make_trainer", "parsed", "quiet", "require_fit"]

# What Lightning and PyTorch raise for settings that cannot work.
MISTAKES = (
    ArithmeticError,
    AttributeError,
    MisconfigurationException,
    RuntimeError,
    TypeError,
    ValueError,
)

# What is said of a run beside its settings: where from, where to, and what is shown of it.
_ASIDE = ("config", "run_dir", "overwrite", "monitor")

# The short names that may stand at a key, for messages; the parser finds them by itself.
_CLASSES = {
    "model.backbone": members(backbones.__name__, backbones.__path__, nn.Module),
    "model.optimizer": {n: c for n, c in vars(torch.optim).items() if isinstance(c, type)},
    "data": members(data.__name__, data.__path__, LightningDataModule),
    **dict.fromkeys(
        ("pruning.criterion", "pruning.criterion.criterion", "pruning.quota.criterion"),
        members(criteria.__name__, criteria.__path__, criteria.Criterion),
    ),
    **dict.fromkeys(
        ("pruning.quota", "pruning.criterion.quota"),
        members(quotas.__name__, quotas.__path__, quotas.Quota),
    ),
    "pruning.schedule": members(schedules.__name__, schedules.__path__, schedules.Schedule),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run ``train.py`` with ``args`` (None: those of the command line); return its exit code.

    A mistake of the user is one line on stderr and the code 2. A run that SIGTERM ends has the
    code of that signal, as if it had not been heeded.
    """
    try:
        quiet()
        with queued_again():
            _run(list(sys.argv[1:] if args is None else args))
    except LitPruneError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except SIGTERMException:
        return 128 + signal.SIGTERM
    return 0


def _run(args: list[str]) -> None:
    cli = parsed(args)
    settings = cli.settings()
    name = folder_name([str(path) for path in cli.config.get("config") or []], settings)
    folder = RunFolder(Path(cli.config.run_dir or Path("runs") / name))
    overwrite = cli.config.overwrite and _is_first_rank()
    if overwrite:
        folder.require_run()
    else:
        folder.require_same(settings)
    summary = None if overwrite else folder.summary()
    if summary is None:
        model, datamodule, manager, trainer = cli.objects(folder)
        require_fit(model, datamodule)
        if overwrite:
            folder.remove()
        summary = _train(model, datamodule, manager, trainer, folder, settings, args)
        _leave_together()
    if _is_first_rank():
        print(_table(summary, folder))


def _train(
    model: LightningModule,
    datamodule: LightningDataModule,
    manager: MaskManager,
    trainer: Trainer,
    folder: RunFolder,
    settings: dict[str, Any],
    args: list[str],
) -> dict[str, Any]:
    """Fit, test and write what the run found; only rank 0 writes."""
    if not _is_first_rank():
        return _fit_and_test(model, datamodule, trainer, folder, "--overwrite" not in args)
    with folder.held(settings), writing(folder.path):
        found = _fit_and_test(model, datamodule, trainer, folder)
        masks, measurement = manager.result()
        summary = {
            **found,
            **mask_summary(masks, measurement),
            "seed": settings["seed_everything"],
            "command": shlex.join(["python", "train.py", *args]),
            **environment(),
        }
        folder.finish(masks, measurement.layers, summary)
    return folder.summary() or summary


def _fit_and_test(
    model: LightningModule,
    datamodule: LightningDataModule,
    trainer: Trainer,
    folder: RunFolder,
    may_resume: bool = True,
) -> dict[str, Any]:
    start = time.monotonic()
    # Rank 0 is about to delete a folder that is overwritten.
    checkpoint, earlier = _taken_up(trainer, folder) if may_resume else (None, 0.0)
    try:
        with writing(folder.path):
            trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except LitPruneError as error:
        # In the first epoch it may still turn out that the optimizer does not fit.
        if trainer.current_epoch and not isinstance(error, TrainingStopped):
            raise TrainingStopped(str(error)) from error
        raise
    except MISTAKES as error:
        if trainer.global_step:
            raise
        kind = type(error).__name__
        raise LitPruneError(f"training could not start: {kind}: {first_line(error)}") from error
    if not trainer.global_step:
        raise LitPruneError("not one training step: see trainer.limit_train_batches and the data")
    # Of no test batches there is nothing to find.
    found = next(iter(trainer.test(model, datamodule=datamodule, verbose=False)), {})
    return {
        "test_accuracy": found.get("test/accuracy"),
        "test_loss": found.get("test/loss"),
        "epochs": trainer.current_epoch,
        "seconds": round(earlier + time.monotonic() - start, 3),
    }


def _taken_up(trainer: Trainer, folder: RunFolder) -> tuple[Path | None, float]:
    """Find where the run goes on, and tidy up after the session that was killed.

    Every rank finds the same: nobody writes a checkpoint before all have looked.

    Returns:
        The checkpoint, None for a run from its start; and the seconds spent up to it.
    """
    with warnings.catch_warnings():
        if not _is_first_rank():
            warnings.simplefilter("ignore", LitPruneWarning)
        found = folder.last_whole()
    if found is None:
        if _is_first_rank():
            folder.start_over()
        return None, 0.0
    noted = found[1]["callbacks"].get(Checkpoints.__name__, {})
    if _is_first_rank() and noted:
        folder.take_up(noted["events"])
    if isinstance(reader := trainer.strategy.checkpoint_io, WholeCheckpoints):
        reader.keep(*found)
    return found[0], noted.get("seconds", 0.0)


class TrainCLI(LightningCLI):
    """Parses and seeds; the objects are built when :meth:`objects` is called."""

    def __init__(self, args: list[str]) -> None:
        sys.argv[1:] = args
        super().__init__(
            LitClassifier,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Lightning's command line does not know."""
        parser.add_lightning_class_args(MaskManager, "pruning")
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="The run's folder; runs/<config>-<hash of the settings> by default.",
        )
        parser.add_argument(
            "--overwrite", action="store_true", help="Delete the run's folder and start anew."
        )
        parser.add_argument(
            "--monitor",
            type=bool,
            default=True,
            help="Show masks, densities, scores and gradients in TensorBoard (SparsityMonitor).",
        )

    def instantiate_classes(self) -> None:
        """Wait until the folder is known to be unfinished."""

    def settings(self) -> dict[str, Any]:
        """Return the resolved config, without what changes nothing that the run finds."""
        text = self.parser.dump(self.config, skip_unset=False)
        settings = yaml.safe_load(text)
        return {key: value for key, value in settings.items() if key not in _ASIDE}

    def manager(self) -> MaskManager:
        """Build the mask manager alone."""
        return self._alone("pruning", MaskManager)

    def network(self) -> LitClassifier:
        """Build the module alone."""
        return self._alone("model", LitClassifier)

    def datamodule(self) -> LightningDataModule:
        """Build the data alone; nothing is read."""
        return self._alone("data", LightningDataModule, subclass_mode=True)

    def _alone(self, key: str, kind: Any, **how: Any) -> Any:
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(kind, key, **how)
        with _complaints():
            return parser.instantiate(Namespace(**{key: self.config[key]}))[key]

    def objects(
        self, folder: RunFolder
    ) -> tuple[LightningModule, LightningDataModule, MaskManager, Trainer]:
        """Build the module, the data, the mask manager and the trainer."""
        with _complaints():
            _require_strategy(self.config.trainer.strategy)
            built = self.parser.instantiate(self.config)
            _require_length(built.trainer, built.pruning.schedule)
            monitor = SparsityMonitor(headline(self.settings())) if self.config.monitor else None
            trainer = make_trainer(dict(built.trainer), built.pruning, folder, monitor)
        return built.model, built.data, built.pruning, trainer


@contextmanager
def _complaints() -> Iterator[None]:
    """Say in one line why an object cannot be built."""
    try:
        yield
    except LitPruneError:
        raise
    except MISTAKES as error:
        raise LitPruneError(_complaint(error)) from error


def parsed(args: list[str]) -> TrainCLI:
    """Parse ``args`` as ``train.py`` does, and seed the global generators as it does.

    Raises:
        LitPruneError: an option or a value is mistaken; it is named.
    """
    _require_readable(args)
    try:
        return TrainCLI(args)
    except (ArgumentError, ValueError) as error:
        raise LitPruneError(_complaint(error)) from error


def _require_readable(args: list[str]) -> None:
    """Check that configs are mappings; the parser does not say which one is not."""
    pairs = [*pairwise(args), *(arg.split("=", 1) for arg in args if "=" in arg)]
    for path in (Path(value) for key, value in pairs if key in ("-c", "--config")):
        if not path.is_file():
            continue
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise LitPruneError(f"config {path} is not YAML: {error}") from error
        if not isinstance(content, dict):
            raise LitPruneError(f"config {path} is empty or holds no keys")


def _complaint(error: Exception) -> str:
    parser = LightningArgumentParser()
    for kind, name in ((Trainer, "trainer"), (LitClassifier, "model"), (MaskManager, "pruning")):
        parser.add_lightning_class_args(kind, name)
    own = (*_ASIDE, "data", "seed_everything")
    keys = {*own, *(action.dest for action in parser._actions)}
    return complaint(str(error), keys, _CLASSES, _arguments_of)


def _arguments_of(class_path: str) -> list[str]:
    """Return the names of the arguments of a class or function; none if it cannot be found."""
    module, _, name = class_path.rpartition(".")
    try:
        owner = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    parser = ArgumentParser()
    add = parser.add_class_arguments if isinstance(owner, type) else parser.add_function_arguments
    return [argument.removeprefix("of.") for argument in add(owner, "of")]


def make_trainer(
    settings: dict[str, Any],
    manager: MaskManager,
    folder: RunFolder,
    monitor: SparsityMonitor | None = None,
) -> Trainer:
    """Return the trainer of the config, with our defaults where the config says nothing.

    A monitor of the config's own takes the place of ours, which goes without a logger.
    """
    chosen = {name: value for name, value in settings.items() if value is not None}
    callbacks: list[Callback] = [SeededEpochs(), FiniteLoss(), manager, Levels(folder.path)]
    own = _as_list(chosen.pop("callbacks", []))
    has_monitor = any(isinstance(callback, SparsityMonitor) for callback in own)
    if monitor is not None and not has_monitor and chosen.get("logger") is not False:
        callbacks.append(monitor)
    if chosen.setdefault("enable_progress_bar", sys.stdout.isatty()):
        callbacks.append(Progress())
    callbacks += own
    if chosen.get("enable_checkpointing", True):
        # The last one, so that the states of the config's own are as they are at the epoch's end.
        callbacks.append(Checkpoints(folder.path))
    plugins = _as_list(chosen.pop("plugins", []))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpoints())
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        plugins += [here] if (here := in_slurm()) else []
    if chosen.get("logger", True) is True:
        chosen["logger"] = TensorBoardLogger(folder.path, "", "", default_hp_metric=False)
    defaults = {"num_sanity_val_steps": 0, "enable_model_summary": False}
    trainer = Trainer(
        **{**defaults, **chosen},
        callbacks=callbacks,
        plugins=plugins,
        default_root_dir=folder.path,
    )
    require_all(trainer)
    return trainer


def _as_list(one_or_many: Any) -> list[Any]:
    return [*one_or_many] if isinstance(one_or_many, list | tuple) else [one_or_many]


def _require_strategy(strategy: Any) -> None:
    """Check that parameters stay whole, in processes that the command started."""
    is_apart = ("spawn", "fork", "notebook")
    if isinstance(strategy, str) and not (
        strategy == "auto"
        or (strategy.startswith("ddp") and not any(word in strategy for word in is_apart))
    ):
        raise LitPruneError(
            f"trainer.strategy={strategy} is not supported: masks need whole parameters, in "
            "processes that the command starts; use auto or ddp"
        )


def _require_length(trainer: Any, schedule: Schedule) -> None:
    """Check how long the training is; a schedule that knows says so where the config does not."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if epochs is not None and epochs < 1:
        raise LitPruneError(f"trainer.max_epochs={epochs} is out of range: at least 1")
    if trainer.fast_dev_run:
        raise LitPruneError("trainer.fast_dev_run keeps no run; use trainer.limit_train_batches")
    if trainer.val_check_interval == 0:
        raise LitPruneError("trainer.val_check_interval=0 is out of range: above 0")
    for name in ("log_every_n_steps", "accumulate_grad_batches", "check_val_every_n_epoch"):
        if (value := trainer[name]) is not None and value < 1:
            raise LitPruneError(f"trainer.{name}={value} is out of range: at least 1")
    if epochs is None and schedule.fixes_length:
        trainer.max_epochs = -1
    elif epochs is None and steps < 1:
        raise LitPruneError("trainer.max_epochs is not set: how long is the training?")


def require_fit(model: LightningModule, datamodule: LightningDataModule) -> None:
    """Check on one image that the backbone takes the data and gives a logit for every class."""
    if not isinstance(datamodule, ImagesInMemory) or not _is_first_rank():
        return
    datamodule.prepare_data()
    datamodule.setup("fit")
    example = datamodule.example()
    name, shape = type(model.backbone).__name__, tuple(example.shape[1:])
    with undisturbed(model, seed=0), torch.no_grad():
        try:
            output = model.eval()(example)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise LitPruneError(
                f"model.backbone={name} does not take images of shape {shape}: {first_line(error)}"
            ) from error
    if not isinstance(output, torch.Tensor) or output.shape != (1, datamodule.num_classes):
        given = (
            tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else type(output).__name__
        )
        raise LitPruneError(
            f"model.backbone={name} gives {given} where the data has {datamodule.num_classes} "
            "classes; set its number of classes"
        )


def _table(summary: dict[str, Any], folder: RunFolder) -> str:
    accuracy = summary["test_accuracy"]
    rows = {
        "connections": f"{summary['total']:,}",
        "kept": f"{summary['kept']:,}",
        "sparsity": f"{summary['direct_sparsity']:.4%}",
        "effective": _count(summary["effective_kept"]),
        "eff. sparsity": _share(summary["effective_sparsity"]),
        "test accuracy": "none" if accuracy is None else f"{accuracy:.2%}",
        "seconds": f"{summary['seconds']:.1f}",
        "run folder": str(folder.path),
    }
    if any(folder.path.glob(EVENTS)):
        rows["look at it"] = f"tensorboard --logdir {shlex.quote(str(folder.path))}"
    return "\n".join(f"{name:>14}  {value}" for name, value in rows.items())


def _count(number: int | None) -> str:
    return "not measured" if number is None else f"{number:,}"


def _share(number: float | None) -> str:
    return "not measured" if number is None else f"{number:.4%}"


def _leave_together() -> None:
    """Wait for rank 0 to write, and end the group: a rank that just exits may abort the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _is_first_rank() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _one_line(usual: Callable[..., str]) -> Callable[..., str]:
    def formatted(message: Any, category: Any, *rest: Any, **options: Any) -> str:
        if issubclass(category, LitPruneWarning):
            return f"warning: {message}\n"
        return usual(message, category, *rest, **options)

    return formatted


def quiet() -> None:
    """Silence what Lightning says of itself; warnings about the run are shown, ours as a line."""
    warnings.formatwarning = _one_line(warnings.formatwarning)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for noise in (
        r".*Total length of `list` across ranks is zero.*",
        r".*LeafSpec.*",
        r".*have no `val_dataloader`.*",
        r".*exists and is not empty.*",
        r".*`srun` command is available.*",
        # Of a level's test, whose metrics are those of all ranks already.
        r".*recommended to use `self.log\('test/.*",
    ):
        warnings.filterwarnings("ignore", noise)
