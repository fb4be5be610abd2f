"""What the broker takes of an answer over HTTP: its status, and bytes up to a cap, of a harmless shape, as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import httpx2

from sage_sandbox.broker.frames import BODY_MAX
from sage_sandbox.guards.retry import retry_after_s
from sage_sandbox.policy import MiB
from sage_sandbox.sandbox.untrusted import UntrustedData, check_shape

ANSWER_MAX: Final = BODY_MAX + MiB
"""Bytes of one answer: the largest result, and what is around it."""


@dataclass(slots=True)
class Note:
    """What the transport saw while a call was under way: an HTTP status of 400 or more, and when to come back."""

    status: int = 0
    asked_s: float | None = None
    broke: str = ""


NOTE: Final[ContextVar[Note | None]] = ContextVar("NOTE", default=None)
"""The note of the call that a request belongs to: the SDK sends it in a task that has its caller's context."""


async def look_at(response: httpx2.Response) -> None:
    """Note how a request was answered, and have its answer read no further than it may go (an event hook).

    A stream of events has no end that one could wait for: who reads it caps each of them.
    """
    await _look_at(response, streams=True)


async def look_at_whole(response: httpx2.Response) -> None:
    """The same where no stream is asked for: what calls itself one is read as a whole, too, and so capped."""
    await _look_at(response, streams=False)


async def _look_at(response: httpx2.Response, *, streams: bool) -> None:
    note = NOTE.get()
    if note is not None and response.status_code >= 400:
        note.status = response.status_code
        note.asked_s = retry_after_s(response.headers.get("retry-after", ""))
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        await response.aclose()
        raise httpx2.DecodingError("the server sent compressed data that was not asked for", request=response.request)
    if not (streams and response.headers.get("content-type", "").lower().startswith("text/event-stream")):
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
            if size > ANSWER_MAX:
                raise self._refusal(f"it answered with more than {ANSWER_MAX // MiB} MiB")
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
