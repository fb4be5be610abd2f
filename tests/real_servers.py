"""Tool servers that nobody here wrote, where `tox -e servers` has put them."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDER = os.environ.get("SAGE_TEST_SERVERS", "")
PLACES = {
    "mcp-server-time": "py/bin/mcp-server-time",
    "mcp-server-git": "py/bin/mcp-server-git",
    "mcp-server-everything": "node_modules/.bin/mcp-server-everything",
    "mcp-server-filesystem": "node_modules/.bin/mcp-server-filesystem",
    "mcp-server-memory": "node_modules/.bin/mcp-server-memory",
}


def program(name: str) -> str:
    """Where a server is; a skip that names it where it is not."""
    path = Path(FOLDER, PLACES[name])
    if not FOLDER or not path.exists():
        pytest.skip(f"{name} is not installed: tox -e servers")
    return str(path)


@contextmanager
def serving_everything() -> Iterator[int]:
    """server-everything at a port of this machine."""
    path = program("mcp-server-everything")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    process = subprocess.Popen(
        [path, "streamableHttp"],
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_listens(port)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_until_it_listens(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            return
