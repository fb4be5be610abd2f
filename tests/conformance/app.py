"""The server that the conformance suite is run against: ours, with the suite's fixtures added.

    python -m conformance.app

It prints its address once it listens, and ends with its standard input.
"""

from __future__ import annotations

import socket
import sys
import threading

import uvicorn
from conformance.asking import add_asking
from conformance.fixtures import add_fixtures
from conformance.lasting import FixtureTasks, add_lasting
from mcp.server.mcpserver import MCPServer

from sage_sandbox.mcp_server.tasks import TasksExtension


def make_app() -> MCPServer:
    extension = TasksExtension(FixtureTasks())
    server = MCPServer(
        "test", version="1", extensions=[extension], middleware=[extension.check_listening], log_level="WARNING"
    )
    add_fixtures(server)
    add_asking(server)
    add_lasting(server)
    return server


def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    serving = uvicorn.Server(uvicorn.Config(make_app().streamable_http_app(), log_level="warning"))

    def end() -> None:
        sys.stdin.read()
        serving.should_exit = True

    threading.Thread(target=end, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{port}/mcp\n")
    sys.stdout.flush()
    serving.run(sockets=[listening])


if __name__ == "__main__":
    main()
