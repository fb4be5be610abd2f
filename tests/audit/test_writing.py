"""What is written is whole, in order and not lost, whoever else writes, is killed, or fills the disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

import sage_sandbox
from sage_sandbox.audit import checking, files, log
from sage_sandbox.audit.chain import Position, draft, read, seal
from sage_sandbox.audit.files import find_head
from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.marks import Mark
from sage_sandbox.errors import StateCorrupted, StateUnwritable

KEY = bytes(range(32))
PACKAGE = str(Path(sage_sandbox.__file__).parents[1])

WRITER = """
import sys; sys.path.insert(0, {package!r})
from sage_sandbox.audit.log import AuditLog
from sage_sandbox.disk.files import Folder
with Folder.open({user!r}) as user:
    log = AuditLog.open(Folder.open({logs!r}), user, bytes(range(32)))
    {act}
    log.close()
"""


def start(place, act):
    code = WRITER.format(package=PACKAGE, user=place.user.path, logs=place.folder.path, act=act)
    return subprocess.Popen([sys.executable, "-P", "-c", code], stderr=subprocess.PIPE, text=True)


def texts(place):
    return [entry.text for entry in checking.entries(place.folder)]


def kinds(place):
    return [entry.kind for entry in checking.entries(place.folder)]


def verdict(place):
    return checking.verify(place.folder, place.user, KEY)


def test_entries_follow_each_other(place):
    place.filled(3)

    assert ["entry 1", "entry 2", "entry 3"] == texts(place)
    assert (3, (), False) == (verdict(place).entries, verdict(place).problems, verdict(place).torn)
    assert place.path.stat().st_mode & 0o777 == 0o600


def test_a_durable_entry_moves_the_head(place):
    opened = place.open()
    opened.write("state", "a")
    before = find_head(place.user)
    opened.write("start", "b", durable=True)
    lines = place.path.read_bytes().splitlines(keepends=True)

    assert before is None
    last = read(lines[1], KEY)
    assert last is not None
    assert Position(2, last.mac, place.path.stat().st_size) == find_head(place.user)


def test_two_that_write_by_turns_make_one_chain(place):
    one, other = place.open(), place.open()
    for number in range(4):
        (one, other)[number % 2].write("state", f"{number}")

    assert ["0", "1", "2", "3"] == texts(place)
    assert () == verdict(place).problems


def test_thirty_processes_make_one_chain(place):
    act = "for number in range(50): log.write('state', f'{number}', durable=number % 10 == 0)"
    writers = [start(place, act) for _ in range(30)]
    errors = [writer.communicate(timeout=100)[1] for writer in writers]

    assert [""] * 30 == errors
    assert 1500 == len(place.path.read_bytes().splitlines())
    assert (1500, (), False) == (verdict(place).entries, verdict(place).problems, verdict(place).torn)


def test_a_torn_line_is_cut_off_wherever_it_was_torn(place):
    whole = place.filled(2)
    lines = whole.splitlines(keepends=True)
    opened = place.open()
    opened.write("state", "the last one")
    torn = place.path.read_bytes()[len(whole) :]
    opened.close()
    for length in range(1, len(torn)):
        place.path.write_bytes(whole + torn[:length])
        Path(place.user.path, "audit").unlink()  # no head: it would know of the line
        assert verdict(place).torn
        assert () == verdict(place).problems
        place.open().write("state", "after")
        assert ["state", "state", "healed", "state"] == kinds(place), length
        assert (4, ()) == (verdict(place).entries, verdict(place).problems)
    assert whole.startswith(lines[0])


def test_only_a_torn_line_is_a_log_without_entries(place):
    place.path.write_bytes(b'{"seq":1')
    place.path.chmod(0o600)
    place.open().write("state", "a")

    assert ["healed", "state"] == kinds(place)
    assert () == verdict(place).problems


def test_a_full_disk_leaves_no_half_line(place):
    act = (
        "import resource as r; most = r.getrlimit(r.RLIMIT_FSIZE)[1]; log.write('state', 'a')\n"
        "    r.setrlimit(r.RLIMIT_FSIZE, (1000, most))\n"
        "    from sage_sandbox.errors import StateUnwritable\n"
        "    try: log.write('state', 'b' * 2000)\n"
        "    except StateUnwritable: log.write('state', 'c')\n"
        "    r.setrlimit(r.RLIMIT_FSIZE, (most, most))"
    )
    writer = start(place, act)

    assert "" == writer.communicate(timeout=30)[1]
    assert ["a", "c"] == texts(place)
    assert () == verdict(place).problems


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_write_that_stops_half_way_is_taken_back(place, monkeypatch, error):
    opened = place.open()
    opened.write("state", "a")
    write = os.write
    parts: list[bytes] = []

    def half(fd, data):
        if parts:
            raise error
        parts.append(data)
        return write(fd, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises((StateUnwritable, KeyboardInterrupt)):
            opened.write("state", "b")

    assert place.path.read_bytes().endswith(b"\n")
    assert ["a"] == texts(place)
    opened.write("state", "c")
    assert () == verdict(place).problems


def test_after_a_failed_fsync_the_log_is_given_up(place, monkeypatch):
    opened = place.open()
    opened.write("start", "a", durable=True)
    head = find_head(place.user)

    def fail(fd):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StateUnwritable, match="input/output error"):
            opened.write("start", "b", durable=True)
    with pytest.raises(StateUnwritable, match="input/output error"):
        opened.write("start", "c", durable=True)
    opened.reduce("stop", "d")
    opened.close()

    assert head == find_head(place.user)
    assert "d" not in texts(place)


def test_a_lock_that_is_kept_is_an_error_in_time(place, monkeypatch):
    monkeypatch.setattr(log, "LOCK_WAIT_S", 0.05)
    opened = place.open()
    with (
        acquire(place.folder, "audit.lock", wait_s=1, who="somebody"),
        pytest.raises(StateUnwritable, match="somebody"),
    ):
        opened.write("state", "a")


def test_what_reduces_never_waits_and_is_written_later(place):
    opened = place.open()
    with acquire(place.folder, "audit.lock", wait_s=1):
        opened.reduce("cancel", "first")
        assert [] == texts(place)
    opened.write("state", "second")

    assert ["first", "second"] == texts(place)


def test_what_reduces_is_written_at_the_end_at_the_latest(place):
    opened = place.open()
    with acquire(place.folder, "audit.lock", wait_s=1):
        opened.reduce("cancel", "first")
    opened.close()
    opened.close()

    assert ["first"] == texts(place)
    assert checking.gone(place.user) == checking.Verdict(problems=((0, "the log is gone: it had 1 entries"),))


def test_what_reduces_comes_at_once_where_it_can(place):
    place.open().reduce("violation", "now")

    assert ["now"] == texts(place)


def test_what_reduces_while_another_thread_writes_is_not_lost(place, monkeypatch):
    opened = place.open()
    put = opened._put

    def interrupted(data):
        put(data)
        monkeypatch.setattr(opened, "_put", put)
        opened.reduce("cancel", "meanwhile")

    monkeypatch.setattr(opened, "_put", interrupted)
    opened.write("state", "a")
    opened.write("state", "b")

    assert ["a", "meanwhile", "b"] == texts(place)


def test_what_reduces_never_fails(place, monkeypatch):
    opened = place.open()

    def full(fd, data):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        opened.reduce("stop", "a")
    opened.close()

    assert ["a"] == texts(place)


def test_the_end_of_a_run_cannot_be_cut_off(place):
    opened = place.open()
    opened.write("start", "a", durable=True)
    opened.write("state", "b")
    opened.reduce("stop", "c")
    opened.close()
    place.path.write_bytes(place.path.read_bytes().splitlines(keepends=True)[0])

    assert ((0, "2 entries are missing at the end"),) == verdict(place).problems


def test_an_ordinary_entry_does_not_move_the_head_at_the_end(place):
    opened = place.open()
    opened.write("start", "a", durable=True)
    head = find_head(place.user)
    opened.write("state", "b")
    opened.close()

    assert head == find_head(place.user)


@pytest.mark.parametrize("known", ["the head", "this process"])
def test_what_was_cut_off_stays_missing(place, known):
    opened = place.open()
    for number in range(1, 6):
        opened.write("state", f"{number}", durable=known == "the head")
    place.path.write_bytes(b"".join(place.path.read_bytes().splitlines(keepends=True)[:3]))
    (opened if known == "this process" else place.open()).write("state", "after", durable=True)

    assert ((4, "is entry 6: 2 before it are missing"),) == verdict(place).problems


def test_a_log_that_was_removed_stays_missing(place):
    opened = place.open()
    opened.write("start", "a", durable=True)
    place.path.unlink()
    opened.write("state", "b")

    assert ["b"] == texts(place)
    assert ((1, "is entry 2: 1 before it are missing"),) == verdict(place).problems


def test_opening_a_large_log_reads_little_of_it(place, monkeypatch):
    lines, previous = [], ""
    for number in range(1, 1_751):
        entry = replace(draft("2026-01-31T09:00:00.000000Z", "state", "t", data={"a": "b" * 61_000}), seq=number)
        raw, previous = seal(replace(entry, previous=previous), KEY)
        lines.append(raw)
    place.path.write_bytes(b"".join(lines))
    place.path.chmod(0o600)
    with Mark.open(place.user, "audit", make=True) as mark:
        mark.write(("1750", previous, str(place.path.stat().st_size)))
    count, pread = [], os.pread

    def counted(fd, most, offset):
        data = pread(fd, most, offset)
        count.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    opened = place.open()
    opened.write("state", "after", durable=True)
    opened.prune(timedelta(days=30))

    assert place.path.stat().st_size > 100 << 20
    assert sum(count) < 512 << 10


def test_an_append_reads_nothing_if_nobody_else_wrote(place, monkeypatch):
    opened = place.open()
    opened.write("state", "a")
    offsets, pread = [], os.pread

    def noted(fd, most, offset):
        offsets.append((most, offset))
        return pread(fd, most, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", noted)
        opened.write("state", "b")

    assert [] == offsets


def test_a_new_log_is_made_durable_with_its_name(place, monkeypatch):
    synced, sync = [], Folder.sync

    def noted(folder):
        synced.append(folder.path)
        sync(folder)

    monkeypatch.setattr(Folder, "sync", noted)
    place.open()
    first = synced.count(place.folder.path)
    place.open()

    assert (1, 1) == (first, synced.count(place.folder.path))


def test_a_head_that_is_none_of_ours_is_named(place):
    with Mark.open(place.user, "audit", make=True) as mark:
        mark.write(("twelve", "x", "1"))

    with pytest.raises(StateCorrupted, match="user/audit is damaged"):
        place.open()


def test_a_log_begun_anew_says_where_the_old_one_is(place):
    place.filled(3)
    new = bytes(32)
    opened = place.open()
    opened.begin_anew(new, "audit-1.jsonl", "rekeyed")
    opened.write("state", "after", durable=True)

    (first, _) = checking.entries(place.folder)
    assert "rekeyed; the entries before are in aside/audit-1.jsonl" == first.text
    assert () == checking.verify(place.folder, place.user, new).problems
    assert 3 == len(Path(place.folder.path, "aside", "audit-1.jsonl").read_bytes().splitlines())


def test_a_log_that_cannot_be_begun_anew_stays(place, monkeypatch):
    place.filled(3)
    opened = place.open()

    def full(folder, name, data):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_new", full)
        with pytest.raises(StateUnwritable, match="no space left"):
            opened.begin_anew(bytes(32), "audit-1.jsonl", "rekeyed")

    assert (3, ()) == (verdict(place).entries, verdict(place).problems)


@pytest.mark.parametrize("there", ["nothing", "another project's"])
def test_a_log_without_entries_of_its_own_can_be_begun_anew(place, there):
    if there != "nothing":
        place.filled(3, key=bytes(32))
        Path(place.user.path, "audit").unlink()  # the folder was moved: the user knows no head of it here
    opened = place.open()
    opened.begin_anew(KEY, "audit-1.jsonl", "rekeyed")
    opened.close()
    place.open().write("start", "the next run", durable=True)

    assert ["pruned", "start"] == kinds(place)
    assert () == verdict(place).problems


class Killed(BaseException):
    """Nothing after it happens."""


@pytest.mark.parametrize("step", range(1, 9))
def test_beginning_anew_may_be_killed_at_any_step(place, monkeypatch, step):
    place.filled(3)
    opened = place.open()
    steps = []

    def counting(call):
        def counted(*args, **kwargs):
            steps.append(call)
            if len(steps) == step:
                raise Killed
            return call(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "rename", counting(Folder.rename))
        patch.setattr(Folder, "sync", counting(Folder.sync))
        patch.setattr(log, "write_head", counting(files.write_head))
        patch.setattr(Folder, "write_new", counting(Folder.write_new))
        with pytest.raises(Killed):
            opened.begin_anew(bytes(32), "audit-1.jsonl", "rekeyed")

    again = place.open()
    again.write("start", "the next run", durable=True)
    assert "the next run" in texts(place)
