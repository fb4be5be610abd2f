"""One holder at a time, a bounded wait, and the holder named."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest

from sage_sandbox.disk import locking
from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.locking import acquire, is_held
from sage_sandbox.errors import Locked, StateUnwritable

HOLDER = """
import sys
from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.locking import acquire
lock = acquire(Folder.open(sys.argv[1]), "lock", wait_s=0, who="the holder")
print("held", flush=True)
sys.stdin.read()
"""
UNSUPPORTED = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL]


class Time:
    """A clock that goes on only where somebody sleeps; ``meanwhile`` happens during the first sleep."""

    def __init__(self, meanwhile=lambda: None):
        self.now = 1000.0
        self.slept = []
        self.meanwhile = meanwhile

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept.append(seconds)
        if len(self.slept) == 1:
            self.meanwhile()


@pytest.fixture
def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"  # type: ignore[union-attr]
    yield process
    process.kill()
    process.communicate()


def fail(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


class TestHolding:
    def test_a_second_one_is_locked_out_until_it_is_released(self, folder):
        lock = acquire(folder, "lock", wait_s=0)
        with pytest.raises(Locked):
            acquire(folder, "lock", wait_s=0)

        lock.release()

        acquire(folder, "lock", wait_s=0).release()

    def test_it_is_held_as_long_as_the_block(self, folder):
        with acquire(folder, "lock", wait_s=0):
            assert is_held(folder, "lock")
        assert not is_held(folder, "lock")

    def test_locks_of_other_names_do_not_matter(self, folder):
        with acquire(folder, "a", wait_s=0), acquire(folder, "b", wait_s=0):
            assert is_held(folder, "a")
            assert is_held(folder, "b")

    def test_the_file_stays(self, folder):
        acquire(folder, "lock", wait_s=0).release()

        assert ["lock"] == folder.names()
        assert Path(folder.path, "lock").stat().st_mode & 0o777 == 0o600

    def test_releasing_twice_releases_once(self, folder):
        lock = acquire(folder, "lock", wait_s=0)
        lock.release()
        with acquire(folder, "lock", wait_s=0):
            lock.release()

            assert is_held(folder, "lock")

    def test_releasing_lets_go_even_where_a_forked_child_has_it_open(self, folder):
        lock = acquire(folder, "lock", wait_s=0)
        child = os.dup(lock._fd)

        lock.release()

        assert not is_held(folder, "lock")
        os.close(child)

    def test_no_other_program_inherits_it(self, folder):
        with acquire(folder, "lock", wait_s=0) as lock:
            assert not os.get_inheritable(lock._fd)

    def test_it_is_the_lock_that_filelock_takes(self, folder):
        theirs = filelock.FileLock(Path(folder.path, "lock"), preserve_lock_file=True)
        with acquire(folder, "lock", wait_s=0), pytest.raises(filelock.Timeout):
            theirs.acquire(timeout=0)
        with theirs, pytest.raises(Locked):
            acquire(folder, "lock", wait_s=0)

    def test_what_a_killed_process_held_is_free(self, folder, holder):
        with pytest.raises(Locked):
            acquire(folder, "lock", wait_s=0)

        holder.kill()
        holder.wait()

        acquire(folder, "lock", wait_s=0).release()

    def test_a_stopped_holder_keeps_it_and_is_named(self, folder, holder):
        holder.send_signal(signal.SIGSTOP)
        time = Time()

        with pytest.raises(Locked, match=rf"\(the holder, pid {holder.pid} since "):
            acquire(folder, "lock", wait_s=5, clock=time.clock, sleep=time.sleep)

    def test_two_never_hold_it_at_once(self, folder):
        inside, most = [], []

        def work():
            for _ in range(5):
                with acquire(folder, "lock", wait_s=30):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [1] * 20 == most


class TestWaiting:
    @pytest.mark.parametrize("wait_s", [0, 0.001, 1, 2.5])
    def test_the_wait_has_an_end(self, folder, wait_s):
        time = Time()
        with acquire(folder, "lock", wait_s=0), pytest.raises(Locked):
            acquire(folder, "lock", wait_s=wait_s, clock=time.clock, sleep=time.sleep)

        assert wait_s == pytest.approx(sum(time.slept))
        assert all(0 < slept <= locking.POLL_S for slept in time.slept)

    def test_it_is_taken_as_soon_as_it_is_free(self, folder):
        held = acquire(folder, "lock", wait_s=0)
        time = Time(held.release)

        acquire(folder, "lock", wait_s=1, clock=time.clock, sleep=time.sleep).release()

        assert [locking.POLL_S] == time.slept

    def test_a_look_of_somebody_else_is_waited_for(self, folder):
        looking = folder.open_file("lock", os.O_RDONLY | os.O_CREAT)
        fcntl.flock(looking, fcntl.LOCK_SH)
        time = Time(lambda: os.close(looking))

        acquire(folder, "lock", wait_s=1, clock=time.clock, sleep=time.sleep).release()

        assert 1 == len(time.slept)

    @pytest.mark.parametrize("meanwhile", [lambda path: None, Path.touch], ids=["removed", "replaced"])
    def test_a_file_that_lost_its_name_is_not_the_lock(self, folder, monkeypatch, meanwhile):
        path, lock_descriptor = Path(folder.path, "lock"), filelock.lock_descriptor

        def lose(fd, *, blocking):
            monkeypatch.undo()
            path.unlink()
            meanwhile(path)
            return lock_descriptor(fd, blocking=blocking)

        monkeypatch.setattr(filelock, "lock_descriptor", lose)
        time = Time()
        with acquire(folder, "lock", wait_s=1, clock=time.clock, sleep=time.sleep) as lock:
            assert os.path.samestat(path.stat(), os.fstat(lock._fd))
            assert is_held(folder, "lock")


class TestTheHolder:
    def test_it_says_who_it_is(self, folder):
        with acquire(folder, "lock", wait_s=0, who="run of report"), pytest.raises(Locked) as caught:
            acquire(folder, "lock", wait_s=0)

        pattern = rf"run of report, pid {os.getpid()} since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
        assert re.fullmatch(pattern, caught.value.owner)
        assert caught.value.message == f"another process runs this ({caught.value.owner})"

    def test_without_a_word_it_is_a_pid_and_a_time(self, folder):
        with acquire(folder, "lock", wait_s=0):
            said = folder.read("lock", 100).decode()

        assert re.fullmatch(rf"pid {os.getpid()} since \S+Z\n", said)

    def test_nothing_is_left_of_a_longer_name(self, folder):
        acquire(folder, "lock", wait_s=0, who="x" * 500).release()
        acquire(folder, "lock", wait_s=0).release()

        assert b"x" not in folder.read("lock", 1000)

    @pytest.mark.parametrize(
        ("said", "owner"),
        [
            (b"\x1b[2Jpid 1\nmore", "\\x1b[2Jpid 1"),
            (b"\xff", "�"),
            (b"y" * 10_000, "y" * 199 + "…"),
            (b"", ""),
        ],
        ids=["control characters", "not UTF-8", "long", "nothing"],
    )
    def test_what_it_says_is_made_fit_to_be_shown(self, folder, said, owner):
        with acquire(folder, "lock", wait_s=0):
            Path(folder.path, "lock").write_bytes(said)
            with pytest.raises(Locked) as caught:
                acquire(folder, "lock", wait_s=0)

        assert caught.value.owner == owner
        assert caught.value.message == f"another process runs this ({owner})" if owner else "another process runs this"

    def test_a_full_disk_keeps_nobody_from_holding_it(self, folder, monkeypatch):
        monkeypatch.setattr(os, "pwrite", fail(errno.ENOSPC))

        with acquire(folder, "lock", wait_s=0):
            assert is_held(folder, "lock")

    def test_a_holder_that_cannot_be_read_has_no_name(self, folder, monkeypatch):
        monkeypatch.setattr(os, "pread", fail(errno.EIO))

        with acquire(folder, "lock", wait_s=0), pytest.raises(Locked) as caught:
            acquire(folder, "lock", wait_s=0)

        assert caught.value.owner == ""


class TestLooking:
    def test_no_file_is_no_lock(self, folder):
        assert not is_held(folder, "lock")
        assert folder.names() == []

    def test_two_that_look_do_not_see_each_other(self, folder):
        looking = folder.open_file("lock", os.O_RDONLY | os.O_CREAT)
        fcntl.flock(looking, fcntl.LOCK_SH)

        assert not is_held(folder, "lock")
        os.close(looking)

    @pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
    def test_a_network_file_system_may_say_it_in_another_way(self, folder, monkeypatch, number):
        acquire(folder, "lock", wait_s=0).release()
        monkeypatch.setattr(fcntl, "flock", fail(number))

        assert is_held(folder, "lock")

    def test_other_errors_stay_what_they_are(self, folder, monkeypatch):
        acquire(folder, "lock", wait_s=0).release()
        monkeypatch.setattr(fcntl, "flock", fail(errno.EIO))

        with pytest.raises(OSError, match="Input/output"):
            is_held(folder, "lock")


class TestFaults:
    @pytest.mark.parametrize("number", UNSUPPORTED)
    def test_a_file_system_without_locks_is_said(self, folder, monkeypatch, number):
        monkeypatch.setattr(fcntl, "flock", fail(number))
        expected = f"the file system of {folder.path}/lock has no locks"

        with pytest.raises(StateUnwritable, match=expected) as caught:
            acquire(folder, "lock", wait_s=0)
        with pytest.raises(StateUnwritable, match=expected):
            is_held(folder, "lock")

        assert caught.value.path == f"{folder.path}/lock"
        assert "--no-state" in caught.value.hint

    @pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EMFILE])
    def test_a_file_that_cannot_be_made_is_said(self, folder, monkeypatch, number):
        monkeypatch.setattr(os, "open", fail(number))

        with pytest.raises(StateUnwritable, match=f"{folder.path}/lock: {os.strerror(number).lower()}"):
            acquire(folder, "lock", wait_s=0)

    def test_an_error_while_locking_leaves_no_lock(self, folder, monkeypatch):
        monkeypatch.setattr(filelock, "lock_descriptor", fail(errno.EIO))

        with pytest.raises(StateUnwritable, match="input/output error"):
            acquire(folder, "lock", wait_s=0)

        assert not is_held(folder, "lock")

    def test_an_interruption_while_locking_leaves_no_lock(self, folder, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(locking, "_sign", interrupt)
        with pytest.raises(KeyboardInterrupt):
            acquire(folder, "lock", wait_s=0)

        assert not is_held(folder, "lock")

    @pytest.mark.parametrize("act", [lambda folder: acquire(folder, "lock", wait_s=0), lambda f: is_held(f, "lock")])
    def test_a_link_in_its_place_is_refused(self, folder, act):
        Path(folder.path, "lock").symlink_to("elsewhere")

        with pytest.raises(Untrusted, match="is a symbolic link"):
            act(folder)
        assert not Path(folder.path, "elsewhere").exists()


def test_looking_does_not_load_the_library() -> None:
    code = "import sys, sage_sandbox.disk.locking, sage_sandbox.disk.places; print('filelock' in sys.modules)"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said == "False\n"


def test_the_folder_may_be_closed_while_the_lock_is_held(folder):
    with Folder.open(folder.path) as other:
        lock = acquire(other, "lock", wait_s=0)

    assert is_held(folder, "lock")
    lock.release()
