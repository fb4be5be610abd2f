"""What is kept is found again by whoever asks the same, here, with this key, in time; anything else is not there."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from sage_sandbox.caching.hints import hint_of, is_whole
from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import Locked
from sage_sandbox.store import cache as module
from sage_sandbox.store.cache import CacheStore, clear, stats
from sage_sandbox.store.keys import Keys

KEYS = Keys([b"k" * 32])
ONE, TWO = "1" * 64, "2" * 64


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def made(tmp_path, clock):
    """Opens the cache of a project by name; the project's place with the user is kept for `user`."""
    opened: list[Any] = []

    def make(name="project", keys=KEYS, **given):
        project = tmp_path / name
        project.mkdir(exist_ok=True)
        place = project_place(project)
        store = CacheStore(project, place.id, place.folder, keys, now=clock, **given)
        opened.extend((store, place.folder))
        return store

    yield make
    for item in opened:
        item.close()


def entry(tmp_path, key=ONE, name="project"):
    return tmp_path / name / ".sage" / "cache" / key


def test_what_was_put_is_found_with_its_age(made, clock):
    store = made()
    assert store.get(ONE, 100) is None

    assert store.put(ONE, b'{"a":1}')
    clock.now += 5

    found = store.get(ONE, 100)
    assert found is not None
    assert (b'{"a":1}', 5.0) == (found.content, found.age_s)
    assert store.get(TWO, 100) is None
    assert made().get(ONE, 100) is not None


def test_what_is_too_old_or_of_the_future_is_not_there(made, clock):
    store = made()
    store.put(ONE, b"1")

    clock.now += 101
    assert store.get(ONE, 100) is None
    assert store.get(ONE, 102) is not None
    clock.now -= 300
    assert store.get(ONE, 1000) is None


def test_a_byte_that_changed_is_enough_not_to_be_there(made, tmp_path):
    store = made()
    store.put(ONE, b'{"a":1}')
    whole = entry(tmp_path).read_bytes()

    for at in range(len(whole)):
        entry(tmp_path).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert store.get(ONE, 100) is None
    entry(tmp_path).write_bytes(whole[:-10])
    assert store.get(ONE, 100) is None
    entry(tmp_path).write_bytes(whole)
    assert store.get(ONE, 100) is not None


def test_an_entry_under_another_key_is_not_there(made, tmp_path):
    store = made()
    store.put(ONE, b"1")

    shutil.copy(entry(tmp_path, ONE), entry(tmp_path, TWO))

    assert store.get(TWO, 100) is None


def test_an_entry_of_another_project_is_not_there(made, tmp_path):
    store, other = made(), made("other")
    other.put(ONE, b"1")

    shutil.copy(entry(tmp_path, name="other"), entry(tmp_path))

    assert store.get(ONE, 100) is None
    assert other.get(ONE, 100) is not None


@pytest.mark.parametrize("keys", [Keys([b"x" * 32]), Keys([b"k" * 32], encrypt=False)])
def test_an_entry_that_was_sealed_otherwise_is_not_there(made, keys):
    made().put(ONE, b"1")

    assert made(keys=keys).get(ONE, 100) is None


def test_entries_may_be_readable_and_are_authenticated_then(made, tmp_path):
    store = made(keys=Keys([b"k" * 32], encrypt=False))
    store.put(ONE, b'{"a":1}')

    text = entry(tmp_path).read_bytes()
    assert b'"content":{"a":1}' in text
    assert store.get(ONE, 100) is not None
    entry(tmp_path).write_bytes(text.replace(b'{"a":1}', b'{"a":2}'))
    assert store.get(ONE, 100) is None


def test_a_link_or_a_folder_in_an_entrys_place_is_not_there(made, tmp_path):
    store = made()
    store.put(ONE, b"1")
    entry(tmp_path).rename(tmp_path / "elsewhere")

    entry(tmp_path).symlink_to(tmp_path / "elsewhere")
    entry(tmp_path, TWO).mkdir()

    assert store.get(ONE, 100) is None
    assert store.get(TWO, 100) is None


def test_after_clear_nothing_of_before_counts_whoever_puts_it_back(made, tmp_path):
    made().put(ONE, b"1")
    old = entry(tmp_path).read_bytes()

    place = project_place(tmp_path / "project")
    with place.folder:
        assert clear(tmp_path / "project", place.folder) == 1

    assert not entry(tmp_path).exists()
    entry(tmp_path).write_bytes(old)
    assert made().get(ONE, 100) is None


def test_a_lost_epoch_makes_all_of_before_worth_nothing(made, tmp_path):
    made().put(ONE, b"1")
    place = project_place(tmp_path / "project")
    with place.folder:
        place.folder.remove(module.EPOCH)

    assert made().get(ONE, 100) is None


def test_the_oldest_go_where_there_is_too_much(made, tmp_path):
    store = made(size_max=3000)
    for number in range(6):
        assert store.put(str(number) * 64, b'"%b"' % (b"x" * 300))
        os.utime(entry(tmp_path, str(number) * 64), (number, number))
    (tmp_path / "project/.sage/cache/notes.txt").write_text("mine")

    store.evict()

    left = sorted(path.name[0] for path in entry(tmp_path).parent.iterdir() if len(path.name) == 64)
    assert left == sorted(left)
    assert left[-1] == "5"
    assert "0" not in left
    assert sum(entry(tmp_path, name * 64).stat().st_size for name in left) <= 3000
    assert (tmp_path / "project/.sage/cache/notes.txt").exists()
    store.evict()  # nothing was added since: nothing is looked at


def test_a_process_that_writes_much_makes_room_meanwhile(made, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EVICT_EVERY", 1000)
    store = made(size_max=2500)

    for number in range(8):
        store.put(str(number) * 64, b'"%b"' % (b"x" * 300))

    assert stats(tmp_path / "project").size <= 3500


def test_nobody_makes_room_while_another_does(made, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0)
    store = made(size_max=1000)
    store.put(ONE, b"1")
    store.put(TWO, b'"%b"' % (b"x" * 200))

    with Folder.given(entry(tmp_path).parent) as folder, acquire(folder, module.LOCK, wait_s=1):
        store.evict()
        with pytest.raises(Locked):
            clear(tmp_path / "project", None)

    assert stats(tmp_path / "project").entries == 2


def test_what_is_larger_than_the_cache_is_not_kept(made):
    store = made(size_max=1000)

    assert not store.put(ONE, b'"%b"' % (b"x" * 2000))
    assert store.get(ONE, 100) is None


def test_the_mark_of_a_whole_run_is_for_a_template_as_it_is(made, tmp_path):
    template = tmp_path / "t.yaml"
    template.write_text("a: 1")
    assert not is_whole(tmp_path / "project", template)

    made().mark_whole(*hint_of(template))

    assert is_whole(tmp_path / "project", template)
    template.write_text("a: 22")
    assert not is_whole(tmp_path / "project", template)
    assert not is_whole(tmp_path / "project", tmp_path / "nothing")


def test_stats_count_what_is_there(made, tmp_path):
    store = made()
    assert stats(tmp_path / "project").entries == 0
    store.put(ONE, b"1")

    found = stats(tmp_path / "project", now=lambda: entry(tmp_path).stat().st_mtime + 7)

    assert (1, entry(tmp_path).stat().st_size, 7.0, 7.0) == (found.entries, found.size, found.oldest_s, found.newest_s)


def test_where_there_is_no_cache_there_is_nothing_to_show_or_clear(tmp_path):
    assert stats(tmp_path).entries == 0
    assert clear(tmp_path, None) == 0
