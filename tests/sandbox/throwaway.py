"""A forked process that a test may confine, break and lose; what it returned and covered comes back over a socket.

A confined process cannot write a coverage file: the file system it knew is gone. So each throw-away process measures
itself in memory and sends the data before it ends; `merge_coverage` hands all of it to the measurement that runs.
Its forks do the same. The socket is kept twice, as descriptor 0 and above: a step that closes what is above 4 leaves
the first, a test that gives its process other streams has to pass the socket as one of these.
"""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="misc,union-attr"

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import coverage
from coverage.files import canonical_filename

import sage_sandbox
from sage_sandbox.sandbox.inside import wire

PATIENCE_S: Final = 30.0
_MESSAGE_MAX: Final = 1 << 18
_SOURCE: Final = str(Path(sage_sandbox.__file__).parent / "*")
_end_process: Final = sys.modules["posix"]._exit  # os._exit is coverage's while it measures
_shipped: Final[set[bytes]] = set()
_measurement: coverage.Coverage | None = None


class Lost(Exception):
    """The process ended without a word: ``status`` is its exit code, or -signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Apart:
    """One such process, from its fork to `result`; also what `subprocess.Popen` looks like to who only waits and kills.

    ``only`` names the descriptors above 2 that it keeps; without it, all.
    """

    def __init__(self, act: Callable[[], Any], only: tuple[int, ...] | None = None) -> None:
        _prepare_measurement()
        sys.stdout.flush()
        sys.stderr.flush()
        self._report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            gc.freeze()  # a collection would write to every object of the tests, which the child's limit has to bear
            _live(act, theirs, only)
        theirs.close()
        self._pidfd = os.pidfd_open(self.pid)
        self._said: Any = None
        self.status: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended: its exit code, or -signal. After ``timeout`` or half a minute it is killed."""
        if self.status is not None:
            return self.status
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        alive = True
        while alive:
            events = poll.poll((timeout or PATIENCE_S) * 1000)
            if not events:
                self.kill()
            for fd, _event in events:
                if fd == self._pidfd:
                    alive = False
                elif not self._listen():
                    poll.unregister(self._report)
        self._report.setblocking(False)
        while self._listen():
            continue
        self._report.close()
        os.close(self._pidfd)
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self) -> None:
        """Nothing it holds survives."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def result(self) -> Any:
        """What it returned; what it raised is raised here; Lost if it ended before."""
        status = self.wait()
        if self._said is None:
            raise Lost(status)
        returned, value = self._said
        if not returned:
            raise value
        return value

    def _listen(self) -> bool:
        try:
            message = self._report.recv(_MESSAGE_MAX)
        except (BlockingIOError, ConnectionResetError):
            return False
        if message[:1] == b"C":
            _shipped.add(message[1:])
        elif message:
            self._said = pickle.loads(message[1:])
        return bool(message)


def in_child(act: Callable[[], Any]) -> Any:
    """Run ``act`` in a throw-away process; what it returned, or raised."""
    return Apart(act).result()


class _Report:
    """The way out of a throw-away process, under whichever number it can still be found."""

    def __init__(self, sock: socket.socket) -> None:
        self._numbers = (sock.detach(), 0, 1, 2)
        self._inode = os.fstat(self._numbers[0]).st_ino
        os.dup2(self._numbers[0], 0)

    @property
    def fd(self) -> int:
        for number in self._numbers:
            try:
                if os.fstat(number).st_ino == self._inode:
                    return number
            except OSError:
                continue
        return -1

    def send(self, message: bytes) -> None:
        if (fd := self.fd) >= 0:
            os.write(fd, message)

    def cover(self) -> None:
        """Send what was covered so far, and go on."""
        if _measurement is not None:
            # Without stopping: whoever called us goes on being measured.
            self.send(b"C" + _measurement.get_data().dumps())


report: _Report
"""In a throw-away process: its way out."""


def _live(act: Callable[[], Any], sock: socket.socket, only: tuple[int, ...] | None) -> NoReturn:
    # We are the throw-away process: pytest must never get us back.
    global report  # noqa: PLW0603 - one a process, and its forks need it
    try:
        report = _Report(sock)
        os._exit = _leave
        if only is not None:
            _close_all_but((report.fd, *only))
        warnings.simplefilter("ignore")
        if _measurement is not None:
            coverage.Coverage.current().stop()
            _measurement.start()
        try:
            said = (True, act())
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the test that forked us
            error.add_note("".join(traceback.format_exception(error)))
            said = (False, error)
        report.send(b"R" + pickle.dumps(said))
    except BaseException:  # noqa: BLE001 - something that cannot be pickled, or no way out is left
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(0)


def _leave(status: int) -> NoReturn:
    try:
        report.cover()
    finally:
        _end_process(status)


def _close_all_but(kept: tuple[int, ...]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue


def _prepare_measurement() -> None:
    """Where coverage runs: load everything that measuring and sending takes, while there is a file system."""
    global _measurement  # noqa: PLW0603 - made once, for every fork
    if _measurement is None and coverage.Coverage.current() is not None:
        made = coverage.Coverage(data_file=None, config_file=False, branch=True, include=[_SOURCE])
        _measurement = made
        with warnings.catch_warnings(action="ignore"):
            made.start()
            made.stop()
            made.get_data().dumps()
            made.erase()
        # It asks for a file's real path, and in a sandbox /tmp is a link to somewhere else (`steps.foundation`).
        for path in Path(_SOURCE).parent.rglob("*.py"):
            canonical_filename(str(path))


def merge_coverage() -> None:
    """Add what throw-away processes covered to the measurement that runs."""
    running = coverage.Coverage.current()
    if running is None:
        return
    together = coverage.CoverageData(no_disk=True)
    for message in _shipped:
        one = coverage.CoverageData(no_disk=True)
        one.loads(message)
        together.update(one, map_path=lambda path: path.removeprefix(wire.BOX))
    running.get_data().update(together)
    _shipped.clear()
