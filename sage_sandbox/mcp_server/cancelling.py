"""Which requests were cancelled by the client that made them, and which only ended because their client has gone.

To a handler both are the same: it is cancelled. But who cancels a call wants its run to end, and who is gone, killed or
cut off, wants to find it again. The one sign that tells them apart is the notification, which the SDK passes on to
middleware right after it has cancelled the handler (mcp.server.context, `ServerMiddleware`). Over HTTP, since
2026-07-28, a client cancels by closing the connection, so there the two cannot be told apart: the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

PATIENCE_S: Final = 0.5
"""How long the notification may come after the handler was cancelled; it is on its way by then, or does not come."""

_Key = tuple[str, str]


class Cancellations:
    """The requests under way, and which of them were cancelled by their clients. One for each server."""

    def __init__(self) -> None:
        self._asked: dict[_Key, anyio.Event] = {}

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Take note of a notification, as a middleware of the server."""
        if ctx.method == "notifications/cancelled" and ctx.params is not None:
            event = self._asked.get(_key(ctx, ctx.params.get("requestId")))
            if event is not None:
                event.set()
        return await call_next(ctx)

    @contextmanager
    def watching(self, ctx: ServerRequestContext[Any, Any]) -> Iterator[anyio.Event]:
        """An event that is set when the client cancels this request."""
        key = _key(ctx, ctx.request_id)
        event = self._asked[key] = anyio.Event()
        try:
            yield event
        finally:
            if self._asked.get(key) is event:
                del self._asked[key]


def _key(ctx: ServerRequestContext[Any, Any], request_id: object) -> _Key:
    """Ids are a session's: over HTTP, several clients count from 1 each. They may come back as text."""
    headers = getattr(ctx.request, "headers", {})
    return headers.get("mcp-session-id", ""), str(request_id)
