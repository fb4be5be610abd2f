"""A pool inside this process: each slot a thread.

For machines where worker processes cannot be had, and for tests. A call that blocks cannot be killed here, only
abandoned: its thread is a daemon and ends with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from sage_sandbox.errors import WorkerLost
from sage_sandbox.pool.base import Initializer

T = TypeVar("T")
_Call = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


def _nothing(index: int) -> None:
    """The initializer of a pool that needs none."""


class _Thread:
    """One worker thread with what was given to it; lives until it is told to end or is abandoned."""

    def __init__(self, index: int, initializer: Initializer, initargs: tuple[Any, ...]) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._held: list[Future[Any]] = []
        self._lock = threading.Lock()
        self._lost: WorkerLost | None = None
        self._start = (initializer, (index, *initargs))
        self.thread = threading.Thread(target=self._serve, name=f"sage-slot-{index}", daemon=True)
        self.thread.start()

    def give(self, call: _Call) -> None:
        with self._lock:
            self._held.append(call[0])
        self._calls.put(call)

    def end(self) -> None:
        """Let it finish what it has begun and queued, then stop."""
        self._calls.put(None)

    def abandon(self, error: WorkerLost) -> None:
        """Fail what it holds; it stops after the call it is in."""
        with self._lock:
            self._lost, held, self._held = error, self._held, []
        for future in held:
            future.set_exception(error)
        self._calls.put(None)

    def _serve(self) -> None:
        initializer, initargs = self._start
        initializer(*initargs)
        while (call := self._calls.get()) is not None and self._lost is None:
            self._run(*call)

    def _run(self, future: Future[Any], call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        value, error = None, None
        try:
            value = call(*args)
        except BaseException as raised:  # noqa: BLE001 - as in a worker process: it belongs to the future
            error = raised
        with self._lock:
            if self._lost is not None:
                return
            self._held.remove(future)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)


class InlineSlot:
    """A slot whose worker is a thread of this process."""

    def __init__(self, index: int, initializer: Initializer, initargs: tuple[Any, ...]) -> None:
        self.index = index
        self._start = (initializer, initargs)
        self._worker: _Thread | None = None

    def submit(self, call: Callable[..., T], /, *args: Any) -> Future[T]:
        """Queue the call, the thread started if there is none."""
        if self._worker is None:
            self._worker = _Thread(self.index, *self._start)
        future: Future[T] = Future()
        self._worker.give((future, call, args))
        return future

    def kill(self) -> None:
        """Abandon the thread; a call that returns later finds nobody waiting."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.abandon(WorkerLost("the worker was ended", "", self.index))

    def close(self, *, kill: bool) -> None:
        """End the thread once it has done what it holds, or abandon it."""
        if self._worker is not None and not kill:
            self._worker.end()
            self._worker.thread.join()
        self.kill()


class InlinePool:
    """Slots that are threads of this process."""

    def __init__(self, initializer: Initializer = _nothing, initargs: tuple[Any, ...] = ()) -> None:
        self._start = (initializer, initargs)
        self._slots: dict[int, InlineSlot] = {}

    def slot(self, index: int) -> InlineSlot:
        """The slot of this number."""
        if index not in self._slots:
            self._slots[index] = InlineSlot(index, *self._start)
        return self._slots[index]

    def close(self, *, kill: bool = True) -> None:
        """End every thread; with ``kill`` one that is in a call is abandoned."""
        for slot in self._slots.values():
            slot.close(kill=kill)
