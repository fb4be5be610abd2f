"""The server on stdin and stdout: a message a line, with a cap, and no thread between the pipes and the loop.

The SDK's own transport reads and writes each line in a thread, which is most of the time that a small answer takes, and
holds a line whatever its length. Where a pipe cannot be watched (a file, a terminal) it serves instead.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import anyio
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.server.mcpserver import MCPServer

LINE_MOST: Final = 4 << 20
"""Bytes of one message: as many as the SDK takes over HTTP."""
_PIECE: Final = 1 << 16


def serve_stdio(server: MCPServer[Any]) -> None:
    """Serve whoever started this process, until the input ends."""
    if _is_pipe(0) and _is_pipe(1):
        anyio.run(_serve, server)
    else:
        server.run("stdio")


def _is_pipe(fd: int) -> bool:
    """Whether it can be watched, and made non-blocking without that being anybody else's concern."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


async def _serve(server: MCPServer[Any]) -> None:
    low = server._lowlevel_server  # noqa: SLF001 - the SDK has no other way to run it over streams of one's own
    async with _streams() as (heard, said):
        await low.run(heard, said, low.create_initialization_options())


@asynccontextmanager
async def _streams() -> AsyncIterator[
    tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]
]:
    """What the client says, and where to answer."""
    heard_in, heard = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    said, said_out = anyio.create_memory_object_stream[SessionMessage](0)
    with _wires() as (wire_in, wire_out):
        # The server closes its ends, and with that ends both: what was said goes out before the pipe is closed.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_hear, wire_in, heard_in)
            tasks.start_soon(_speak, wire_out, said_out)
            yield heard, said


@contextmanager
def _wires() -> Iterator[tuple[int, int]]:
    """Descriptors of the client's pipes that nobody else has: what is printed by mistake goes to stderr."""
    wires = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    try:
        for wire in wires:
            os.set_blocking(wire, False)
        yield wires
    finally:
        for number, wire in enumerate(wires):
            os.set_blocking(wire, True)  # others may have it, too
            os.dup2(wire, number)
            os.close(wire)


async def _hear(wire: int, heard: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    """Pass its lines on; when they end, or one has no end, the session is over."""
    async with heard:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
            async for line in _lines(wire):
                await heard.send(_parsed(line))


async def _lines(wire: int) -> AsyncIterator[bytes]:
    held = b""
    while piece := await _read(wire):
        *whole, held = (held + piece).split(b"\n")
        for line in whole:
            yield line
        if len(held) > LINE_MOST:
            return


async def _read(wire: int) -> bytes:
    """What there is to read; nothing at the end."""
    while True:
        await anyio.wait_readable(wire)
        with suppress(BlockingIOError):
            return os.read(wire, _PIECE)


def _parsed(line: bytes) -> SessionMessage | Exception:
    """A message; an error for what is none, which a session leaves alone."""
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error


async def _speak(wire: int, said: MemoryObjectReceiveStream[SessionMessage]) -> None:
    """Write what is said, a line each, until nobody reads it any more."""
    async with said:
        with suppress(ConnectionError):
            async for message in said:
                await _write(wire, message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")


async def _write(wire: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(wire, left) :]
        except BlockingIOError:
            await anyio.wait_writable(wire)
