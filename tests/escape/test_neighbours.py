"""Two operations at the same time, of two workers: neither finds, signals or talks to the other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from escape.attempt import PATIENCE_S, Bench, Did, Refused, Running, running_act

from sage_sandbox.sandbox.supervisor import Supervisor

VICTIM = """
def act():
    with open("/tmp/left", "w") as file:
        file.write("private")
    for folder in (os.environ["HOME"], "/dev/shm"):
        open(folder + "/left", "w").close()
    held = socket.socket(socket.AF_UNIX)
    held.bind("\\0sage-neighbour")
    held.listen()
    local = socket.socket(socket.AF_UNIX)
    local.bind("/tmp/socket")
    local.listen()
    os.write(1, b"ready\\n")
    os.read(0, 1)
    return "alive"
"""


@pytest.fixture(scope="module")
def other(bench: Bench) -> Iterator[Bench]:
    """A second worker's supervisor, over the same project."""
    supervisor = Supervisor(str(bench.project), slot=1)
    supervisor.prepare()
    yield Bench(supervisor, bench.project, bench.elsewhere)
    supervisor.close()


@pytest.fixture
def victim(other: Bench) -> Iterator[Running]:
    """An operation that waits, holds files and sockets, and is to be alive at the end."""
    with running_act(other, VICTIM) as held:
        assert "ready" == held.line()
        yield held
        held.go_on()
        assert {"value": "alive"} == held.wait().value()


def pid_of(bench: Bench) -> int:
    """The host pid of the operation that a supervisor is running, as its owner can find out."""
    zygote = bench.supervisor._zygote
    assert zygote is not None
    oldest = min(list(zygote.children))  # a younger one is the spare
    return zygote.children[oldest].host_pid()


def plain_victim() -> subprocess.Popen[bytes]:
    """The same without a sandbox: a process of the same user that waits."""
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)


def test_another_operation_is_not_signalled_by_its_pid(bench: Bench, other: Bench, victim: Running) -> None:
    kill = "def act(pid):\n    os.kill(pid, 9)"
    with plain_victim() as plain:
        assert Did() == bench.outside(kill, {"pid": plain.pid})
        assert -9 == plain.wait(PATIENCE_S)

    assert Refused("ESRCH") == bench.inside(kill, {"pid": pid_of(other)})


def test_no_pid_leads_to_another_operation(bench: Bench, victim: Running) -> None:
    sweep = """
    def act():
        found = []
        for pid in range(2, 40000):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                continue
            except PermissionError:
                pass
            found.append(pid)
        return len(found)
    """
    outside = bench.outside(sweep)

    assert isinstance(outside, Did)
    assert outside.value > 1
    assert Did(0) == bench.inside(sweep)


def test_a_signal_to_everybody_reaches_nobody_else(bench: Bench, victim: Running) -> None:
    """Outside, kill(-1) would end the test run; there a process group stands for everybody."""
    everybody = "def act():\n    os.kill(-1, 9)"
    with plain_victim() as plain:
        group = f"def act():\n    os.setpgid(0, 0)\n    os.kill({plain.pid}, 9)"
        assert Did() == bench.outside(group)
        plain.wait(PATIENCE_S)

    # As pid 1 it is alone in its namespace.
    assert Refused("ESRCH") == bench.inside(everybody)
    assert psutil.pid_exists(os.getpid())


def test_a_signal_to_the_own_group_reaches_neither_zygote_nor_supervisor(bench: Bench) -> None:
    """Without a session of its own, kill(0) would cross the pid namespace."""
    group = """
    def act():
        import signal
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(0, 9)
            os._exit(0)
        return os.waitpid(-1, 0)[1]
    """
    zygote = bench.supervisor._zygote
    own = bench.outside(
        "def act():\n    os.setsid()\n" + "    import signal\n    signal.signal(2, lambda *_: None)\n    os.kill(0, 2)"
    )
    inside = bench.inside(group)

    assert Did() == own
    assert Did(9) == inside
    assert Did(1) == bench.inside("def act():\n    return os.getpid()")
    assert zygote is bench.supervisor._zygote


def test_the_session_is_the_operations_own(bench: Bench) -> None:
    session = "def act():\n    return [os.getsid(0), os.getpgid(0), os.getppid()]"
    outside = bench.outside(session)

    assert isinstance(outside, Did)
    assert outside.value[2] == os.getpid()
    assert Did([1, 1, 0]) == bench.inside(session)


def test_an_abstract_socket_of_another_operation_is_not_reached(bench: Bench, victim: Running) -> None:
    connect = "def act(name):\n    with socket.socket(socket.AF_UNIX) as made:\n        made.connect('\\0' + name)"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0sage-escape-{os.getpid()}")
        server.listen()

        assert Did() == bench.outside(connect, {"name": f"sage-escape-{os.getpid()}"})
    assert Refused("ECONNREFUSED") == bench.inside(connect, {"name": "sage-neighbour"})


@pytest.mark.parametrize("path", ["/tmp/left", "/sandbox/box/left", "/tmp/socket"])
def test_the_work_folder_of_another_operation_is_not_there(bench: Bench, victim: Running, path: str) -> None:
    look = "def act(path):\n    return os.path.exists(path)"

    assert Did(True) == bench.outside(look, {"path": str(bench.elsewhere / "secret")})
    assert Did(False) == bench.inside(look, {"path": path})


@pytest.mark.parametrize("call", ["ptrace", "process_vm_readv", "pidfd_open", "kcmp", "process_madvise"])
def test_another_operation_is_not_opened(bench: Bench, other: Bench, victim: Running, call: str) -> None:
    acts = {
        "ptrace": "call('ptrace', 16, pid, 0, 0)",  # PTRACE_ATTACH
        "process_vm_readv": "call('process_vm_readv', pid, None, 0, None, 0, 0)",
        "pidfd_open": "call('pidfd_open', pid, 0)",
        "kcmp": "call('kcmp', pid, pid, 0, 0, 0)",
        "process_madvise": "call('process_madvise', -1, None, 0, 0, 0)",
    }
    act = f"def act(pid):\n    {acts[call]}"
    with plain_victim() as plain:
        outside = bench.outside(act, {"pid": plain.pid})
        plain.kill()

    assert outside != Refused("EPERM")
    assert Refused("EPERM") == bench.inside(act, {"pid": pid_of(other)})


def test_the_priority_of_others_is_not_changed(bench: Bench, victim: Running) -> None:
    # PRIO_USER: all processes of the user, who as root is the same for all operations of a worker.
    lower = "def act():\n    os.setpriority(os.PRIO_USER, 0, 19)"
    outside = bench.outside(
        "def act():\n    os.setpriority(os.PRIO_USER, os.geteuid(), os.getpriority(os.PRIO_USER, 0))"
    )

    assert Did() == outside
    assert Refused("EPERM") == bench.inside(lower)


def test_no_memory_is_shared_by_name_with_another_operation(bench: Bench, victim: Running) -> None:
    look = "def act(name):\n    return os.path.exists('/dev/shm/' + name)"
    made = Path(f"/dev/shm/sage-escape-{os.getpid()}")
    made.touch()
    try:
        assert Did(True) == bench.outside(look, {"name": made.name})
        assert Did(False) == bench.inside(look, {"name": made.name})
        assert Did(False) == bench.inside(look, {"name": "left"})
    finally:
        made.unlink()


def test_the_host_name_is_not_the_hosts(bench: Bench) -> None:
    name = "def act():\n    return os.uname().nodename"

    assert Did(os.uname().nodename) == bench.outside(name)
    assert Did("sandbox") == bench.inside(name)
