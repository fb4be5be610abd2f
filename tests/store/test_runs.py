"""What is written in which order, and what is left of it after a fault, a kill or a power cut at any call."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from store.stored import DEFINITION, RUN, Calls, Crash, Snapshot, Stored, changed, done, ended, state_of

from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import Locked, NoSuchRun, SageError, StateCorrupted, StateUnwritable
from sage_sandbox.store import runs as runs_module
from sage_sandbox.store.layout import NO_RUN, Anchor, read_anchor, state_folder
from sage_sandbox.store.reading import read_state
from sage_sandbox.store.runs import RunStore

NEXT = "2" * 32


def anchor_of(stored):
    return read_anchor(stored.place, stored.feature)


# -- what is written -----------------------------------------------------------------------------------------------


def test_what_was_committed_and_saved_reads_back(stored):
    found = stored.read()

    assert ("paused", RUN, "state", ()) == (found.state.status, found.state.run, found.source, found.damages)
    assert [("a", 1), ("b", 2), ("c", 3)] == sorted((name, one.generation) for name, one in found.checkpoints.items())
    assert b'{"x": [1.50]}' == found.checkpoints["b"].operations[0][1].result
    assert (3, 3, {"a": 1, "b": 1, "c": 1}) == (found.generation, found.sequence, found.attempts)
    assert DEFINITION == found.definition
    assert not found.repaired


def test_files_and_folders_are_the_users_alone(stored):
    modes = {path: path.stat().st_mode & 0o777 for path in stored.state.rglob("*") if path.parent.name != "aside"}

    assert {0o700 if path.is_dir() else 0o600 for path in modes} == set(modes.values())
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items())


def test_backup_is_the_main_file_before(stored):
    before = stored.path("main").read_bytes()
    stored.save(status="running")

    assert before == stored.path("backup").read_bytes()


def test_anchor_says_how_far_the_state_came(stored):
    assert Anchor(RUN, 3, 3, 1) == anchor_of(stored)


def test_attempts_of_a_phase_count_on(stored):
    with stored.resumed() as store:
        assert (2, 1) == (store.next_attempt("c"), store.next_attempt("d"))

        written = store.commit([ended("c"), ended("d")])

        assert [("c", 2, 4), ("d", 1, 5)] == [(one.phase, one.attempt, one.generation) for one in written]
        assert 3 == store.next_attempt("c")
    assert {"a", "b", "c", "d"} == done(stored.read())
    assert stored.path("c.1").exists()


def test_nothing_to_commit_writes_nothing(stored):
    before = stored.files()
    with stored.resumed() as store:
        assert () == store.commit([])
    assert before == stored.files()


def test_what_counts_no_more_is_in_the_definition_too(stored):
    stored.drop("b")
    found = stored.read()

    assert ({"a"}, (("b", 1, 2),), 2) == (done(found), found.state.dropped, found.definition.number)
    assert found.state.dropped == found.definition.dropped
    assert {"b": 1} == {phase: found.attempts[phase] for phase in "b"}
    assert Anchor(RUN, 4, 3, 2) == anchor_of(stored)


def test_definition_gets_the_next_number_whatever_it_says(stored):
    stored.drop("b")
    with stored.resumed() as store:
        store.define(replace(DEFINITION, name="new", number=2))
        store.save(store.read().state)
    found = stored.read()

    # The third is the new one; what was dropped before stays so, which takes a fourth.
    assert ("new", 4, (("b", 1, 2),)) == (found.definition.name, found.definition.number, found.definition.dropped)
    assert 4 == found.state.definition


def test_restart_keeps_the_old_run_aside_and_counts_its_generations_on(stored):
    old = stored.path("main").read_bytes()
    stored.begin(NEXT)
    found = stored.read()

    assert (NEXT, 4, {}) == (found.state.run, found.generation, found.checkpoints)
    assert ["workflow-f", "workflow-f.json", "workflow-f.json.bak"] == sorted(stored.aside)
    assert old == stored.aside["workflow-f.json"].read_bytes()


def test_store_that_was_read_from_can_begin_anew(stored):
    with stored.resumed() as store:
        assert "f.1" == store.set_aside()
        store.create(state_of(NEXT), DEFINITION)
        assert (1, 1) == (store.next_attempt("a"), store.commit([ended("a")])[0].generation)
    found = stored.read()

    assert (NEXT, {"a"}) == (found.state.run, done(found))


def test_what_was_set_aside_is_no_run_any_more(stored):
    with stored.opened() as store:
        store.set_aside()
        with pytest.raises(NoSuchRun, match="there is no run of f"):
            store.read()
        assert "" == store.set_aside()
    assert Anchor(NO_RUN, 3, 0, 0) == anchor_of(stored)


def test_nothing_is_set_aside_where_nothing_was(empty):
    with empty.opened() as store:
        assert "" == store.set_aside()
    assert anchor_of(empty) is None
    assert not (empty.state / "aside").exists()


def test_every_restart_has_a_folder_of_its_own(stored):
    for number in range(2, 5):
        stored.begin(f"{number}" * 32)

    assert ["f.1", "f.2", "f.3"] == sorted(path.name for path in stored.state.glob("aside/*"))


@pytest.mark.parametrize("act", ["commit", "save", "create"])
def test_what_could_not_be_read_again_is_not_written(stored, monkeypatch, act):
    most = {"commit": "CHECKPOINT_MAX", "save": "MAIN_MAX", "create": "DEFINITION_MAX"}[act]
    monkeypatch.setattr(runs_module, most, 100)
    with stored.resumed() as store:
        state = store.read().state
        if act == "create":
            store.set_aside()
        before = stored.files()
        with pytest.raises(StateUnwritable, match=r"are too large to be kept \(0 MiB\)"):
            {
                "commit": lambda: store.commit([ended("d")]),
                "save": lambda: store.save(state),
                "create": lambda: store.create(state_of(NEXT), DEFINITION),
            }[act]()
        after = {path: data for path, data in stored.files().items() if not path.endswith("workflow-f")}

        assert after == {path: data for path, data in before.items() if not path.endswith("workflow-f")}
        monkeypatch.undo()
        if act == "commit":
            store.commit([ended("d")])


# -- the lock ------------------------------------------------------------------------------------------------------


def test_second_process_is_refused_and_told_who_holds_the_lock(stored):
    held = f"f is being run already: .*pid {os.getpid()}"
    with stored.opened(), pytest.raises(Locked, match=held) as refused, stored.opened():
        pass
    assert "sage-sandbox status f" in refused.value.hint
    assert refused.value.owner.startswith("f, pid")
    with stored.opened():
        pass


def test_other_features_are_independent(stored):
    other = Stored(stored.project, "g")
    with stored.opened():
        other.begin(NEXT)
        other.commit(ended("a"))
    assert {"a"} == done(other.read())
    assert {"a", "b"} == done(stored.read())


def test_closing_twice_is_closing_once(stored):
    with stored.opened() as store:
        store.close()
        reused = os.dup(0)
    os.close(reused)


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    place = project_place(tmp_path)
    with pytest.raises(StateUnwritable, match=r"state cannot be written: .*file/.sage/state: not a directory"):
        RunStore.open(tmp_path / "file", place, "f", Stored(tmp_path / "project").keys)


def test_what_a_killed_process_left_half_written_is_swept(stored):
    left = [
        stored.path("main").with_name("workflow-f.json.0123abcd.tmp"),
        stored.path("backup").with_name("workflow-f.json.bak.0123abcd.tmp"),
        stored.path("d.1").with_name("d.1.json.0123abcd.tmp"),
        stored.anchors / "f.0123abcd.tmp",
    ]
    others = [stored.state / "workflow-g.json.0123abcd.tmp", stored.anchors / "g.0123abcd.tmp"]
    for path in (*left, *others):
        path.touch()
    with stored.opened():
        pass

    assert others == stored.temporary()


def test_folder_of_a_feature_that_is_no_folder_hinders_no_restart(stored):
    folder = stored.path("a.1").parent
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")
    with pytest.raises(StateCorrupted, match="is a symbolic link"):
        stored.read()
    stored.begin(NEXT)

    assert NEXT == stored.read().state.run
    assert stored.aside["workflow-f"].is_symlink()


def test_lock_is_let_go_where_sweeping_is_interrupted(stored, monkeypatch):
    monkeypatch.setattr(RunStore, "_sweep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), stored.opened():
        pass
    monkeypatch.undo()
    with stored.opened():
        pass


def test_first_state_of_a_run_is_anchored_for_good(stored):
    calls = Calls()
    with calls.happening():
        stored.begin(NEXT)

    assert [] == calls.volatile
    assert Anchor(NEXT, 4, 0, 1) == anchor_of(stored)


@pytest.mark.parametrize("act", ["drop", "define"])
def test_new_definition_is_anchored_for_good(stored, act):
    """With an older anchor, what was dropped would count again where the main file is lost."""
    calls = Calls()
    with calls.happening():
        if act == "drop":
            stored.drop("b")
        else:
            with stored.resumed() as store:
                store.define(replace(DEFINITION, name="new"))
                store.save(store.read().state)

    assert [] == calls.volatile
    assert Anchor(RUN, 4, 3, 2) == anchor_of(stored)


def killed(stored, how, name, act):
    """Calls in which a process is killed before or after the last call of that name, which `act` of a store makes."""
    before, counted = Snapshot(stored.roots), Calls()
    with counted.happening(), stored.opened() as store:
        act(store)
    before.restore()
    stored.find_place()
    calls = Calls(max(at for at, call in enumerate(counted.names, 1) if call == name), how)
    with calls.happening(), suppress(Crash), stored.opened() as store:
        act(store)
    calls.at, calls.dead = 0, False
    return calls


def lose_all_but_the_anchor(calls):
    kept = ("/anchors/", "/aside/")
    needs = [{need for need in step.needs if not any(part in f"{need}/" for part in kept)} for step in calls.volatile]
    calls.lose({number for number, left in enumerate(needs) if left})


def test_checkpoint_that_a_killed_process_left_is_durable_before_it_counts(in_memory):
    def commit_one(store):
        store.adopt(store.read())
        store.commit([ended("d")])

    calls = killed(in_memory, "before", "fsync", commit_one)
    with calls.happening():
        in_memory.save(status="running")
    lose_all_but_the_anchor(calls)

    assert {"a", "b", "d"} == done(in_memory.read())


def test_run_that_a_killed_process_moved_aside_is_durably_gone_before_the_anchor_says_so(in_memory):
    calls = killed(in_memory, "after", "rename", lambda store: store.set_aside())
    with calls.happening(), in_memory.opened() as store:
        store.set_aside()
    lose_all_but_the_anchor(calls)

    with pytest.raises(NoSuchRun):
        in_memory.read()


@pytest.mark.parametrize("trouble", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_nothing_is_written_after_a_write_that_did_not_come_to_its_end(stored, monkeypatch, trouble):
    """A folder's fsync that failed may have dropped names that the next one would report as durable."""

    def fail(fd):
        raise trouble

    with stored.resumed() as store:
        state = store.read().state
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises((StateUnwritable, KeyboardInterrupt)):
            store.commit([ended("d")])
        monkeypatch.undo()
        before = stored.files()
        reason = "input/output error" if isinstance(trouble, OSError) else "an earlier write did not come to its end"
        for act in (lambda: store.commit([ended("d")]), lambda: store.save(state), store.set_aside):
            with pytest.raises(StateUnwritable, match=reason):
                act()
        assert before == stored.files()
    assert {"a", "b"} == done(stored.read())


# -- trouble at every call -----------------------------------------------------------------------------------------


@dataclass
class Promised:
    """What a scenario was told: it has to be so from then on."""

    phases: dict[str, set[str]]
    restarting: bool = False
    begun: bool = False


Scenario = Callable[[RunStore, Promised], None]


def commit(store: RunStore, promised: Promised, run: str, *names: str) -> None:
    store.commit([ended(name) for name in names])
    promised.phases[run].update(names)


def going_on(store: RunStore, promised: Promised) -> None:
    """A resume: two phases that end together, one alone, the end."""
    found = store.read()
    store.adopt(found)
    store.save(replace(found.state, status="running"))
    commit(store, promised, RUN, "c", "d")
    commit(store, promised, RUN, "e")
    store.save(replace(found.state, status="completed"))


def dropping(store: RunStore, promised: Promised) -> None:
    """A resume with ``--from b``."""
    found = store.read()
    store.adopt(found)
    promised.phases[RUN].discard("b")
    store.save(replace(found.state, status="running", dropped=(("b", 1, 2),)))
    commit(store, promised, RUN, "b")
    store.save(replace(found.state, status="paused", dropped=(("b", 1, 2),)))


def updating(store: RunStore, promised: Promised) -> None:
    """A resume with ``--update``: another definition, without what changed."""
    found = store.read()
    store.adopt(found)
    promised.phases[RUN].discard("b")
    store.define(replace(DEFINITION, number=2, text="new"))
    store.save(replace(found.state, status="running", dropped=(("b", 1, 2),)))
    commit(store, promised, RUN, "b")


def restarting(store: RunStore, promised: Promised) -> None:
    """A start with ``--restart``."""
    promised.restarting = True
    store.set_aside()
    store.create(state_of(NEXT), DEFINITION)
    promised.begun = True
    commit(store, promised, NEXT, "a")
    store.save(state_of(NEXT, status="completed"))


def repairing(stored: Stored) -> None:
    """A damaged main file, a damaged checkpoint, and one whose name was lost with the power."""
    with stored.resumed() as store:
        anchor = (stored.anchors / "f").read_bytes()
        store.commit([ended("d"), ended("e")])
    (stored.anchors / "f").write_bytes(anchor)
    stored.path("d.1").unlink()
    changed(stored.path("main"))
    changed(stored.path("c.1"))


SCENARIOS = {
    "going on": (going_on, None),
    "dropping": (dropping, None),
    "updating": (updating, None),
    "repairing": (going_on, repairing),
    "restarting": (restarting, None),
    "restarting what is damaged": (restarting, repairing),
}
EVERY = pytest.mark.parametrize("name", SCENARIOS)


@pytest.fixture
def prepared(name, in_memory):
    """A run, what will happen to it, and how it is before, to be put back."""
    scenario, prepare = SCENARIOS[name]
    if prepare is not None:
        prepare(in_memory)
    return in_memory, scenario, Snapshot(in_memory.roots)


def happen(stored: Stored, scenario: Scenario, calls: Calls) -> tuple[Promised, SageError | None]:
    """Let a scenario run into its trouble; what it was promised until then, and what it was told."""
    stored.find_place()
    promised = Promised({RUN: {"a", "b"}, NEXT: set()})
    with calls.happening(), suppress(Crash):
        try:
            with stored.opened() as store:
                scenario(store, promised)
        except SageError as error:
            return promised, error
    return promised, None


def calls_of(stored: Stored, scenario: Scenario, *, opens: bool = False) -> list[tuple[int, str]]:
    """Number and name of each call that a scenario takes."""
    calls = Calls(opens=opens)
    happen(stored, scenario, calls)
    return list(enumerate(calls.names, 1))


def check(stored: Stored, promised: Promised, where: str) -> None:
    """Nothing that was promised is lost, nothing is reported that was not, and everything goes on."""
    stored.find_place()
    try:
        found = stored.read()
    except NoSuchRun:
        assert promised.restarting, where
        assert not promised.begun, where
        stored.begin(NEXT)
        found = stored.read()
    assert promised.phases[found.state.run] <= done(found), where
    assert found.state.run == NEXT or not promised.begun, where
    assert promised.restarting or found.state.run == RUN, where
    with state_folder(stored.project) as folder:
        assert found.state.run == read_state(folder, stored.place, "f", stored.keys).run, where
    with stored.resumed() as store:
        store.commit([ended("d")])
        store.save(replace(found.state, status="completed"))
    again = stored.read()

    assert done(found) | {"d"} == done(again), where
    assert ("completed", ()) == (again.state.status, again.damages), where
    assert [] == stored.temporary(), where


@EVERY
def test_killed_at_any_call_nothing_is_lost(prepared):
    stored, scenario, before = prepared
    for at, name in calls_of(stored, scenario):
        for how in ("before", "middle") if name in {"write", "pwrite"} else ("before",):
            before.restore()
            promised, _ = happen(stored, scenario, Calls(at, how))
            check(stored, promised, f"{how} call {at}")


@EVERY
def test_without_power_after_any_call_nothing_is_lost(prepared):
    stored, scenario, before = prepared
    for at, _ in calls_of(stored, scenario):
        before.restore()
        calls = Calls(at, "after")
        happen(stored, scenario, calls)
        for lost in calls.losses():
            before.restore()
            calls = Calls(at, "after")
            promised, _ = happen(stored, scenario, calls)
            calls.lose(lost)
            check(stored, promised, f"after call {at}, without {lost} of {calls.volatile}")


FAULTS = (errno.ENOSPC, errno.EIO, errno.EROFS)


@EVERY
@pytest.mark.parametrize("opens", [False, True], ids=["writing", "without descriptors"])
def test_fault_at_any_call_is_said_and_nothing_is_lost(prepared, opens):
    stored, scenario, before = prepared
    for at, _ in calls_of(stored, scenario, opens=opens):
        error = errno.EMFILE if opens else FAULTS[at % 3]
        before.restore()
        promised, said = happen(stored, scenario, Calls(at, error, ever=at % 2 == 0, opens=opens))
        assert is_named(said, error), f"call {at}: {said!r}"
        check(stored, promised, f"call {at}")


def is_named(said: SageError | None, error: int) -> bool:
    """Whether it is the one error there is for it; some calls (a sweep, a line for people) may fail unnoticed."""
    reason = os.strerror(error)
    if isinstance(said, StateCorrupted):
        return said.message.endswith(f"cannot be read: {reason}")
    return said is None or (isinstance(said, StateUnwritable) and reason.lower() in said.message)
