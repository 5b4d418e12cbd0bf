"""Who starts the processes of a run, and what a run does when its job's time is nearly over."""

import os
import signal
import threading
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from lit_prune import MaskManager
from lit_prune.cli import main, make_trainer
from lit_prune.criteria import Random
from lit_prune.errors import LitPruneError
from lit_prune.processes import in_slurm, queued_again, require_all
from lit_prune.run import RunFolder

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.max_epochs", "2"]
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0"}
JOB = {"SLURM_JOB_ID": "9"}
TASK = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}


def step(tasks: int) -> dict[str, str]:
    """Variables of a task that srun started."""
    number = str(tasks)
    return {
        **JOB,
        "SLURM_STEP_NUM_TASKS": number,
        "SLURM_NTASKS": number,
        "SLURM_NTASKS_PER_NODE": number,
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }


@pytest.fixture
def place(monkeypatch):
    """Set the variables of a place, and no others of launchers."""
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, type(None)),
        ({**step(2), **TORCHRUN}, type(None)),
        ({**JOB, "SLURM_NTASKS": "2"}, LightningEnvironment),
        ({**JOB, "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}, LightningEnvironment),
        (step(1), LightningEnvironment),
        ({**step(2), "SLURM_PTY_PORT": "4000"}, LightningEnvironment),
        (step(2), SLURMEnvironment),
        ({**step(2), "SLURM_JOB_NAME": "interactive"}, SLURMEnvironment),
    ],
    ids=["plain", "torchrun", "salloc", "batch", "one-task", "terminal", "srun", "srun-in-salloc"],
)
def test_srun_starts_the_processes_only_where_it_started_several(variables, kind, place):
    place(**variables)
    assert type(in_slurm()) is kind


def test_lightning_neither_saves_in_mid_epoch_nor_queues_the_job_itself(place):
    place(**step(2))
    assert not in_slurm().auto_requeue


def trainer(devices: int = 1, nodes: int = 1) -> pl.Trainer:
    return pl.Trainer(
        devices=devices, num_nodes=nodes, accelerator="cpu", logger=False, enable_progress_bar=False
    )


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({}, 1),
        ({}, 2),
        (JOB, 2),
        (step(1), 1),
        (step(1), 2),
        (step(2), 2),
        ({**TORCHRUN, "WORLD_SIZE": "2"}, 2),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 2),
        ({**step(1), **TORCHRUN, "WORLD_SIZE": "2"}, 2),
    ],
)
def test_as_many_processes_as_devices_are_right(variables, devices, place):
    built = trainer(devices)
    place(**variables)
    require_all(built)


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [(step(2), "srun"), ({**TORCHRUN, "WORLD_SIZE": "2"}, "torchrun")],
)
@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (3, 1), (2, 2)])
def test_another_number_of_processes_is_named(variables, launcher, devices, nodes, place):
    built = trainer(devices, nodes)
    place(**variables)
    with pytest.raises(LitPruneError, match=f"{launcher} started 2 processes") as error:
        require_all(built)
    assert f"trainer.devices={devices}" in str(error.value)
    assert f"trainer.num_nodes={nodes}" in str(error.value)


@pytest.mark.parametrize("own", [None, SLURMEnvironment])
def test_the_trainer_of_a_run_goes_by_it_unless_the_config_names_another(own, place, tmp_path):
    place(**step(1))
    settings = {"devices": 2, "strategy": "ddp", "accelerator": "cpu", "logger": False}
    built = make_trainer(
        {**settings, "plugins": own and own()}, MaskManager(Random(), "2x"), RunFolder(tmp_path)
    )
    assert type(built.strategy.cluster_environment) is (own or LightningEnvironment)


def test_two_processes_do_not_train_one_device_each_in_one_folder(place, tmp_path, capsys):
    place(**step(2))
    assert main([*QUICKSTART, "--run_dir", str(tmp_path / "run")]) == 2
    assert "srun started 2 processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def asked(tmp_path, place) -> Path:
    """What ``scontrol`` was asked for; a stand-in notes it."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    place(PATH=f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "asked").touch()
    return tmp_path / "asked"


def tell(process: int) -> None:
    os.kill(process, signal.SIGUSR1)


@pytest.mark.parametrize(("variables", "name"), [(JOB, "9"), ({**JOB, **TASK}, "9_2")])
def test_usr1_queues_the_job_again(variables, name, asked, place):
    place(**variables)
    with queued_again():
        tell(os.getpid())
    assert asked.read_text() == f"requeue {name}\n"
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_other_ranks_and_workers_leave_it_to_the_first(asked, place, monkeypatch):
    place(**JOB)
    with queued_again():
        if (worker := os.fork()) == 0:
            tell(os.getpid())
            os._exit(0)
        assert os.waitpid(worker, 0)[1] == 0, "and the signal ends none of them"
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        tell(os.getpid())
    assert asked.read_text() == ""


def test_who_heeds_the_signal_already_keeps_it(place):
    place(**JOB)
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        with queued_again():
            tell(os.getpid())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [1]


def test_outside_of_a_job_and_of_the_main_thread_no_signal_is_heeded(place):
    def heed() -> None:
        with queued_again():
            found.append(signal.getsignal(signal.SIGUSR1))

    found: list[object] = []
    heed()
    place(**JOB)
    thread = threading.Thread(target=heed)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL] * 2


class Signal(pl.Callback):
    """Sends this process a signal in the middle of its second epoch."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 5):
            os.kill(os.getpid(), self.number)


def signalled(folder: Path, number: int, monkeypatch) -> int:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    callback = f"{Path(__file__).stem}.Signal"
    own = ["--trainer.callbacks+", callback, "--trainer.callbacks.number", str(int(number))]
    return main([*QUICKSTART, "--run_dir", str(folder), *own])


def test_a_run_that_is_queued_again_saves_nothing_in_mid_epoch(asked, place, tmp_path, monkeypatch):
    place(**step(1))
    assert signalled(tmp_path / "run", signal.SIGUSR1, monkeypatch) == 0
    assert asked.read_text() == "requeue 9\n"
    assert not list((tmp_path / "run").glob("**/*hpc*"))


def test_a_run_ended_by_sigterm_has_its_code_and_keeps_its_folder(tmp_path, monkeypatch, place):
    assert signalled(tmp_path / "run", signal.SIGTERM, monkeypatch) == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "run" / "summary.json").exists()
