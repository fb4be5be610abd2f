"""A tool server that is called at an address: answers with a cap, and what went wrong told from what was said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx2
from mcp.client.streamable_http import streamable_http_client

from sage_sandbox.broker.stdio import LINE_MAX
from sage_sandbox.guards.retry import retry_after_s
from sage_sandbox.policy import MiB
from sage_sandbox.sandbox.untrusted import UntrustedData, check_shape

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

CONNECT_S: Final = 30.0


@dataclass(slots=True)
class Note:
    """What the transport saw while a call was under way: an HTTP status of 400 or more, and when to come back."""

    status: int = 0
    asked_s: float | None = None
    broke: str = ""


NOTE: Final[ContextVar[Note | None]] = ContextVar("NOTE", default=None)
"""The note of the call that a request belongs to: the SDK sends it in a task that has its caller's context."""


@asynccontextmanager
async def address_transport(url: str, headers: Mapping[str, str]) -> AsyncIterator[TransportStreams]:
    """Speak with a server at an address, every request with these headers."""
    # No waiting for reads: how long a call may take is its own business. Not compressed: a few bytes could become many.
    timeout = httpx2.Timeout(CONNECT_S, read=None)
    asked = {**headers, "accept-encoding": "identity"}
    async with (
        httpx2.AsyncClient(headers=asked, timeout=timeout, event_hooks={"response": [_look_at]}) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=LINE_MAX) as streams,
    ):
        yield streams


async def _look_at(response: httpx2.Response) -> None:
    note = NOTE.get()
    if note is not None and response.status_code >= 400:
        note.status = response.status_code
        note.asked_s = retry_after_s(response.headers.get("retry-after", ""))
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        await response.aclose()
        raise httpx2.DecodingError("the server sent compressed data that was not asked for", request=response.request)
    if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
        response.stream = _Capped(response.stream, note)


class _Capped(httpx2.AsyncByteStream):
    """The bytes of a response that is read as a whole, as far as they may go."""

    def __init__(self, stream: object, note: Note | None) -> None:
        assert isinstance(stream, httpx2.AsyncByteStream)
        self._stream = stream
        self._note = note

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces, size = [], 0
        async for piece in self._stream:
            size += len(piece)
            if size > LINE_MAX:
                raise self._refusal(f"it answered with more than {LINE_MAX // MiB} MiB")
            pieces.append(piece)
        data = b"".join(pieces)
        try:
            check_shape(data)
        except UntrustedData as error:
            raise self._refusal(str(error)) from error
        yield data

    async def aclose(self) -> None:
        """Let go of the connection."""
        await self._stream.aclose()

    def _refusal(self, text: str) -> httpx2.StreamError:
        if self._note is not None:
            self._note.broke = text
        return httpx2.StreamError(text)
