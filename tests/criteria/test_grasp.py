"""GraSP against Hessian-vector products in forward mode, a closed form and finite differences."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp

from lit_prune import LitPruneError, Masks, Probe, prune
from lit_prune.criteria import GraSP


class Attention(nn.Module):
    """Self-attention; ``weighted`` writes it out, where otherwise one fused operation is called."""

    def __init__(self, weighted=False):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.weighted = weighted

    def forward(self, x):
        x = x.flatten(1).unflatten(1, (-1, 4))
        return self.head((x + self.attention(x, x, x, need_weights=self.weighted)[0]).mean(1))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.Tanh(), nn.Linear(8, 6), nn.GELU(),
                         nn.Linear(6, 3))  # fmt: skip


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)),
    )


def evaluating_cnn():
    return cnn().eval()


MODELS = [mlp, cnn, evaluating_cnn, Attention]
EVERY_MODEL = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def made(make):
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def batches_of(*sizes, seed=3):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 2, 6, 6, generator=draw, dtype=torch.float64), torch.arange(n) % 3)
        for n in sizes
    ]


def half_of(model):
    draw = torch.Generator().manual_seed(7)
    dense = Masks.dense(model)
    return Masks({n: torch.rand(mask.shape, generator=draw) < 0.6 for n, mask in dense.items()})


def plain(model):
    """The same function, of operations that can be differentiated forwards, and without state."""
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        if isinstance(module, Attention):
            module.weighted = True
    return model


def mean_loss(model, batches, temperature):
    """The mean loss over the batches, as a function of the prunable weights."""
    model = plain(model)
    others = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def loss(weights):
        losses = [
            F.cross_entropy(functional_call(model, {**others, **weights}, (x,)) / temperature, y)
            for x, y in batches
        ]
        return sum(losses) / len(losses)

    return loss


def reference(model, batches, temperature=200.0, masks=None):
    """w * (H g): the derivative of the gradient in the direction of the gradient."""
    masks = masks or Masks.dense(model)
    weights = {n: w.detach() * masks[n] for n, w in masks.parameters(model).items()}
    gradient = grad(mean_loss(model, batches, temperature))
    direction = {name: g * masks[name] for name, g in gradient(weights).items()}
    _, product = jvp(gradient, (weights,), (direction,))
    return {name: weights[name] * product[name] for name in masks}


def scores_of(model, batches, criterion=GraSP(), masks=None):  # noqa: B008 (frozen)
    return criterion(Probe(model, masks or Masks.dense(model), batches))


def assert_same(scores, expected, rtol=1e-8):
    assert list(scores) == list(expected)
    for name, score in scores.items():
        largest = float(expected[name].detach().abs().max())
        assert largest > 0
        torch.testing.assert_close(score, expected[name], rtol=rtol, atol=rtol * largest)


@EVERY_MODEL
@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_scores_are_those_of_forward_mode(make, temperature):
    model, batches = made(make), batches_of(6)
    scores = scores_of(model, batches, GraSP(temperature))
    assert_same(scores, reference(model, batches, temperature))
    assert any((score < 0).any() for score in scores.values())
    assert any((score > 0).any() for score in scores.values())


@EVERY_MODEL
def test_gradient_and_hessian_are_means_over_the_batches(make):
    model, batches = made(make), batches_of(6, 3, 5)
    together = scores_of(model, batches, GraSP(5.0))
    assert_same(together, reference(model, batches, 5.0))
    apart = [scores_of(model, [batch], GraSP(5.0)) for batch in batches]
    for name, score in together.items():  # the mean of scores is something else
        assert not torch.allclose(score, sum(one[name] for one in apart) / 3, rtol=0.01)


@EVERY_MODEL
def test_pruned_weights_take_no_part_and_score_nothing(make):
    model, batches = made(make), batches_of(6, 4)
    masks = half_of(model)
    scores = scores_of(model, batches, GraSP(10.0), masks)
    assert_same(scores, reference(model, batches, 10.0, masks))
    assert all(not scores[name][~mask].any() for name, mask in masks.items())
    # Neither do their gradients, which are not zero.
    whole = grad(mean_loss(model, batches, 10.0))
    masked = {n: w.detach() * masks[n] for n, w in masks.parameters(model).items()}
    _, product = jvp(whole, (masked,), (whole(masked),))
    for name, score in scores.items():
        assert not torch.allclose(score, masked[name] * product[name], rtol=0.01)


def test_equal_batches_are_as_good_as_one_large_batch():
    model = made(mlp)
    first, second = batches_of(4, 4)
    whole = tuple(torch.cat(pair) for pair in zip(first, second, strict=True))
    assert_same(scores_of(model, [whole]), scores_of(model, [first, second]))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_quadratic_loss_has_the_scores_of_its_closed_form(temperature):
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    x, target = torch.randn(7, 5).double(), torch.randn(7, 3).double()

    def half_of_squares(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().sum()

    probe = Probe(model, Masks.dense(model), [(x, target)], loss=half_of_squares)
    weight = model.weight.detach()
    gradient = (x @ weight.T / temperature - target).T @ x / temperature
    hessian = x.T @ x / temperature**2  # of every row
    expected = {"weight": weight * (gradient @ hessian)}
    assert_same(GraSP(temperature)(probe), expected)


def test_what_is_kept_is_what_would_lower_the_norm_of_the_gradient_most():
    """To first order, removing a connection lowers the squared norm by twice its score."""
    model, batches = made(mlp), batches_of(8)
    scores = scores_of(model, batches, GraSP(1.0))
    gradient = grad(mean_loss(model, batches, 1.0))
    weights = {n: w.detach() for n, w in Masks.dense(model).parameters(model).items()}

    def squared_norm(weights):
        return float(sum(g.detach().square().sum() for g in gradient(weights).values()))

    step, before = 1e-6, squared_norm(weights)
    for name, flat in (("1.weight", 17), ("3.weight", 4), ("5.weight", 0), ("5.weight", 11)):
        moved = {n: w.clone() for n, w in weights.items()}
        moved[name].view(-1)[flat] *= 1 - step
        lowered = (before - squared_norm(moved)) / step
        assert lowered == pytest.approx(2 * float(scores[name].view(-1)[flat]), rel=1e-3)
    masks = prune(model, GraSP(1.0), "75%", batches=batches)
    kept = torch.cat([scores[n][m] for n, m in masks.items()])
    gone = torch.cat([scores[n][~m] for n, m in masks.items()])
    assert kept.min() >= gone.max()


def test_the_temperature_divides_what_the_loss_sees_and_nothing_afterwards():
    model, batches, seen = made(mlp), batches_of(4), []

    def watching(model, batch):
        logits = model(batch[0])
        seen.append(logits.detach().clone())
        return F.cross_entropy(logits, batch[1])

    GraSP(8.0)(Probe(model, Masks.dense(model), batches, loss=watching))
    logits = model(batches[0][0])
    assert len(seen) == 2  # once for the gradient, once for its product with the Hessian
    assert all(torch.allclose(logits / 8, divided) for divided in seen)


def test_the_temperature_is_part_of_the_criterion():
    assert GraSP() == GraSP(temperature=200.0) != GraSP(1.0)
    model, batches = made(mlp), batches_of(6)
    hot, cold = (prune(model, GraSP(t), "80%", batches=batches) for t in (200.0, 0.1))
    assert hot != cold


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, float("nan")])
def test_a_temperature_is_above_zero(temperature):
    with pytest.raises(LitPruneError, match=r"GraSP: temperature=.* out of range: above 0"):
        GraSP(temperature)


def test_in_rounds_what_is_pruned_stays_pruned_although_scores_are_negative():
    model, batches = made(mlp), batches_of(6)
    masks = prune(model, GraSP(), 40, rounds=1, batches=batches)
    again = prune(model, GraSP(), 40, rounds=5, batches=batches)
    assert masks.kept == again.kept == 40
    assert masks != again


def test_float32_gives_the_scores_of_float64():
    model, batches = made(mlp), batches_of(6, 4)
    expected = scores_of(model, batches)
    single = scores_of(model.float(), [(x.float(), y) for x, y in batches])
    for name, score in single.items():
        largest = float(expected[name].detach().abs().max())
        torch.testing.assert_close(score.double(), expected[name], rtol=1e-3, atol=1e-4 * largest)


def test_a_loss_without_curvature_scores_nothing():
    def linear(model, batch):
        return model(batch[0]).sum()

    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double()
    scores = GraSP()(Probe(model, Masks.dense(model), batches_of(4), loss=linear))
    assert not scores["1.weight"].any()


def test_frozen_weights_are_scored_alike():
    model, batches = made(mlp), batches_of(6)
    free = scores_of(model, batches)
    model.requires_grad_(False)
    frozen = scores_of(model, batches)
    assert all(torch.equal(free[name], frozen[name]) for name in free)


@pytest.mark.parametrize("batches", [(), None, iter(())])
def test_without_batches_there_is_nothing_to_score(batches):
    with pytest.raises(LitPruneError, match="GraSP needs training data: pass batches="):
        prune(mlp(), GraSP(), "50%", batches=batches)


def test_the_temperature_acts_on_outputs_of_any_form():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

        def forward(self, x):
            return (self.net(x),)

    x, y = torch.randn(8, 6), torch.arange(8) % 3
    wrapped = Wrapped()
    plain = GraSP(50.0)(Probe(wrapped.net, Masks.dense(wrapped.net), [(x, y)]))
    probe = Probe(
        wrapped,
        Masks.dense(wrapped),
        [(x, y)],
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0])[0], batch[1]),
    )
    found = GraSP(50.0)(probe)
    assert all(torch.equal(found[f"net.{name}"], score) for name, score in plain.items())
    with pytest.raises(LitPruneError, match="the loss does not call the model itself"):
        GraSP()(replace(probe, loss=lambda model, batch: model.net(batch[0]).pow(2).sum()))


def test_what_cannot_be_differentiated_twice_is_said():
    model = nn.Sequential(nn.Linear(6, 8), nn.Hardsigmoid(), nn.Linear(8, 3))
    batch = (torch.randn(8, 6), torch.arange(8) % 3)
    with pytest.raises(LitPruneError, match="GraSP differentiates twice: derivative for"):
        GraSP()(Probe(model, Masks.dense(model), [batch]))
