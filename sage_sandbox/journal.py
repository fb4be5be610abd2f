"""What a run writes down while it goes: first the audit log, then the state, then what follows from it.

One journal belongs to one process that runs one feature; from `open` to `close` it holds the feature's lock.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from sage_sandbox.audit.log import AuditLog, open_audit
from sage_sandbox.deferred import Deferred
from sage_sandbox.disk.files import Folder, sage_folder, unwritable
from sage_sandbox.disk.places import ProjectPlace
from sage_sandbox.document import OperationResult, PhaseResult, RunResult, metrics_document
from sage_sandbox.errors import SageError, StateUnwritable
from sage_sandbox.events import Event, Observer
from sage_sandbox.frozen import frozen
from sage_sandbox.loop import Earlier
from sage_sandbox.observe.log import Log
from sage_sandbox.results.scrub import Scrubber
from sage_sandbox.spending import Spent, spent_before
from sage_sandbox.store import active, artifacts
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import state_folder
from sage_sandbox.store.reading import Found
from sage_sandbox.store.records import Checkpoint, Definition, Session, State, goes_on
from sage_sandbox.store.runs import RunStore
from sage_sandbox.workflow.definition import Workflow

if TYPE_CHECKING:
    from sage_sandbox.events import PhaseStatus, RunStatus

NAMES_SHOWN: Final = 5
ERRORS_KEPT: Final = 100
"""How many errors the main file lists; each checkpoint has its own."""


def utc_now() -> str:
    """The time as the records have it: ISO 8601, UTC, milliseconds."""
    return _stamp(datetime.now(UTC))


def _before(time: str, seconds: float) -> str:
    return _stamp(datetime.fromisoformat(time) - timedelta(seconds=seconds))


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@frozen
class Kept:
    """What a resume goes on from: phases that are done, operations that need not run again, and why others do."""

    earlier: Earlier
    again: tuple[tuple[str, str], ...]
    """Phase id and reason, in the order of the definition."""
    gone: tuple[tuple[str, str], ...] = ()
    """The same of phases that were done and are no part of the workflow any more."""


class Journal:
    """Writes down one process's work on one run."""

    def __init__(
        self,
        project: Path,
        place: ProjectPlace,
        store: RunStore,
        audit: AuditLog,
        secrets_known: Sequence[str] = (),
        *,
        now: Callable[[], str] = utc_now,
    ) -> None:
        self.feature = store.feature
        self.project_id = place.id
        self.keys = store.keys
        self.run = ""
        self.saves = True
        """Whether phases that are cut short are written down (`cancel --no-save` says no)."""
        self.audit_key = b""
        """What the audit log is authenticated with: the broker writes in it, too."""
        self.spent: Callable[[], Mapping[str, Any]] = dict
        """What the run has spent so far, to be written down beside each phase; empty where nobody will ask for it."""
        self._project = project
        self._place = place
        self._store = store
        self._audit = audit
        self._scrubber = Scrubber(secrets_known)
        self._now = now
        self._state: State | None = None
        self._marks: dict[str, Checkpoint] = {}
        self._last_phase = ""

    @classmethod
    def open(
        cls, project: Path, place: ProjectPlace, feature: str, keys: Keys, secrets_known: Sequence[str] = ()
    ) -> tuple[Journal, str]:
        """Take the lock; the journal, and what to say about where the audit log is. Locked, StateUnwritable.

        The place's folder is the journal's from then on, and closed with it; it is closed where this raises, too.
        """
        with ExitStack() as opened:
            opened.callback(place.folder.close)
            store = RunStore.open(project, place, feature, keys)
            opened.callback(store.close)
            audit, notice = open_audit(project, place, keys.audit_key(place.id))
            opened.pop_all()
        journal = cls(project, place, store, audit, secrets_known)
        journal.audit_key = keys.audit_key(place.id)
        return journal, notice

    # -- before the first operation ------------------------------------------------------------------------------

    def read(self) -> Found:
        """What earlier processes left. NoSuchRun, StateCorrupted, WrongKey."""
        return self._store.read()

    def begin(self, definition: Definition, workflow: Workflow) -> None:
        """Start a new run; what an earlier one of the feature left is kept aside."""
        self.run = secrets.token_hex(16)
        self._note("start", f"run {workflow.name}", {"template": definition.digest, "source": definition.source})
        self._note("grants", f"{len(definition.grants)} granted", {"grants": list(definition.grants)})
        self._store.set_aside()
        now = self._now()
        state = State(
            run=self.run,
            feature=self.feature,
            template=workflow.name,
            status="running",
            definition=definition.number,
            phase_ids=tuple(phase.id for phase in workflow.phases),
            started_at=now,
            updated_at=now,
            metrics=_no_metrics(len(workflow.phases)),
            sessions=(Session(now),),
        )
        self._store.create(state, definition)
        self._began(state)

    def go_on(
        self, found: Found, workflow: Workflow, aside: Collection[str] = (), definition: Definition | None = None
    ) -> None:
        """Resume a run without the phases ``aside``; a new ``definition`` takes the old one's place."""
        dropped = [(c.phase, c.attempt, c.generation) for c in found.checkpoints.values() if c.phase in aside]
        every_dropped = (*found.state.dropped, *dropped)
        self.run = found.state.run
        self._note("resume", f"resume {workflow.name}", {"dropped": [phase for phase, _, _ in dropped]})
        if definition is not None:
            self._note("grants", f"{len(definition.grants)} granted", {"grants": list(definition.grants)})
        for damage in found.damages:
            self._audit.reduce("error", f"damaged: {damage.name}", run=self.run, feature=self.feature)
        self._store.adopt(found)
        if definition is not None:
            self._store.define(replace(definition, dropped=every_dropped, absent=found.state.absent))
        self._marks = {phase: held for phase, held in found.checkpoints.items() if phase not in aside}
        now = self._now()
        state = replace(
            found.state,
            status="running",
            template=workflow.name,
            phase_ids=tuple(phase.id for phase in workflow.phases),
            updated_at=now,
            metrics={**found.state.metrics, **_noted(spent_before(found))},
            dropped=every_dropped,
            errors=(),
            sessions=(*found.state.sessions, Session(now)),
        )
        self._save(state)
        artifacts.settle(self._project, self.feature, {phase: held.operations for phase, held in self._marks.items()})
        self._began(state)

    def _began(self, state: State) -> None:
        self._state = state
        with self._state_folder() as folder:
            entry = {
                "template": state.template,
                "workflowId": self.run,
                "startedAt": state.started_at,
                "pid": os.getpid(),
            }
            active.announce(folder, self.feature, entry)

    # -- while it runs -------------------------------------------------------------------------------------------

    def commit(self, results: Sequence[PhaseResult]) -> int:
        """Make phases that ended durable, together; how many secrets the second net found (0 if all is well)."""
        written = [result for result in results if self.saves or result.status != "cancelled"]
        hits = 0
        checkpoints = []
        for result in written:
            data = {"phase": result.id, "outcome": result.status}
            self._audit.write("state", f"{result.id} {result.status}", run=self.run, feature=self.feature, data=data)
            self._note_contacts(result)
            self._note_violations(result)
            checkpoint, found = self._checkpoint(result)
            artifacts.keep(self._project, self.feature, checkpoint.phase, checkpoint.operations)
            checkpoints.append(checkpoint)
            hits += found
        for checkpoint in self._store.commit(checkpoints) if checkpoints else ():
            self._marks[checkpoint.phase] = checkpoint
            self._last_phase = checkpoint.phase
            self._publish(checkpoint)
        return hits

    def _publish(self, checkpoint: Checkpoint) -> None:
        try:
            artifacts.publish(self._project, self.feature, checkpoint.phase, checkpoint.operations)
        except OSError as error:
            raise unwritable(error, str(self._project / ".sage" / "artifacts" / self.feature)) from error

    def _note_contacts(self, result: PhaseResult) -> None:
        """What went out, and what was not let out. The act is over: what allowed it was written down before."""
        for operation in result.operations:
            for contact in operation.outcome.contacts:
                data = {"phase": result.id, "operation": operation.id, **asdict(contact)}
                text = f"{contact.host}:{contact.port} {contact.verdict}" if contact.host else contact.why
                kind = "outside"
                if contact.verdict == "breaker":
                    kind, text = "breaker", f"{contact.host}:{contact.port}: {contact.why}"
                self._audit.write(kind, text, run=self.run, feature=self.feature, data=data)

    def _note_violations(self, result: PhaseResult) -> None:
        for operation in result.operations:
            for violation in operation.outcome.violations:
                data = {"phase": result.id, "operation": operation.id, "allow": violation.allow}
                self._audit.reduce("violation", violation.what, run=self.run, feature=self.feature, data=data)

    def _checkpoint(self, result: PhaseResult) -> tuple[Checkpoint, int]:
        hits = 0
        operations = []
        for operation in result.operations:
            outcome, found = self._scrubber.outcome(operation.outcome)
            hits += found.count
            operations.append((operation.id, outcome))
        now = self._now()
        began = _before(now, result.duration_s)
        spent = self.spent()
        made = Checkpoint(result.id, 0, 0, result.status, tuple(operations), began, now, result.duration_s, spent)
        return made, hits

    # -- at the end ----------------------------------------------------------------------------------------------

    def end(self, result: RunResult) -> None:
        """Write down how the run ended."""
        kind = "cancel" if result.status == "cancelled" else "stop"
        self._audit.reduce(kind, f"{result.workflow} {result.status}", run=self.run, feature=self.feature)
        errors = (self._error(item.phase, item.operation, item.reason, item.message) for item in result.errors)
        self._save_end(result.status, tuple(islice(errors, ERRORS_KEPT)), self._metrics(result))

    def fail(self, error: SageError) -> None:
        """Write down that the run was broken off, as far as that can be; what is done stays, and it can be resumed."""
        self._audit.reduce("error", error.message, run=self.run, feature=self.feature)
        if not isinstance(error, StateUnwritable):
            assert self._state is not None
            with suppress(StateUnwritable):
                self._save_end("failed", (self._error("", "", "error", error.message),), self._state.metrics)

    def _save_end(self, status: RunStatus, errors: tuple[Mapping[str, Any], ...], metrics: Mapping[str, Any]) -> None:
        assert self._state is not None
        now = self._now()
        *before, session = self._state.sessions
        self._save(
            replace(
                self._state,
                status=status,
                phase=self._last_phase or self._state.phase,
                updated_at=now,
                metrics=metrics,
                errors=errors,
                sessions=(*before, replace(session, ended_at=now, status=status)),
            )
        )

    def log(self) -> Observer:
        """What writes the run's lines of ``.sage/logs/orchestration.jsonl``; where that cannot be, nothing does."""
        try:
            return Log(sage_folder(self._project, "logs", make=True), self.feature, self.run)
        except (OSError, SageError):
            return _hear_nothing

    def close(self) -> None:
        """Off the list, and let go of the lock."""
        try:
            with suppress(OSError, SageError), self._state_folder() as folder:  # somebody removed it meanwhile
                active.withdraw(folder, self.feature)
            self._audit.close()
        finally:
            self._store.close()
            self._place.folder.close()

    # -- inside --------------------------------------------------------------------------------------------------

    def _note(self, kind: str, text: str, data: Mapping[str, Any]) -> None:
        self._audit.write(kind, text, run=self.run, feature=self.feature, data=data, durable=True)

    def _save(self, state: State) -> None:
        self._state = replace(state, checkpoints={phase: held.mark for phase, held in self._marks.items()})
        self._store.save(self._state)

    def _state_folder(self) -> Folder:
        return state_folder(self._project)

    def _metrics(self, result: RunResult) -> dict[str, Any]:
        assert self._state is not None
        before = float(self._state.metrics.get("totalTime", 0))
        metrics = metrics_document(result.metrics)
        spent = {"spent": dict(note)} if (note := self.spent()) else {}
        return {**metrics, "totalTime": round(before + metrics["totalTime"], 3), **spent}

    def _error(self, phase: str, operation: str, reason: str, message: str) -> dict[str, Any]:
        text, _ = self._scrubber.text(message)
        return {"phase": phase, "operation": operation, "reason": reason, "message": text[:1000]}


def _hear_nothing(_: Event) -> None:
    """Stand in for a log that cannot be written; the audit log has said why."""


def without_secrets(definition: Definition, known: Sequence[str]) -> Definition:
    """A definition as it may be saved: with none of these values in it; and whether any stood there.

    Patterns are not looked for: the template lies in the project as it is, and code that names a token is no token.
    """
    parts = json.dumps([definition.text, dict(definition.files), dict(definition.params)])
    clean = parts
    for value in known:
        clean = clean.replace(json.dumps(value)[1:-1], "[secret:known]")
    if clean == parts:
        return definition
    text, files, params = json.loads(clean)
    return replace(definition, text=text, files=files, params=params, lacks_secrets=True)


def _noted(spent: Spent) -> dict[str, Any]:
    """What a main file says that earlier processes spent on models."""
    return {"spent": spent.document()} if spent.usage else {}


def _no_metrics(phases: int) -> dict[str, Any]:
    return {"totalTime": 0, "totalTokens": 0, "contextReloads": 0, "phaseCount": phases}


# -- what a resume keeps -------------------------------------------------------------------------------------------


def weigh(found: Found, workflow: Workflow, aside: Mapping[str, str] = MappingProxyType({})) -> Kept:
    """What of an earlier process counts: done phases whole, of the others the operations that were fulfilled.

    ``aside`` says why nothing of some phases does.
    """
    phases: dict[str, PhaseResult] = {}
    kept: dict[str, dict[str, Any]] = {}
    again: list[tuple[str, str]] = []
    damaged = {damage.phase for damage in found.damages}
    for phase in workflow.phases:
        held = None if phase.id in aside else found.checkpoints.get(phase.id)
        if held is not None and goes_on(held.outcome):
            phases[phase.id] = _restored(phase.id, phase.name, held, single=phase.single)
            continue
        if held is not None:
            kept[phase.id] = {name: outcome for name, outcome in held.operations if outcome.ok}
        again.append((phase.id, aside.get(phase.id) or _why(held, damaged=phase.id in damaged)))
    ids = {phase.id for phase in workflow.phases}
    gone = tuple((phase, why) for phase, why in aside.items() if phase not in ids)
    return Kept(Earlier(phases, kept), tuple(again), gone)


def _restored(phase_id: str, name: str, held: Checkpoint, *, single: bool) -> PhaseResult:
    operations = Deferred(lambda: [OperationResult(operation, outcome) for operation, outcome in held.operations])
    status: PhaseStatus = held.outcome
    return PhaseResult(phase_id, name, status, single, operations, None, held.duration_s, restored=True)


def _why(held: Checkpoint | None, *, damaged: bool) -> str:
    if held is None:
        return "its checkpoint was damaged" if damaged else "it did not end before"
    rejected = [name for name, outcome in held.operations if not outcome.ok]
    return f"{held.outcome}: {len(rejected)} of {len(held.operations)} again ({_some(rejected)})"


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
