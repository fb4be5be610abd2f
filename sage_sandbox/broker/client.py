"""How a worker reaches the broker: one connection for each call under way, given up by closing it.

Workers load this: nothing of a tool server's protocol is imported.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from sage_sandbox.broker.frames import SIZES, BadFrame, pack, read_head, read_sizes
from sage_sandbox.disk.files import Untrusted
from sage_sandbox.disk.sockets import connect
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Usage
from sage_sandbox.sandbox.calls import Answer, Call, ToolSpec

CALL_S: Final = 600.0
"""How long a call may take where nobody says otherwise."""
LATE_S: Final = 5.0
"""How much longer than a call may take its answer is waited for: the broker is the one that gives up first."""
REACH_S: Final = 10.0
"""How long to look for the broker: one that died is started again."""
_POLL_S: Final = 0.05
_DIED: Final = Answer(ok=False, error="the tool broker died during the call", kind="transport", retryable=True)
_CANCELLED: Final = Answer(ok=False, error="cancelled", kind="cancelled")


@frozen
class Line:
    """Where a run's broker listens, and the token that says which run is asking."""

    path: str
    token: str


class Hungup(Exception):
    """The broker has gone, or is not there."""


class GivenUp(Exception):
    """Whoever waits for the answer does not want it any more."""


class Late(Exception):
    """There is no answer in time."""


class Connection:
    """One socket to the broker, on which one thing is asked at a time. Not thread-safe."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    def ask(
        self, head: Mapping[str, Any], body: bytes = b"", *, until: float, cancel_fd: int = -1
    ) -> tuple[dict[str, Any], bytes]:
        """Send a frame and wait for one; Hungup, Late, or GivenUp once ``cancel_fd`` is readable."""
        self.send(head, body, until=until, cancel_fd=cancel_fd)
        return self.receive(until=until, cancel_fd=cancel_fd)

    def send(self, head: Mapping[str, Any], body: bytes = b"", *, until: float, cancel_fd: int = -1) -> None:
        """Send a frame."""
        left = memoryview(pack(head, body))
        try:
            while left:
                try:
                    left = left[self._sock.send(left, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    self._wait(select.POLLOUT, until, cancel_fd)
        except OSError as error:
            raise Hungup from error

    def receive(self, *, until: float, cancel_fd: int = -1) -> tuple[dict[str, Any], bytes]:
        """Wait for a frame."""
        try:
            head, body = read_sizes(self._exactly(SIZES.size, until, cancel_fd))
            return read_head(self._exactly(head, until, cancel_fd)), self._exactly(body, until, cancel_fd)
        except (OSError, BadFrame) as error:
            raise Hungup from error

    def is_quiet(self) -> bool:
        """Whether the other side is still there, and has nothing to say."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Hang up: what is under way is given up."""
        self._sock.close()

    def hang_up(self) -> None:
        """End a `receive` of another thread."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _exactly(self, size: int, until: float, cancel_fd: int) -> bytes:
        data = bytearray(size)
        view, have = memoryview(data), 0
        while have < size:
            try:
                got = self._sock.recv_into(view[have:])
            except BlockingIOError:
                self._wait(select.POLLIN, until, cancel_fd)
                continue
            if not got:
                raise Hungup
            have += got
        return bytes(data)

    def _wait(self, event: int, until: float, cancel_fd: int) -> None:
        poll = select.poll()
        poll.register(self._sock, event)
        if cancel_fd >= 0:
            poll.register(cancel_fd, select.POLLIN)
        left = until - time.monotonic()
        ready = poll.poll(None if left == float("inf") else max(left, 0.0) * 1000)
        if not ready:
            raise Late
        if any(fd == cancel_fd for fd, _ in ready):
            raise GivenUp


class BrokerClient:
    """The calls of one run's operations; thread-safe."""

    def __init__(self, path: str, token: str) -> None:
        self._path = path
        self._token = token
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._given_up: set[Connection] = set()
        self._lock = threading.Lock()

    def call(self, operation: str, call: Call, *, timeout_s: float = CALL_S, cancel_fd: int = -1) -> Answer:
        """Have a tool called for ``operation`` (``phase/operation``); never raises."""
        head = {"do": "call", "operation": operation, "tool": call.tool, "timeout_s": timeout_s}
        return self._answer(head, call.arguments, timeout_s, cancel_fd)

    def ask_model(
        self, operation: str, model: str, request: bytes, *, timeout_s: float = CALL_S, cancel_fd: int = -1
    ) -> Answer:
        """Have a model asked for ``operation``; never raises."""
        head = {"do": "ask", "operation": operation, "model": model, "timeout_s": timeout_s}
        return self._answer(head, request, timeout_s, cancel_fd)

    def list_tools(self, operation: str, *, timeout_s: float = CALL_S, cancel_fd: int = -1) -> tuple[ToolSpec, ...]:
        """The tools that ``operation`` was granted, of servers that answer; none where the broker does not."""
        try:
            head = {"do": "list", "operation": operation, "timeout_s": timeout_s}
            _, body = self._ask(head, b"", time.monotonic() + timeout_s + LATE_S, cancel_fd)
        except (Hungup, GivenUp, Late):
            return ()
        return specs_of(body)

    def _answer(self, head: Mapping[str, Any], body: bytes, timeout_s: float, cancel_fd: int) -> Answer:
        """What the broker answers; what keeps it from doing so is an answer, too."""
        try:
            said, value = self._ask(head, body, time.monotonic() + timeout_s + LATE_S, cancel_fd)
        except GivenUp:
            return _CANCELLED
        except Late:
            return Answer(ok=False, error=f"the tool broker gave no answer in {timeout_s:.0f} s", kind="transport")
        except Hungup as error:
            reason = str(error)
            return Answer(ok=False, error=reason, kind="transport", retryable=True) if reason else _DIED
        return answer_of(said, value)

    def give_up(self) -> None:
        """End every call under way, as cancelled: whoever made them is not there any more. For other threads."""
        with self._lock:
            self._given_up |= self._busy
            for connection in self._busy:
                connection.hang_up()

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _ask(self, head: Mapping[str, Any], body: bytes, until: float, cancel_fd: int) -> tuple[dict[str, Any], bytes]:
        connection = self._taken(cancel_fd)
        with self._lock:
            self._busy.add(connection)
        try:
            answer = connection.ask({**head, "token": self._token}, body, until=until, cancel_fd=cancel_fd)
        except BaseException as error:
            with self._lock:
                given_up = connection in self._given_up
                self._busy.discard(connection)
                self._given_up.discard(connection)
            connection.close()
            if given_up and isinstance(error, Hungup):
                raise GivenUp from error
            raise
        with self._lock:
            self._busy.discard(connection)
            self._given_up.discard(connection)
            self._idle.append(connection)  # one that was hung up meanwhile is noticed when it is taken again
        return answer

    def _taken(self, cancel_fd: int) -> Connection:
        """A connection that works: one that a broker which died has left is noticed before anything is sent."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._new(cancel_fd)
            if connection.is_quiet():
                return connection
            connection.close()

    def _new(self, cancel_fd: int) -> Connection:
        until = time.monotonic() + REACH_S
        while True:
            try:
                return Connection(connect(self._path))
            except (OSError, Untrusted) as error:
                if time.monotonic() >= until:
                    raise Hungup(f"the tool broker cannot be reached: {error}") from error
            if _is_readable(cancel_fd, _POLL_S):
                raise GivenUp


def _is_readable(fd: int, wait_s: float) -> bool:
    """Whether there is something to read within that time; never of a negative descriptor."""
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


def answer_of(said: Mapping[str, Any], value: bytes) -> Answer:
    """An answer as it came over the socket."""
    return Answer(
        ok=said.get("ok") is True,
        value=value or b"null",
        error=str(said.get("error", "")),
        kind=str(said.get("kind", "")),
        retryable=said.get("retryable") is True,
        cached_s=said.get("cachedS"),
        unavailable=said.get("unavailable") is True,
        usage=tuple(Usage(**usage) for usage in said.get("usage", ())),
    )


def specs_of(body: bytes) -> tuple[ToolSpec, ...]:
    """A list of tools as it came over the socket."""
    found = json.loads(body or b"[]")
    return tuple(ToolSpec(item["name"], item["description"], json.dumps(item["schema"]).encode()) for item in found)
