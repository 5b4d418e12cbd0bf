"""A worker runs what is free, each trial in a process of its own, and notes how it ended."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_prune.sweep import worker as module
from lit_prune.sweep.ledger import Ledger, State
from lit_prune.sweep.trials import Trial
from lit_prune.sweep.worker import Worker

FORK = multiprocessing.get_context("fork")
LEFT_BEHIND = []


def folder_of(args):
    folder = Path(args[args.index("--run_dir") + 1])
    folder.mkdir(exist_ok=True)
    return folder


def be_done(args):
    print("working")
    LEFT_BEHIND.append(args)
    assert len(LEFT_BEHIND) == 1, "a trial sees what another left behind"
    (folder_of(args) / "summary.json").write_text("{}")
    return 0


def be_mistaken(args):
    print("error: target=0x is out of range", file=sys.stderr)
    print("warning: and so it ended")
    return 2


def be_broken(args):
    raise ValueError("boom\nand more")


def be_killed(args):
    os.kill(os.getpid(), signal.SIGKILL)


def be_silent(args):
    os._exit(3)


def be_short(args):
    print("that is all")
    return 0


def be_long(args):
    (folder_of(args) / "pid").write_text(str(os.getpid()))
    time.sleep(600)


DOES = {f.__name__: f for f in (be_done, be_mistaken, be_broken, be_killed, be_silent, be_short)}


def trial(name, *args):
    return Trial(name, {}, args or (name,))


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Make a ledger and a worker of trials that do what their first argument says."""
    monkeypatch.setattr(module, "main", lambda args: {**DOES, "be_long": be_long}[args[0]](args))
    monkeypatch.setattr(module, "_NEEDED_BY_RUNS", ())
    ledger = Ledger(tmp_path)
    ledger.make()

    def make(*trials, **form):
        form = {"place": 0, "threads": 1, **form}
        return ledger, Worker(tmp_path, tuple(trials), **form)

    return make


def test_all_trials_are_run_and_what_they_print_is_kept(sweep, capfd):
    trials = [trial(f"a={n}", "be_done", "--some option") for n in range(3)]
    ledger, worker = sweep(*trials)
    assert worker() == 3
    assert capfd.readouterr() == ("", "")
    assert {ledger.state(t) for t in trials} == {State.DONE}
    assert LEFT_BEHIND == []
    for t in trials:
        folder = ledger.path / t.name
        command = f"$ python train.py be_done '--some option' --run_dir '{folder}'"
        lines = ledger.log(t).read_text().splitlines()
        assert lines == [command.replace(f"'{folder}'", str(folder)), "working"]
        assert ledger.attempt(t).error is None


def test_a_failure_is_noted_and_stops_nobody(sweep):
    trials = [trial(name) for name in DOES]
    ledger, worker = sweep(*trials, trial("last", "be_done"))
    assert worker() == len(trials) + 1
    errors = {t.name: ledger.attempt(t).error for t in trials}
    assert errors == {
        "be_done": None,
        "be_mistaken": "target=0x is out of range",
        "be_broken": "ValueError: boom",
        "be_killed": "killed by SIGKILL: was there too little memory?",
        "be_silent": "exit code 3",
        "be_short": "that is all",
    }
    states = [ledger.state(t) for t in trials]
    assert states == [State.DONE, *[State.FAILED] * (len(trials) - 1)]
    assert ledger.state(trial("last")) is State.DONE


def test_the_error_is_that_of_the_last_attempt(sweep):
    t = trial("a=1", "be_silent")
    ledger, worker = sweep(t)
    ledger.log(t).write_text("error: long ago\n")
    worker()
    assert ledger.attempt(t).error == "exit code 3"
    assert ledger.log(t).read_text().startswith("error: long ago\n$ python")


def test_what_has_ended_or_is_claimed_is_left_alone(sweep):
    trials = [trial(f"a={n}", "be_done") for n in range(3)]
    ledger, worker = sweep(*trials)
    with ledger.claimed(trials[1]):
        assert worker() == 2
    assert worker() == 1
    assert worker() == 0


def test_a_second_worker_of_a_place_leaves(sweep):
    ledger, worker = sweep(trial("a=1", "be_done"), place=3)
    with ledger.place(3):
        assert worker() == 0
    assert worker() == 1


def test_threads_and_devices_are_given_to_trials(sweep, monkeypatch):
    def look(args):
        (torch.ones(300, 300) @ torch.ones(300, 300)).sum()
        print(torch.get_num_threads(), os.environ["CUDA_VISIBLE_DEVICES"])
        return 0

    monkeypatch.setitem(DOES, "look", look)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ledger, worker = sweep(trial("look"), threads=2, devices="GPU-7")
    worker()
    assert ledger.log(trial("look")).read_text().splitlines()[-1] == "2 GPU-7"


def test_a_trial_does_not_take_itself_for_a_task_of_its_job(sweep, monkeypatch):
    def look(args):
        print(os.environ.get("SLURM_NTASKS"), os.environ.get("SLURM_JOB_ID"))
        print([signal.getsignal(getattr(signal, s)).name for s in ("SIGINT", "SIGUSR2", "SIGTERM")])
        return 0

    monkeypatch.setitem(DOES, "look", look)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    ledger, worker = sweep(trial("look"))
    worker()
    lines = ledger.log(trial("look")).read_text().splitlines()
    assert lines[1:] == ["None 7", "['SIG_IGN', 'SIG_IGN', 'SIG_IGN']"]


def wait_for(found, what):
    for _ in range(600):
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError(f"no {what} in 30 seconds")


def is_alive(pid):
    """Whether a process lives; what nobody has waited for yet is dead, too."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def at_work(sweep, monkeypatch):
    """Start a worker whose first trial does not end; return it with the pid of that trial."""
    started = []

    def start():
        t = trial("a=1", "be_long")
        ledger, worker = sweep(t, trial("a=2", "be_done"))
        process = FORK.Process(target=worker)
        process.start()
        started.append(process)
        note = ledger.path / t.name / "pid"
        pid = int(wait_for(lambda: note.exists() and note.read_text(), "trial"))
        assert ledger.state(t) is State.RUNNING
        return ledger, process, pid, t

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_killed_worker_takes_its_trial_with_it_and_another_goes_on(at_work, sweep):
    ledger, process, pid, t = at_work()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not is_alive(pid), "end of the trial")
    assert ledger.state(t) is State.WAITING
    again = trial("a=1", "be_done")
    _, worker = sweep(again, trial("a=2", "be_done"))
    assert worker() == 2
    assert ledger.state(again) is State.DONE


def test_a_killed_trial_is_a_failure_and_the_worker_goes_on(at_work):
    ledger, process, pid, t = at_work()
    os.kill(pid, signal.SIGKILL)
    process.join(30)
    assert process.exitcode == 0
    assert ledger.attempt(t).error.startswith("killed by SIGKILL")
    assert ledger.state(trial("a=2")) is State.DONE


def test_sigterm_ends_a_local_worker_and_its_trial_and_is_no_failure(at_work, monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    ledger, process, pid, t = at_work()
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    assert not is_alive(pid)
    assert ledger.state(t) is State.WAITING
    assert ledger.state(trial("a=2")) is State.WAITING


def test_a_signal_that_comes_with_the_fork_leaves_no_trial_behind(sweep, monkeypatch):
    class Struck(FORK.Process):
        def start(self):
            super().start()
            os.kill(os.getpid(), signal.SIGTERM)
            Path("child").write_text(str(self.pid))

    monkeypatch.chdir(sweep()[0].path)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    _, worker = sweep(trial("a=1", "be_long"))
    process = FORK.Process(target=worker)
    monkeypatch.setattr(module, "_FORK", SimpleNamespace(Process=Struck))
    process.start()
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    assert not is_alive(int(Path("child").read_text()))


def test_what_a_cluster_signals_to_all_processes_of_a_job_is_no_failure(at_work):
    ledger, _, pid, t = at_work()
    for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        os.kill(pid, number)
    time.sleep(0.2)
    assert is_alive(pid)
    assert ledger.state(t) is State.RUNNING


def test_a_requeued_worker_is_the_same(sweep):
    _, worker = sweep(trial("a=1", "be_done"))
    assert worker.checkpoint().function == worker
