"""What one operation may reach, what it tried, and how much it moved: shared by the threads of its connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sage_sandbox.egress.addresses import is_private, refusal
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


@dataclass(frozen=True, slots=True)
class World:
    """What the proxy asks the machine."""

    resolve: Resolve
    is_own: Callable[[str], bool]


@dataclass(slots=True)
class Tally:
    """How often one thing was tried, and the bytes that went each way."""

    contact: Contact
    times: int = 0
    sent: int = 0
    received: int = 0


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

    def admit(self, target: Target) -> tuple[list[str], Tally]:
        """The checked addresses of a granted host, to be connected to as they are, and where to count what is moved.

        Refused, NotReached, Overdrawn; each is noted.
        """
        contact = Contact(target.host, target.port, "allowed")
        if not any(granted.covers(target) for granted in self.granted):
            refused = Refused("not granted", f"net:{target}")
            self.note(replace(contact, verdict="refused", why=refused.why, allow=refused.allow))
            raise refused
        # To ask for a name is to tell somebody about it: that it is asked for is noted first.
        tally = self.note(contact)
        try:
            return self._addresses(target), tally
        except Refused as error:
            self.correct(tally, replace(contact, verdict="refused", why=error.why, allow=error.allow))
            raise
        except OSError as error:
            raise self.not_reached(tally, f"no address of it is found: {error.strerror}") from error

    def not_reached(self, tally: Tally, why: str) -> NotReached:
        """What was let through did not get there; the error to raise."""
        self.correct(tally, replace(tally.contact, verdict="failed", why=why))
        return NotReached(why)

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
    return {name: getattr(contact, name) for name in contact.__slots__}
