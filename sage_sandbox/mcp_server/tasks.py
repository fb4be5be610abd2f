"""The tasks extension of MCP for a server made with `MCPServer`: a call that takes long answers with a task.

    MCPServer(..., extensions=[extension := TasksExtension(tasks)], middleware=[extension.check_listening])

What a task is, and where it is kept, is for the `Tasks` that is passed in; here are the rules of the wire:
https://github.com/modelcontextprotocol/ext-tasks, specification/2026-07-28/tasks.md (SEP-2663). They belong to protocol
2026-07-28; who speaks an older one is served as if there were no tasks. A status is told when it is asked for
(`tasks/get`) and not pushed: `notifications/tasks` is optional, and a subscription to it is acknowledged without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver.context import Context
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    RequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from sage_sandbox.frozen import frozen

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

EXTENSION: Final = "io.modelcontextprotocol/tasks"
VERSIONS: Final = frozenset(MODERN_PROTOCOL_VERSIONS)
"""The versions of the protocol in which there are tasks."""

TaskStatus = Literal["working", "input_required", "completed", "failed", "cancelled"]


@frozen
class Task:
    """A call of a tool that goes on, or went on, by itself. Times are ISO 8601, durations milliseconds.

    ``result`` is what the call would have answered, also where that is an error of the tool; ``error`` the JSON-RPC
    error that it ended with instead. ``requests`` are what the client is asked for, by a key that is never used again.
    Without a ``ttl_ms`` it is kept without an end.
    """

    id: str
    status: TaskStatus
    created_at: str
    updated_at: str
    message: str = ""
    ttl_ms: int | None = None
    poll_ms: int = 1000
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    requests: Mapping[str, Any] | None = None

    def handle(self) -> dict[str, Any]:
        """What a client needs to ask for it: no result yet."""
        said = {"statusMessage": self.message} if self.message else {}
        return {
            "taskId": self.id,
            "status": self.status,
            "createdAt": self.created_at,
            "lastUpdatedAt": self.updated_at,
            "ttlMs": self.ttl_ms,
            "pollIntervalMs": self.poll_ms,
            **said,
        }

    def detail(self) -> dict[str, Any]:
        """The handle and what belongs to its status."""
        match self.status:
            case "completed":
                return {**self.handle(), "result": dict(self.result or {})}
            case "failed":
                return {**self.handle(), "error": dict(self.error or {})}
            case "input_required":
                return {**self.handle(), "inputRequests": dict(self.requests or {})}
        return self.handle()


class Tasks(Protocol):
    """The tasks of a server.

    A name is the client's word: an implementation takes it for nothing until it has found what it names. Nobody shall
    come to a task by guessing, so a name holds 128 random bits, or names what its client may have anyway.
    """

    @property
    def required(self) -> frozenset[str]:
        """The tools that have no answer but a task: a client without tasks is refused."""
        ...

    async def start(
        self, call: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], answer: CallNext
    ) -> Task | HandlerResult:
        """Make a task of a call whose client knows tasks; or its ordinary answer, which is ``await answer(ctx)``.

        When this returns a task, `get` finds it.
        """
        ...

    async def get(self, name: str) -> Task | None:
        """The task as it is now; None if there is none."""
        ...

    async def update(self, name: str, responses: Mapping[str, Mapping[str, Any]]) -> bool:
        """Take what the client answers, by key; keys that nothing waits for are left alone. False: no such task."""
        ...

    async def cancel(self, name: str) -> bool:
        """Have it end soon, if it has not ended; that may be later than this returns. False: no such task."""
        ...


class TaskParams(RequestParams):
    """What names a task."""

    task_id: str


class UpdateParams(TaskParams):
    """A task, and what its client answers by key."""

    input_responses: dict[str, dict[str, Any]]


class TasksExtension(Extension):
    """Tasks as a part of a server: `tasks/get`, `tasks/update`, `tasks/cancel`, and calls that become one."""

    identifier = EXTENSION

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    def methods(self) -> Sequence[MethodBinding]:
        """The three methods, in the versions that have them."""
        return (
            MethodBinding("tasks/get", TaskParams, self._get, VERSIONS),
            MethodBinding("tasks/update", UpdateParams, self._update, VERSIONS),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, VERSIONS),
        )

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Answer with a task if the client knows what that is, and the tasks make one of the call."""
        if not knows_tasks(ctx):
            if params.name in self._tasks.required:
                raise _missing_capability()
            return await call_next(ctx)
        begun = await self._tasks.start(params, ctx, call_next)
        return {"resultType": "task", **begun.handle()} if isinstance(begun, Task) else begun

    async def check_listening(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Refuse who wants to be told of tasks and does not say that it knows them. A middleware of the server."""
        if ctx.method == "subscriptions/listen" and _wants_tasks(ctx.params) and not knows_tasks(ctx):
            raise _missing_capability()
        return await call_next(ctx)

    async def _get(self, ctx: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        _admit(ctx, params)
        task = await self._tasks.get(params.task_id)
        if task is None:
            raise _unknown_task()
        return task.detail()

    async def _update(self, ctx: ServerRequestContext[Any, Any], params: UpdateParams) -> HandlerResult:
        _admit(ctx, params)
        if not await self._tasks.update(params.task_id, params.input_responses):
            raise _unknown_task()
        return {}

    async def _cancel(self, ctx: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        _admit(ctx, params)
        if not await self._tasks.cancel(params.task_id):
            raise _unknown_task()
        return {}


def knows_tasks(ctx: ServerRequestContext[Any, Any] | Context[Any]) -> bool:
    """Whether this very request says that its client knows tasks: earlier ones do not count."""
    request = ctx.request_context if isinstance(ctx, Context) else ctx
    capabilities = request.session.client_capabilities
    return (
        request.protocol_version in VERSIONS
        and capabilities is not None
        and EXTENSION in (capabilities.extensions or {})
    )


def _admit(ctx: ServerRequestContext[Any, Any], params: TaskParams) -> None:
    if not knows_tasks(ctx):
        raise _missing_capability()
    # Over HTTP the header routes the request (SEP-2243); the SDK compares it for the methods of the core only.
    headers = getattr(ctx.request, "headers", None)
    if headers is not None and params.task_id != decode_header_value(headers.get(MCP_NAME_HEADER)):
        raise MCPError(HEADER_MISMATCH, f"the header {MCP_NAME_HEADER} must be the taskId of the request")


def _wants_tasks(params: Mapping[str, Any] | None) -> bool:
    wanted = (params or {}).get("notifications")
    return isinstance(wanted, Mapping) and bool(wanted.get("taskIds"))


def _missing_capability() -> MCPError:
    needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
    return MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, f"the client must declare the extension {EXTENSION}", needed)


def _unknown_task() -> MCPError:
    return MCPError(INVALID_PARAMS, "there is no task of that taskId")
