"""``reinitialise=True`` of MaskManager: the same masks, other weights, and nothing else."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import LitPruneError, MaskManager
from lit_prune.acts import Due, Prune
from lit_prune.callbacks import SeededEpochs
from lit_prune.criteria import SNIP, Magnitude
from lit_prune.schedules import Schedule
from lit_prune.timing import Time

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Own(pl.LightningModule):
    """A small network with dropout, which notes what it is trained on and what it draws."""

    def __init__(self, optimizer=partial(SGD, lr=0.1, momentum=0.9)):  # noqa: B008
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3)),
            *(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)),
        )
        self.make_optimizer = optimizer
        self.seen, self.numbers = [], []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(x.tolist())
        loss = F.cross_entropy(self(x), y)
        self.numbers.append(torch.rand(()).item())
        return loss

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def batches(shuffle=True):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(24, 6, generator=draw)
    data = TensorDataset(x, torch.randint(3, (24,), generator=draw))
    return DataLoader(data, 6, shuffle=shuffle)


class AtStart(pl.Callback):
    """What the weights and the optimizers are when the first batch of every epoch comes."""

    def __init__(self):
        self.weights, self.states = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            state = pl_module.state_dict().items()
            self.weights.append({name: tensor.clone() for name, tensor in state})
            self.states.append(sum(len(optimizer.state) for optimizer in trainer.optimizers))


def own(seed=0, **settings):
    torch.manual_seed(seed)
    return Own(**settings)


def fit(module, *callbacks, epochs=1, seed=1, ckpt=None, shuffle=True, **settings):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    trainer = pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **quiet | settings)
    torch.manual_seed(seed)
    trainer.fit(module, batches(shuffle), ckpt_path=ckpt)
    return trainer


def run(reinitialise, seed=1, module=None, epochs=1, **asked):
    """A run, and what its weights were as training began."""
    manager = MaskManager(
        *(SNIP(), "4x"), **{"rounds": 2, "batches": 2, "reinitialise": reinitialise} | asked
    )
    start, module = AtStart(), module or own()
    fit(module, manager, start, epochs=epochs, seed=seed)
    return manager, start, module


def test_the_masks_are_the_same_and_the_weights_are_others():
    plain, before, _ = run(False)
    manager, after, module = run(True)
    assert manager.masks == plain.masks
    for name, mask in manager.masks.items():
        one, other = before.weights[0][name], after.weights[0][name]
        assert (one[mask] != other[mask]).all()
        assert not other[~mask].any()
        assert other[mask].all()
        assert not module.get_parameter(name)[~mask].any()
    for name in ("net.0.bias", "net.4.bias", "net.6.bias"):
        assert not torch.equal(before.weights[0][name], after.weights[0][name])


def test_what_is_measured_is_the_same():
    plain, _, _ = run(False)
    manager, _, _ = run(True)
    assert manager.measurement.totals() == plain.measurement.totals()


def test_batches_and_all_other_random_numbers_of_the_run_are_the_same():
    _, _, plain = run(False, epochs=2)
    _, _, drawn = run(True, epochs=2)
    assert drawn.seen == plain.seen
    assert drawn.numbers == plain.numbers
    assert len(plain.seen) == 8


def test_the_seed_of_the_run_decides():
    weights = [run(True, seed)[1].weights[0] for seed in (1, 1, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["net.6.bias"], weights[2]["net.6.bias"])


def test_the_weights_before_do_not_matter_to_the_new_ones():
    asked = {"target": "1x", "criterion": Magnitude()}

    def weights_from(seed):
        manager = MaskManager(**asked, exclude="net.0.weight", reinitialise=True)
        start = AtStart()
        fit(own(seed), manager, start)
        return start.weights[0]

    one, other = weights_from(0), weights_from(1)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_generator_that_is_given_decides():
    def weights_of(seed):
        draw = torch.Generator().manual_seed(seed)
        return run(True, generator=draw)[1].weights[0]["net.6.bias"]

    assert torch.equal(weights_of(1), weights_of(1))
    assert not torch.equal(weights_of(1), weights_of(2))


class Twice(Schedule):
    """Prunes at the start, and once more in the second epoch."""

    def plan(self, course):
        keeps = {0: 2 * course.keep, 1: course.keep}
        return [Due(Time(epoch, "ep"), Prune(keep)) for epoch, keep in keeps.items()]


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=0.01)])
def test_the_optimizer_starts_anew_with_the_weights(optimizer):
    plain = run(False, module=own(optimizer=optimizer), epochs=3, schedule=Twice())
    drawn = run(True, module=own(optimizer=optimizer), epochs=3, schedule=Twice())
    assert plain[1].states == [0, 8, 8]
    assert drawn[1].states == [0, 0, 8]


def test_every_prune_draws_anew():
    manager, start, _ = run(True, epochs=3, schedule=Twice())
    # Norms show it best: they start at one and zero.
    assert [bool(weights["net.1.bias"].any()) for weights in start.weights] == [False, False, True]
    assert (start.weights[1]["net.1.weight"] == 1).all()
    assert not start.weights[1]["net.1.running_mean"].any()
    assert manager.masks.kept == 48


def test_without_a_prune_nothing_is_drawn():
    class Never(Schedule):
        def plan(self, course):
            return []

    module = own()
    before = module.net[6].bias.detach().clone()
    _, start, _ = run(True, module=module, schedule=Never())
    assert torch.equal(start.weights[0]["net.6.bias"], before)


def test_stored_masks_get_new_weights_too(tmp_path):
    plain, before, _ = run(False)
    plain.masks.save(tmp_path / "masks.safetensors")
    for reinitialise in (False, True):
        manager = MaskManager(masks=str(tmp_path / "masks.safetensors"), reinitialise=reinitialise)
        start = AtStart()
        fit(own(), manager, start, epochs=2)
        assert manager.masks == plain.masks
        same = torch.equal(start.weights[0]["net.6.bias"], before.weights[0]["net.6.bias"])
        assert same is not reinitialise
        if reinitialise:  # and only once
            assert start.states == [0, 8]
            assert start.weights[1]["net.1.bias"].any()
        for name, mask in manager.masks.items():
            assert not start.weights[0][name][~mask].any()


def test_a_resumed_run_keeps_its_weights(tmp_path):
    saved = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    asked = {"epochs": 3, "shuffle": False}

    def manager():
        return MaskManager(SNIP(), "4x", reinitialise=True)

    def still(seed):
        module = own(seed)
        module.net[3].p = 0.0  # a loader of torch draws a number of its own as it is resumed
        return module

    whole, there = still(0), AtStart()
    fit(whole, manager(), SeededEpochs(), there, saved, enable_checkpointing=True, **asked)
    again, start, resumed = still(7), AtStart(), manager()
    kept = str(tmp_path / "epoch=1.ckpt")
    fit(again, resumed, SeededEpochs(), start, ckpt=kept, **asked)
    assert len(start.weights) == 1
    for name, tensor in start.weights[0].items():
        assert torch.equal(tensor, there.weights[2][name]), name
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for name, mask in resumed.masks.items():
        assert not again.get_parameter(name)[~mask].any()


def test_a_parameter_that_cannot_be_drawn_is_an_error_that_names_it():
    class Free(Own):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            return self.net(x + self.token)

    torch.manual_seed(0)
    with pytest.raises(LitPruneError, match="token cannot be drawn anew: no module around it has"):
        run(True, module=Free())
    torch.manual_seed(0)
    assert run(False, module=Free())[0].masks.kept == 48


def test_by_default_nothing_is_drawn_anew():
    module = own()
    before = module.net[6].bias.detach().clone()
    start = AtStart()
    fit(module, MaskManager(SNIP(), "4x"), start)
    assert torch.equal(start.weights[0]["net.6.bias"], before)
