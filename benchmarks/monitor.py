"""What SparsityMonitor costs: LeNet-300-100 on data of MNIST's shape, with and without it.

Seconds of the CPU, since a machine has other things to do. A training of EPOCHS epochs and one of
a single epoch are run by turns; their difference is the cost of an epoch, and what is left is
fixed: the graph, the first pictures, the imports. So 20 epochs are known without running them all.
"""

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.clock import table
from benchmarks.training import Noise, optimizer
from lit_prune import LitClassifier, MaskManager
from lit_prune.backbones import LeNet300100
from lit_prune.callbacks import SparsityMonitor
from lit_prune.cli import make_trainer, quiet
from lit_prune.criteria import SynFlow
from lit_prune.headline import headline
from lit_prune.run import RunFolder

TURNS, EPOCHS = 2, 4


def train(data: Noise, epochs: int, is_watched: bool) -> float:
    """Train as train.py does; return the seconds of the CPU."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_epochs": epochs, "enable_progress_bar": False, "accelerator": "cpu"}
        manager = MaskManager(SynFlow(), "100x")
        monitor = SparsityMonitor(headline({})) if is_watched else None
        trainer = make_trainer(settings, manager, RunFolder(Path(folder)), monitor)
        trainer.fit(LitClassifier(LeNet300100(), optimizer), datamodule=data)
    return time.process_time() - start


def main() -> None:
    """Print the ratio for 20 epochs."""
    quiet()
    torch.set_num_threads(1)
    data = Noise(val_fraction=0)
    data.setup("fit")
    # The first training pays for imports; the monitor's own are paid by the first one watched.
    train(data, 1, is_watched=False)
    first = train(data, 1, is_watched=True)
    seconds: dict[tuple[int, bool], list[float]] = {}
    for _ in range(TURNS):
        for epochs in (1, EPOCHS):
            for is_watched in (False, True):
                spent = train(data, epochs, is_watched)
                seconds.setdefault((epochs, is_watched), []).append(spent)
    best = {key: min(times) for key, times in seconds.items()}
    rows = [("", "fixed s", "s an epoch", "20 epochs", "ratio")]
    imports = max(0.0, first - best[1, True])
    whole = {}
    for is_watched in (False, True):
        epoch = (best[EPOCHS, is_watched] - best[1, is_watched]) / (EPOCHS - 1)
        fixed = best[1, is_watched] - epoch + (imports if is_watched else 0.0)
        whole[is_watched] = fixed + 20 * epoch
        name = "with SparsityMonitor" if is_watched else "without"
        ratio = whole[is_watched] / whole[False]
        numbers = (f"{fixed:.3f}", f"{epoch:.3f}", f"{whole[is_watched]:.3f}", f"{ratio:.3f}")
        rows.append((name, *numbers))
    table("20 epochs of LeNet-300-100, CPU seconds (a ratio of at most 1.05 wanted)", rows)


if __name__ == "__main__":
    main()
