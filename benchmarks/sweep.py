"""24 trials of about two seconds on two jobs, against two processes that run them in a bare loop.

The bare loop imports beforehand and runs trial after trial in the same process, so it has no
start-up, no claims, no forks. Both use one thread a process.
"""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch
import yaml

from benchmarks.clock import table
from lit_prune.cli import main as train
from lit_prune.sweep.description import Description
from lit_prune.sweep.ledger import Attempt
from lit_prune.sweep.trials import trials_of

TRIALS, JOBS = 24, 2
EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
SWEEP = {
    "config": "configs/quickstart.yaml",
    "set": {"trainer.max_epochs": EPOCHS},
    "grid": {"pruning.target": ["10x", "100x"], "seed_everything": list(range(TRIALS // 2))},
}


def bare_loop(file: Path, folder: Path) -> float:
    """Return the seconds that the trials take in ``JOBS`` processes that have all imported."""
    trials = trials_of(Description.read(file))
    fork = multiprocessing.get_context("fork")

    def run(of: list[tuple[str, ...]], ready: "multiprocessing.synchronize.Barrier") -> None:
        torch.set_num_threads(1)
        ready.wait()
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            for index, args in enumerate(of):
                train([*args, "--run_dir", f"{folder}/{os.getpid()}-{index}"])

    ready = fork.Barrier(JOBS + 1)
    shares = [[trial.args for trial in trials[job::JOBS]] for job in range(JOBS)]
    processes = [fork.Process(target=run, args=(share, ready)) for share in shares]
    for process in processes:
        process.start()
    ready.wait()
    start = time.time()
    for process in processes:
        process.join()
    return time.time() - start


def swept(file: Path, folder: Path) -> tuple[float, list[Attempt], float]:
    """Return when the command began, what it noted of the trials, and when it ended."""
    start = time.time()
    command = [sys.executable, "-m", "lit_prune", "sweep", str(file), "--dir", str(folder)]
    subprocess.run([*command, "--jobs", str(JOBS)], check=True, stdout=subprocess.DEVNULL)
    end = time.time()
    notes = (folder / ".sweep" / "attempts").iterdir()
    return start, [Attempt(**json.loads(note.read_text())) for note in notes], end


def cpu() -> float:
    """Return the CPU seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "bench.yaml"
        file.write_text(yaml.safe_dump(SWEEP))
        ideal = bare_loop(file, Path(place) / "bare")
        bare = cpu()
        start, attempts, end = swept(file, Path(place) / "swept")
    first = min(a.started for a in attempts)
    last = max(a.started + (a.seconds or 0) for a in attempts)
    busy = sum(a.seconds or 0 for a in attempts)
    rows = [
        ("", "seconds", "relative"),
        *(
            (name, f"{value:.1f}", f"{value / ideal:.2f}")
            for name, value in {
                "bare loop, the ideal": ideal,
                "sweep, first trial to last": last - first,
                "  its trials, by job": busy / JOBS,
                "  between trials, and idle at the end": last - first - busy / JOBS,
                "start-up: the command, then a worker": first - start,
                "after the last trial": end - last,
                "sweep, whole": end - start,
            }.items()
        ),
        ("a trial in the bare loop", f"{ideal * JOBS / TRIALS:.2f}", ""),
        ("CPU seconds of the bare loop", f"{bare:.1f}", "1.00"),
        ("CPU seconds of the sweep, whole", f"{cpu() - bare:.1f}", f"{(cpu() - bare) / bare:.2f}"),
    ]
    title = f"{TRIALS} trials, {JOBS} jobs, {os.cpu_count()} cores"
    table(f"{title} (first trial to last: below 1.30 wanted)", rows)


if __name__ == "__main__":
    main()
