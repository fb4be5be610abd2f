"""The coordinator's link to one slot: its connection, and what the slot holds."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Literal

from sage_sandbox.dispatch.reports import Finished, Lost, News, Returned, Started
from sage_sandbox.errors import WorkerLost
from sage_sandbox.operations import channel
from sage_sandbox.operations.base import Task
from sage_sandbox.operations.worker import run_chunk
from sage_sandbox.outcome import rejected
from sage_sandbox.pool.base import Slot

State = Literal["absent", "starting", "ready", "given up"]
_STARTS_MAX = 2


class Link:
    """One slot as the dispatcher sees it.

    ``held`` are the tickets the slot was given and has not answered, in the order it runs them; ``moved_at`` is when it
    last began or ended one. ``on_done`` is called from a thread of the pool's with a future that ended.
    """

    def __init__(self, slot: Slot, on_done: Callable[[Link, Future[None]], None]) -> None:
        self.slot = slot
        self.state: State = "absent"
        self.connection: socket.socket | None = None
        self.pid = 0
        self.held: dict[int, None] = {}
        self.running = 0
        self.moved_at = 0.0
        self.kill_at: float | None = None
        self._called_back: set[int] = set()
        self._chunks: dict[Future[None], tuple[int, ...]] = {}
        self._frames = channel.Frames()
        self._failed_starts = 0
        self._on_done = on_done

    @property
    def idle(self) -> bool:
        """Whether it could begin something this moment."""
        return self.state == "ready" and not self.held

    @property
    def calls(self) -> list[Future[None]]:
        """The calls that the slot was given and that have not been heard of."""
        return list(self._chunks)

    def call(self, function: Callable[..., None], *args: Any, chunk: tuple[int, ...] = ()) -> None:
        """Have the slot's worker call something; raises WorkerLost."""
        future = self.slot.submit(function, *args)
        self._chunks[future] = chunk
        future.add_done_callback(lambda done: self._on_done(self, done))

    def give(self, tasks: tuple[Task, ...], now: float) -> None:
        """Hand over tasks; raises WorkerLost."""
        if not self.held:
            self.moved_at = now
        tickets = tuple(task.ticket for task in tasks)
        self.held.update(dict.fromkeys(tickets))
        self.call(run_chunk, tasks, chunk=tickets)

    def connected(self, connection: socket.socket, pid: int) -> None:
        """Take the connection of this slot's new worker."""
        self.cut()
        self.connection, self.pid = connection, pid
        self._frames = channel.Frames()

    def cut(self) -> None:
        """Hang up: the worker kills its child and ends."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def withdraw(self, tickets: Iterable[int], *, kill: bool) -> None:
        """Ask for tickets back; with ``kill`` the running one ends too."""
        wanted = tuple(t for t in tickets if t in self.held and (kill or t not in self._called_back))
        self._called_back.update(wanted)
        if wanted and self.connection is not None:
            with suppress(OSError):
                # A worker that is gone shows by the end of its line.
                self.connection.sendall(channel.encode(channel.Withdraw(wanted, kill)))

    def waiting(self) -> tuple[int, ...]:
        """What it holds behind something else and was not asked to give back."""
        return tuple(t for t in list(self.held)[1:] if t not in self._called_back)

    def hear(self) -> tuple[list[channel.Frame], bool]:
        """The frames that arrived, and whether the line is still there."""
        frames: list[channel.Frame] = []
        while self.connection is not None:
            try:
                data = self.connection.recv(1 << 18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return frames, True
            except ConnectionError:
                data = b""
            if not data:
                break
            frames += self._frames.feed(data)
        return frames, False

    def take(self, report: channel.Report, now: float) -> list[News]:
        """Book a worker's report."""
        news: list[News] = [Finished(e.ticket, e.outcome) for e in report.ended if self.drop(e.ticket)]
        self.moved_at = now
        if report.started:
            self.running = report.started
            news.append(Started(report.started))
        return news

    def drop(self, ticket: int) -> bool:
        """Strike a ticket off; whether it was held."""
        if ticket == self.running:
            self.running = 0
        self._called_back.discard(ticket)
        held = ticket in self.held
        self.held.pop(ticket, None)
        if not self.held:
            self.kill_at = None
        return held

    def lose(self) -> list[News]:
        """The worker is gone: what ran is lost, what waited comes back."""
        running = self.running
        news: list[News] = [Lost(t) if t == running else Returned(t) for t in list(self.held)]
        for ticket in list(self.held):
            self.drop(ticket)
        self._failed_starts += self.state == "starting"
        self.state = "given up" if self._failed_starts >= _STARTS_MAX else "absent"
        self._chunks.clear()
        self.cut()
        self.slot.kill()
        return news

    def ended(self, future: Future[None]) -> tuple[list[News], bool]:
        """A call ended: what it left unanswered, and whether the worker is gone."""
        chunk = self._chunks.pop(future, None)
        error = future.exception()
        if chunk is None or error is None:
            return [], False
        if isinstance(error, WorkerLost):
            return [], True
        text = f"the operation could not be handed to a worker: {type(error).__name__}: {error}"
        return [Finished(t, rejected("error", text)) for t in chunk if self.drop(t)], False
