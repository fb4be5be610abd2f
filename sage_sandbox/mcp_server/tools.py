"""The six tools, under the names and with the shapes of the specification."""

from __future__ import annotations

from typing import Annotated, Any, Final

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from sage_sandbox.control.asking import Cancelled
from sage_sandbox.errors import Problem
from sage_sandbox.escaping import clip
from sage_sandbox.history import Standing
from sage_sandbox.mcp_server import answers, shapes
from sage_sandbox.mcp_server.following import Follower, in_thread
from sage_sandbox.mcp_server.refusals import Call, Refusal, told
from sage_sandbox.mcp_server.runs import Runs
from sage_sandbox.mcp_server.shapes import Feature, Options, Seconds
from sage_sandbox.mcp_server.tasks import knows_tasks

_RUNS_CODE: Final = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)
_READS: Final = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_TASK_S: Final = 1.0
"""How long a client that knows tasks waits for a run before it gets one: a short run is answered at once."""
_PROBLEM_MOST: Final = 300
_PROBLEMS_MOST: Final = 25

AnyContext = Context[Any, Any]


def add_tools(server: MCPServer[Any], runs: Runs, follower: Follower) -> None:
    """Give a server the tools of one project."""
    _add_starting(server, runs, follower)
    _add_reading(server, runs, follower)
    _add_ending(server, runs)


def _add_starting(server: MCPServer[Any], runs: Runs, follower: Follower) -> None:
    @server.tool(title="Run a workflow", annotations=_RUNS_CODE)
    async def sage_workflow_execute(
        feature: Feature,
        ctx: AnyContext,
        template: Annotated[str, Field(description="The name of a template in .sage/templates")] = "feature",
        options: Options | None = None,
    ) -> Annotated[CallToolResult, shapes.Executed]:
        """Run a template, every operation in a sandbox; results, or after options.wait seconds a handle."""
        chosen = options or Options()
        with told(Call(feature, template)):
            await follower.carry(
                lambda: runs.execute(feature, template, chosen), feature, _patience(chosen.wait, ctx), ctx
            )
            return await in_thread(lambda: run_answer(runs, runs.standing(feature)))

    @server.tool(title="Go on with a run", annotations=_RUNS_CODE)
    async def sage_workflow_resume(
        feature: Feature,
        ctx: AnyContext,
        fromPhase: Annotated[  # noqa: N803 - the specification's name
            str | None, Field(description="Run this phase, and all that follow from it, again")
        ] = None,
    ) -> Annotated[CallToolResult, shapes.Resumed]:
        """Go on with a paused, failed, cancelled or killed run; what is done is not repeated."""
        with told(Call(feature, resuming=True)):
            patience_s = _patience(shapes.WAIT_S, ctx)
            at = await follower.carry(lambda: runs.resume(feature, fromPhase), feature, patience_s, ctx)
            return await in_thread(lambda: run_answer(runs, runs.standing(feature), at))


def _add_reading(server: MCPServer[Any], runs: Runs, follower: Follower) -> None:
    @server.tool(title="List the runs", annotations=_READS)
    async def sage_workflow_list(
        filter: Annotated[  # noqa: A002 - the specification's name
            shapes.Status | None, Field(description="Only runs of this status")
        ] = None,
    ) -> Annotated[CallToolResult, shapes.ListAnswer]:
        """List the runs of this project, the newest first."""
        with told(Call()):
            answer = answers.list_of(await in_thread(runs.standings, filter))
        return answers.answered(answer.document(), answers.list_text(answer))

    @server.tool(title="How a run stands", annotations=_READS)
    async def sage_workflow_status(
        feature: Feature,
        ctx: AnyContext,
        wait_s: Annotated[Seconds, Field(description="s to wait for its end")] = 0,
    ) -> Annotated[CallToolResult, shapes.StatusAnswer]:
        """Say how a run stands: progress, metrics, errors. Waits for its end if asked to."""
        with told(Call(feature)):
            standing = runs.ended(feature)
            if standing is None:
                standing = await in_thread(runs.standing, feature)
            if wait_s and standing.status == "running":
                await follower.follow(feature, wait_s, ctx)
                standing = await in_thread(runs.standing, feature)
        document = answers.status_of(standing).document()
        return answers.answered(document, answers.run_text(standing), answers.links_to(feature))

    @server.tool(title="Check a template", annotations=_READS)
    async def sage_workflow_validate(
        template: Annotated[str | dict[str, Any], Field(description="A definition, or the name of a template")],
    ) -> Annotated[CallToolResult, shapes.Validated]:
        """Report everything that is wrong with a template, at once."""
        with told(Call()):
            report = await in_thread(runs.inspect, template)
        answer = _validated(report.workflow is not None, report.problems, dict(report.graph))
        return answers.answered(answer.document(), _validated_text(answer))


def _add_ending(server: MCPServer[Any], runs: Runs) -> None:
    @server.tool(
        title="End a run",
        annotations=ToolAnnotations(destructive_hint=True, idempotent_hint=True, open_world_hint=False),
    )
    async def sage_workflow_cancel(
        feature: Feature,
        saveCheckpoint: Annotated[  # noqa: N803 - the specification's name
            bool, Field(description="false: keep nothing of phases that are cut short")
        ] = True,
    ) -> Annotated[CallToolResult, shapes.Cancelled]:
        """End a run; phases that are done stay, and it can be resumed."""
        with told(Call(feature)):
            done = await in_thread(lambda: runs.cancel(feature, save=saveCheckpoint))
        return _cancelled(done, wanted=saveCheckpoint)


def _patience(wait_s: float, ctx: AnyContext) -> float:
    return min(wait_s, _TASK_S) if knows_tasks(ctx) else wait_s


# -- what became of a run ------------------------------------------------------------------------------------------


def run_answer(runs: Runs, standing: Standing, resumed_from: str | None = None) -> CallToolResult:
    """What is said of a run that was started or, where ``resumed_from`` says at which phase, gone on with."""
    # Read after the standing: what is handed over is never less than what that says is done.
    left = runs.left(standing.feature)
    answer = answers.executed(standing, left)
    if resumed_from is not None:
        answer = shapes.Resumed(**dict(answer), resumed_from=resumed_from)
    text, links = answers.run_text(standing, left), answers.links_to(standing.feature, left)
    if (why := _ended_by(standing)) is not None:
        return answers.ended_badly(answer.document(), why, text, links)
    return answers.answered(answer.document(), text, links)


def _ended_by(standing: Standing) -> Refusal | None:
    """What ended a run from outside: its time, or a service that it lacked."""
    if standing.status != "paused":
        return None
    for error in answers.errors_of(standing):
        if error.reason == "timeout" and not error.operation:
            hint = f"what is done is saved: sage_workflow_resume(feature={standing.feature!r}) goes on"
            return Refusal("TIMEOUT_EXCEEDED", error.message, hint)
        if error.reason == "unavailable":
            hint = f"when the service is back: sage_workflow_resume(feature={standing.feature!r})"
            return Refusal("EXTERNAL_API_FAILURE", f"{error.phase}/{error.operation}: {error.message}", hint)
    return None


def _cancelled(done: Cancelled, *, wanted: bool) -> CallToolResult:
    feature = done.feature
    if done.status != "cancelled":
        message = f"{feature} had ended before it could be cancelled: it is {clip(done.status, 20)}"
        raise Refusal("WORKFLOW_NOT_RUNNING", message, "sage_workflow_status says how it ended").error()
    if wanted and not done.saved:
        message = f"{feature} was cancelled at {clip(done.at, 40)}; what was cut short could not be saved"
        hint = f"phases that were done stay: sage_workflow_resume(feature={feature!r}) goes on from there"
        raise Refusal("CHECKPOINT_SAVE_FAILED", message, hint).error()
    answer = shapes.Cancelled(
        success=True, feature=feature, cancelled_at=clip(done.at, 40), checkpoint_saved=done.saved
    )
    text = f"{feature} was cancelled at {answer.cancelled_at}\nnext: sage_workflow_resume(feature={feature!r}) goes on"
    return answers.answered(answer.document(), text)


# -- what is wrong with a template ---------------------------------------------------------------------------------


def _validated(valid: bool, problems: tuple[Problem, ...], graph: dict[str, int]) -> shapes.Validated:
    shown = problems[:_PROBLEMS_MOST]
    found = [
        shapes.Problem(
            field=clip(problem.field, 80),
            message=_on_one_line(problem.message + (f" (fix: {problem.fix})" if problem.fix else "")),
            severity=problem.severity,
        )
        for problem in shown
    ]
    return shapes.Validated(
        valid=valid,
        errors=[problem for problem in found if problem.severity == "error"],
        warnings=[problem for problem in found if problem.severity == "warning"],
        graph=shapes.Graph(**graph),
        omitted=len(problems) - len(shown) or None,
    )


def _on_one_line(text: str) -> str:
    return clip(" ".join(text.split()), _PROBLEM_MOST)


def _validated_text(answer: shapes.Validated) -> str:
    graph = answer.graph
    head = f"valid: {graph.nodes} phases, depth {graph.depth}" if answer.valid else "not valid"
    lines = [f"- {problem.severity}: {problem.field}: {problem.message}" for problem in answer.errors + answer.warnings]
    return "\n".join((head, *lines, *((f"and {answer.omitted} more",) if answer.omitted else ())))
