"""The workers of a sweep as jobs of submitit, on this machine or on a SLURM cluster."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_prune.errors import LitPruneError, did_you_mean, first_line

if TYPE_CHECKING:
    import submitit

__all__ = ["CLUSTERS", "Crew", "cores", "executor_of", "gpus", "threads_of"]

CLUSTERS = ("local", "slurm", "debug")
_LONG = 60 * 24 * 365  # minutes; submitit ends a local job after two by default


@dataclass
class Crew:
    """Jobs at numbered places; whoever leaves while there is work is replaced, within reason.

    Attributes:
        executor: submits jobs.
        worker: makes the worker of a place.
        size: how many places there are.
        is_free: whether no worker, of whatever command, is at a place.
        left: how many more jobs may be submitted.
    """

    executor: "submitit.AutoExecutor"
    worker: Callable[[int], Callable[[], int]]
    size: int
    is_free: Callable[[int], bool]
    left: int = field(init=False)
    jobs: "dict[int, submitit.Job[int]]" = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.left = 2 * self.size

    def fill(self, work: int) -> None:
        """Submit a job for every free place, but not more than there are trials to take."""
        busy = {place for place, job in self.jobs.items() if not job.done()}
        free = [p for p in range(self.size) if p not in busy and self.is_free(p)]
        wanted = free[: min(self.left, max(0, work - len(busy)))]
        if not wanted:
            return
        self.left -= len(wanted)
        with _deaf_to_interrupts(), _complaints(), self.executor.batch():
            for place in wanted:
                self.jobs[place] = self.executor.submit(self.worker(place))

    def earn(self, count: int) -> None:
        """Allow ``count`` more jobs, since as many trials have ended."""
        self.left += count

    def is_at_work(self) -> bool:
        """Return whether any job has not ended."""
        return any(not job.done() for job in self.jobs.values())

    def leave(self, seconds: float) -> None:
        """Wait until all jobs have ended by themselves, but not longer than ``seconds``."""
        end = time.monotonic() + seconds
        while self.is_at_work() and time.monotonic() < end:
            time.sleep(0.05)

    def stop(self) -> list[str]:
        """End the jobs of this machine; return the numbers of those on a cluster, which go on."""
        alive = [job for job in self.jobs.values() if not job.done()]
        if self.executor.cluster != "local":
            return [str(job.job_id) for job in alive]
        for _ in range(100):
            alive = [job for job in alive if not job.done()]
            for job in alive:
                # Its number is its process, which hands the signal on to the worker.
                os.kill(int(job.job_id), signal.SIGTERM)
            if not alive:
                break
            time.sleep(0.1)
        return []


@contextmanager
def _complaints() -> Iterator[None]:
    """Say in one line why jobs cannot be submitted."""
    try:
        yield
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise LitPruneError(f"jobs cannot be submitted: {first_line(error)}") from error


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: they are told what to do by this one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def executor_of(
    cluster: str, folder: Path, name: str, threads: int, slurm: Mapping[str, Any]
) -> "submitit.AutoExecutor":
    """Return what submits the jobs of a sweep.

    Args:
        cluster: one of :data:`CLUSTERS`.
        folder: where the jobs leave what they print.
        name: of the sweep.
        threads: cores of a job.
        slurm: submitit's parameters for SLURM, such as ``partition`` and ``time`` in minutes.

    Raises:
        LitPruneError: submitit or the cluster is missing, or a parameter is mistaken.
    """
    if find_spec("submitit") is None:
        raise LitPruneError("a sweep needs submitit: pip install 'lit_prune[sweep]'")
    import submitit

    logging.getLogger("submitit").setLevel(logging.ERROR)
    parameters = {"name": f"sweep-{name}", "cpus_per_task": threads, "timeout_min": _LONG}
    if cluster == "slurm":
        _require_parameters(slurm, submitit.SlurmExecutor, submitit.AutoExecutor)
        parameters.pop("timeout_min")
        parameters |= {f"slurm_{key}": value for key, value in slurm.items()}
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**parameters)
    except (RuntimeError, AssertionError, TypeError, ValueError, NameError) as error:
        raise LitPruneError(f"--cluster {cluster}: {first_line(error)}") from error
    return executor


def _require_parameters(slurm: Mapping[str, Any], *executors: Any) -> None:
    known = sorted({name for executor in executors for name in executor._valid_parameters()})
    for key, value in slurm.items():
        if key not in known:
            near = did_you_mean(key, known)
            raise LitPruneError(
                f"unknown parameter slurm.{key}={value}{near}; known: {', '.join(known)}"
            )
        if key in ("time", "timeout_min") and not isinstance(value, int):
            raise LitPruneError(f"slurm.{key}={value} is not a whole number of minutes")
        if key == "time" and value < 1:
            raise LitPruneError(f"slurm.{key}={value} is out of range: at least 1 minute")


def threads_of(cluster: str, jobs: int, slurm: Mapping[str, Any]) -> int:
    """Return how many threads a trial gets: the cores divided, or what the cluster is asked for.

    ``OMP_NUM_THREADS`` may ask for fewer.
    """
    if cluster == "slurm":
        return int(slurm.get("cpus_per_task") or 1)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores() // jobs)
    return min(share, int(asked)) if asked.isdecimal() and int(asked) else share


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def gpus() -> Sequence[str]:
    """Return the names of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in (visible or "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return names[:count] if names else [str(index) for index in range(count)]
