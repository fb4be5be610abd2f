"""The tool calls of one running operation: accepted, checked, carried out by a handler, answered.

Whoever connects is in the sandbox and may send anything. A connection has a thread of its own here, which reads one
call from it, never more than a call may be, and answers that; so a caller that stalls stops nobody else, and the watch
over the operation goes on. Nothing of a caller is believed: what it may call stands in the operation's policy.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from dataclasses import field
from typing import Any, Final, Literal

from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Violation
from sage_sandbox.policy import (
    CALLS_MAX,
    RESULT_MAX,
    KiB,
    Policy,
    every_tool,
    format_size,
    grants_tool,
    is_tool_grant,
    is_tool_name,
)
from sage_sandbox.sandbox.calls import Answer, Call, CallHandler, Lister, ToolSpec
from sage_sandbox.sandbox.inside import tools
from sage_sandbox.sandbox.untrusted import UntrustedData, check_json

IN_FLIGHT_MAX: Final = 8
"""Calls of one operation at the same time; more wait inside to be accepted."""
THREADS_MAX: Final = 64
"""Calls of all operations of a supervisor, those whose operation has ended before its handler included."""
FRAME_MAX: Final = tools.ARGUMENTS_MAX + KiB

_DENIED_KEPT: Final = 100
_ERROR_MAX: Final = 4_000

Abuse = Literal["calls", "garbled"]
"""Why an operation is ended over its calls: there were too many, or one was none."""


class NoCall(Exception):
    """What came over a connection is nothing that a caller of ours would send."""


@frozen
class Desk:
    """What a supervisor's operations have in common: who carries calls out, who lists tools, the room for threads."""

    handle: CallHandler | None = None
    list_tools: Lister | None = None
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(THREADS_MAX))


class ToolCalls:
    """Lives from a confined child to its end. The watch calls it; its threads share what stands under the lock.

    ``made`` counts what was handed to the handler. ``expected`` is whether the child still has to send the socket that
    listens; ``wake`` is readable when a call has ended; ``abuse`` is for the watch to act on.
    """

    def __init__(self, policy: Policy, desk: Desk, *, expected: bool) -> None:
        self.made = 0
        self.expected = expected
        self.abuse: Abuse | None = None
        self.wake = -1
        self._policy = policy
        self._desk = desk
        self._asked = 0
        self._denied: dict[str, Violation] = {}
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    # What the watch does.

    def listen(self, fd: int) -> None:
        """Take over the socket that the child listens with; NoCall if it is something else."""
        self.expected = False
        self._listener = listener = socket.socket(fileno=fd)
        kind = (listener.family, listener.type, listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if kind != (socket.AF_UNIX, socket.SOCK_STREAM, 1):
            raise NoCall
        listener.setblocking(False)
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Readable when somebody wants to call; -1 where nobody can."""
        return self._listener.fileno() if self._listener is not None else -1

    def accept(self) -> bool:
        """Begin with the next call; whether there is room for another one."""
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return True  # it has hung up
        self._count()
        if self.abuse is not None:
            connection.close()
            return False
        with self._lock:
            self._open.add(connection)
            room = len(self._open) < IN_FLIGHT_MAX
        if self._desk.room.acquire(blocking=False):
            threading.Thread(target=self._serve, args=(connection,), name="sage-call", daemon=True).start()
        else:
            busy = Answer(ok=False, error="too many calls wait for an answer", kind="transport", retryable=True)
            self._end(connection, _frame(busy))
        return room

    def woken(self) -> bool:
        """A call has ended; whether there is room for another one."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.wake)
        return len(self._open) < IN_FLIGHT_MAX

    def refuse(self, name: bytes) -> None:
        """An operation that was granted no tool says itself that it called one."""
        self._count()
        self._deny(name.decode("utf-8", "replace"))

    def denied(self) -> tuple[tuple[str, Violation], ...]:
        """What the operation was told of each tool it must not call, and the violation that it is."""
        with self._lock:
            return tuple(self._denied.items())

    def close(self) -> None:
        """Hang up on everybody. What a handler still does goes on, and nobody hears of it."""
        with self._lock:
            wake, self.wake = self.wake, -1
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        if self._listener is not None:
            self._listener.close()
        if wake >= 0:
            os.close(wake)

    def _count(self) -> None:
        self._asked += 1
        if self._asked > CALLS_MAX:
            self.abuse = "calls"

    # What a connection's thread does.

    def _serve(self, connection: socket.socket) -> None:
        frame = b""
        try:
            frame = self._answer(*_read(connection))
        except NoCall:
            self.abuse = "garbled"
        except OSError:
            pass  # it has hung up, or was hung up on
        finally:
            self._end(connection, frame)
            self._desk.room.release()

    def _end(self, connection: socket.socket, frame: bytes) -> None:
        with suppress(OSError):
            connection.sendall(frame)
        with self._lock:
            self._open.discard(connection)
            connection.close()
            if self.wake >= 0:
                os.eventfd_write(self.wake, 1)

    def _answer(self, kind: bytes, body: bytes) -> bytes:
        if kind == tools.LIST and not body:
            return _frame(self._list())
        if kind != tools.CALL:
            raise NoCall
        try:
            tool, arguments = _parse(body)
        except UntrustedData as error:
            return _frame(Answer(ok=False, error=str(error), kind="arguments"))
        refusal = self._refusal(tool)
        return _frame(Answer(ok=False, error=refusal, kind="denied") if refusal else self._hand_over(tool, arguments))

    def _refusal(self, tool: str) -> str:
        """Why this must not be called; empty where it may."""
        if not is_tool_name(tool) or not grants_tool(self._policy.tool, tool):
            return self._deny(tool)
        if self._desk.handle is None:
            return self._note(f"{tool} cannot be called: this run has no tools", Violation(f"tried to call {tool}"))
        return ""

    def _deny(self, tool: str) -> str:
        if not is_tool_name(tool):
            return self._note("no tool has such a name: it is SERVER/TOOL", Violation("tried to call what is no tool"))
        grant = f"tool:{tool if is_tool_grant(tool) else every_tool(tool)}"
        return self._note(f"{tool} is not granted: --allow {grant}", Violation(f"tried to call {tool}", grant))

    def _note(self, text: str, violation: Violation) -> str:
        with self._lock:
            if len(self._denied) < _DENIED_KEPT:
                self._denied[text] = violation
        return text

    def _hand_over(self, tool: str, arguments: bytes) -> Answer:
        assert self._desk.handle is not None
        with self._lock:
            if self.wake < 0:
                raise ConnectionResetError  # the operation is over: its calls are not to be taken for the next one's
            self.made += 1
        try:
            answer = self._desk.handle(Call(tool, arguments))
        except Exception as error:  # noqa: BLE001 - a fault of ours: it costs this call only, and is seen
            return Answer(ok=False, error=f"the call failed: {type(error).__name__}", kind="transport")
        if answer.kind == "denied":
            self._note(answer.error, Violation(f"tried to call {tool}"))
        return answer

    def _list(self) -> Answer:
        try:
            listed = self._desk.list_tools() if self._desk.list_tools is not None else ()
            shown = [_shown(tool) for tool in listed if grants_tool(self._policy.tool, tool.name)]
        except Exception as error:  # noqa: BLE001 - as above
            return Answer(ok=False, error=f"the tools cannot be listed: {type(error).__name__}", kind="transport")
        return Answer(ok=True, value=json.dumps(shown).encode())


def _read(connection: socket.socket) -> tuple[bytes, bytes]:
    """The one frame of a connection as kind and body; OSError if it ends before, NoCall if it is too long or empty."""
    (length,) = tools.LENGTH.unpack(_exactly(connection, tools.LENGTH.size))
    if not 1 <= length <= FRAME_MAX:
        raise NoCall
    frame = _exactly(connection, length)
    return frame[:1], frame[1:]


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(count - len(data), 1 << 16))
        if not part:
            raise ConnectionResetError
        data += part
    return bytes(data)


def _parse(body: bytes) -> tuple[str, bytes]:
    """Which tool, and its arguments as we spell them: who reads them after us reads what we have seen."""
    called: Any = json.loads(check_json(body, "the call", FRAME_MAX), object_pairs_hook=_members)
    if not isinstance(called, dict) or called.keys() != {"tool", "arguments"}:
        raise NoCall
    tool, arguments = called["tool"], called["arguments"]
    if not isinstance(tool, str) or not isinstance(arguments, dict):
        raise NoCall
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > tools.ARGUMENTS_MAX:
        raise UntrustedData(f"the arguments are larger than {format_size(tools.ARGUMENTS_MAX)}")
    return tool, text


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise UntrustedData("the call holds a name twice")
    return members


def _shown(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": json.loads(tool.input_schema)}


def _frame(answer: Answer) -> bytes:
    if answer.ok and len(answer.value) > RESULT_MAX:
        answer = Answer(ok=False, error=f"the answer is larger than {format_size(RESULT_MAX)}", kind="tool")
    if answer.ok:
        return tools.LENGTH.pack(1 + len(answer.value)) + tools.VALUE + answer.value
    told = {"kind": answer.kind, "error": answer.error[:_ERROR_MAX], "retryable": answer.retryable}
    body = json.dumps(told).encode()
    return tools.LENGTH.pack(1 + len(body)) + tools.ERROR + body
