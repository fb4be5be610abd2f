"""Every limit of an operation ends it under its own name, and nothing else with it."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from escape.attempt import SMALL, Bench, running
from limits.remains import alive, marked, remains

from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import Limits
from sage_sandbox.sandbox.supervisor import Supervisor

PACKAGE = Path(__file__).resolve().parents[2]
PYTHON = os.path.realpath(sys.executable)
MEMORY = ("rejected", "limit", "memory limit 64 MiB exceeded", "--limit memory=128M")


def told(outcome: Outcome) -> tuple[str, str | None, str, str]:
    """What a user is told of it."""
    return outcome.status, outcome.reason, outcome.error, outcome.hint


# Memory.


def test_two_gigabytes_in_one_process(bench: Bench) -> None:
    code = "def run():\n    held = bytearray(2 << 30)\n    for n in range(0, len(held), 4096):\n        held[n] = 1"

    assert MEMORY == told(bench.run(code, limits=SMALL))


def test_two_gigabytes_in_small_pieces(bench: Bench) -> None:
    code = "def run():\n    held = []\n    for n in range(2048):\n        held.append(b'x' * (1 << 20))"

    assert MEMORY == told(bench.run(code, limits=SMALL))


def test_two_gigabytes_that_are_caught_every_time(bench: Bench) -> None:
    """MemoryError is an exception like any other; with a cgroup there is none, and no way to catch the end."""
    code = """
    def run():
        held, size = [], 16 << 20
        for n in range(200):
            try:
                held.append(b'x' * size)
            except MemoryError:
                size = max(size // 2, 4096)
        return sum(map(len, held))
    """
    outcome = bench.run(code, limits=SMALL)

    assert told(outcome) == MEMORY or outcome.value() <= (64 + 32) << 20


TEN = """
import os
def run(params):
    pids = []
    for _ in range(10):
        pid = os.fork()
        if not pid:
            held = [b'x' * (1 << 20) for _ in range(params)]
            os.read(0, 1)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("each", [12, 40, 200])
def test_ten_processes_share_the_limit(bench: Bench, each: int) -> None:
    """12 MiB in each of ten is 120 MiB, and no single process is near the 64 that they have together."""
    with running(bench.supervisor, replace(bench.job(TEN, limits=SMALL), params=str(each).encode())) as op:
        outcome = op.wait()

    assert MEMORY == told(outcome)


def test_ten_processes_below_the_limit_are_left_alone(bench: Bench) -> None:
    with running(bench.supervisor, replace(bench.job(TEN, limits=replace(SMALL, memory=160 << 20)), params=b"4")) as op:
        for _ in range(10):
            op.go_on()
        outcome = op.wait()

    assert outcome.ok, outcome


def test_two_gigabytes_in_a_command(bench: Bench) -> None:
    outcome = bench.command(PYTHON, "-I", "-S", "-c", "x = b'x' * (2 << 30)", limits=SMALL)

    assert MEMORY == told(outcome)


def test_memory_in_a_command_of_many_processes(bench: Bench) -> None:
    script = "for n in 1 2 3 4 5 6; do head -c 30000000 /dev/zero | tail -c 30000000 | (sleep 30; wc -c) & done; wait"
    outcome = bench.command("sh", "-c", script, limits=replace(SMALL, pids=30))

    assert MEMORY == told(outcome)


def test_inputs_larger_than_the_limit(bench: Bench) -> None:
    job = replace(bench.job("def run(inputs):\n    return 1", limits=SMALL), inputs=b'"' + b"x" * (100 << 20) + b'"')

    assert MEMORY == told(bench.supervisor.run(job))


def test_shared_memory_counts(bench: Bench) -> None:
    code = (
        "import mmap\n"
        "def run():\n"
        "    held = mmap.mmap(-1, 512 << 20)\n"
        "    for n in range(0, len(held), 4096):\n"
        "        held[n] = 1"
    )

    assert MEMORY == told(bench.run(code, limits=SMALL))


def test_files_of_the_work_folder_count(bench: Bench) -> None:
    """The disk limit is larger than the memory's: what is written lies in memory."""
    code = (
        "def run():\n"
        "    with open('/tmp/x', 'wb') as file:\n"
        "        while True:\n"
        "            file.write(b'x' * (1 << 20))"
    )
    outcome = bench.run(code, limits=replace(SMALL, disk=1 << 30))

    assert MEMORY == told(outcome)


# Processes.


BOMB = "import os\ndef run():\n    while True:\n        os.fork()"


def test_a_fork_bomb(bench: Bench) -> None:
    outcome = bench.run(BOMB, limits=SMALL)

    assert ("rejected", "limit", "pids limit 16 exceeded", "--limit pids=32") == told(outcome)


def test_a_fork_bomb_that_never_looks_at_errors(bench: Bench) -> None:
    code = (
        "import os\n"
        "def run():\n"
        "    while True:\n"
        "        try:\n"
        "            os.fork()\n"
        "        except OSError:\n"
        "            pass"
    )
    outcome = bench.run(code, limits=replace(SMALL, timeout_s=1.5))

    assert "rejected" == outcome.status
    assert outcome.reason in ("limit", "timeout")


def test_a_fork_bomb_in_a_shell(bench: Bench) -> None:
    outcome = bench.command("sh", "-c", "while :; do sleep 1000 & done", limits=SMALL)

    assert ("rejected", "limit", "pids limit 16 exceeded") == told(outcome)[:3]


def test_a_fork_bomb_that_its_shell_thinks_nothing_of(bench: Bench) -> None:
    """Only descendants were refused; the command itself says that all went well, and is believed."""
    outcome = bench.command("sh", "-c", "f() { f & f & wait; }; f", limits=SMALL)

    assert told(outcome)[:2] in (("fulfilled", None), ("rejected", "limit"))


def test_more_threads_than_the_limit(bench: Bench) -> None:
    code = (
        "import threading\n"
        "def run():\n"
        "    for _ in range(99):\n"
        "        threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    outcome = bench.run(code, limits=SMALL)

    assert ("rejected", "limit", "pids limit 16 exceeded") == told(outcome)[:3]


# Disk and output.


def test_a_gigabyte_to_disk(bench: Bench) -> None:
    code = (
        "def run():\n"
        "    with open('/tmp/x', 'wb') as file:\n"
        "        for _ in range(1024):\n"
        "            file.write(b'x' * (1 << 20))"
    )
    outcome = bench.run(code, limits=SMALL)

    assert ("rejected", "limit", "disk limit 8 MiB exceeded", "--limit disk=16M") == told(outcome)


def test_a_gigabyte_to_disk_in_many_files(bench: Bench) -> None:
    code = (
        "def run():\n"
        "    for n in range(1024):\n"
        "        with open(f'/tmp/{n}', 'wb') as file:\n"
        "            file.write(b'x' * (1 << 20))"
    )
    outcome = bench.run(code, limits=SMALL)

    assert ("rejected", "limit", "disk limit 8 MiB exceeded") == told(outcome)[:3]


def test_more_files_than_the_disk_has_room_for(bench: Bench) -> None:
    code = "def run():\n    for n in range(99999):\n        open(f'/tmp/{n}', 'wb').close()"
    outcome = bench.run(code, limits=SMALL)

    assert ("rejected", "limit", "disk limit 8 MiB exceeded") == told(outcome)[:3]


def test_a_gigabyte_to_disk_by_a_command(bench: Bench) -> None:
    outcome = bench.command("dd", "if=/dev/zero", "of=/tmp/x", "bs=1M", "count=1024", limits=SMALL)

    assert ("rejected", "limit", "disk limit 8 MiB exceeded") == told(outcome)[:3]


@pytest.mark.parametrize("fd", [1, 2])
def test_a_gigabyte_to_a_stream(bench: Bench, fd: int) -> None:
    code = f"import os\ndef run():\n    for _ in range(1024):\n        os.write({fd}, b'x' * (1 << 20))"
    outcome = bench.run(code, limits=SMALL)

    assert ("rejected", "limit", "output limit 16 MiB exceeded") == told(outcome)[:3]
    assert 64 << 10 == len(outcome.stdout if fd == 1 else outcome.stderr)


def test_a_gigabyte_to_stdout_by_a_command(bench: Bench) -> None:
    outcome = bench.command("head", "-c", "1073741824", "/dev/zero", limits=SMALL)

    assert ("rejected", "limit", "output limit 16 MiB exceeded") == told(outcome)[:3]


# Time.


SPIN = "def run():\n    while True:\n        pass"


def test_a_spin_meets_the_cpu_limit(bench: Bench) -> None:
    outcome = bench.run(SPIN, limits=replace(SMALL, cpu_s=0.5))

    assert ("rejected", "limit", "cpu limit 500 ms exceeded", "--limit cpu=1s") == told(outcome)


def test_a_spin_of_four_processes_meets_the_cpu_limit_together(bench: Bench) -> None:
    outcome = bench.run(
        "import os\ndef run():\n    os.fork(), os.fork()\n    while True:\n        pass", limits=replace(SMALL, cpu_s=1)
    )

    assert ("rejected", "limit", "cpu limit 1 s exceeded") == told(outcome)[:3]
    assert outcome.cpu_s < 3


def test_processes_that_end_and_are_not_waited_for_count(bench: Bench) -> None:
    code = """
    import os, signal, time
    def run():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            ended, mine = os.pipe()
            if not os.fork():
                end = time.process_time() + 0.05
                while time.process_time() < end:
                    pass
                os._exit(0)
            os.close(mine)
            os.read(ended, 1)
            os.close(ended)
    """
    outcome = bench.run(code, limits=replace(SMALL, cpu_s=0.5, timeout_s=20))

    assert ("rejected", "limit", "cpu limit 500 ms exceeded") == told(outcome)[:3]


def test_a_spin_meets_the_timeout(bench: Bench) -> None:
    outcome = bench.run(SPIN, limits=replace(SMALL, timeout_s=0.5))

    assert ("rejected", "timeout", "timeout 500 ms exceeded") == told(outcome)[:3]


def test_a_command_that_ignores_every_signal_meets_the_timeout(bench: Bench) -> None:
    script = "trap '' TERM INT HUP QUIT; while :; do sleep 1000; done"
    outcome = bench.command("sh", "-c", script, limits=replace(SMALL, timeout_s=0.5))

    assert ("rejected", "timeout", "timeout 500 ms exceeded") == told(outcome)[:3]
    assert outcome.duration_s < 10


def test_an_operation_that_stopped_itself_meets_the_timeout(bench: Bench) -> None:
    """Pid 1 of a namespace ignores its own SIGSTOP; a child's is not."""
    outcome = bench.command("sh", "-c", "kill -STOP $$", limits=replace(SMALL, timeout_s=0.5))

    assert ("rejected", "timeout") == told(outcome)[:2]


def test_a_cancelled_operation_ends_at_once(bench: Bench) -> None:
    code = "import os, time\ndef run():\n    print('ready', flush=True)\n    time.sleep(1000)"
    with running(bench.supervisor, bench.job(code, limits=SMALL)) as op:
        assert "ready" == op.line()
        op.cancel()
        outcome = op.wait()

    assert ("rejected", "cancelled", "cancelled") == told(outcome)[:3]


# What goes on after its parent.


DAEMON = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)", "sage-limits-daemon"])
"""


def test_a_daemon_ends_with_its_operation(bench: Bench) -> None:
    code = f"""
    import subprocess
    def run():
        subprocess.run(["setsid", "sh", "-c", "sleep 1000 & sleep 1000 &"], stdout=subprocess.DEVNULL)
        return subprocess.run(["{PYTHON}", "-I", "-S", "-c", {DAEMON!r}], check=True).returncode
    """
    outcome = bench.run(code, limits=SMALL)

    assert outcome.ok, outcome
    assert [] == marked("sage-limits-daemon")


def test_a_daemon_ends_with_its_command(bench: Bench) -> None:
    outcome = bench.command(PYTHON, "-I", "-S", "-c", DAEMON, limits=SMALL)

    assert outcome.ok, outcome
    assert [] == marked("sage-limits-daemon")


def test_a_daemon_that_holds_the_streams_does_not_hold_the_outcome(bench: Bench) -> None:
    outcome = bench.command("sh", "-c", "setsid sleep 1000 & echo done", limits=SMALL)

    assert ("fulfilled", "done\n") == (outcome.status, outcome.value())
    assert outcome.duration_s < 20


# Deaths.


SLEEP = "import os, time\ndef run():\n    print('ready', flush=True)\n    time.sleep(1000)"


def pid_of_operation(supervisor: Supervisor) -> int:
    """The host pid of the child that serves, not the spare's."""
    assert supervisor._zygote is not None
    spare = supervisor._spare.serial if supervisor._spare is not None else -1
    return next(c.host_pid() for serial, c in list(supervisor._zygote.children.items()) if serial != spare)


def test_an_operation_killed_from_outside_is_an_error(bench: Bench) -> None:
    with running(bench.supervisor, bench.job(SLEEP, limits=SMALL)) as op:
        assert "ready" == op.line()
        os.kill(pid_of_operation(bench.supervisor), signal.SIGKILL)
        outcome = op.wait()

    assert ("rejected", "error", "killed by SIGKILL") == told(outcome)[:3]


def test_an_operation_that_kills_itself_is_an_error(bench: Bench) -> None:
    code = "import os\ndef run():\n    os.abort()"
    outcome = bench.run(code, limits=SMALL)

    # Its own signals do not reach pid 1 of a namespace; abort(3) then traps.
    assert ("rejected", "error") == told(outcome)[:2]
    assert outcome.error.startswith("killed by SIG")


@pytest.mark.parametrize("which", ["inner", "outer"])
def test_an_operation_whose_zygote_is_killed_is_lost(bench: Bench, which: str) -> None:
    supervisor = bench.supervisor
    with running(supervisor, bench.job(SLEEP, limits=SMALL)) as op:
        assert "ready" == op.line()
        assert supervisor._zygote is not None
        outer = supervisor._zygote._process.pid
        inner = psutil.Process(outer).children()[0].pid
        operation = pid_of_operation(supervisor)
        os.kill(inner if which == "inner" else outer, signal.SIGKILL)
        if which == "outer":
            # The one that waits for the namespace is not the namespace: the operation goes on, and ends as always.
            op.cancel()
        outcome = op.wait()

    expected = (
        ("worker lost", "the sandbox's zygote died under the operation")
        if which == "inner"
        else ("cancelled", "cancelled")
    )
    assert ("rejected", *expected) == told(outcome)[:3]
    supervisor._drop_zygote()
    assert not alive(operation)


def test_a_zygote_killed_between_operations_costs_one_operation_at_most(bench: Bench) -> None:
    supervisor = bench.supervisor
    bench.run("def run():\n    pass")
    assert supervisor._zygote is not None
    before = supervisor._zygote._process.pid
    inner = psutil.Process(before).children()[0]
    inner.kill()
    psutil.wait_procs([inner], timeout=30)
    first, second = bench.run("def run():\n    return 1"), bench.run("def run():\n    return 2")

    assert first.ok or first.reason == "worker lost"
    assert (True, 2) == (second.ok, second.value())
    assert before != supervisor._zygote._process.pid


def test_a_supervisor_that_is_killed_leaves_nothing(bench: Bench) -> None:
    """The zygote ends with the other side of its socket, and everything with the zygote."""
    code = f"""
import os, sys
sys.path.insert(0, {str(PACKAGE)!r})
from sage_sandbox.sandbox.supervisor import Supervisor
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.watch import Relay
supervisor = Supervisor({str(bench.project)!r})
argv = ("sh", "-c", "setsid sleep 1000 & echo ready; exec sleep 1000")
relay = Relay(-1, (1, 1), lambda number, data: data)
supervisor.run(Job("command", argv=argv, project=supervisor.project), relay=relay)
"""
    process = psutil.Popen([sys.executable, "-c", code], stdout=-1)
    assert b"ready\n" == process.stdout.readline()
    below = process.children(recursive=True)
    process.kill()
    process.wait(30)
    process.stdout.close()
    _gone, left = psutil.wait_procs(below, timeout=30)

    assert len(below) >= 4
    assert [] == [p for p in left if alive(p.pid)]


def test_closing_a_supervisor_leaves_nothing(bench: Bench) -> None:
    supervisor = Supervisor(str(bench.project), slot=9)
    supervisor.prepare()
    assert supervisor._zygote is not None
    below = [process.pid for process in psutil.Process(supervisor._zygote._process.pid).children(recursive=True)]
    supervisor.close()

    assert below
    assert not [pid for pid in below if alive(pid)]
    assert [] == remains(supervisor)


def test_the_default_limits_are_those_of_the_design() -> None:
    assert Limits(256 << 20, 60.0, 64, 64 << 20, 600.0) == Limits()
