"""How soon an agent's server answers: 200 calls, 8 at once, on a run that has ended; and the first after its start.

The calls go over stdio to the server as a process of its own; the floor is the protocol's ping in the same session, in
turns. The first answer, from the start of the process, stands beside an interpreter that imports the protocol's SDK.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from mcp import StdioServerParameters
from mcp.client import Client

from benchmarks.floors.programs import program
from benchmarks.graphs import NOTHING
from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import cli_argv

AT_ONCE: Final = 8
_FEATURE: Final = "benchmark"
_STATUS, _PING = "status of a run that has ended, 8 at once", "ping in the same session, 8 at once"
_FIRST, _IMPORT = "start to first answer", "python3 -c 'import mcp.server.mcpserver'"
_TEMPLATE: Final = {
    "name": "nothing",
    "phases": [{"id": "a", "name": "A", "operations": {"type": "python", "code": NOTHING}}],
}
_INITIALIZE: Final = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "benchmark", "version": "1"},
    },
}

Call = Callable[[Client], Awaitable[object]]


class Session:
    """A client and its server, in a thread with an event loop, until it is closed."""

    def __init__(self, project: str) -> None:
        argv = cli_argv("serve")
        params = StdioServerParameters(command=argv[0], args=list(argv[1:]), env=dict(os.environ), cwd=project)
        self._client = Client(params, mode="legacy", cache=None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._over = asyncio.Event()
        self._open: asyncio.Future[None] = self._loop.create_future()
        self._owner = asyncio.run_coroutine_threadsafe(self._own(), self._loop)
        self.once(_ready(self._open))

    def once(self, call: Call) -> None:
        """Make one call."""
        asyncio.run_coroutine_threadsafe(_await(call(self._client)), self._loop).result()

    def many(self, call: Call, times: int) -> Round:
        """A round of so many calls, so many of them at once; how long each took, as the client sees it."""
        return lambda: asyncio.run_coroutine_threadsafe(self._many(call, times), self._loop).result()

    def close(self) -> None:
        """End the server."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._owner.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _own(self) -> None:
        async with self._client:
            self._open.set_result(None)
            await self._over.wait()

    async def _many(self, call: Call, times: int) -> list[float]:
        values: list[float] = []
        left = iter(range(times))

        async def caller() -> None:
            for _ in left:
                started = time.perf_counter()
                await call(self._client)
                values.append(time.perf_counter() - started)

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        return values


def _ready(opened: asyncio.Future[None]) -> Call:
    async def wait(_: Client) -> None:
        await opened

    return wait


async def _await(call: Awaitable[object]) -> None:
    await call


async def _execute(client: Client) -> None:
    arguments = {"feature": _FEATURE, "template": "nothing", "options": {"wait": 60}}
    done = await client.call_tool("sage_workflow_execute", arguments)
    if done.is_error or (done.structured_content or {}).get("status") != "completed":
        raise RuntimeError(f"the run was not completed: {done.content}")


async def _status(client: Client) -> None:
    done = await client.call_tool("sage_workflow_status", {"feature": _FEATURE})
    if done.is_error:
        raise RuntimeError(f"no status: {done.content}")


async def _ping(client: Client) -> None:
    await client.send_ping()


def _first_answer(project: str) -> Callable[[], list[float]]:
    """From the start of the process to its answer to ``initialize``; its end is not in the figure."""

    def measure() -> list[float]:
        started = time.perf_counter()
        with subprocess.Popen(cli_argv("serve"), cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps(_INITIALIZE).encode() + b"\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            taken = time.perf_counter() - started
            with suppress(BrokenPipeError):
                server.stdin.close()
        if b"serverInfo" not in answer:
            raise RuntimeError(f"that is no answer: {answer[:200]!r}")
        return [taken]

    return measure


def measure(scale: Scale) -> Iterator[Row]:
    """Calls, then starts."""
    calls, rounds = pick(scale, 200, 200, 16), pick(scale, 10, 4, 1)
    with tempfile.TemporaryDirectory() as folder:
        project = os.path.realpath(folder)
        templates = Path(project, ".sage", "templates")
        templates.mkdir(parents=True)
        (templates / "nothing.json").write_text(json.dumps(_TEMPLATE), encoding="utf-8")
        with closing(Session(project)) as session:
            session.once(_execute)
            taken = take_turns({_STATUS: session.many(_status, calls), _PING: session.many(_ping, calls)}, rounds)
        yield row(_STATUS, taken[_STATUS], "ms", {_PING: taken[_PING]}, [Aim("<= 5 ms", 5)])
        bare = [sys.executable, "-c", "import mcp.server.mcpserver"]
        starts: dict[str, Round] = {_FIRST: _first_answer(project), _IMPORT: each(program(bare))}
        taken = take_turns(starts, pick(scale, 10, 4, 1))
    yield row(_FIRST, taken[_FIRST], "s", {_IMPORT: taken[_IMPORT]}, [Aim("<= 1.2 s", 1.2)])


if __name__ == "__main__":
    main(__doc__ or "", measure)
