"""Hand operations to slots and hear what became of them: one thread, one selector.

A slot is started when there is more work than started slots, and is given nothing before its sandbox is prepared.
Outcomes come up each worker's own connection; the pool's futures only tell that a worker is gone or that a call could
not be made. A slot that waits while another holds work it has not begun gets that work: the other gives it back.
"""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from pathlib import Path
from secrets import compare_digest, token_bytes
from typing import Any, Final

from sage_sandbox.disk.sockets import peer_of
from sage_sandbox.dispatch.links import Link
from sage_sandbox.dispatch.pace import SHORT_S, Pace
from sage_sandbox.dispatch.reports import Lost, News, Returned, Withheld
from sage_sandbox.errors import SandboxUnavailable, WorkerLost
from sage_sandbox.events import Notice
from sage_sandbox.operations import channel
from sage_sandbox.operations.base import Task
from sage_sandbox.operations.worker import MakeSupervisor, confined, enter, leave, present
from sage_sandbox.pool.base import Initializer, Pool
from sage_sandbox.pool.inline import InlinePool

GRACE_S: Final = 1.0
"""How long a worker has to end a cancelled operation before it is killed itself."""
LEAVE_S: Final = 0.8
"""How long workers have to clean up at the end."""
_SOCKET_PATH_MAX: Final = 100

MakePool = Callable[[Initializer, tuple[Any, ...]], Pool]


def loky_pool(initializer: Initializer, initargs: tuple[Any, ...]) -> Pool:
    """Worker processes; loky is loaded here and not before."""
    from sage_sandbox.pool.loky_pool import LokyPool
    from sage_sandbox.sandbox import cgroup

    # On cgroup version 2 a process makes room for groups by moving into a leaf, where only its later children follow.
    cgroup.find()
    return LokyPool(initializer, initargs)


def inline_pool(initializer: Initializer, initargs: tuple[Any, ...]) -> Pool:
    """A thread of this process."""
    return InlinePool(initializer, initargs)


class Dispatcher:
    """The slots of one run, from the first start to the last worker's end.

    ``project`` is the folder that operations see as their working directory, ``secrets`` are values that nothing they
    leave may hold. `wake` may be called from any thread; everything else belongs to the thread of the run.
    """

    def __init__(
        self,
        project: str,
        *,
        parallel: int = 4,
        make_pool: MakePool = loky_pool,
        make_supervisor: MakeSupervisor = confined,
        secrets: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._token = token_bytes(channel.TOKEN_BYTES)
        self._folder, self._listener = _meeting_place()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waking = threading.RLock()  # a signal handler of our caller's may interrupt who holds it
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._initargs = (self._listener.getsockname(), self._token, project, make_supervisor, secrets)
        self._ended: deque[tuple[Link, Future[None]]] = deque()
        self._news: list[News] = []
        self._pace = Pace()
        self._make_pool = make_pool
        self._pool: Pool | None = None
        self._links: list[Link] = []
        self._parallel = parallel
        self._inline = False

    # -- giving work ---------------------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """Tasks that were sent and not answered."""
        return sum(len(link.held) for link in self._links)

    def grow(self, wanted: int) -> None:
        """Start slots until there is one for each of ``wanted`` operations, or all there may be."""
        links = self._all_links()
        missing = wanted - sum(link.state in ("starting", "ready") for link in links)
        for link in links:
            if missing > 0 and link.state == "absent":
                self._start(link)
                missing -= 1
        if all(link.state == "given up" for link in self._links):
            self._fall_back()

    def room(self, pending: int) -> int:
        """How many of ``pending`` operations may be sent now, all to one slot: the next `send` goes there."""
        if any(link.idle for link in self._links):
            return 1
        ready = [link for link in self._links if link.state == "ready"]
        if not ready or not self._pace.short:
            return 0
        chunk = self._pace.chunk(pending, len(ready))
        return chunk if min(len(link.held) for link in ready) + chunk <= 2 * chunk else 0

    def send(self, tasks: tuple[Task, ...]) -> None:
        """Send tasks to the slot that holds least."""
        link = min((link for link in self._links if link.state == "ready"), key=lambda link: len(link.held))
        try:
            link.give(tasks, self._clock())
        except WorkerLost:
            self._lose(link)

    def cancel(self, tickets: Iterable[int]) -> None:
        """End these tasks as cancelled, or get them back; a worker that does not do so in time is killed."""
        mine = set(tickets)
        for link in self._links:
            hit = mine & link.held.keys()
            if hit:
                link.withdraw(sorted(hit), kill=True)
                link.kill_at = min(link.kill_at or float("inf"), self._clock() + GRACE_S)

    # -- hearing what became of it -------------------------------------------------------------------------------

    def wait(self, timeout_s: float | None) -> list[News]:
        """What happened, waiting up to ``timeout_s`` for something to happen."""
        if not self._news:
            for key, _ in self._selector.select(self._patience(timeout_s)):
                self._serve(key)
            self._kill_overdue()
            self._rebalance()
        news, self._news = self._news, []
        return news

    def wake(self) -> None:
        """Make `wait` return soon; from any thread."""
        with self._waking, suppress(BlockingIOError):  # full: it returns anyway
            if self._wakeup >= 0:
                os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Kill what runs, end every worker, remove the run folder. Nothing is left; a second call does nothing."""
        if self._wakeup < 0:
            return
        for link in self._links:
            if link.idle:
                link.call(leave)
            else:
                link.cut()
        # A worker that is starting has nothing to clean up; the others end by themselves, or are made to.
        calls = [call for link in self._links if link.state == "ready" for call in link.calls]
        late = wait_for(calls, LEAVE_S).not_done
        if self._pool is not None:
            self._pool.close(kill=bool(late) or any(link.state == "starting" for link in self._links))
        for link in self._links:
            link.cut()
        self._selector.close()
        self._listener.close()
        with self._waking:  # the number is soon another file's
            os.close(self._wakeup)
            self._wakeup = -1
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- inside --------------------------------------------------------------------------------------------------

    def _all_links(self) -> list[Link]:
        if self._pool is None:
            try:
                self._pool = self._make_pool(enter, self._initargs)
            except (OSError, RuntimeError, ImportError, NotImplementedError):
                self._fall_back()
        if not self._links and self._pool is not None:
            self._links = [Link(self._pool.slot(index), self._done) for index in range(self._parallel)]
        return self._links

    def _start(self, link: Link) -> None:
        link.state = "starting"
        try:
            link.call(present)
        except WorkerLost:
            self._lose(link)

    def _fall_back(self) -> None:
        """No worker process can be had: one operation at a time, in a thread of this process."""
        if self._inline:
            raise SandboxUnavailable("no worker can be started", "see the messages above", "workers")
        self._inline = True
        self._news.append(Notice("warning", "worker processes cannot be had; running one operation at a time"))
        if self._pool is not None:
            self._pool.close(kill=True)
        self._pool = InlinePool(enter, self._initargs)
        self._links = [Link(self._pool.slot(0), self._done)]
        self._start(self._links[0])

    def _done(self, link: Link, future: Future[None]) -> None:
        """A future ended (called from a thread of the pool's)."""
        self._ended.append((link, future))
        self.wake()

    def _serve(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif key.fd == self._wakeup:
            self._woken()
        else:
            self._hear(key.data)

    def _accept(self) -> None:
        """Take a new connection of a worker that knows the token."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return  # it has hung up again
        connection.settimeout(LEAVE_S)
        try:
            data = connection.recv(channel.HELLO_BYTES, socket.MSG_WAITALL)
        except OSError:
            data = b""
        if not peer_of(connection).is_ours or len(data) < channel.HELLO_BYTES:
            connection.close()
            return
        greeting = channel.read_hello(data)
        known = [link for link in self._links if link.slot.index == greeting.slot and link.state == "starting"]
        if not known or not compare_digest(greeting.token, self._token):
            connection.close()
            return
        connection.settimeout(None)
        known[0].connected(connection, greeting.pid)
        self._selector.register(connection, selectors.EVENT_READ, known[0])

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        while self._ended:
            link, future = self._ended.popleft()
            news, lost = link.ended(future)
            self._news += news
            if lost:
                self._hear(link)
                if link.state in ("starting", "ready"):
                    self._lose(link)

    def _hear(self, link: Link) -> None:
        frames, alive = link.hear()
        for frame in frames:
            self._obey(link, frame)
        if not alive and link.connection is not None:
            self._lose(link)

    def _obey(self, link: Link, frame: channel.Frame) -> None:
        if isinstance(frame, channel.Report):
            for ended in frame.ended:
                self._pace.note(ended.cost_s)
            self._news += link.take(frame, self._clock())
        elif isinstance(frame, channel.Returned):
            self._news += [Returned(ticket) for ticket in frame.tickets if link.drop(ticket)]
        elif isinstance(frame, channel.Ready):
            link.state = "ready"
            if frame.error is not None:
                self._news.append(Withheld(SandboxUnavailable(*frame.error)))

    def _lose(self, link: Link, what: str = "died") -> None:
        """A worker is gone: say what it held; `grow` starts another when it is needed."""
        if link.connection is not None:
            with suppress(KeyError):
                self._selector.unregister(link.connection)
        pid, starting = link.pid, link.state == "starting"
        news = link.lose()
        if any(isinstance(item, Lost) for item in news):
            news.append(Notice("warning", f"worker {pid} {what}; only its operation is lost"))
        elif starting and link.state == "given up":
            news.append(Notice("warning", f"slot {link.slot.index} cannot be started; running with fewer"))
        self._news += news

    def _patience(self, timeout_s: float | None) -> float | None:
        """How long to sleep: until the caller's time, a kill is due or work may have to be moved."""
        now = self._clock()
        times = [link.kill_at - now for link in self._links if link.kill_at is not None]
        if self._may_move():
            times += [link.moved_at + SHORT_S - now for link in self._links if link.waiting()]
        if timeout_s is not None:
            times.append(timeout_s)
        return max(0.0, min(times)) if times else None

    def _kill_overdue(self) -> None:
        now = self._clock()
        for link in self._links:
            if link.kill_at is not None and now >= link.kill_at:
                self._lose(link, "was killed: it did not end its operation")

    def _may_move(self) -> bool:
        return any(link.idle for link in self._links)

    def _rebalance(self) -> None:
        """Have work that waits behind something long given back while another slot is idle."""
        if self._may_move():
            now = self._clock()
            for link in self._links:
                if now - link.moved_at >= SHORT_S and (waiting := link.waiting()):
                    link.withdraw(waiting, kill=False)


def _meeting_place() -> tuple[Path, socket.socket]:
    """A new 0700 folder with the socket that workers come to, in the user's runtime folder if that will do."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes it 0700
        if parent and os.path.isabs(parent) and len(os.fsencode(parent)) < _SOCKET_PATH_MAX - 20:  # noqa: PTH117
            with suppress(OSError):
                folder = Path(tempfile.mkdtemp(prefix="sage-", dir=parent))
                return folder, _listen(folder)
    raise SandboxUnavailable("no folder for the run's socket can be made", "set TMPDIR to a writable folder", "socket")


def _listen(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(folder / "workers"))
        listener.listen(64)
    except OSError:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    listener.setblocking(False)
    return listener
