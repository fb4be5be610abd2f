"""A pool of processes: each slot is a loky executor of its own with one worker.

loky cannot kill one task, and one killed worker fails every future of its executor and breaks it (measured). With one
worker to an executor a lost worker costs what its own slot held, and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from multiprocessing.resource_tracker import _resource_tracker as _mp_tracker
from typing import Any, TypeVar

from loky.backend.resource_tracker import _resource_tracker as _loky_tracker
from loky.process_executor import BrokenProcessPool, ProcessPoolExecutor, ShutdownExecutorError

from sage_sandbox.errors import WorkerLost
from sage_sandbox.pool.base import Initializer
from sage_sandbox.pool.inline import _nothing
from sage_sandbox.pool.surroundings import spawning

T = TypeVar("T")

# loky retires a worker that has grown by 300 MB, with a warning on our stderr. A worker holds a result or two of 16 MiB
# at most, and one that is replaced behind our back would forget which operations were withdrawn.
_ENV = {"PYTHONSAFEPATH": "1", "LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}


class LokySlot:
    """A slot whose worker is a process, started by the first call and again after it was lost."""

    def __init__(self, index: int, initializer: Initializer, initargs: tuple[Any, ...]) -> None:
        self.index = index
        self._start = partial(
            ProcessPoolExecutor, 1, timeout=None, env=_ENV, initializer=initializer, initargs=(index, *initargs)
        )
        self._executor: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def submit(self, call: Callable[..., T], /, *args: Any) -> Future[T]:
        """Queue the call, in a new worker if the last one is gone."""
        with self._lock:
            executor, inner = self._submit(call, args)
        outer: Future[T] = Future()
        inner.add_done_callback(partial(self._pass_on, executor, outer))
        return outer

    def kill(self) -> None:
        """SIGKILL the worker and all its descendants."""
        self._end(kill=True, wait=False)

    def close(self, *, kill: bool) -> None:
        """End the worker and wait until it is gone."""
        self._end(kill=kill, wait=True)

    def _submit(self, call: Callable[..., T], args: tuple[Any, ...]) -> tuple[ProcessPoolExecutor, Future[T]]:
        try:
            if self._executor is not None:
                return self._executor, self._executor.submit(call, *args)
        except (BrokenProcessPool, ShutdownExecutorError):
            self._executor = None
        try:
            with spawning():
                # Before the mask counts: multiprocessing's tracker unblocks SIGINT once it has been started.
                executor = self._start()
                inner = executor.submit(call, *args)
        except (OSError, RuntimeError) as error:
            raise WorkerLost(f"no worker process can be started: {error}", "", self.index) from error
        self._executor = executor
        return executor, inner

    def _pass_on(self, executor: ProcessPoolExecutor, outer: Future[T], inner: Future[T]) -> None:
        error = inner.exception()
        if isinstance(error, (BrokenProcessPool, ShutdownExecutorError)):
            with self._lock:
                if self._executor is executor:
                    self._executor = None
            lost = WorkerLost("the worker process died", "", self.index)
            lost.__cause__ = error
            error = lost
        if error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())

    def _end(self, *, kill: bool, wait: bool) -> None:
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=wait, kill_workers=kill)


class LokyPool:
    """Slots that are processes of their own."""

    def __init__(self, initializer: Initializer = _nothing, initargs: tuple[Any, ...] = ()) -> None:
        with spawning():
            _loky_tracker.ensure_running()
            _mp_tracker.ensure_running()
        self._start = (initializer, initargs)
        self._slots: dict[int, LokySlot] = {}

    def slot(self, index: int) -> LokySlot:
        """The slot of this number."""
        if index not in self._slots:
            self._slots[index] = LokySlot(index, *self._start)
        return self._slots[index]

    def close(self, *, kill: bool = True) -> None:
        """End every worker and wait for it; ``kill=False`` lets one finish the call it is in.

        Side by side: a worker takes some ten milliseconds to end by itself.
        """
        closing = []
        for slot in self._slots.values():
            thread = threading.Thread(target=slot.close, kwargs={"kill": kill})
            try:
                thread.start()
            except RuntimeError:  # no thread is to be had
                slot.close(kill=kill)
            else:
                closing.append(thread)
        for thread in closing:
            thread.join()
