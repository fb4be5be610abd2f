"""A tool server that is a program: started in a group of its own, heard line by line with a cap, ended in any case.

The SDK's own transport holds a line whatever its length; here a server that writes one without end is cut off.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import anyio
from mcp import types
from mcp.shared.message import SessionMessage

from sage_sandbox.broker.frames import BODY_MAX
from sage_sandbox.policy import MiB
from sage_sandbox.sandbox.untrusted import UntrustedData, check_shape

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.client._transport import TransportStreams

LINE_MAX: Final = BODY_MAX + MiB
"""Bytes of one line: the largest result, and what is around it."""
LOOKED_AT: Final = 256 << 10
"""Lines longer than this are looked at before they are parsed: 16 MiB of brackets would become 400 MiB of objects."""
LEAVE_S: Final = 2.0
"""How long a server has to end once nobody speaks to it, and once it was told to."""
LOOK_S: Final = 0.01
STDERR_KEPT: Final = 2048
_PIECE: Final = 1 << 16


class Program:
    """What is known of a server's process: whether its output has ended, why, and what it last complained of."""

    def __init__(self) -> None:
        self.ended = ""
        self._stderr = b""

    def complain(self, data: bytes) -> None:
        """Keep the end of what it wrote to stderr."""
        self._stderr = (self._stderr + data)[-STDERR_KEPT:]

    def last_words(self) -> str:
        """The last line it wrote to stderr, or empty."""
        lines = [line.strip() for line in self._stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


@asynccontextmanager
async def program_transport(
    argv: tuple[str, ...], environ: Mapping[str, str], cwd: str, program: Program, pass_fds: tuple[int, ...] = ()
) -> AsyncIterator[TransportStreams]:
    """Start a program and speak with it over its stdin and stdout. OSError if it cannot be started."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environ),
        cwd=cwd,
        start_new_session=True,
        limit=_PIECE,
        pass_fds=pass_fds,
    )
    heard_in, heard = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    said, said_out = anyio.create_memory_object_stream[SessionMessage](0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_hear, process, heard_in, program)
        tasks.start_soon(_speak, process, said_out)
        tasks.start_soon(_overhear, process, program)
        try:
            yield heard, said
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await _end(process)
            finally:
                tasks.cancel_scope.cancel()
                for stream in (heard_in, heard, said, said_out):
                    stream.close()


async def _hear(
    process: asyncio.subprocess.Process,
    heard: MemoryObjectSendStream[SessionMessage | Exception],
    program: Program,
) -> None:
    """Pass its lines on; when they end, or one is no line of ours, the session is over."""
    assert process.stdout is not None
    async with heard:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            try:
                async for line in _lines(process.stdout):
                    await heard.send(_parsed(line))
                program.ended = "it ended its output"
            except (UntrustedData, ConnectionError) as error:
                program.ended = str(error) or "its output broke"


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    held: list[bytes] = []
    size = 0
    while piece := await stream.read(_PIECE):
        *whole, rest = piece.split(b"\n")
        for line in whole:
            yield b"".join((*held, line))
            held, size = [], 0
        held.append(rest)
        size += len(rest)
        if size > LINE_MAX:
            raise UntrustedData(f"it wrote a line of more than {LINE_MAX // MiB} MiB")


def _parsed(line: bytes) -> SessionMessage | Exception:
    """A message; an error for what is none, which a session leaves alone: some servers print what they do."""
    if len(line) > LOOKED_AT:
        check_shape(line)
    try:
        return SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error


async def _speak(process: asyncio.subprocess.Process, said: MemoryObjectReceiveStream[SessionMessage]) -> None:
    assert process.stdin is not None
    with suppress(ConnectionError, anyio.ClosedResourceError):
        async with said:
            async for message in said:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(text.encode() + b"\n")
                await process.stdin.drain()


async def _overhear(process: asyncio.subprocess.Process, program: Program) -> None:
    assert process.stderr is not None
    while piece := await process.stderr.read(_PIECE):
        program.complain(piece)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stop speaking, then ask, then kill: the program and all it started in its group."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
            if await _has_ended(process):
                break
    finally:  # also where a second cancellation comes, which no scope of anyio keeps out: then there is no more waiting
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - else it stays open as long as a grandchild holds a pipe


async def _has_ended(process: asyncio.subprocess.Process) -> bool:
    """Whether it ends within `LEAVE_S`. Not by ``wait()``, which also waits for pipes that a grandchild may hold."""
    for _ in range(int(LEAVE_S / LOOK_S)):
        if process.returncode is not None:
            return True
        await asyncio.sleep(LOOK_S)
    return False
