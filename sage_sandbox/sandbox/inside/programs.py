"""What runs once the confinement stands: a Python operation in this process, or a command beneath it.

We are the child: confined from here on, and about to run code that is not ours. What we send may be forged by that
code; nobody out there believes more of it than that the operation said so.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from _socket import AF_UNIX, SOCK_STREAM
from typing import TYPE_CHECKING, Any

from sage_sandbox.sandbox.inside import tools, wire

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from types import ModuleType, TracebackType

CODE_FOLDER = wire.BOX + "/code"
SEARCHED = "/usr/local/bin:/usr/bin:/bin"
"""Where commands are looked for."""
_BASE_ENVIRONMENT = {
    "PATH": f"{wire.PROGRAMS}:{SEARCHED}",
    "HOME": wire.BOX,
    "TMPDIR": wire.BOX + wire.TMP,
    "SAGE_OUT": wire.BOX + "/out",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
_MESSAGE_MAX = 4_000
_NAME_MAX = 200
_BACKLOG = 64


_REHEARSAL = wire.pack(
    wire.PythonRequest(
        code="import json\n\ndef run(params, inputs, tools):\n    return {'n': [1, 2.5, 'x', None, params]}\n",
        file="<rehearsal>",
        files=(),
        params=b'{"a": [1]}',
        inputs=b"{}",
        env=(("SAGE_ATTEMPT", "1"),),
        result_max=1 << 20,
        tools=False,
    )
)


def rehearse() -> None:
    """Do once what every operation does, so that its copy-on-write page faults lie behind us."""
    request = wire.unpack_request(_REHEARSAL[wire.LENGTH.size :])
    assert isinstance(request, wire.PythonRequest)
    _perform(request)


def run(sock: socket, request: wire.PythonRequest | wire.CommandRequest | wire.Foundation) -> None:
    """Serve the one request of this process's life, and end it."""
    if isinstance(request, wire.CommandRequest):
        _run_command(sock, request)
    elif isinstance(request, wire.PythonRequest):
        if request.tools:
            _listen_for_calls(sock)
        wire.send(sock, *_perform(request, lambda tool: _report_call(sock, tool)))


def _listen_for_calls(sock: socket) -> None:
    """Give the supervisor a socket that listens in the work folder: whoever calls a tool connects to that.

    Nothing of the operation's has run yet. Later the supervisor takes no descriptor from us any more.
    """
    listener = type(sock)(AF_UNIX, SOCK_STREAM)
    listener.bind(tools.SOCKET)
    listener.listen(_BACKLOG)
    wire.send_descriptor(sock, wire.TOOLS, b"", listener.fileno())
    listener.close()


def _report_call(sock: socket, tool: str) -> None:
    """No tool is granted, so nobody listens: say what was called all the same."""
    wire.send(sock, wire.NOT_GRANTED, tool[:_NAME_MAX].encode("utf-8", "replace"))


def _perform(request: wire.PythonRequest, refused: Callable[[str], None] | None = None) -> tuple[bytes, bytes]:
    """What a Python operation leaves: the kind of its frame, and the body. ``refused`` is for `tools.Tools`."""
    os.environ.update(_BASE_ENVIRONMENT, **dict(request.env))
    try:
        _install_files(request)
        module = _load(request.code, request.file)
        offered = {
            "params": lambda: json.loads(request.params.decode()),
            "inputs": lambda: json.loads(request.inputs.decode()),
            "tools": lambda: tools.Tools(refused),
        }
        result = _call(_runnable(module), offered)
        return wire.VALUE, _encode(result, request.result_max)
    except BaseException as error:  # noqa: BLE001 - whatever the operation raises is its outcome
        return wire.ERROR, json.dumps(_describe(error, request.file)).encode()
    finally:
        _flush()


def _install_files(request: wire.PythonRequest) -> None:
    """Siblings become importable from a folder of the operation's own; the template's folder is not visible here."""
    if not request.files:
        return
    for name, text in request.files:
        path = f"{CODE_FOLDER}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    sys.path.insert(0, CODE_FOLDER)
    sys.dont_write_bytecode = True


def _load(code: str, file: str) -> ModuleType:
    module = type(sys)("operation")
    module.__file__ = file
    sys.modules["operation"] = module
    exec(compile(code, file, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - what a child is for
    return module


def _runnable(module: ModuleType) -> Callable[..., Any]:
    function = getattr(module, "run", None)
    if not isinstance(function, type(_runnable)):
        raise TypeError("no function run(params, inputs, tools) is defined")
    if function.__code__.co_flags & 0x380:  # CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR
        raise TypeError("run() is a coroutine function: call asyncio.run() inside a plain one")
    return function


def _call(function: Callable[..., Any], offered: dict[str, Callable[[], Any]]) -> Any:
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    every = bool(code.co_flags & 0x08)  # CO_VARKEYWORDS
    return function(**{name: make() for name, make in offered.items() if every or name in names})


def _encode(result: Any, most: int) -> bytes:
    try:
        body = json.dumps(result, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ValueError("the result holds a lone surrogate, which is no Unicode text") from error
    except (TypeError, ValueError) as error:
        raise type(error)(f"the result is no JSON: {error}") from error
    if len(body) > most:
        raise ResultTooLarge
    return body


class ResultTooLarge(Exception):
    """What run() returned is larger than a result may be."""


def _describe(error: BaseException, file: str) -> dict[str, Any]:
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 - an exception of the operation's own making may do anything here
        message = ""
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "message": message[:_MESSAGE_MAX].encode("utf-8", "replace").decode(),
        "line": _line_of(error.__traceback__, file) or (error.lineno if isinstance(error, SyntaxError) else None),
    }
    if isinstance(error, OSError):
        described["errno"] = error.errno
        described["path"] = error.filename if isinstance(error.filename, str) else None
    if isinstance(error, ModuleNotFoundError):
        described["module"] = error.name
    return described


def _line_of(trace: TracebackType | None, file: str) -> int | None:
    """The deepest line of the operation's own file in a traceback."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: BLE001, S112 - the operation may have replaced or closed its streams
            continue


def _run_command(sock: socket, request: wire.CommandRequest) -> None:
    """As pid 1: start the command as pid 2, reap whatever is orphaned to us, and report how the command ended."""
    environment = {**_BASE_ENVIRONMENT, **dict(request.env)}
    os.environ.update(environment)
    if request.terminal:
        _take_terminal()
    _listen_for_calls(sock)
    try:
        main = os.posix_spawnp(request.argv[0], list(request.argv), environment)
    except OSError as error:
        described = {"type": "SpawnError", "errno": error.errno, "message": os.strerror(error.errno or 0), "line": None}
        wire.send(sock, wire.ERROR, json.dumps(described).encode())
        return
    # Our own copies would keep the pipes open after the command has closed its ends.
    os.closerange(0, 3)
    while True:
        pid, status = os.wait()
        if pid == main:
            wire.send(sock, wire.EXITED, wire.EXIT_STATUS.pack(status))
            return


def _take_terminal() -> None:
    from fcntl import ioctl

    ioctl(0, 0x540E, 0)  # TIOCSCTTY


def settle_memory() -> None:
    """In the zygote, once: collect what start-up left, so that children do not pay for it."""
    gc.collect()
