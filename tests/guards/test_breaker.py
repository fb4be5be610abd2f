from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pybreaker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import BreakerOpen
from sage_sandbox.guards.breaker import Breaker, Transition


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


@pytest.fixture
def breaker(clock, told):
    return Breaker("time", clock=clock, listener=told.append)


def succeed():
    return "answer"


def fail():
    raise ConnectionError("gone")


def fail_times(breaker, times):
    for _ in range(times):
        with pytest.raises(ConnectionError):
            breaker.execute(fail)


def test_a_new_breaker_is_closed_and_lets_calls_through(breaker):
    assert breaker.state == "closed"
    assert breaker.execute(succeed) == "answer"


def test_five_failures_in_a_row_open_it(breaker, told):
    fail_times(breaker, 4)
    assert breaker.state == "closed"
    fail_times(breaker, 1)

    assert breaker.state == "open"
    assert told == [Transition("time", "closed", "open", "gone")]


def test_a_success_in_between_begins_the_count_anew(breaker):
    fail_times(breaker, 4)
    breaker.execute(succeed)
    fail_times(breaker, 4)

    assert breaker.state == "closed"


def test_an_open_one_does_not_call_and_says_when_it_will(breaker, clock):
    fail_times(breaker, 5)
    clock.now = 18.0

    with pytest.raises(BreakerOpen, match=r"failed 5 times in a row, it is tried again in 42 s; .*: gone") as e:
        breaker.execute(succeed)
    assert e.value.wait_s == 42.0


def test_after_a_minute_one_call_tries_and_its_success_closes(breaker, clock, told):
    fail_times(breaker, 5)
    clock.now = 60.0

    assert breaker.execute(succeed) == "answer"
    assert [(t.before, t.after) for t in told] == [("closed", "open"), ("open", "half-open"), ("half-open", "closed")]


def test_after_a_minute_one_call_tries_and_its_failure_opens_for_another_minute(breaker, clock):
    fail_times(breaker, 5)
    clock.now = 60.0
    fail_times(breaker, 1)
    clock.now = 119.0

    with pytest.raises(BreakerOpen):
        breaker.execute(succeed)
    clock.now = 120.0
    assert breaker.execute(succeed) == "answer"


def test_while_the_probe_is_out_nobody_else_calls(breaker, clock):
    fail_times(breaker, 5)
    clock.now = 60.0
    probe = breaker.admit()

    with pytest.raises(BreakerOpen, match="one call is trying"):
        breaker.admit()
    probe.succeeded()
    breaker.admit()


def test_of_many_threads_exactly_one_is_the_probe(breaker, clock):
    fail_times(breaker, 5)
    clock.now = 60.0
    together, admitted = threading.Barrier(16), []

    def call():
        together.wait()
        with suppress(BreakerOpen):
            admitted.append(breaker.admit())

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(admitted) == 1


def test_a_probe_that_is_given_up_leaves_the_place_to_the_next(breaker, clock):
    fail_times(breaker, 5)
    clock.now = 60.0
    with pytest.raises(KeyboardInterrupt), breaker.admit():
        raise KeyboardInterrupt

    assert breaker.state == "half-open"
    assert breaker.execute(succeed) == "answer"


def test_calls_that_began_before_it_opened_say_nothing_afterwards(breaker, clock):
    late_success, late_failure = breaker.admit(), breaker.admit()
    fail_times(breaker, 5)
    late_success.succeeded()
    assert breaker.state == "open"

    clock.now = 60.0
    probe = breaker.admit()
    late_failure.failed("late")
    assert breaker.state == "half-open"
    probe.succeeded()
    assert breaker.state == "closed"


def test_a_permit_counts_once(breaker):
    permit = breaker.admit()
    for _ in range(9):
        permit.failed("again")

    assert breaker.state == "closed"


def test_reset_closes_it_at_once(breaker, told):
    fail_times(breaker, 5)
    breaker.reset()
    fail_times(breaker, 4)

    assert breaker.state == "closed"
    assert told[-1] == Transition("time", "open", "closed")


def test_reset_of_a_closed_one_forgets_failures_and_tells_nobody(breaker, told):
    fail_times(breaker, 4)
    breaker.reset()
    fail_times(breaker, 4)

    assert breaker.state == "closed"
    assert told == []


def test_a_fallback_answers_for_a_failure_and_for_a_call_that_is_not_made(breaker):
    answers = [breaker.execute(fail, lambda: "cached") for _ in range(7)]

    assert answers == ["cached"] * 7
    assert breaker.state == "open"


def test_a_failure_without_words_is_named_by_its_kind(breaker, told):
    for _ in range(5):
        breaker.admit().__exit__(TimeoutError, TimeoutError(), None)

    assert told[0].why == "TimeoutError"


# -- the oracle ----------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.booleans(), st.floats(0, 90), st.just("reset")), max_size=60))
def test_it_does_what_pybreaker_does(steps):
    """True and False are calls that succeed and fail, a number is time that passes (seconds)."""
    clock = Clock()
    ours = Breaker("ours", clock=clock)
    theirs = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60, throw_new_error_on_trip=False)
    storage = theirs._state_storage
    began = datetime.now(UTC)

    def age(seconds):
        # It reads the system's clock: time passes for it by having opened earlier.
        if storage.opened_at is not None:
            storage.opened_at -= timedelta(seconds=seconds)

    for step in steps:
        if step == "reset":
            ours.reset()
            theirs.close()
        elif isinstance(step, bool):
            act = succeed if step else fail
            assert _outcome(ours.execute, act) == _outcome(theirs.call, act)
            assert ours.state == theirs.current_state
        elif abs(step - 60) > 5 and abs((ours._open_for() + step) - 60) > 5:  # not so near that real time decides
            clock.now += step
            age(step)
    assert datetime.now(UTC) - began < timedelta(seconds=4)


def _outcome(call, act):
    try:
        return call(act)
    except (BreakerOpen, pybreaker.CircuitBreakerError):
        return "refused"
    except ConnectionError:
        return "failed"
