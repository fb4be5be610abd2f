"""One connection of an operation: a request read, decided on, and its bytes passed both ways. A thread of the proxy.

Everything that comes from the operation's side is hostile; what comes from the host's side is a stranger's.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from sage_sandbox.egress.messages import END_OF_HEAD, HEAD_MAX, Answer, BadRequest, Body, Request, parse_request, reply
from sage_sandbox.egress.session import Admitted, NotReached, Overdrawn, Refused, Session, Tally
from sage_sandbox.hosts import Target
from sage_sandbox.outcome import Contact

HEAD_S: Final = 20.0
CONNECT_S: Final = 10.0
"""For one address; all of a host's together take at most three times as long."""
IDLE_S: Final = 300.0
"""How long nothing may be said on a connection, in either direction."""
_CHUNK: Final = 1 << 16


class _Filter(Protocol):
    """What bytes go through on their way."""

    complete: bool

    def feed(self, data: bytes) -> bytes:
        """What of it is passed on."""
        ...

    def end(self) -> None:
        """Nothing more comes; BadRequest if that is too early."""
        ...


class _Everything:
    """A tunnel: what comes is passed on."""

    complete = False

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> None:
        pass


class Way:
    """One direction: reads no more than it has passed on."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, through: _Filter, count: Callable[[int], None]
    ) -> None:
        self.source = source
        self.sink = sink
        self.buffer = b""
        self.ended = through.complete
        self._through = through
        self._count = count

    @property
    def over(self) -> bool:
        """Whether everything that was to come has been passed on."""
        return self.ended and not self.buffer

    def put(self, data: bytes) -> None:
        """Take bytes that have come."""
        passed = self._through.feed(data)
        self._count(len(passed))
        self.buffer += passed
        self.ended = self.ended or self._through.complete

    def read(self) -> None:
        """Take what is there; the end of the stream is passed on too, where the stream is all there is."""
        try:
            data = self.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.put(data)
            return
        self.ended = True
        self._through.end()
        if isinstance(self._through, _Everything):
            with suppress(OSError):
                self.sink.shutdown(socket.SHUT_WR)

    def write(self) -> None:
        """Pass on what the other side has room for."""
        try:
            self.buffer = self.buffer[self.sink.send(self.buffer) :]
        except BlockingIOError:
            return
        except OSError:
            # It takes no more: what it has to say may still come.
            self.buffer, self.ended = b"", True


def pump(ways: Sequence[Way], until: Sequence[Way], idle_s: float) -> None:
    """Pass bytes on until these ways are over; TimeoutError if nothing moves for so long."""
    while not all(way.over for way in until):
        wanted: dict[socket.socket, int] = {}
        for way in ways:
            if way.buffer:
                wanted[way.sink] = wanted.get(way.sink, 0) | select.POLLOUT
            elif not way.ended:
                wanted[way.source] = wanted.get(way.source, 0) | select.POLLIN
        poll = select.poll()
        for sock, events in wanted.items():
            poll.register(sock, events)
        ready = {fd for fd, _events in poll.poll(idle_s * 1000)}
        if not ready:
            raise TimeoutError
        for way in ways:
            if not way.buffer and not way.ended and way.source.fileno() in ready:
                way.read()
            if way.buffer:
                way.write()


def serve(client: socket.socket, session: Session, *, idle_s: float = IDLE_S, head_s: float = HEAD_S) -> None:
    """Serve one request and hang up. Whatever goes wrong ends this connection and nothing else."""
    if not session.keep(client):
        client.close()
        return
    try:
        with suppress(OSError, Overdrawn):
            _serve(client, session, idle_s, head_s)
    finally:
        session.let_go(client)


def _serve(client: socket.socket, session: Session, idle_s: float, head_s: float) -> None:
    try:
        head, rest = _read_head(client, head_s)
        if not head:
            return
        request = parse_request(head)
    except BadRequest as error:
        session.note(Contact("", 0, "refused", f"no request: {error.text}"))
        _hang_up(client, reply(error.status, "Bad Request", error.text))
        return
    target = request.target
    try:
        _go(client, request, rest, session, idle_s)
    except Refused as error:
        _hang_up(client, _forbidden(target, error))
    except Overdrawn as error:
        _hang_up(client, _forbidden(target, Refused(str(error))))
    except NotReached as error:
        _hang_up(client, reply(502, f"Bad Gateway: {target}: {error.why}", f"{target} cannot be reached: {error.why}"))


def _go(client: socket.socket, request: Request, rest: bytes, session: Session, idle_s: float) -> None:
    with session.turn(request.target):
        admitted = session.admit(request.target)
        upstream = _reach(admitted, request.target.port, session)
    try:
        _pass(client, upstream, request, rest, session, admitted.tally, idle_s)
    finally:
        session.let_go(upstream)


def _forbidden(target: Target, error: Refused) -> bytes:
    text = f"{target}: {error.why}"
    option = f"--allow {error.allow}"
    phrase = f"Forbidden: {text}" + (f" ({option})" if error.allow else "")
    return reply(403, phrase, text + (f"\nhint: {option}" if error.allow else ""))


def _read_head(client: socket.socket, head_s: float) -> tuple[bytes, bytes]:
    """The head of a request without its empty line, and what came after it; nothing if nobody said anything."""
    deadline = time.monotonic() + head_s
    data = b""
    while END_OF_HEAD not in data:
        if len(data) > HEAD_MAX:
            raise BadRequest(431, f"the head is larger than {HEAD_MAX >> 10} KiB")
        client.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            part = client.recv(_CHUNK)
        except TimeoutError:
            raise BadRequest(408, "the request did not come to its end") from None
        if not part:
            if data:
                raise BadRequest(400, "the request has no end")
            return b"", b""
        data += part
    head, _, rest = data.partition(END_OF_HEAD)
    return head, rest


def _reach(admitted: Admitted, port: int, session: Session) -> socket.socket:
    """A connection to the first checked address that takes one."""
    why = "it has no address"
    deadline = time.monotonic() + 3 * CONNECT_S
    for address in admitted.addresses:
        try:
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            if not session.keep(made):
                made.close()
                raise session.given_up(admitted, "too many connections at once")
            made.settimeout(max(0.001, min(CONNECT_S, deadline - time.monotonic())))
            try:
                made.connect((address, port))
            except OSError:
                session.let_go(made)
                raise
        except OSError as error:
            why = f"{address}: {error.strerror or 'no answer in time'}"
        else:
            session.reached(admitted)
            return made
    raise session.not_reached(admitted, why)


def _pass(client: socket.socket, upstream: socket.socket, request: Request, rest: bytes, session: Session,
          tally: Tally, idle_s: float) -> None:  # fmt: skip
    """Pass on a tunnel's bytes, or this one request and its answer."""
    for sock in (client, upstream):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    up: _Filter = _Everything() if request.is_tunnel else Body(request.length)
    answer = Answer()
    there = Way(client, upstream, up, lambda count: session.move(tally, sent=count))
    back = Way(
        upstream, client, _Everything() if request.is_tunnel else answer, lambda n: session.move(tally, received=n)
    )
    try:
        if request.is_tunnel:
            back.buffer = b"HTTP/1.1 200 Connection established\r\n\r\n"
        else:
            there.buffer = request.head()
            session.move(tally, sent=len(there.buffer))
        if rest and not there.ended:
            there.put(rest)
        # A host may answer before it has read all of a request, and hang up: the answer is what counts.
        pump((there, back), (there, back) if request.is_tunnel else (back,), idle_s)
        if not request.is_tunnel:
            _hang_up(client, b"")
    except BadRequest as error:
        session.note(Contact(request.target.host, request.target.port, "failed", error.text))
        if not answer.begun:
            _hang_up(client, reply(error.status, "Bad Gateway" if error.status == 502 else "Bad Request", error.text))
    except Overdrawn as error:
        session.note(Contact(request.target.host, request.target.port, "refused", str(error)))


def _hang_up(client: socket.socket, answer: bytes) -> None:
    """Answer and close, so that the answer is read: closing with unread input would be a reset that overtakes it."""
    client.settimeout(1.0)
    with suppress(OSError):
        client.sendall(answer)
        client.shutdown(socket.SHUT_WR)
        for _ in range(64):
            if not client.recv(_CHUNK):
                return
