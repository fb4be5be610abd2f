"""What is known of a project's runs without a lock: of those that go on, that ended, and that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sage_sandbox import history
from sage_sandbox.control.asking import NotAnswering
from sage_sandbox.disk.locking import Lock, acquire
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import NoSuchRun, StateCorrupted, WrongKey
from sage_sandbox.history import History, Standing, standing_document, wait_for
from sage_sandbox.outcome import Outcome
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import lock_name, state_folder
from sage_sandbox.store.reading import read_run, read_state
from sage_sandbox.store.records import Checkpoint, Definition, RunStatus, State
from sage_sandbox.store.runs import RunStore

KEY = b"k" * 32
RUN = "1" * 32
NOW = "2030-01-01T00:00:00.000Z"
IDS = ("a", "b", "c", "d")


@dataclass
class Stored:
    """One feature of a project."""

    project: Path
    feature: str = "f"

    @contextmanager
    def opened(self) -> Iterator[RunStore]:
        place = project_place(self.project)
        with place.folder, closing(RunStore.open(self.project, place, self.feature, Keys([KEY]), wait_s=0)) as store:
            yield store

    def begin(self) -> None:
        """A run that has just begun."""
        definition = Definition(1, "flow", "yaml", "/t.yaml", "digest", "text", IDS, NOW)
        with self.opened() as store:
            store.create(State(RUN, self.feature, "flow", "running", 1, IDS, NOW, NOW), definition)

    def commit(self, phase: str) -> None:
        """A phase that is done."""
        with self.opened() as store:
            store.adopt(store.read())
            store.commit([Checkpoint(phase, 0, 0, "completed", (("op-1", Outcome("fulfilled")),), NOW, NOW)])

    def save(self, status: RunStatus) -> None:
        """How the run ended."""
        with self.opened() as store:
            found = store.read()
            store.adopt(found)
            store.save(replace(found.state, status=status))

    @property
    def main(self) -> Path:
        return self.project / ".sage" / "state" / f"workflow-{self.feature}.json"


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """A run of four phases, one of which is done, whose process was killed."""
    monkeypatch.setenv("SAGE_STATE_KEY", KEY.hex())
    made = Stored(tmp_path / "project")
    made.project.mkdir()
    made.begin()
    made.commit("a")
    return made


@contextmanager
def held(stored: Stored) -> Iterator[Lock]:
    """As if a process ran it, whether it listens or not."""
    with state_folder(stored.project) as folder, acquire(folder, lock_name("f"), wait_s=0) as lock:
        yield lock


def saying(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[Any]:
    """Have the process of a run answer so, one after the other; what it was asked."""
    asked: list[Any] = []
    left = list(answers)

    def answer(_project: str, _feature: str, request: Any, **_: Any) -> Any:
        asked.append(request)
        said = left.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(history, "ask", answer)
    return asked


def of(stored: Stored, **options: Any) -> Standing:
    with History(stored.project) as found:
        return found.of("f", **options)


# -- one run -----------------------------------------------------------------------------------------------------


def test_a_run_that_nobody_runs_was_interrupted_and_its_checkpoints_count(stored: Stored) -> None:
    standing = of(stored)

    assert (standing.status, standing.interrupted, standing.progress["completed"]) == ("paused", True, 1)


def test_a_run_whose_lock_is_held_is_running_and_says_where_it_is(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = saying(monkeypatch, {"workflowId": RUN, "phase": "c", "progress": {"completed": 3}})
    with held(stored):
        standing = of(stored)

    assert (standing.status, standing.interrupted, standing.phase) == ("running", False, "c")
    assert standing.progress == {"completed": 3, "total": 4, "percentage": 75}
    assert asked == [{"do": "status"}]


@pytest.mark.parametrize(
    "answer", [None, {}, {"workflowId": "another"}, {"workflowId": RUN, "progress": "odd", "phase": None}]
)
def test_one_that_says_nothing_of_use_is_shown_as_it_is_saved(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    saying(monkeypatch, answer)
    with held(stored):
        standing = of(stored)

    assert (standing.status, standing.phase, standing.trouble) == ("running", "", "")


@pytest.mark.parametrize("answer", [None, {"workflowId": "another"}, NotAnswering("no")])
def test_the_checkpoints_count_of_one_that_does_not_say_how_far_it_is(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    saying(monkeypatch, answer)
    with held(stored):
        standing = of(stored)

    assert (standing.status, standing.progress["completed"]) == ("running", 1)


def test_one_that_ends_while_it_is_asked_is_shown_as_it_ended(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(stored) as lock:

        def end(*_: Any, **__: Any) -> None:
            lock.release()
            stored.save("completed")

        monkeypatch.setattr(history, "ask", end)
        standing = of(stored)

    assert (standing.status, standing.progress["completed"]) == ("completed", 1)


@pytest.mark.parametrize("options", [{}, {"full": True}])
def test_one_that_ends_while_its_checkpoints_are_read_is_shown_as_it_ended(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, options: Any
) -> None:
    saying(monkeypatch, None)
    with held(stored) as lock:

        def then_it_ends(*args: Any) -> Any:
            found = read_run(*args)
            if found.state.status == "running":
                lock.release()
                stored.save("completed")
            return found

        monkeypatch.setattr(history, "read_run", then_it_ends)
        standing = of(stored, **options)

    assert (standing.status, standing.interrupted) == ("completed", False)


def test_damage_is_shown_while_it_runs(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored.main.with_suffix("") / "a.1.json"
    path.write_bytes(path.read_bytes()[:-9])
    saying(monkeypatch, {"workflowId": RUN, "phase": "a", "progress": {"completed": 1}})
    with held(stored):
        standing = of(stored, full=True)

    assert standing.status == "running"
    assert str(path) in standing.trouble


def test_one_that_does_not_answer_may_be_stopped(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, NotAnswering("no"))
    with held(stored):
        standing = of(stored)

    assert (standing.status, standing.trouble) == ("running", "the process does not answer: it may be stopped")


def test_one_that_ends_while_it_is_looked_at_is_not_called_interrupted(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_state

    def then_it_ends(*args: Any) -> Any:
        state = read(*args)
        stored.save("completed")
        return state

    monkeypatch.setattr(history, "read_state", then_it_ends)

    assert of(stored).status == "completed"


def test_one_that_begins_while_it_is_looked_at_is_not_called_interrupted(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, locks = read_run, []

    def it_begins(*args: Any) -> Any:
        with state_folder(stored.project) as folder:
            locks.append(acquire(folder, lock_name("f"), wait_s=0))
        return read(*args)

    monkeypatch.setattr(history, "read_run", it_begins)
    saying(monkeypatch, None)
    standing = of(stored)
    locks[0].release()

    assert (standing.status, standing.interrupted) == ("running", False)


def test_full_looks_at_every_checkpoint_also_while_it_runs(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, None)
    with held(stored):
        standing = of(stored, full=True)

    assert standing.phases == (("a", "completed"), ("b", "pending"), ("c", "pending"), ("d", "pending"))


def test_what_was_restored_says_so(stored: Stored) -> None:
    stored.save("failed")
    path = stored.main
    path.write_bytes(path.read_bytes()[:-9])

    standing = of(stored)

    assert standing.progress["completed"] == 1
    assert str(path) in standing.trouble


def test_the_key_is_looked_for_and_never_made(stored: Stored, monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    monkeypatch.delenv("SAGE_STATE_KEY")
    with pytest.raises(WrongKey):
        of(stored)

    assert not (own_home / ".config").exists()


def test_a_passphrase_is_asked_for_once(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGE_STATE_KEY")
    asked: list[str] = []

    def ask() -> str:
        asked.append("")
        return ""

    with History(stored.project, ask_passphrase=ask) as found:
        assert [standing.status for standing in found.all()] == ["unreadable"]
        assert [standing.status for standing in found.all()] == ["unreadable"]

    assert asked == [""]


def test_there_is_no_run_where_nothing_was_saved(tmp_path: Path) -> None:
    with History(tmp_path) as found, pytest.raises(NoSuchRun, match="there is no run of f"):
        found.of("f")

    assert list(tmp_path.iterdir()) == []


def test_what_was_saved_elsewhere_is_told_from_what_is_not_there(stored: Stored, tmp_path: Path) -> None:
    stored.project.rename(tmp_path / "moved")
    with History(tmp_path / "moved") as found:
        with pytest.raises(StateCorrupted, match="was not made here"):
            found.of("f")
        with pytest.raises(NoSuchRun):
            found.of("g")


# -- all of them -------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_listed_with_the_reason_and_hides_nothing(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(stored, feature="g")
    other.begin()
    look = History.of

    def one_is_denied(self: History, feature: str, **options: Any) -> Standing:
        if feature == "g":
            raise PermissionError(13, "denied")
        return look(self, feature, **options)

    monkeypatch.setattr(History, "of", one_is_denied)
    with History(stored.project) as found:
        listed = {standing.feature: (standing.status, standing.trouble) for standing in found.all()}

    assert listed == {"f": ("paused", ""), "g": ("unreadable", "[Errno 13] denied")}


def test_what_is_put_aside_meanwhile_is_passed_over(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    with History(stored.project) as found:
        monkeypatch.setattr(found, "features", lambda: ["f", "gone"])

        assert [standing.feature for standing in found.all()] == ["f"]
        assert list(found.all("completed")) == []


# -- as a document -----------------------------------------------------------------------------------------------


def test_the_document_has_the_names_of_the_specification() -> None:
    standing = Standing("f", "failed", "T", RUN, "a", "then", "now", phases=(("a", "failed"),), trouble="odd")

    assert standing_document(standing, full=True) == {
        "feature": "f",
        "template": "T",
        "workflowId": RUN,
        "phase": "a",
        "status": "failed",
        "startedAt": "then",
        "lastUpdatedAt": "now",
        "progress": {},
        "metrics": {},
        "errors": [],
        "interrupted": False,
        "trouble": "odd",
        "phases": [{"id": "a", "status": "failed"}],
    }
    assert not {"trouble", "phases"} & standing_document(replace(standing, trouble="")).keys()


# -- waiting -----------------------------------------------------------------------------------------------------


def never(_seconds: float) -> None:
    raise AssertionError("it waits")


def test_what_nobody_runs_is_not_waited_for(stored: Stored, tmp_path: Path) -> None:
    wait_for(stored.project, "f", pause=never)
    wait_for(stored.project, "g", pause=never)
    (tmp_path / "empty").mkdir()
    wait_for(tmp_path / "empty", "f", pause=never)


def test_the_process_is_asked_to_say_when_it_has_ended(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = saying(monkeypatch, {"status": "completed"})
    with held(stored) as lock:
        wait_for(stored.project, "f", pause=lambda _: lock.release())

    assert asked == [{"do": "wait"}]


def test_one_that_does_not_listen_yet_is_waited_for_all_the_same(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = saying(monkeypatch, None, NotAnswering("no"), {"error": "128 processes are waiting already"}, None)
    pauses: list[float] = []
    with held(stored) as lock:

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 4:
                lock.release()

        wait_for(stored.project, "f", pause=pause)

    assert len(asked) == len(pauses) == 4
