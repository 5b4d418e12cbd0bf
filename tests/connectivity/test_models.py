"""Networks of torchvision and timm as they are: they run, and their answers hold.

What is checked of each is said in benchmarks/coverage.py, which also tries the large ones.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lit_prune import Connectivity, Masks, prunable

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
sys.path.append(str(Path(__file__).parents[2]))
coverage = pytest.importorskip("benchmarks.coverage")

# With what is dead in the dense network.
QUICK = {
    "squeezenet1_1": set(),
    "mobilenet_v3_small": {coverage.PADDING},
    "shufflenet_v2_x0_5": set(),
    "googlenet": {coverage.AUXILIARY},
    "lraspp_mobilenet_v3_large": {coverage.PADDING},
    "swin_v2_t": {coverage.CONSTANT},
    "resnetv2_18": set(),
    "nf_regnet_b0": set(),
    "levit_128s": set(),
    "efficientvim_m1": {coverage.PADDING},
    "volo_d1_224": {coverage.CONSTANT},
}


def case_of(name: str, library: str) -> Any:
    if library == "timm":
        pytest.importorskip("timm")
    (case,) = [c for c in coverage.cases() if (c.name, c.library) == (name, library)]
    return case


def libraries() -> Iterator[tuple[str, str]]:
    for number, name in enumerate(QUICK):
        yield name, "torchvision" if number < 6 else "timm"


@pytest.mark.parametrize(("name", "library"), list(libraries()))
def test_a_small_network_runs_and_its_dead_connections_are_dead(name: str, library: str) -> None:
    row = coverage.examined(case_of(name, library))
    assert row.error == ""
    assert set(row.dead) == QUICK[name]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "case", list(coverage.cases()), ids=lambda case: f"{case.library}-{case.name}"
)
def test_a_network_runs_and_its_dead_connections_are_dead(case: object) -> None:
    assert coverage.examined(case).error == ""


def read_and_heard(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the connections that read a unit that varies with the input, and move the output.

    Independent of any rule: activations are compared between two inputs, and gradients are taken.
    """
    reads: dict[str, list[Tensor]] = {}
    layers = {n: m for n, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: reads.setdefault(name, []).append(given[0].detach())
        )
        for name, layer in layers.items()
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        # Two images at a time: of one, torch 2.15 on CPUs gets the gradient of batch norm in eval
        # mode wrong if it comes in with the strides of transposed tokens.
        images = torch.randn(2, *image.shape[1:], dtype=image.dtype, generator=generator)
        for y in tree_leaves(model(images)):
            y.backward(torch.randn(y.shape, dtype=y.dtype, generator=generator), retain_graph=True)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, layer in layers.items():
        if len(reads.get(name, ())) != 2 or layer.weight.grad is None:
            continue
        units = -1 if isinstance(layer, nn.Linear) else -3
        varies = (reads[name][0] != reads[name][1]).movedim(units, 0).flatten(1).any(1)
        groups = getattr(layer, "groups", 1)
        each = varies.view(groups, 1, -1).expand(-1, layer.weight.shape[0] // groups, -1)
        each = each.flatten(0, 1).view(*layer.weight.shape[:2], *[1] * (layer.weight.dim() - 2))
        found[f"{name}.weight"] = (layer.weight.grad != 0) & each
    return found


# Weights of NFNets are normed, after which a pruned one is not zero; VOLO takes longest.
LEFT_OUT = ("nf_regnet_b0", "volo_d1_224")
PLAIN = [(name, library) for name, library in libraries() if name not in LEFT_OUT]


@pytest.mark.parametrize(("name", "library"), PLAIN)
def test_what_a_pruned_network_uses_is_effective(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By convention norms are no paths between channels; here they are none indeed.
    for norm in ("layer_norm", "group_norm", "normalize"):
        monkeypatch.setattr(F, norm, lambda x, *_, **__: x / 2)
    torch.manual_seed(0)
    model = case_of(name, library).build().eval()
    coverage._awaken(model)
    image = coverage._example(model).double()
    connectivity = Connectivity(model.double(), image, "channel")
    weights = prunable(model)
    scores = {n: torch.rand(w.shape) for n, w in weights.items()}
    for density in (0.3, 0.1, 0.03, 0.01, 0.003):
        # Units with few inputs keep most of them, or depthwise networks fall apart at once.
        kept = {n: density if w[0].numel() >= 64 else 0.8 for n, w in weights.items()}
        masks = Masks({n: s < kept[n] for n, s in scores.items()})
        effective = connectivity.effective(masks)
        if effective.kept < 0.8 * masks.kept:
            break
    masks.apply(model)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.div_(kept[name] ** 0.5)
    found = read_and_heard(model, image)
    used = {n: mask & masks[n] for n, mask in found.items()}
    for layer, mask in used.items():
        assert bool((mask <= effective[layer]).all()), layer
    # And it is no empty claim.
    assert sum(int(mask.sum()) for mask in used.values()) > 0.1 * effective.kept
