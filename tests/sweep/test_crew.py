"""Jobs of submitit: started where a place is free, replaced within reason, stopped for good."""

import os
import shlex
import signal
import stat
import time
from functools import partial
from pathlib import Path

import pytest

from lit_prune.errors import LitPruneError
from lit_prune.sweep import crew as module
from lit_prune.sweep.crew import Crew, cores, executor_of, gpus, threads_of

PATIENT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
open({path!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""


def wait_for(found, what):
    for _ in range(600):
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError(f"no {what} in 30 seconds")


def is_deaf(pid):
    """Whether a process ignores SIGINT."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (ignored,) = (line.split()[1] for line in lines if line.startswith("SigIgn"))
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)


def local(tmp_path):
    return executor_of("local", tmp_path / "jobs", "some", 1, {})


def crew_of(tmp_path, source, size=1, is_free=lambda place: True):
    def worker(place):
        return partial(exec, source.format(path=str(tmp_path / f"pid{place}")))

    return Crew(local(tmp_path), worker, size, is_free)


def test_jobs_run_at_all_free_places_and_are_stopped(tmp_path):
    crew = crew_of(tmp_path, PATIENT, size=3, is_free=lambda place: place != 1)
    crew.fill(work=9)
    assert sorted(crew.jobs) == [0, 2]
    pids = [
        int(wait_for(lambda f=tmp_path / f"pid{p}": f.exists() and f.read_text(), "job"))
        for p in (0, 2)
    ]
    assert crew.is_at_work()
    # Ctrl-C reaches every process of a terminal, but jobs are deaf to it.
    assert all(map(is_deaf, [*pids, *(int(job.job_id) for job in crew.jobs.values())]))
    crew.fill(work=9)
    assert crew.is_at_work()
    assert crew.left == 4, "nobody had to be replaced"
    assert crew.stop() == []
    assert not crew.is_at_work()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_a_job_that_has_only_begun_is_stopped_as_well(tmp_path):
    crew = crew_of(tmp_path, PATIENT)
    crew.fill(work=1)
    assert crew.stop() == []
    assert not crew.is_at_work()


def test_there_are_not_more_jobs_than_work(tmp_path):
    crew = crew_of(tmp_path, "pass", size=3)
    crew.fill(work=0)
    assert crew.jobs == {}
    crew.fill(work=2)
    assert len(crew.jobs) == 2
    crew.leave(30)
    assert not crew.is_at_work()


def test_who_leaves_work_undone_is_replaced_but_not_for_ever(tmp_path):
    crew = crew_of(tmp_path, "raise SystemExit(1)")
    for _ in range(5):
        crew.fill(work=1)
        crew.leave(30)
    assert crew.left == 0
    assert len(list((tmp_path / "jobs").glob("*_submitted.pkl"))) == 2
    crew.earn(1)
    crew.fill(work=1)
    crew.leave(30)
    assert len(list((tmp_path / "jobs").glob("*_submitted.pkl"))) == 3


def test_an_interrupt_works_again_after_jobs_were_started(tmp_path):
    crew = crew_of(tmp_path, "pass")
    before = signal.getsignal(signal.SIGINT)
    crew.fill(work=1)
    assert signal.getsignal(signal.SIGINT) is before
    crew.leave(30)


# SLURM, by a stand-in for its commands.


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands that look like SLURM's; sbatch keeps what it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    kept = tmp_path / "script.sh"
    texts = {
        "srun": "exit 0",
        "sacct": "exit 1",
        "sbatch": f'cp "$1" {shlex.quote(str(kept))}; echo Submitted batch job 12',
    }
    for name, text in texts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return kept


def test_slurm_gets_one_array_with_the_parameters(slurm, tmp_path):
    asked = {"partition": "gpu", "time": 60, "gpus_per_node": 1, "account": "lab", "mem": "4GB"}
    executor = executor_of("slurm", tmp_path / "jobs", "some", 3, asked)
    crew = Crew(executor, lambda place: partial(print, place), 4, lambda place: True)
    crew.fill(work=9)
    assert [job.job_id for job in crew.jobs.values()] == ["12_0", "12_1", "12_2", "12_3"]
    lines = slurm.read_text().splitlines()
    for line in ("partition=gpu", "time=60", "gpus-per-node=1", "account=lab", "mem=4GB"):
        assert f"#SBATCH --{line}" in lines
    assert "#SBATCH --array=0-3%4" in lines
    assert "#SBATCH --cpus-per-task=3" in lines
    assert "#SBATCH --job-name=sweep-some" in lines
    assert crew.stop() == ["12_0", "12_1", "12_2", "12_3"], "they go on"


def test_a_refused_submission_is_one_line(slurm, tmp_path):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho sbatch: error: invalid partition specified: x >&2\nexit 1\n")
    executor = executor_of("slurm", tmp_path / "jobs", "some", 1, {"partition": "x"})
    crew = Crew(executor, lambda place: partial(print, place), 1, lambda place: True)
    with pytest.raises(LitPruneError, match=r"cannot be submitted.*invalid partition"):
        crew.fill(work=1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"partitoin": "x"}, ["slurm.partitoin=x", "did you mean 'partition'", "account, "]),
        ({"time": "4:00:00"}, ["slurm.time=4:00:00", "minutes"]),
        ({"time": 0}, ["slurm.time=0", "at least 1"]),
    ],
)
def test_a_mistaken_parameter_is_named(slurm, tmp_path, asked, words):
    with pytest.raises(LitPruneError) as caught:
        executor_of("slurm", tmp_path, "some", 1, asked)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_machine_without_slurm_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LitPruneError, match=r"--cluster slurm: .*srun"):
        executor_of("slurm", tmp_path, "some", 1, {})


def test_a_missing_submitit_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(LitPruneError, match=r"submitit: pip install 'lit_prune\[sweep\]'"):
        executor_of("local", tmp_path, "some", 1, {})


# Shares.


@pytest.mark.parametrize(("of", "jobs", "threads"), [(8, 1, 8), (8, 3, 2), (2, 2, 1), (2, 5, 1)])
def test_cores_are_divided_among_the_jobs(monkeypatch, of, jobs, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "cores", lambda: of)
    assert threads_of("local", jobs, {"cpus_per_task": 7}) == threads


def test_fewer_threads_may_be_asked_for(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 8)
    for asked, threads in (("1", 1), ("9", 4), ("", 4), ("0", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert threads_of("local", 2, {}) == threads


def test_on_a_cluster_a_job_has_what_was_asked_for():
    assert threads_of("slurm", 9, {"cpus_per_task": 4}) == 4
    assert threads_of("slurm", 9, {}) == 1


def test_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 9} if pid == 0 else {})
    assert cores() == 3


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [(None, 2, ["0", "1"]), ("", 0, []), ("3, 5", 2, ["3", "5"]), ("7", 0, []), (None, 0, [])],
)
def test_gpus_are_those_that_may_be_used(monkeypatch, visible, count, names):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: count)
    assert list(gpus()) == names
