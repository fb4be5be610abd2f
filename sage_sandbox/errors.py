"""Every error this package raises, and the one table of exit codes.

SageError                      something ended the command; ``exit_code`` says which way
├── DefinitionError     (2)    the template is wrong: ``problems``
├── UsageError          (2)    the command line or an argument is wrong
│   ├── NoSuchPhase     (2)    the workflow has no phase of that name
│   └── Unfinished      (2)    the feature has a run that can be gone on with: another one would take its place
├── SandboxUnavailable (14)    this machine cannot confine an operation: ``feature``
├── NotGranted         (15)    something asked for is not allowed: ``missing``
├── ReferenceMissing    (1)    a ``${…}`` cannot be filled in: the operation is rejected before it starts
├── WorkerLost          (1)    a slot's process died under an operation: ``slot``
├── BreakerOpen         (1)    a service failed too often and is left alone: ``wait_s``
├── NoSuchRun          (10)    no run of that name has left anything
├── Locked             (11)    another process is at work there: ``owner``
├── WrongKey           (12)    sealed with a key that is not here; nothing was touched
├── StateCorrupted     (13)    a file of the state is damaged, rolled back or somebody else's: ``path``
├── StateTooNew         (2)    a later version wrote it
├── StateUnwritable     (1)    the disk, the folder or the file system refuses it: ``path``
└── Interrupted       (130)    the user ended it

What an operation itself did wrong is never an exception out here: it is an Outcome.

Arguments are positional and passed on to ``super().__init__``: an exception that cannot be unpickled breaks the process
pool it crosses (CPython issue 32696).
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Literal

from sage_sandbox.frozen import frozen


class ExitCode(IntEnum):
    """What the process tells its caller; 128+n and the codes of a command run by ``exec`` aside."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PAUSED = 3
    NO_SUCH_RUN = 10
    LOCKED = 11
    WRONG_KEY = 12
    STATE_CORRUPTED = 13
    SANDBOX_UNAVAILABLE = 14
    NOT_GRANTED = 15
    TIMEOUT = 124
    LIMIT = 137
    CANCELLED = 130


@frozen
class Problem:
    """One thing wrong with a template: where it stands (1-based; 0 where unknown) and what it is."""

    file: str
    line: int
    column: int
    field: str
    message: str
    severity: Literal["error", "warning"] = "error"
    fix: str = ""

    def __str__(self) -> str:
        """``file:line:column: field: message``, places that are not known left out."""
        place = [self.file, *(str(n) for n in (self.line, self.column) if n)]
        return ": ".join(part for part in (":".join(place), self.field, self.message) if part)


class SageError(Exception):
    """The root: ``message`` is one line in the user's words, ``hint`` what to do next (or empty)."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class DefinitionError(SageError):
    """The definition is wrong; ``problems`` holds everything that is, in the order of the file."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, hint: str = "", problems: tuple[Problem, ...] = ()) -> None:
        Exception.__init__(self, message, hint, problems)
        self.message = message
        self.hint = hint
        self.problems = problems


class UsageError(SageError):
    """What the user typed cannot be meant."""

    exit_code = ExitCode.USAGE


class NoSuchPhase(UsageError):
    """A phase was named that the workflow does not have."""


class Unfinished(UsageError):
    """A new run was asked for under the name of one that is not completed."""


class SandboxUnavailable(SageError):
    """The kernel or the host withholds ``feature``, without which nothing is run."""

    exit_code = ExitCode.SANDBOX_UNAVAILABLE

    def __init__(self, message: str, hint: str = "", feature: str = "") -> None:
        Exception.__init__(self, message, hint, feature)
        self.message = message
        self.hint = hint
        self.feature = feature


class NotGranted(SageError):
    """Something is asked for that nobody allowed; ``missing`` lists what to add, each a ready ``--allow …``."""

    exit_code = ExitCode.NOT_GRANTED

    def __init__(self, message: str, hint: str = "", missing: tuple[str, ...] = ()) -> None:
        Exception.__init__(self, message, hint, missing)
        self.message = message
        self.hint = hint
        self.missing = missing


class ReferenceMissing(SageError):
    """A ``${…}`` leads to nothing, or to something that does not fit where it stands."""


class WorkerLost(SageError):
    """The process of ``slot`` died with work in its hands; only that work is lost."""

    def __init__(self, message: str, hint: str = "", slot: int = -1) -> None:
        Exception.__init__(self, message, hint, slot)
        self.message = message
        self.hint = hint
        self.slot = slot


class BreakerOpen(SageError):
    """A service failed too often in a row: it is not called for another ``wait_s`` seconds."""

    def __init__(self, message: str, hint: str = "", wait_s: float = 0.0) -> None:
        Exception.__init__(self, message, hint, wait_s)
        self.message = message
        self.hint = hint
        self.wait_s = wait_s


class NoSuchRun(SageError):
    """Nothing is known of a run of that name in this project."""

    exit_code = ExitCode.NO_SUCH_RUN


class Locked(SageError):
    """Another process holds the lock; ``owner`` is what it says of itself, for people only."""

    exit_code = ExitCode.LOCKED

    def __init__(self, message: str, hint: str = "", owner: str = "") -> None:
        Exception.__init__(self, message, hint, owner)
        self.message = message
        self.hint = hint
        self.owner = owner


class WrongKey(SageError):
    """The key that sealed it is not among the user's; nothing was touched."""

    exit_code = ExitCode.WRONG_KEY


class StateCorrupted(SageError):
    """A file of the state is not what was written there: ``path`` names it."""

    exit_code = ExitCode.STATE_CORRUPTED

    def __init__(self, message: str, hint: str = "", path: str = "") -> None:
        Exception.__init__(self, message, hint, path)
        self.message = message
        self.hint = hint
        self.path = path


class StateTooNew(SageError):
    """A later version of this program wrote it."""

    exit_code = ExitCode.USAGE


class StateUnwritable(SageError):
    """State cannot be kept at ``path``: the disk is full, the folder read-only, the file system without locks."""

    def __init__(self, message: str, hint: str = "", path: str = "") -> None:
        Exception.__init__(self, message, hint, path)
        self.message = message
        self.hint = hint
        self.path = path


class Interrupted(SageError):
    """The user asked for the end."""

    exit_code = ExitCode.CANCELLED
