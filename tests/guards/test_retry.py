from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.guards.retry import ATTEMPTS_MAX, Failed, backoff_s, retried, retry_after_s

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Flaky:
    """Fails so often, then answers; notes what is waited and recorded."""

    def __init__(self, failures, error=None):
        self.failures = failures
        self.error = error or ConnectionError("gone")
        self.numbers = []
        self.slept = []
        self.records = []

    async def __call__(self, number):
        self.numbers.append(number)
        if len(self.numbers) <= self.failures:
            raise self.error
        return "answer"

    async def sleep(self, seconds):
        self.slept.append(seconds)

    def run(self, **how):
        how = {"may_repeat": lambda _: True, "jitter": lambda: 0.5, **how}
        return asyncio.run(retried(self, record=self.records.append, sleep=self.sleep, **how))


def test_what_succeeds_is_called_once():
    flaky = Flaky(0)

    assert flaky.run() == "answer"
    assert flaky.numbers == [1]
    assert flaky.records == []


def test_what_fails_is_tried_again_after_growing_waits_and_each_attempt_is_recorded():
    flaky = Flaky(2)

    assert flaky.run() == "answer"
    assert flaky.slept == [0.25, 0.5]
    assert flaky.records == [Failed(1, flaky.error, 0.25), Failed(2, flaky.error, 0.5)]


def test_after_the_last_attempt_the_failure_stands():
    flaky = Flaky(9)

    with pytest.raises(ConnectionError):
        flaky.run()
    assert flaky.numbers == [1, 2, 3]
    assert flaky.records[-1] == Failed(ATTEMPTS_MAX, flaky.error, None)


def test_what_is_not_safe_to_repeat_is_tried_once():
    flaky = Flaky(1)

    with pytest.raises(ConnectionError):
        flaky.run(may_repeat=lambda _: False)
    assert flaky.numbers == [1]
    assert flaky.records == [Failed(1, flaky.error, None)]


def test_a_service_that_asks_for_time_gets_no_less():
    flaky = Flaky(1)
    flaky.run(asked_s=lambda _: 7.0)

    assert flaky.slept == [7.0]


def test_a_service_that_asks_for_more_time_than_there_is_is_not_called_again():
    flaky = Flaky(1)

    with pytest.raises(ConnectionError):
        flaky.run(asked_s=lambda _: 3600.0)
    assert flaky.slept == []


def test_a_cancel_is_no_failure_to_be_tried_again():
    flaky = Flaky(1, asyncio.CancelledError())

    with pytest.raises(asyncio.CancelledError):
        flaky.run()
    assert flaky.records == []


@given(number=st.integers(1, 200), jitter=st.floats(0, 1, exclude_max=True))
def test_waits_lie_between_nothing_and_a_span_that_grows_up_to_a_cap(number, jitter):
    assert 0 <= backoff_s(number, lambda: jitter) <= min(30.0, 0.5 * 2.0 ** (number - 1))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Sat, 31 Jan 2026 12:00:30 GMT", 30.0),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0.0),
        ("Sat, 31 Jan 2026 12:00:10 -0000", 10.0),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("٣", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, seconds):
    assert retry_after_s(text, NOON) == seconds
