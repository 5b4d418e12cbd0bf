"""A round of SynFlow on torchvision's resnet18 at 32x32, and what each of its parts costs.

The unit is one forward and backward of batch 1 of the same network, all gradients included.
"""

import torch
from torchvision.models import resnet18

from benchmarks.clock import by_turns, table
from lit_prune import Masks, Probe, Ranking, prune
from lit_prune.criteria import SynFlow

SHAPE = (1, 3, 32, 32)
ROUNDS = 25


def main() -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    weights, image = list(model.parameters()), torch.randn(SHAPE)
    masks = Masks.dense(model)
    probe = Probe(model, masks, example=SHAPE)
    scores = SynFlow()(probe)
    half = Ranking(scores).keep(masks.total // 2)
    ranking = Ranking(scores, among=half)

    def masked() -> None:
        with probe.masked():
            pass

    seconds = by_turns(
        {
            "forward and backward": lambda: torch.autograd.grad(model(image).sum(), weights),
            "of scoring: lending the masked model": masked,
            "scoring": lambda: SynFlow()(probe),
            "selection of 10.6M of 11.2M, 4.7M tied": lambda: Ranking(scores).keep(10_600_000),
            "selection of 1M among 5.6M": lambda: ranking.keep(1_000_000),
            f"whole rounds, mean of {ROUNDS} down to 99%": lambda: prune(
                model, SynFlow(), "99%", rounds=ROUNDS, example=SHAPE
            ),
        },
        turns=9,
    )
    unit = seconds["forward and backward"]
    rows = [("", "ms", "ratio")]
    for name, value in seconds.items():
        value = value / ROUNDS if name.startswith("whole") else value
        rows.append((name, f"{1e3 * value:.1f}", f"{value / unit:.2f}"))
    table("A round of SynFlow on resnet18 at 32x32 (at most 3.5 wanted)", rows)


if __name__ == "__main__":
    main()
