"""How many calls a service gets at once, and how fast: what is too much waits its turn, in order, and never fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

AT_ONCE: Final = 4


class Throttle:
    """The queue before one service; for the tasks of one event loop.

    ``at_once`` calls are under way at a time. ``per_s``, if given, is how many may begin in a second: one after the
    other at even distances, for a burst is what a service with a rate limit refuses.
    """

    def __init__(
        self,
        at_once: int = AT_ONCE,
        *,
        per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if at_once < 1 or (per_s is not None and per_s <= 0):
            raise ValueError("a throttle that lets nothing through")
        self._places = asyncio.Semaphore(at_once)
        self._distance_s = 1 / per_s if per_s is not None else 0.0
        self._next_at = float("-inf")
        self._clock = clock
        self._sleep = sleep
        self.waiting = 0
        """How many wait just now."""

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it for the length of the block."""
        self.waiting += 1
        queued = True
        try:
            async with self._places:
                await self._keep_distance()
                self.waiting -= 1
                queued = False
                yield
        finally:
            self.waiting -= queued

    async def _keep_distance(self) -> None:
        if not self._distance_s:
            return
        now = self._clock()
        begin_at = max(now, self._next_at)
        self._next_at = begin_at + self._distance_s
        if begin_at > now:
            await self._sleep(begin_at - now)
