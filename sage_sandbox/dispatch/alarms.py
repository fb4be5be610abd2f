"""Things to do at a time, in the coordinator's own thread."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Alarms:
    """Calls to make once their time has come."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def set(self, delay_s: float, call: Callable[[], None]) -> None:
        """Make the call when ``delay_s`` has passed; one that no longer matters must see that itself."""
        heapq.heappush(self._heap, (self._clock() + delay_s, next(self._number), call))

    def wait_s(self) -> float | None:
        """How long until the next one; None if there is none."""
        return max(0.0, self._heap[0][0] - self._clock()) if self._heap else None

    def ring(self) -> None:
        """Make the calls that are due."""
        while self._heap and self._heap[0][0] <= self._clock():
            heapq.heappop(self._heap)[2]()
