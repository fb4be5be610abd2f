"""What a dispatcher tells the runner."""

from __future__ import annotations

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.events import Notice
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Outcome


@frozen
class Started:
    """A worker has begun this task."""

    ticket: int


@frozen
class Finished:
    """This task left an outcome."""

    ticket: int
    outcome: Outcome


@frozen
class Returned:
    """This task never began and may be sent again, or forgotten."""

    ticket: int


@frozen
class Lost:
    """The worker died while it ran this task."""

    ticket: int


@frozen
class Withheld:
    """This machine cannot confine; nothing can be run."""

    error: SandboxUnavailable


News = Started | Finished | Returned | Lost | Withheld | Notice
