"""Trying again: exponentially longer waits with full jitter, a service's own word honoured, every attempt on record.

Full jitter spreads callers that failed together best (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).
Whether a call may be repeated at all is for its caller to say: only what changes nothing, or was never sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from sage_sandbox.frozen import frozen

T = TypeVar("T")

ATTEMPTS_MAX: Final = 3
FIRST_S: Final = 0.5
MOST_S: Final = 30.0


@frozen
class Failed:
    """Attempt ``number`` (from 1) failed; the next begins in ``wait_s`` seconds, or never (None)."""

    number: int
    error: Exception
    wait_s: float | None


def backoff_s(number: int, jitter: Callable[[], float], first_s: float = FIRST_S, most_s: float = MOST_S) -> float:
    """How long to wait after attempt ``number`` (from 1); ``jitter`` gives numbers in [0, 1)."""
    return jitter() * min(most_s, first_s * 2.0 ** (number - 1))


def retry_after_s(text: str, now: datetime | None = None) -> float | None:
    """Seconds from a ``Retry-After`` header: seconds or a date (RFC 9110, 10.2.3); None if it is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((moment - (now or datetime.now(UTC))).total_seconds(), 0.0)


def _no_word(_: Exception) -> float | None:
    """Stand in for a service that says nothing of when to come back."""
    return None


async def retried(
    operation: Callable[[int], Awaitable[T]],
    *,
    may_repeat: Callable[[Exception], bool],
    record: Callable[[Failed], None],
    asked_s: Callable[[Exception], float | None] = _no_word,
    attempts_max: int = ATTEMPTS_MAX,
    most_s: float = MOST_S,
    jitter: Callable[[], float] = random.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Call ``operation(number)`` until it succeeds, may not be repeated, or was tried ``attempts_max`` times.

    ``record`` hears of every attempt that failed. ``asked_s`` says how long the service asked to be left alone: less is
    never waited, and where it is more than ``most_s`` the failure stands.
    """
    number = 1
    while True:
        try:
            return await operation(number)
        except Exception as error:
            again = number < attempts_max and may_repeat(error)
            wait_s = max(backoff_s(number, jitter, most_s=most_s), asked_s(error) or 0.0) if again else None
            if wait_s is not None and wait_s > most_s:
                wait_s = None
            record(Failed(number, error, wait_s))
            if wait_s is None:
                raise
        await sleep(wait_s)
        number += 1
