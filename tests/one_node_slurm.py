"""A SLURM cluster of this machine alone, for as long as a test needs it."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("slurmctld", "slurmd")
SETTINGS = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=2
ReturnToService=2
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""


class Unavailable(Exception):
    """Why there is no cluster here."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster; ``environment`` leads SLURM's commands to it."""

    environment: Mapping[str, str]

    def run(self, *command: str | Path, **environment: str) -> str:
        """Run one of SLURM's commands and return what it says."""
        done = subprocess.run(
            command,
            env={**self.environment, **environment},
            cwd=environment.get("PWD"),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """Return what SLURM knows of one job or task of an array."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, seconds: float = 300) -> dict[str, str]:
        """Wait until ``job`` ended, and return what SLURM knows of it."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        until(lambda: self.job(job)["JobState"] in ended, seconds)
        return self.job(job)

    def clear(self) -> None:
        """Cancel all jobs and wait for their processes to end."""
        self.run("scancel", "--user", getpass.getuser())
        until(lambda: not self.run("squeue", "--noheader"), 60)


def until(is_so: Callable[[], bool], seconds: float) -> None:
    """Wait for ``is_so``."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.1)


@contextmanager
def one_node() -> Iterator[Cluster]:
    """Start a cluster; stop it in the end.

    Raises:
        Unavailable: SLURM is not installed, or does not start here.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for daemon in DAEMONS:
        if shutil.which(daemon, path=path) is None:
            raise Unavailable(f"{daemon} is not installed")
    # Sockets lie in the folder, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        environment = _environment(path, _configured(folder))
        for daemon in DAEMONS:
            stack.enter_context(_running(daemon, folder, environment))
        cluster = Cluster(environment)
        _wait_for_the_node(cluster, folder)
        try:
            yield cluster
        finally:
            cluster.clear()


def _environment(path: str, config: Path) -> dict[str, str]:
    # A session inside of a job must not take itself for a part of it.
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    return {**outside, "PATH": path, "SLURM_CONF": str(config)}


def _configured(folder: Path) -> Path:
    for room in ("state", "spool"):
        (folder / room).mkdir()
    controller, node = _free_ports()
    config = folder / "slurm.conf"
    user, host = getpass.getuser(), socket.gethostname().split(".")[0]
    config.write_text(
        SETTINGS.format(controller=controller, node=node, user=user, host=host, folder=folder)
    )
    return config


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@contextmanager
def _running(daemon: str, folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    with (folder / f"{daemon}.log").open("w") as log:
        process = subprocess.Popen(
            [str(shutil.which(daemon, path=environment["PATH"])), "-D"],
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_the_node(cluster: Cluster, folder: Path) -> None:
    try:
        until(lambda: _state(cluster) == "idle", 30)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        last = [(folder / f"{daemon}.log").read_text().strip()[-300:] for daemon in DAEMONS]
        raise Unavailable(f"SLURM does not start here: {' / '.join(last)}") from error


def _state(cluster: Cluster) -> str:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.stdout.strip()
