"""The control socket of a run: other processes of its user ask how it stands, wait for its end, or cancel it.

One line of JSON there, one back. The socket lies in a folder that only its user can enter, and each side looks at who
the other one is before it says anything. A run is found by what it listens on, never by a number that a file holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.places import open_runtime, project_place, runtime_folders
from sage_sandbox.errors import SageError
from sage_sandbox.escaping import clip
from sage_sandbox.frozen import frozen

REQUEST_MAX: Final = 4096
ANSWER_MAX: Final = 1 << 16
"""The longest lines, in bytes. An answer goes out in one piece: a Unix socket holds 208 KiB that nobody has read."""
VISITORS_MAX: Final = 16
"""How many may be about to ask at once; others queue in the kernel. Who has asked and waits does not count."""
WAITERS_MAX: Final = 128
SILENCE_S: Final = 5.0
"""How long somebody may be connected without having asked."""
MEND_S: Final = 5.0
"""How often to look whether the socket is still at its place."""
CANCEL_S: Final = 30.0
_RETRY_S: Final = 0.2
_POLL_S: Final = 0.03
_BACKLOG: Final = 128
_NOBODY: Final = (FileNotFoundError, NotADirectoryError, PermissionError, ConnectionError, Untrusted)
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred, unix(7): pid, uid, gid


class NotAnswering(SageError):
    """Somebody is there, but did not answer in time: a process that was stopped, or is very busy."""


class NotRunning(SageError):
    """No process runs that feature, or none that listens."""


class NotCancelled(SageError):
    """A run that was asked to end broke off, and could not say how it ended."""


class Handler(Protocol):
    """The run behind a socket; it is called from the socket's thread, and must return at once."""

    def cancel(self, save: bool) -> None:
        """End the run soon; without ``save`` nothing is kept of phases that are cut short."""

    def status(self) -> dict[str, Any]:
        """Where the run is."""


@frozen
class Cancelled:
    """How a run that was asked to end did so: ``status`` is "completed" if it was quicker than the request."""

    feature: str
    status: str
    at: str
    saved: bool


def address(project_id: str, feature: str) -> str:
    """The name of a run's socket: it says nothing of either, and is short whatever they are."""
    return hashlib.sha256(f"{project_id}\0{feature}".encode()).hexdigest()[:32] + ".sock"


# -- the run's side ------------------------------------------------------------------------------------------------


class Server:
    """Listens in a thread of its own, from `open` until `finish` or `close`: all are for one and the same thread."""

    def __init__(
        self,
        door: _Door,
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
            door = _Door(address(project_id, feature), environ)
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
            self._deaf_until = time.monotonic() + _RETRY_S  # the bell still rings: asked at once, we would spin
            return False
        if _peer(sock).uid != os.geteuid():
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
            self._do(visitor, _parse(line))

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


class _Door:
    """A listening socket at its place in the user's runtime folder."""

    def __init__(self, name: str, environ: Mapping[str, str] | None) -> None:
        self.listener: socket.socket | None = None
        self._name = name
        self._environ = environ
        self._folder: Folder | None = None
        self._identity = (0, 0)

    def open(self) -> None:
        """Listen there, in the place of whatever has that name."""
        self.close()
        self._folder = open_runtime(self._environ)
        try:
            self.listener = self._bind(self._folder)
        except BaseException:
            self.close()
            raise

    def is_lost(self) -> bool:
        """Say whether others cannot find it any more."""
        if self._folder is None:
            return True
        try:
            # By the path, as others do: the descriptor of a folder that was unmounted still shows its names.
            found = os.lstat(self._path(self._folder.path))
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def remove(self) -> None:
        """Take the name away: nobody else comes."""
        if self._folder is not None:
            with suppress(OSError):
                self._folder.remove(self._name)

    def close(self) -> None:
        """Take it away altogether."""
        self.remove()
        if self.listener is not None:
            self.listener.close()
        if self._folder is not None:
            self._folder.close()
        self.listener = self._folder = None

    def _bind(self, folder: Folder) -> socket.socket:
        with suppress(FileNotFoundError):
            folder.remove(self._name)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            path = self._path(_by_descriptor(folder))
            listener.bind(path)
            Path(path).chmod(0o600)  # a umask may take away even what its owner needs
            listener.listen(_BACKLOG)
            found = os.lstat(path)
        except BaseException:
            listener.close()
            raise
        self._identity = (found.st_dev, found.st_ino)
        return listener

    def _path(self, folder: str) -> str:
        return f"{folder}/{self._name}"


def _by_descriptor(folder: Folder) -> str:
    """A path of a few bytes, whatever the folder's: a socket's has room for 107 (unix(7))."""
    return f"/proc/self/fd/{folder.fd}"


# -- the other side ------------------------------------------------------------------------------------------------


def ask(
    project_id: str,
    feature: str,
    request: Mapping[str, Any],
    *,
    timeout_s: float,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """Ask the process that runs a feature; None if there is none, or it ended without an answer.

    The requests are ``{"do": "status"}``, ``{"do": "wait"}`` and ``{"do": "cancel", "save": bool}``; a refused one is
    answered with ``{"error": …}``. NotAnswering if somebody is there, but says nothing in time.
    """
    until = time.monotonic() + timeout_s
    line = json.dumps(request).encode() + b"\n"
    for path in runtime_folders(environ):
        with suppress(*_NOBODY), _reach(path, address(project_id, feature), feature, until) as sock:
            if answer := _exchange(sock, line, feature, until):
                return _understood(answer, feature)
    return None


def cancel(
    project: Path,
    feature: str,
    *,
    save: bool = True,
    timeout_s: float = CANCEL_S,
    environ: Mapping[str, str] | None = None,
) -> Cancelled:
    """End a run wherever it is carried out, and wait until it has ended. NotRunning, NotAnswering, NotCancelled.

    Without ``save`` nothing is kept of the phases that are cut short; those that are done stay in any case.
    """
    place = project_place(project, environ, make=False)
    answer = None
    if place is not None:
        with place.folder:
            request = {"do": "cancel", "save": save}
            answer = ask(place.id, feature, request, timeout_s=timeout_s, environ=environ)
    match answer:
        case None:
            raise NotRunning(f"{feature} is not running", f"sage-sandbox status {feature}")
        case {"status": str(status), "cancelledAt": str(at), "checkpointSaved": bool(saved)}:
            return Cancelled(feature, status, at, saved)
    raise NotCancelled(f"{feature} was not cancelled: {clip(str(answer.get('error')), 200)}")


def _reach(path: Path, name: str, feature: str, until: float) -> socket.socket:
    """A connection to the socket of that name, which like its folder is this user's alone; else one of _NOBODY."""
    with Folder.given(path.parent) as above, above.below(path.name) as folder:
        found = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        if os.fstat(folder.fd).st_mode & 0o077 or not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{path} is not this user's alone")
        sock = _connect(f"{_by_descriptor(folder)}/{name}", feature, until)
    if _peer(sock).uid != os.geteuid():
        sock.close()
        raise PermissionError(f"another user listens in {path}")
    return sock


def _connect(path: str, feature: str, until: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:  # as many queue there as can; the kernel has nothing to wait on (EAGAIN, unix(7))
                if time.monotonic() >= until:
                    raise _not_answering(feature) from None
                time.sleep(_POLL_S)
    except BaseException:
        sock.close()
        raise


def _exchange(sock: socket.socket, line: bytes, feature: str, until: float) -> bytes:
    """Say a line, and hear one: nothing if the other one has gone without a word."""
    answer = b""
    try:
        sock.settimeout(_left(until))
        sock.sendall(line)
        while b"\n" not in answer and len(answer) <= ANSWER_MAX:
            sock.settimeout(_left(until))
            if not (more := sock.recv(ANSWER_MAX + 2 - len(answer))):
                return b""
            answer += more
    except TimeoutError:
        raise _not_answering(feature, _peer(sock).pid) from None
    return answer


def _left(until: float) -> float:
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _not_answering(feature: str, pid: int = 0) -> NotAnswering:
    hint = f"if it was stopped, let it go on: kill -CONT {pid}" if pid else "it may be stopped"
    return NotAnswering(f"the process that runs {feature} does not answer", hint)


def _understood(answer: bytes, feature: str) -> dict[str, Any]:
    line, ends, _ = answer.partition(b"\n")
    if (found := _parse(line)) is None or not ends:
        raise SageError(f"the process that runs {feature} gave an answer that is none")
    return found


# -- of both -------------------------------------------------------------------------------------------------------


class _Peer(NamedTuple):
    pid: int
    uid: int


def _peer(sock: socket.socket) -> _Peer:
    """Who connected, or who listens: as it was then, and of the kernel's knowledge."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return _Peer(pid, uid)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
