"""What an operation inherits: no variable, no descriptor, no signal setting, no working directory of anybody's."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from escape.attempt import Bench, Did, needs_root

from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor

if TYPE_CHECKING:
    import pytest

DESCRIPTORS = """
def act():
    found = []
    for fd in range(1024):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found.append(fd)
    return found
"""


def test_no_variable_is_inherited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "of the user's")
    look = "def act():\n    return os.environ.get('A_SECRET')"

    assert Did("of the user's") == bench.outside(look)
    assert Did(None) == bench.inside(look)


def test_a_command_gets_the_same_few_variables_everywhere(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD", "PYTHONPATH", "GIT_DIR", "SSH_AUTH_SOCK", "BASH_ENV"):
        monkeypatch.setenv(name, "")
    outcome = bench.command("env", "-0", output="text")

    assert "SSH_AUTH_SOCK" in subprocess.run(["env"], check=True, capture_output=True, text=True).stdout
    names = {line.partition("=")[0] for line in outcome.value().split("\0") if line}
    assert {name for name in names if not name.startswith("GIT_")} <= {
        "PATH",
        "HOME",
        "TMPDIR",
        "SAGE_OUT",
        "LANG",
        "TZ",
        "LC_CTYPE",
    }
    assert {name for name in names if name.startswith("GIT_")} <= {
        "GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0", "GIT_CONFIG_VALUE_0", "GIT_OPTIONAL_LOCKS", "GIT_TERMINAL_PROMPT",
    }  # fmt: skip


def test_the_initial_environment_of_an_operation_is_empty(bench: Bench) -> None:
    """What /proc/1/environ shows lies on the stack, where the zygote's environment was put when it was started."""
    words = """
    def act():
        with open("/proc/self/environ", "rb") as file:
            return len(file.read())
    """
    outside = bench.outside(words)
    inside = bench.inside("def act():\n    import ctypes\n    return [os.environb.get(b'PATH', b'').decode()]")

    assert isinstance(outside, Did)
    assert outside.value > 0
    assert Did(["/sandbox/bin:/usr/local/bin:/usr/bin:/bin"]) == inside


def test_the_c_environment_holds_no_word_of_the_users(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "sesame-" + "7" * 20)
    stack = """
    def act():
        # The environment lies above the stack's first frame: from here to the end of the stack.
        environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
        found, index = [], 0
        while environ and environ[index] is not None:
            found.append(environ[index].decode(errors="replace"))
            index += 1
        return any("sesame" in word for word in found)
    """

    assert Did(True) == bench.outside(stack)
    assert Did(False) == bench.inside(stack)


def test_no_descriptor_is_inherited(bench: Bench) -> None:
    """0 to 2 are pipes, 3 the result socket; an inheritable one of ours reaches a plain child, and no operation."""
    held = os.open("/", os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        script = f"import os; print(os.fstat({held}).st_ino)"
        plain = subprocess.run(
            [sys.executable, "-I", "-S", "-c", script], capture_output=True, check=False, close_fds=False
        )
        fresh = Supervisor(str(bench.project))
        try:
            outcome = fresh.run(
                Job("python", code="import os\n" + DESCRIPTORS + "run = act", project=str(bench.project))
            )
        finally:
            fresh.close()
    finally:
        os.close(held)

    assert 0 == plain.returncode
    assert [0, 1, 2, 3] == outcome.value()


def test_a_command_does_not_get_the_result_socket(bench: Bench) -> None:
    code = f"import os\n{DESCRIPTORS}\nprint(act())"
    outcome = bench.command(os.path.realpath(sys.executable), "-I", "-S", "-c", code)

    assert Did([0, 1, 2]) == bench.outside(DESCRIPTORS)
    assert "[0, 1, 2]\n" == outcome.value()


def test_the_streams_are_pipes_of_the_operations_own(bench: Bench) -> None:
    kinds = (
        "def act():\n    return [os.isatty(fd) or stat.S_ISFIFO(os.fstat(fd).st_mode) and 'pipe' for fd in (0, 1, 2)]"
    )
    own, other = bench.inside(kinds), bench.inside("def act():\n    return [os.fstat(fd).st_ino for fd in (0, 1, 2)]")
    again = bench.inside("def act():\n    return [os.fstat(fd).st_ino for fd in (0, 1, 2)]")

    assert Did(["pipe"] * 3) == own
    assert isinstance(other, Did)
    assert isinstance(again, Did)
    assert not set(other.value) & set(again.value)


def test_no_signal_is_ignored_or_blocked(bench: Bench) -> None:
    """CPython ignores SIGPIPE and SIGXFSZ; a full disk then kills nobody."""
    look = """
    def act():
        import signal
        known = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        ignored = [int(number) for number in known if signal.getsignal(number) == signal.SIG_IGN]
        return [bool(ignored), len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))]
    """

    assert Did([True, 0]) == bench.outside(look)
    assert Did([False, 0]) == bench.inside(look)


def test_nothing_an_operation_changed_in_its_interpreter_stays(bench: Bench) -> None:
    change = (
        "def act():\n"
        "    import json\n"
        "    json.loads = None\n"
        "    sys.modules['planted'] = json\n"
        "    os.environ['X'] = '1'"
    )
    look = "def act():\n    import json\n    return [json.loads is None, 'planted' in sys.modules, 'X' in os.environ]"

    assert Did([True, True, True]) == bench.outside(change + look.removeprefix("def act():"))
    assert Did() == bench.inside(change)
    assert Did([False, False, False]) == bench.inside(look)


def test_the_interpreter_has_no_way_to_import_from_the_host(bench: Bench) -> None:
    paths = "def act():\n    import sage_sandbox.errors\n    return 'imported'"
    outcome = bench.run("def run():\n    import pydantic")

    assert Did(True) == bench.outside(
        "def act():\n    return os.path.isdir(" + repr(os.path.dirname(os.path.dirname(__file__))) + ")"
    )
    assert "ModuleNotFoundError" in outcome.error
    assert "Died" in type(bench.inside(paths)).__name__


@needs_root("tell what an operation may not")
def test_the_operations_of_root_are_not_root(bench: Bench) -> None:
    who = "def act():\n    return [os.getuid(), os.getgid(), os.getgroups() == [os.getgid()] or os.getgroups()]"
    inside = bench.inside(who)

    assert isinstance(inside, Did)
    assert inside.value[0] not in (0, 65534)
    assert inside.value[1] not in (0, 65534)
