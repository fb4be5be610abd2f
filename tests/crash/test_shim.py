"""The shim itself: it counts exactly, crashes where it is told to, and fails what it is told to."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from crash import straced
from crash.harness import Command, Plan, Timer, TookTooLong

HERE = Path(__file__).parent
PYTHON = (sys.executable, "-I", "-S")
ENV = {"PATH": os.defpath}


@pytest.fixture
def script(harness, tmp_path):
    """Run some lines of Python under the shim, with ``top``, the folder that is watched."""

    def run(text, plan=Plan(), **how):  # noqa: B008 - frozen
        code = f"import os, sys, time\nfrom pathlib import Path\ntop = Path({str(harness.watched[0])!r})\n{text}"
        return harness.run(Command([*PYTHON, "-c", code], tmp_path, ENV), plan, **{"trace": True, **how})

    return run


WRITE = """
fd = os.open(top / "file", os.O_WRONLY | os.O_CREAT)
print(os.write(fd, b"0123456789"), flush=True)
os.fsync(fd)
"""


def test_every_call_is_counted_as_strace_counts_it(harness, tmp_path, watched):
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    output = tmp_path / "straced"
    argv = [*straced.argv(output), *PYTHON, HERE / "every_call.py", watched]
    result = harness.run(Command(argv, tmp_path, {"PATH": os.environ["PATH"]}), trace=True)
    names = Counter({"create": "open"}.get(call.name, call.name) for call in result.calls)

    assert (0, "") == (result.code, result.stderr)
    assert straced.counted(output, watched) == names
    assert result.count == len(result.calls) == names.total()
    assert set(straced.WORDS) == set(names)


def test_two_runs_make_the_same_calls(harness, tmp_path, watched):
    seen = []
    for _ in range(2):
        result = harness.run(Command([*PYTHON, HERE / "every_call.py", watched], tmp_path, ENV), trace=True)
        seen.append([(call.number, call.name, call.path, call.other) for call in result.calls])
        shutil.rmtree(watched)
        watched.mkdir()

    assert seen[0] == seen[1]
    assert list(range(1, len(seen[0]) + 1)) == [number for number, *_ in seen[0]]


def test_numbers_are_handed_out_once_over_processes_and_threads(script):
    result = script("""
import threading
def write(name):
    with (top / name).open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(b"x")
children = [os.fork() for _ in range(2)]
threads = [threading.Thread(target=write, args=(f"{os.getpid()}.{number}",)) for number in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for child in filter(None, children): os.waitpid(child, 0)  # what outlives the first process is ended by the keeper
""")

    assert 4 * 3 * 51 == result.count
    assert list(range(1, result.count + 1)) == [call.number for call in result.calls]
    assert 4 == len({call.pid for call in result.calls})


def test_a_path_is_told_whatever_is_in_it(script, watched):
    result = script("(top / 'a\\tb\\nc\\\\x41é').mkdir()")

    assert [f"{watched}/a\tb\nc\\x41é"] == [call.path for call in result.calls]


def test_without_a_plan_nothing_is_changed(script, watched):
    result = script(WRITE)

    assert (0, "10\n", "", 3) == (result.code, result.stdout, result.fired, result.count)
    assert ["create", "write", "fsync"] == [call.name for call in result.calls]
    assert [10, 0] == [call.result for call in result.calls[1:]]
    assert b"0123456789" == (watched / "file").read_bytes()


@pytest.mark.parametrize(
    ("when", "left", "said"), [("before", b"", ""), ("middle", b"01234", ""), ("after", b"0123456789", "")]
)
def test_a_write_is_killed_before_in_the_middle_and_after(script, watched, when, left, said):
    result = script(WRITE, Plan("kill", when, 2))

    assert (-signal.SIGKILL, said, "crashed", 2) == (result.code, result.stdout, result.fired, result.count)
    assert left == (watched / "file").read_bytes()


def test_a_crash_of_the_tree_takes_those_that_left_the_session(script, watched):
    result = script(
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.2)
        (top / "late").mkdir()
        time.sleep(60)
    os._exit(0)
os.wait()
(top / "file").mkdir()
""",
        Plan("kill", "after", 1),
        timeout_s=20,
    )

    assert ("crashed", 1) == (result.fired, result.count)
    assert ["file"] == os.listdir(watched)


def test_a_child_that_crashes_takes_the_first_process_with_it(script):
    result = script("if os.fork() == 0:\n    (top / 'child').mkdir()\ntime.sleep(60)", Plan("kill", "before", 1))

    assert (-signal.SIGKILL, "crashed") == (result.code, result.fired)


def test_a_crash_of_one_process_leaves_the_others(script, watched):
    result = script(
        "if os.fork() == 0:\n    (top / 'child').mkdir()\nprint(os.wait()[1])\n(top / 'parent').mkdir()",
        Plan("kill", "before", 1),
        scope="process",
    )

    assert (0, f"{int(signal.SIGKILL)}\n", "fired", 2) == (result.code, result.stdout, result.fired, result.count)
    assert ["parent"] == os.listdir(watched)


MKDIRS = """
for name in "abc":
    try:
        (top / name).mkdir()
    except OSError as error:
        print(error.errno)
"""


def test_a_call_fails_once(script, watched):
    result = script(MKDIRS, Plan("fail", "once", 2, errno.EIO))

    assert (0, f"{errno.EIO}\n", "fired") == (result.code, result.stdout, result.fired)
    assert [0, -errno.EIO, 0] == [call.result for call in result.calls]
    assert {"a", "c"} == set(os.listdir(watched))


def test_calls_fail_from_one_on(script, watched):
    result = script(MKDIRS, Plan("fail", "ever", 2, errno.EIO))

    assert f"{errno.EIO}\n" * 2 == result.stdout
    assert ["a"] == os.listdir(watched)


def test_on_a_disk_that_stays_full_files_can_be_removed_and_synced(script, watched):
    result = script(
        f"{MKDIRS}\n(top / 'a').rmdir()\nos.fsync(os.open(top, os.O_RDONLY))", Plan("fail", "ever", 2, errno.ENOSPC)
    )

    assert (0, f"{errno.ENOSPC}\n" * 2) == (result.code, result.stdout)
    assert [] == os.listdir(watched)


def test_a_plan_may_count_calls_of_one_name_about_one_path_only(script, watched):
    result = script(MKDIRS * 2 + WRITE, Plan("fail", "once", 2, errno.EIO, only="mkdir", about="/b"))

    assert f"{errno.EEXIST}\n{errno.EIO}\n{errno.EEXIST}\n10\n" == result.stdout


def test_a_short_write_says_so(script, watched):
    result = script(WRITE, Plan("short", "once", 2))

    assert (0, "5\n", "fired", 3) == (result.code, result.stdout, result.fired, result.count)
    assert b"01234" == (watched / "file").read_bytes()


def test_a_short_write_of_parts_is_shorter_than_all(script, watched):
    result = script(
        "fd = os.open(top / 'file', os.O_WRONLY | os.O_CREAT)\nprint(os.writev(fd, [b'', b'a', b'b']))",
        Plan("short", "once", 2),
    )

    assert "1\n" == result.stdout
    assert b"a" == (watched / "file").read_bytes()


@pytest.mark.parametrize("scope", ["tree", "process"])
def test_a_timer_kills_whatever_the_moment(script, scope):
    text = "if os.fork() == 0:\n    time.sleep(0.2)\n    print('child', flush=True)\n    os._exit(0)\ntime.sleep(60)"
    result = script(text, timer=Timer(0.1, scope), linger_s=10)

    assert (-signal.SIGKILL, 0) == (result.code, result.left)
    assert ("child\n" if scope == "process" else "") == result.stdout


def test_what_outlives_the_command_is_counted_and_killed(script):
    result = script("if os.fork() == 0:\n    time.sleep(60)", linger_s=0.1)

    assert (0, 1) == (result.code, result.left)


def test_a_command_that_hangs_is_killed_with_all_it_started(script, tmp_path):
    with tempfile.NamedTemporaryFile(dir=tmp_path) as file, pytest.raises(TookTooLong, match="it said so"):
        script(
            f"""
file = open({file.name!r}, "r+b")
print("it said so", file=sys.stderr, flush=True)
if os.fork() == 0:
    os.setsid()
time.sleep(60)
""",
            timeout_s=1,
        )

    holders = [pid for pid in filter(str.isdecimal, os.listdir("/proc")) if file.name in open_files(pid)]
    assert [] == holders


def open_files(pid: str) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []
