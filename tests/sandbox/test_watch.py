"""Over one running operation: streams, clock, limits, cancelling, and a relay."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="arg-type,union-attr"

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import replace

import pytest

from sage_sandbox.policy import STREAM_KEPT, Limits, MiB, Policy
from sage_sandbox.sandbox import cgroup
from sage_sandbox.sandbox.calling import Desk, ToolCalls
from sage_sandbox.sandbox.cgroup import GroupUsage
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.nursery import Child, Frames, Gone
from sage_sandbox.sandbox.supervisor import Supervisor
from sage_sandbox.sandbox.watch import Relay, Tail, Watch, _is_full

FOREVER = "import time\ndef run():\n    while True: time.sleep(1000)\n"


@pytest.fixture
def python(shared):
    def run(code, **more):
        given = {name: more.pop(name) for name in ("cancel_fd",) if name in more}
        return shared.run(Job("python", code=code, project=shared.project, **more), **given)

    return run


@pytest.fixture
def shell(shared):
    def run(script, *, limits=Limits(), **given):
        return shared.run(Job("command", argv=("sh", "-c", script), project=shared.project, limits=limits), **given)

    return run


@pytest.fixture(params=["cgroup", "sampled"])
def either(request, _namespaces, project, monkeypatch):
    """A supervisor that counts memory and processor time each way."""
    if request.param == "sampled":
        monkeypatch.setattr(cgroup, "find", lambda: None)
    made = Supervisor(str(project))
    made.prepare()
    if request.param == "cgroup" and made._home is None:
        made.close()
        pytest.skip("no cgroup with memory and pids can be made here")
    yield made
    made.close()


class Sinks:
    """Where a relay's output goes: files, or a pipe without a reader for those that are ``broken``."""

    def __init__(self, folder, broken=()):
        self.paths = (folder / "stdout", folder / "stderr")
        self.fds = tuple(self._open(path, number in broken) for number, path in enumerate(self.paths, 1))

    def _open(self, path, broken):
        if not broken:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        read, write = os.pipe()
        os.close(read)
        return write

    @property
    def streams(self):
        return {number: path.read_bytes() for number, path in enumerate(self.paths, 1)}

    def close(self):
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def relay(tmp_path):
    """Make a relay, and what it fills."""
    made, sources = [], []

    def make(given, *, broken=(), terminal=-1, controller=-1):
        made.append(Sinks(tmp_path, broken))
        if isinstance(given, bytes):
            given = source(given)
            sources.append(given)
        return Relay(given, made[-1].fds, lambda _number, data: data, terminal, controller), made[-1]

    yield make
    for sinks in made:
        sinks.close()
    for fd in sources:
        os.close(fd)


def source(data):
    """A pipe that holds this and then ends."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


@pytest.mark.parametrize("whole", [False, True])
def test_a_tail_keeps_the_end_or_everything(whole):
    tail = Tail(whole=whole)
    data = bytes(range(256)) * 1024
    for start in range(0, len(data), 1000):
        tail.add(data[start : start + 1000])

    assert len(data) == tail.total
    assert data[-STREAM_KEPT:] == tail.kept
    assert (data == tail.all) == whole


def test_what_an_operation_printed_is_kept(python):
    outcome = python("import sys\ndef run():\n    print('out')\n    print('err', file=sys.stderr)\n")

    assert (b"out\n", b"err\n") == (outcome.stdout, outcome.stderr)


def test_an_operation_out_of_time_is_stopped(python):
    outcome = python(FOREVER, limits=Limits(timeout_s=0.2))

    assert ("timeout", "timeout 200 ms exceeded") == (outcome.reason, outcome.error)


def test_an_operation_is_cancelled_by_a_descriptor(python):
    outcome = python(FOREVER, cancel_fd=source(b"x"))

    assert "cancelled" == outcome.reason


def test_an_operation_that_uses_too_much_processor_time_is_stopped(either):
    outcome = either.run(
        Job("python", code="def run():\n    while True: pass\n", project=either.project, limits=Limits(cpu_s=0.2))
    )

    assert ("limit", "cpu limit 200 ms exceeded") == (outcome.reason, outcome.error)


def test_an_operation_that_uses_too_much_memory_is_stopped(either):
    code = "def run():\n    kept = []\n    while True: kept.append(bytearray(1 << 20))\n"
    outcome = either.run(Job("python", code=code, project=either.project, limits=Limits(memory=40 * MiB)))

    assert ("limit", "memory limit 40 MiB exceeded") == (outcome.reason, outcome.error)


def test_shared_memory_in_the_work_folder_counts(either):
    code = "def run():\n    with open('/tmp/x', 'wb') as f:\n        for _ in range(60): f.write(bytes(1 << 20))\n"
    outcome = either.run(Job("python", code=code, project=either.project, limits=Limits(memory=30 * MiB)))

    assert ("limit", "memory limit 30 MiB exceeded") == (outcome.reason, outcome.error)


def test_a_flood_of_output_is_stopped(shell, python):
    for outcome in (shell("yes"), shell("yes >&2"), python("def run():\n    while True: print('x' * 10000)\n")):
        assert ("limit", "output limit 16 MiB exceeded") == (outcome.reason, outcome.error)


@pytest.mark.parametrize("data", ["b'\\xff' * 8", "bytes(4)"])
def test_a_result_channel_with_no_frame_in_it_is_stopped(data, python):
    outcome = python(f"import os, time\ndef run():\n    os.write(3, {data})\n    time.sleep(1000)\n")

    assert ("error", "the operation wrote to its result channel what is no result") == (outcome.reason, outcome.error)


def test_an_operation_that_ends_without_a_word_says_how(python):
    assert "ended without a result (exit status 7)" == python("import os\ndef run(): os._exit(7)\n").error


def test_what_runs_beneath_an_operation_ends_with_it(shell):
    assert "done\n" == shell("sleep 1000 & echo done").value()


def test_a_command_that_does_not_read_its_input_is_not_waited_for(shell):
    assert "done\n" == shell("exec <&-; echo done", stdin=b"x" * (4 << 20)).value()


def test_a_command_reads_as_much_as_it_is_given(shell):
    data = b"0123456789abcdef" * (1 << 16)

    assert f"{len(data)}\n" == shell("wc -c", stdin=data).value()


# A relay.


def test_a_relay_passes_streams_on_and_keeps_their_ends(shell, relay):
    passed, sinks = relay(b"hello")
    outcome = shell("cat; echo err >&2; exit 3", relay=passed)

    assert {1: b"hello", 2: b"err\n"} == sinks.streams
    assert (3, b"hello", b"err\n") == (outcome.exit_code, outcome.stdout, outcome.stderr)


def test_a_relay_spells_what_it_passes_on(shell, relay):
    passed, sinks = relay(b"")
    shell("echo out; echo err >&2", relay=replace(passed, spell=lambda number, data: b"%d%s" % (number, data.upper())))

    assert {1: b"1OUT\n", 2: b"2ERR\n"} == sinks.streams


def test_a_relay_may_carry_more_than_is_kept(shell, relay):
    passed, sinks = relay(b"")
    outcome = shell("head -c 2000000 /dev/zero", relay=passed)

    assert 2_000_000 == len(sinks.streams[1])
    assert STREAM_KEPT == len(outcome.stdout)


@pytest.mark.parametrize("number", [1, 2])
def test_a_reader_that_is_gone_ends_the_command_as_a_pipe_would(number, shell, relay):
    passed, _sinks = relay(b"", broken=(number,))
    outcome = shell(f"exec yes >&{number}", relay=passed)

    assert 128 + 13 == outcome.exit_code
    assert outcome.error.startswith("killed by SIGPIPE")


def test_a_sink_that_takes_nothing_does_not_hold_up_the_clock(shell, relay):
    passed, _sinks = relay(b"")
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    outcome = shell("exec yes", relay=replace(passed, sinks=(write, passed.sinks[1])), limits=Limits(timeout_s=0.3))
    os.close(read)
    os.close(write)

    assert "timeout" == outcome.reason


def test_a_source_larger_than_a_pipe_is_passed_on_as_it_is_taken(shell, relay, tmp_path):
    (tmp_path / "big").write_bytes(b"x" * (1 << 20))
    with subprocess.Popen(["cat", tmp_path / "big"], stdout=subprocess.PIPE) as cat:
        passed, sinks = relay(cat.stdout.fileno())
        shell("wc -c", relay=passed)

    assert b"1048576\n" == sinks.streams[1]


def test_a_command_that_stops_reading_ends_the_relay_of_its_source(shell, relay):
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes:
        passed, _sinks = relay(yes.stdout.fileno())
        outcome = shell("head -c 3", relay=passed)
        yes.kill()

    assert outcome.ok


@pytest.fixture
def terminal():
    controller, end = os.openpty()
    os.set_blocking(controller, False)
    yield controller, end
    os.close(controller)
    os.close(end)


def test_a_terminal_of_its_own_is_relayed(shell, relay, terminal):
    controller, end = terminal
    passed, sinks = relay(b"hello\n", terminal=end, controller=controller)
    outcome = shell("test -t 0 && read line && echo got $line", relay=passed)

    assert outcome.ok, outcome
    assert b"got hello\r\n" in sinks.streams[1]


def test_a_terminal_whose_reader_is_gone_ends_the_command(shell, relay, terminal):
    controller, end = terminal
    passed, _sinks = relay(b"", broken=(1,), terminal=end, controller=controller)

    assert "cancelled" == shell("yes", relay=passed).reason


# Pieces.


@pytest.fixture
def watch(tmp_path):
    """A watch over a child that is not there."""
    child = Child(1, None, -1, -1, -1)
    calls = ToolCalls(Policy(), Desk(), expected=False)
    return Watch(child, Job("python", policy=Policy(), limits=Limits(cpu_s=1)), 0.0, -1, b"", None, calls)


@pytest.mark.parametrize(
    ("usage", "why"),
    [
        (GroupUsage(0, 0.5, 0, 0), None),
        (GroupUsage(0, 1.5, 0, 0), "cpu"),
        (GroupUsage(0, 0.0, 1, 0), "memory"),
        (GroupUsage(0, 9.0, 1, 0), "memory"),
    ],
)
def test_a_groups_counters_stop_an_operation(usage, why, watch):
    class Group:
        def usage(self):
            return usage

    watch._read_group(Group())

    assert why == watch.stopped


def test_the_first_reason_counts(watch):
    watch.stop("cpu")
    watch.stop("timeout")

    assert "cpu" == watch.stopped


def test_a_reason_after_the_result_does_not_count(watch):
    watch.frame = (b"V", b"1")
    watch.stop("timeout")

    assert watch.stopped is None


@pytest.fixture
def connected(watch):
    """The same with a socket: the far end is the operation's."""
    ours, theirs = socket.socketpair()
    watch.child.frames = Frames(ours)
    yield watch, theirs
    ours.close()
    theirs.close()


def test_half_a_frame_is_waited_for(connected):
    watch, theirs = connected
    theirs.sendall(b"\0\0\0\2V")
    watch._read_frames()

    assert (None, None) == (watch.frame, watch.stopped)
    theirs.sendall(b"1")
    watch._read_frames()
    assert (b"V", b"1") == watch.frame


def test_a_frame_that_was_sent_before_the_end_is_found_after_it(connected):
    watch, theirs = connected
    theirs.sendall(b"\0\0\0\2V1")
    theirs.close()
    watch._drain()

    assert (b"V", b"1") == watch.frame


def test_what_is_left_in_a_pipe_is_read(connected):
    watch, _theirs = connected
    watch.stopped = "cpu"
    watch.child.stdout = source(b"x" * 60_000)
    os.set_blocking(watch.child.stdout, False)
    watch._listen_to_stream(1)
    watch._drain()

    assert 60_000 == watch.stdout.total
    assert {} == watch._handlers
    os.close(watch.child.stdout)


def test_a_terminal_that_everybody_has_closed_is_at_its_end(watch):
    controller, end = os.openpty()
    os.close(end)

    assert not watch._read_stream(controller, 1)
    os.close(controller)


def test_input_for_nobody_stays_where_it_is(watch):
    watch._stdin += b"x"
    watch._feed()

    assert b"x" == watch._stdin


def test_a_handler_that_was_taken_away_meanwhile_is_not_called(connected):
    # Two descriptors come up at once, and what the first brings makes the second one moot.
    watch, _theirs = connected
    seen = []
    one, other = source(b"x"), source(b"y")

    def first():
        seen.append("handled")
        watch._ignore(one)
        watch._ignore(other)
        watch.child.gone = Gone(0, 0.0, 0)

    class Idle:
        def fileno(self):
            return -1

        listen = None

    watch._listen(one, first)
    watch._listen(other, first)
    watch.deadline = watch.next_look = float("inf")
    watch.stopped = "cancelled"
    watch.until_gone(Idle(), lambda: None, 0.0)

    assert ["handled"] == seen
    for fd in (one, other):
        os.close(fd)


def test_who_has_neither_a_group_nor_a_sampler_is_not_measured(watch):
    watch.deadline = float("inf")
    watch.next_look = 0.0
    watch._look()

    assert watch.next_look > 0
    assert watch.stopped is None


def test_no_work_folder_is_not_full():
    assert not _is_full(-1)


def test_a_folder_without_room_is_full(monkeypatch):
    class Room:
        f_bavail, f_favail = 5, 0

    monkeypatch.setattr(os, "fstatvfs", lambda _fd: Room)

    assert _is_full(0)


# The socket for tool calls.


@pytest.fixture
def awaited(connected):
    """The operation's child still has to send one."""
    watch, theirs = connected
    watch.calls.expected = True
    yield watch, theirs
    watch.calls.close()
    watch.child.close()


def test_what_listens_is_taken_once(awaited):
    watch, theirs = awaited
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # a name of the kernel's choice (unix(7), autobind)
    listener.listen()
    socket.send_fds(theirs, [b"\0\0\0\1T"], [listener.fileno()])
    watch._read_frames()

    assert (None, None, False) == (watch.frame, watch.stopped, watch.calls.expected)
    assert watch.calls.fileno() >= 0
    socket.send_fds(theirs, [b"\0\0\0\1T"], [listener.fileno()])
    watch._read_frames()
    assert (b"T", b"") == watch.frame
    assert [] == watch.child.frames.fds
    listener.close()


def test_what_does_not_listen_is_no_line_for_calls(awaited):
    watch, theirs = awaited
    socket.send_fds(theirs, [b"\0\0\0\1T"], [theirs.fileno()])
    watch._read_frames()

    assert "protocol" == watch.stopped


def test_a_word_about_a_descriptor_without_one_is_a_last_word(awaited):
    watch, theirs = awaited
    theirs.sendall(b"\0\0\0\1T")
    watch._read_frames()

    assert (b"T", b"") == watch.frame


def test_a_command_has_no_word_for_a_call_that_was_refused(connected):
    watch, theirs = connected
    watch.job = replace(watch.job, type="command")
    theirs.sendall(b"\0\0\0\4Na/b")
    watch._read_frames()

    assert (b"N", b"a/b") == watch.frame
    assert () == watch.calls.denied()
