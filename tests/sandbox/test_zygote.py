"""The zygote: what it has loaded, what it does when told, and what it does when nobody is left to tell it."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="assignment,var-annotated"

from __future__ import annotations

import _socket
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest
from sandbox import standin, throwaway
from sandbox.standin import CALL

import sage_sandbox
from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.sandbox import nursery
from sage_sandbox.sandbox.inside import child, entry, identity, wire, zygote
from sage_sandbox.sandbox.inside import syscalls as sc
from sage_sandbox.sandbox.job import Job

PACKAGE = str(Path(sage_sandbox.__file__).parents[1])
FOUNDATION = wire.Foundation((), (), (), (), (), (0, 0), 0, 0, False, (b"", b""), 0, ())
LOADED = (
    "import sys, os, json; print(json.dumps([sorted(sys.modules), dict(os.environ), sys.flags.isolated, sys.path]))"
)


@pytest.fixture
def booted():
    """What a zygote has loaded when it begins: modules, environment, whether isolated, search path."""
    boot = nursery._BOOT.replace("entry.main()", f"from sage_sandbox.sandbox.inside import zygote; {LOADED}")
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "utf8", "-c", boot, PACKAGE],
        env={},
        cwd="/",
        check=True,
        capture_output=True,
    )
    return json.loads(result.stdout)


# The boot line and the measurement itself load these.
OURS = {"sage_sandbox", "sage_sandbox.sandbox", "sage_sandbox.sandbox.inside"}


def test_the_zygote_has_loaded_nothing_but_the_standard_library_and_what_lies_inside(booted):
    modules, environment, isolated, _path = booted
    foreign = [name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names | {"sage_sandbox"}]
    ours = {name for name in modules if name.startswith("sage_sandbox")}

    assert [] == [name for name in foreign if not name.startswith("_") and name != "__main__"]
    assert OURS == {name for name in ours if not name.startswith("sage_sandbox.sandbox.inside.")}
    assert {} == {name: value for name, value in environment.items() if name != "LC_CTYPE"}
    assert 1 == isolated


@pytest.mark.parametrize(
    "module",
    [
        "socket",
        "ssl",
        "asyncio",
        "threading",
        "tempfile",
        "traceback",
        "subprocess",
        "pathlib",
        "logging",
        "dataclasses",
        "site",
        "coverage",
        "pickle",
    ],
)
def test_the_zygote_has_not_loaded(module, booted):
    assert module not in booted[0]


@pytest.mark.parametrize("package", ["sage_sandbox", "sage_sandbox.sandbox", "sage_sandbox.sandbox.inside"])
def test_the_packages_above_the_zygote_do_no_work(package):
    before = f"import sys; a = set(sys.modules); sys.path.insert(0, {PACKAGE!r}); "
    after = "print(*sorted(set(sys.modules) - a))"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{before}import {package}; {after}"],
        env={}, cwd="/", check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip

    assert {name for name in loaded if name.startswith("sage_sandbox")} == {
        package[:end] for end in (12, 20, 27) if end <= len(package)
    }


# Over a whole life, forked so that it is measured.


ROOMY = Limits(memory=8 << 30)
"""For forks of this process: where memory is sampled, all that the tests hold counts."""


def call(supervisor, code="def run(): return 1", **more):
    return supervisor.run(Job("python", code=code, project=supervisor.project, **more))


def test_operations_run_one_after_the_other_and_the_zygote_ends_with_its_supervisor(forked_zygotes, supervisor):
    first = call(supervisor, limits=ROOMY)
    second = call(supervisor, "def run():\n    raise ValueError('no')\n", limits=ROOMY)
    supervisor.close()

    assert (True, "ValueError: no (<operation>, line 2)") == (first.ok, second.error)
    assert [0] == [process.status for process in forked_zygotes]


def test_operations_with_grants_and_commands_run_too(forked_zygotes, supervisor):
    code, policy = "def run(): return open('notes.txt').read()", Policy(read=(supervisor.project,))
    read = call(supervisor, code, policy=policy, limits=ROOMY)
    command = supervisor.run(Job("command", argv=("echo", "said"), project=supervisor.project, limits=ROOMY))

    assert "of the project" == read.value()
    assert "said\n" == command.value()


def test_an_operation_begins_with_every_signal_at_its_default(supervisor):
    code = """import signal as s
def run():
    return sorted({str(s.getsignal(n)) for n in s.valid_signals() - {s.SIGKILL, s.SIGSTOP}})
"""

    assert [str(signal.SIG_DFL)] == call(supervisor, code).value()


def test_an_operation_finds_no_trace_of_the_runner(supervisor):
    code = """import os, sys
def run():
    return [sorted(os.environ), sys.argv, [p for p in sys.path if 'site-packages' in p]]
"""
    environment, arguments, path = call(supervisor, code).value()

    assert not {name for name in environment if name.startswith(("SAGE_", "COVERAGE", "PYTEST"))} - {
        "SAGE_OUT",
        "SAGE_ATTEMPT",
    }
    assert [] == path
    assert not [argument for argument in arguments if "site-packages" in argument]


@pytest.mark.parametrize("call_name", ["enter_zygote", "lay_foundation"])
def test_a_foundation_that_is_refused_means_that_no_sandbox_can_be_had(
    call_name, forked_zygotes, supervisor, monkeypatch
):
    def refuse(*_args):
        raise PermissionError(1, f"{call_name}: Operation not permitted")

    monkeypatch.setattr(zygote, call_name, refuse)

    with pytest.raises(SandboxUnavailable, match=f"step foundation: .*{call_name}: Operation not permitted"):
        supervisor.prepare()
    assert all(process.status in (0, 1) for process in forked_zygotes)


def test_the_control_socket_may_lie_where_it_belongs(in_child, monkeypatch):
    sent = []
    monkeypatch.setattr(wire, "receive", lambda _sock: wire.pack(FOUNDATION)[wire.LENGTH.size :])
    monkeypatch.setattr(wire, "send", lambda _sock, *frame: sent.append(frame))

    def refuse():
        raise PermissionError(1, "unshare: no")

    monkeypatch.setattr(zygote, "enter_zygote", refuse)

    def act():
        ours, theirs = socket.socketpair()
        os.dup2(theirs.fileno(), zygote.CONTROL_FD)

        def leave(status):
            raise SystemExit(status)

        os._exit, plain = leave, os._exit
        try:
            zygote.main(zygote.CONTROL_FD)
        except SystemExit as ended:
            return ended.code, sent
        finally:
            os._exit = plain
            ours.close()

    assert (1, [(wire.REFUSED, b'["foundation", 1, "[Errno 1] unshare: no"]')]) == in_child(act)


def test_a_first_word_that_is_no_foundation_ends_it(in_child):
    ours, theirs = socket.socketpair()
    process = throwaway.Apart(lambda: zygote.main(theirs.fileno()), only=(theirs.fileno(),))
    theirs.close()
    ours.sendall(wire.pack(CALL))

    with pytest.raises(AssertionError):
        process.result()
    ours.close()


@pytest.fixture
def nursed(_namespaces, who, project):
    """A nursery in a throw-away process: send it orders, and hear what it says."""
    ours, theirs = socket.socketpair()

    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def serve():
        inherited = standin.inherit(who, project)
        made = zygote.Nursery(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, theirs.fileno()), inherited)
        made.serve()

    process = throwaway.Apart(serve, only=(theirs.fileno(),))
    theirs.close()
    frames = nursery.Frames(ours)
    yield ours, lambda: frames.wait(time.monotonic() + 20, descriptors=True), frames, process
    ours.close()
    process.wait()


def test_an_order_cut_short_ends_it(nursed):
    ours, _hear, _frames, process = nursed
    ours.sendall(b"abc")

    assert 0 == process.wait()


def test_the_end_of_the_stream_ends_it(nursed):
    ours, _hear, _frames, process = nursed
    ours.shutdown(socket.SHUT_WR)

    assert 0 == process.wait()


def test_a_child_that_got_too_few_descriptors_ends_and_is_reported(nursed):
    ours, hear, frames, _process = nursed
    ours.sendmsg([wire.ORDER.pack(wire.SPAWN, 7, 0)])
    born = hear()
    kind, body = hear()

    assert (wire.SPAWNED, wire.LENGTH.pack(7)) == born
    assert wire.EXITED == kind
    assert (7, 0) == wire.CHILD_GONE.unpack(body)[:2]
    for fd in frames.fds:
        os.close(fd)


def test_a_childs_streams_cgroups_and_pidfd_are_those_it_was_given(nursed, tmp_path):
    ours, hear, frames, _process = nursed
    result, theirs = socket.socketpair()
    procs = os.open(tmp_path / "cgroup.procs", os.O_CREAT | os.O_WRONLY)
    read, write = os.pipe()
    passed = [theirs.fileno(), read, write, write, procs]
    ours.sendmsg([wire.ORDER.pack(wire.SPAWN, 1, 0)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", passed))])
    assert wire.SPAWNED == hear()[0]
    (pidfd,) = frames.fds
    frames.fds.clear()
    theirs.close()
    signal.pidfd_send_signal(pidfd, 0)
    result.close()
    kind, body = hear()

    assert wire.EXITED == kind
    assert (1, 0) == wire.CHILD_GONE.unpack(body)[:2]
    assert "0" == (tmp_path / "cgroup.procs").read_text()
    for fd in (pidfd, procs, read, write):
        os.close(fd)


def test_other_control_messages_carry_no_descriptors(nursed):
    ours, hear, frames, _process = nursed
    credentials = struct.pack("3i", os.getpid(), os.getuid(), os.getgid())
    ours.sendmsg([wire.ORDER.pack(wire.SPAWN, 2, 0)], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])

    assert wire.SPAWNED == hear()[0]
    assert wire.EXITED == hear()[0]
    for fd in frames.fds:
        os.close(fd)


def test_an_owner_is_mapped_on_order(nursed, monkeypatch):
    ours, hear, _frames, _process = nursed
    ours.sendall(wire.ORDER.pack(wire.MAP, 4711, 4711))
    kind, body = hear()

    # An ordinary user may map nobody but itself.
    assert (wire.READY if os.geteuid() == 0 else wire.REFUSED) == kind
    assert json.loads(body) == {} or "idmap" == json.loads(body)[0]


def test_a_supervisor_that_hangs_up_on_an_answer_ends_the_zygote_without_a_word(nursed):
    ours, _hear, _frames, process = nursed
    ours.send(wire.ORDER.pack(wire.MAP, os.geteuid(), os.getegid()))
    select.select([ours], [], [])
    ours.close()  # unread: the other end is not only closed, but reset (unix(7))
    process.wait()

    assert (0, None) == (process.status, process._said)


@pytest.mark.usefixtures("_namespaces")
def test_an_owner_that_cannot_be_mapped_is_refused(who, project, monkeypatch):
    def refuse(*_args):
        raise PermissionError(1, "unshare: no user namespace for idmapped mounts")

    sent = []
    monkeypatch.setattr(identity, "make_idmap", refuse)
    monkeypatch.setattr(wire, "send", lambda *frame: sent.append(frame[1:]))
    made = zygote.Nursery.__new__(zygote.Nursery)
    made.control = None
    made.inherited = child.Inheritance(-1, -1, -1, {}, standin.found(who, project))
    made._map((1, 2))

    assert [(wire.REFUSED, b'["idmap", 1, "[Errno 1] unshare: no user namespace for idmapped mounts"]')] == sent


# The way in.


def test_root_goes_straight_to_the_zygote(monkeypatch):
    started = []
    monkeypatch.setattr(sys, "argv", ["-c", "/folder", "7"])
    monkeypatch.setattr(zygote, "main", started.append)
    entry.main()

    assert [7] == started


@pytest.mark.usefixtures("_namespaces")
def test_a_user_enters_a_namespace_of_its_own_and_starts_anew(in_child, monkeypatch):
    def act():
        sys.argv = ["-c", "/folder", "7", entry.OWN_NAMESPACE]
        sys.orig_argv = ["python", "-I", "-c", "boot", "/folder", "7", entry.OWN_NAMESPACE]
        started = []
        os.execve = lambda *how: started.append(how)
        before = os.readlink("/proc/self/ns/user"), os.geteuid(), os.getegid()
        entry.main()
        after = os.readlink("/proc/self/ns/user"), os.geteuid(), os.getegid()
        return started, before, after, sc.capabilities()

    started, before, after, capabilities = in_child(act)

    assert [(sys.executable, ["python", "-I", "-c", "boot", "/folder", "7"], {})] == started
    assert before[0] != after[0]
    assert before[1:] == after[1:]
    assert capabilities[0] == capabilities[1] == capabilities[2] != 0


def test_who_is_to_end_first_already_stays_so(in_child):
    def act():
        proc = os.open("/proc", os.O_PATH)
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            file.write("1000")
        zygote._go_first(proc)
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            return int(file.read())

    assert 1000 == in_child(act)
