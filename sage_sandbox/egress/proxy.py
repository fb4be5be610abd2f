"""The egress proxy: a process of its own beside each worker that needs one.

It is started by exec with an empty environment and nothing but a control socket, holds no key, and confines itself
before it hears of the first operation. It speaks to sandboxes and to the network, and ends when its worker is gone.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from contextlib import suppress
from typing import Any, Final

from sage_sandbox.egress import confinement, connection
from sage_sandbox.egress.addresses import is_own
from sage_sandbox.egress.session import CONNECTIONS_MAX, Session, World, plain
from sage_sandbox.hosts import Target
from sage_sandbox.outcome import Contact

LENGTH: Final = struct.Struct(">I")
FRAME_MAX: Final = 1 << 24
"""Bytes: a policy may name ten thousand hosts."""
THREADS_MAX: Final = 4 * CONNECTIONS_MAX
"""At once, of all sessions: a thread that waits for the resolver outlives its operation."""
_STACK: Final = 512 << 10


def main(control_fd: int, base_uid: int) -> None:
    """Serve one worker until it hangs up. ``base_uid``: become this plus our pid, which owns nothing; 0: stay."""
    control = socket.socket(fileno=control_fd)
    sys.path[:] = []
    threading.stack_size(_STACK)
    world = World(resolve, is_own)
    try:
        confinement.confine(base_uid + os.getpid() if base_uid else 0)
    except OSError as error:
        send(control, {"failed": str(error)})
        return
    send(control, {"ready": True})
    Server(control, world).serve()


def resolve(host: str, port: int) -> list[str]:
    """Ask this machine's resolver, once."""
    # As bytes: a str would be taken through the IDNA codec again.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for *_, address in found]


class Server:
    """The control loop: one operation's session after the other."""

    def __init__(self, control: socket.socket, world: World) -> None:
        self._control = control
        self._world = world
        self._session: Session | None = None
        self._listener: socket.socket | None = None
        self._threads = threading.Semaphore(THREADS_MAX)

    def serve(self) -> None:
        """Until the worker is gone."""
        with suppress(OSError, EOFError):
            while True:
                order, fds = receive(self._control, 1)
                if order["order"] == "open":
                    self._open([Target(*pair) for pair in order["granted"]], socket.socket(fileno=fds[0]))
                else:
                    send(self._control, {"contacts": [plain(contact) for contact in self._shut()]})
        self._shut()

    def _open(self, granted: list[Target], listener: socket.socket) -> None:
        session = Session(tuple(granted), self._world)
        self._session, self._listener = session, listener
        threading.Thread(target=accept, args=(listener, session, self._threads), daemon=True).start()

    def _shut(self) -> tuple[Contact, ...]:
        session, listener = self._session, self._listener
        if session is None or listener is None:
            return ()
        self._session = self._listener = None
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        session.shut()
        return session.contacts()


def accept(listener: socket.socket, session: Session, threads: threading.Semaphore) -> None:
    """Take connections, so many at once, until the listener is shut."""
    slots = threading.Semaphore(CONNECTIONS_MAX)

    def serve(client: socket.socket) -> None:
        try:
            connection.serve(client, session)
        finally:
            slots.release()
            threads.release()

    with listener, suppress(OSError):
        listener.setblocking(True)
        while True:
            # Those that wait are in the listener's queue: nothing is refused, and no thread is started for them.
            slots.acquire()
            threads.acquire()
            client, _address = listener.accept()
            threading.Thread(target=serve, args=(client,), daemon=True).start()


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """One frame: a length, and JSON; descriptors come with its first byte."""
    body = json.dumps(message).encode()
    if fds:
        socket.send_fds(sock, [LENGTH.pack(len(body))], list(fds))
    else:
        sock.sendall(LENGTH.pack(len(body)))
    sock.sendall(body)


def receive(sock: socket.socket, descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
    """One frame, and so many descriptors at most: the kernel closes others.

    EOFError at the end of the stream, ValueError or TypeError for what is no frame.
    """
    start, fds, _flags, _address = socket.recv_fds(sock, LENGTH.size, descriptors)
    data = start + _exactly(sock, LENGTH.size - len(start))
    (length,) = LENGTH.unpack(data)
    if length > FRAME_MAX:
        raise ValueError(f"a frame of {length} bytes")
    message = json.loads(_exactly(sock, length))
    if not isinstance(message, dict):
        raise TypeError("a frame that is no object")
    return message, fds


def _exactly(sock: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = sock.recv(count)
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
