"""An operation's way to tools: what `run` gets as ``tools``, and the program `sage-tool`.

We are in the sandbox, where nothing is trusted: what may be called is decided by the supervisor, which accepts on a
socket in the work folder. One connection carries one call and its answer, so that threads and processes may call at the
same time. This file is shown to operations as a program too, where no other module of ours exists.
"""

from __future__ import annotations

import json
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket
from struct import Struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SOCKET = "/sandbox/box/.sage-tools"
ARGUMENTS_MAX = 1 << 20
"""Bytes of the arguments of one call, as JSON."""

LENGTH = Struct(">I")
# A frame is a 4-byte big-endian length, then a kind and JSON. What is asked:
CALL = b"C"  # {"tool": "server/tool", "arguments": {...}}
LIST = b"L"  # nothing
# What is answered:
VALUE = b"V"  # any JSON
ERROR = b"E"  # {"kind": ..., "error": ..., "retryable": ...}

# The program's exit codes, where there are names for them those of sysexits.h.
DONE = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 69
TRY_AGAIN = 75
DENIED = 77

USAGE_TEXT = """usage: sage-tool list
       sage-tool call SERVER/TOOL [JSON] [--arg NAME=VALUE]...

JSON is an object with the arguments, or - to read one from stdin. --arg adds a text to it.
The answer is printed as JSON. Exit codes: 0 done, 1 the tool said no, 2 wrong usage,
69 no answer, 75 no answer, and the call may be made again, 77 not granted.
"""


class ToolError(RuntimeError):
    """The tool said no, or its server did; the message is theirs."""


class TransportError(RuntimeError):
    """A call got no answer. ``retryable``: it may be made again."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class Tools:
    """What an operation may call. Where nothing is granted, ``refused`` is told the name of what it calls."""

    Error = ToolError
    TransportError = TransportError

    def __init__(self, refused: Callable[[str], None] | None = None) -> None:
        self._refused = refused

    def list(self) -> list[dict[str, Any]]:
        """The tools this operation may call: ``name``, ``description`` and ``input_schema`` of each."""
        try:
            return json.loads(_ask(LIST, b""))  # type: ignore[no-any-return]
        except FileNotFoundError:
            return []

    def call(self, tool: str, /, **arguments: Any) -> Any:
        """What ``server/tool`` answers; PermissionError, `Tools.Error` or `Tools.TransportError` if it does not."""
        try:
            return json.loads(_ask(CALL, _spell(tool, arguments)))
        except FileNotFoundError:
            if self._refused is not None:
                self._refused(tool)
            raise PermissionError(not_granted(tool)) from None


def not_granted(tool: str) -> str:
    """What is said of a tool where nothing is granted."""
    return f"{tool} is not granted: --allow tool:{tool}"


def _spell(tool: str, arguments: dict[str, Any]) -> bytes:
    if not isinstance(tool, str):
        raise TypeError("the name of a tool is a text: SERVER/TOOL")
    try:
        text = json.dumps(arguments, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ValueError("an argument holds a lone surrogate, which is no Unicode text") from error
    except (TypeError, ValueError) as error:
        raise type(error)(f"the arguments are no JSON: {error}") from error
    if len(text) > ARGUMENTS_MAX:
        raise ValueError("the arguments are larger than 1 MiB")
    return b'{"tool":' + json.dumps(tool).encode() + b',"arguments":' + text + b"}"


def _ask(kind: bytes, body: bytes) -> bytes:
    """The JSON text that is answered; FileNotFoundError where nobody listens to this operation."""
    sock = socket(AF_UNIX, SOCK_STREAM)
    try:
        sock.connect(SOCKET)
        sock.sendall(LENGTH.pack(1 + len(body)) + kind + body)
        answer = _receive(sock)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TransportError(f"the call got no answer: {error.strerror or error}") from error
    finally:
        sock.close()
    if answer[:1] == VALUE:
        return answer[1:]
    raise _failure(**json.loads(answer[1:]))


def _failure(kind: str, error: str, retryable: bool) -> Exception:
    match kind:
        case "denied":
            return PermissionError(error)
        case "arguments":
            return ValueError(error)
        case "tool":
            return ToolError(error)
    return TransportError(error, retryable)


def _receive(sock: socket) -> bytes:
    (length,) = LENGTH.unpack(_exactly(sock, LENGTH.size))
    return _exactly(sock, length)


def _exactly(sock: socket, count: int) -> bytes:
    parts = []
    while count:
        part = sock.recv(min(count, 1 << 20))
        if not part:
            raise OSError("the other side is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# The program.


def main(arguments: list[str]) -> int:
    """Make one call, print what it answers, return the exit code."""
    try:
        kind, body = _command_line(arguments)
    except (ValueError, OSError, RecursionError) as error:
        return _complain(str(error), USAGE, USAGE_TEXT)
    try:
        answer = _ask(kind, body)
    except FileNotFoundError:
        if kind == CALL:
            return _complain(not_granted(arguments[1]), DENIED)
        answer = b"[]"
    except PermissionError as error:
        return _complain(str(error), DENIED)
    except TransportError as error:
        return _complain(str(error), TRY_AGAIN if error.retryable else UNREACHABLE)
    except (ToolError, ValueError) as error:
        return _complain(str(error), FAILED)
    sys.stdout.buffer.write(answer + b"\n")
    sys.stdout.flush()
    return DONE


def _command_line(arguments: list[str]) -> tuple[bytes, bytes]:
    """What is asked, as kind and body."""
    match arguments:
        case ["list"]:
            return LIST, b""
        case ["call", tool, *rest]:
            return CALL, _spell(tool, _given(rest))
    raise ValueError("neither list nor call SERVER/TOOL")


def _given(words: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if words and words[0] != "--arg":
        given = _object(sys.stdin.read() if words[0] == "-" else words[0])
        words = words[1:]
    while words:
        option, *pair = words[:2]
        if option != "--arg" or not pair or "=" not in pair[0]:
            raise ValueError(f"{' '.join(words[:2])} is not --arg NAME=VALUE")
        name, _, value = pair[0].partition("=")
        given[name] = value
        words = words[2:]
    return given


def _object(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the arguments are no JSON: {error}") from error
    if isinstance(given, dict):
        return given
    raise ValueError("the arguments are no JSON object")


def _complain(text: str, code: int, before: str = "") -> int:
    sys.stderr.write(f"{before}sage-tool: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
