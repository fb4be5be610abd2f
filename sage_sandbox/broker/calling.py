"""One tool call, from its grant to its answer: written down, queued, guarded, tried again where that is safe."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from sage_sandbox.broker.answers import Answers, Found, Request, ask_age, tell_age
from sage_sandbox.broker.base import Progress, Session, SessionLost, Silent, Sleep, ToolRefused
from sage_sandbox.broker.runs import Run
from sage_sandbox.broker.services import Services
from sage_sandbox.errors import BreakerOpen, SageError
from sage_sandbox.escaping import clip
from sage_sandbox.guards.retry import Failed, retried
from sage_sandbox.policy import RESULT_MAX, format_size
from sage_sandbox.sandbox.calls import Answer, ToolSpec
from sage_sandbox.toolservers.definition import Server

T = TypeVar("T")

CALL_MAX_S: Final = 24 * 3600.0
LIST_S: Final = 30.0
"""How long a server may take to say what it offers."""
QUEUE_S: Final = 3.0
"""How much later than a call itself its waiting ends: what is silent shall count as that."""
PROGRESS_S: Final = 1.0
"""How often at most the progress of one call is passed on."""
ERROR_WIDTH: Final = 1000
DESCRIPTION_WIDTH: Final = 4000
SCHEMA_MAX: Final = 1 << 16
TOOLS_MAX: Final = 1000


class Record(Protocol):
    """Where the acts of one run are written down before they happen."""

    async def write(self, kind: str, text: str, data: Mapping[str, Any]) -> None:
        """Write an entry; the act waits for it, and does not happen where this raises SageError."""
        ...

    def reduce(self, kind: str, text: str, data: Mapping[str, Any]) -> None:
        """Write an entry about what only reduces: nothing waits for it."""
        ...

    async def close(self) -> None:
        """Write what waits."""
        ...


class NoRecord:
    """A run that keeps no audit log."""

    async def write(self, kind: str, text: str, data: Mapping[str, Any]) -> None:
        """Do nothing."""

    def reduce(self, kind: str, text: str, data: Mapping[str, Any]) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


@dataclass(eq=False, slots=True)
class _Asked:
    """What is to be done with a server: ``safe`` once it is known that doing it twice is as good as once.

    ``read_only`` once it is known that it changes nothing.
    """

    run: Run
    operation: str
    tool: str
    server: Server
    until: float
    safe: bool = False
    read_only: bool = False


class Calling:
    """Makes the calls of all runs."""

    def __init__(
        self,
        services: Services,
        records: Mapping[Run, Record],
        answers: Mapping[Run, Answers],
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._services = services
        self._records = records
        self._answers = answers
        self._clock = clock
        self._jitter = jitter
        self._sleep = sleep

    async def call(self, run: Run, operation: str, tool: str, arguments: bytes, timeout_s: float) -> Answer:
        """Call a tool for an operation, if it was granted that; whatever happens is an Answer."""
        name, _, below = tool.partition("/")
        if not run.may(operation, tool):
            self._records[run].reduce("violation", f"{operation} called {tool}", {"operation": operation, "tool": tool})
            return Answer(ok=False, error=f"{tool} is not granted to {operation}", kind="denied")
        server = run.servers.get(name)
        if server is None:
            return Answer(ok=False, error=f"there is no tool server {name} in this run", kind="denied")
        given = _mapping(arguments)
        if given is None:
            return Answer(ok=False, error="the arguments of a tool are a mapping", kind="tool")
        timeout_s = min(max(timeout_s, 0.0), CALL_MAX_S)
        asked = _Asked(run, operation, tool, server, self._clock() + timeout_s)
        patience = asyncio.timeout(timeout_s + QUEUE_S)
        try:
            async with patience:
                return await self._answered(asked, Request(operation, server, below, given))
        except (ToolRefused, SageError) as error:
            return _answer(error)
        except TimeoutError:
            if not patience.expired():
                raise
            text = f"{tool} waited {timeout_s:.0f} s for its turn"
            return Answer(ok=False, error=text, kind="transport", retryable=True)

    async def _answered(self, asked: _Asked, request: Request) -> Answer:
        """Call, unless an answer of before makes that needless; where the server is unavailable one may stand in."""
        answers = self._answers.get(asked.run)
        if answers is not None and (found := await answers.first(request)) is not None:
            return await self._from_before(asked, found, unavailable=False)
        try:
            answer = _checked(asked.tool, await self._called(asked, request))
        except (SessionLost, BreakerOpen) as error:
            if answers is None or (found := await answers.instead(request)) is None:
                return _answer(error)
            if not await answers.allowed(asked.server.name, lambda: ask_age(asked.run, asked.server.name, found)):
                return _answer(error)
            given = await self._from_before(asked, found, unavailable=True)
            tell_age(asked.run, asked.server.name, found, answers.said)
            return given
        if answer.ok and answers is not None:
            answers.keep(request, answer.value, read_only=asked.read_only)
        return answer

    async def _called(self, asked: _Asked, request: Request) -> bytes:
        pass_on = _Progress(asked, self._clock)

        async def act(session: Session) -> bytes:
            asked.safe = session.is_safe(request.tool)
            asked.read_only = session.is_read_only(request.tool)
            return await session.call(request.tool, request.arguments, max(asked.until - self._clock(), 0.0), pass_on)

        return await self._done(asked, act)

    async def _from_before(self, asked: _Asked, found: Found, *, unavailable: bool) -> Answer:
        data = {"operation": asked.operation, "server": asked.server.name, "ageMs": round(found.age_s * 1000),
                "unavailable": unavailable}  # fmt: skip
        await self._records[asked.run].write("cached", asked.tool, data)
        return Answer(ok=True, value=found.value, cached_s=found.age_s, unavailable=unavailable)

    async def tools(self, run: Run, operation: str) -> tuple[ToolSpec, ...]:
        """What the operation was granted of servers that answer, as ``server/tool``."""
        found: list[ToolSpec] = []
        for server in run.granted_servers(operation):
            asked = _Asked(run, operation, f"{server.name}/*", server, self._clock() + LIST_S, safe=True)
            try:
                offered, _ = await self._done(asked, self._offered)
            except (ToolRefused, SessionLost, BreakerOpen, SageError):
                continue
            named = (ToolSpec(f"{server.name}/{spec.name}", spec.description, spec.input_schema) for spec in offered)
            found += [spec for spec in named if run.may(operation, spec.name)]
        return tuple(found)

    async def look(self, run: Run, server: Server) -> tuple[tuple[ToolSpec, ...], Mapping[str, Any]]:
        """What a server offers, and who it says it is. SessionLost, ToolRefused, BreakerOpen, SageError."""
        return await self._done(
            _Asked(run, "", f"{server.name}/*", server, self._clock() + LIST_S, True), self._offered
        )

    async def _offered(self, session: Session) -> tuple[tuple[ToolSpec, ...], Mapping[str, Any]]:
        tools = await session.tools(LIST_S)
        return tuple(_clipped(spec) for spec in tools[:TOOLS_MAX]), session.about()

    async def _done(self, asked: _Asked, act: Callable[[Session], Awaitable[T]]) -> T:
        """Do something with a server; what fails is tried again where nothing was sent, or sending twice is safe."""

        def may_repeat(error: Exception) -> bool:
            return isinstance(error, SessionLost) and (asked.safe or not error.sent) and self._clock() < asked.until

        return await retried(
            lambda number: self._tried(asked, act, number),
            may_repeat=may_repeat,
            record=lambda failed: _tell_failure(asked, failed),
            asked_s=lambda error: error.asked_s if isinstance(error, SessionLost) else None,
            jitter=self._jitter,
            sleep=self._sleep,
        )

    async def _tried(self, asked: _Asked, act: Callable[[Session], Awaitable[T]], number: int) -> T:
        service = self._services.of(asked.server)
        async with service.throttle.turn():
            permit = service.breaker.admit()
            try:
                await self._write_down(asked, number)
                result = await act(await self._session(asked))
            except ToolRefused:
                permit.succeeded()  # it answered
                raise
            except SessionLost as error:
                permit.failed(str(error))
                if not isinstance(error, Silent) or service.breaker.state == "open":
                    self._services.drop(asked.run, asked.server)
                raise
            except BaseException:
                permit.withdrawn()
                raise
            permit.succeeded()
            return result

    async def _session(self, asked: _Asked) -> Session:
        left_s = max(asked.until - self._clock(), 0.0)
        try:
            return await asyncio.wait_for(self._services.session(asked.run, asked.server), left_s)
        except TimeoutError:
            raise Silent(f"{asked.server.name} did not start in {left_s:.0f} s", sent=False) from None

    async def _write_down(self, asked: _Asked, number: int) -> None:
        data = {"operation": asked.operation, "server": asked.server.name, "tool": asked.tool, "attempt": number}
        await self._records[asked.run].write("call", asked.tool, data)


class _Progress:
    """Passes the progress of one call on to its run's coordinator, now and then."""

    def __init__(self, asked: _Asked, clock: Callable[[], float]) -> None:
        self._asked = asked
        self._clock = clock
        self._next_at = clock() + PROGRESS_S

    def __call__(self, progress: Progress) -> None:
        """Hear of it."""
        if (now := self._clock()) < self._next_at:
            return
        self._next_at = now + PROGRESS_S
        self._asked.run.tell(
            {
                "event": "progress",
                "operation": self._asked.operation,
                "tool": self._asked.tool,
                "done": progress.done,
                "total": progress.total,
                "text": clip(progress.text, ERROR_WIDTH),
            }
        )


def _tell_failure(asked: _Asked, failed: Failed) -> None:
    if failed.wait_s is not None:
        asked.run.tell(
            {
                "event": "attempt",
                "operation": asked.operation,
                "tool": asked.tool,
                "number": failed.number,
                "error": clip(str(failed.error), ERROR_WIDTH),
                "waitS": round(failed.wait_s, 3),
            }
        )


def _mapping(arguments: bytes) -> dict[str, Any] | None:
    try:
        given = json.loads(arguments or b"{}")
    except (ValueError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def _checked(tool: str, value: bytes) -> Answer:
    if len(value) > RESULT_MAX:
        return Answer(ok=False, error=f"{tool} answered with more than {format_size(RESULT_MAX)}", kind="tool")
    return Answer(ok=True, value=value)


def _answer(error: Exception) -> Answer:
    text = clip(" ".join(str(error).split()), ERROR_WIDTH)
    if isinstance(error, ToolRefused):
        return Answer(ok=False, error=text, kind="tool")
    return Answer(ok=False, error=text, kind="transport", retryable=isinstance(error, SessionLost | BreakerOpen))


def _clipped(spec: ToolSpec) -> ToolSpec:
    schema = spec.input_schema if len(spec.input_schema) <= SCHEMA_MAX else b"{}"
    return ToolSpec(spec.name, clip(spec.description, DESCRIPTION_WIDTH), schema)
