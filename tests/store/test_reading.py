"""What is found on disk instead of what was written: refused by name, or repaired and said; never believed."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from store.stored import DAMAGES, DEFINITION, IDS, RUN, Stored, changed, done, ended, gone, state_of, truncated

from sage_sandbox.disk.files import Folder
from sage_sandbox.errors import NoSuchRun, StateCorrupted, StateTooNew, WrongKey
from sage_sandbox.store import reading
from sage_sandbox.store.envelope import open_sealed, seal
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import Foreign, checkpoints_among, state_folder
from sage_sandbox.store.reading import Damage, RolledBack, read_run, read_state

NEXT = "2" * 32
EVERY_DAMAGE = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


def repair(stored):
    """A resume, as far as the state goes; what it found, and what is found after it."""
    with stored.opened() as store:
        found = store.read()
        store.adopt(found)
        store.save(replace(found.state, status="running"))
    return found, stored.read()


def status(stored):
    with state_folder(stored.project) as folder:
        return read_state(folder, stored.place, stored.feature, stored.keys)


def refused(stored, kind=StateCorrupted):
    """The error of a state that is left exactly as it is."""
    before = stored.files()
    with pytest.raises(kind) as error:
        stored.read()
    with pytest.raises(kind):
        status(stored)
    assert before == stored.files()
    return error.value


def sealed_again(stored, name, payload=None, *, keys=None, **changes):
    """A file of the run as somebody with a key would write it; ``changes`` to what it says it is."""
    path = stored.path(name)
    opened = open_sealed(path.read_bytes(), None, stored.keys, path="")
    changes = {"generation": opened.generation, **changes}
    generation = changes.pop("generation")
    subject = replace(opened.subject, **changes)
    return seal(opened.payload if payload is None else payload, subject, generation, keys or stored.keys)


# -- the main file -------------------------------------------------------------------------------------------------


@EVERY_DAMAGE
def test_damaged_main_file_is_restored_from_its_backup(stored, damage):
    damage(stored.path("main"))
    seen = status(stored)
    found, again = repair(stored)

    assert ("backup", 3, True) == (found.source, found.generation, found.repaired)
    assert [("workflow-f.json", "")] == [(one.name, one.phase) for one in found.damages]
    assert {"a", "b"} == done(found) == done(again)
    assert {"a", "b", "c"} == set(found.checkpoints) == set(seen.checkpoints)
    assert ["workflow-f.json"] == list(stored.aside)
    assert ("state", (), 5) == (again.source, again.damages, again.generation)


@EVERY_DAMAGE
def test_damaged_backup_is_put_aside_too(stored, damage):
    damage(stored.path("backup"))
    found, again = repair(stored)

    assert ("state", ["workflow-f.json.bak"]) == (found.source, [one.name for one in found.damages])
    assert ["workflow-f.json.bak"] == list(stored.aside)
    assert () == again.damages
    assert {"a", "b"} == done(again)


@EVERY_DAMAGE
def test_without_main_file_and_backup_the_checkpoints_say_how_far_it_came(stored, damage):
    damage(stored.path("main"))
    truncated(stored.path("backup"))
    found, again = repair(stored)

    assert ("checkpoints", "running", 3) == (found.source, found.state.status, found.generation)
    assert ["workflow-f.json", "workflow-f.json.bak"] == [one.name for one in found.damages] == sorted(stored.aside)
    assert (RUN, "flow", IDS, DEFINITION.made_at) == (
        found.state.run,
        found.state.template,
        found.state.phase_ids,
        found.state.started_at,
    )
    assert {"a", "b"} == done(found) == done(again)
    assert ("state", ()) == (again.source, again.damages)


@pytest.mark.parametrize("name", ["backup", "checkpoints"])
def test_what_was_dropped_stays_so_where_the_main_file_is_lost(stored, name):
    """The backup was written before it was dropped."""
    stored.drop("b")
    changed(stored.path("main"))
    if name == "checkpoints":
        gone(stored.path("backup"))
    found, again = repair(stored)

    assert (name, {"a"}, (("b", 1, 2),)) == (found.source, done(found), found.state.dropped)
    assert (2, 2) == (found.state.definition, found.definition.number)
    assert {"a"} == done(again)


@pytest.mark.parametrize("name", ["backup", "checkpoints"])
def test_new_definition_stays_in_force_where_the_main_file_is_lost(stored, name):
    with stored.resumed() as store:
        store.define(replace(DEFINITION, name="new", phase_ids=("a", "b", "z")))
        store.save(store.read().state)
    changed(stored.path("main"))
    if name == "checkpoints":
        gone(stored.path("backup"))
    found = stored.read()

    assert (name, "new", ("a", "b", "z"), 2) == (
        found.source,
        found.state.template,
        found.state.phase_ids,
        found.state.definition,
    )


def test_definition_that_never_came_into_force_is_not_used(stored):
    """A resume with ``--update`` that was killed before its main file."""
    with stored.resumed() as store:
        store.define(replace(DEFINITION, name="new"))
    gone(stored.path("main"))
    gone(stored.path("backup"))

    assert ("flow", 1) == (stored.read().definition.name, stored.read().definition.number)


@pytest.mark.parametrize("lost", ["main", "both"])
def test_what_is_known_to_be_absent_is_no_rollback_where_the_main_file_is_lost(stored, lost):
    changed(stored.path("b.1"))
    repair(stored)
    changed(stored.path("main"))
    if lost == "both":
        changed(stored.path("backup"))
    found, again = repair(stored)

    assert {"a"} == done(found) == done(again)
    assert (2,) == found.state.absent == found.definition.absent


def test_backup_of_a_backup_is_too_old_and_not_used(stored):
    older = stored.path("backup").read_bytes()
    stored.save(status="completed")
    stored.path("backup").write_bytes(older)
    changed(stored.path("main"))
    found = stored.read()

    assert ("checkpoints", {"a", "b"}) == (found.source, done(found))


def test_main_file_that_was_put_back_is_a_rollback(stored):
    shutil.copy(stored.path("backup"), stored.path("main"))
    error = refused(stored, RolledBack)

    assert "workflow-f.json is older than what was written last: the state was rolled back" in error.message
    assert "sage-sandbox state rekey" in error.hint
    assert str(stored.path("main")) == error.path


def test_main_file_of_another_run_with_the_same_number_is_a_rollback(stored):
    stored.path("main").write_bytes(sealed_again(stored, "main", state_payload(run=NEXT), run=NEXT))

    assert "is of an earlier run" in refused(stored, RolledBack).message


def state_payload(run):
    from sage_sandbox.store.records import encode_state

    return encode_state(state_of(run))


def test_whole_run_that_was_put_back_is_a_rollback(stored):
    old = {path: path.read_bytes() for path in stored.state.rglob("*.json*")}
    stored.begin(NEXT)
    for path, data in old.items():
        path.write_bytes(data)

    assert "is older than what was written last" in refused(stored, RolledBack).message


@pytest.mark.parametrize("main", [True, False])
def test_run_that_was_set_aside_and_put_back_is_a_rollback(stored, main):
    with stored.opened() as store:
        name = store.set_aside()
    for path in (stored.state / "aside" / name).iterdir():
        path.rename(stored.state / path.name)
    if not main:
        gone(stored.path("main"))

    assert "is of an earlier run" in refused(stored, RolledBack).message


def test_folder_of_an_earlier_run_alone_is_a_rollback(stored):
    folder = stored.path("a.1").parent
    shutil.copytree(folder, folder.with_name("kept"))
    stored.begin(NEXT)
    shutil.rmtree(folder)
    folder.with_name("kept").rename(folder)
    gone(stored.path("main"))

    assert "workflow-f is of an earlier run" in refused(stored, RolledBack).message


def test_backup_of_a_run_that_was_set_aside_is_not_used(stored):
    old = stored.path("main").read_bytes()
    with stored.opened() as store:
        store.set_aside()
    stored.path("backup").write_bytes(old)

    refused(stored, NoSuchRun)


def test_backup_of_another_run_is_not_used(stored):
    stored.path("backup").write_bytes(sealed_again(stored, "main", state_payload(run=NEXT), run=NEXT))
    gone(stored.path("main"))

    assert "checkpoints" == stored.read().source


def test_new_run_is_restored_from_its_backup_before_its_anchor_was_durable(stored):
    with stored.opened() as store:
        store.set_aside()
        anchor = (stored.anchors / "f").read_bytes()
        store.create(state_of(NEXT), DEFINITION)
        store.save(state_of(NEXT))
    (stored.anchors / "f").write_bytes(anchor)
    changed(stored.path("main"))

    assert (NEXT, "backup") == (stored.read().state.run, stored.read().source)


def test_state_without_an_anchor_is_believed(stored):
    gone(stored.anchors / "f")
    assert ("state", {"a", "b"}) == (stored.read().source, done(stored.read()))
    changed(stored.path("main"))
    assert ("backup", 2, {"a", "b"}) == (stored.read().source, stored.read().generation, done(stored.read()))
    changed(stored.path("backup"))
    assert ("checkpoints", 0, {"a", "b"}) == (stored.read().source, stored.read().generation, done(stored.read()))


def test_damaged_anchor_is_refused_and_says_what_to_do(stored):
    (stored.anchors / "f").write_bytes(b"x" * 512)
    error = refused(stored)

    assert error.message == f"{stored.anchors / 'f'} is damaged"
    assert "remove it" in error.hint
    gone(stored.anchors / "f")
    assert {"a", "b"} == done(stored.read())


def test_anchor_that_holds_nothing_yet_is_none(stored):
    with Folder.open(stored.anchors) as folder:
        from sage_sandbox.disk.marks import Mark

        gone(stored.anchors / "f")
        Mark.open(folder, "f", make=True).close()

    assert {"a", "b"} == done(stored.read())


def test_nothing_is_no_run(empty, stored):
    other = Stored(empty.project, "g")

    assert "there is no run of g in this project" == refused(other, NoSuchRun).message
    shutil.rmtree(stored.state)
    with pytest.raises(NoSuchRun, match="the state of f is gone from this project"):
        stored.read()


@pytest.mark.parametrize("name", ["main", "both"])
def test_folder_that_is_gone_cannot_be_gone_on_from(stored, name):
    shutil.rmtree(stored.path("a.1").parent)
    if name == "both":
        gone(stored.path("main"))
    with pytest.raises(RolledBack) as error:
        stored.read()

    assert f"{stored.path('a.1').parent} is gone" == error.value.message
    assert "--restart" in error.value.hint


def test_damaged_main_file_with_nothing_to_restore_it_from_is_what_is_said(stored):
    truncated(stored.path("main"))
    gone(stored.path("backup"))
    shutil.rmtree(stored.path("a.1").parent)

    assert f"{stored.path('main')} is damaged: its end is missing" == refused(stored).message


def test_damaged_definition_without_a_main_file_is_what_is_said(stored):
    gone(stored.path("main"))
    gone(stored.path("backup"))
    truncated(stored.path("_definition.1"))

    assert f"{stored.path('_definition.1')} is damaged: its end is missing" == refused(stored).message


def test_damaged_main_file_is_said_before_a_damaged_definition(stored):
    truncated(stored.path("main"))
    gone(stored.path("backup"))
    truncated(stored.path("_definition.1"))

    assert str(stored.path("main")) == refused(stored).path


def test_run_without_any_file_is_no_run(stored):
    for path in (*stored.path("a.1").parent.iterdir(), stored.path("main"), stored.path("backup")):
        gone(path)

    refused(stored, NoSuchRun)


@pytest.mark.parametrize("name", ["main", "b.1", "_definition.1"])
def test_file_of_a_later_version_is_refused_and_left(stored, name):
    payload = b'{"version":"2.0",\n"operations":[],\n"results":{}}'
    stored.path(name).write_bytes(sealed_again(stored, name, payload))
    before = stored.files()
    with pytest.raises(StateTooNew, match="was written by a later version"):
        stored.read()
    assert before == stored.files()


def test_main_file_that_is_true_and_no_record_is_refused(stored):
    stored.path("main").write_bytes(sealed_again(stored, "main", b'{"version":"1.0"}'))

    assert "workflow-f.json is no state of this program: KeyError: 'workflowId'" in refused(stored).message


# -- the definition ------------------------------------------------------------------------------------------------


@EVERY_DAMAGE
def test_damaged_definition_is_refused_and_left(stored, damage):
    damage(stored.path("_definition.1"))
    before = stored.files()
    with pytest.raises(StateCorrupted, match=r"_definition\.1\.json") as error:
        stored.read()

    assert "--restart" in error.value.hint
    assert before == stored.files()
    assert "paused" == status(stored).status


def test_definition_that_is_gone_is_refused(stored):
    gone(stored.path("_definition.1"))
    with pytest.raises(RolledBack, match=r"_definition\.1\.json is gone"):
        stored.read()


def test_definition_of_another_run_is_refused(stored):
    stored.path("_definition.1").write_bytes(sealed_again(stored, "_definition.1", run=NEXT))
    with pytest.raises(StateCorrupted, match="belongs to another run"):
        stored.read()


def test_older_definition_is_refused_in_the_place_of_the_one_in_force(stored):
    stored.drop("b")
    shutil.copy(stored.path("_definition.1"), stored.path("_definition.2"))
    with pytest.raises(StateCorrupted, match="is definition number 1, where 2 belongs"):
        stored.read()


# -- checkpoints ---------------------------------------------------------------------------------------------------


@EVERY_DAMAGE
def test_damaged_checkpoint_is_put_aside_and_its_phase_runs_again(stored, damage):
    damage(stored.path("b.1"))
    seen = status(stored)
    found, repaired = repair(stored)
    stored.commit(ended("b", b"2"))
    again = stored.read()

    assert {"a", "b", "c"} == set(seen.checkpoints)  # the main file alone was looked at
    assert ({"a"}, [("b.1.json", "b")]) == (done(found), [(one.name, one.phase) for one in found.damages])
    assert ["b.1.json"] == list(stored.aside)
    assert ((), (2,)) == (repaired.damages, repaired.state.absent)
    assert ({"a", "b"}, b"2", 4) == (
        done(again),
        again.checkpoints["b"].operations[0][1].result,
        again.checkpoints["b"].generation,
    )


def swapped_with(stored, other):
    """The bytes of another file where b's checkpoint belongs."""
    stored.path("b.1").write_bytes(other)
    return repair(stored)


def test_checkpoint_of_another_phase_is_put_aside(stored):
    found, _ = swapped_with(stored, stored.path("a.1").read_bytes())

    assert [Damage("b.1.json", f"{stored.path('b.1')} is the checkpoint of another phase, a", "b")] == [*found.damages]


def test_checkpoint_of_another_attempt_is_put_aside(stored):
    stored.commit(ended("c"))
    shutil.copy(stored.path("c.1"), stored.path("c.2"))
    found, again = repair(stored)

    assert [("c.2.json", "c")] == [(one.name, one.phase) for one in found.damages]
    assert ({"a", "b"}, "failed") == (done(again), again.checkpoints["c"].outcome)


def test_checkpoint_of_another_feature_is_put_aside(stored):
    other = Stored(stored.project, "g")
    other.begin()
    other.commit(ended("b"))
    found, again = swapped_with(stored, other.path("b.1").read_bytes())

    assert "belongs to another feature, g" in found.damages[0].message
    assert {"a"} == done(again)


def test_checkpoint_of_an_earlier_run_is_put_aside(stored):
    old = stored.path("b.1").read_bytes()
    stored.begin(NEXT)
    stored.commit(ended("a"), ended("b"))
    found, again = swapped_with(stored, old)

    assert "belongs to another run" in found.damages[0].message
    assert {"a"} == done(again)


def test_checkpoint_of_another_project_is_put_aside(stored, tmp_path):
    other = Stored(tmp_path / "other")
    other.begin(NEXT)
    other.commit(ended("b"))
    found, again = swapped_with(stored, other.path("b.1").read_bytes())

    assert "belongs to another project" in found.damages[0].message
    assert {"a"} == done(again)


def test_main_file_or_definition_for_a_checkpoint_is_put_aside(stored):
    for name in ("main", "_definition.1"):
        found, _ = swapped_with(stored, stored.path(name).read_bytes())

        assert "where a checkpoint belongs" in found.damages[0].message


def test_damaged_checkpoint_of_an_attempt_before_makes_nothing_run_again(stored):
    stored.commit(ended("c"))
    changed(stored.path("c.1"))
    found, again = repair(stored)

    assert [("c.1.json", "")] == [(one.name, one.phase) for one in found.damages]
    assert {"a", "b", "c"} == done(found) == done(again)


def test_name_that_nobody_wrote_is_put_aside_and_counts_for_nothing(stored):
    names = ("b.999999999.json", "zzz.1.json")
    for name in names:
        (stored.path("a.1").with_name(name)).write_text("{}")
    found, again = repair(stored)

    assert [("b.999999999.json", "b"), ("zzz.1.json", "")] == sorted((one.name, one.phase) for one in found.damages)
    assert {"a": 1, "b": 1, "c": 1} == found.attempts
    assert ({"a", "b"}, ()) == (done(found), again.damages)
    stored.commit(ended("b"))
    assert 2 == stored.read().checkpoints["b"].attempt


def test_names_that_are_no_state_are_passed_over(stored):
    for name in ("b.01.json", "b.json", "B.1.json", "b.1.json.bak", "notes.txt", "_definition.0.json"):
        (stored.path("a.1").with_name(name)).write_text("x")

    assert ((), {"a", "b"}) == (stored.read().damages, done(stored.read()))


def test_checkpoint_that_was_taken_away_is_a_rollback(stored):
    gone(stored.path("b.1"))
    with pytest.raises(RolledBack, match="lacks 1 of the checkpoints that were written"):
        stored.read()


def test_checkpoint_that_only_the_anchor_knows_of_is_missed(stored):
    stored.commit(ended("d"))
    gone(stored.path("d.1"))
    with pytest.raises(RolledBack, match="lacks 1 of the checkpoints"):
        stored.read()


def test_checkpoint_that_only_the_index_knows_of_is_missed(stored):
    gone(stored.anchors / "f")
    gone(stored.path("c.1"))
    with pytest.raises(RolledBack, match="lacks 1 of the checkpoints"):
        stored.read()


def test_checkpoint_whose_name_was_lost_with_the_power_is_no_rollback(stored):
    anchor = (stored.anchors / "f").read_bytes()
    stored.commit(ended("d"))
    (stored.anchors / "f").write_bytes(anchor)
    gone(stored.path("d.1"))

    assert ({"a", "b"}, (), 3) == (done(stored.read()), stored.read().state.absent, stored.read().sequence)


def test_gap_that_the_power_left_is_accounted_for(stored):
    anchor = (stored.anchors / "f").read_bytes()
    stored.commit(ended("d"), ended("c"))
    (stored.anchors / "f").write_bytes(anchor)
    gone(stored.path("d.1"))
    with stored.resumed() as store:
        assert (4,) == store.read().state.absent
        assert 6 == store.commit([ended("d")])[0].generation
    found = stored.read()

    assert ({"a", "b", "c", "d"}, (4,), 6) == (done(found), found.state.absent, found.sequence)


def test_dropped_checkpoint_is_not_missed(stored):
    stored.drop("b")
    gone(stored.path("b.1"))
    found = stored.read()

    assert ({"a"}, (), 3) == (done(found), found.damages, found.sequence)


def test_dropped_checkpoint_that_is_damaged_damages_nothing(stored):
    stored.drop("b")
    changed(stored.path("b.1"))

    assert () == stored.read().damages


# -- keys and settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["main", "backup", "_definition.1", "b.1"])
def test_file_sealed_with_a_key_that_is_not_here_is_left_as_it_is(stored, name):
    stored.path(name).write_bytes(sealed_again(stored, name, keys=Keys([b"x" * 32])))
    before = stored.files()
    with pytest.raises(WrongKey, match="which is not here"):
        stored.read()
    assert before == stored.files()


def test_state_under_another_key_is_left_as_it_is(stored):
    stored.keys = Keys([b"x" * 32])

    assert "SAGE_STATE_KEY" in refused(stored, WrongKey).hint


@pytest.mark.parametrize("encrypt", [True, False])
def test_state_under_the_other_setting_is_left_as_it_is(stored, encrypt):
    stored.keys = stored.keys.encrypting(not encrypt)
    stored.begin(NEXT)
    stored.commit(ended("a"))
    stored.keys = stored.keys.encrypting(encrypt)
    error = refused(stored)

    assert f"SAGE_STATE_ENCRYPTION is {'on' if encrypt else 'off'}" in error.message
    assert "sage-sandbox state rekey" in error.hint


@pytest.mark.parametrize("name", ["_definition.1", "b.1"])
def test_single_file_under_the_other_setting_is_left_as_it_is(stored, name):
    stored.path(name).write_bytes(sealed_again(stored, name, keys=stored.keys.encrypting(False)))
    before = stored.files()
    with pytest.raises(Foreign, match="is not encrypted, and SAGE_STATE_ENCRYPTION is on"):
        stored.read()
    assert before == stored.files()


def test_project_that_was_moved_is_refused_and_says_what_to_do(stored, tmp_path):
    moved = tmp_path / "moved"
    stored.project.rename(moved)
    error = refused(Stored(moved))

    assert "belongs to another project" in error.message
    assert "sage-sandbox state rekey" in error.hint


def test_file_of_a_copy_of_the_project_is_left_as_it_is(stored, tmp_path):
    other = Stored(tmp_path / "other")
    stored.path("b.1").write_bytes(sealed_again(stored, "b.1", project=other.place.id))
    with pytest.raises(Foreign, match="belongs to another project"):
        stored.read()


# -- while others write --------------------------------------------------------------------------------------------


def test_what_is_wrong_in_one_look_only_is_not_believed(stored, monkeypatch):
    """A restart between two steps of a reader: the folder of one run, the main file of another."""
    looks = []
    real = reading._read_main

    def straddling(*args):
        looks.append(args)
        if len(looks) == 1:
            stored.begin(NEXT)
        return real(*args)

    monkeypatch.setattr(reading, "_read_main", straddling)

    with state_folder(stored.project) as folder:
        assert NEXT == read_run(folder, stored.place, "f", stored.keys).state.run
    assert 2 == len(looks)


def test_what_is_wrong_differently_each_time_is_believed_in_the_end(stored, monkeypatch):
    looks = []

    def never_the_same(*_):
        looks.append(1)
        raise StateCorrupted(f"look {len(looks)}")

    monkeypatch.setattr(reading, "_read_definition", never_the_same)
    with pytest.raises(StateCorrupted, match="look 5"):
        stored.read()
    assert reading.LOOKS == len(looks)


def test_checkpoint_that_is_put_aside_meanwhile_is_looked_for_once_more(stored, monkeypatch):
    changed(stored.path("b.1"))
    real = checkpoints_among
    looks = []

    def straddling(names):
        looks.append(names)
        if len(looks) == 1:
            monkeypatch.setattr(reading, "checkpoints_among", real)
            with stored.resumed():
                pass
        return real(names)

    with state_folder(stored.project) as folder:
        monkeypatch.setattr(reading, "checkpoints_among", straddling)
        found = read_run(folder, stored.place, "f", stored.keys)

    assert (1, (), {"a"}) == (len(looks), found.damages, done(found))


def test_what_cannot_be_read_now_is_no_damage(stored, monkeypatch):
    real = os.open

    def failing(path, *args, **kwargs):
        if path == "b.1.json":
            raise OSError(5, "Input/output error", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(StateCorrupted, match=r"b\.1\.json cannot be read: Input/output error") as error:
        stored.read()
    assert error.value.path.endswith("/b.1.json")


def test_backup_stands_for_the_main_file_where_only_that_is_looked_at(stored):
    changed(stored.path("main"))
    seen = status(stored)

    assert ("running", {"a", "b", "c"}) == (seen.status, set(seen.checkpoints))
