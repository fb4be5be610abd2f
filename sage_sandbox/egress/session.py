"""What one operation may reach, what it tried, and how much it moved: shared by the threads of its connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

from sage_sandbox.egress.addresses import is_private, refusal
from sage_sandbox.egress.known import Host, Hosts
from sage_sandbox.errors import BreakerOpen
from sage_sandbox.frozen import frozen
from sage_sandbox.guards.breaker import FAILURES_MAX, Permit
from sage_sandbox.hosts import Target, is_address
from sage_sandbox.outcome import Contact

CONNECTIONS_MAX: Final = 64
"""At once; a further one waits."""
CONTACTS_MAX: Final = 100
"""How many different things are told apart in an outcome. What would be one more is refused: nothing goes unseen."""
WHY_MAX: Final = 200
BYTES_MAX: Final = 1 << 30
"""In both directions together, for one operation."""

_TOO_MANY: Final = Contact("", 0, "refused", f"more than {CONTACTS_MAX} different hosts, ports and refusals")

Resolve = Callable[[str, int], Sequence[str]]
"""The addresses of a host, in the order in which they are tried; OSError if there are none."""


class Refused(Exception):
    """It is not let through: why, and the grant that would let it (empty: none would)."""

    def __init__(self, why: str, allow: str = "") -> None:
        super().__init__(why, allow)
        self.why = why
        self.allow = allow


class NotReached(Exception):
    """A granted host has no address, or answers at none: why."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Overdrawn(Exception):
    """The operation has moved as many bytes as it may."""


@frozen
class World:
    """What the proxy asks the machine, and what it remembers from one operation to the next."""

    resolve: Resolve
    is_own: Callable[[str], bool]
    hosts: Hosts = field(default_factory=Hosts)


@dataclass(slots=True)
class Tally:
    """How often one thing was tried, and the bytes that went each way."""

    contact: Contact
    times: int = 0
    sent: int = 0
    received: int = 0


class Admitted(NamedTuple):
    """Leave to connect: to which checked addresses, where to count what is moved, and whom to tell how it went."""

    addresses: list[str]
    tally: Tally
    host: Host
    permit: Permit


@dataclass(slots=True)
class Session:
    """From the moment an operation's listener is here until it is dead."""

    granted: tuple[Target, ...]
    world: World
    bytes_max: int = BYTES_MAX
    _tallies: dict[Contact, Tally] = field(default_factory=dict, init=False)
    _sockets: set[socket.socket] = field(default_factory=set, init=False)
    _moved: int = field(default=0, init=False)
    _over: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    # What is let through.

    def turn(self, target: Target) -> AbstractContextManager[object]:
        """Wait until not too many connections to a granted host are being made, and hold a place for one more."""
        return self.world.hosts.of(target).turns if self._grants(target) else nullcontext()

    def admit(self, target: Target) -> Admitted:
        """The checked addresses of a granted host, to be connected to as they are; to be told how that went.

        Refused, NotReached, Overdrawn; each is noted.
        """
        contact = Contact(target.host, target.port, "allowed")
        if not self._grants(target):
            refused = Refused("not granted", f"net:{target}")
            self.note(replace(contact, verdict="refused", why=refused.why, allow=refused.allow))
            raise refused
        host = self.world.hosts.of(target)
        permit = self._permit(contact, host)
        try:
            # To ask for a name is to tell somebody about it: that it is asked for is noted first.
            tally = self.note(contact)
            try:
                return Admitted(self._addresses(target), tally, host, permit)
            except Refused as error:
                self.correct(tally, replace(contact, verdict="refused", why=error.why, allow=error.allow))
                raise
            except OSError as error:
                why = f"no address of it is found: {error.strerror}"
                raise self.not_reached(Admitted([], tally, host, permit), why) from error
        except BaseException:
            permit.withdrawn()  # unless it was told already
            raise

    def reached(self, admitted: Admitted) -> None:
        """The host took the connection."""
        admitted.permit.succeeded()
        self._hear(admitted.tally.contact, admitted.host)

    def not_reached(self, admitted: Admitted, why: str) -> NotReached:
        """What was let through did not get there, which is the host's fault; the error to raise."""
        admitted.permit.failed(why)
        return self.given_up(admitted, why)

    def given_up(self, admitted: Admitted, why: str) -> NotReached:
        """What was let through did not get there, which says nothing of the host; the error to raise."""
        admitted.permit.withdrawn()
        self.correct(admitted.tally, replace(admitted.tally.contact, verdict="failed", why=why))
        self._hear(admitted.tally.contact, admitted.host)
        return NotReached(why)

    def _grants(self, target: Target) -> bool:
        return any(granted.covers(target) for granted in self.granted)

    def _permit(self, contact: Contact, host: Host) -> Permit:
        try:
            permit = host.breaker.admit()
        except BreakerOpen as error:
            why = f"left alone after {FAILURES_MAX} failures in a row"
            self.note(replace(contact, verdict="failed", why=why))
            raise NotReached(f"{why}, tried again in {error.wait_s:.0f} s") from error
        self._hear(contact, host)
        return permit

    def _hear(self, contact: Contact, host: Host) -> None:
        """Note what became of a host's breaker: it is written down with what was tried."""
        for heard in host.heard():
            with suppress(Overdrawn):
                self.note(replace(contact, verdict="breaker", why=f"{heard.before} to {heard.after}"))

    def _addresses(self, target: Target) -> list[str]:
        """The name is resolved once. One address that is not out in the world refuses it, whichever comes first."""
        if is_address(target.host):
            return [target.host]
        if target.host == "localhost":
            return ["127.0.0.1", "::1"]
        found = list(dict.fromkeys(self.world.resolve(target.host, target.port)))
        for address in found:
            self._check(target, address)
        return found

    def _check(self, target: Target, address: str) -> None:
        literal = Target(address, target.port)
        if literal in self.granted:
            return
        if "%" in address:
            raise Refused(f"its address {address} names an interface")
        if what := refusal(address, self.world.is_own):
            # Whoever answers for the name chooses the address: no hint that would open this machine to them.
            allow = f"net:{literal}" if is_private(address) else ""
            raise Refused(f"its address {address} is {what}", allow)

    # What is noted.

    def note(self, contact: Contact) -> Tally:
        """Count one try, before it is made. Overdrawn if it is a new thing and there were too many."""
        with self._lock:
            tally = self._count(contact)
        if tally.contact is _TOO_MANY:
            raise Overdrawn(_TOO_MANY.why)
        return tally

    def correct(self, tally: Tally, contact: Contact) -> None:
        """It came to something else: that is noted in its place, so that nobody else takes the place."""
        with self._lock:
            tally.times -= 1
            if not tally.times:
                del self._tallies[tally.contact]
            self._count(contact)

    def _count(self, contact: Contact) -> Tally:
        contact = replace(contact, why=contact.why[:WHY_MAX])
        if contact not in self._tallies and len(self._tallies) >= CONTACTS_MAX:
            contact = _TOO_MANY
        tally = self._tallies.setdefault(contact, Tally(contact))
        tally.times += 1
        return tally

    def move(self, tally: Tally, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes before they are passed on; Overdrawn if that is more than an operation may."""
        with self._lock:
            self._moved += sent + received
            if self._moved > self.bytes_max:
                raise Overdrawn(f"more than {self.bytes_max >> 20} MiB in and out")
            tally.sent += sent
            tally.received += received

    def contacts(self) -> tuple[Contact, ...]:
        """Everything that was tried, in the order of the first time."""
        with self._lock:
            return tuple(
                replace(tally.contact, times=tally.times, sent=tally.sent, received=tally.received)
                for tally in self._tallies.values()
            )

    # What is open.

    def keep(self, sock: socket.socket) -> bool:
        """Have it closed when the session is shut; False if there are too many, or it is shut already."""
        with self._lock:
            if self._over or len(self._sockets) >= 2 * CONNECTIONS_MAX:
                return False
            self._sockets.add(sock)
            return True

    def let_go(self, sock: socket.socket) -> None:
        """Close it now."""
        with self._lock:
            self._sockets.discard(sock)
        sock.close()

    def shut(self) -> None:
        """End every connection: the threads that wait on one wake up."""
        with self._lock:
            self._over = True
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def plain(contact: Contact) -> dict[str, Any]:
    """A contact as the worker is sent it."""
    return asdict(contact)
