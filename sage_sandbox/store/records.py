"""What the state says: the records of a run, and how they become JSON text and back. Pure.

The shapes are written down in docs/design.md, "The records". What is read here was authenticated before, so only its
version and its completeness are looked at.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, field, fields
from functools import partial
from typing import Any, Final, Literal, TypeVar

from sage_sandbox.deferred import Deferred
from sage_sandbox.errors import StateCorrupted
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Artifact, Attempt, CachedAnswer, Capabilities, Contact, Outcome, Usage, Violation
from sage_sandbox.store.migrations import upgrade

RECORD_VERSION: Final = "1.0"

Status = Literal["in_progress", "completed", "failed"]
PhaseEnd = Literal["completed", "degraded", "failed", "blocked", "timeout", "cancelled", "paused"]
RunStatus = Literal["running", "paused", "completed", "failed", "cancelled"]
Dropped = tuple[str, int, int]
"""Phase id, attempt and generation of a checkpoint that no longer counts."""
_T = TypeVar("_T")


@frozen
class Definition:
    """What a run goes by: the template as it was read, its parameters, what the user allowed, and what does not count.

    ``dropped`` and ``absent`` are the main file's: they hold where the main file is lost, and its backup older.
    ``budgets`` are what the user set when the run began, ``raised`` what they set on resuming: it holds in any case.
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
    budgets: Mapping[str, float | None] = field(default_factory=dict)
    raised: Mapping[str, float | None] = field(default_factory=dict)
    lacks_secrets: bool = False
    dropped: tuple[Dropped, ...] = ()
    absent: tuple[int, ...] = ()


@frozen
class Checkpoint:
    """What a phase left when it ended: every outcome in the order of the definition. Times are ISO 8601, UTC.

    ``spent`` is what the run had spent by then, all in all; empty where nobody will ask for it.
    """

    phase: str
    attempt: int
    generation: int
    outcome: PhaseEnd
    operations: Sequence[tuple[str, Outcome]]
    started_at: str
    completed_at: str
    duration_s: float = 0.0
    spent: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """What its operations had models read and write."""
        return sum(usage.total for _, outcome in self.operations for usage in outcome.usage)

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


@frozen
class Mark:
    """A checkpoint in the index of the main file."""

    attempt: int
    outcome: PhaseEnd
    generation: int


@frozen
class Session:
    """One process that worked on the run: when it began and, unless it was killed, when and how it ended."""

    started_at: str
    ended_at: str = ""
    status: str = ""


@frozen
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
    dropped: tuple[Dropped, ...] = ()
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
    return "in_progress" if outcome in ("cancelled", "paused") else "failed"


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
    with _naming("state", path):
        return _state(upgrade("state", json.loads(payload)))


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
        dropped=_dropped(raw),
        absent=tuple(raw.get("absent", ())),
        metrics=raw.get("metrics", {}),
        errors=tuple(raw.get("errors", ())),
        sessions=tuple(
            Session(item["startedAt"], item.get("endedAt", ""), item.get("status", ""))
            for item in raw.get("sessions", ())
        ),
    )


def _dropped(raw: Mapping[str, Any]) -> tuple[Dropped, ...]:
    return tuple((phase, attempt, generation) for phase, attempt, generation in raw.get("dropped", ()))


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
    plain = _camel(definition)
    timeout_s = plain.pop("timeoutS")
    return _json({"version": RECORD_VERSION, **plain, "timeoutMs": None if timeout_s is None else timeout_s * 1000})


def decode_definition(payload: bytes, path: str) -> Definition:
    """A definition; StateCorrupted if it is none."""
    with _naming("definition", path):
        return _definition(upgrade("definition", json.loads(payload)))


def _definition(raw: Mapping[str, Any]) -> Definition:
    timeout_ms = raw.get("timeoutMs")
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
        timeout_s=None if timeout_ms is None else timeout_ms / 1000,
        budgets=raw.get("budgets", {}),
        raised=raw.get("raised", {}),
        lacks_secrets=raw.get("lacksSecrets", False),
        dropped=_dropped(raw),
        absent=tuple(raw.get("absent", ())),
    )


# -- a checkpoint --------------------------------------------------------------------------------------------------


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """A checkpoint's record, in three lines: the phase, its outcomes, the results byte for byte as they were made."""
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
            "tokens": checkpoint.tokens,
            "operationCount": len(operations),
            "parallelOps": len(operations),
            **({"spent": dict(checkpoint.spent)} if checkpoint.spent else {}),
        },
    }
    outcomes = [{"id": name, "bytes": len(outcome.result), **_outcome(outcome)} for name, outcome in operations]
    results = b",".join(_json(name) + b":" + outcome.result for name, outcome in operations)
    return b'%b,\n"operations":%b,\n"results":{%b}}' % (_json(head)[:-1], _json(outcomes), results)


def decode_checkpoint(payload: bytes, path: str, generation: int) -> Checkpoint:
    """A checkpoint; StateCorrupted if it is none. What is in its outcomes is decoded when it is first asked for."""
    head, _, rest = payload.partition(b",\n")
    outcomes, _, results = rest.partition(b",\n")
    with _naming("checkpoint", path):
        raw = json.loads(f"{head.decode()}}}")  # bytes would be looked through for their encoding first
        if raw.get("version") != RECORD_VERSION:
            raw = upgrade("checkpoint", {**raw, **_read_line(outcomes)})
        return Checkpoint(
            phase=raw["phaseId"],
            attempt=raw["attempt"],
            generation=generation,
            outcome=raw["outcome"],
            operations=Deferred(partial(_operations, raw.get("operations"), outcomes, results, path)),
            started_at=raw["timestamp"],
            completed_at=raw["completedAt"],
            duration_s=raw["metrics"]["duration"] / 1000,
            spent=raw["metrics"].get("spent", {}),
        )


def _operations(
    items: list[dict[str, Any]] | None, line: bytes, results: bytes, path: str
) -> tuple[tuple[str, Outcome], ...]:
    """The outcomes of a checkpoint; ``items`` is what is known of them if a migration has decoded the ``line``."""
    with _naming("checkpoint", path):
        return tuple(_read_operations(_read_line(line)["operations"] if items is None else items, results))


def _read_line(line: bytes) -> Any:
    return json.loads(b"{%b}" % line)


def _read_operations(items: list[dict[str, Any]], results: bytes) -> Iterator[tuple[str, Outcome]]:
    """Each operation with its result, cut out of ``"results":{"id":RESULT,"id":RESULT}}``."""
    at = len(b'"results":{')
    for item in items:
        at += len(_json(item["id"])) + 1
        yield item["id"], _read_outcome(item, results[at : at + item["bytes"]])
        at += item["bytes"] + 1
    if at - bool(items) + 2 != len(results):
        raise ValueError("its results do not add up")


_FIELDS: Final[Mapping[type, frozenset[str]]] = {
    kind: frozenset(item.name for item in fields(kind))
    for kind in (Artifact, Attempt, CachedAnswer, Capabilities, Contact, Outcome, Usage, Violation)
}
_NESTED: Final[Mapping[str, Callable[[Any], Any]]] = {
    "stdout": base64.b64decode,
    "stderr": base64.b64decode,
    "capabilities": lambda raw: _known(Capabilities, raw),
    "violations": lambda raw: tuple(_known(Violation, item) for item in raw),
    "contacts": lambda raw: tuple(_known(Contact, item) for item in raw),
    "artifacts": lambda raw: tuple(_known(Artifact, item) for item in raw),
    "attempts": lambda raw: tuple(_known(Attempt, item) for item in raw),
    "written": tuple,
    "lacked": tuple,
    "cached_answers": lambda raw: tuple(_known(CachedAnswer, item) for item in raw),
    "usage": lambda raw: tuple(_known(Usage, item) for item in raw),
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
    found = {name: _NESTED[name](value) if name in _NESTED else value for name, value in raw.items()}
    return _known(Outcome, {**found, "result": result})


def _known(kind: type[_T], raw: Mapping[str, Any]) -> _T:
    """A record of its fields, without those that a later version has added."""
    known = _FIELDS[kind]
    return kind(**{name: value for name, value in raw.items() if name in known})


# -- an outcome by itself ------------------------------------------------------------------------------------------


def encode_outcome(outcome: Outcome) -> bytes:
    """An outcome's record: all but its result in a line, then the result byte for byte as it was made."""
    return b'{"outcome":%b,\n"result":%b}' % (_json(_outcome(outcome)), outcome.result)


def decode_outcome(payload: bytes, path: str) -> Outcome:
    """An outcome; StateCorrupted if it is none."""
    head, _, result = payload.partition(b',\n"result":')
    with _naming("outcome", path):
        return _read_outcome(json.loads(head + b"}")["outcome"], result[:-1])


# -- common --------------------------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@contextmanager
def _naming(kind: str, path: str) -> Iterator[None]:
    """Say of whatever goes wrong with a record which one it is."""
    try:
        yield
    except StateCorrupted as error:
        raise StateCorrupted(f"{path}: {error.message}", error.hint, path) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{path} is no {kind} of this program: {type(error).__name__}: {error}"
        raise StateCorrupted(message, "restore it from a backup", path) from error


def _camel(record: Any) -> dict[str, Any]:
    """A record of plain fields under the names of the specification."""
    return {_to_camel(item.name): _plain(getattr(record, item.name)) for item in fields(record)}


def _to_camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
