"""Runs started by the scripts of launch/: their arguments, their processes, and a real queue."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from one_node_slurm import Cluster, Unavailable, one_node, until

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in {".sh", ".sbatch"})
NOTES, HELD = "LIT_PRUNE_TEST_NOTES", "LIT_PRUNE_TEST_HELD"
QUICKSTART = ("--config", "configs/quickstart.yaml", "--trainer.max_epochs", "3")
ON_CPUS = ("--trainer.accelerator", "cpu", "--trainer.strategy", "ddp")

README = (LAUNCH / "README.md").read_text()
README_BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

# Ways to start one run in two processes; a batch script's own python has to start the second.
BATCH = ("sbatch", "--ntasks=1", "--cpus-per-task=2", "python.sbatch")
ALLOCATED = ("salloc", "--ntasks-per-node=2", "srun", "python")
TERMINAL = ("salloc", "--ntasks=2", "python")
START_TWO = [BATCH, ALLOCATED, TERMINAL]

queue = [pytest.mark.slow, pytest.mark.timeout(600)]


class Hold(pl.Callback):
    """Notes every start, and stops the first one of the task HELD in the middle of an epoch."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        name = f"start-{os.environ['SLURM_ARRAY_TASK_ID']}-{_restarts()}"
        (Path(os.environ[NOTES]) / name).write_text(str(trainer.current_epoch))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        task, place = os.environ["SLURM_ARRAY_TASK_ID"], (trainer.current_epoch, batch_idx)
        if task == os.environ.get(HELD) and _restarts() == "0" and place == (1, 5):
            (Path(os.environ[NOTES]) / "held").touch()
            time.sleep(300)


def _restarts() -> str:
    return os.environ.get("SLURM_RESTART_COUNT", "0")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMP_", "NNODES"))}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def stand_in(folder: Path, name: str, script: str) -> Path:
    """Write a program that stands in for a real one."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_the_scripts(script):
    done = run("bash", "-n", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = run("shellcheck", script)
    assert done.returncode == 0, done.stdout


# torchrun.sh


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        ((), {}, "N is ''"),
        (("--config", "configs/quickstart.yaml"), {}, "'--config'"),
        (("0", *QUICKSTART), {}, "'0'"),
        (("two", *QUICKSTART), {}, "'two'"),
        (("2",), {}, "nothing to run"),
        (("2", *QUICKSTART), {"NNODES": "2"}, "RDZV_ENDPOINT=HOST:PORT"),
        (("2", *QUICKSTART), {"NNODES": "-1"}, "NNODES is '-1'"),
    ],
)
def test_torchrun_refuses_a_mistake_in_one_line(arguments, environment, named):
    done = run(LAUNCH / "torchrun.sh", *arguments, **environment)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def torchrun_call(folder: Path, *arguments: str, **environment: str) -> list[str]:
    """Return the threads of each process, then what ``torchrun.sh`` gives Python."""
    python = stand_in(folder, "python", 'printf "%s\\n" "$OMP_NUM_THREADS" "$@"')
    stand_in(folder, "nproc", "echo 9")
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **environment, "PYTHON": str(python)}
    done = run(LAUNCH / "torchrun.sh", *arguments, cwd=folder, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_torchrun_hands_on_what_it_was_given(tmp_path):
    threads, *call = torchrun_call(tmp_path, "4", "--config", "a b.yaml", "--trainer.devices", "3")
    assert threads == "2", "nine cores for four processes"
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    assert call[:5] == start
    assert Path(call[5]).resolve() == ROOT / "train.py"
    assert call[6:10] == ["--trainer.devices", "4", "--trainer.num_nodes", "1"]
    assert call[10:] == ["--config", "a b.yaml", "--trainer.devices", "3"]


def test_torchrun_meets_other_nodes(tmp_path):
    _, *call = torchrun_call(tmp_path, "8", "--x", NNODES="2", RDZV_ENDPOINT="node1:29500")
    assert "--standalone" not in call
    assert call[call.index("--nnodes") + 1] == "2"
    assert call[call.index("--rdzv-endpoint") + 1] == "node1:29500"
    assert call[call.index("--trainer.num_nodes") + 1] == "2"


@pytest.mark.parametrize(
    ("processes", "given", "threads"), [("20", {}, "1"), ("2", {"OMP_NUM_THREADS": "7"}, "7")]
)
def test_torchrun_gives_each_process_a_thread_and_keeps_the_users_number(
    processes, given, threads, tmp_path
):
    assert torchrun_call(tmp_path, processes, "--x", **given)[0] == threads


# slurm.sbatch, without SLURM

TASK = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}


def batch(folder: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the batch script in a repository's root; ``srun`` only says what it was asked for."""
    stand_in(folder, "srun", 'printf "%s\\n" "$OMP_NUM_THREADS" "$@"; exit 3')
    (folder / "train.py").touch()
    path = f"{folder}:{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHON": "python", **environment}
    return run("bash", LAUNCH / "slurm.sbatch", *arguments, cwd=folder, **environment)


def srun_call(folder: Path, *arguments: str | Path, **environment: str) -> list[str]:
    done = batch(folder, *arguments, **environment)
    assert done.returncode == 3, "the run's own code"
    assert not done.stderr
    _, *call = done.stdout.splitlines()
    assert call[:3] == ["--kill-on-bad-exit=1", "python", "train.py"]
    return call[3:]


def test_a_job_of_its_own_runs_as_it_was_asked(tmp_path):
    assert srun_call(tmp_path, "--config", "a b.yaml", SLURM_JOB_ID="9") == ["--config", "a b.yaml"]


def test_a_task_of_an_array_runs_the_seed_of_its_number(tmp_path):
    call = srun_call(tmp_path, "--config", "a.yaml", "--seed_everything", "5", **TASK)
    assert call == ["--config", "a.yaml", "--seed_everything", "5", "--seed_everything", "2"]


def test_a_task_of_an_array_runs_its_line_of_a_file(tmp_path):
    runs = tmp_path / "runs.txt"
    runs.write_text("--no\n--run_dir 'my runs/1'  --note \"it's $HOME *\"\n--no\n")
    call = srun_call(tmp_path, runs, "--config", "a.yaml", **TASK)
    own = ["--run_dir", "my runs/1", "--note", "it's $HOME *"]
    assert call == ["--config", "a.yaml", *own], "quotes part words, and nothing is expanded"


def test_several_tasks_are_as_many_devices(tmp_path):
    places = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "2"}
    call = srun_call(tmp_path, "--config", "a.yaml", SLURM_JOB_ID="9", **places)
    devices = ["--trainer.devices", "4", "--trainer.num_nodes", "2"]
    assert call == [*devices, "--config", "a.yaml"]
    alone = srun_call(tmp_path, "--config", "a.yaml", SLURM_JOB_ID="9", SLURM_NTASKS="1")
    assert alone == ["--config", "a.yaml"], "the same run as by python alone, so the same folder"


def test_each_process_has_the_threads_of_its_task(tmp_path):
    done = batch(tmp_path, "--x", SLURM_JOB_ID="9", SLURM_CPUS_PER_TASK="6")
    assert done.stdout.splitlines()[0] == "6"


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (("--config", "a.yaml"), {}, "sbatch launch/slurm.sbatch"),
        (("runs.txt",), {"SLURM_JOB_ID": "9"}, "--array"),
        (("none.txt",), TASK, "cannot read none.txt"),
        (("runs.txt",), {**TASK, "SLURM_ARRAY_TASK_ID": "4"}, "runs.txt has nothing in line 4"),
        (("runs.txt",), {**TASK, "SLURM_ARRAY_TASK_ID": "2"}, "runs.txt has nothing in line 2"),
    ],
)
def test_a_batch_script_refuses_a_mistake_in_one_line(arguments, environment, named, tmp_path):
    (tmp_path / "runs.txt").write_text("--a 1\n  \n--b 2\n")
    done = batch(tmp_path, *arguments, **environment)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout, "nothing was run"


def test_a_line_with_an_open_quote_is_a_mistake(tmp_path):
    (tmp_path / "runs.txt").write_text("--a 1\n--b 'x\n")
    done = batch(tmp_path, "runs.txt", **TASK)
    assert done.returncode == 2
    assert "line 2 of runs.txt" in done.stderr
    assert not done.stdout


def test_a_batch_script_is_submitted_from_the_root(tmp_path):
    done = run("bash", LAUNCH / "slurm.sbatch", "--x", cwd=tmp_path, SLURM_JOB_ID="9")
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize(("job", "name"), [(TASK, "9_2"), ({"SLURM_JOB_ID": "9"}, "9")])
def test_usr1_queues_this_task_again_and_leaves_the_run_alone(job, name, tmp_path):
    stand_in(tmp_path, "scontrol", 'echo "$@" >> asked')
    stand_in(tmp_path, "srun", "touch started; until [[ -e end ]]; do sleep 0.05; done; exit 4")
    (tmp_path / "train.py").touch()
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **job}
    script = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), "--x"],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    try:
        until(lambda: (tmp_path / "started").exists(), 60)
        for times in (1, 2):
            script.send_signal(signal.SIGUSR1)
            asked = f"requeue {name}\n" * times
            until(lambda asked=asked: _text(tmp_path / "asked") == asked, 60)
        assert script.poll() is None, "it waits for the run"
        (tmp_path / "end").touch()
        assert script.wait(timeout=60) == 4
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# Several processes, and a real queue


def test_the_readme_shows_commands():
    text = "".join(README_BLOCKS)
    shown = ("python train.py", "launch/torchrun.sh", "srun", "launch/slurm.sbatch", "--array")
    assert all(word in text for word in shown)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        with one_node() as cluster:
            yield cluster
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory) -> Path:
    """A run in two processes, started by ``torchrun.sh``."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    done = run(LAUNCH / "torchrun.sh", "2", *QUICKSTART, *ON_CPUS, "--run_dir", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("test accuracy") == 1, "only one process prints"
    return folder


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository's root whose ``runs`` are the test's own."""
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("train.py", "configs", "launch"):
        (root / name).symlink_to(ROOT / name)
    return root


def submit(cluster: Cluster, checkout: Path, *command: str | Path, **environment: str) -> str:
    notes = checkout / "notes"
    notes.mkdir(exist_ok=True)
    environment = {**at(checkout), NOTES: str(notes), **environment}
    return cluster.run("sbatch", "--parsable", *command, **environment)


def at(checkout: Path) -> dict[str, str]:
    """The environment of a user who works in a checkout."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PWD": str(checkout), "PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def said(checkout: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(checkout.glob("slurm-*.out")))


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def result(folder: Path) -> dict[str, object]:
    """What a run found, to the bit: masks, weights, states of the optimizer, metrics."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (states,) = checkpoint["optimizer_states"]
    found, unlike = summary(folder), ("seconds", "command", "git_commit")
    return {
        "masks": (folder / "masks.safetensors").read_bytes(),
        "weights": {k: v.numpy().tobytes() for k, v in checkpoint["state_dict"].items()},
        "momenta": [s["momentum_buffer"].numpy().tobytes() for s in states["state"].values()],
        "rates": checkpoint["lr_schedulers"],
        "place": (checkpoint["epoch"], checkpoint["global_step"]),
        "metrics": {k: v for k, v in found.items() if k not in unlike},
    }


class TestQueue:
    pytestmark = queue

    def test_each_task_of_an_array_is_a_run_in_a_folder_of_its_own(self, cluster, checkout):
        job = submit(cluster, checkout, "--array=3-4", "launch/slurm.sbatch", *QUICKSTART)
        ends = [cluster.wait(f"{job}_{task}") for task in (3, 4)]
        assert [end["JobState"] for end in ends] == ["COMPLETED"] * 2, said(checkout)
        folders = list((checkout / "runs").iterdir())
        assert sorted(summary(folder)["seed"] for folder in folders) == [3, 4]
        assert said(checkout).count("test accuracy") == 2

    def test_a_mistake_fails_the_job_with_code_2(self, cluster, checkout):
        job = submit(cluster, checkout, "launch/slurm.sbatch", *QUICKSTART, "--nothing", "1")
        end = cluster.wait(job)
        assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "2:0", "0")
        assert "--nothing" in said(checkout)

    @pytest.mark.parametrize(
        "reached", [["--batch"], [], ["--full"]], ids=["script", "run", "both"]
    )
    def test_a_run_queued_again_in_mid_epoch_ends_with_the_same_bits(
        self, reached, cluster, checkout
    ):
        # The last task has the number of the whole array, so it is the one to be signalled.
        (checkout / "runs.txt").write_text("--run_dir calm\n--run_dir disturbed\n")
        job = submit(
            *(cluster, checkout, "--array=1-2", "launch/slurm.sbatch", "runs.txt", *QUICKSTART),
            *("--trainer.callbacks+", "test_launch.Hold"),
            **{HELD: "2"},
        )
        until(lambda: (checkout / "notes" / "held").exists(), 300)
        cluster.wait(f"{job}_1")
        cluster.run("scancel", *reached, "--signal=USR1", f"{job}_2")
        until(lambda: cluster.job(f"{job}_2")["Restarts"] == "1", 120)

        end = cluster.wait(f"{job}_2")
        assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), said(checkout)
        assert cluster.job(f"{job}_1")["Restarts"] == "0", "the other task was left alone"
        starts = {path.name: path.read_text() for path in (checkout / "notes").glob("start-*")}
        assert starts == {"start-1-0": "0", "start-2-0": "0", "start-2-1": "1"}
        assert result(checkout / "disturbed") == result(checkout / "calm")
        assert not list(checkout.glob("disturbed/*hpc*")), "no checkpoint in mid-epoch"

    @pytest.mark.parametrize("block", README_BLOCKS)
    def test_the_commands_of_the_readme_run(self, block, cluster, checkout):
        printed = cluster.run("bash", "-euc", block, **at(checkout), SBATCH_WAIT="1")
        folders = list((checkout / "runs").iterdir())
        assert (printed + said(checkout)).count("test accuracy") >= len(folders) > 0
        assert all((folder / "summary.json").exists() for folder in folders)

    def test_srun_starts_the_processes_of_one_run(self, cluster, checkout, by_torchrun):
        job = submit(
            *(cluster, checkout, "--ntasks-per-node=2", "launch/slurm.sbatch", *QUICKSTART),
            *(*ON_CPUS, "--run_dir", "srun"),
        )
        assert cluster.wait(job)["JobState"] == "COMPLETED", said(checkout)
        assert said(checkout).count("test accuracy") == 1, "only one process prints"
        assert not (checkout / "runs").exists()

        assert result(checkout / "srun") == result(by_torchrun)

    @pytest.mark.parametrize("start", START_TWO)
    def test_lightning_takes_no_process_for_another(self, start, cluster, checkout, by_torchrun):
        """It goes by the job's name and number of tasks, which say little of who starts what."""
        words = ["train.py", *QUICKSTART, *ON_CPUS, "--trainer.devices", "2", "--run_dir", "run"]
        (checkout / "python.sbatch").write_text('#!/bin/bash\npython "$@"\n')
        cluster.run(*start, *words, **at(checkout), SBATCH_WAIT="1")
        assert said(checkout).count("test accuracy") <= 1
        assert result(checkout / "run") == result(by_torchrun)


@pytest.mark.slow
def test_torchrun_trains_one_run_in_two_processes(by_torchrun):
    assert summary(by_torchrun)["effective_kept"] == 2662
    checkpoint = torch.load(by_torchrun / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3 * 11, "each process takes half of the 22 batches"
