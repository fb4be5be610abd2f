"""The seam between the runner and whatever runs its calls: Pool and Slot."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Initializer = Callable[..., None]
"""Called in the worker before its first call, as ``initializer(index, *initargs)``; it must not raise."""


class Slot(Protocol):
    """A place where one call runs at a time, in the order of submission.

    An implementation promises: no worker is started before the first `submit`; a worker that dies fails every call the
    slot holds with `WorkerLost` and touches no other slot; the next `submit` then starts a new worker, initializer and
    all.
    """

    @property
    def index(self) -> int:
        """The slot's number in its pool, from 0."""
        ...

    def submit(self, call: Callable[..., T], /, *args: Any) -> Future[T]:
        """Queue an importable callable; raises WorkerLost where no worker can be had."""
        ...

    def kill(self) -> None:
        """End the worker now, whatever it does; what the slot holds fails with WorkerLost."""
        ...


class Pool(Protocol):
    """Slots, made when first asked for."""

    def slot(self, index: int) -> Slot:
        """The slot of this number."""
        ...

    def close(self, *, kill: bool = True) -> None:
        """End every worker and wait for it: with ``kill`` in the middle of a call, else when that has returned."""
        ...
