"""Sessions with tool servers over MCP: the only way the broker, or anything of ours, speaks that protocol.

Both eras are spoken, 2026-07-28 and the one before it with its handshake: the SDK finds out which. Nothing that a
server asks of its client (samples, questions to the user, roots) is on offer.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import mcp_types
from mcp import MCPError
from mcp.client import Client
from pydantic import ValidationError

from sage_sandbox.broker.base import OnProgress, Progress, SessionLost, Silent, ToolRefused
from sage_sandbox.broker.booting import booted
from sage_sandbox.broker.http import address_transport
from sage_sandbox.broker.services import spoken
from sage_sandbox.broker.stdio import Program, program_transport
from sage_sandbox.broker.web import NOTE, Note
from sage_sandbox.sandbox.calls import ToolSpec
from sage_sandbox.toolservers.definition import Server

if TYPE_CHECKING:
    from mcp.client._transport import Transport, TransportStreams
    from mcp.shared.dispatcher import ProgressFnT

PAGES_MAX: Final = 20
LATE_S: Final = 0.5
"""How much later than the SDK we give up ourselves: it does not count the time in which nothing can be sent."""
LEARN_S: Final = 5.0
_GONE: Final = frozenset({mcp_types.CONNECTION_CLOSED, mcp_types.PARSE_ERROR})


@asynccontextmanager
async def connected(server: Server, environ: Mapping[str, str], cwd: str) -> AsyncIterator[McpSession]:
    """Start the server or call it, agree on a protocol, and hold the session for the length of the block."""
    program = Program()
    note = Note()
    NOTE.set(note)
    transport: Any
    if server.sandbox:
        transport = _confined(server, environ, cwd, program)
    elif server.command:
        argv = (server.command, *server.args)
        # A folder of a stranger's is its working directory: what lies there must not become its code.
        transport = program_transport(argv, {**environ, "PYTHONSAFEPATH": "1", **dict(server.env)}, cwd, program)
    else:
        transport = address_transport(server.url, dict(server.headers))
    try:
        async with _client(transport) as client:
            session = McpSession(server.name, client, program)
            await session.learn(LEARN_S)
            yield session
    except (OSError, MCPError, ExceptionGroup) as error:
        raise SessionLost(_why(_first_words(error, server), program, note), sent=False, asked_s=note.asked_s) from error


@asynccontextmanager
async def _confined(
    server: Server, environ: Mapping[str, str], cwd: str, program: Program
) -> AsyncIterator[TransportStreams]:
    """Speak with a server in a sandbox of its own: with a process of ours, of which it is the operation."""
    spec = {"argv": (server.command, *server.args), "env": server.env, "policy": server.policy, "project": cwd}
    fd = os.memfd_create("server", os.MFD_CLOEXEC)
    try:
        os.write(fd, json.dumps(spec).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        # What the definition sets is for the server: in the environment of who confines it, it could undo that.
        ours = {**environ, "PYTHONSAFEPATH": "1"}
        async with program_transport(booted("sandboxed_server", str(fd)), ours, "/", program, (fd,)) as streams:
            yield streams
    finally:
        os.close(fd)


def _first_words(error: Exception, server: Server) -> str:
    """Why there is no session, where nothing better is known."""
    if isinstance(error, OSError) and error.errno:
        return f"{server.command}: {os.strerror(error.errno).lower()}"
    return spoken(error)


def _client(transport: Transport) -> Client:
    info = mcp_types.Implementation(name="sage-sandbox", version=version("sage-sandbox"))
    return Client(transport, client_info=info, cache=None)


class McpSession:
    """A live connection to one server."""

    def __init__(self, name: str, client: Client, program: Program) -> None:
        self._name = name
        self._client = client
        self._program = program
        self._lost = False
        self._specs: dict[str, mcp_types.Tool] | None = None
        # What a server promises of its answers it checks against a schema of its own making: that protects nobody, and
        # a pattern in it could keep us busy for hours.
        client.session.validate_tool_result = _believe_nothing  # type: ignore[method-assign]

    @property
    def alive(self) -> bool:
        """Whether it can be used."""
        return not self._lost and not self._program.ended

    async def call(self, tool: str, arguments: Mapping[str, Any], timeout_s: float, progress: OnProgress) -> bytes:
        """The result as JSON text. ToolRefused, SessionLost, Silent."""
        result = await self._asked(
            self._client.call_tool(
                tool, dict(arguments), read_timeout_seconds=timeout_s, progress_callback=_passed_on(progress)
            ),
            timeout_s,
        )
        value = _value(result)
        if result.is_error:
            raise ToolRefused(f"{self._name}/{tool}: {_as_text(value)}")
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    async def tools(self, timeout_s: float) -> tuple[ToolSpec, ...]:
        """What the server offers."""
        found = await self._listed(timeout_s)
        return tuple(
            ToolSpec(name, tool.description or "", json.dumps(tool.input_schema).encode())
            for name, tool in found.items()
        )

    def is_safe(self, tool: str) -> bool:
        """Whether the server says of a tool that calling it twice is as good as once."""
        hints = self._hints(tool)
        return hints is not None and (hints.read_only_hint is True or hints.idempotent_hint is True)

    def is_read_only(self, tool: str) -> bool:
        """Whether the server says of a tool that it changes nothing."""
        hints = self._hints(tool)
        return hints is not None and hints.read_only_hint is True

    def _hints(self, tool: str) -> mcp_types.ToolAnnotations | None:
        known = (self._specs or {}).get(tool)
        return known.annotations if known is not None else None

    def about(self) -> Mapping[str, Any]:
        """The server's own name and version, and the protocol that was agreed on."""
        info = self._client.server_info
        said = {"name": info.name, "version": info.version} if info is not None else {}
        return {**said, "protocol": self._client.protocol_version}

    async def learn(self, timeout_s: float) -> None:
        """Ask what it offers once, ahead of calls: what is safe to repeat is known from that."""
        with suppress(ToolRefused, Silent):
            await self._listed(timeout_s)

    async def _listed(self, timeout_s: float) -> dict[str, mcp_types.Tool]:
        found: dict[str, mcp_types.Tool] = {}
        cursor = None
        for _ in range(PAGES_MAX):
            page = await self._asked(self._client.list_tools(cursor=cursor), timeout_s)
            found |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if not cursor:
                break
        self._specs = found
        return found

    async def _asked(self, asking: Any, timeout_s: float) -> Any:
        """Wait for an answer; what keeps it from coming is told from a no."""
        note = Note()
        token = NOTE.set(note)
        try:
            async with asyncio.timeout(timeout_s + LATE_S):
                return await asking
        except TimeoutError as error:
            raise Silent(f"{self._name} gave no answer in {timeout_s:.0f} s", sent=True) from error
        except MCPError as error:
            raise self._understood(error, note, timeout_s) from error
        except (ValidationError, RuntimeError) as error:
            raise SessionLost(f"{self._name} gave an answer that is none: {spoken(error)[:200]}", sent=True) from error
        except (OSError, ExceptionGroup) as error:
            self._lost = True
            raise SessionLost(f"{self._name}: {spoken(error)}", sent=True) from error
        finally:
            NOTE.reset(token)

    def _understood(self, error: MCPError, note: Note, timeout_s: float) -> Exception:
        if error.code == mcp_types.REQUEST_TIMEOUT:
            return Silent(f"{self._name} gave no answer in {timeout_s:.0f} s", sent=True)
        if note.status:
            # It did not take the call on: too many of them (429), not now (503), or it has forgotten the session (404).
            sent = note.status not in (404, 429, 503)
            text = f"{self._name} answered with HTTP status {note.status}"
            if note.status in (404, 408, 429) or note.status >= 500:
                return SessionLost(text, sent=sent, asked_s=note.asked_s)
            return ToolRefused(f"{text}: {spoken(error)}")
        if error.code in _GONE or note.broke:
            self._lost = True
            return SessionLost(f"{self._name}: {_why(str(error), self._program, note)}", sent=True)
        return ToolRefused(f"{self._name}: {spoken(error)}")


async def _believe_nothing(name: str, result: mcp_types.CallToolResult) -> None:
    """Stand in for a check of a server's answer against its own words."""


def _passed_on(hear: OnProgress) -> ProgressFnT:
    """What the SDK calls with the progress of a call."""

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        hear(Progress(progress, total, message or ""))

    return heard


def _why(text: str, program: Program, note: Note) -> str:
    """Why a connection ended, with what its program last complained of."""
    text = note.broke or program.ended or text.lower()
    words = program.last_words()
    return f"{text} (it said: {words})" if words else text


def _value(result: mcp_types.CallToolResult) -> Any:
    """What a tool gave back: as data where it did so; a single text as that; else its content, block by block."""
    if result.structured_content is not None and not result.is_error:
        return result.structured_content
    blocks = result.content
    if len(blocks) == 1 and isinstance(blocks[0], mcp_types.TextContent):
        return blocks[0].text
    return [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in blocks]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
