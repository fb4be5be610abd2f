"""The run's side of its control socket: it listens, answers, and tells all who wait how it ended."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from sage_sandbox.control.door import Door
from sage_sandbox.control.lines import REQUEST_MAX, address, parse
from sage_sandbox.disk.sockets import peer_of
from sage_sandbox.errors import SageError

VISITORS_MAX: Final = 16
"""How many may be about to ask at once; others queue in the kernel. Who has asked and waits does not count."""
WAITERS_MAX: Final = 128
SILENCE_S: Final = 5.0
"""How long somebody may be connected without having asked."""
MEND_S: Final = 5.0
"""How often to look whether the socket is still at its place."""
RETRY_S: Final = 0.2
"""How long to let nobody in once no descriptor was free for them."""


class Handler(Protocol):
    """The run behind a socket; it is called from the socket's thread, and must return at once."""

    def cancel(self, save: bool) -> None:
        """End the run soon; without ``save`` nothing is kept of phases that are cut short."""

    def status(self) -> dict[str, Any]:
        """Where the run is."""


class Server:
    """Listens in a thread of its own, from `open` until `finish` or `close`: all are for one and the same thread."""

    def __init__(
        self,
        door: Door,
        handler: Handler,
        selector: selectors.BaseSelector,
        woken: int,
        silence_s: float,
        mend_s: float,
    ) -> None:
        self._door = door
        self._handler = handler
        self._selector = selector
        self._woken = woken
        self._silence_s = silence_s
        self._mend_s = mend_s
        self._mend_at = time.monotonic() + mend_s
        self._deaf_until = 0.0
        self._visitors: set[_Visitor] = set()
        self._last: Mapping[str, Any] | None = None
        self._thread = threading.Thread(target=self._serve, name="sage-control", daemon=True)
        selector.register(woken, selectors.EVENT_READ)

    @classmethod
    def open(
        cls,
        project_id: str,
        feature: str,
        *,
        handler: Handler,
        environ: Mapping[str, str] | None = None,
        silence_s: float = SILENCE_S,
        mend_s: float = MEND_S,
    ) -> Self:
        """Be there for others. SageError or OSError if that cannot be; then nothing is left open.

        The caller holds the feature's lock: whoever left a socket there is dead, and it is replaced.
        """
        with ExitStack() as undo:
            door = Door(address(project_id, feature), environ)
            undo.callback(door.close)
            door.open()
            selector = undo.enter_context(selectors.DefaultSelector())
            woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, woken)
            server = cls(door, handler, selector, woken, silence_s, mend_s)
            try:
                server._thread.start()
            except RuntimeError as error:  # the limit on processes counts threads
                raise SageError(f"no thread can be started: {error}") from error
            undo.pop_all()
        return server

    def finish(self, answer: Mapping[str, Any]) -> None:
        """Take the socket away and tell ``answer`` to all who cancelled or wait; a second time does nothing.

        It has the fields ``status``, ``cancelledAt`` and ``checkpointSaved``.
        """
        if self._last is None:
            self._last = dict(answer)
            os.eventfd_write(self._woken, 1)
            self._thread.join()
            os.close(self._woken)

    def close(self) -> None:
        """As `finish`, where there is nothing to tell: whoever waits learns that."""
        self.finish({"error": "the run ended without a result"})

    def _serve(self) -> None:
        # Signals are for the main thread: taken here, they would leave it asleep.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while self._last is None:
                self._mend_door()
                self._listen_if_room()
                for key, _ in self._selector.select(self._patience_s()):
                    self._attend(key.data)
                self._drop_silent()
            self._say_farewell(self._last)
        finally:
            for visitor in tuple(self._visitors):
                self._drop(visitor)
            self._door.close()
            self._selector.close()

    def _patience_s(self) -> float:
        """How long nothing needs to be done unless somebody speaks."""
        now = time.monotonic()
        times = [self._mend_at, *(visitor.until for visitor in self._asking())]
        if self._deaf_until > now:
            times.append(self._deaf_until)
        return max(min(times) - now, 0.0)

    def _mend_door(self) -> None:
        """Make the socket anew if it is gone."""
        # Logind empties the runtime folder at the user's last logout; a run may go on.
        if time.monotonic() < self._mend_at:
            return
        self._mend_at = time.monotonic() + self._mend_s
        if self._door.is_lost():
            self._stop_listening()
            with suppress(OSError, SageError):
                self._door.open()

    def _listen_if_room(self) -> None:
        if len(self._asking()) >= VISITORS_MAX or time.monotonic() < self._deaf_until:
            self._stop_listening()
        elif self._door.listener is not None and not self._listens():
            self._selector.register(self._door.listener, selectors.EVENT_READ, self._door)

    def _stop_listening(self) -> None:
        if self._door.listener is not None and self._listens():
            self._selector.unregister(self._door.listener)

    def _listens(self) -> bool:
        return any(key.data is self._door for key in self._selector.get_map().values())

    def _asking(self) -> list[_Visitor]:
        return [visitor for visitor in self._visitors if not visitor.waits]

    def _attend(self, whom: object) -> None:
        if whom is self._door:
            self._let_in()
        elif isinstance(whom, _Visitor):
            self._hear(whom)

    def _let_in(self) -> bool:
        """Let one in, if it is our user; False if nobody came, or no descriptor is free."""
        assert self._door.listener is not None
        try:
            sock, _ = self._door.listener.accept()
        except BlockingIOError:
            return False
        except OSError:
            self._deaf_until = time.monotonic() + RETRY_S  # the bell still rings: asked at once, we would spin
            return False
        if not peer_of(sock).is_ours:
            sock.close()
            return True
        sock.setblocking(False)
        visitor = _Visitor(sock, time.monotonic() + self._silence_s)
        self._visitors.add(visitor)
        self._selector.register(sock, selectors.EVENT_READ, visitor)
        return True

    def _hear(self, visitor: _Visitor) -> None:
        try:
            heard = visitor.sock.recv(REQUEST_MAX + 1)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if not heard or visitor.waits:  # it is gone, or says more than one request
            self._drop(visitor)
            return
        visitor.heard += heard
        line, ends, _ = visitor.heard.partition(b"\n")
        if len(line) > REQUEST_MAX:
            self._say(visitor, {"error": f"a request has {REQUEST_MAX} bytes at most"})
        elif ends:
            self._do(visitor, parse(line))

    def _do(self, visitor: _Visitor, request: Mapping[str, Any] | None) -> None:
        try:
            answer = self._answer(request)
        except Exception as error:  # noqa: BLE001 - what the run did wrong must not leave it without its socket
            answer = {"error": f"{type(error).__name__}: {error}"}
        if answer is None:
            visitor.waits = True
        else:
            self._say(visitor, answer)

    def _answer(self, request: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """What there is to say at once; None if the answer is how the run ends."""
        match request:
            case {"do": "status"}:
                return self._handler.status()
            case {"do": "cancel", "save": bool(save)}:
                if self._last is None:
                    self._handler.cancel(save)
                return self._full()
            case {"do": "wait"}:
                return self._full()
        return {"error": "that is not a request"}

    def _full(self) -> Mapping[str, Any] | None:
        if len(self._visitors) - len(self._asking()) < WAITERS_MAX:
            return None
        return {"error": f"{WAITERS_MAX} processes are waiting already"}

    def _say(self, visitor: _Visitor, answer: Mapping[str, Any]) -> None:
        with suppress(OSError):
            visitor.sock.send(json.dumps(answer).encode() + b"\n", socket.MSG_NOSIGNAL)
        self._drop(visitor)

    def _drop(self, visitor: _Visitor) -> None:
        self._visitors.discard(visitor)
        self._selector.unregister(visitor.sock)
        visitor.sock.close()

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for visitor in self._asking():
            if visitor.until <= now:
                self._drop(visitor)

    def _say_farewell(self, answer: Mapping[str, Any]) -> None:
        """Answer everybody who has asked, also those who were not heard yet."""
        self._door.remove()
        more = self._door.listener is not None
        while more:
            more = self._let_in()
        for visitor in self._asking():
            self._hear(visitor)
        for visitor in self._visitors - set(self._asking()):
            self._say(visitor, answer)


@dataclass(slots=True, eq=False)
class _Visitor:
    """Somebody who is connected: has until ``until`` to ask, and then may wait."""

    sock: socket.socket
    until: float
    heard: bytes = b""
    waits: bool = False
