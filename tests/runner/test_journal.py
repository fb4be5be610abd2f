"""The journal: what it writes down in which order, and what a resume makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_supervisor import fulfilled
from workflows import flow, many, op, single

from sage_sandbox import journal as journal_module
from sage_sandbox.disk.places import project_place
from sage_sandbox.document import Metrics, OperationResult, PhaseResult, RunError, RunResult
from sage_sandbox.errors import ExitCode, Locked, SandboxUnavailable, StateUnwritable
from sage_sandbox.events import PhaseStatus
from sage_sandbox.journal import ERRORS_KEPT, Journal, utc_now, weigh, without_secrets
from sage_sandbox.outcome import Artifact, Contact, Outcome, Violation, rejected
from sage_sandbox.store import artifacts
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.reading import Damage, Found
from sage_sandbox.store.records import Checkpoint, Definition, State
from sage_sandbox.store.runs import RunStore

KEYS = Keys([b"k" * 32])
SECRET = "correct-horse-battery"
NOW = "2030-01-01T00:00:10.000Z"
WORKFLOW = flow(single("a"), many("b", op("x"), op("y"), needs=("a",)), single("c", "b"))
IDS = tuple(phase.id for phase in WORKFLOW.phases)
DEFINITION = Definition(1, "test", "yaml", "/t.yaml", "digest", "text", IDS, NOW, grants=("read:/src",))


class Book:
    """Everything that was written down, in order: audit entries, and files by their name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.data: list[Any] = []
        self.closed = False

    def write(self, kind: str, text: str, *, data: Any = None, **_: Any) -> None:
        self.lines.append(f"{kind}: {text}")
        self.data.append(data)

    def reduce(self, kind: str, text: str, *, data: Any = None, **_: Any) -> None:
        self.write(kind, text, data=data)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Book:
    made = Book()
    monkeypatch.setattr(journal_module, "open_audit", lambda *_: (made, "it goes elsewhere"))
    for name in ("commit", "save", "create", "set_aside", "define", "adopt"):
        act = getattr(RunStore, name)

        def noted(self: RunStore, *args: Any, name: str = name, act: Any = act) -> Any:
            made.lines.append(name)
            return act(self, *args)

        monkeypatch.setattr(RunStore, name, noted)
    return made


@contextmanager
def opened(project: Path, **options: Any) -> Iterator[Journal]:
    journal, _ = Journal.open(project, project_place(project), "f", KEYS, **options)
    with closing(journal):
        yield journal


@pytest.fixture
def journal(tmp_path: Path, book: Book) -> Iterator[Journal]:
    """Of a run that has just begun."""
    with opened(tmp_path, secrets_known=[SECRET]) as made:
        made.begin(DEFINITION, WORKFLOW)
        book.lines.clear()
        yield made


def phase(name: str, *outcomes: Outcome, status: PhaseStatus = "completed", duration_s: float = 1.0) -> PhaseResult:
    named = zip(("x", "y") if len(outcomes) > 1 else ("op-1",), outcomes or (fulfilled(),), strict=False)
    operations = tuple(OperationResult(operation, outcome) for operation, outcome in named)
    return PhaseResult(name, name.title(), status, len(operations) == 1, operations, 0.0, duration_s)


def result(status: Any = "completed", *errors: RunError, duration_s: float = 1.5) -> RunResult:
    return RunResult("id", "f", "test", status, ExitCode.DONE, (), Metrics(duration_s, phases=3), errors)


def again(project: Path) -> Found:
    with opened(project) as journal:
        return journal.read()


# -- opening and closing -----------------------------------------------------------------------------------------


def test_one_process_at_a_time_and_the_next_when_it_has_closed(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(Locked), opened(tmp_path):
        pass
    journal.close()

    assert again(tmp_path).state.status == "running"


def test_without_an_audit_log_nothing_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise StateUnwritable("no room for it")

    monkeypatch.setattr(journal_module, "open_audit", fail)
    for _ in range(2):  # Locked, were the first one still there
        with pytest.raises(StateUnwritable, match="no room"), opened(tmp_path):
            pass


def test_a_folder_that_was_removed_meanwhile_does_not_keep_it_from_closing(
    journal: Journal, tmp_path: Path, book: Book
) -> None:
    (tmp_path / ".sage").rename(tmp_path / "gone")
    journal.close()

    assert book.closed


def test_a_log_for_people_that_cannot_be_written_is_no_reason_to_stop(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / ".sage" / "logs").write_text("in its place")
    observer = journal.log()

    observer(None)  # type: ignore[arg-type]


# -- beginning ---------------------------------------------------------------------------------------------------


def test_the_audit_log_comes_first_then_the_definition_then_the_state(tmp_path: Path, book: Book) -> None:
    with opened(tmp_path) as made:
        made.begin(DEFINITION, WORKFLOW)

    assert book.lines == ["start: run test", "grants: 1 granted", "set_aside", "create", "define", "save"]
    assert book.data[1] == {"grants": ["read:/src"]}


def test_a_run_that_begins_puts_the_one_before_it_aside(journal: Journal, tmp_path: Path) -> None:
    first = journal.run
    journal.commit([phase("a")])
    journal.close()
    with opened(tmp_path) as other:
        other.begin(DEFINITION, WORKFLOW)
        found = other.read()

    assert found.state.run == other.run != first
    assert found.checkpoints == {}


# -- committing --------------------------------------------------------------------------------------------------


def test_each_phase_is_in_the_audit_log_before_all_are_committed_together(journal: Journal, book: Book) -> None:
    journal.commit([phase("a"), phase("b", fulfilled(), rejected("error", "no"), status="failed")])

    assert book.lines == ["state: a completed", "state: b failed", "commit"]


def test_what_an_operation_tried_is_in_the_audit_log(journal: Journal, book: Book) -> None:
    tried = replace(rejected("denied", "no"), violations=(Violation("read /etc/shadow", "read:/etc/shadow"),))
    journal.commit([phase("a", tried, status="failed")])

    assert "violation: read /etc/shadow" in book.lines
    assert book.data[-1] == {"phase": "a", "operation": "op-1", "allow": "read:/etc/shadow"}


def test_what_went_out_and_what_was_not_let_out_is_in_the_audit_log(journal: Journal, book: Book) -> None:
    contacts = (
        Contact("api.example.org", 443, "allowed", times=2, sent=5, received=7),
        Contact("", 0, "refused", "no request: two Host fields", times=1),
    )
    journal.commit([phase("a", Outcome("fulfilled", contacts=contacts))])

    assert ["outside: api.example.org:443 allowed", "outside: no request: two Host fields"] == [
        line for line in book.lines if line.startswith("outside")
    ]
    assert book.lines.index("commit") > book.lines.index("outside: no request: two Host fields")
    said = next(data for data in book.data if data and data.get("host"))
    assert {"phase": "a", "operation": "op-1", "host": "api.example.org", "sent": 5, "received": 7} == {
        name: said[name] for name in ("phase", "operation", "host", "sent", "received")
    }


def test_a_host_that_is_left_alone_is_in_the_audit_log_as_that(journal: Journal, book: Book) -> None:
    contacts = (Contact("api.example.org", 443, "breaker", "closed to open", times=1),)
    journal.commit([phase("a", Outcome("fulfilled", contacts=contacts))])

    assert "breaker: api.example.org:443: closed to open" in book.lines


def test_what_was_turned_to_is_read_back(journal: Journal, tmp_path: Path) -> None:
    contacts = (Contact("api.example.org", 443, "allowed", times=2, sent=5, received=7),)
    journal.commit([phase("a", Outcome("fulfilled", contacts=contacts))])
    journal.close()

    ((_, outcome),) = again(tmp_path).checkpoints["a"].operations
    assert contacts == outcome.contacts


def test_the_second_net_takes_out_what_the_first_let_through_and_counts_it(journal: Journal, tmp_path: Path) -> None:
    left = Outcome("fulfilled", result=json.dumps({"say": SECRET}).encode(), stdout=f"{SECRET}\n".encode())

    assert journal.commit([phase("a", left), phase("b", fulfilled(), fulfilled())]) == 2
    journal.close()

    ((_, outcome),) = again(tmp_path).checkpoints["a"].operations
    assert (outcome.value(), outcome.stdout) == ({"say": "[secret:known]"}, b"[secret:known]\n")


def test_phases_that_were_cancelled_are_kept_unless_the_user_said_no(journal: Journal, tmp_path: Path) -> None:
    cut = phase("b", fulfilled(), rejected("cancelled", "cancelled"), status="cancelled")
    journal.commit([phase("a")])
    journal.saves = False
    journal.commit([cut])
    journal.commit([cut, phase("c")])
    journal.close()

    assert again(tmp_path).checkpoints.keys() == {"a", "c"}


def test_nothing_to_write_writes_nothing(journal: Journal, book: Book) -> None:
    journal.saves = False

    assert journal.commit([phase("a", status="cancelled")]) == 0
    assert book.lines == []


def test_a_checkpoint_says_when_its_phase_began_and_ended(tmp_path: Path, book: Book) -> None:
    place = project_place(tmp_path)
    store = RunStore.open(tmp_path, place, "f", KEYS)
    journal = Journal(tmp_path, place, store, book, now=lambda: NOW)  # type: ignore[arg-type]
    journal.begin(DEFINITION, WORKFLOW)
    journal.commit([phase("a", duration_s=2.5)])
    held = journal.read().checkpoints["a"]
    journal.close()
    place.folder.close()

    assert (held.started_at, held.completed_at) == ("2030-01-01T00:00:07.500Z", NOW)


def test_a_phase_is_not_committed_while_the_names_of_its_artifacts_are_not_durable(
    journal: Journal, tmp_path: Path
) -> None:
    left = replace(fulfilled(), artifacts=(Artifact("a.txt", 1, "00"),))

    with pytest.raises(StateUnwritable, match="artifacts: no such file"):
        journal.commit([phase("a", left)])
    journal.close()

    assert {} == again(tmp_path).checkpoints


def test_artifacts_that_cannot_be_put_in_place_are_a_state_that_cannot_be_written(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    left = replace(fulfilled(), artifacts=(Artifact("a.txt", 1, "00"),))
    (tmp_path / ".sage" / "artifacts" / "f" / "a").mkdir(parents=True)
    monkeypatch.setattr(artifacts, "publish", full)

    with pytest.raises(StateUnwritable, match="artifacts/f"):
        journal.commit([phase("a", left)])
    journal.close()

    assert again(tmp_path).checkpoints.keys() == {"a"}


# -- ending ------------------------------------------------------------------------------------------------------


def test_the_end_is_written_down_with_its_errors_and_times(journal: Journal, tmp_path: Path, book: Book) -> None:
    journal.commit([phase("a")])
    journal.end(result("failed", RunError("b", "x", "error", f"{SECRET} is wrong{'!' * 2000}")))
    journal.close()
    state = again(tmp_path).state

    assert book.lines[-2:] == ["stop: test failed", "save"]
    assert (state.status, state.phase, state.metrics["totalTime"]) == ("failed", "a", 1500.0)
    (error,) = state.errors
    assert error["message"].startswith("[secret:known] is wrong!")
    assert len(error["message"]) == 1000
    (session,) = state.sessions
    assert (session.status, bool(session.ended_at)) == ("failed", True)


def test_a_cancel_is_called_one(journal: Journal, book: Book) -> None:
    journal.end(result("cancelled"))

    assert book.lines[0] == "cancel: test cancelled"


def test_the_main_file_lists_the_first_errors_only(journal: Journal, tmp_path: Path) -> None:
    journal.end(result("failed", *(RunError("b", f"op-{n}", "error", "no") for n in range(ERRORS_KEPT + 1))))
    journal.close()

    assert [error["operation"] for error in again(tmp_path).state.errors] == [f"op-{n}" for n in range(ERRORS_KEPT)]


def test_a_run_that_broke_off_says_why(journal: Journal, tmp_path: Path, book: Book) -> None:
    journal.fail(SandboxUnavailable("no user namespaces", "", "userns"))
    journal.close()
    state = again(tmp_path).state

    assert "error: no user namespaces" in book.lines
    assert (state.status, state.errors[0]["message"]) == ("failed", "no user namespaces")


def test_where_state_cannot_be_written_nothing_more_is(journal: Journal, tmp_path: Path, book: Book) -> None:
    journal.fail(StateUnwritable("the disk is full"))
    journal.close()

    assert book.lines == ["error: the disk is full"]
    assert again(tmp_path).state.status == "running"


# -- going on ----------------------------------------------------------------------------------------------------


def test_a_resume_says_so_and_goes_on_with_the_same_run(journal: Journal, tmp_path: Path, book: Book) -> None:
    journal.commit([phase("a"), phase("b", fulfilled(), fulfilled())])
    journal.end(result("failed"))
    journal.close()
    book.lines.clear()
    with opened(tmp_path) as other:
        other.go_on(other.read(), WORKFLOW, {"b"})
        other.end(result())
    state = again(tmp_path).state

    assert book.lines[:2] == ["resume: resume test", "adopt"]
    assert (other.run, state.run) == (journal.run, journal.run)
    assert state.checkpoints.keys() == {"a"}
    assert [(session.status, bool(session.ended_at)) for session in state.sessions] == [
        ("failed", True),
        ("completed", True),
    ]
    assert state.metrics["totalTime"] == 3000.0


def test_a_resume_with_another_definition_is_granted_anew_and_goes_by_it(
    journal: Journal, tmp_path: Path, book: Book
) -> None:
    journal.commit([phase("a"), phase("b", fulfilled(), fulfilled())])
    journal.close()
    book.lines.clear()
    changed = flow(single("a"), single("d"))
    with opened(tmp_path) as other:
        other.go_on(other.read(), changed, {"b": "gone"}, replace(DEFINITION, phase_ids=("a", "d"), text="other"))
    found = again(tmp_path)

    assert book.lines[:4] == ["resume: resume test", "grants: 1 granted", "adopt", "define"]
    assert book.lines.count("define") == 1
    assert (found.definition.text, found.definition.number, found.state.phase_ids) == ("other", 2, ("a", "d"))
    assert found.checkpoints.keys() == {"a"}


def test_damage_is_in_the_audit_log(journal: Journal, tmp_path: Path, book: Book) -> None:
    journal.commit([phase("a")])
    journal.close()
    path = tmp_path / ".sage" / "state" / "workflow-f" / "a.1.json"
    path.write_bytes(path.read_bytes()[:-5])
    with opened(tmp_path) as other:
        found = other.read()
        other.go_on(found, WORKFLOW)

    assert "error: damaged: a.1.json" in book.lines


# -- what a resume keeps -----------------------------------------------------------------------------------------


def found(*checkpoints: Checkpoint, damages: tuple[Damage, ...] = ()) -> Found:
    state = State("1" * 32, "f", "test", "failed", 1, IDS, NOW, NOW)
    return Found(state, DEFINITION, {held.phase: held for held in checkpoints}, 1, 1, damages=damages)


def checkpoint(name: str, outcome: Any, *outcomes: Outcome) -> Checkpoint:
    named = tuple((f"op-{n}", one) for n, one in enumerate(outcomes or (fulfilled(),)))
    return Checkpoint(name, 1, 1, outcome, named, NOW, NOW, 2.0)


@pytest.mark.parametrize("outcome", ["completed", "degraded"])
def test_what_is_done_is_kept_whole(outcome: Any) -> None:
    kept = weigh(found(checkpoint("a", outcome, fulfilled(1), rejected("error", "no"))), WORKFLOW)

    assert kept.earlier.phases.keys() == {"a"}
    restored = kept.earlier.phases["a"]
    assert (restored.status, restored.restored, restored.duration_s) == (outcome, True, 2.0)
    assert [operation.outcome.ok for operation in restored.operations] == [True, False]


@pytest.mark.parametrize("outcome", ["failed", "timeout", "cancelled"])
def test_of_what_is_not_done_what_was_fulfilled_is_kept(outcome: Any) -> None:
    outcomes = (fulfilled(1), *(rejected("error", "no") for _ in range(7)))
    kept = weigh(found(checkpoint("b", outcome, *outcomes)), WORKFLOW)

    assert kept.earlier.kept == {"b": {"op-0": fulfilled(1)}}
    assert dict(kept.again)["b"] == f"{outcome}: 7 of 8 again (op-1, op-2, op-3, op-4, op-5 and 2 more)"


def test_nothing_is_kept_of_what_was_set_aside() -> None:
    aside = {"b": "as you asked", "old": "it is not in the template any more"}
    kept = weigh(found(checkpoint("b", "failed"), checkpoint("old", "completed")), WORKFLOW, aside)

    assert (kept.earlier.phases, kept.earlier.kept) == ({}, {})
    assert dict(kept.again)["b"] == "as you asked"
    assert kept.gone == (("old", "it is not in the template any more"),)


def test_what_runs_is_in_the_order_of_the_template_each_with_its_reason() -> None:
    damages = (Damage("b.1.json", "b.1.json is damaged", "b"), Damage("workflow-f.json", "it is damaged"))
    kept = weigh(found(damages=damages), WORKFLOW)

    assert kept.again == (
        ("a", "it did not end before"),
        ("b", "its checkpoint was damaged"),
        ("c", "it did not end before"),
    )


# -- what a definition may hold ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"text": f"token: {SECRET}"},
        {"files": {"helpers.py": f"TOKEN = '{SECRET}'"}},
        {"params": {"deep": [{"token": SECRET}]}},
    ],
)
def test_a_secret_is_not_saved_with_a_definition_and_it_says_so(fields: dict[str, Any]) -> None:
    clean = without_secrets(replace(DEFINITION, **fields), [SECRET])

    assert clean.lacks_secrets
    assert SECRET not in repr(clean)
    assert "[secret:known]" in repr(clean)


def test_a_definition_without_a_secret_stays_as_it_is() -> None:
    assert without_secrets(DEFINITION, [SECRET]) is DEFINITION


def test_times_are_utc_with_milliseconds() -> None:
    assert len(utc_now()) == len(NOW)
    assert utc_now().endswith("Z")
