"""What a run left, as records and as the one JSON document of ``--json``: the kept part, or all of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, replace
from typing import Any

from sage_sandbox.errors import ExitCode
from sage_sandbox.events import NOTHING, PhaseStatus, RunStatus, Weight
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Attempt, CachedAnswer, Outcome, Reason, Usage
from sage_sandbox.results.leaving import Handed, hand_back
from sage_sandbox.results.personal import cleaned
from sage_sandbox.results.tokens import tokens
from sage_sandbox.workflow.definition import Keep


@frozen
class OperationResult:
    """One operation and its outcome."""

    id: str
    outcome: Outcome


@frozen
class PhaseResult:
    """One phase: ``operations`` holds those that settled (none of a phase that never started).

    ``started_s`` counts from the start of the run and is None where the phase never did.
    """

    id: str
    name: str
    status: PhaseStatus
    single: bool
    operations: Sequence[OperationResult] = ()
    started_s: float | None = None
    duration_s: float = 0.0
    restored: bool = False
    """Whether an earlier process ran it: this one read what it left."""


@frozen
class RunError:
    """Why something did not succeed: an operation, or (``operation`` empty) a phase or (both empty) the run."""

    phase: str
    operation: str
    reason: Reason | PhaseStatus
    message: str
    hint: str = ""


@frozen
class Metrics:
    """Counts and times of a run.

    ``parallel_max`` is the most operations that ran at one moment, ``restored`` the phases that an earlier process did.
    ``cache_asked`` operations might have been answered from the cache, ``cached`` were. ``usage`` and ``cost`` are what
    models were asked for, by earlier processes of the run too; a cost of None is not known.
    """

    duration_s: float = 0.0
    phases: int = 0
    operations: int = 0
    fulfilled: int = 0
    rejected: int = 0
    retries: int = 0
    parallel_max: int = 0
    context_reloads: int = 0
    restored: int = 0
    cached: int = 0
    cache_asked: int = 0
    weight: Weight = NOTHING
    usage: tuple[Usage, ...] = ()
    cost: float | None = None

    @property
    def model_tokens(self) -> int:
        """What models read and wrote."""
        return sum(usage.total for usage in self.usage)


@frozen
class RunResult:
    """How a run ended; nothing of it is running any more."""

    workflow_id: str
    feature: str
    workflow: str
    status: RunStatus
    exit_code: ExitCode
    phases: tuple[PhaseResult, ...]
    metrics: Metrics
    errors: tuple[RunError, ...] = ()
    hint: str = ""
    keeps: Mapping[tuple[str, str], Keep] = field(default_factory=dict)
    """What is kept of the results (by phase id and operation id) for which the template says it."""

    @property
    def ok(self) -> bool:
        """Whether every phase completed."""
        return self.status == "completed"

    def phase(self, phase_id: str) -> PhaseResult:
        """The phase of this id; KeyError if the workflow has none."""
        for phase in self.phases:
            if phase.id == phase_id:
                return phase
        raise KeyError(phase_id)

    def outcome(self, phase_id: str, operation_id: str) -> Outcome:
        """The outcome of one operation; KeyError if it has none."""
        for operation in self.phase(phase_id).operations:
            if operation.id == operation_id:
                return operation.outcome
        raise KeyError(operation_id)


def document(result: RunResult, *, whole: bool = False) -> dict[str, Any]:
    """The result as plain data, under the names of the specification: of each operation the kept part, or the whole."""
    phases = [_phase(phase, result.keeps, whole=whole) for phase in result.phases]
    return {
        "success": result.ok,
        "workflowId": result.workflow_id,
        "feature": result.feature,
        "workflow": result.workflow,
        "status": result.status,
        "exitCode": int(result.exit_code),
        "results": {"phases": phases, "metrics": metrics_document(result.metrics)},
        "errors": [_error(error) for error in result.errors],
        "hint": result.hint,
    }


def _error(error: RunError) -> dict[str, Any]:
    return asdict(replace(error, message=cleaned(error.message), hint=cleaned(error.hint)))


def metrics_document(metrics: Metrics) -> dict[str, Any]:
    """Metrics as plain data."""
    return {
        "totalTime": _ms(metrics.duration_s),
        "totalTokens": metrics.weight.handed_tokens + metrics.model_tokens,
        "contextReloads": metrics.context_reloads,
        "phaseCount": metrics.phases,
        "operationCount": metrics.operations,
        "fulfilled": metrics.fulfilled,
        "rejected": metrics.rejected,
        "retries": metrics.retries,
        "parallelOps": metrics.parallel_max,
        "restored": metrics.restored,
        "cached": metrics.cached,
        "cacheAsked": metrics.cache_asked,
        "cacheHitRate": round(metrics.cached / metrics.cache_asked, 3) if metrics.cache_asked else None,
        "handedBack": _weight(metrics.weight),
        "models": _models(metrics.usage, metrics.cost) if metrics.usage else None,
    }


def _models(usage: Sequence[Usage], cost: float | None) -> dict[str, Any]:
    return {
        "tokens": sum(one.total for one in usage),
        "input": sum(one.input for one in usage),
        "output": sum(one.output for one in usage),
        "cacheRead": sum(one.cache_read for one in usage),
        "cacheWrite": sum(one.cache_write for one in usage),
        "measured": all(one.measured for one in usage),
        "cost": None if cost is None else round(cost, 6),
        "byModel": [_usage(one) for one in usage],
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "asked": usage.asked,
        "provider": usage.provider,
        "model": usage.model,
        "input": usage.input,
        "output": usage.output,
        "cacheRead": usage.cache_read,
        "cacheWrite": usage.cache_write,
        "times": usage.times,
        "measured": usage.measured,
    }


def _weight(weight: Weight) -> dict[str, Any]:
    return {
        "bytesProduced": weight.produced,
        "bytes": weight.handed,
        "tokensProduced": weight.produced_tokens,
        "tokens": weight.handed_tokens,
        "tokensEstimated": not weight.exact,
        "personal": weight.personal,
    }


def _phase(phase: PhaseResult, keeps: Mapping[tuple[str, str], Keep], *, whole: bool) -> dict[str, Any]:
    handed = [(one, hand_back(one.outcome, keeps.get((phase.id, one.id)), whole=whole)) for one in phase.operations]
    count = sum(tokens(what.text) for _, what in handed)
    asked = sum(usage.total for one in phase.operations for usage in one.outcome.usage)
    return {
        "id": phase.id,
        "name": phase.name,
        "status": phase.status,
        "single": phase.single,
        "restored": phase.restored,
        "startedMs": None if phase.started_s is None else _ms(phase.started_s),
        "metrics": {
            "duration": _ms(phase.duration_s),
            "tokens": count + asked,
            "modelTokens": asked,
            "operationCount": len(phase.operations),
        },
        "operations": [{"id": one.id, **handed_document(one.outcome, what)} for one, what in handed],
    }


def handed_document(outcome: Outcome, handed: Handed) -> dict[str, Any]:
    """What is handed back of an outcome, as plain data."""
    said = {"reason": outcome.reason, "message": handed.error, "hint": handed.hint}
    return {
        **outcome_document(outcome, with_result=False),
        "result": handed.value,
        "error": None if outcome.ok else said,
        "violations": [asdict(violation) for violation in handed.violations],
        "stdout": handed.stdout,
        "stderr": handed.stderr,
        "attempts": [_attempt(attempt) for attempt in handed.attempts],
        "personal": dict(handed.personal),
    }


def outcome_document(outcome: Outcome, *, with_result: bool = True) -> dict[str, Any]:
    """One outcome as plain data, as it is."""
    return {
        "status": outcome.status,
        "result": outcome.value() if outcome.ok and with_result else None,
        "error": None if outcome.ok else {"reason": outcome.reason, "message": outcome.error, "hint": outcome.hint},
        "durationMs": _ms(outcome.duration_s),
        "cpuMs": _ms(outcome.cpu_s),
        "maxRssBytes": outcome.max_rss,
        "exitCode": outcome.exit_code,
        "sandboxLevel": outcome.level,
        "capabilities": asdict(outcome.capabilities),
        "violations": [asdict(violation) for violation in outcome.violations],
        "contacts": [asdict(contact) for contact in outcome.contacts],
        "artifacts": [asdict(artifact) for artifact in outcome.artifacts],
        "written": list(outcome.written),
        "stdout": _text(outcome.stdout),
        "stderr": _text(outcome.stderr),
        "scrubbed": outcome.scrubbed,
        "calls": outcome.calls,
        "usage": [_usage(usage) for usage in outcome.usage],
        "cachedMs": None if outcome.cached_s is None else _ms(outcome.cached_s),
        "lacked": list(outcome.lacked),
        "cachedAnswers": [_cached_answer(answer) for answer in outcome.cached_answers],
        "attempts": [_attempt(attempt) for attempt in outcome.attempts],
    }


def _cached_answer(answer: CachedAnswer) -> dict[str, Any]:
    return {
        "tool": answer.tool,
        "ageMs": _ms(answer.age_s),
        "unavailable": answer.unavailable,
        "times": answer.times,
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "status": attempt.status,
        "reason": attempt.reason,
        "error": attempt.error,
        "durationMs": _ms(attempt.duration_s),
    }


def _ms(seconds: float) -> float:
    """Milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
