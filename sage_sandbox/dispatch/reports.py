"""What a dispatcher tells the runner."""

from __future__ import annotations

from dataclasses import dataclass

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.events import Notice
from sage_sandbox.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has begun this task."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Finished:
    """This task left an outcome."""

    ticket: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Returned:
    """This task never began and may be sent again, or forgotten."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker died while it ran this task."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Withheld:
    """This machine cannot confine; nothing can be run."""

    error: SandboxUnavailable


News = Started | Finished | Returned | Lost | Withheld | Notice
