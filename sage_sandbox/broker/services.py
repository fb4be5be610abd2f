"""What a broker keeps of each tool server: its guards, for all who call it, and its live sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from sage_sandbox.broker.base import Connect, Session, SessionLost
from sage_sandbox.broker.runs import Run
from sage_sandbox.guards.breaker import Breaker, Transition
from sage_sandbox.guards.throttle import AT_ONCE, Throttle
from sage_sandbox.toolservers.definition import START_S, Server

END_S: Final = 6.0
"""How long a session may take to end: a program is asked, then told, then killed."""

Key = tuple[str, ...]


class Service:
    """One definition: its breaker and its throttle."""

    def __init__(self, server: Server, listener: Callable[[Transition], None], clock: Callable[[], float]) -> None:
        self.breaker = Breaker(server.name, clock=clock, listener=listener)
        self.throttle = Throttle(server.at_once or AT_ONCE, per_s=server.per_second)


class Live:
    """A session and the task that owns it: opened, held and closed there, as its parts demand."""

    def __init__(self, connect: Connect, server: Server, environ: Mapping[str, str], cwd: str, start_s: float) -> None:
        self._closing = asyncio.Event()
        self._ready: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(_retrieve)
        self._task = asyncio.create_task(self._own(connect, server, environ, cwd, start_s))

    async def session(self) -> Session:
        """The session, once it is open; SessionLost if it cannot be."""
        # Shielded: whoever gives up waiting leaves it to the next one.
        return await asyncio.shield(self._ready)

    @property
    def usable(self) -> bool:
        """Whether it is open or about to be."""
        if self._closing.is_set() or self._task.done():
            return False
        return not self._ready.done() or self._ready.result().alive

    async def close(self) -> None:
        """End it, and wait for that within bounds."""
        self._closing.set()
        if not self._ready.done():
            self._task.cancel()
        with suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(self._task, END_S)

    async def _own(
        self, connect: Connect, server: Server, environ: Mapping[str, str], cwd: str, start_s: float
    ) -> None:
        try:
            async with asyncio.timeout(start_s) as patience, connect(server, environ, cwd) as session:
                patience.reschedule(None)
                self._ready.set_result(session)
                await self._closing.wait()
        except TimeoutError:
            self._fail(f"{server.name} did not start in {start_s:.0f} s")
        except asyncio.CancelledError:
            self._fail(f"{server.name} was not waited for")
        except BaseException as error:  # noqa: BLE001 - whatever a server's end looks like, it costs its calls only
            self._fail(f"{server.name} cannot be had: {spoken(error)}")

    def _fail(self, message: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(SessionLost(message, sent=False))


class Services:
    """All services of a broker, and the sessions in use."""

    def __init__(
        self,
        connect: Connect,
        tell: Callable[[Transition], None],
        clock: Callable[[], float],
        start_s: float = START_S,
    ) -> None:
        self._connect = connect
        self._tell = tell
        self._clock = clock
        self._start_s = start_s
        self._services: dict[Key, Service] = {}
        self._live: dict[Key, Live] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def of(self, server: Server) -> Service:
        """The guards of a definition: the same for every run that has it."""
        key = (server.name, server.digest)
        if key not in self._services:
            self._services[key] = Service(server, self._tell, self._clock)
        return self._services[key]

    async def session(self, run: Run, server: Server) -> Session:
        """A session with the server for this run, a new one if there is none that works. SessionLost."""
        key, registration = _key(run, server), run.registration
        live = self._live.get(key)
        if live is None or not live.usable:
            if lacking := server.lacking(registration.values):
                raise SessionLost(f"{server.name} needs {', '.join(lacking)}, which is not set", sent=False)
            expanded = server.expanded(registration.values)
            live = Live(self._connect, expanded, registration.environ, registration.project, self._start_s)
            self._live[key] = live
        try:
            return await live.session()
        except SessionLost:
            if self._live.get(key) is live:
                del self._live[key]
            raise

    def is_open(self, run: Run, server: Server) -> bool:
        """Whether there is a session just now."""
        live = self._live.get(_key(run, server))
        return live is not None and live.usable

    def drop(self, run: Run, server: Server) -> None:
        """End the session, without waiting for that: the next call begins a new one."""
        live = self._live.pop(_key(run, server), None)
        if live is not None:
            ending = asyncio.create_task(live.close())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def leave(self, run: Run) -> None:
        """A run has ended: end the sessions that were its own."""
        mine = [key for key in self._live if key[0] == run.registration.token]
        await asyncio.gather(*(self._live.pop(key).close() for key in mine))

    async def close(self) -> None:
        """End every session."""
        live, self._live = list(self._live.values()), {}
        await asyncio.gather(*(each.close() for each in live), *self._ending)


def _key(run: Run, server: Server) -> Key:
    """Sessions are a run's own, unless the user said otherwise; then what differs in values keeps them apart."""
    registration = run.registration
    if server.name not in registration.shared:
        return (registration.token, server.name)
    values = (f"{name}={registration.values.get(name)}" for name in server.variables())
    return ("", server.name, server.digest, registration.project, *values)


def spoken(error: BaseException) -> str:
    """An error in one line: of a group the first that is in it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _retrieve(future: asyncio.Future[Session]) -> None:
    """Look at the error of a future that perhaps nobody waits for any more."""
    if not future.cancelled():
        future.exception()
