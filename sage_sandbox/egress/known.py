"""What a proxy remembers of the hosts it was asked for: which are left alone, and who waits for a connection to one.

It outlives the operations, for a host that is down for one is down for the next. It is one worker's: proxies know
nothing of each other, so that one which was taken over has no word in what others reach.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from sage_sandbox.guards.breaker import Breaker, Transition
from sage_sandbox.hosts import Target

AT_ONCE: Final = 4
"""Connections to one host and port that are being made at a time. Those that are made do not count: a client may keep
more than that open and idle, and would wait for itself."""
HOSTS_MAX: Final = 1000


class Host:
    """One host and port, for as long as it is remembered: its breaker and its queue. For several threads."""

    def __init__(self, target: Target, clock: Callable[[], float]) -> None:
        self.turns = threading.Semaphore(AT_ONCE)
        self._heard: deque[Transition] = deque()
        self.breaker = Breaker(str(target), clock=clock, listener=self._heard.append)

    def heard(self) -> list[Transition]:
        """What became of its breaker since this was asked the last time."""
        return [self._heard.popleft() for _ in range(len(self._heard))]


class Hosts:
    """All of them, so many at most: of those that are not left alone the first is forgotten for the next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._hosts: dict[Target, Host] = {}
        self._lock = threading.Lock()

    def of(self, target: Target) -> Host:
        """What is known of a host, which is nothing at first."""
        with self._lock:
            if target not in self._hosts:
                if len(self._hosts) >= HOSTS_MAX:
                    self._forget()
                self._hosts[target] = Host(target, self._clock)
            return self._hosts[target]

    def _forget(self) -> None:
        closed = (known for known, host in self._hosts.items() if host.breaker.state == "closed")
        del self._hosts[next(closed, next(iter(self._hosts)))]
