"""The processes of a run: who starts them, and how SLURM queues their job again."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from lit_prune.errors import LitPruneError

__all__ = ["in_slurm", "queued_again", "require_all"]


def in_slurm() -> ClusterEnvironment | None:
    """Say who starts the processes of a run inside a SLURM job; None outside, or under torchrun.

    It is ``srun`` only where it started several tasks. Lightning goes by the job's name and its
    number of tasks instead: it would train two devices in one process where a batch script calls
    python without ``srun``, and overlook ``srun`` in an allocation made by ``salloc``.
    """
    if "SLURM_JOB_ID" not in os.environ or TorchElasticEnvironment.detect():
        return None
    # Lightning's own way to queue a job again saves in the middle of an epoch, from where a run
    # does not go on to the same bits, and a test would load that checkpoint's weights.
    return SLURMEnvironment(auto_requeue=False) if _srun_tasks() > 1 else LightningEnvironment()


def _srun_tasks() -> int:
    # A shell in a terminal has the variables of the task that it is.
    in_terminal = "SLURM_PTY_PORT" in os.environ
    return 1 if in_terminal else int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def require_all(trainer: Trainer) -> None:
    """Check that as many processes were started as the trainer has devices.

    Lightning does not check it for one device, and all the processes would write one folder.

    Raises:
        LitPruneError: torchrun or srun started another number; both are named.
    """
    launcher = "torchrun" if TorchElasticEnvironment.detect() else "srun"
    started = int(os.environ["WORLD_SIZE"]) if launcher == "torchrun" else _srun_tasks()
    devices, nodes = trainer.num_devices, trainer.num_nodes
    if started not in (1, devices * nodes):
        raise LitPruneError(
            f"{launcher} started {started} processes, but trainer.devices={devices} on "
            f"trainer.num_nodes={nodes} take {devices * nodes}"
        )


@contextmanager
def queued_again() -> Iterator[None]:
    """Queue the SLURM job again when it is told by USR1 that its time is nearly over.

    The run itself goes on until SLURM ends it, and saves nothing more than at any epoch's end.
    Whoever heeds the signal already keeps it.
    """
    if not _is_ours(signal.SIGUSR1):
        yield
        return
    owner = os.getpid()

    def queue(signum: int, frame: FrameType | None) -> None:
        # Workers of a data loader are forks that have the handler too.
        if os.getpid() == owner and getattr(rank_zero_only, "rank", 0) == 0:
            print(f"USR1: job {_job()} is queued again", file=sys.stderr, flush=True)
            subprocess.run(["scontrol", "requeue", _job()], check=False)

    signal.signal(signal.SIGUSR1, queue)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def _is_ours(signum: signal.Signals) -> bool:
    return (
        "SLURM_JOB_ID" in os.environ
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signum) is signal.SIG_DFL
    )


def _job() -> str:
    # The last task of an array has the number of the whole array.
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    return os.environ["SLURM_JOB_ID"]
