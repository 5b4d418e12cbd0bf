"""The live table counts, names and guesses; on a terminal it draws over itself."""

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_prune.sweep import board as module
from lit_prune.sweep.board import Board, Look, clock, seconds_left
from lit_prune.sweep.ledger import Attempt, State
from lit_prune.sweep.trials import Trial

STATES = [State.DONE, State.RUNNING, State.FAILED, State.WAITING, State.DONE]
ERROR = "no luck"


def look(*states, seconds=10.0):
    trials = [Trial(f"a={n}", {}, ()) for n in range(len(states))]
    now = time.time()
    attempts = {
        State.DONE: Attempt(now, "here", 1, seconds),
        State.RUNNING: Attempt(now, "here", 1),
        State.FAILED: Attempt(now, "here", 1, 1.0, ERROR),
        State.WAITING: None,
    }
    pairs = dict(zip(trials, states, strict=True))
    return Look(pairs, {trial: attempts[state] for trial, state in pairs.items()})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_states_are_counted_and_the_rest_is_guessed():
    out = io.StringIO()
    Board("some", 2, out).show(look(*STATES))
    assert out.getvalue() == "some: done 2  running 1  failed 1  waiting 1  0:10 left\n"


def test_without_a_finished_trial_nothing_is_guessed():
    out = io.StringIO()
    Board("some", 2, out).show(look(State.RUNNING, State.WAITING))
    assert out.getvalue() == "some: done 0  running 1  failed 0  waiting 1\n"


def test_a_terminal_is_drawn_over_and_names_what_runs_and_failed():
    out = Terminal()
    board = Board("some", 2, out)
    board.show(look(*STATES))
    first = out.getvalue()
    assert first.startswith("\x1b[Jsome: done 2")
    assert first.splitlines()[1:] == ["  running     0:00  a=1", f"  failed   a=2: {ERROR}"]
    board.show(look(*[State.DONE] * 5), is_last=True)
    assert out.getvalue()[len(first) :] == (
        "\x1b[3F\x1b[Jsome: done 5  running 0  failed 0  waiting 0\n"
    )


def test_a_terminal_is_not_overrun():
    out = Terminal()
    Board("s" * 500, 2, out).show(look(*[State.RUNNING] * 40))
    lines = out.getvalue().splitlines()
    assert len(lines) == 14
    assert lines[-1] == "  and 28 more"
    assert max(map(len, lines)) < 200


def test_elsewhere_a_line_is_printed_for_a_change_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    board = Board("some", 2, out)
    board.show(look(State.RUNNING, State.WAITING))
    board.show(look(State.DONE, State.RUNNING))
    assert len(out.getvalue().splitlines()) == 1, "too soon"
    now[0] += 6
    board.show(look(State.DONE, State.RUNNING))
    assert len(out.getvalue().splitlines()) == 2
    now[0] += 6
    board.show(look(State.DONE, State.RUNNING))
    assert len(out.getvalue().splitlines()) == 2, "nothing changed"
    board.show(look(State.DONE, State.DONE), is_last=True)
    assert len(out.getvalue().splitlines()) == 3


@given(st.floats(0.1, 1000), st.integers(0, 50), st.integers(1, 8), st.lists(st.floats(0, 2000)))
def test_the_time_left_is_that_of_an_average_trial(mean, waiting, jobs, elapsed):
    left = seconds_left([mean / 2, 3 * mean / 2], elapsed, waiting, jobs)
    rest = sum(mean - e for e in elapsed if e < mean)
    assert left == pytest.approx((waiting * mean + rest) / jobs)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (36000, "10:00:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text
