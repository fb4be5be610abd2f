"""The suite's fixtures for the tasks extension, and tasks that are kept in memory: the tests' own `Tasks`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from conformance.asking import question
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolRequestParams, ElicitResult, InputRequest, InputRequiredResult
from pydantic import BaseModel

from sage_sandbox.mcp_server.tasks import Task

LASTING: Final = frozenset({"slow_compute", "failing_job", "protocol_error_job", "confirm_delete", "multi_input"})
ASKS_FIRST: Final = "test_tool_with_task"
"""The one that asks before its task begins (SEP-2322) and not within it."""


@dataclass
class Going:
    """A task in this process: what its tool does, asks for, and has come to."""

    name: str
    work: asyncio.Task[HandlerResult] | None = None
    asked: dict[str, InputRequest] = field(default_factory=dict)
    answers: dict[str, asyncio.Future[Mapping[str, Any]]] = field(default_factory=dict)
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())

    async def ask(self, key: str, request: InputRequest) -> Mapping[str, Any]:
        """Wait for what the client answers."""
        self.asked[key] = request
        self.answers[key] = asyncio.get_running_loop().create_future()
        return await self.answers[key]

    def task(self) -> Task:
        """How it stands."""
        now = Task(self.name, "working", self.created_at, self.created_at, ttl_ms=3_600_000, poll_ms=100)
        assert self.work is not None
        if not self.work.done():
            return _with(now, "input_required", requests=_dumped(self.asked)) if self.asked else now
        if self.work.cancelled():
            return _with(now, "cancelled")
        match self.work.exception():
            case None:
                return _with(now, "completed", result=_dump(self.work.result()))
            case MCPError() as error:
                return _with(now, "failed", error=_dump(error.error))
            case other:
                return _with(now, "failed", error={"code": INTERNAL_ERROR, "message": type(other).__name__})


_current: ContextVar[Going] = ContextVar("_current")


class FixtureTasks:
    """The tasks of the fixtures: in memory, and gone with the process."""

    required = frozenset({"failing_job", ASKS_FIRST})

    def __init__(self) -> None:
        self._going: dict[str, Going] = {}

    async def start(
        self, call: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], answer: CallNext
    ) -> Task | HandlerResult:
        if call.name in LASTING:
            return self._begin(answer(ctx))
        result = await answer(ctx)
        if call.name == ASKS_FIRST and not isinstance(result, InputRequiredResult):
            return self._begin(asyncio.sleep(0, result))
        return result

    def _begin(self, work: Any) -> Task:
        going = Going(secrets.token_hex(16))
        token = _current.set(going)
        going.work = asyncio.ensure_future(work)
        _current.reset(token)
        self._going[going.name] = going
        return going.task()

    async def get(self, name: str) -> Task | None:
        going = self._going.get(name)
        return going.task() if going is not None else None

    async def update(self, name: str, responses: Mapping[str, Mapping[str, Any]]) -> bool:
        going = self._going.get(name)
        for key, response in responses.items():
            if going is not None and going.asked.pop(key, None) is not None:
                going.answers[key].set_result(response)
        return going is not None

    async def cancel(self, name: str) -> bool:
        going = self._going.get(name)
        if going is not None and going.work is not None:
            going.work.cancel()
        return going is not None


def _with(task: Task, status: Any, **more: Any) -> Task:
    return Task(
        task.id, status, task.created_at, datetime.now(UTC).isoformat(), ttl_ms=task.ttl_ms, poll_ms=100, **more
    )


def _dump(value: HandlerResult) -> dict[str, Any]:
    return value.model_dump(by_alias=True, mode="json", exclude_none=True) if isinstance(value, BaseModel) else {}


def _dumped(requests: Mapping[str, InputRequest]) -> dict[str, Any]:
    return {key: _dump(request) for key, request in requests.items()}


def add_lasting(server: MCPServer) -> None:
    """Add the tools to a server whose tasks are `FixtureTasks`."""

    @server.tool()
    def greet(name: str) -> str:
        """An answer at once: no task."""
        return f"Hello, {name}!"

    @server.tool()
    async def slow_compute(seconds: float, label: str = "") -> str:
        """An answer after some seconds."""
        await asyncio.sleep(seconds)
        return f"{label}: done"

    @server.tool()
    async def failing_job() -> str:
        """An error of the tool; a task only."""
        raise ToolError("this job fails")

    @server.tool()
    async def protocol_error_job() -> str:
        """An error of the protocol."""
        raise MCPError(INTERNAL_ERROR, "this call breaks")

    @server.tool()
    async def confirm_delete(filename: str) -> str:
        """A question within a task."""
        said = await _current.get().ask("confirm", question(f"Delete {filename}?", confirm="boolean"))
        return f"{said['action']}: {filename}"

    @server.tool()
    async def multi_input() -> str:
        """Two questions at once within a task."""
        going = _current.get()
        said = await asyncio.gather(
            going.ask("name", question("Your name?", name="string")),
            going.ask("color", question("Your color?", name="string")),
        )
        return f"{len(said)} answers"

    @server.tool()
    async def test_tool_with_task(ctx: Context) -> str | InputRequiredResult:
        """A question, then a task."""
        said = (ctx.input_responses or {}).get("user_name")
        if isinstance(said, ElicitResult) and said.content:
            return f"Hello, {said.content.get('name')}"
        return InputRequiredResult(input_requests={"user_name": question("What is your name?", name="string")})
