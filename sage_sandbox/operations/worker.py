"""What a slot runs: a worker with its supervisor, and its line to the coordinator.

Two threads. The one that the pool calls runs operations, one at a time; the listener reads what the coordinator sends
down and can end the running operation by an eventfd that the supervisor watches. A worker that loses its coordinator
kills its child and ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, Protocol

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.operations.base import Task
from sage_sandbox.operations.caller import Caller
from sage_sandbox.operations.channel import (
    Ended,
    Frame,
    Frames,
    Ready,
    Report,
    Returned,
    Withdraw,
    encode,
    hello,
    receive,
)
from sage_sandbox.outcome import Outcome, rejected
from sage_sandbox.results.scrub import Scrubber
from sage_sandbox.sandbox.job import Job

FAREWELL_S: Final = 2.0
"""How long a worker that lost its coordinator waits for its killed child before it ends without a clean-up."""
_PREPARING: Final = -1


class Supervisor(Protocol):
    """The seam to the sandbox: one per worker, used by one thread at a time."""

    def prepare(self) -> None:
        """Start ahead of the first job; raises SandboxUnavailable."""
        ...

    def run(self, job: Job, *, cancel_fd: int = -1) -> Outcome:
        """Run one job; it ends as cancelled once ``cancel_fd`` becomes readable."""
        ...

    def close(self) -> None:
        """Leave nothing running and nothing lying about."""
        ...


MakeSupervisor = Callable[[str, int], Supervisor]


def confined(project: str, slot: int) -> Supervisor:
    """The supervisor that confines: the only one outside the tests.

    What its operations call tools with is this worker's `Caller`.
    """
    from sage_sandbox.operations.confining import supervisor

    return supervisor(project, slot=slot, caller=_here.caller)


class Worker:
    """A supervisor on a line: takes tasks from its slot, reports to the coordinator, obeys its listener.

    What an operation left goes no further than here with a secret in it that is known or looks like one.
    """

    def __init__(
        self,
        connection: socket.socket,
        supervisor: Supervisor,
        scrubber: Scrubber,
        caller: Caller | None = None,
        *,
        own_process: bool,
    ) -> None:
        self._connection = connection
        self._supervisor = supervisor
        self._scrubber = scrubber
        self._caller = caller or Caller()
        self._own_process = own_process
        self._cancel_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._state = threading.Condition()
        self._sending = threading.Lock()
        self._running = _PREPARING
        self._latest = 0
        self._withdrawn: set[int] = set()
        self._ended = False

    def prepare(self) -> None:
        """Get the supervisor ready and say so, or say what is missing."""
        try:
            self._supervisor.prepare()
            ready = Ready()
        except SandboxUnavailable as error:
            ready = _withheld(error)
        except Exception as error:  # noqa: BLE001 - raised in a pool's initializer it would only be logged
            ready = _withheld(SandboxUnavailable(f"the sandbox cannot be prepared: {type(error).__name__}: {error}"))
        self._idle()
        self.send(ready)

    def run(self, tasks: Iterable[Task]) -> None:
        """Run tasks in turn; each outcome leaves with the news that the next one begins."""
        ended: tuple[Ended, ...] = ()
        for task in tasks:
            if self._begin(task.ticket):
                self.send(Report(ended, task.ticket))
                ended = (self._finish(task),)
        self.send(Report(ended))

    def listen(self) -> None:
        """Read what comes down until the line is cut (the listener thread)."""
        frames = Frames()
        while data := receive(self._connection):
            for frame in frames.feed(data):
                if isinstance(frame, Withdraw):
                    self._withdraw(frame)
        self._abandoned()

    def leave(self) -> None:
        """Clean up and hang up; called between two tasks."""
        with self._state:
            if self._ended:
                return
            self._ended = True
        self._supervisor.close()
        self._caller.close()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._own_process:
            # The last to register is the first to be called. What follows would take modules apart, object by object,
            # in a process with nothing left to clean up, while somebody waits for its end: tens of milliseconds.
            atexit.register(os._exit, 0)

    def send(self, frame: Frame) -> None:
        """Tell the coordinator; if it is gone, the listener notices."""
        with self._sending, suppress(OSError):
            self._connection.sendall(encode(frame))

    def _begin(self, ticket: int) -> bool:
        with self._state:
            self._latest = ticket
            if ticket in self._withdrawn or self._ended:
                self._withdrawn.discard(ticket)
                return False
            self._running = ticket
            return True

    def _finish(self, task: Task) -> Ended:
        started = time.monotonic()
        outcome = self._scrub(task.job, self._run_one(task))
        self._idle()
        return Ended(task.ticket, outcome, time.monotonic() - started)

    def _idle(self) -> None:
        with self._state:
            self._running = 0
            with suppress(BlockingIOError):
                os.eventfd_read(self._cancel_fd)
            self._state.notify_all()

    def _run_one(self, task: Task) -> Outcome:
        self._caller.begin(f"{task.phase}/{task.operation}", task.tools)
        try:
            if task.job.type in ("mcp", "llm"):
                return self._caller.noted(self._caller.run(task.job, cancel_fd=self._cancel_fd))
            return self._caller.noted(self._supervisor.run(task.job, cancel_fd=self._cancel_fd))
        except SandboxUnavailable as error:
            self.send(_withheld(error))
            return rejected("error", error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - a fault of ours: it costs this operation only, and is seen
            return rejected("error", f"the supervisor failed: {type(error).__name__}: {error}")
        finally:
            self._caller.end()

    def _scrub(self, job: Job, outcome: Outcome) -> Outcome:
        # What the user granted is for the operation, not for those who read what it left.
        granted = [value for name, value in job.env if name in job.policy.env]
        scrubber = self._scrubber.knowing(granted) if granted else self._scrubber
        try:
            return scrubber.outcome(outcome)[0]
        except Exception as error:  # noqa: BLE001 - a fault of ours, and what was left is not to be seen then
            return rejected("error", f"what it left could not be scrubbed: {type(error).__name__}")

    def _withdraw(self, order: Withdraw) -> None:
        with self._state:
            waiting = tuple(ticket for ticket in order.tickets if ticket > self._latest)
            self._withdrawn.update(waiting)
            if order.kill and self._running in order.tickets:
                os.eventfd_write(self._cancel_fd, 1)
        if waiting:
            self.send(Returned(waiting))

    def _abandoned(self) -> None:
        """The line is cut: kill what runs, clean up, and end the process if it is ours to end."""
        with self._state:
            left, self._ended = self._ended, True
            os.eventfd_write(self._cancel_fd, 1)
            idle = self._state.wait_for(lambda: not self._running, FAREWELL_S)
        if idle:
            if not left:
                self._supervisor.close()
            os.close(self._cancel_fd)
        self._connection.close()
        if self._own_process and not left:
            os._exit(0)


def _withheld(error: SandboxUnavailable) -> Ready:
    return Ready((error.message, error.hint, error.feature))


_here = threading.local()


def enter(
    slot: int,
    address: str,
    token: bytes,
    project: str,
    make: MakeSupervisor = confined,
    secrets: tuple[str, ...] = (),
) -> None:
    """Initialize a worker: connect, prove who we are, prepare the sandbox, listen. Called by the pool; never raises.

    ``secrets`` are values that no outcome may hold.
    """
    own_process = threading.current_thread() is threading.main_thread()
    if own_process:
        _settle_in()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(address)
        connection.sendall(hello(token, slot))
    except OSError:
        # The coordinator ended while we were starting. If it was killed, nobody else would end this process: it holds
        # both ends of the pipe that it would wait on for ever.
        connection.close()
        if own_process:
            os._exit(0)
        return
    caller = _here.caller = Caller()
    worker = Worker(connection, make(project, slot), Scrubber(secrets), caller, own_process=own_process)
    _here.worker = worker
    threading.Thread(target=worker.listen, name="sage-listener", daemon=True).start()
    worker.prepare()


def run_chunk(tasks: tuple[Task, ...]) -> None:
    """Run some operations in this slot's worker; what they left goes up the line."""
    _here.worker.run(tasks)


def present() -> None:
    """Do nothing: the call that makes a slot start its worker."""


def leave() -> None:
    """Make this slot's worker clean up; it runs nothing afterwards."""
    worker: Worker | None = getattr(_here, "worker", None)
    if worker is not None:
        worker.leave()


def _settle_in() -> None:
    """Make a fresh worker process ours: deaf to the terminal's Ctrl-C (the coordinator decides), closed to peeking."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with suppress(ImportError):
        from sage_sandbox.sandbox.inside.syscalls import set_dumpable

        set_dumpable(False)
