"""What the state says: the records of a run, and how they become JSON text and back. Pure.

The shapes are written down in docs/design.md, "The records". What is read here was authenticated before, so only its
version and its completeness are looked at.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Final, Literal, TypeVar

from sage_sandbox.errors import StateCorrupted
from sage_sandbox.outcome import Artifact, Attempt, Capabilities, Outcome, Violation
from sage_sandbox.store.migrations import upgrade

RECORD_VERSION: Final = "1.0"

Status = Literal["in_progress", "completed", "failed"]
PhaseEnd = Literal["completed", "degraded", "failed", "blocked", "timeout", "cancelled"]
RunStatus = Literal["running", "paused", "completed", "failed", "cancelled"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Definition:
    """What a run goes by: the template as it was read, its parameters, and what the user allowed for it.

    ``lacks_secrets``: known secrets stood in it and were not saved, so nothing can go by it again.
    """

    number: int
    name: str
    kind: str
    source: str
    digest: str
    text: str
    phase_ids: tuple[str, ...]
    made_at: str
    files: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    grants: tuple[str, ...] = ()
    limits: Mapping[str, float | None] = field(default_factory=dict)
    timeout_s: float | None = None
    lacks_secrets: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a phase left when it ended: every outcome in the order of the definition. Times are ISO 8601, UTC."""

    phase: str
    attempt: int
    generation: int
    outcome: PhaseEnd
    operations: tuple[tuple[str, Outcome], ...]
    started_at: str
    completed_at: str
    duration_s: float = 0.0

    @property
    def status(self) -> Status:
        """The specification's word for how it ended."""
        return status_of(self.outcome)

    @property
    def error(self) -> str:
        """What the first rejected operation says, or empty."""
        return next((outcome.error for _, outcome in self.operations if not outcome.ok), "")

    @property
    def mark(self) -> Mark:
        """How the main file's index names it."""
        return Mark(self.attempt, self.outcome, self.generation)


@dataclass(frozen=True, slots=True)
class Mark:
    """A checkpoint in the index of the main file."""

    attempt: int
    outcome: PhaseEnd
    generation: int


@dataclass(frozen=True, slots=True)
class Session:
    """One process that worked on the run: when it began and, unless it was killed, when and how it ended."""

    started_at: str
    ended_at: str = ""
    status: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """The main file: where a run stands. ``absent`` and ``dropped`` account for generations that no file has."""

    run: str
    feature: str
    template: str
    status: RunStatus
    definition: int
    phase_ids: tuple[str, ...]
    started_at: str
    updated_at: str
    phase: str = ""
    checkpoints: Mapping[str, Mark] = field(default_factory=dict)
    dropped: tuple[tuple[str, int, int], ...] = ()
    absent: tuple[int, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[Mapping[str, Any], ...] = ()
    sessions: tuple[Session, ...] = ()

    @property
    def progress(self) -> dict[str, int]:
        """The specification's progress: phases that completed, all phases, the percentage."""
        return progress(sum(goes_on(mark.outcome) for mark in self.checkpoints.values()), len(self.phase_ids))


def goes_on(outcome: PhaseEnd) -> bool:
    """Whether the dependents of a phase that ended like this may run: it is never run again then."""
    return outcome in ("completed", "degraded")


def status_of(outcome: PhaseEnd) -> Status:
    """The specification's word for how a phase ended."""
    if goes_on(outcome):
        return "completed"
    return "in_progress" if outcome == "cancelled" else "failed"


def progress(completed: int, total: int) -> dict[str, int]:
    """Completed phases, all phases, percentage (rounded down: 100 means all of them)."""
    return {"completed": completed, "total": total, "percentage": 100 * completed // total if total else 0}


# -- the main file -------------------------------------------------------------------------------------------------


def encode_state(state: State) -> bytes:
    """The main file's record."""
    return _json(
        {
            "version": RECORD_VERSION,
            "workflowId": state.run,
            "feature": state.feature,
            "template": state.template,
            "phase": state.phase,
            "status": state.status,
            "startedAt": state.started_at,
            "lastUpdatedAt": state.updated_at,
            "definition": state.definition,
            "phaseIds": list(state.phase_ids),
            "checkpoints": {phase: _mark(mark) for phase, mark in state.checkpoints.items()},
            "dropped": [list(item) for item in state.dropped],
            "absent": list(state.absent),
            "metrics": dict(state.metrics),
            "errors": list(state.errors),
            "sessions": [_camel(session) for session in state.sessions],
        }
    )


def decode_state(payload: bytes, path: str) -> State:
    """The main file; StateCorrupted if it is none."""
    return _decoded(payload, path, "state", _state)


def _state(raw: Mapping[str, Any]) -> State:
    return State(
        run=raw["workflowId"],
        feature=raw["feature"],
        template=raw["template"],
        status=raw["status"],
        definition=raw["definition"],
        phase_ids=tuple(raw["phaseIds"]),
        started_at=raw["startedAt"],
        updated_at=raw["lastUpdatedAt"],
        phase=raw.get("phase", ""),
        checkpoints={
            phase: Mark(mark["attempt"], mark["outcome"], mark["generation"])
            for phase, mark in raw.get("checkpoints", {}).items()
        },
        dropped=tuple((phase, attempt, generation) for phase, attempt, generation in raw.get("dropped", ())),
        absent=tuple(raw.get("absent", ())),
        metrics=raw.get("metrics", {}),
        errors=tuple(raw.get("errors", ())),
        sessions=tuple(
            Session(item["startedAt"], item.get("endedAt", ""), item.get("status", ""))
            for item in raw.get("sessions", ())
        ),
    )


def _mark(mark: Mark) -> dict[str, Any]:
    return {
        "attempt": mark.attempt,
        "status": status_of(mark.outcome),
        "outcome": mark.outcome,
        "generation": mark.generation,
    }


# -- the definition ------------------------------------------------------------------------------------------------


def encode_definition(definition: Definition) -> bytes:
    """A definition's record."""
    return _json({"version": RECORD_VERSION, **_camel(definition)})


def decode_definition(payload: bytes, path: str) -> Definition:
    """A definition; StateCorrupted if it is none."""
    return _decoded(payload, path, "definition", _definition)


def _definition(raw: Mapping[str, Any]) -> Definition:
    return Definition(
        number=raw["number"],
        name=raw["name"],
        kind=raw["kind"],
        source=raw["source"],
        digest=raw["digest"],
        text=raw["text"],
        phase_ids=tuple(raw["phaseIds"]),
        made_at=raw["madeAt"],
        files=raw.get("files", {}),
        params=raw.get("params", {}),
        grants=tuple(raw.get("grants", ())),
        limits=raw.get("limits", {}),
        timeout_s=raw.get("timeoutS"),
        lacks_secrets=raw.get("lacksSecrets", False),
    )


# -- a checkpoint --------------------------------------------------------------------------------------------------


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """A checkpoint's record: a line of JSON about every outcome, then the results byte for byte as they were made."""
    operations = checkpoint.operations
    head = {
        "version": RECORD_VERSION,
        "phaseId": checkpoint.phase,
        "attempt": checkpoint.attempt,
        "status": checkpoint.status,
        "outcome": checkpoint.outcome,
        "timestamp": checkpoint.started_at,
        "completedAt": checkpoint.completed_at,
        "error": checkpoint.error,
        "metrics": {
            "duration": round(checkpoint.duration_s * 1000, 3),
            "tokens": 0,
            "operationCount": len(operations),
            "parallelOps": len(operations),
        },
        "operations": [
            {"id": name, "bytes": len(outcome.result), **_outcome(outcome)} for name, outcome in operations
        ],
    }
    results = b",".join(_json(name) + b":" + outcome.result for name, outcome in operations)
    return _json(head)[:-1] + b',"results":{\n' + results + b"}}"


def decode_checkpoint(payload: bytes, path: str, generation: int) -> Checkpoint:
    """A checkpoint; StateCorrupted if it is none."""
    line, _, results = payload.partition(b"\n")
    return _decoded(line + b"}}", path, "checkpoint", lambda raw: _checkpoint(raw, results, generation))


def _checkpoint(raw: Mapping[str, Any], results: bytes, generation: int) -> Checkpoint:
    operations, at = [], 0
    for item in raw["operations"]:
        at += len(_json(item["id"])) + 1
        result = results[at : at + item["bytes"]]
        at += item["bytes"] + 1
        operations.append((item["id"], _read_outcome(item, result)))
    if at + 1 != len(results):
        raise ValueError("its results do not add up")
    return Checkpoint(
        phase=raw["phaseId"],
        attempt=raw["attempt"],
        generation=generation,
        outcome=raw["outcome"],
        operations=tuple(operations),
        started_at=raw["timestamp"],
        completed_at=raw["completedAt"],
        duration_s=raw["metrics"]["duration"] / 1000,
    )


_BYTES: Final = ("stdout", "stderr")
_NESTED: Final[Mapping[str, Callable[[Any], Any]]] = {
    "stdout": base64.b64decode,
    "stderr": base64.b64decode,
    "capabilities": lambda raw: Capabilities(**raw),
    "violations": lambda raw: tuple(Violation(**item) for item in raw),
    "artifacts": lambda raw: tuple(Artifact(**item) for item in raw),
    "attempts": lambda raw: tuple(Attempt(**item) for item in raw),
    "written": tuple,
}
_DEFAULTS: Final[Mapping[str, Any]] = {
    item.name: None if item.default is MISSING else item.default for item in fields(Outcome)
}


def _outcome(outcome: Outcome) -> dict[str, Any]:
    """All of an outcome but its result; what has its default is left out."""
    found = {}
    for name, default in _DEFAULTS.items():
        value = getattr(outcome, name)
        if name != "result" and value != default:
            found[name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _read_outcome(raw: Mapping[str, Any], result: bytes) -> Outcome:
    known = {
        name: _NESTED[name](value) if name in _NESTED else value for name, value in raw.items() if name in _DEFAULTS
    }
    return Outcome(**{**known, "result": result})


# -- common --------------------------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _decoded(text: bytes, path: str, kind: str, make: Callable[[Mapping[str, Any]], _T]) -> _T:
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise TypeError("no object")
        return make(upgrade(kind, raw))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{path} is no {kind} of this program: {type(error).__name__}: {error}"
        raise StateCorrupted(message, "restore it from a backup", path) from error


def _camel(record: Any) -> dict[str, Any]:
    """A record of plain fields under the names of the specification."""
    return {_to_camel(item.name): _plain(getattr(record, item.name)) for item in fields(record)}


def _to_camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
