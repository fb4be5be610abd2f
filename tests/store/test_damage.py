"""What is found on disk instead of what was written: refused by name, or repaired and said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from sage_sandbox.disk.places import ProjectPlace, project_place
from sage_sandbox.document import outcome_document
from sage_sandbox.errors import Locked, NoSuchRun, StateCorrupted, StateUnwritable, WrongKey
from sage_sandbox.outcome import Artifact, Outcome
from sage_sandbox.store import artifacts, upkeep
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import state_folder
from sage_sandbox.store.opening import open_keys
from sage_sandbox.store.reading import Found, RolledBack, read_state
from sage_sandbox.store.records import Checkpoint, Definition, State
from sage_sandbox.store.runs import RunStore

RUN = "0" * 31 + "1"
IDS = ("a", "b", "c")
NOW = "2026-01-31T10:00:00.000Z"
DEFINITION = Definition(1, "flow", "yaml", "/t.yaml", "digest", "text", IDS, NOW, grants=("read:/src",))
STATE = State(RUN, "f", "flow", "running", 1, IDS, NOW, NOW)


def checkpoint(phase: str, result: bytes = b"1") -> Checkpoint:
    outcome = Outcome("fulfilled", result=result, stdout=b"\xff", level="full")
    return Checkpoint(phase, 0, 0, "completed", (("op-1", outcome), ("op-2", outcome)), NOW, NOW, 0.5)


class Saved(NamedTuple):
    project: Path
    place: ProjectPlace
    keys: Keys

    @property
    def state(self) -> Path:
        return self.project / ".sage" / "state"

    def open(self, wait_s: float = 0.0) -> RunStore:
        return RunStore.open(self.project, self.place, "f", self.keys, wait_s=wait_s)

    def read(self) -> Found:
        store = self.open()
        try:
            return store.read()
        finally:
            store.close()

    def file(self, name: str) -> Path:
        names = {"main": "workflow-f.json", "backup": "workflow-f.json.bak"}
        return self.state / names.get(name, f"workflow-f/{name}.json")


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Two phases committed, the third not; the main file written twice."""
    project = tmp_path / "project"
    project.mkdir()
    place = project_place(project)
    saved = Saved(project, place, open_keys(os.environ, place))
    store = saved.open()
    store.create(STATE, DEFINITION)
    store.commit([checkpoint("a"), checkpoint("b", b'{"x": [1.50]}')])
    store.save(replace(STATE, status="paused"))
    store.close()
    return saved


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_phase_reads_back_byte_for_byte(saved: Saved) -> None:
    found = saved.read()

    assert {"a", "b"} == set(found.checkpoints)
    assert b'{"x": [1.50]}' == found.checkpoints["b"].operations[1][1].result
    assert b"\xff" == found.checkpoints["b"].operations[0][1].stdout
    assert ("paused", 2, 2) == (found.state.status, found.generation, found.sequence)
    assert DEFINITION == found.definition


def test_a_second_process_is_refused_and_told_who_holds_the_lock(saved: Saved) -> None:
    store = saved.open()
    with pytest.raises(Locked, match=f"f is being run already: .*pid {os.getpid()}"):
        saved.open()
    store.close()
    store.close()

    assert saved.read()  # type: ignore[truthy-bool]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def to_hard_link(path: Path) -> None:
    os.link(path, path.with_name("other"))


def to_sparse(path: Path) -> None:
    os.truncate(path, 3 << 30)


def to_nothing(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [flip, truncate, to_fifo, to_link, to_hard_link, to_sparse, to_nothing]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_main_file_is_restored_from_its_backup(saved: Saved, damage: Callable[[Path], None]) -> None:
    damage(saved.file("main"))
    store = saved.open()
    found = store.read()
    store.adopt(found)
    store.save(found.state)
    store.close()

    assert ("backup", ["workflow-f.json"]) == (found.source, [item.name for item in found.damages])
    assert {"a", "b"} == set(found.checkpoints)
    assert os.path.lexists(saved.state / "aside" / "f.1" / "workflow-f.json")
    assert ("state", ()) == (saved.read().source, saved.read().damages)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_without_main_file_and_backup_the_checkpoints_say_how_far_it_came(
    saved: Saved, damage: Callable[[Path], None]
) -> None:
    damage(saved.file("main"))
    saved.file("backup").unlink()
    found = saved.read()

    assert ("checkpoints", {"a", "b"}, "running") == (found.source, set(found.checkpoints), found.state.status)
    assert DEFINITION == found.definition


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_put_aside_and_its_phase_runs_again(
    saved: Saved, damage: Callable[[Path], None]
) -> None:
    damage(saved.file("b.1"))
    store = saved.open()
    found = store.read()
    store.adopt(found)
    store.save(found.state)
    store.commit([checkpoint("b", b"2")])
    store.close()
    again = saved.read()

    assert ({"a"}, ["b"]) == (set(found.checkpoints), [item.phase for item in found.damages])
    assert (1, b"2", ()) == (
        again.checkpoints["b"].attempt,
        again.checkpoints["b"].operations[0][1].result,
        again.damages,
    )


def test_a_main_file_that_was_put_back_is_a_rollback(saved: Saved) -> None:
    old = saved.file("backup").read_bytes()
    saved.file("main").write_bytes(old)
    saved.file("backup").write_bytes(old)

    with pytest.raises(RolledBack, match="is older than what was written last"):
        saved.read()


def test_a_checkpoint_that_was_taken_away_is_a_rollback(saved: Saved) -> None:
    saved.file("b.1").unlink()

    with pytest.raises(RolledBack, match="lacks 1 of the checkpoints"):
        saved.read()


def test_a_folder_that_was_taken_away_is_a_rollback(saved: Saved) -> None:
    shutil.rmtree(saved.state / "workflow-f")

    with pytest.raises(RolledBack, match="workflow-f is gone"):
        saved.read()


def test_state_that_is_gone_altogether_is_no_run(saved: Saved) -> None:
    shutil.rmtree(saved.state)

    with pytest.raises(NoSuchRun, match="the state of f is gone"):
        saved.read()


def test_a_name_that_was_not_synced_before_the_power_went_is_no_rollback(saved: Saved) -> None:
    store = saved.open()
    found = store.read()
    store.adopt(found)
    anchors = Path(saved.place.folder.path) / "anchors" / "f"
    before = anchors.read_bytes()
    store.commit([checkpoint("c")])
    store.close()
    anchors.write_bytes(before)
    saved.file("c.1").unlink()
    found = saved.read()

    assert {"a", "b"} == set(found.checkpoints)


def test_checkpoints_that_changed_places_are_refused(saved: Saved) -> None:
    one, other = saved.file("a.1").read_bytes(), saved.file("b.1").read_bytes()
    saved.file("a.1").write_bytes(other)
    saved.file("b.1").write_bytes(one)
    found = saved.read()

    assert ({}, {"a", "b"}) == (dict(found.checkpoints), {item.phase for item in found.damages})


def test_a_checkpoint_of_an_earlier_run_of_the_feature_is_refused(saved: Saved) -> None:
    old = saved.file("a.1").read_bytes()
    store = saved.open()
    store.set_aside()
    store.create(replace(STATE, run="0" * 31 + "2"), DEFINITION)
    store.close()
    saved.file("a.1").write_bytes(old)
    found = saved.read()

    assert ({}, ["a"]) == (dict(found.checkpoints), [item.phase for item in found.damages])
    assert {"workflow-f", "workflow-f.json", "workflow-f.json.bak"} == names_in(saved.state / "aside" / "f.1")


def test_another_projects_state_is_refused(saved: Saved, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(saved.project, other)
    place = project_place(other)
    store = RunStore.open(other, place, "f", saved.keys)
    with pytest.raises(StateCorrupted, match="project"):
        store.read()
    store.close()


def test_state_sealed_with_another_key_is_left_as_it_is(saved: Saved) -> None:
    before = bytes_of(saved.project)
    other = saved._replace(keys=Keys([b"k" * 32]))
    with pytest.raises(WrongKey):
        other.read()

    assert before == bytes_of(saved.project)


def test_readable_state_is_refused_where_encryption_is_on(saved: Saved) -> None:
    plain = saved._replace(keys=saved.keys.encrypting(False))
    store = plain.open()
    store.set_aside()
    store.create(STATE, DEFINITION)
    store.commit([checkpoint("a", b'"in the clear"')])
    store.close()

    assert b"in the clear" in saved.file("a.1").read_bytes()
    assert {"a"} == set(plain.read().checkpoints)
    with pytest.raises(StateCorrupted, match="not encrypted"):
        saved.read()


def test_rekeying_takes_over_what_was_moved_and_seals_it_anew(saved: Saved, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    saved.project.rename(moved)
    place = project_place(moved)
    keys = Keys([b"n" * 32]).also(saved.keys)
    with state_folder(moved) as folder:
        features = upkeep.rekey(folder, place, keys)
        only_new = Keys([b"n" * 32])
        verified = {name: problems for name, problems, *_ in upkeep.verify(folder, place, only_new, ["f"])}
        found = RunStore.open(moved, place, "f", only_new)
    checkpoints = found.read().checkpoints
    found.close()

    assert (("f",), {"f": ()}, {"a", "b"}) == (features, verified, set(checkpoints))


def test_an_export_holds_every_result(saved: Saved) -> None:
    exported = upkeep.export(saved.read(), outcome_document)

    assert {"op-1": {"x": [1.5]}, "op-2": {"x": [1.5]}} == exported["checkpoints"]["b"]["results"]
    assert ("1.0", "paused", "flow") == (exported["version"], exported["status"], exported["template"])


def test_old_ended_runs_are_thrown_away_and_paused_ones_stay(saved: Saved) -> None:
    def collect(older_than_s: float) -> tuple[str, ...]:
        with state_folder(saved.project) as folder:
            return upkeep.collect_garbage(
                folder, saved.place, saved.keys, older_than_s, age_s=lambda _: 100.0, now=lambda: 1e12
            )

    assert () == collect(50)
    store = saved.open()
    found = store.read()
    store.adopt(found)
    store.save(replace(found.state, status="completed"))
    store.close()

    assert () == collect(200)
    assert ("f",) == collect(50)
    with pytest.raises(NoSuchRun):
        saved.read()
    store = saved.open()
    store.set_aside()
    store.create(STATE, DEFINITION)
    store.set_aside()
    store.close()
    assert ("aside/f.1",) == collect(50)


def test_the_main_file_alone_says_how_a_run_stands(saved: Saved) -> None:
    with state_folder(saved.project) as folder:
        state = read_state(folder, saved.place, "f", saved.keys)
        flip(saved.file("main"))
        restored = read_state(folder, saved.place, "f", saved.keys)

    assert ("paused", "running") == (state.status, restored.status)
    assert {"a", "b"} == set(restored.checkpoints)


def test_artifacts_come_into_place_with_their_checkpoint_or_not_at_all(tmp_path: Path) -> None:
    import hashlib

    digest = hashlib.sha256(b"hi").hexdigest()
    outcome = Outcome("fulfilled", artifacts=(Artifact("deep/f", 2, digest),))
    phase = tmp_path / ".sage" / "artifacts" / "f" / "p"
    for name in ("kept.tmp", "undone.tmp", "changed.tmp", "kept"):
        (phase / name / "deep").mkdir(parents=True)
        (phase / name / "deep" / "f").write_bytes(b"hi" if name == "kept.tmp" else b"ho")
    artifacts.settle(tmp_path, "f", {"p": [("kept", outcome), ("changed", outcome)]})

    assert {"kept"} == names_in(phase)
    assert b"hi" == (phase / "kept" / "deep" / "f").read_bytes()
    artifacts.settle(tmp_path, "other", {})
    artifacts.publish(tmp_path, "f", "p", [("kept", outcome)])
    assert b"hi" == (phase / "kept" / "deep" / "f").read_bytes()


class Crash(BaseException):
    """The process ends here."""


CALLS = ("write", "fsync", "rename", "mkdir", "unlink", "pwrite", "open")


def steps(saved: Saved, log: list[str]) -> None:
    """A resume, a commit, an end, a restart; ``log`` says what was reached."""
    store = saved.open(wait_s=0)
    try:
        found = store.read()
        store.adopt(found)
        store.save(replace(found.state, status="running"))
        store.commit([checkpoint("c")])
        log.append("committed")
        store.save(replace(found.state, status="completed"))
        log.append("ended")
    finally:
        store.close()
    store = saved.open()
    try:
        store.set_aside()
        store.create(replace(STATE, run="0" * 31 + "2"), DEFINITION)
        log.append("restarted")
    finally:
        store.close()


def counted(monkeypatch: pytest.MonkeyPatch, at: int, trouble: BaseException) -> list[int]:
    """Count what changes files (opens only where they make one); raise at number ``at``."""
    count = [0]

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*args, **kwargs):
            if name != "open" or (len(args) > 1 and args[1] & os.O_CREAT):
                count[0] += 1
                if count[0] == at:
                    raise trouble
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in CALLS:
        wrap(name)
    return count


def number_of_calls(saved: Saved) -> int:
    with pytest.MonkeyPatch.context() as monkeypatch:
        count = counted(monkeypatch, -1, Crash())
        steps(saved, [])
        return count[0]


@pytest.mark.parametrize("trouble", [Crash(), OSError(28, "No space left on device"), OSError(5, "Input/output error")])
def test_after_a_fault_at_any_call_what_was_committed_is_there_and_it_goes_on(
    saved: Saved, trouble: BaseException, tmp_path: Path
) -> None:
    home = Path(os.environ["HOME"])
    for at in range(1, number_of_calls(fresh(saved, tmp_path / "count", home)) + 1):
        here = fresh(saved, tmp_path / f"at-{at}", home)
        log: list[str] = []
        with pytest.MonkeyPatch.context() as monkeypatch:
            counted(monkeypatch, at, trouble)
            with suppress(Crash, StateUnwritable):
                steps(here, log)
        try:
            check(here, log, at)
        except BaseException as error:
            raise AssertionError(f"at call {at}, after {log}") from error


def fresh(saved: Saved, project: Path, home: Path) -> Saved:
    """The same state at the same place, as if nothing had happened."""
    original = project.parent / "original-home"
    if not original.exists():
        shutil.copytree(home, original)
        shutil.copytree(saved.project, project.parent / "original-project")
    shutil.rmtree(saved.project)
    shutil.copytree(project.parent / "original-project", saved.project)
    anchors = Path(saved.place.folder.path) / "anchors"
    shutil.rmtree(anchors)
    shutil.copytree(original / anchors.relative_to(home), anchors)
    return saved


def check(here: Saved, log: list[str], at: int) -> None:
    try:
        found = here.read()
    except NoSuchRun:
        assert "ended" in log, at  # between the old run and the new one
    else:
        if found.state.run == RUN:
            assert {"a", "b"} <= set(found.checkpoints), at
            assert "c" in found.checkpoints or "committed" not in log, at
            assert () == found.damages, at
        else:
            assert "ended" in log, at
    log.clear()
    store = here.open()
    try:
        store.set_aside()
        store.create(replace(STATE, run="0" * 31 + "3"), DEFINITION)
        store.commit([checkpoint("a")])
    finally:
        store.close()
    assert {"a"} == set(here.read().checkpoints), at
    left = [path for path in here.project.rglob("*.tmp") if "aside" not in path.parts]
    assert [] == left, at
