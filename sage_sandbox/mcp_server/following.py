"""Waiting for runs while the server goes on: in threads, with news for the client, and an end when it wants one."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel
from anyio import CapacityLimiter, to_thread
from mcp.server.mcpserver import Context

from sage_sandbox.errors import SageError
from sage_sandbox.mcp_server.cancelling import PATIENCE_S, Cancellations
from sage_sandbox.mcp_server.runs import Runs

NEWS_S: Final = 5.0
"""How often the client is told that there is progress. It may be told every 10 s at least."""
LOOK_S: Final = 1.0
"""How long a thread may wait by itself: so long it keeps this process from ending."""
WAITERS_MOST: Final = 64
"""How many calls may wait at once, in threads of their own: those that ask are not kept waiting by those that wait."""
_STEP: Final = 1e-6
"""Progress has to grow with each notification, also while no phase ends (specification, "Progress")."""

T = TypeVar("T")
AnyContext = Context[Any, Any]


async def in_thread(call: Callable[..., T], *args: object) -> T:
    """What a blocking call returns; it is finished in any case, whatever becomes of the request."""
    return await to_thread.run_sync(lambda: call(*args))


class Follower:
    """Waits for runs; ``news_s`` is how often a client is told of one."""

    def __init__(self, runs: Runs, cancellations: Cancellations, *, news_s: float = NEWS_S) -> None:
        self._runs = runs
        self._cancellations = cancellations
        self._news_s = news_s
        self._waiters = CapacityLimiter(WAITERS_MOST)

    async def carry(self, begin: Callable[[], T], feature: str, wait_s: float, ctx: AnyContext) -> T:
        """Have a run begin, and wait for its end, so long at most; what ``begin`` returned.

        The run is the call's: it ends with it, if that is cancelled by its client. From the first moment, for a client
        may think better of it while the run begins.
        """
        begun = False
        with self._cancellations.watching(ctx.request_context) as asked:
            try:
                found = await in_thread(begin)
                begun = True
                await self.follow(feature, wait_s, ctx)
            except anyio.get_cancelled_exc_class():
                if begun:
                    with anyio.CancelScope(shield=True):
                        await self._end_if(asked, feature)
                raise
        return found

    async def follow(self, feature: str, wait_s: float, ctx: AnyContext) -> None:
        """Wait until a run has ended, so long at most; the client is told how far it is."""
        await anyio.lowlevel.checkpoint()  # where there is nothing to wait for, a call that was cancelled is so, too
        await self._wait(feature, wait_s, ctx)

    async def _wait(self, feature: str, wait_s: float, ctx: AnyContext) -> None:
        now = anyio.current_time()
        until, news_at, told = now + wait_s, now + self._news_s, 0.0
        while (left := until - now) > 0:
            ended = await to_thread.run_sync(
                self._runs.wait, feature, min(left, LOOK_S), abandon_on_cancel=True, limiter=self._waiters
            )
            if ended:
                return
            now = anyio.current_time()
            if now >= news_at:
                news_at = now + self._news_s
                told = await self._tell(feature, told, ctx)

    async def _tell(self, feature: str, told: float, ctx: AnyContext) -> float:
        """Say how far the run is, if that is known; what was said."""
        with suppress(SageError, OSError):
            standing = await in_thread(self._runs.standing, feature)
            done, total = standing.progress.get("completed", 0), standing.progress.get("total", 0)
            told = max(float(done), math.nextafter(told + _STEP, math.inf))
            await ctx.report_progress(told, total, f"{done} of {total} phases, {standing.phase or 'the first'}")
        return told

    async def _end_if(self, asked: anyio.Event, feature: str) -> None:
        with anyio.move_on_after(PATIENCE_S):
            await asked.wait()
        if asked.is_set():
            with suppress(SageError, OSError):  # it has ended by itself, or says so to whoever asks next
                await in_thread(lambda: self._runs.cancel(feature, save=True))
