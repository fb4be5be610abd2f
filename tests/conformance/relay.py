"""The shipped server asks for a token, and the suite has no way to send one: this sends it along with every request.

    python -m conformance.relay URL HEADER

Nothing else of a request is changed but the authority, where it is the relay's own: so what the server makes of a
foreign Host or Origin is still the server's doing. It prints its address, and ends with its standard input.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
from conformance.app import serve_until_stdin_ends

_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"content-length"})


class Relay:
    """An ASGI application that passes requests on."""

    def __init__(self, target: str, header: tuple[bytes, bytes]) -> None:
        self._target = urlsplit(target)
        self._header = header
        self._client = httpx.AsyncClient(timeout=None, trust_env=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        own = "{}:{}".format(*scope["server"]).encode()
        theirs = self._target.netloc.encode()
        headers = [
            (name, value.replace(own, theirs) if name in {b"host", b"origin"} else value)
            for name, value in scope["headers"]
            if name not in _HOP_BY_HOP
        ]
        url = self._target._replace(path=scope["path"], query=scope["query_string"].decode()).geturl()
        body = b"".join([part async for part in _parts(receive)])
        request = self._client.build_request(scope["method"], url, headers=[*headers, self._header], content=body)
        async with anyio.create_task_group() as group:
            group.start_soon(_end_with_client, receive, group.cancel_scope)
            await self._answer(request, send)
            group.cancel_scope.cancel()

    async def _answer(self, request: httpx.Request, send: Any) -> None:
        answer = await self._client.send(request, stream=True)
        try:
            headers = [(name, value) for name, value in answer.headers.raw if name.lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


async def _parts(receive: Any) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _end_with_client(receive: Any, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def main() -> None:
    url, header = sys.argv[1:]
    name, _, value = header.partition(": ")
    serve_until_stdin_ends(lambda _: Relay(url, (name.lower().encode(), value.encode())))


if __name__ == "__main__":
    main()
