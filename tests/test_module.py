"""LitClassifier: what it logs, how it is scheduled, and where its weights come from."""

import inspect
import os
import pickle
import re
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

import lit_prune.module
from lit_prune import LitClassifier, LitPruneError

SIZES = (7, 7, 3)


class Net(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.fc1(x)).relu())


def net(seed: int = 0, **kwargs) -> Net:
    torch.manual_seed(seed)
    return Net(**kwargs)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), 5, generator=generator)
    return TensorDataset(x, torch.randint(3, (sum(SIZES),), generator=generator))


def loader() -> DataLoader:
    """Batches of 7, 7 and 3."""
    return DataLoader(data(), SIZES[0])


def trainer(epochs: int = 1, *callbacks: pl.Callback, **kwargs) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


@pytest.mark.parametrize("stage", ["val", "test"])
def test_loss_and_accuracy_are_those_of_the_whole_set_over_uneven_batches(stage):
    module = LitClassifier(net(), label_smoothing=0.3)
    module.backbone.norm.running_mean.fill_(0.2)
    run = trainer()
    if stage == "val":
        (found,) = run.validate(module, loader(), verbose=False)
    else:
        (found,) = run.test(module, loader(), verbose=False)
    x, y = data().tensors
    logits = module.backbone.eval()(x)
    assert found[f"{stage}/loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    right = (logits.argmax(1) == y).sum().item()
    assert found[f"{stage}/accuracy"] == pytest.approx(right / len(y), rel=1e-6)
    by_batch = [
        (part.argmax(1) == truth).float().mean().item()
        for part, truth in zip(logits.split(SIZES), y.split(SIZES), strict=True)
    ]
    assert sum(by_batch) / 3 != pytest.approx(right / len(y)), "the case cannot fail"


def test_a_second_validation_starts_from_nothing():
    module = LitClassifier(net())
    few = DataLoader(data(), SIZES[0], sampler=range(5))
    expected = trainer().validate(LitClassifier(net()), few, verbose=False)
    run = trainer()
    assert run.validate(module, loader(), verbose=False) != expected
    assert run.validate(module, few, verbose=False) == expected


def test_training_and_validation_curves_are_logged():
    class Logged(pl.Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            self.names = set(trainer.callback_metrics)

    logged = Logged()
    trainer(2, logged, log_every_n_steps=1).fit(LitClassifier(net()), loader(), loader())
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= logged.names


def test_training_metrics_are_those_of_the_batch_and_come_when_a_log_is_due():
    class Logged(pl.Callback):
        def on_train_start(self, *_) -> None:
            self.rows, self.due = [], [None, None]

        def on_train_batch_start(self, trainer, pl_module, batch, *_) -> None:
            with torch.no_grad():
                logits, y = pl_module(batch[0]), batch[1]
            loss = F.cross_entropy(logits, y, label_smoothing=0.2).item()
            self.wanted = (loss, (logits.argmax(1) == y).float().mean().item())

        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            logged = [trainer.logged_metrics.get(f"train/{n}") for n in ("loss", "accuracy")]
            if trainer.global_step % 2 == 0:
                self.due = logged
                self.rows.append((*map(float, logged), *self.wanted))
            else:
                assert logged == self.due, "logged where no log is due"

    logged = Logged()
    run = trainer(2, logged, log_every_n_steps=2)
    run.fit(LitClassifier(net(), label_smoothing=0.2), loader())
    assert len(logged.rows) == 3
    for loss, accuracy, wanted_loss, wanted_accuracy in logged.rows:
        assert loss == pytest.approx(wanted_loss, rel=1e-5)
        assert accuracy == pytest.approx(wanted_accuracy, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_training_loss_smooths_labels_by_as_much_as_asked(smoothing):
    module = LitClassifier(net(), partial(SGD, lr=1.0), label_smoothing=smoothing)
    expected = net()
    x, y = data().tensors
    trainer().fit(module, DataLoader(data(), len(y)))

    log_p = F.log_softmax(expected(x), 1)
    spread = torch.full_like(log_p, smoothing / 3).scatter_add(
        1, y[:, None], torch.full((len(y), 1), 1 - smoothing)
    )
    (-(spread * log_p).sum(1).mean()).backward()
    for name, weight in expected.named_parameters():
        wanted = (weight - weight.grad).detach()
        found = module.backbone.get_parameter(name).detach()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        (None, [1.0] * 5),
        (partial(StepLR, step_size=2, gamma=0.5), [1.0, 1.0, 0.5, 0.5, 0.25]),
        (partial(MultiStepLR, milestones=[1, 4], gamma=0.1), [1.0, 0.1, 0.1, 0.1, 0.01]),
        (partial(CosineAnnealingLR, T_max=4), [1.0, 0.853553, 0.5, 0.146447, 0.0]),
    ],
    ids=["constant", "step", "multistep", "cosine"],
)
def test_the_rate_changes_once_an_epoch_as_the_schedule_says(scheduler, rates):
    class Rates(pl.Callback):
        seen: list

        def on_train_start(self, *_) -> None:
            self.seen = []

        def on_train_batch_start(self, trainer, *_) -> None:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    seen = Rates()
    module = LitClassifier(net(), partial(SGD, lr=1.0), scheduler)
    trainer(5, seen).fit(module, loader())
    assert seen.seen == pytest.approx([rate for rate in rates for _ in SIZES], abs=1e-6)


def test_the_optimizer_is_the_one_asked_for():
    found = LitClassifier(net(), partial(AdamW, lr=0.5, weight_decay=0.25)).configure_optimizers()
    assert type(found) is AdamW
    assert found.defaults["lr"] == 0.5
    assert len(found.param_groups[0]["params"]) == len(list(net().parameters()))
    default = LitClassifier(net()).configure_optimizers()
    assert (type(default), default.defaults["lr"], default.defaults["momentum"]) == (SGD, 0.1, 0.9)


def _as_state_dict(path, module: LitClassifier) -> None:
    torch.save(module.backbone.state_dict(), path)


def _as_safetensors(path, module: LitClassifier) -> None:
    save_file(module.backbone.state_dict(), path)


def _as_checkpoint(path, module: LitClassifier) -> None:
    run = trainer()
    run.strategy.connect(module)
    run.save_checkpoint(path)


def _as_compiled_checkpoint(path, module: LitClassifier) -> None:
    _as_checkpoint(path, LitClassifier(torch.compile(module.backbone, backend="eager")))


FORMS = {
    "weights.pt": _as_state_dict,
    "weights.safetensors": _as_safetensors,
    "last.ckpt": _as_checkpoint,
    "compiled.ckpt": _as_compiled_checkpoint,
}


@pytest.mark.parametrize("name", FORMS)
def test_weights_come_from_every_kind_of_file(name, tmp_path):
    path, source = tmp_path / name, LitClassifier(net(seed=1))
    source.backbone.norm.running_var.fill_(3.0)
    FORMS[name](path, source)
    loaded = LitClassifier(net(seed=2), weights=str(path)).backbone.state_dict()
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_a_checkpoint_has_plain_keys_and_fits_compiled_and_plain_alike(tmp_path):
    compiled = LitClassifier(torch.compile(net(seed=1), backend="eager"))
    plain = LitClassifier(net(seed=2))
    for number, (source, other) in enumerate([(compiled, plain), (plain, compiled)]):
        path = tmp_path / f"{number}.ckpt"
        nn.init.constant_(source.backbone.fc1.bias, number + 1.5)
        _as_checkpoint(path, source)
        content = torch.load(path, weights_only=True)["state_dict"]
        assert list(content) == [f"backbone.{name}" for name in net().state_dict()]
        trainer().validate(other, loader(), ckpt_path=path, weights_only=True, verbose=False)
        for found, wanted in zip(other.parameters(), source.parameters(), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights_fit_a_compiled_backbone_too(name, tmp_path):
    path, source = tmp_path / name, LitClassifier(net(seed=1))
    FORMS[name](path, source)
    compiled = torch.compile(net(seed=2), backend="eager")
    LitClassifier(compiled, weights=str(path))
    assert torch.equal(compiled.fc1.weight, source.backbone.fc1.weight)


def _refused(path, **kwargs) -> str:
    model = net(seed=2, **kwargs)
    with pytest.raises(LitPruneError) as raised:
        LitClassifier(model, weights=str(path))
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(path) in message
    return message


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_cut_file_is_one_clear_error(name, share, tmp_path):
    path = tmp_path / name
    FORMS[name](path, LitClassifier(net()))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert re.search("cut|damaged", _refused(path))


class Harmful:
    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("write", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))])
def test_a_file_that_would_run_code_does_not_run_it(write, tmp_path):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    write({"fc1.weight": Harmful(marker)}, path)
    _refused(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert marker.exists(), "the case cannot fail"


def test_a_missing_file_is_named(tmp_path):
    assert "no such file" in _refused(tmp_path / "none.pt")
    assert "no such file" in _refused(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": [1]}, torch.ones(3)])
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    assert "no state dict" in _refused(tmp_path / "weights.pt")


def test_weights_of_another_model_name_what_differs(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(net(outputs=4).state_dict(), path)
    message = _refused(path)
    assert "fc2.weight" in message
    assert "Net" in message
    torch.save({"other.weight": torch.ones(2)}, path)
    assert "fc1.weight" in _refused(path)
    incomplete = net().state_dict()
    del incomplete["fc2.bias"]
    torch.save(incomplete, path)
    assert "fc2.bias" in _refused(path)


def test_the_module_does_not_know_that_pruning_exists():
    text = re.sub("lit_prune|LitPruneError", "", inspect.getsource(lit_prune.module))
    assert not re.search(r"prun|mask|spars", text, re.IGNORECASE)
