"""A supervisor that confines nothing: it does what a job's code names, for tests above the sandbox seam.

``code`` is a word and its argument: ``ok``, ``echo`` (params), ``inputs``, ``fail TEXT``, ``limit``, ``raise TEXT``,
``withheld``, ``block`` (until cancelled), ``deaf`` (for ever), ``die`` (kills this process), ``die-once PATH``,
``hold FIFO`` (until a writer has come and gone, or cancelled), ``pid``, ``env``, ``environ``, ``modules``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.outcome import Outcome, rejected
from sage_sandbox.sandbox.job import Job

CANCELLED = rejected("cancelled", "cancelled")


def fulfilled(value: object = "ok") -> Outcome:
    return Outcome("fulfilled", result=json.dumps(value).encode())


class InlineSupervisor:
    """The surface of `sandbox.supervisor.Supervisor`."""

    def __init__(self, project: str, *, slot: int = 0) -> None:
        self.project = project
        self.slot = slot
        self.closed = False

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def run(self, job: Job, *, cancel_fd: int = -1) -> Outcome:
        word, _, rest = job.code.partition(" ")
        act = _ACTS.get(word)
        return act(job, rest, cancel_fd) if act else fulfilled()


class UnpreparedSupervisor(InlineSupervisor):
    def prepare(self) -> None:
        raise SandboxUnavailable("no user namespaces", "run doctor", "userns")


class BrokenSupervisor(InlineSupervisor):
    def prepare(self) -> None:
        raise ZeroDivisionError("a fault of ours")


def inline_supervisor(project: str, slot: int) -> InlineSupervisor:
    return InlineSupervisor(project, slot=slot)


def unprepared_supervisor(project: str, slot: int) -> InlineSupervisor:
    return UnpreparedSupervisor(project, slot=slot)


def broken_supervisor(project: str, slot: int) -> InlineSupervisor:
    return BrokenSupervisor(project, slot=slot)


def dying_supervisor(project: str, slot: int) -> InlineSupervisor:
    """A worker that does not survive its start."""
    os._exit(1)


def _die(_job: Job, _rest: str, _cancel_fd: int) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return fulfilled()


def _die_once(job: Job, rest: str, cancel_fd: int) -> Outcome:
    if Path(rest).exists():
        return fulfilled()
    Path(rest).touch()
    return _die(job, rest, cancel_fd)


def _block(_job: Job, _rest: str, cancel_fd: int) -> Outcome:
    select.select([cancel_fd], [], [])
    return CANCELLED


def _deaf(_job: Job, _rest: str, _cancel_fd: int) -> Outcome:
    threading.Event().wait()
    return fulfilled()


def _hold(_job: Job, rest: str, cancel_fd: int) -> Outcome:
    fifo = os.open(rest, os.O_RDONLY | os.O_NONBLOCK)
    try:
        ready = select.select([fifo, cancel_fd], [], [])[0]
    finally:
        os.close(fifo)
    return CANCELLED if cancel_fd in ready else fulfilled()


def _raise(_job: Job, rest: str, _cancel_fd: int) -> Outcome:
    raise ValueError(rest)


def _withheld(_job: Job, _rest: str, _cancel_fd: int) -> Outcome:
    raise SandboxUnavailable("no memory cgroup", "run doctor", "cgroup")


_ACTS: dict[str, Callable[[Job, str, int], Outcome]] = {
    "echo": lambda job, _rest, _fd: Outcome("fulfilled", result=job.params),
    "inputs": lambda job, _rest, _fd: Outcome("fulfilled", result=job.inputs),
    "fail": lambda _job, rest, _fd: rejected("error", rest),
    "limit": lambda _job, _rest, _fd: rejected("limit", "memory limit 256 MiB exceeded"),
    "raise": _raise,
    "withheld": _withheld,
    "block": _block,
    "deaf": _deaf,
    "die": _die,
    "die-once": _die_once,
    "hold": _hold,
    "pid": lambda _job, _rest, _fd: fulfilled(os.getpid()),
    "env": lambda job, _rest, _fd: fulfilled(dict(job.env)),
    "environ": lambda _job, _rest, _fd: fulfilled(dict(os.environ)),
    "modules": lambda _job, _rest, _fd: fulfilled(sorted(sys.modules)),
}


def task(ticket: int, code: str, **job: Any) -> Any:
    from sage_sandbox.operations.base import Task

    return Task(ticket, "phase", f"op-{ticket}", 1, Job("python", code=code, **job))
