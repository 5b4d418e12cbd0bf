"""A loss that is no number stops the run before it spoils a checkpoint."""

import json
import math
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import LitPruneError
from lit_prune.callbacks import Checkpoints, FiniteLoss
from lit_prune.callbacks.checkpoints import read_checkpoint
from lit_prune.cli import main

ROOT = Path(__file__).resolve().parents[2]
BATCHES = 10


class Net(pl.LightningModule):
    """Its loss at a step, counted from 1, is multiplied by a factor."""

    def __init__(self, step: int = 0, factor: float = math.nan, output="tensor") -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.step, self.factor, self.output = step, factor, output
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        loss = self.layer(batch[0]).square().mean()
        loss = loss * (self.factor if self.steps == self.step else 1)
        return {"loss": loss, "more": 1} if self.output == "dict" else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train(net: Net, folder: Path, *callbacks: Callback, **settings) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 4, "accelerator": "cpu", "log_every_n_steps": 4, **settings}
    trainer = pl.Trainer(
        **quiet,
        **settings,
        default_root_dir=folder,
        callbacks=[FiniteLoss(), *(callbacks or [Checkpoints(folder)])],
    )
    data = TensorDataset(torch.ones(BATCHES, 3))
    trainer.fit(net, DataLoader(data, 1))
    return trainer


def stopped(net: Net, folder: Path, *args, **options) -> str:
    with pytest.raises(LitPruneError) as caught:
        train(net, folder, *args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("output", ["tensor", "dict"])
@pytest.mark.parametrize(("factor", "name"), [(math.nan, "nan"), (-math.inf, "-inf")])
@pytest.mark.parametrize(
    ("step", "seen", "epoch"), [(1, 4, 1), (4, 4, 1), (9, 10, 1), (10, 10, 1), (26, 28, 3)]
)
def test_it_names_the_epoch_the_step_and_the_last_good_checkpoint(
    step, seen, epoch, factor, name, output, tmp_path
):
    net = Net(step, factor, output)
    text = stopped(net, tmp_path)
    assert text.startswith(f"the loss is {name} in epoch {epoch} of 4, step {step}; ")
    last = tmp_path / "checkpoints" / "last.ckpt"
    good = f"{last} of epoch {epoch - 1}" if epoch > 1 else "none"
    assert text.endswith(f"last good checkpoint: {good}")
    assert net.steps == seen, "it is looked at where a log is due, and at the end of the epoch"
    assert last.exists() == (epoch > 1)
    if epoch > 1:
        weights = read_checkpoint(last)["state_dict"]
        assert all(weight.isfinite().all() for weight in weights.values())


def test_a_finite_run_is_not_stopped_and_not_changed(tmp_path):
    torch.manual_seed(0)
    net = Net(3, 1.5)
    train(net, tmp_path, max_epochs=1)
    torch.manual_seed(0)
    plain = Net(3, 1.5)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, max_epochs=1,
                         enable_progress_bar=False, accelerator="cpu")  # fmt: skip
    trainer.fit(plain, DataLoader(TensorDataset(torch.ones(BATCHES, 3)), 1))
    assert net.steps == plain.steps == BATCHES
    assert torch.equal(net.layer.weight, plain.layer.weight)


def test_weights_that_the_last_step_of_an_epoch_spoils_are_not_saved(tmp_path):
    class Spoiling(Net):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.steps == 2 * BATCHES:
                self.layer.bias.data[1] = math.nan

    text = stopped(Spoiling(), tmp_path)
    assert text.startswith("the weights are not finite in epoch 2 of 4, step 20; ")
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["epoch"] == 0


def test_steps_are_those_of_the_optimizer(tmp_path):
    text = stopped(Net(7), tmp_path, accumulate_grad_batches=5)
    assert "in epoch 1 of 4, step 1;" in text


def test_other_checkpoints_are_named_as_well(tmp_path):
    saver = ModelCheckpoint(tmp_path / "own", filename="mine")
    text = stopped(Net(14), tmp_path, saver)
    assert text.endswith(f"last good checkpoint: {tmp_path / 'own' / 'mine.ckpt'}")
    text = stopped(Net(14), tmp_path, Callback(), enable_checkpointing=False)
    assert text.endswith("last good checkpoint: none")


def test_losses_do_not_pile_up(tmp_path):
    class Watch(Callback):
        most = 0

        def on_train_batch_end(self, trainer, *args):
            (finite,) = [c for c in trainer.callbacks if isinstance(c, FiniteLoss)]
            self.most = max(self.most, len(finite._losses))

    watch = Watch()
    train(Net(), tmp_path, Watch(), watch, max_epochs=2)
    assert watch.most == 3


def diverging(folder: Path, *args: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        config = str(ROOT / "configs" / "quickstart.yaml")
        return main(["--config", config, "--run_dir", str(folder), *args])


def test_a_run_that_diverges_is_one_line_and_its_folder_is_kept(tmp_path, capsys):
    folder = tmp_path / "run"
    assert diverging(folder, "--model.optimizer.lr", "1e30") == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    found = re.fullmatch(
        r"error: the (loss is (nan|inf)|weights are not finite) in epoch 1 of 20, step \d+; "
        r"last good checkpoint: none",
        line,
    )
    assert found, line
    assert (folder / "config.yaml").exists()
    assert list(folder.glob("events.out.tfevents*"))
    assert not (folder / "summary.json").exists()


def test_a_run_that_diverges_late_says_so_again_when_it_goes_on(tmp_path, capsys):
    folder = tmp_path / "run"
    late = (
        *("--model.optimizer.lr", "0.1", "--trainer.max_epochs", "4"),
        *("--model.scheduler", "torch.optim.lr_scheduler.StepLR"),
        *("--model.scheduler.step_size", "2", "--model.scheduler.gamma", "1e35"),
    )
    lines = []
    for _ in range(2):
        assert diverging(folder, *late) == 2
        lines += capsys.readouterr().err.splitlines()[-1:]
    assert lines[0] == lines[1]
    last = folder / "checkpoints" / "last.ckpt"
    assert " in epoch 3 of 4, " in lines[0]
    assert lines[0].endswith(f"last good checkpoint: {last} of epoch 2")
    checkpoint = read_checkpoint(last)
    assert all(w.isfinite().all() for w in checkpoint["state_dict"].values())
    assert json.dumps(checkpoint["epoch"]) == "1"
