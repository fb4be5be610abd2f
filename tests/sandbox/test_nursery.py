"""Our end of a zygote and its children: frames from a stream nobody trusts, and descriptors that do not leak."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import NotGranted, SandboxUnavailable
from sage_sandbox.sandbox import nursery, steps
from sage_sandbox.sandbox.inside import wire
from sage_sandbox.sandbox.nursery import BrokenProtocol, Child, ChildGone, Frames, Zygote

SOON = 20.0


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    yield Frames(ours), theirs
    ours.close()
    theirs.close()


@pytest.fixture
def child(ends):
    frames, theirs = ends
    return Child(1, frames, -1, -1, -1), theirs


@pytest.fixture
def deaf(monkeypatch, who, tmp_path):
    """Make a zygote whose process is anything that reads nothing; it answers as told."""
    ends, sockets, processes = [], [], []

    def make(*answers, half=False, gone=False):
        def start(self, control):
            sockets.append(self._frames.sock)
            mine = control.dup()
            ends.append(mine)
            for answer in answers:
                mine.sendall(wire.LENGTH.pack(len(answer)) + answer)
            if half:
                mine.sendall(b"\0")
            elif gone:
                mine.close()
                control.shutdown(socket.SHUT_RDWR)
            elif not answers:
                mine.shutdown(socket.SHUT_WR)
            processes.append(subprocess.Popen(["true"]))
            return processes[-1]

        monkeypatch.setattr(Zygote, "_start", start)
        return Zygote(steps.foundation(who, str(tmp_path)))

    yield make, ends
    for end in (*ends, *sockets):
        end.close()
    for process in processes:
        process.wait()


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(1, 50))
def test_frames_come_out_whole_however_they_are_cut(bodies, piece):
    data = b"".join(wire.LENGTH.pack(len(body)) + body for body in bodies)
    ours, theirs = socket.socketpair()
    frames, taken = Frames(ours), []
    with ours, theirs:
        for start in range(0, len(data), piece):
            theirs.sendall(data[start : start + piece])
            frames.fill()
            while frame := frames.take():
                taken.append(b"".join(frame))

    assert bodies == taken


@pytest.mark.parametrize("length", [0, nursery.FRAME_MAX + 1, 0xFFFF_FFFF])
def test_a_frame_of_impossible_length_breaks_the_protocol(length, ends):
    frames, theirs = ends
    theirs.sendall(wire.LENGTH.pack(length))
    frames.fill()

    with pytest.raises(BrokenProtocol):
        frames.take()


def test_waiting_ends_with_the_stream_or_the_deadline(ends):
    frames, theirs = ends

    with pytest.raises(TimeoutError):
        frames.wait(time.monotonic() - 1)
    theirs.sendall(b"\0\0\0\2V1")
    assert (b"V", b"1") == frames.wait(time.monotonic() + SOON)
    theirs.close()
    with pytest.raises(ChildGone):
        frames.wait(time.monotonic() + SOON)


def test_descriptors_are_taken_only_where_they_are_expected(ends):
    frames, theirs = ends
    before = set(os.listdir("/proc/self/fd"))
    for descriptors in (False, True):
        theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [theirs.fileno()]))])
        frames.fill(descriptors=descriptors)
        assert int(descriptors) == len(set(os.listdir("/proc/self/fd")) - before) == len(frames.fds)
    os.close(frames.fds[0])


def test_other_ancillary_data_holds_no_descriptors():
    assert [] == nursery._passed([(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, b"\1\0\0\0")])
    assert [7] == nursery._passed([(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [7]).tobytes() + b"\1")])


def test_a_child_is_ready_when_it_says_so(child):
    made, theirs = child
    work = os.open("/", os.O_PATH)
    wire.send_descriptor(theirs, wire.WORK_FOLDER, b"", work)
    wire.send(theirs, wire.READY, b'{"proc": true}')
    made.wait_ready()

    assert {"proc": True} == made.capabilities
    assert made.work_fd >= 0
    made.close()
    os.close(work)
    assert (-1, -1) == (made.work_fd, made.pidfd)


@pytest.mark.parametrize("kind", [wire.VALUE, wire.WORK_FOLDER, b"?"])
def test_a_child_that_says_something_else_breaks_the_protocol(kind, child):
    made, theirs = child
    wire.send(theirs, kind)

    with pytest.raises(BrokenProtocol):
        made.wait_ready()


def test_a_refused_step_is_named(child):
    made, theirs = child
    wire.send(theirs, wire.REFUSED, json.dumps(["Pivot", 1, "pivot_root: no"]).encode())

    with pytest.raises(SandboxUnavailable, match="the sandbox cannot be had: step Pivot: pivot_root: no") as caught:
        made.wait_ready()
    assert "Pivot" == caught.value.feature


@pytest.mark.parametrize("code", sorted(nursery._VANISHED))
def test_a_granted_path_that_changed_is_not_granted(code, child):
    made, theirs = child
    wire.send(theirs, wire.REFUSED, json.dumps(["Attach", code, "openat2: no"]).encode())

    with pytest.raises(NotGranted, match="a granted path changed: openat2: no"):
        made.wait_ready()


def test_killing_who_is_dead_or_was_never_born_does_nothing(child):
    made, _theirs = child
    made.kill()
    process = subprocess.Popen(["true"])
    unborn = made.host_pid()
    made.pidfd = os.pidfd_open(process.pid)
    process.wait()
    made.kill()

    assert (-1, -1) == (unborn, made.host_pid())
    made.close()


def test_a_childs_pid_is_the_one_we_see(child, monkeypatch, tmp_path):
    made, _theirs = child
    made.pidfd = os.pidfd_open(os.getpid())

    assert os.getpid() == made.host_pid()
    monkeypatch.setattr(nursery.Path, "read_text", lambda *_args, **_kwargs: "pos:\t0\nflags:\t02\n")
    assert -1 == made.host_pid()
    made.close()


def test_a_zygote_that_ended_before_it_was_told_anything_did_not_start(deaf):
    make, _ends = deaf

    with pytest.raises(SandboxUnavailable, match="the sandbox's zygote did not start"):
        make(gone=True)


def test_a_zygote_that_does_not_start_means_that_no_sandbox_can_be_had(deaf):
    make, _ends = deaf

    with pytest.raises(SandboxUnavailable, match="the sandbox's zygote did not start"):
        make()


def test_a_zygote_that_is_silent_for_too_long_did_not_start(deaf, monkeypatch):
    make, _ends = deaf
    monkeypatch.setattr(nursery, "START_S", 0.01)

    with pytest.raises(SandboxUnavailable, match="did not start"):
        make(half=True)


def test_a_foundation_that_is_refused_is_named(deaf):
    make, _ends = deaf

    with pytest.raises(SandboxUnavailable, match="step foundation: mount: no"):
        make(wire.REFUSED + b'["foundation", 1, "mount: no"]')


def test_an_owner_that_cannot_be_mapped_is_named(deaf):
    make, ends = deaf
    zygote = make(wire.READY + b"{}")
    wire.send(ends[0], wire.REFUSED, b'["idmap", 1, "unshare: no"]')

    with pytest.raises(SandboxUnavailable, match="step idmap: unshare: no"):
        zygote.map_owner((1, 2))
    assert (1, 2) not in zygote.mapped_owners
    zygote.close()


def test_an_owner_that_was_mapped_is_remembered(deaf):
    make, ends = deaf
    zygote = make(wire.READY + b"{}")
    wire.send(ends[0], wire.READY, b"{}")
    zygote.map_owner((1, 2))

    assert (1, 2) in zygote.mapped_owners
    zygote.close()


def test_who_waits_for_a_zygote_that_says_nothing_gives_up(deaf, monkeypatch):
    make, _ends = deaf
    zygote = make(wire.READY + b"{}")
    born = zygote.spawn(None)
    monkeypatch.setattr(nursery, "START_S", 0.0)

    with pytest.raises(ChildGone):
        zygote.wait_born(born)
    monkeypatch.setattr(nursery, "START_S", SOON)
    zygote.close()
    assert {} == zygote.children


def test_a_zygote_that_died_is_noticed(deaf):
    make, ends = deaf
    zygote = make(wire.READY + b"{}")
    born = zygote.spawn(None)
    ends[0].shutdown(socket.SHUT_RDWR)

    with pytest.raises(ChildGone):
        zygote.wait_gone(born)
    zygote.close()


def test_a_zygote_is_checked_without_waiting(deaf):
    make, ends = deaf
    zygote = make(wire.READY + b"{}")
    zygote.check()
    ends[0].shutdown(socket.SHUT_RDWR)

    with pytest.raises(ChildGone):
        zygote.check()
    zygote.close()


def test_a_zygote_that_died_with_orders_unread_is_noticed(deaf):
    make, ends = deaf
    zygote = make(wire.READY + b"{}")
    born = zygote.spawn(None)
    ends[0].close()
    try:
        with pytest.raises(ChildGone):
            zygote.wait_gone(born)
    finally:
        zygote.close()


def test_an_end_is_waited_for_no_longer_than_asked():
    process = nursery._Process(["sleep", "1000"])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    process.kill()

    assert -9 == process.wait(20) == process.wait(20)


def test_a_zygote_that_does_not_end_is_killed(deaf, monkeypatch):
    make, _ends = deaf
    zygote = make(wire.READY + b"{}")
    zygote._process.wait()
    zygote._process = subprocess.Popen(["sleep", "1000"])
    monkeypatch.setattr(nursery, "START_S", 0.0)
    zygote.close()

    assert -9 == zygote._process.returncode
