"""What the broker adds to a tool call, and whether calls that wait do so at the same time.

A call over a warm stdio session, through the broker with and without an audit log, with its answer kept, and answered
from what is kept, beside the session's own round trip: the protocol's SDK in this process with a server of the same
kind. Then four calls of 0.45, 0.30, 0.40 and 0.20 s in one phase of a run, warm, whose sum is 1.35 s.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

from mcp import StdioServerParameters
from mcp.client import Client

from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import KeptOpen
from sage_sandbox.broker.client import BrokerClient
from sage_sandbox.broker.runs import Keeping
from sage_sandbox.brokering import Tools, needs_of
from sage_sandbox.policy import Policy
from sage_sandbox.runner import Runner
from sage_sandbox.sandbox.calls import Call
from sage_sandbox.toolservers.definition import Server
from sage_sandbox.workflow.definition import Operation, Phase, Workflow

WAITS_S: Final = (0.45, 0.30, 0.40, 0.20)
_PROGRAM: Final = str(Path(__file__).with_name("tool_server.py"))
_SERVER: Final = Server("bench", "benchmark", sys.executable, (_PROGRAM,))
_OWN, _PLAIN, _AUDITED = "the session's own round trip", "tool call", "tool call, audited"
_KEPT, _CACHED = "tool call, its answer kept", "cached tool call"
_KEEPING: Final = Keeping("ab" * 32, encrypt=True, ttl_s=3600.0)
_TOGETHER: Final = "four tool calls that wait, the whole run"


class OwnSession:
    """The SDK's session with a server of its own, in a thread with an event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = Client(StdioServerParameters(command=sys.executable, args=[_PROGRAM]), cache=None)
        self._asked: asyncio.Queue[int] = asyncio.Queue()
        self._answers: asyncio.Queue[list[float]] = asyncio.Queue()
        self._owner = asyncio.run_coroutine_threadsafe(self._own(), self._loop)

    def calls(self, times: int) -> list[float]:
        """How long so many calls took, one after the other, each as its own event loop sees it."""

        async def ask() -> list[float]:
            await self._asked.put(times)
            return await self._answers.get()

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()

    def close(self) -> None:
        """End the server."""
        asyncio.run_coroutine_threadsafe(self._asked.put(0), self._loop).result()
        self._owner.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _own(self) -> None:
        async with self._client as client:
            while times := await self._asked.get():
                values = []
                for _ in range(times):
                    started = time.perf_counter()
                    await client.call_tool("echo", {"text": "hello"})
                    values.append(time.perf_counter() - started)
                await self._answers.put(values)


@contextmanager
def _brokered(
    project: str, audit_key: bytes = b"", shared: Sequence[str] = (), keeping: Keeping | None = None
) -> Iterator[BrokerClient]:
    needs = needs_of([_SERVER], {"a/b": ("bench/*",)}, os.environ, shared)
    tools = Tools.open(project, needs, run="benchmark", feature="benchmark", audit_key=audit_key, keeping=keeping)
    client = BrokerClient(tools.line.path, tools.line.token)
    try:
        _call(client)
        yield client
    finally:
        client.close()
        tools.close()


def _call(client: BrokerClient) -> None:
    answer = client.call("a/b", Call("bench/echo", b'{"text":"hello"}'))
    if not answer.ok:
        raise RuntimeError(answer.error)


def _waits(waits: Sequence[float]) -> Workflow:
    policy = Policy(tool=("bench/wait",))
    operations = tuple(
        Operation(f"op-{number}", "mcp", tool="bench/wait", params={"seconds": wait}, policy=policy)
        for number, wait in enumerate(waits)
    )
    return Workflow("waits", (Phase("waits", "waits", operations),))


def measure(scale: Scale) -> Iterator[Row]:
    """The calls, then the waits."""
    times, rounds = pick(scale, 200, 50, 2), pick(scale, 10, 4, 1)
    with ExitStack() as stack:
        project = str(Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve())
        own = OwnSession()
        stack.callback(own.close)
        plain = stack.enter_context(_brokered(project))
        audited = stack.enter_context(_brokered(project, b"k" * 32))
        kept = stack.enter_context(_brokered(project, keeping=_KEEPING))
        cached = stack.enter_context(_brokered(project, keeping=replace(_KEEPING, first={"a/b": 3600.0})))
        arms: dict[str, Round] = {
            _OWN: lambda: own.calls(times),
            _PLAIN: each(lambda: _call(plain), times),
            _AUDITED: each(lambda: _call(audited), times),
            _KEPT: each(lambda: _call(kept), times),
            _CACHED: each(lambda: _call(cached), times),
        }
        taken = take_turns(arms, rounds)
    floor = taken.pop(_OWN)
    for name, values in taken.items():
        yield row(name, values, "ms", {_OWN: floor})
        if name == _CACHED:
            continue  # it asks no server, so it may well take less
        above = [value - median(floor) for value in values]
        yield row(f"{name}: above the session's own round trip", above, "ms", {_OWN: floor}, [Aim("<= 1.5 ms", 1.5)])
    yield from _measure_together(scale)


def _measure_together(scale: Scale) -> Iterator[Row]:
    waits = WAITS_S if scale != "tiny" else tuple(wait / 10 for wait in WAITS_S)
    workflow = _waits(waits)
    policies = {("waits", operation.id): operation.policy for operation in workflow.phases[0].operations}
    grants = {"/".join(key): policy.tool for key, policy in policies.items()}
    with ExitStack() as stack:
        project = str(Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve())
        slots = KeptOpen(project, len(waits))
        stack.callback(slots.end)
        # Another run holds broker and session: what is measured is neither's start.
        stack.enter_context(_brokered(project, shared=["bench"]))
        needs = needs_of([_SERVER], grants, os.environ, ["bench"])

        def together() -> list[float]:
            started = time.monotonic()
            runner = Runner(
                workflow, feature="benchmark", project=project, policies=policies, dispatcher=slots, needs=needs
            )
            result = runner.run()
            if result.status != "completed":
                raise RuntimeError(f"the run ended as {result.status}: {result.errors[:1]}")
            return [time.monotonic() - started]

        taken = take_turns({_TOGETHER: together}, pick(scale, 15, 5, 1))
    yield row(_TOGETHER, taken[_TOGETHER], "s", {"the longest of them": [max(waits)]}, [Aim("<= 0.5 s", 0.5)])


if __name__ == "__main__":
    main(__doc__ or "", measure)
