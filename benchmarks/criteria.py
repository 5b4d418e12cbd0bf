"""What scoring by each criterion costs, and the global ranking of 25M scores.

The unit is one forward and backward of the same batch by the same network, all gradients included;
for criteria without data it is that of a batch of 1. One round of scoring, on ResNet-20 and VGG-16
at 32x32 and a batch of 128, with rounds that keep 1 %. "reads" counts sums over all parameters, the
floor; "sort" is one sort of all of them, layer by layer. Whole prunes go to 99 %.

    python -m benchmarks.criteria [--csv FILE]        # FILE is what docs/methods.md shows
"""

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.clock import by_turns, table
from benchmarks.connectivity import peak_of
from lit_prune import Masks, Probe, Ranking, criteria, prune
from lit_prune.backbones import VGG16, ResNet20
from lit_prune.criteria import NPB, PHEW, SNIP, Criterion, NPBSynFlow
from lit_prune.shelf import members

CRITERIA = members(criteria.__name__, criteria.__path__, Criterion)
NETWORKS: dict[str, type[nn.Module]] = {"ResNet-20": ResNet20, "VGG-16": VGG16}
# Ratios to the unit; None is no wish.
WANTED = {"SNIP": 1.5, "GraSP": 5.0, "SynFlow": 1.5}
WITH_DATA = {"SNIP", "GraSP", "FORCE", "Taylor", "Wanda", "Shuffled", "Inverted"}
# Whole prunes instead of a round.
SLOW = {("PHEW", "VGG-16"): "60", ("NPB", "ResNet-20"): "120"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path)
    asked = parser.parse_args()
    rounds: list[tuple[str, ...]] = []
    wholes: list[tuple[str, ...]] = []
    for name, build in NETWORKS.items():
        rounds += _rounds(name, build)
        wholes += [_whole(name, PHEW()), _whole(name, NPB()), _whole(name, NPBSynFlow())]
    wholes.append(_whole("ResNet-20", NPB(solver="milp")))
    heads = ("network", "criterion", "ms", "ratio", "wanted", "reads", "sorts")
    table("One round of scoring (the ratio wanted is at most)", [heads, *rounds])
    table("Whole prunes, once", [("network", "criterion", "s to 99 %", "wanted"), *wholes])
    _ranking()
    if asked.csv:
        costs = [(network, name, ratio) for network, name, _, ratio, *_ in rounds]
        costs += [(n, c.partition("(")[0], f"{s} s") for n, c, s, _ in wholes if "milp" not in c]
        with asked.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("network", "criterion", "cost"), *costs]
            )


def _rounds(name: str, build: type[nn.Module]) -> list[tuple[str, ...]]:
    torch.manual_seed(0)
    model = build()
    weights = list(model.parameters())
    batch = (torch.randn(128, 3, 32, 32), torch.randint(10, (128,)))
    masks = Masks.dense(model)
    parameters = masks.parameters(model)
    probe = Probe(model, masks, [batch], example=(1, 3, 32, 32), keep=masks.total // 100)

    def unit(size: int) -> Callable[[], object]:
        images, labels = batch[0][:size], batch[1][:size]
        mode = model.train if size > 1 else model.eval

        def run() -> object:
            mode()
            loss = nn.functional.cross_entropy(model(images), labels)
            return torch.autograd.grad(loss, weights)

        return run

    def sort() -> None:
        for weight in parameters.values():
            weight.detach().double().flatten().sort()

    kinds = {n: c for n, c in CRITERIA.items() if n not in ("PHEW", "NPB", "NPBSynFlow")}
    made = {n: c(**_arguments(c)) for n, c in kinds.items()}
    scoring = {n: (lambda c=c: c(probe)) for n, c in made.items()}
    contestants: dict[str, Callable[[], object]] = {
        "unit": unit(128),
        "unit of 1": unit(1),
        "read": lambda: sum(float(w.detach().sum()) for w in parameters.values()),
        "sort": sort,
    }
    model.train()
    seconds = by_turns({**contestants, **scoring}, turns=5)
    rows: list[tuple[str, ...]] = []
    for criterion in made:
        base = seconds["unit" if criterion in WITH_DATA else "unit of 1"]
        taken = seconds[criterion]
        wanted = f"{WANTED[criterion]:g}" if criterion in WANTED else ""
        ratios = (taken / base, taken / seconds["read"], taken / seconds["sort"])
        ratio, reads, sorts = (f"{value:.2f}" for value in ratios)
        rows.append((name, criterion, f"{1e3 * taken:.1f}", ratio, wanted, reads, sorts))
    return rows


def _arguments(kind: type) -> dict[str, Criterion]:
    """Return what a criterion must be given: controls wrap another."""
    needed = [f for f in fields(kind) if f.default is f.default_factory is MISSING]
    return {field.name: SNIP() for field in needed}


def _whole(name: str, criterion: Criterion) -> tuple[str, ...]:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    start = time.perf_counter()
    prune(model, criterion, "99%", example=(1, 3, 32, 32))
    seconds = time.perf_counter() - start
    wanted = SLOW.get((type(criterion).__name__, name), "")
    solver = f"({criterion.solver})" if isinstance(criterion, NPB) else ""
    return (name, f"{type(criterion).__name__}{solver}", f"{seconds:.1f}", wanted)


def _ranking() -> None:
    """Rank 25M scores together, as many as ResNet-50 has, and look at time and memory."""
    scores = scores_25m()
    total = sum(score.numel() for score in scores.values())

    def sort() -> Tensor:
        return torch.cat([score.flatten() for score in scores.values()]).sort().values

    seconds = by_turns({"keep": lambda: Ranking(scores).keep(total // 100), "sort": sort}, 5)
    memory = peak_of("benchmarks.criteria", "ranked_25m") / (4 * total)
    rows = [
        ("", "measured", "wanted, at most"),
        ("ranking, s", f"{seconds['keep']:.3f}", "1.5"),
        ("a full sort, s", f"{seconds['sort']:.3f}", ""),
        ("peak memory / scores", f"{1 + memory:.2f}", "3"),
    ]
    table(f"Global ranking of {total:,} scores", rows)


def scores_25m() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {f"layer{i}": torch.randn(2_500, 1_000) for i in range(10)}


def ranked_25m() -> Callable[[], object]:
    scores = scores_25m()
    return lambda: Ranking(scores).keep(250_000)


if __name__ == "__main__":
    main()
