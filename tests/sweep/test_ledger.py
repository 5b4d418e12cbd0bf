"""Claims are exclusive and end with their process; states follow from files and locks."""

import multiprocessing
import os
import signal
from contextlib import contextmanager

import pytest

from lit_prune.sweep.ledger import Attempt, Ledger, State
from lit_prune.sweep.trials import Trial

FORK = multiprocessing.get_context("fork")
TRIAL = Trial("a=1", {"a": "1"}, ())


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "some")
    made.make()
    return made


def finish(ledger, trial=TRIAL):
    folder = ledger.run_folder(trial).path
    folder.mkdir()
    (folder / "summary.json").write_text("{}")


@contextmanager
def another_process(hold):
    """A process that holds ``hold()`` until it is killed at the end."""
    ready, held = FORK.Pipe()

    def be():
        with hold() as is_mine:
            held.send(is_mine)
            signal.pause()

    process = FORK.Process(target=be)
    process.start()
    try:
        assert ready.poll(30)
        yield ready.recv()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def test_a_trial_is_claimed_by_one_process_only_and_free_when_that_is_killed(ledger):
    with another_process(lambda: ledger.claimed(TRIAL)) as is_theirs:
        assert is_theirs
        with ledger.claimed(TRIAL) as is_mine:
            assert not is_mine
        with ledger.claimed(Trial("a=2", {}, ())) as is_mine:
            assert is_mine
    with ledger.claimed(TRIAL) as is_mine:
        assert is_mine


def test_a_claim_ends_with_its_block_even_if_a_child_lives_on(ledger):
    with ledger.claimed(TRIAL):
        child = FORK.Process(target=signal.pause)
        child.start()
    try:
        with ledger.claimed(TRIAL) as is_mine:
            assert is_mine
    finally:
        child.kill()
        child.join()


def test_a_place_has_one_worker(ledger):
    assert ledger.is_free(0)
    with another_process(lambda: ledger.place(0)) as is_theirs:
        assert is_theirs
        assert not ledger.is_free(0)
        assert ledger.is_free(1)
        with ledger.place(0) as is_mine:
            assert not is_mine
    assert ledger.is_free(0)


def test_a_trial_waits_runs_and_is_done(ledger):
    assert ledger.state(TRIAL) is State.WAITING
    with another_process(lambda: ledger.claimed(TRIAL)):
        assert ledger.state(TRIAL) is State.WAITING
        ledger.note(TRIAL, Attempt.now())
        assert ledger.state(TRIAL) is State.RUNNING
    assert ledger.state(TRIAL) is State.WAITING, "its worker was killed"
    finish(ledger)
    assert ledger.state(TRIAL) is State.DONE


def test_asking_does_not_claim(ledger):
    ledger.note(TRIAL, Attempt.now())
    assert ledger.state(TRIAL) is State.WAITING
    with ledger.claimed(TRIAL) as is_mine:
        assert is_mine
        assert ledger.state(TRIAL) is State.RUNNING


def test_what_has_ended_is_not_claimed(ledger):
    ledger.note(TRIAL, Attempt.now().ended("no luck"))
    assert ledger.state(TRIAL) is State.FAILED
    with ledger.claimed(TRIAL) as is_mine:
        assert not is_mine
    ledger.forget_failure(TRIAL)
    assert ledger.state(TRIAL) is State.WAITING
    with ledger.claimed(TRIAL) as is_mine:
        assert is_mine
    finish(ledger)
    with ledger.claimed(TRIAL) as is_mine:
        assert not is_mine


def test_only_failures_are_forgotten(ledger):
    ledger.note(TRIAL, Attempt.now().ended(None))
    finish(ledger)
    ledger.forget_failure(TRIAL)
    assert ledger.attempt(TRIAL).seconds is not None


def test_a_summary_counts_more_than_a_failure(ledger):
    ledger.note(TRIAL, Attempt.now().ended("no luck"))
    finish(ledger)
    assert ledger.state(TRIAL) is State.DONE


def test_an_attempt_says_where_it_ran_and_how_long(ledger):
    attempt = Attempt.now()
    assert attempt.pid == os.getpid()
    ended = attempt.ended("no luck")
    ledger.note(TRIAL, ended)
    assert ledger.attempt(TRIAL) == ended
    assert 0 <= ended.seconds < 60
    assert (ended.started, ended.error) == (attempt.started, "no luck")
