"""A tool server that is called at an address: answers with a cap, and what went wrong told from what was said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import httpx2
from mcp.client.streamable_http import streamable_http_client

from sage_sandbox.broker.stdio import LINE_MAX
from sage_sandbox.broker.web import look_at

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

CONNECT_S: Final = 30.0


@asynccontextmanager
async def address_transport(url: str, headers: Mapping[str, str]) -> AsyncIterator[TransportStreams]:
    """Speak with a server at an address, every request with these headers."""
    # No waiting for reads: how long a call may take is its own business. Not compressed: a few bytes could become many.
    timeout = httpx2.Timeout(CONNECT_S, read=None)
    asked = {**headers, "accept-encoding": "identity"}
    async with (
        httpx2.AsyncClient(headers=asked, timeout=timeout, event_hooks={"response": [look_at]}) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=LINE_MAX) as streams,
    ):
        yield streams
