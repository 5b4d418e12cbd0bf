"""The report of 400 runs: 10 methods at 10 targets with 4 seeds, in folders as of train.py.

The command runs as a user starts it, so that starting Python and importing PyTorch count.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import yaml

from benchmarks.clock import table
from lit_prune.cli import parsed
from lit_prune.report import read_runs, tasks_of
from lit_prune.report.page import page

METHODS = [
    *("SNIP", "GraSP", "SynFlow", "Magnitude", "Random", "LAMP", "Taylor", "Wanda", "FORCE", "PHEW")
]
DIRECT = ("10x", "31.6x", "100x", "316x", "1000x")
TARGETS = [*DIRECT, *(f"{target} effective" for target in DIRECT)]
SEEDS = range(4)
TOTAL, LAYERS = 1_000_000, 20
CONFIG = ["--config", "configs/quickstart.yaml", "--pruning.target", "10x"]


def write(folder: Path) -> int:
    """Write the run folders; return how many there are."""
    settings = parsed(CONFIG).settings()
    runs = list(product(METHODS, TARGETS, SEEDS))
    for method, target, seed in runs:
        settings["seed_everything"] = seed
        settings["pruning"]["criterion"] = {"class_path": f"lit_prune.criteria.{method}"}
        settings["pruning"]["target"] = target
        run = folder / f"criterion={method},target={target.replace(' ', '_')},seed={seed}"
        run.mkdir()
        (run / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        write_found(run, TOTAL / float(target.partition("x")[0]), seed)
    return len(runs)


def write_found(run: Path, kept: float, seed: int) -> None:
    """Write what a run found."""
    share = kept / TOTAL * (1 - seed / 100)
    found = {"test_accuracy": 0.9 * share**0.01, "epochs": 20, "seconds": 30.0 + seed}
    found |= {"total": TOTAL, "kept": round(kept), "effective_kept": round(share * TOTAL)}
    found |= {"flops": 2 * TOTAL, "effective_flops": round(2 * share * TOTAL)}
    (run / "summary.json").write_text(json.dumps(found))
    size = TOTAL // LAYERS
    layers = [
        f"layer{n}.weight,100x100,{size},9,0,{round(size * share)},0,0,0,0" for n in range(LAYERS)
    ]
    head = "name,shape,total,kept,sparsity,effective,dead_in,dead_out,flops,effective_flops"
    (run / "layers.csv").write_text("\n".join([head, *layers, ""]))
    (run / "levels.csv").write_text(f"level,epoch,kept,collapsed_layers\n0,20,{round(kept)},0\n")


def commanded(folder: Path) -> tuple[float, float]:
    """Return the seconds of the command, and those of the processor."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "lit_prune", "report", str(folder), "--out", f"{folder}/out"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        number = write(Path(place))
        seconds, processor = commanded(Path(place))
        start = time.perf_counter()
        runs = read_runs([place])
        read = time.perf_counter()
        tasks = tasks_of(runs)
        grouped = time.perf_counter()
        page(runs, tasks, "")
        drawn = time.perf_counter()
    rows = [
        ("", "seconds"),
        ("the command", f"{seconds:.1f}"),
        ("  on the processor", f"{processor:.1f}"),
        ("reading", f"{read - start:.1f}"),
        ("grouping", f"{grouped - read:.1f}"),
        ("page and plots", f"{drawn - grouped:.1f}"),
    ]
    table(f"report of {number} runs, {os.cpu_count()} cores (below 20 s wanted)", rows)


if __name__ == "__main__":
    main()
