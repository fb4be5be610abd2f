"""What holds where no cgroup counts: tricks that hide memory and processor time from who looks from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from escape.attempt import SMALL, Bench, running

from sage_sandbox.sandbox.inside import zygote

PACKAGE = Path(__file__).resolve().parents[2]


# Only the one way; the other counts exactly, whatever hides.
pytestmark = pytest.mark.parametrize("bench", ["sampled"], indirect=True, scope="module")


# Memory.


FIRST_THREAD_ENDS = """
import ctypes, mmap, os, time, _thread
def hold():
    time.sleep(.1)
    held = mmap.mmap(-1, 40 << 20)
    for n in range(0, len(held), 4096):
        held[n] = 1
    time.sleep(1000)
def run():
    for _ in range(4):
        if not os.fork():
            _thread.start_new_thread(hold, ())
            ctypes.CDLL(None).syscall(93 if os.uname().machine == "aarch64" else 60, 0)
    time.sleep(20)
"""


def test_memory_of_processes_whose_first_thread_ended_counts(bench: Bench) -> None:
    """Their statm reads zeros and their smaps_rollup nothing; the threads that live show the memory."""
    outcome = bench.run(FIRST_THREAD_ENDS, limits=SMALL)

    assert ("rejected", "limit", "memory limit 64 MiB exceeded") == (outcome.status, outcome.reason, outcome.error)


def test_few_descriptors_hold_what_waits_in_sockets(bench: Bench) -> None:
    code = "import resource\ndef run():\n    return resource.getrlimit(resource.RLIMIT_NOFILE)"

    assert [256, 256] == bench.run(code, limits=SMALL).value()


# Processor time.


PRELUDE = """
import ctypes, os, signal, time
def unwaited(ignored):
    if ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    else:
        action = (ctypes.c_ulong * 19)()
        action[17] = 2  # SA_NOCLDWAIT, which /proc does not show
        assert ctypes.CDLL(None).sigaction(17, action, None) == 0
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    os.write(1, b".")
"""
SHORT = """
def run():
    unwaited({ignored})
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if not os.fork():
            burn({life})
            os._exit(0)
        try:
            os.wait()
        except ChildProcessError:
            pass
"""
POOL = """
def run():
    unwaited(True)
    go, start = os.pipe()
    ended, done = os.pipe()
    def put_aside():
        if not os.fork():
            os.read(go, 1)
            burn({life})
            os.write(done, b"x")
            os._exit(0)
    for _ in range(10):
        put_aside()
    os.write(start, b"x")
    end = time.monotonic() + 20
    while time.monotonic() < end:
        os.read(ended, 1)
        os.write(start, b"x")
        put_aside()
"""
ORPHANS = """
def run():
    unwaited(True)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        ended, mine = os.pipe()
        if not os.fork():
            if not os.fork():
                burn({life})
                os._exit(0)
            os._exit(0)
        os.close(mine)
        os.read(ended, 1)
        os.close(ended)
"""


@pytest.mark.parametrize(
    ("code", "life"),
    [
        pytest.param(SHORT.replace("{ignored}", "True"), 0.001, id="1 ms"),
        pytest.param(SHORT.replace("{ignored}", "True"), 0.012, id="12 ms"),
        pytest.param(SHORT.replace("{ignored}", "False"), 0.012, id="no wait"),
        pytest.param(POOL, 0.015, id="asleep until they run"),
        pytest.param(ORPHANS, 0.01, id="orphans"),
    ],
)
def test_processor_time_of_children_that_nobody_waits_for_meets_the_limit(bench: Bench, code: str, life: float) -> None:
    """Each child says that it has burnt its share: without the sample they burnt ten times the limit and more."""
    outcome = bench.run(PRELUDE + code.replace("{life}", str(life)), limits=replace(SMALL, cpu_s=0.5, timeout_s=30))

    assert ("rejected", "limit", "cpu limit 500 ms exceeded") == (outcome.status, outcome.reason, outcome.error)
    assert len(outcome.stdout) * life < 2


def test_a_command_of_a_thousand_programs_is_not_stopped_by_chance(bench: Bench) -> None:
    """Its children are waited for: what counts is what they told."""
    script = "i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done"
    outcome = bench.command("sh", "-c", script, limits=replace(SMALL, cpu_s=20, timeout_s=60))

    assert outcome.ok, outcome


# What goes with them.


def test_an_operation_is_the_first_to_end_where_the_machine_runs_out_of_memory(bench: Bench) -> None:
    code = "import time\ndef run():\n    print('ready', flush=True)\n    time.sleep(1000)"
    with running(bench.supervisor, bench.job(code, limits=SMALL)) as op:
        assert "ready" == op.line()
        assert bench.supervisor._zygote is not None
        pids = [child.host_pid() for child in list(bench.supervisor._zygote.children.values())]
        # The next one may be asked for by now, and not be born.
        scores = {int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in pids if pid > 0}
        ours = int(Path("/proc/self/oom_score_adj").read_text())
        op.cancel()
        op.wait()

    assert {max(zygote.OOM_SCORE_ADJ, ours)} == scores


@pytest.mark.parametrize("kind", ["RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_AS"])
def test_lower_hard_limits_of_the_session_stay(bench: Bench, kind: str, tmp_path: Path) -> None:
    """`* hard core 0`, as a hardened session has it, and the like."""
    lowest = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 128, "RLIMIT_AS": 1 << 30}[kind]
    code = f"import resource\ndef run():\n    return resource.getrlimit(resource.{kind})"
    script = f"""
import json, resource, sys
sys.path.insert(0, {str(PACKAGE)!r})
resource.setrlimit(resource.{kind}, ({lowest}, {lowest}))
from sage_sandbox.policy import Limits
from sage_sandbox.sandbox import cgroup
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor
cgroup.find = lambda: None
supervisor = Supervisor({str(tmp_path)!r})
limits = Limits(memory=2 << 30)
outcome = supervisor.run(Job("python", code={code!r}, project=supervisor.project, limits=limits))
print(json.dumps(outcome.value() if outcome.ok else outcome.error))
supervisor.close()
"""
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=50)

    assert [lowest, lowest] == json.loads(result.stdout)
