"""A circuit breaker: after five failures in a row a service is left alone, and a minute later tried with one call.

- closed: calls go through; five failures in a row open it
- open: nothing is called for 60 s; the next call after that makes it half-open
- half-open: that one call, the probe, closes it by success and opens it by failure; no other is let through
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Literal, Self, TypeVar

from sage_sandbox.errors import BreakerOpen
from sage_sandbox.frozen import frozen

T = TypeVar("T")
State = Literal["closed", "open", "half-open"]

FAILURES_MAX: Final = 5
OPEN_S: Final = 60.0


@frozen
class Transition:
    """The breaker ``name`` went from one state to another; ``why`` is the failure that opened it, or empty."""

    name: str
    before: State
    after: State
    why: str = ""


def _tell_nobody(_: Transition) -> None:
    """Stand in for a listener."""


class Breaker:
    """The state of one service, for all who call it. Thread-safe; lives as long as the service is known.

    ``listener`` is told of each transition, in order; it must be quick and must not raise.
    """

    def __init__(
        self,
        name: str,
        *,
        failures_max: int = FAILURES_MAX,
        open_s: float = OPEN_S,
        clock: Callable[[], float] = time.monotonic,
        listener: Callable[[Transition], None] = _tell_nobody,
    ) -> None:
        self.name = name
        self._failures_max = failures_max
        self._open_s = open_s
        self._clock = clock
        self._listener = listener
        self._lock = threading.RLock()
        self._state: State = "closed"
        self._failures = 0
        self._opened_at = 0.0
        self._last_error = ""
        self._probe: Permit | None = None
        self._era = 0

    @property
    def state(self) -> State:
        """Where it stands; an open one stays open until a call comes that may be the probe."""
        return self._state

    def admit(self) -> Permit:
        """Leave to make one call, which must then be told how it went. BreakerOpen where none is given."""
        with self._lock:
            if self._state == "open" and self._open_for() >= self._open_s:
                self._become("half-open")
            if self._state == "open" or self._probe is not None:
                raise self._refusal()
            permit = Permit(self, self._era)
            if self._state == "half-open":
                self._probe = permit
            return permit

    def execute(self, operation: Callable[[], T], fallback: Callable[[], T] | None = None) -> T:
        """Make a call; what it raises counts as a failure. ``fallback`` answers where it fails or may not be made."""
        try:
            permit = self.admit()
            with permit:
                return operation()
        except Exception:
            if fallback is None:
                raise
            return fallback()

    def reset(self) -> None:
        """Close it, whatever was: the user knows that the service is back. Calls on their way count no more."""
        with self._lock:
            self._failures = 0
            if self._state != "closed":
                self._become("closed")

    # -- what a permit reports -----------------------------------------------------------------------------------

    def _succeeded(self, permit: Permit) -> None:
        with self._lock:
            if permit.era == self._era:  # else it began before the last transition, and says nothing about now
                self._failures = 0
                if self._state == "half-open":
                    self._become("closed")

    def _failed(self, permit: Permit, error: str) -> None:
        with self._lock:
            if permit.era == self._era:
                self._failures += 1
                self._last_error = error
                if self._state == "half-open" or self._failures >= self._failures_max:
                    self._opened_at = self._clock()
                    self._become("open", error)

    def _withdrawn(self, permit: Permit) -> None:
        with self._lock:
            if self._probe is permit:
                self._probe = None

    # -- inside --------------------------------------------------------------------------------------------------

    def _open_for(self) -> float:
        return self._clock() - self._opened_at

    def _become(self, state: State, why: str = "") -> None:
        before, self._state = self._state, state
        self._era += 1
        self._probe = None
        if state == "closed":
            self._failures = 0
        self._listener(Transition(self.name, before, state, why))

    def _refusal(self) -> BreakerOpen:
        wait_s = max(self._open_s - self._open_for(), 0.0) if self._state == "open" else 0.0
        last = f"; the last time: {self._last_error}" if self._last_error else ""
        if self._state == "half-open":
            when = "one call is trying whether it is back"
        else:
            when = f"it is tried again in {wait_s:.0f} s"
        text = f"{self.name} is not called: it failed {self._failures} times in a row, {when}{last}"
        return BreakerOpen(text, "", wait_s)


class Permit:
    """Leave for one call: tell it how that went, once; or use it as a context, in which an exception is a failure.

    What ends otherwise than by an Exception (a cancel, say) is neither success nor failure.
    """

    def __init__(self, breaker: Breaker, era: int) -> None:
        self.era = era
        self._breaker = breaker
        self._told = False

    def succeeded(self) -> None:
        """The service answered."""
        if self._tell():
            self._breaker._succeeded(self)  # noqa: SLF001 - the two are one thing

    def failed(self, error: str) -> None:
        """It did not: ``error`` says how, in one line."""
        if self._tell():
            self._breaker._failed(self, error)  # noqa: SLF001

    def withdrawn(self) -> None:
        """The call was given up by who made it."""
        if self._tell():
            self._breaker._withdrawn(self)  # noqa: SLF001

    def _tell(self) -> bool:
        first, self._told = not self._told, True
        return first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            self.succeeded()
        elif isinstance(error, Exception):
            self.failed(str(error) or type(error).__name__)
        else:
            self.withdrawn()
