"""Old entries go, and what stays still verifies: also where somebody is killed, or writes meanwhile."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from sage_sandbox.audit import checking, files, log
from sage_sandbox.disk.files import Folder

KEY = bytes(range(32))
MONTH = timedelta(days=30)


def kinds(place):
    return [entry.kind for entry in checking.entries(place.folder)]


def problems(place):
    return checking.verify(place.folder, place.user, KEY).problems


@pytest.fixture
def aged(place):
    """Three entries that are old, two that are not."""
    place.filled(3)
    place.clock.move(days=40)
    opened = place.open()
    opened.write("start", "young 1", durable=True)
    opened.write("state", "young 2")
    return opened


def test_old_entries_are_dropped_and_the_rest_verifies(place, aged):
    aged.prune(MONTH)

    first, *kept = checking.entries(place.folder)
    assert ("pruned", "3 entries from before 2026-02-10 were dropped") == (first.kind, first.text)
    assert ["young 1", "young 2"] == [entry.text for entry in kept]
    assert () == problems(place)


def test_the_log_goes_on_after_it(place, aged):
    aged.prune(MONTH)
    aged.write("state", "a", durable=True)
    place.open().write("state", "b")

    assert ["pruned", "start", "state", "state", "state"] == kinds(place)
    assert () == problems(place)


def test_a_log_that_is_old_throughout_keeps_its_place(place):
    place.filled(3)
    place.clock.move(days=40)
    opened = place.open()
    opened.prune(MONTH)
    opened.write("state", "a")

    assert ["pruned", "state"] == kinds(place)
    assert () == problems(place)


def test_young_entries_stay_and_nothing_is_written(place):
    before = place.filled(3)
    place.open().prune(MONTH)

    assert before == place.path.read_bytes()


def test_it_is_done_once_a_day(place, aged):
    aged.prune(MONTH)
    place.clock.move(hours=23)
    before = place.path.read_bytes()
    aged.prune(timedelta(0))
    same = before == place.path.read_bytes()
    place.clock.move(hours=2)
    aged.prune(timedelta(0))

    assert same
    assert ["pruned"] == kinds(place)
    assert () == problems(place)


def test_two_that_prune_at_once_prune_once(place, aged):
    other = place.open()
    due = other._has_older
    other._has_older = lambda oldest: bool(due(oldest)) or True  # it looked before the first one was done
    aged.prune(MONTH)
    other.prune(MONTH)

    assert 1 == kinds(place).count("pruned")
    assert () == problems(place)


def test_an_entry_with_a_forged_time_is_not_dropped(place, aged):
    lines = place.path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"entry 3", b"nothing")
    place.path.write_bytes(b"".join(lines))
    aged.prune(MONTH)

    assert ["pruned", "state", "start", "state"] == kinds(place)
    assert ((2, "was changed, or was not written by this log"),) == problems(place)


def test_a_torn_line_is_healed_not_forgotten(place, aged):
    with place.path.open("ab") as file:
        file.write(b'{"seq"')
    aged.prune(MONTH)

    assert "healed" in kinds(place)
    assert () == problems(place)


def test_what_a_killed_one_left_is_swept(place, aged):
    Path(place.folder.path, "audit.jsonl.0123abcd.tmp").write_bytes(b"")
    aged.prune(MONTH)

    assert ["audit.jsonl", "audit.lock"] == sorted(place.folder.names())


@pytest.mark.parametrize("padding", range(0, 700, 23))
def test_one_that_wrote_before_goes_on_after_another_one_pruned(place, padding):
    one = place.open()
    for _ in range(12):
        one.write("state", "x" * 50, durable=True)
    size = place.path.stat().st_size
    place.clock.move(days=40)
    other = place.open()
    other.write("state", "young")
    other.prune(MONTH)
    # Around the size at which the first one left it: its place is then in the middle of a line.
    other.write("state", "y" * (size - place.path.stat().st_size - 350 + padding))
    one.write("state", "from the first one")

    assert () == problems(place)


class Killed(BaseException):
    """Nothing after it happens."""


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 2, 9])
@pytest.mark.parametrize("step", range(1, 6))
def test_it_may_be_killed_at_any_step(place, monkeypatch, step, kept, durable):
    place.filled(4, durable=durable)
    place.clock.move(days=40)
    opened = place.open()
    for number in range(kept):
        opened.write("state", "x" * 40 * number)
    steps = []

    def counting(call):
        def counted(*args, **kwargs):
            steps.append(call)
            if len(steps) == step:
                raise Killed
            return call(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_new", counting(Folder.write_new))
        patch.setattr(Folder, "rename", counting(Folder.rename))
        patch.setattr(Folder, "sync", counting(Folder.sync))
        patch.setattr(log, "write_head", counting(files.write_head))
        with pytest.raises(Killed):
            opened.prune(MONTH)

    assert () == problems(place)
    place.open().write("state", "of another process", durable=True)
    opened.write("state", "of one that lived on")
    assert () == problems(place)
