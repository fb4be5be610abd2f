"""The seam between the loop and the slots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sage_sandbox.dispatch.reports import News
from sage_sandbox.operations.base import Task


class Slots(Protocol):
    """What the loop needs of a dispatcher.

    An implementation promises one answer (Finished, Returned or Lost) for every task it was sent, Started before
    Finished and Lost, and that nothing runs after `close`.
    """

    @property
    def busy(self) -> int:
        """Tasks that were sent and not answered."""
        ...

    def grow(self, wanted: int) -> None:
        """Start slots until there is one for each of ``wanted`` operations, or all there may be."""
        ...

    def room(self, pending: int) -> int:
        """How many of ``pending`` operations the next `send` may hold."""
        ...

    def send(self, tasks: tuple[Task, ...]) -> None:
        """Have tasks run."""
        ...

    def cancel(self, tickets: Iterable[int]) -> None:
        """End these tasks as cancelled, or give them back."""
        ...

    def wait(self, timeout_s: float | None) -> list[News]:
        """What happened, waiting up to ``timeout_s`` for something to happen."""
        ...

    def wake(self) -> None:
        """Make `wait` return soon; from any thread."""
        ...

    def close(self) -> None:
        """End everything."""
        ...
