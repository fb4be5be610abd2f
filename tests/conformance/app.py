"""The server that the conformance suite is run against: ours, with the suite's fixtures added.

    python -m conformance.app

It prints its address once it listens, and ends with its standard input.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from conformance.asking import add_asking
from conformance.fixtures import add_fixtures
from conformance.lasting import FixtureTasks, add_lasting
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolRequestParams

from sage_sandbox.mcp_server import http
from sage_sandbox.mcp_server.server import make_server
from sage_sandbox.mcp_server.tasks import Task, Tasks


class Both:
    """The tasks that are runs, and those of the fixtures."""

    def __init__(self, ours: Tasks) -> None:
        self._fixtures = FixtureTasks()
        self._ours = ours
        self.required = ours.required | self._fixtures.required

    async def start(
        self, call: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], answer: CallNext
    ) -> Task | HandlerResult:
        ours = call.name.startswith("sage_")
        return await (self._ours if ours else self._fixtures).start(call, ctx, answer)

    async def get(self, name: str) -> Task | None:
        return await self._ours.get(name) or await self._fixtures.get(name)

    async def update(self, name: str, responses: Mapping[str, Mapping[str, Any]]) -> bool:
        return await self._ours.update(name, responses) or await self._fixtures.update(name, responses)

    async def cancel(self, name: str) -> bool:
        return await self._ours.cancel(name) or await self._fixtures.cancel(name)


def make_server_for_suite() -> MCPServer:
    """The server of the working directory, and what the suite wants beside it."""
    server = make_server(Path.cwd(), os.environ, tasks=Both)
    add_fixtures(server)
    add_asking(server)
    add_lasting(server)
    return server


class Presenting:
    """Sends the token along that the server asks for: the suite has no way to."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._header = (b"authorization", f"Bearer {token}".encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = {"headers": [*scope["headers"], self._header]} if scope["type"] == "http" else {}
        await self._app({**scope, **more}, receive, send)


def serve_until_stdin_ends(make: Callable[[str], Any]) -> None:
    """Serve an application, made for the authority that it gets, and print its address."""
    listening = http.listen("127.0.0.1:0")
    authority = http.authority(listening)
    serving = uvicorn.Server(uvicorn.Config(make(authority), log_level="warning"))

    def end() -> None:
        sys.stdin.read()
        serving.should_exit = True

    threading.Thread(target=end, daemon=True).start()
    sys.stdout.write(f"http://{authority}{http.PATH}\n")
    sys.stdout.flush()
    serving.run(sockets=[listening])


def main() -> None:
    token = http.make_token()
    serve_until_stdin_ends(
        lambda authority: Presenting(http.make_app(make_server_for_suite(), authority, token), token)
    )


if __name__ == "__main__":
    main()
