"""A rate that falls where a metric stands still falls at the same epoch after a resume."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_prune import LitClassifier
from lit_prune.callbacks import Plateaus, SeededEpochs
from lit_prune.data import Digits

EPOCHS = 6


def falling(optimizer):
    scheduler = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    scheduler.monitor = "val/loss"
    return scheduler


class Rates(Callback):
    def __init__(self):
        self.seen = {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen[trainer.current_epoch] = trainer.optimizers[0].param_groups[0]["lr"]


def fit(folder, *callbacks, checkpoint=None, epochs=EPOCHS):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    module = LitClassifier(net, partial(SGD, lr=4.0, momentum=0.9), falling)
    rates = Rates()
    saver = ModelCheckpoint(
        folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[SeededEpochs(), *callbacks, rates, saver],
        limit_train_batches=4,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, Digits(batch_size=32), ckpt_path=checkpoint, weights_only=True)
    return trainer, module, rates.seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *fit(folder, Plateaus())[1:]


def test_the_rate_falls_in_the_undisturbed_run(whole):
    assert len(set(whole[2].values())) >= 3


@pytest.mark.parametrize("epoch", range(EPOCHS - 1))
def test_a_resume_from_any_epoch_ends_on_the_same_bits(whole, epoch, tmp_path):
    folder, module, rates = whole
    _, again, seen = fit(tmp_path, Plateaus(), checkpoint=folder / f"epoch={epoch}.ckpt")
    assert seen == {number: rate for number, rate in rates.items() if number > epoch}
    for one, other in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_it_a_resume_misses_a_step(tmp_path):
    _, _, rates = fit(tmp_path / "whole")
    falls = [n for n in range(1, EPOCHS) if rates[n] < rates[n - 1]]
    last = tmp_path / "whole" / f"epoch={falls[0] - 1}.ckpt"
    _, _, seen = fit(tmp_path / "again", checkpoint=last)
    assert seen[falls[0]] == rates[falls[0] - 1]


def test_a_training_that_goes_on_after_its_end_sees_nothing_twice(tmp_path):
    trainer, _, _ = fit(tmp_path / "short", Plateaus(), epochs=3)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    plateaus = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["Plateaus"]
    assert plateaus == {"missed": {}}
