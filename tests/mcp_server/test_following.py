"""Waiting for a run: the client hears of it meanwhile, and its cancelling is told apart from its vanishing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer

from sage_sandbox.errors import NoSuchRun
from sage_sandbox.history import Standing
from sage_sandbox.mcp_server.cancelling import Cancellations
from sage_sandbox.mcp_server.following import Follower, in_thread
from sage_sandbox.mcp_server.tools import AnyContext


class FakeRuns:
    """Runs that last for so many looks."""

    def __init__(self, looks: int = 0, known: bool = True) -> None:
        self.looks = looks
        self.known = known
        self.cancelled: list[str] = []

    def wait(self, feature: str, timeout_s: float) -> bool:
        self.looks -= 1
        return self.looks < 0

    def standing(self, feature: str) -> Standing:
        if not self.known:
            raise NoSuchRun("not yet")
        return Standing(feature, "running", progress={"completed": 1, "total": 3, "percentage": 33}, phase="a")

    def cancel(self, feature: str, *, save: bool) -> None:
        self.cancelled.append(feature)


def follow(runs: Any, **options: Any) -> list[tuple[float, float | None, str | None]]:
    """What a client hears while a call waits."""
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async def story() -> None:
        cancellations = Cancellations()
        server = MCPServer("test", middleware=[cancellations])
        follower = Follower(runs, cancellations, **options)

        @server.tool()
        async def wait(ctx: AnyContext) -> str:
            await follower.follow("f", 60, ctx)
            return "done"

        async with Client(server, mode="legacy") as client:
            await client.call_tool("wait", {}, progress_callback=hear)

    anyio.run(story)
    return heard


def test_progress_is_told_and_always_grows():
    heard = follow(FakeRuns(looks=4), news_s=0)

    assert 4 == len(heard)
    assert heard == sorted(heard)
    assert 4 == len({progress for progress, _, _ in heard})
    assert {(3, "1 of 3 phases, a")} == {(total, message) for _, total, message in heard}


def test_progress_is_not_told_with_each_look():
    assert [] == follow(FakeRuns(looks=4), news_s=3600)


def test_a_run_that_cannot_be_looked_at_is_waited_for_in_silence():
    assert [] == follow(FakeRuns(looks=3, known=False), news_s=0)


def request(request_id: object, session: str = "") -> Any:
    headers = SimpleNamespace(headers={"mcp-session-id": session}) if session else None
    return SimpleNamespace(method="tools/call", request=headers, request_id=request_id, params={})


def notification(request_id: object, session: str = "") -> Any:
    headers = SimpleNamespace(headers={"mcp-session-id": session}) if session else None
    params = {"requestId": request_id}
    return SimpleNamespace(method="notifications/cancelled", request=headers, request_id=None, params=params)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (notification(7), True),
        (notification("7"), True),
        (notification(8), False),
        (notification(7, "other"), False),
        (SimpleNamespace(method="notifications/cancelled", request=None, request_id=None, params=None), False),
        (SimpleNamespace(method="ping", request=None, request_id=7, params={"requestId": 7}), False),
    ],
)
def test_a_cancelled_request_is_known_by_its_id_and_session(said, meant):
    async def story() -> None:
        cancellations = Cancellations()

        async def passed_on(_: object) -> None:
            pass

        with cancellations.watching(request(7)) as asked:
            await cancellations(said, passed_on)
            assert meant == asked.is_set()
        await cancellations(said, passed_on)  # it is over: nobody is told

    anyio.run(story)


@pytest.mark.parametrize(("told", "expected"), [(True, ["f"]), (False, [])])
def test_a_run_ends_with_its_call_if_its_client_says_so_and_not_if_it_is_gone(told, expected):
    runs: Any = FakeRuns(looks=10**9)

    async def story() -> None:
        cancellations = Cancellations()
        follower = Follower(runs, cancellations)
        ctx: Any = SimpleNamespace(request_context=request(1), report_progress=_nothing)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follower.carry, lambda: None, "f", 600, ctx)
            while runs.looks == 10**9:  # noqa: ASYNC110 - a thread decrements it
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
            if told:
                with anyio.CancelScope(shield=True):
                    await cancellations(notification(1), _nothing)

    anyio.run(story)

    assert expected == runs.cancelled


def test_a_call_that_is_cancelled_before_its_run_began_ends_nobody_elses():
    runs: Any = FakeRuns()

    async def story() -> None:
        cancellations = Cancellations()
        follower = Follower(runs, cancellations)
        ctx: Any = SimpleNamespace(request_context=request(1))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await follower.carry(lambda: None, "f", 600, ctx)

    anyio.run(story)

    assert [] == runs.cancelled


def test_what_blocks_is_finished_whatever_becomes_of_the_request():
    done: list[str] = []

    async def story() -> None:
        with anyio.CancelScope() as scope:

            def act() -> None:
                anyio.from_thread.run_sync(scope.cancel)
                done.append("to its end")

            await in_thread(act)
            done.append("and the rest")
            await anyio.lowlevel.checkpoint()
            done.append("never")

    anyio.run(story)

    assert ["to its end", "and the rest"] == done


async def _nothing(*_: object) -> None:
    pass
