"""What the library found, as what the tools answer: small, whole where there is room, and said where there is none.

Every answer has two forms, a document for programs and a few lines for a model to read. Neither is larger than
`ANSWER_MOST`: a client would cut it somewhere, or fill its context with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from mcp.types import CallToolResult, ContentBlock, ResourceLink, TextContent

from sage_sandbox.escaping import clip
from sage_sandbox.handing import OperationLeft, PhaseLeft, narrower
from sage_sandbox.history import Standing
from sage_sandbox.mcp_server import shapes
from sage_sandbox.mcp_server.refusals import Refusal

ANSWER_MOST: Final = 8192
"""The most bytes of an answer's text, and of its document as JSON."""
TEXT_MOST: Final = 2000
_ROOM: Final = 400
"""What is left for the rest of a document beside its list."""
_CAPS: Final = (2000, 1000, 500, 250, 120, 60)
"""How much is kept of each result, tried until all have room."""
_ERRORS_MOST: Final = 10
_MESSAGE_MOST: Final = 300
_ARTIFACTS_MOST: Final = 10
_FILES_LINKED: Final = 5

T = TypeVar("T")


def answered(document: Mapping[str, Any], text: str, links: Iterable[ContentBlock] = ()) -> CallToolResult:
    """An answer in both forms, and where there is more."""
    return CallToolResult(content=[_text(text), *links], structured_content=dict(document))


def ended_badly(document: Mapping[str, Any], why: Refusal, text: str, links: Iterable[ContentBlock]) -> CallToolResult:
    """The answer of a run that a limit or a service ended: an error to the model, and all that there is of the run."""
    content = [_text(f"{why.text()}\n{text}"), *links]
    return CallToolResult(content=content, structured_content=dict(document), is_error=True)


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text.encode()[:ANSWER_MOST].decode(errors="ignore"))


def size_of(document: Any) -> int:
    """The bytes of a document as a client gets it."""
    return len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


# -- one run -------------------------------------------------------------------------------------------------------


def status_of(standing: Standing) -> shapes.StatusAnswer:
    """How a run stands."""
    return shapes.StatusAnswer(
        feature=standing.feature,
        template=clip(standing.template, 100),
        phase=standing.phase,
        status=_status(standing),
        started_at=standing.started_at,
        last_updated_at=standing.updated_at,
        progress=shapes.Progress(**standing.progress),
        metrics=dict(standing.metrics),
        errors=errors_of(standing),
        interrupted=standing.interrupted,
        trouble=clip(standing.trouble, _MESSAGE_MOST) if standing.trouble else None,
    )


def executed(standing: Standing, phases: Sequence[PhaseLeft]) -> shapes.Executed:
    """How a run stands, with what there is of its results."""
    status = _status(standing)
    return shapes.Executed(
        success=status in ("running", "completed"),
        workflow_id=standing.run,
        status=status,
        results=_results(standing, phases),
        errors=errors_of(standing),
    )


def errors_of(standing: Standing) -> list[shapes.RunError]:
    """Why something did not succeed: the first few, cut to a line each."""
    names = ("phase", "operation", "reason", "message")
    return [
        shapes.RunError(**{name: clip(str(error.get(name) or ""), _MESSAGE_MOST) for name in names})
        for error in standing.errors[:_ERRORS_MOST]
    ]


def _status(standing: Standing) -> shapes.Status:
    assert standing.status != "unreadable"  # one run that cannot be read is an error
    return standing.status


def _results(standing: Standing, phases: Sequence[PhaseLeft]) -> shapes.Results:
    metrics = dict(standing.metrics)
    room = ANSWER_MOST - _ROOM - size_of(metrics) - size_of([error.document() for error in errors_of(standing)])
    for cap in _CAPS:
        shown = [_phase(phase, cap) for phase in phases]
        if size_of([phase.document() for phase in shown]) <= room:
            return shapes.Results(phases=shown, metrics=metrics)
    fitting = _last_fitting([_phase(phase, _CAPS[-1]) for phase in phases], room)
    return shapes.Results(phases=fitting, metrics=metrics, omitted=len(phases) - len(fitting))


def _phase(phase: PhaseLeft, cap: int) -> shapes.PhaseResult:
    return shapes.PhaseResult(
        id=phase.id,
        status=phase.status,
        duration=round(phase.duration_s * 1000, 1),
        operations=[_operation(phase.id, operation, cap) for operation in phase.operations],
    )


def _operation(phase: str, operation: OperationLeft, cap: int) -> shapes.OperationResult:
    handed = operation.handed
    files = [
        shapes.Artifact(path=f"{phase}/{operation.id}/{file.path}", size=file.size)
        for file in operation.artifacts[:_ARTIFACTS_MOST]
    ]
    if not operation.reason:
        result = narrower(handed.value, cap)
        return shapes.OperationResult(id=operation.id, status="fulfilled", result=result, artifacts=files or None)
    return shapes.OperationResult(
        id=operation.id,
        status="rejected",
        reason=operation.reason,
        message=clip(handed.error, cap),
        hint=clip(handed.hint, cap) or None,
        stderr=_end_of(handed.stderr, cap) or None,
    )


def _end_of(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[-most:]}"


def _last_fitting(items: Sequence[shapes.PhaseResult], room: int) -> list[shapes.PhaseResult]:
    """The last ones that have room: they are what the others led to."""
    fitting = _first_fitting(list(reversed(items)), room, lambda item: item.document())
    return list(reversed(fitting))


def _first_fitting(items: Sequence[T], room: int, document: Callable[[T], Any]) -> list[T]:
    fitting = []
    for item in items:
        room -= size_of(document(item)) + 1
        if room < 0:
            break
        fitting.append(item)
    return fitting


# -- as text -------------------------------------------------------------------------------------------------------


def run_text(standing: Standing, phases: Sequence[PhaseLeft] = (), *, waited: bool = True) -> str:
    """A run in a few lines: how it stands, the end of what it found, what to do next."""
    lines = [_headline(standing), *_error_lines(standing)]
    if phases:
        lines.append(_shown(phases[-1]))
    if waited or standing.status != "running":
        lines += _next(standing)
    return "\n".join(lines)


def _headline(standing: Standing) -> str:
    done = standing.progress
    killed = " (its process was killed)" if standing.interrupted else ""
    where = f", phase {standing.phase}" if standing.phase else ""
    return f"{standing.feature} is {standing.status}{killed}: {done['completed']} of {done['total']} phases{where}"


def _error_lines(standing: Standing) -> Iterator[str]:
    for error in errors_of(standing)[:3]:
        place = "/".join(part for part in (error.phase, error.operation) if part)
        yield f"- {place}: {error.reason}: {error.message}" if place else f"- {error.reason}: {error.message}"


def _shown(phase: PhaseLeft) -> str:
    """What the last phase left, which is most often what the run was for."""
    found = {
        operation.id: narrower(operation.handed.value, TEXT_MOST // max(len(phase.operations), 1))
        for operation in phase.operations
        if not operation.reason
    }
    values = next(iter(found.values())) if len(phase.operations) == 1 and found else found
    return f"{phase.id} ({phase.status}): {json.dumps(values, ensure_ascii=False)[:TEXT_MOST]}"


def _next(standing: Standing) -> Iterator[str]:
    match standing.status:
        case "running":
            yield f"next: sage_workflow_status(feature={standing.feature!r}, wait_s=60) waits for it"
        case "paused" | "failed" | "cancelled":
            yield f"next: mend what failed, then sage_workflow_resume(feature={standing.feature!r})"


def links_to(feature: str, phases: Sequence[PhaseLeft] = ()) -> list[ContentBlock]:
    """Where there is more of a run."""
    paths = [
        f"{phase.id}/{operation.id}/{file.path}"
        for phase in reversed(phases)
        for operation in phase.operations
        for file in operation.artifacts
    ]
    named = {
        f"{feature}: results": f"sage://runs/{feature}",
        f"{feature}: report": f"sage://runs/{feature}/report",
        f"{feature}: log": f"sage://runs/{feature}/log",
        **{clip(path, 100): artifact_uri(feature, path) for path in paths[:_FILES_LINKED]},
    }
    return [ResourceLink(type="resource_link", name=name, uri=uri) for name, uri in named.items()]


def artifact_uri(feature: str, path: str) -> str:
    """The address of a file that an operation left."""
    from urllib.parse import quote

    return f"sage://runs/{feature}/artifacts/{quote(path, safe='/')}"


# -- all runs ------------------------------------------------------------------------------------------------------


def list_of(standings: Iterable[Standing]) -> shapes.ListAnswer:
    """The runs, the newest first, as many as have room."""
    every = list(standings)
    readable = sorted(
        (one for one in every if one.status != "unreadable"), key=lambda one: one.started_at, reverse=True
    )
    broken = [
        shapes.Unreadable(feature=one.feature, trouble=clip(one.trouble, _MESSAGE_MOST))
        for one in every
        if one.status == "unreadable"
    ][:_ERRORS_MOST]
    room = ANSWER_MOST - _ROOM - size_of([one.document() for one in broken])
    shown = _first_fitting([_listed(one) for one in readable], room, lambda one: one.document())
    return shapes.ListAnswer(workflows=shown, unreadable=broken or None, omitted=len(readable) - len(shown) or None)


def _listed(standing: Standing) -> shapes.Listed:
    return shapes.Listed(
        feature=standing.feature,
        template=clip(standing.template, 100),
        phase=standing.phase,
        status=_status(standing),
        started_at=standing.started_at,
        progress=standing.progress.get("percentage", 0),
    )


def list_text(answer: shapes.ListAnswer) -> str:
    """The runs, one a line."""
    lines = [f"{run.feature}: {run.status}, {run.progress} %, started {run.started_at}" for run in answer.workflows]
    lines += [f"{run.feature}: cannot be read: {run.trouble}" for run in answer.unreadable or ()]
    if answer.omitted:
        lines.append(f"and {answer.omitted} older ones: ask with a filter, or for one by its feature")
    return "\n".join(lines) if lines else "no runs here"
