"""The client's side of the tasks extension, as far as tests need it: MCP's SDK has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import anyio
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp_types import CallToolResult, Request, Result
from pydantic import RootModel

from sage_sandbox.mcp_server.tasks import EXTENSION, TaskParams, UpdateParams

if TYPE_CHECKING:
    from mcp.client.client import Client
    from mcp.client.session import ClientSession

ENDED = frozenset({"completed", "failed", "cancelled"})


class Created(Result):
    """A task instead of an answer."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str
    created_at: str
    last_updated_at: str
    ttl_ms: int | None
    poll_interval_ms: int
    status_message: str | None = None


class Anything(RootModel[dict[str, Any]]):
    """What comes back, as it is."""


class TaskRequest(Request[UpdateParams | TaskParams, str]):
    name_param = "taskId"


async def ask(session: ClientSession, method: str, task_id: str, responses: Any = None) -> dict[str, Any]:
    """What the server answers to one of the three methods."""
    params = (
        TaskParams(task_id=task_id) if responses is None else UpdateParams(task_id=task_id, input_responses=responses)
    )
    return (await session.send_request(TaskRequest(method=method, params=params), Anything)).root


async def until(session: ClientSession, task_id: str, *statuses: str) -> dict[str, Any]:
    """The task once it has one of these statuses, or has ended."""
    with anyio.fail_after(60):
        while True:
            said = await ask(session, "tasks/get", task_id)
            if said["status"] in {*statuses, *ENDED}:
                return said
            await anyio.sleep(said["pollIntervalMs"] / 1000)


async def _finish(created: Created, ctx: ClaimContext) -> CallToolResult:
    said = await until(ctx.session, created.task_id)
    if said["status"] != "completed":
        raise RuntimeError(f"the task is {said['status']}")
    return CallToolResult.model_validate(said["result"], by_name=False)


class KnowsTasks(ClientExtension):
    """`Client(..., extensions=[KnowsTasks()])`: a call returns when its task has ended."""

    identifier = EXTENSION

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Created, resolve=_finish)]


async def begin(client: Client, tool: str, **arguments: Any) -> Created:
    """The task that a call becomes."""
    created = await client.session.call_tool(tool, arguments, allow_claimed=True)
    assert isinstance(created, Created), created
    return created
