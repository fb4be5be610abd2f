"""Runs as tasks: what `sage_workflow_execute` and `sage_workflow_resume` begin is one each.

A run has a process of its own and says on disk how it stands, so a task needs nothing of the server: its name holds
what it takes to find it, and any server of the project answers for it. A run that is resumed is the same run, but
another task: the name also says which process of the run it means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolRequestParams, CallToolResult

from sage_sandbox.control.asking import NotRunning
from sage_sandbox.errors import NoSuchRun, SageError
from sage_sandbox.events import RunStatus
from sage_sandbox.frozen import frozen
from sage_sandbox.history import Standing
from sage_sandbox.mcp_server.following import in_thread
from sage_sandbox.mcp_server.runs import Runs
from sage_sandbox.mcp_server.tasks import Task, TaskStatus

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

T = TypeVar("T")

BEGINNING: Final = frozenset({"sage_workflow_execute", "sage_workflow_resume"})
POLL_MS: Final = 1000
END_S: Final = 2.0
"""How long a request to cancel waits for the end of the run; after that it may come later."""
AGAIN_S: Final = 0.1

_NAME: Final = re.compile(
    r"run\.([a-z0-9][a-z0-9-]{0,63})\.([0-9a-f]{32})\.([1-9][0-9]{0,5})(?:\.([a-z0-9-]{0,64}))?", re.ASCII
)


@frozen
class Name:
    """What a task's name says: the run, and which of its processes, counted from 1.

    ``resumed_from`` is the phase that the process went on with; None if the run began with it. The run's id is 128
    random bits, so no name can be guessed.
    """

    feature: str
    run: str
    session: int
    resumed_from: str | None = None

    def __str__(self) -> str:
        begun = f"run.{self.feature}.{self.run}.{self.session}"
        return begun if self.resumed_from is None else f"{begun}.{self.resumed_from}"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """None if it is no name of ours."""
        if (found := _NAME.fullmatch(text)) is None:
            return None
        feature, run, session, resumed_from = found.groups()
        return cls(feature, run, int(session), resumed_from)


Answer = Callable[[Standing, str | None], CallToolResult]
"""What the tool says of a run that has ended, and of where it went on: as it would have, had it waited."""


class RunTasks:
    """The tasks of one project. Nothing is kept here: what is asked for is read from disk."""

    required: frozenset[str] = frozenset()

    def __init__(self, runs: Runs, answer: Answer) -> None:
        self._runs = runs
        self._answer = answer

    async def start(
        self, call: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], answer: CallNext
    ) -> Task | HandlerResult:
        """The task of a run that was begun and goes on; else the answer as it is."""
        result = await answer(ctx)
        if call.name not in BEGINNING or (said := _going_on(result)) is None:
            return result
        feature = str((call.arguments or {}).get("feature"))
        standing = await self._standing(feature)
        if standing is None or standing.run != said["workflowId"]:
            return result  # somebody else put it aside since
        return _task(Name(feature, standing.run, len(standing.sessions), said.get("resumedFrom")), standing)

    async def get(self, name: str) -> Task | None:
        """The task as it is now."""
        if (found := await self._find(name)) is None:
            return None
        known, standing = found
        task = _task(known, standing)
        if task.status != "completed":
            return task
        result = await _asked(self._answer, _as_it_ended(known, standing), known.resumed_from)
        return replace(task, result=result.model_dump(by_alias=True, mode="json", exclude_none=True))

    async def update(self, name: str, responses: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether there is such a task. A run asks for nothing once it has begun: no answer is waited for."""
        return await self._find(name) is not None

    async def cancel(self, name: str) -> bool:
        """Ask the run to end, unless it has, or another process works on it by now."""
        if (found := await self._find(name)) is None:
            return False
        known, standing = found
        if _task(known, standing).status == "working":
            with anyio.move_on_after(END_S):
                # A process that does not listen yet has no event to wait for.
                while not await anyio.to_thread.run_sync(  # noqa: ASYNC110
                    self._end, known, abandon_on_cancel=True
                ):
                    await anyio.sleep(AGAIN_S)
        return True

    async def _find(self, name: str) -> tuple[Name, Standing] | None:
        known = Name.read(name)
        standing = await self._standing(known.feature) if known is not None else None
        if known is None or standing is None or standing.run != known.run or known.session > len(standing.sessions):
            return None
        return known, standing

    async def _standing(self, feature: str) -> Standing | None:
        """How the run of a feature stands, if there is one."""
        try:
            return await _asked(self._runs.standing, feature)
        except NoSuchRun:
            return None

    def _end(self, known: Name) -> bool:
        """Ask a run to end, if it is still that one. False if it does not listen yet: it has only just begun."""
        with suppress(SageError, OSError):  # it cannot hear, or broke off: to have asked is all that is promised
            standing = self._runs.standing(known.feature)
            if (standing.run, len(standing.sessions), standing.status) != (known.run, known.session, "running"):
                return True
            try:
                self._runs.cancel(known.feature, save=True)
            except NotRunning:
                return False
        return True


async def _asked(call: Callable[..., T], *args: object) -> T:
    """What a blocking call returns. MCPError for what goes wrong with the state, but for NoSuchRun."""
    try:
        return await in_thread(call, *args)
    except NoSuchRun:
        raise
    except (SageError, OSError) as error:
        message = error.message if isinstance(error, SageError) else error.strerror or str(error)
        raise MCPError(INTERNAL_ERROR, message) from error


def _going_on(result: HandlerResult) -> Mapping[str, Any] | None:
    """What an answer says, if it says that the run goes on."""
    if not isinstance(result, CallToolResult) or result.is_error or not isinstance(result.structured_content, dict):
        return None
    said = result.structured_content
    return said if said.get("status") == "running" else None


def _as_it_ended(name: Name, standing: Standing) -> Standing:
    """The run as the process left it that a task means, whatever others made of it since; one killed left it paused."""
    if name.session == len(standing.sessions):
        return standing
    return replace(standing, status=_ENDS.get(standing.sessions[name.session - 1].status, "paused"), errors=())


def _task(name: Name, standing: Standing) -> Task:
    session, done = standing.sessions[name.session - 1], standing.progress
    return Task(
        id=str(name),
        status=_STATUS.get(_as_it_ended(name, standing).status, "completed"),
        created_at=session.started_at,
        updated_at=session.ended_at or standing.updated_at,
        message=f"{done['completed']} of {done['total']} phases ({done['percentage']} %)",
        poll_ms=POLL_MS,
    )


_STATUS: Final[Mapping[str, TaskStatus]] = {"running": "working", "cancelled": "cancelled"}
"""Paused and failed are how a run can end: results, not errors of the protocol."""
_ENDS: Final[Mapping[str, RunStatus]] = {"completed": "completed", "failed": "failed", "cancelled": "cancelled"}
