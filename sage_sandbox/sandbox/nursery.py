"""The supervisor's end of a zygote and of its children: sockets, descriptors, frames. Decides nothing."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sage_sandbox.errors import NotGranted, SageError, SandboxUnavailable
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import RESULT_MAX, MiB
from sage_sandbox.sandbox.cgroup import Cgroup
from sage_sandbox.sandbox.inside import entry, wire
from sage_sandbox.sandbox.steps import Blueprint

START_S: Final = 20.0
"""How long a zygote may take to lay its foundation, and a child to be confined, on a machine under load."""

FRAME_MAX: Final = RESULT_MAX + MiB
_ANCILLARY: Final = 256
# The zygote imports this package from where we did, and forgets the folder before it forks (see zygote._prepare).
_BOOT: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sage_sandbox.sandbox.inside import entry; entry.main()"
)


class ChildGone(Exception):
    """The other end of a child's socket is closed."""


class BrokenProtocol(Exception):
    """A child sent what no frame is: too long, or of no known kind."""


class Frames:
    """Length-prefixed frames out of a stream socket, and the descriptors that came with them."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()
        self.fds: list[int] = []
        self.closed = False

    def fill(self, *, descriptors: bool = False) -> None:
        """Read what is there; without ``descriptors`` any that were sent are closed by the kernel."""
        try:
            if descriptors:
                data, ancillary, _flags, _address = self.sock.recvmsg(1 << 16, _ANCILLARY)
                self.fds += _passed(ancillary)
            else:
                data = self.sock.recv(1 << 20)
        except ConnectionResetError:
            # It died with something of ours unread.
            data = b""
        self.closed = not data
        self._buffer += data

    def take(self) -> tuple[bytes, bytes] | None:
        """The next whole frame as (kind, body), or None; BrokenProtocol for one that is too long."""
        if len(self._buffer) < wire.LENGTH.size:
            return None
        (length,) = wire.LENGTH.unpack_from(self._buffer)
        if not 1 <= length <= FRAME_MAX:
            raise BrokenProtocol
        end = wire.LENGTH.size + length
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[wire.LENGTH.size : end])
        del self._buffer[:end]
        return frame[:1], frame[1:]

    def wait(self, deadline: float, *, descriptors: bool = False) -> tuple[bytes, bytes]:
        """The next frame, if it comes before ``deadline`` (monotonic seconds); ChildGone at the end of the stream."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while (frame := self.take()) is None:
            if self.closed:
                raise ChildGone
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            self.fill(descriptors=descriptors)
        return frame


@frozen
class Gone:
    """How a child ended, as its zygote saw it: wait status, CPU seconds, peak resident set (bytes)."""

    status: int
    cpu_s: float
    max_rss: int


@dataclass(slots=True)
class Child:
    """Our ends of one child. ``pidfd`` is -1 until the zygote has sent it, ``work_fd`` until there is a work folder.

    ``listener`` is -1 unless the child has a port behind which the egress proxy answers.

    ``whole`` tells whether all steps of the ``blueprint`` were sent, or only those that may be done ahead.
    """

    serial: int
    frames: Frames
    stdin: int
    stdout: int
    stderr: int
    group: Cgroup | None = None
    pidfd: int = -1
    work_fd: int = -1
    listener: int = -1
    blueprint: Blueprint | None = None
    whole: bool = False
    capabilities: dict[str, object] = field(default_factory=dict)
    gone: Gone | None = None

    def confine(self, blueprint: Blueprint, *, whole: bool = True) -> None:
        """Send the steps, or those that may be done ahead; `wait_ready` says whether they could be applied."""
        frames = b"" if self.blueprint else wire.pack(*blueprint.ahead)
        self.blueprint = blueprint
        self.whole = whole
        # A child that could not apply what was sent ahead has said so and is gone: `wait_ready` reads it.
        with suppress(BrokenPipeError):
            self.frames.sock.sendall(frames + wire.pack(*blueprint.steps) if whole else frames)

    def wait_ready(self) -> None:
        """Until every step is applied; SandboxUnavailable names the one that could not be."""
        deadline = time.monotonic() + START_S
        while True:
            kind, body = self.frames.wait(deadline, descriptors=True)
            if kind == wire.WORK_FOLDER and self.frames.fds:
                self.work_fd = self.frames.fds.pop(0)
            elif kind == wire.LISTENER and self.frames.fds:
                self.listener = self.frames.fds.pop(0)
            elif kind == wire.READY:
                self.capabilities = json.loads(body)
                return
            elif kind == wire.REFUSED:
                raise step_refused(body)
            else:
                raise BrokenProtocol

    def kill(self) -> None:
        """End it, and with it everything in its pid namespace."""
        if self.pidfd >= 0 and self.gone is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def host_pid(self) -> int:
        """Its pid as we see it; -1 before it is born and once it is reaped (proc(5), fdinfo of a pidfd)."""
        if self.pidfd < 0:
            return -1
        for line in Path(f"/proc/self/fdinfo/{self.pidfd}").read_text(encoding="ascii").splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
        return -1

    def close(self) -> None:
        """Let go of every descriptor."""
        self.frames.sock.close()
        held = (self.stdin, self.stdout, self.stderr, self.pidfd, self.work_fd, self.listener, *self.frames.fds)
        for fd in held:
            if fd >= 0:
                os.close(fd)
        self.stdin = self.stdout = self.stderr = self.pidfd = self.work_fd = self.listener = -1
        self.frames.fds.clear()


_VANISHED: Final = frozenset({errno.ESTALE, errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EXDEV})


def step_refused(body: bytes) -> SageError:
    """The error for a step that the kernel or the host refused: NotGranted if a granted path changed under it."""
    step, code, message = json.loads(body)
    if step == "Attach" and code in _VANISHED:
        return NotGranted(f"a granted path changed: {message}", "run it again")
    return SandboxUnavailable(f"the sandbox cannot be had: step {step}: {message}", "sage-sandbox doctor", str(step))


class _Process(subprocess.Popen[bytes]):
    """A process whose end is heard of when it comes: `subprocess` looks for it now and then, up to 50 ms late."""

    def wait(self, timeout: float | None = None) -> int:
        """As `subprocess.Popen` has it."""
        if timeout is not None and self.returncode is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                if not poll.poll(timeout * 1000):
                    raise subprocess.TimeoutExpired(self.args, timeout)
            finally:
                os.close(pidfd)
        return super().wait()


class Zygote:
    """One running zygote: forks children on request and reports their ends. Lives until `close` or its own death."""

    def __init__(self, foundation: wire.Foundation) -> None:
        ours, theirs = socket.socketpair()
        self._frames = Frames(ours)
        self.children: dict[int, Child] = {}
        self.served = 0
        self._answer: tuple[bytes, bytes] | None = None
        self.born = time.monotonic()
        self.foundation = foundation
        self.mapped_owners = {foundation.owner}
        self._process = self._start(theirs)
        theirs.close()
        # One that died at once is reported by what waits for its foundation.
        with suppress(BrokenPipeError, ConnectionResetError):
            ours.sendall(wire.pack(foundation))
        self._wait_foundation()

    def _start(self, control: socket.socket) -> subprocess.Popen[bytes]:
        arguments = [str(Path(__file__).resolve().parents[2]), str(control.fileno())]
        if not self.foundation.privileged:
            arguments.append(entry.OWN_NAMESPACE)
        read, write = os.pipe()
        os.close(write)
        try:
            return _Process(
                [os.path.realpath(sys.executable), "-I", "-S", "-X", "utf8", "-c", _BOOT, *arguments],
                env={},
                cwd="/",
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(control.fileno(),),
                start_new_session=True,
            )
        finally:
            os.close(read)

    def _wait_foundation(self) -> None:
        try:
            kind, body = self._frames.wait(time.monotonic() + START_S)
        except (ChildGone, TimeoutError) as error:
            self.close()
            raise SandboxUnavailable("the sandbox's zygote did not start", "sage-sandbox doctor", "zygote") from error
        if kind == wire.REFUSED:
            self.close()
            raise step_refused(body)

    def fileno(self) -> int:
        """Readable when a child was born or has ended."""
        return self._frames.sock.fileno()

    def map_owner(self, owner: tuple[int, int]) -> None:
        """Have files of ``owner`` (uid, gid) shown to later children as their own, or raise SandboxUnavailable."""
        self._frames.sock.sendall(wire.ORDER.pack(wire.MAP, *owner))
        self._wait_until(lambda: self._answer is not None)
        answer = self._answer
        assert answer is not None
        self._answer = None
        if answer[0] == wire.REFUSED:
            raise step_refused(answer[1])
        self.mapped_owners.add(owner)

    def spawn(self, group: Cgroup | None, terminal: int = -1) -> Child:
        """Ask for a child; its pidfd follows (see `listen`). Its streams are new pipes, or all a ``terminal``."""
        self.served += 1
        ours, theirs = socket.socketpair()
        child_ends, our_ends = ([terminal] * 3, [-1] * 3) if terminal >= 0 else _pipes()
        stdin, stdout, stderr = our_ends
        child = Child(self.served, Frames(ours), stdin, stdout, stderr, group)
        self.children[child.serial] = child
        passed = [theirs.fileno(), *child_ends, *(group.procs_fds if group else ())]
        try:
            self._frames.sock.sendmsg(
                [wire.ORDER.pack(wire.SPAWN, child.serial, 0)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", passed))],
            )
        finally:
            theirs.close()
            for fd in child_ends if terminal < 0 else ():
                os.close(fd)
        return child

    def listen(self) -> None:
        """Take in what the zygote has to say; ChildGone if it has died."""
        self._frames.fill(descriptors=True)
        while frame := self._frames.take():
            kind, body = frame
            if kind == wire.SPAWNED:
                self.children[wire.LENGTH.unpack(body)[0]].pidfd = self._frames.fds.pop(0)
            elif kind == wire.EXITED:
                serial, status, user, system, max_rss = wire.CHILD_GONE.unpack(body)
                self.children.pop(serial).gone = Gone(status, user + system, max_rss * 1024)
            else:
                self._answer = frame
        if self._frames.closed:
            raise ChildGone

    def check(self) -> None:
        """Take in what is there without waiting; ChildGone if the zygote has died."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        if poll.poll(0):
            self.listen()

    def wait_born(self, child: Child) -> None:
        """Until the child's pidfd is here."""
        self._wait_until(lambda: child.pidfd >= 0)

    def wait_gone(self, child: Child) -> None:
        """Until the child and everything beneath it is dead and reaped."""
        self._wait_until(lambda: child.gone is not None)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        deadline = time.monotonic() + START_S
        while not condition():
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ChildGone
            self.listen()

    def close(self) -> None:
        """End it and everything beneath it, and wait until that is so."""
        self._frames.sock.close()
        try:
            self._process.wait(START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in self.children.values():
            child.close()
        self.children.clear()


def _pipes() -> tuple[list[int], list[int]]:
    """The child's ends of three pipes for stdin, stdout and stderr, and ours, which do not block."""
    child_ends: list[int] = []
    our_ends: list[int] = []
    for child_reads in (True, False, False):
        read, write = os.pipe2(os.O_CLOEXEC)
        child_ends.append(read if child_reads else write)
        our_ends.append(write if child_reads else read)
        os.set_blocking(our_ends[-1], False)
    return child_ends, our_ends


def _passed(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
