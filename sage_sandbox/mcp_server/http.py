"""The server over HTTP: on the loopback only, for who knows the token, and for no page of a browser.

Who may connect to a port of this machine is every user of it, and every page that a browser here shows: so the token,
the Host header (DNS rebinding) and the Origin header are each looked at. A request without the token learns nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from sage_sandbox.errors import UsageError

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An application as ASGI 3 has it (https://asgi.readthedocs.io/en/latest/specs/main.html)."""

PATH: Final = "/mcp"
TOKEN: Final = "SAGE_SERVE_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_LEAST: Final = 32
_BACKLOG: Final = 64
_GRACE_S: Final = 2
"""How long answers that are under way may take once the server is told to end; runs go on in any case."""


def make_token() -> str:
    """A token that nobody guesses: 256 bits."""
    return secrets.token_urlsafe(32)


def check_token(token: str) -> str:
    """The token, if it is long enough to be one; UsageError."""
    if len(token) < TOKEN_LEAST or not token.isascii() or not token.isprintable() or " " in token:
        message = f"{TOKEN} has to have {TOKEN_LEAST} characters at least, printable ASCII without blanks"
        raise UsageError(message, "leave it out and one is made")
    return token


def listen(address: str) -> socket.socket:
    """Listen on ``ADDRESS:PORT``, which has to be of the loopback; UsageError. Port 0 is any that is free."""
    host, colon, port = address.rpartition(":")
    try:
        ip, number = ipaddress.ip_address(host.strip("[]")), int(port)
    except ValueError:
        raise UsageError(f"{address!r} is not ADDRESS:PORT", "write 127.0.0.1:8722") from None
    if not colon or not ip.is_loopback or not 0 <= number <= 65535:
        raise UsageError(f"{address} is not on this machine's loopback", "write 127.0.0.1:8722")
    sock = socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(ip), number))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise UsageError(f"cannot listen on {address}: {error.strerror}", "choose another port, or 0") from error
    return sock


def authority(sock: socket.socket) -> str:
    """``ADDRESS:PORT`` as it stands in a URL."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def make_app(server: MCPServer[Any], authority: str, token: str) -> App:
    """The server as an application that answers under this authority, with this token."""
    from mcp.server.transport_security import TransportSecuritySettings

    host, _, port = authority.rpartition(":")
    known = [authority, f"localhost:{port}"]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=known,
        allowed_origins=[f"http://{name}" for name in known],
    )
    app = server.streamable_http_app(streamable_http_path=PATH, transport_security=security, host=host)
    return Guarded(app, token)


class Guarded:
    """Lets requests through that have the token (RFC 6750, 2.1); the others are answered 401, whatever they ask for."""

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._knows(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

    def _knows(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


def serve_http(server: MCPServer[Any], sock: socket.socket, token: str, *, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM. ``ready`` is called once, before the first connection is accepted."""
    import anyio
    import uvicorn

    config = uvicorn.Config(
        make_app(server, authority(sock), token),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=_GRACE_S,
    )
    ready()
    anyio.run(lambda: uvicorn.Server(config).serve(sockets=[sock]))
