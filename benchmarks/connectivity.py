"""Effective masks and effective targets on five networks, and what they could be measured by.

The unit is one forward and backward of batch 1 of the same network, all gradients included.
"whole target" is from scores to masks, exact at every element; "with tracing" also runs the
network once to see its operations. "bisection" is the plain way: a ranking and an effective mask a
step. "read" is one sum over all parameters, the floor. Memory is the peak of the resident memory
above what was there before, in units of the same of the plain pass, each in a process of its own.

    python -m benchmarks.connectivity [NAME ...]
"""

import math
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50, vgg19_bn, vit_b_16

from benchmarks.clock import by_turns, table
from lit_prune import Connectivity, Masks, Ranking
from lit_prune.backbones import LeNet300100
from lit_prune.errors import TargetMissed
from lit_prune.search import Found, first_enough


def vgg19_32() -> nn.Module:
    model = vgg19_bn(num_classes=100)
    model.avgpool, model.classifier = nn.Identity(), nn.Linear(512, 100)
    return model


def resnet18_32() -> nn.Module:
    model = resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    size: tuple[int, ...]
    turns: int
    compressions: tuple[int, ...]
    masks_wanted: float
    targets_wanted: tuple[float, ...]


CASES = {
    "LeNet-300-100": Case(LeNet300100, (1, 1, 28, 28), 101, (100,), 4, (8,)),
    "VGG-19, 32x32": Case(vgg19_32, (1, 3, 32, 32), 11, (100, 1000), 3, (10, 25)),
    "ResNet-18, 32x32": Case(resnet18_32, (1, 3, 32, 32), 11, (100, 1000), 3, (8, 8)),
    "ResNet-50, 224": Case(resnet50, (1, 3, 224, 224), 5, (100,), 2.5, (4,)),
    "ViT-B/16, 224": Case(vit_b_16, (1, 3, 224, 224), 5, (100,), 3.5, (5.5,)),
}


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore", TargetMissed)
    chosen = names or list(CASES)
    rows: list[tuple[str, ...]] = [("network, compression", "plain ms", *_COLUMNS)]
    memory: list[tuple[str, ...]] = [("network", "plain MB", "effective masks", "whole target")]
    for name in chosen:
        for number, compression in enumerate(CASES[name].compressions):
            rows.append(_row(name, compression, number))
        memory.append(_memory_row(name))
    table("Ratios to one forward and backward of batch 1 (wanted, at most)", rows)
    table("Peak memory, ratios to the plain pass (at most 3 wanted)", memory)


_COLUMNS = ("effective masks", "whole target", "with tracing", "bisection", "read", "parted")


@dataclass(frozen=True)
class _Bench:
    """A network, its random scores, and what is timed."""

    model: nn.Module
    size: tuple[int, ...]
    scores: dict[str, Tensor]
    total: int

    @classmethod
    def of(cls, case: Case) -> "_Bench":
        torch.manual_seed(0)
        model = case.build().eval()
        dense = Masks.dense(model)
        scores = {name: torch.rand(mask.shape) for name, mask in dense.items()}
        return cls(model, case.size, scores, dense.total)

    def plain(self) -> None:
        output = self.model(torch.ones(self.size)).sum()
        torch.autograd.grad(output, list(self.model.parameters()))

    def connectivity(self) -> Connectivity:
        return Connectivity(self.model, self.size)

    def target(self, connectivity: Connectivity, wanted: int) -> Found:
        return first_enough(connectivity, Ranking(self.scores), wanted)

    def bisection(self, connectivity: Connectivity, wanted: int) -> int:
        ranking, low, high = Ranking(self.scores), wanted - 1, self.total
        while high - low > 1:
            middle = (low + high) // 2
            if connectivity.effective(ranking.keep(middle)).kept >= wanted:
                high = middle
            else:
                low = middle
        return high

    def read(self) -> None:
        for weight in self.model.parameters():
            weight.detach().sum()


def _row(name: str, compression: int, number: int) -> tuple[str, ...]:
    case = CASES[name]
    bench, wanted = _Bench.of(case), 0
    connectivity = bench.connectivity()
    wanted = math.ceil(bench.total / compression)
    found = bench.target(connectivity, wanted)
    seconds = by_turns(
        {
            "plain": bench.plain,
            "masks": lambda: connectivity.effective(found.masks),
            "target": lambda: bench.target(connectivity, wanted),
            "traced": lambda: bench.target(bench.connectivity(), wanted),
            "read": bench.read,
        },
        case.turns,
    )
    slow = by_turns(
        {"plain": bench.plain, "bisection": lambda: bench.bisection(connectivity, wanted)}, 1
    )
    least = bench.bisection(connectivity, wanted)
    assert found.masks.kept == least, (found.masks.kept, least)
    unit = seconds["plain"]
    return (
        f"{name}, {compression}x",
        f"{1e3 * unit:.2f}",
        f"{seconds['masks'] / unit:.2f} ({case.masks_wanted:g})",
        f"{seconds['target'] / unit:.2f} ({case.targets_wanted[number]:g})",
        f"{seconds['traced'] / unit:.2f}",
        f"{slow['bisection'] / unit:.1f}",
        f"{seconds['read'] / unit:.3f}",
        "yes" if _parted(bench, connectivity, wanted, least) else "no",
    )


def _parted(bench: _Bench, connectivity: Connectivity, wanted: int, least: int) -> bool:
    """Say whether channels alone would have stopped at another count."""
    by_channel = connectivity.bounds(bench.scores)
    values = torch.cat([value.flatten() for value in by_channel.values()])
    threshold = values.topk(wanted).values[-1]
    return least != sum(int((score >= threshold).sum()) for score in bench.scores.values())


def _memory_row(name: str) -> tuple[str, ...]:
    peaks = [_in_own_process(name, what) for what in ("plain", "masks", "target")]
    plain, *others = peaks
    return (name, f"{plain / 2**20:.0f}", *(f"{peak / plain:.2f}" for peak in others))


def _in_own_process(name: str, what: str) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(partial(_peak, name, what))


def _peak(name: str, what: str) -> float:
    """Return by how many bytes the resident memory rises at most."""
    warnings.simplefilter("ignore", TargetMissed)
    bench = _Bench.of(CASES[name])
    small = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 1))
    torch.autograd.grad(small(torch.ones(1, 1, 4, 4)).sum(), list(small.parameters()))
    connectivity = bench.connectivity()
    wanted = math.ceil(bench.total / 100)
    masks = Ranking(bench.scores).keep(wanted)
    runs: Mapping[str, Callable[[], object]] = {
        "plain": bench.plain,
        "masks": lambda: connectivity.effective(masks),
        "target": lambda: bench.target(connectivity, wanted),
    }
    return _rise(runs[what])


def peak_of(module: str, maker: str) -> float:
    """Return by how many bytes memory rises while the function runs that ``maker`` makes.

    In a process of its own, so that no memory is at hand that was used before.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_of, (module, maker))


def _peak_of(module: str, maker: str) -> float:
    return _rise(getattr(import_module(module), maker)())


def _rise(run: Callable[[], object]) -> float:
    # Linux: forget the peak so far.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    main(sys.argv[1:])
