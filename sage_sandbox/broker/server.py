"""The broker: who may ask, and what is asked.

One event loop, one thread. It ends when the last run that registered has hung up.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from sage_sandbox.broker.answers import Answers, open_answers
from sage_sandbox.broker.base import Connect, MakeClient, SessionLost, Sleep, ToolRefused
from sage_sandbox.broker.calling import ERROR_WIDTH, Calling, Record
from sage_sandbox.broker.frames import SIZES, BadFrame, pack, read_head, read_sizes
from sage_sandbox.broker.prompting import Prompting, make_client
from sage_sandbox.broker.runs import Registration, Run, Runs, read_registration
from sage_sandbox.broker.services import Services, spoken
from sage_sandbox.disk.sockets import peer_of
from sage_sandbox.errors import BreakerOpen, SageError
from sage_sandbox.escaping import clip
from sage_sandbox.guards.breaker import Transition
from sage_sandbox.sandbox.calls import Answer, ToolSpec
from sage_sandbox.toolservers.definition import START_S, Server

FIRST_S: Final = 10.0
"""How long a broker waits for its first run, and a visitor may be connected without a word."""
END_AGAIN_S: Final = 0.05
"""How long until it is tried again to end, while somebody is about to come."""

MakeRecord = Callable[[Registration], Awaitable[Record]]
MakeAnswers = Callable[[Registration], Answers | None]


class Broker:
    """Serves a listening socket until its last user is gone.

    ``connect`` opens sessions with tool servers, ``make_model`` makes what speaks to a model provider, ``make_record``
    opens a run's audit log, ``make_answers`` what it keeps answers in; ``may_end`` is asked, when nobody is left,
    whether the socket is taken away for good: it is not while others are coming, which they do under a lock.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        connect: Connect,
        make_record: MakeRecord,
        make_answers: MakeAnswers = open_answers,
        may_end: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        sleep: Sleep = asyncio.sleep,
        make_model: MakeClient = make_client,
        start_s: float = START_S,
        first_s: float = FIRST_S,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._make_record = make_record
        self._make_answers = make_answers
        self._may_end = may_end
        self._first_s = first_s
        self._runs = Runs()
        self._records: dict[Run, Record] = {}
        self._answers: dict[Run, Answers] = {}
        self._services = Services(connect, self._transition, clock, start_s)
        self._calling = Calling(self._services, self._records, self._answers, clock=clock, jitter=jitter, sleep=sleep)
        self._prompting = Prompting(
            self._records, self._answers, self._transition, make=make_model, clock=clock, jitter=jitter, sleep=sleep
        )
        self._visits: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def serve(self) -> None:
        """Serve until the last run has hung up."""
        loop = asyncio.get_running_loop()
        try:
            # Whoever started this process came first, and registers its run: its workers may be here already.
            async with asyncio.timeout(self._first_s):
                sock, _ = await loop.sock_accept(self._listener)
                registered = asyncio.Event()
                self._visit(sock, registered)
                await registered.wait()
        except TimeoutError:
            return
        accepting = asyncio.create_task(self._accept(loop))
        # No await between the two: who registers in between would be left alone.
        while self._runs or not self._may_end():
            await self._empty.wait()
            await asyncio.sleep(END_AGAIN_S)
        accepting.cancel()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(accepting, *self._visits, return_exceptions=True)
        await self._services.close()

    async def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                self._visit((await loop.sock_accept(self._listener))[0])
            except OSError:
                await asyncio.sleep(END_AGAIN_S)  # no descriptor is free: asked at once, we would spin

    # -- visitors ------------------------------------------------------------------------------------------------

    def _visit(self, sock: socket.socket, registered: asyncio.Event | None = None) -> None:
        if not peer_of(sock).is_ours:
            sock.close()
            return
        visit = asyncio.create_task(self._serve_visitor(sock, registered))
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _serve_visitor(self, sock: socket.socket, registered: asyncio.Event | None) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=1 << 20)
        try:
            async with asyncio.timeout(self._first_s):
                head, body = await _receive(reader)
            if head.get("do") == "register":
                await self._serve_run(head, reader, writer, registered)
                return
            while True:
                await self._answer(head, body, reader, writer)
                head, body = await _receive(reader)
        except (BadFrame, asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass  # it is gone, or is none of ours
        finally:
            if registered is not None:
                registered.set()
            writer.close()

    async def _serve_run(
        self,
        head: Mapping[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        registered: asyncio.Event | None,
    ) -> None:
        """A run is served as long as its coordinator holds the connection."""
        registration = read_registration(head)
        run = Run(registration, lambda event: writer.write(pack(event)))
        try:
            record = await self._make_record(registration)
        except SageError as error:
            writer.write(pack({"event": "refused", "error": error.message, "hint": error.hint}))
            await writer.drain()
            return
        answers = await asyncio.to_thread(self._make_answers, registration)
        self._runs.add(run)
        self._records[run] = record
        if answers is not None:
            self._answers[run] = answers
        self._empty.clear()
        run.tell({"event": "registered"})
        if registered is not None:
            registered.set()
        try:
            while await reader.read(1 << 16):
                pass  # it has nothing more to say; what counts is that it is there
        finally:
            self._runs.remove(run)
            del self._records[run]
            self._answers.pop(run, None)
            await self._services.leave(run)
            await self._prompting.leave(run)
            await record.close()
            if answers is not None:
                await answers.close()
            if not self._runs:
                self._empty.set()

    async def _answer(
        self, head: Mapping[str, Any], body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one request; whoever hangs up before that has given it up."""
        acting = asyncio.create_task(self._act(head, body))
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((acting, gone), return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                raise ConnectionResetError  # gone; or it speaks out of turn, and cannot be one of ours
        finally:
            for task in (acting, gone):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
        try:
            answer, value = acting.result()
        except Exception as error:  # noqa: BLE001 - a fault of ours costs this request only, and is seen
            answer, value = _refused("transport", f"the tool broker failed: {type(error).__name__}: {error}")
        writer.write(pack(answer, value))
        await writer.drain()

    async def _act(self, head: Mapping[str, Any], body: bytes) -> tuple[Mapping[str, Any], bytes]:
        run = self._runs.find(head.get("token"))
        if run is None:
            return _refused("denied", "that token is none of a run that is registered")
        match head:
            case {"do": "call", "operation": str(operation), "tool": str(tool), "timeout_s": int() | float() as time_s}:
                return _spoken(await self._calling.call(run, operation, tool, body, float(time_s)))
            case {"do": "ask", "operation": str(operation), "model": str(name), "timeout_s": int() | float() as time_s}:
                return _spoken(await self._prompting.ask(run, operation, name, body, float(time_s)))
            case {"do": "list", "operation": str(operation)}:
                return {"ok": True}, _listed(await self._calling.tools(run, operation))
            case {"do": "look", "server": str(name), "start": bool(start)} if name in run.servers:
                return await self._look(run, run.servers[name], start=start)
            case {"do": "decide", "server": str(name), "use": bool(use)} if run in self._answers:
                self._answers[run].decide(name, use=use)
                return {"ok": True}, b""
            case {"do": "reset", "server": str(name)} if name in run.servers:
                self._services.of(run.servers[name]).breaker.reset()
                return {"ok": True}, b""
        return _refused("denied", "that is not a request")

    async def _look(self, run: Run, server: Server, *, start: bool) -> tuple[Mapping[str, Any], bytes]:
        """How a server stands; with ``start`` also what it offers, which begins a session where there is none."""
        breaker = self._services.of(server).breaker
        said: dict[str, Any] = {"ok": True, "error": "", "about": {}}
        body = b"[]"
        if start:
            try:
                specs, said["about"] = await self._calling.look(run, server)
                body = _listed(specs)
            except (SessionLost, ToolRefused, BreakerOpen, SageError) as error:
                said["error"] = clip(spoken(error), ERROR_WIDTH)
        return {**said, "state": breaker.state, "open": self._services.is_open(run, server)}, body

    def _transition(self, transition: Transition) -> None:
        """Write down, and tell everybody, that a breaker changed its state."""
        text = f"{transition.name}: {transition.before} to {transition.after}"
        event = {"event": "breaker", "server": transition.name, "before": transition.before, "after": transition.after,
                 "why": clip(transition.why, ERROR_WIDTH)}  # fmt: skip
        for run, record in self._records.items():
            if run.uses(transition.name):
                record.reduce("breaker", text, {"server": transition.name, "why": event["why"]})
                run.tell(event)


def _listed(specs: Iterable[ToolSpec]) -> bytes:
    return json.dumps(
        [
            {"name": spec.name, "description": spec.description, "schema": json.loads(spec.input_schema)}
            for spec in specs
        ]
    ).encode()


def _spoken(answer: Answer) -> tuple[Mapping[str, Any], bytes]:
    head: dict[str, Any] = {
        "ok": answer.ok,
        "error": answer.error,
        "kind": answer.kind,
        "retryable": answer.retryable,
        "usage": [asdict(usage) for usage in answer.usage],
    }
    if answer.cached_s is not None:
        head |= {"cachedS": answer.cached_s, "unavailable": answer.unavailable}
    return head, answer.value if answer.ok else b""


def _refused(kind: str, error: str) -> tuple[Mapping[str, Any], bytes]:
    return {"ok": False, "kind": kind, "error": error}, b""


async def _receive(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    head, body = read_sizes(await reader.readexactly(SIZES.size))
    return read_head(await reader.readexactly(head)), await reader.readexactly(body) if body else b""
