"""What SparsityMonitor writes, read back from TensorBoard's files; and that it only looks."""

import io
import logging
import math
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image
from scheduled import SCHEDULES, fit, manager_of, mostly_slow, scheduled
from sessions import scalars, session
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util import tensor_util
from test_mask_manager import PRUNABLE, Own, data, loader, make_trainer, own, train
from torch.optim import SGD
from torch.utils.data import DataLoader

from lit_prune import Connectivity, LitPruneError, MaskManager
from lit_prune.callbacks import Checkpoints, Levels, SeededEpochs, SparsityMonitor
from lit_prune.callbacks.board import METRICS
from lit_prune.callbacks.histogram import histograms
from lit_prune.callbacks.pictures import PRUNED, mask_picture
from lit_prune.criteria import SNIP, GraSP, Magnitude, Random
from lit_prune.quotas import ERK
from lit_prune.run import RunFolder
from lit_prune.schedules import Iterative
from lit_prune.spine import budgets

pytestmark = pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed")

TITLES = {name: name.removesuffix(".weight") for name in PRUNABLE}


def board(folder) -> TensorBoardLogger:
    return TensorBoardLogger(folder, "", "", default_hp_metric=False)


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), {"images": 0, "histograms": 0, "scalars": 0}).Reload()


def last(found: EventAccumulator, tag: str) -> float:
    return found.Scalars(tag)[-1].value


def picture(found: EventAccumulator, tag: str, place: int = -1) -> np.ndarray:
    encoded = found.Images(tag)[place].encoded_image_string
    return np.asarray(Image.open(io.BytesIO(encoded)))


class LiveNorms(pl.Callback):
    """The norms of gradients by numpy, at every step; stands behind the manager."""

    def __init__(self, manager: MaskManager) -> None:
        self.manager, self.norms = manager, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        weights = self.manager.masks.parameters(pl_module)
        self.norms.append(
            {
                TITLES[name]: float(np.linalg.norm((w.grad * self.manager.masks[name]).numpy()))
                for name, w in weights.items()
            }
        )


def test_scalars_of_layers_are_those_of_the_masks(tmp_path):
    manager = MaskManager(Random(), "8x")
    module = own()
    train(module, manager, SparsityMonitor(), epochs=2, logger=board(tmp_path))
    found = events(tmp_path)
    example = torch.ones(1, 1, 4, 4)
    effective = Connectivity(module, example, include=PRUNABLE).effective(manager.masks)
    assert effective.kept < manager.masks.kept, "there is something to tell apart"
    for name, title in TITLES.items():
        mask, live = (m[name].numpy() for m in (manager.masks, effective))
        assert last(found, f"density/{title}") == pytest.approx(mask.mean())
        assert last(found, f"density_effective/{title}") == pytest.approx(live.mean())
        outputs = live.reshape(len(live), -1).any(1)
        inputs = live.reshape(*live.shape[:2], -1).any((0, 2))
        assert last(found, f"dead_units/{title}/out") == (~outputs).sum()
        assert last(found, f"dead_units/{title}/in") == (~inputs).sum()
    assert last(found, "compression/direct") == pytest.approx(manager.masks.compression)
    assert last(found, "compression/effective") == pytest.approx(effective.compression)
    assert [e.step for e in found.Scalars("density/net.0")] == [0, 4]


def test_gradient_flow_is_the_norm_of_live_gradients_at_steps_where_a_log_is_due(tmp_path):
    manager = MaskManager(Magnitude(), "4x")
    norms = LiveNorms(manager)
    monitor = SparsityMonitor()
    train(*(own(), manager, norms, monitor), epochs=2, logger=board(tmp_path), log_every_n_steps=3)
    found = events(tmp_path)
    for title in TITLES.values():
        written = {e.step: e.value for e in found.Scalars(f"gradient_flow/{title}")}
        assert written == {s: pytest.approx(norms.norms[s][title], rel=1e-5) for s in (2, 5)}
    whole = {e.step: e.value for e in found.Scalars("gradient_flow/all")}
    assert whole[5] == pytest.approx(math.hypot(*norms.norms[5].values()), rel=1e-5)
    assert [(e.step, e.value) for e in found.Scalars("learning_rate")] == [
        (2, pytest.approx(0.1)),
        (5, pytest.approx(0.1)),
    ]


def test_gradient_flow_is_unscaled_where_a_fused_optimizer_does_that_later(tmp_path):
    flows = []
    for fused in (False, True):
        optimizer = partial(SGD, lr=0.1, fused=fused)
        folder = tmp_path / str(fused)
        precision = MixedPrecision("16-mixed", "cpu")
        manager = MaskManager(Random(), "4x")
        train(*(own(optimizer), manager, SparsityMonitor()), epochs=1, logger=board(folder),
              log_every_n_steps=1, plugins=[precision])  # fmt: skip
        assert precision.scaler.get_scale() > 1000, "there is something to divide by"
        flows.append(events(folder).Scalars("gradient_flow/all")[0].value)
    unfused, fused = flows
    assert fused == pytest.approx(unfused, rel=1e-3)


def test_each_of_several_optimizers_has_a_gradient_flow_of_its_own(tmp_path):
    class Two(Own):
        automatic_optimization = False

        def configure_optimizers(self):
            weights = list(self.parameters())
            return [SGD(weights[:1], lr=0.1), SGD(weights[1:], lr=0.1)]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()

    train(*(Two(), MaskManager(Random(), "4x"), SparsityMonitor()), epochs=1,
          logger=board(tmp_path), log_every_n_steps=1)  # fmt: skip
    found = events(tmp_path)
    first, rest = (found.Scalars(f"gradient_flow/all/{n}") for n in (0, 1))
    assert [e.value for e in first] == [e.value for e in found.Scalars("gradient_flow/net.0")]
    others = [found.Scalars(f"gradient_flow/{t}") for t in list(TITLES.values())[1:]]
    for whole, *parts in zip(rest, *others, strict=True):
        assert whole.value == pytest.approx(math.hypot(*(e.value for e in parts)))
    assert "gradient_flow/all" not in found.Tags()["scalars"]


@pytest.mark.parametrize("target", ["6x", "6x effective"])
@pytest.mark.parametrize("search", ["curve", "reprune"])
def test_the_threshold_parts_kept_scores_from_others(target, search, tmp_path):
    module, manager = own(), MaskManager(Magnitude(), target, search=search)
    before = {name: module.get_parameter(name).detach().abs().numpy() for name in PRUNABLE}
    train(module, manager, SparsityMonitor(), epochs=1, logger=board(tmp_path))
    found = events(tmp_path)
    kept = np.concatenate([before[n][manager.masks[n].numpy()] for n in PRUNABLE])
    rest = np.concatenate([before[n][~manager.masks[n].numpy()] for n in PRUNABLE])
    [threshold] = found.Scalars("score_threshold/all")
    assert threshold.value == pytest.approx(kept.min())
    assert threshold.value > rest.max()
    for name, title in TITLES.items():
        [shown] = found.Histograms(f"scores_log10/{title}")
        value = shown.histogram_value
        assert value.num == sum(value.bucket) == before[name].size
        assert value.max == pytest.approx(np.log10(before[name].max()), abs=1e-5)
        limits = np.array(value.bucket_limit)
        below = np.array(value.bucket)[limits < np.log10(threshold.value)].sum()
        assert below <= (before[name] < threshold.value).sum()
    assert picture(found, "overview/scores").shape[2] == 3


def test_with_a_quota_every_layer_has_its_threshold_and_signed_scores_their_own_scale(tmp_path):
    manager = MaskManager(GraSP(), "4x", quota=ERK())
    train(own(), manager, SparsityMonitor(), epochs=1, logger=board(tmp_path))
    found = events(tmp_path)
    tags = set(found.Tags()["scalars"])
    assert {f"score_threshold/{t}" for t in TITLES.values()} <= tags
    assert "score_threshold/all" not in tags
    [shown] = found.Histograms("scores/net.4")
    assert shown.histogram_value.min < 0 < shown.histogram_value.max


def test_of_rounds_the_last_is_shown(tmp_path):
    manager = MaskManager(Magnitude(), "8x", rounds=3)
    train(own(), manager, SparsityMonitor(), epochs=1, logger=board(tmp_path))
    found = events(tmp_path)
    shown = [found.Histograms(f"scores_log10/{t}")[0].histogram_value.num for t in TITLES.values()]
    _, left, _ = budgets(manager.masks.total, manager.masks.kept, 3)
    assert sum(shown) == left, "what the second round had left"


def test_pictures_are_those_of_masks_and_effective_masks(tmp_path):
    module, manager = own(), MaskManager(Random(), "8x")
    train(module, manager, SparsityMonitor(), epochs=1, logger=board(tmp_path))
    found = events(tmp_path)
    effective = Connectivity(module, torch.ones(1, 1, 4, 4), include=PRUNABLE)
    live = effective.effective(manager.masks)
    for name, title in TITLES.items():
        expected = mask_picture(manager.masks[name], live[name])
        assert np.array_equal(picture(found, f"masks/{title}"), expected)
    assert "overview/density" in found.Tags()["images"]


def test_histograms_of_weights_count_what_is_kept(tmp_path):
    module, manager = own(), MaskManager(Random(), "4x")
    monitor = SparsityMonitor(every_n_epochs=2)
    train(module, manager, monitor, epochs=3, logger=board(tmp_path))
    found = events(tmp_path)
    for name, title in TITLES.items():
        shown = found.Histograms(f"live_weights/{title}")
        assert [each.step for each in shown] == [0, 7, 11]
        live = module.get_parameter(name).detach()[manager.masks[name]].numpy()
        value = shown[-1].histogram_value
        assert value.num == sum(value.bucket) == live.size
        assert (value.min, value.max) == (pytest.approx(live.min()), pytest.approx(live.max()))
        assert value.sum == pytest.approx(live.sum(), rel=1e-4, abs=1e-5)
        expected, _ = np.histogram(live, len(value.bucket), (live.min(), live.max()))
        # A value on the edge of two bins may fall into either.
        assert np.abs(np.cumsum(value.bucket) - np.cumsum(expected)).max() <= 1


def test_levels_are_shown_by_their_number(tmp_path):
    levels = Levels()
    manager = MaskManager(Magnitude(), "8x", schedule=Iterative(3, 1, rewind="fine_tune"))
    train(own(), manager, levels, SparsityMonitor(), epochs=-1, logger=board(tmp_path))
    found = events(tmp_path)
    shown = [(e.step, e.value) for e in found.Scalars("level/direct_sparsity")]
    rows = [(row.level, pytest.approx(row.direct_sparsity)) for row in levels.rows]
    assert shown == rows
    assert len(rows) == 4


def test_the_table_of_runs_has_settings_and_metrics(tmp_path):
    settings = {"criterion": "Random", "lr": 0.1}
    manager = MaskManager(Random(), "4x")
    train(own(), manager, SparsityMonitor(settings), epochs=1, logger=board(tmp_path))
    found = events(tmp_path)
    contents = found.PluginTagToContent("hparams")
    experiment = metadata.parse_experiment_plugin_data(contents["_hparams_/experiment"])
    start = metadata.parse_session_start_info_plugin_data(contents["_hparams_/session_start_info"])
    assert {info.name for info in experiment.hparam_infos} == set(settings)
    assert [info.name.tag for info in experiment.metric_infos] == list(METRICS)
    assert start.hparams["criterion"].string_value == "Random"
    assert start.hparams["lr"].number_value == 0.1
    assert last(found, "seconds") > 0
    assert found.Graph().node, "the graph"
    layout = found.Tensors("custom_scalars__config__")[0].tensor_proto
    assert b"sparsity/effective" in tensor_util.make_ndarray(layout).item()


@pytest.mark.parametrize("name", mostly_slow(SCHEDULES, {"at init", "gradual in steps"}))
def test_training_is_the_same_to_the_bit_with_every_schedule(name, tmp_path):
    states = []
    for monitors in ([], [SparsityMonitor(every_n_epochs=1)]):
        manager, module = manager_of(name), scheduled(dropout=0.3)
        folder = tmp_path / str(len(monitors))
        trainer = fit(
            *(module, manager, *monitors), epochs=SCHEDULES[name][1],
            logger=board(folder), log_every_n_steps=1,
        )  # fmt: skip
        found = events(folder)
        assert last(found, "sparsity/direct") == pytest.approx(manager.masks.sparsity)
        states.append((module.state_dict(), torch.get_rng_state(), dict(manager.masks)))
        assert trainer.global_step
    (weights, random, masks), (others, other_random, other_masks) = states
    assert torch.equal(random, other_random)
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    assert all(torch.equal(masks[key], other_masks[key]) for key in masks)
    for layer, title in TITLES.items():
        assert last(found, f"density/{title}") == pytest.approx(masks[layer].float().mean().item())
        rows, columns = masks[layer].flatten(1).shape
        times = 360 // max(rows, columns)  # pixels of a connection, each way
        drawn = picture(found, f"masks/{title}")[: rows * times : times, : columns * times : times]
        pruned = (drawn == PRUNED).all(-1)
        assert np.array_equal(pruned, ~masks[layer].flatten(1).numpy()), "the end is drawn"


class Killed(Exception):
    """Ends a training in the middle."""


class Kill(pl.Callback):
    """Raises at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == self.epoch:
            raise Killed


def one_session(name: str, folder, *others: pl.Callback, ckpt=None) -> None:
    monitor = SparsityMonitor({"a": 1}, every_n_epochs=2)
    callbacks = (SeededEpochs(), manager_of(name), Levels(), monitor, *others, Checkpoints(folder))
    options = {"logger": board(folder), "log_every_n_steps": 1, "enable_checkpointing": True}
    batches = DataLoader(data(), 6)
    fit(scheduled(), *callbacks, epochs=SCHEDULES[name][1], batches=batches, ckpt=ckpt, **options)


@pytest.mark.parametrize(
    "name", mostly_slow(SCHEDULES, {"at init", "weights to 1ep", "gradient regrowth"})
)
def test_a_resumed_run_writes_everything_once(name, tmp_path):
    one_session(name, tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        one_session(name, folder, Kill(1))
    run = RunFolder(folder)
    path, checkpoint = run.last_whole()
    run.take_up(checkpoint["callbacks"]["Checkpoints"]["events"])
    one_session(name, folder, ckpt=path)
    whole, found = scalars(tmp_path / "whole"), scalars(folder)
    assert found == whole
    assert max(n for (tag, _, _), n in found.items() if tag != "epoch") == 1
    assert {"graph", "_hparams_/experiment", "seconds"} <= {tag for tag, _, _ in found}


def test_nothing_is_written_without_a_logger_and_others_get_scalars(tmp_path):
    manager = MaskManager(SNIP(), "4x")
    train(own(), manager, SparsityMonitor(), epochs=1)
    assert manager.observe is None

    manager, seen = MaskManager(SNIP(), "4x"), []
    manager.observe = theirs = lambda ranking, masks: seen.append(masks.kept)
    train(own(), manager, SparsityMonitor(), epochs=1, logger=board(tmp_path / "board"))
    assert seen == [manager.masks.kept]
    assert manager.observe is theirs

    logger = CSVLogger(tmp_path, "", "")
    manager = MaskManager(SNIP(), "4x")
    train(own(), manager, Levels(), SparsityMonitor({"a": 1}), epochs=2, logger=logger,
          log_every_n_steps=1)  # fmt: skip
    logger.save()
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    tags = ("density/net.0", "gradient_flow/net.0", "learning_rate", "level/direct_sparsity")
    assert {*tags, "score_threshold/all"} <= set(header)


def test_a_module_that_cannot_be_traced_is_trained_without_a_graph(tmp_path, caplog, capsys):
    class Strange(Own):
        def forward(self, x):
            return self.net(x) if isinstance(x, torch.Tensor) and not tracing() else {"no": 1}

    def tracing() -> bool:
        return torch.jit.is_tracing()

    manager = MaskManager(Magnitude(), "4x")
    with caplog.at_level(logging.INFO):
        train(Strange(), manager, SparsityMonitor(), epochs=1, logger=board(tmp_path))
    assert any("no graph" in record.message for record in caplog.records)
    assert capsys.readouterr().out == ""
    assert "density/net.0" in events(tmp_path).Tags()["scalars"]


def test_mistakes_are_said():
    with pytest.raises(LitPruneError, match="SparsityMonitor needs a MaskManager"):
        train(own(), SparsityMonitor(), epochs=1)
    with pytest.raises(LitPruneError, match="stands behind"):
        make_trainer(SparsityMonitor(), MaskManager(Random(), "4x")).fit(own(), loader())
    with pytest.raises(LitPruneError, match="every_n_epochs=0"):
        SparsityMonitor(every_n_epochs=0)


def test_the_command_turns_it_off_and_the_same_run_goes_on(tmp_path):
    args = ["--config", "configs/quickstart.yaml", "--trainer.limit_train_batches", "3"]
    args += ["--trainer.max_epochs", "2"]
    ended = session([*args, "--monitor", "false"], tmp_path / "off")
    assert ended.code == 0, ended.err
    assert not any(tag.startswith("density") for tag, _, _ in scalars(tmp_path / "off"))
    ended = session(args, tmp_path / "off")
    assert ended.code == 0, ended.err
    ended = session(args, tmp_path / "on")
    assert ended.code == 0, ended.err
    on, off = (set(scalars(tmp_path / name)) for name in ("on", "off"))
    assert off <= on
    assert any(tag == "density/fc1" for tag, _, _ in on)


def test_bins_are_counted_exactly_and_like_numpy_does():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = histograms({"x": x})["x"]
    assert sum(found.counts) == len(x)
    expected, _ = np.histogram(x.numpy(), bins=64, range=(found.low, found.high))
    assert np.abs(np.array(found.counts) - expected).sum() <= 4, "but for what lies on an edge"
    many = torch.zeros(2**24 + 5)
    assert max(histograms({"many": many})["many"].counts) == 2**24 + 5
