"""Slots on a clock of their own: nothing runs, everything takes exactly as long as the test says."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from fake_supervisor import CANCELLED, fulfilled

from sage_sandbox.dispatch.reports import Finished, Lost, News, Started
from sage_sandbox.operations.base import Task
from sage_sandbox.outcome import Outcome

Fate = tuple[float, Outcome | None]
"""How many seconds a task takes and what it leaves; None: its worker dies."""


def at_once(_task: Task) -> Fate:
    return 0.0, fulfilled()


@dataclass
class FakeSlots:
    parallel: int = 4
    fate: Callable[[Task], Fate] = at_once
    now: float = 0.0
    sent: list[tuple[float, Task]] = field(default_factory=list)
    closed: bool = False
    on_wait: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self._heap: list[tuple[float, int, Task, Outcome | None]] = []
        self._gone: set[int] = set()
        self._number = count()
        self._news: list[News] = []

    def clock(self) -> float:
        return self.now

    @property
    def busy(self) -> int:
        return len(self._heap) - len(self._gone)

    def grow(self, wanted: int) -> None:
        assert wanted > 0

    def room(self, pending: int) -> int:
        return min(pending, self.parallel - self.busy)

    def send(self, tasks: tuple[Task, ...]) -> None:
        assert 0 < len(tasks) <= self.parallel - self.busy
        for task in tasks:
            self.sent.append((self.now, task))
            takes, outcome = self.fate(task)
            heapq.heappush(self._heap, (self.now + takes, next(self._number), task, outcome))
            self._news.append(Started(task.ticket))

    def cancel(self, tickets: Iterable[int]) -> None:
        mine = set(tickets)
        for _, _, task, _ in self._heap:
            if task.ticket in mine and task.ticket not in self._gone:
                self._gone.add(task.ticket)
                self._news.append(Finished(task.ticket, CANCELLED))

    def wait(self, timeout_s: float | None) -> list[News]:
        if self.on_wait is not None:
            self.on_wait()
        if not self._news:
            self._pass_time(timeout_s)
        news, self._news = self._news, []
        return news

    def wake(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def _pass_time(self, timeout_s: float | None) -> None:
        while self._heap and self._heap[0][2].ticket in self._gone:
            self._gone.discard(heapq.heappop(self._heap)[2].ticket)
        until = float("inf") if timeout_s is None else self.now + timeout_s
        if not self._heap or self._heap[0][0] > until:
            assert until < float("inf"), "the loop waits for nothing"
            self.now = until
            return
        self.now, _, task, outcome = heapq.heappop(self._heap)
        self._news.append(Lost(task.ticket) if outcome is None else Finished(task.ticket, outcome))
