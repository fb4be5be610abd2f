"""What the tests of the egress proxy share: a session with a resolver of the test's own, and hosts on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from sandbox import throwaway

from sage_sandbox.egress import connection
from sage_sandbox.egress.session import Session, World
from sage_sandbox.hosts import parse_target

PATIENCE_S = 30.0


@pytest.fixture(scope="session", autouse=True)
def _measured() -> Iterator[None]:
    """What throw-away processes covered counts."""
    yield
    throwaway.merge_coverage()


@dataclass
class Names:
    """A resolver: each name has answers, one a question; the last one stays. ``asked`` is what it was asked."""

    answers: dict[str, list[Sequence[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def resolve(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        known = self.answers[host]
        return known.pop(0) if len(known) > 1 else known[0]


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def make_session(names: Names) -> Callable[..., Session]:
    """A session with these grants."""

    def make(*granted: str, own: Sequence[str] = (), **more: int) -> Session:
        return Session(tuple(map(parse_target, granted)), World(names.resolve, own.__contains__), **more)

    return make


@pytest.fixture
def host() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Serve each connection to a port of loopback by a function; gives the port."""
    servers: list[socket.socket] = []

    def serve(act: Callable[[socket.socket], None]) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def loop() -> None:
            with suppress(OSError):
                while True:
                    made, _ = server.accept()
                    made.settimeout(PATIENCE_S)
                    threading.Thread(target=one, args=(made,), daemon=True).start()

        def one(made: socket.socket) -> None:
            with made, suppress(OSError):
                act(made)

        threading.Thread(target=loop, daemon=True).start()
        port: int = server.getsockname()[1]
        return port

    yield serve
    for server in servers:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.fixture
def talk() -> Iterator[Callable[..., socket.socket]]:
    """A client's end of a connection that a session serves."""
    ends: list[socket.socket] = []

    def connect(session: Session, **how: float) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            served, _ = listener.accept()
        client.settimeout(PATIENCE_S)
        ends.append(client)
        threading.Thread(target=connection.serve, args=(served, session), kwargs=how, daemon=True).start()
        return client

    yield connect
    for end in ends:
        end.close()


def everything(sock: socket.socket) -> bytes:
    """All that comes until the end of the stream."""
    data = b""
    while part := sock.recv(1 << 16):
        data += part
    return data


def read_head(sock: socket.socket) -> bytes:
    """A head, byte by byte, so that nothing after it is taken."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        part = sock.recv(1)
        if not part:
            return data
        data += part
    return data
