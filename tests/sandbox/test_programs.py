"""What a child runs once it is confined, here in a throw-away process that is not: every frame it may send."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from _socket import AF_UNIX, SOCK_STREAM, socketpair

import pytest
from sandbox.standin import CALL, found, frames

from sage_sandbox.sandbox.inside import programs, tools, wire


@pytest.fixture
def sent(in_child, tmp_path):
    """Run one request in a throw-away process: the frames it sent, and what ``after`` looked at."""

    def run(request, before=lambda: None, after=lambda: None):
        def act():
            programs.CODE_FOLDER = str(tmp_path / "code")
            os.chdir(tmp_path)  # the path of a socket is short
            tools.SOCKET = "calls"
            ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
            before()
            programs.run(theirs, request)
            return frames(ours), after()

        return in_child(act)

    return run


@pytest.fixture
def python(sent):
    """Run source text: ("V", value) or ("E", what it said of the error)."""

    def run(code, **more):
        request = CALL._replace(code=code, **more)
        ((kind, body),), _ = sent(request)
        return kind.decode(), json.loads(body)

    return run


@pytest.fixture
def command(sent):
    """Run a command: the frame it ended with."""

    def run(*argv, env=(), **more):
        (listening, frame), _ = sent(wire.CommandRequest(argv, env, False), **more)
        assert (wire.TOOLS, b"") == listening
        return frame

    return run


def exited(code):
    return wire.EXITED, wire.EXIT_STATUS.pack(code << 8)


# Python.


@pytest.mark.parametrize(
    ("signature", "result"),
    [
        ("", "[]"),
        ("params", "[params]"),
        ("inputs", "[inputs]"),
        ("params, inputs, tools", "[params, inputs, tools.list()]"),
        ("tools, params", "[tools.list(), params]"),
        ("*, params", "[params]"),
        ("params, extra=3", "[params, extra]"),
        ("**given", "[sorted(given)]"),
    ],
)
def test_run_is_called_with_what_it_names(signature, result, python):
    offered = {"params": {"p": 1}, "inputs": {"i": 2}, "tools": tools.Tools()}
    expected = eval(result, {**offered, "extra": 3, "given": offered})
    params, inputs = (json.dumps(offered[name]).encode() for name in ("params", "inputs"))

    assert ("V", expected) == python(f"def run({signature}):\n    return {result}\n", params=params, inputs=inputs)


@pytest.mark.parametrize("value", ["None", "[1, 2.5, 'x', True]", "{'a': {'b': []}}", "'é\\U0001f600'", "(1, 2)"])
def test_what_run_returns_is_json(value, python):
    kind, result = python(f"def run():\n    return {value}\n")

    assert ("V", json.loads(json.dumps(eval(value)))) == (kind, result)


@pytest.mark.parametrize(
    ("code", "kind", "message", "line"),
    [
        ("def run():\n    raise ValueError('no')\n", "ValueError", "no", 2),
        ("def run():\n    return [\n", "SyntaxError", "'[' was never closed", 2),
        ("1/0", "ZeroDivisionError", "division by zero", 1),
        ("def f():\n    1/0\ndef run():\n    f()\n", "ZeroDivisionError", "division by zero", 2),
        ("import json\ndef run():\n    json.loads('{')\n", "JSONDecodeError", "Expecting property name", 3),
        ("x = 1", "TypeError", "no function run(params, inputs, tools) is defined", None),
        ("run = 5", "TypeError", "no function run", None),
        ("run = print", "TypeError", "no function run", None),
        ("async def run(): pass", "TypeError", "run() is a coroutine function", None),
        ("async def run():\n    yield 1", "TypeError", "run() is a coroutine function", None),
        ("def run(extra): pass", "TypeError", "missing 1 required positional argument: 'extra'", None),
        ("def run(): return {1, 2}", "TypeError", "the result is no JSON: Object of type set", None),
        ("def run(): return float('nan')", "ValueError", "the result is no JSON: Out of range float", None),
        (
            "def run():\n    a = []\n    a.append(a)\n    return a",
            "ValueError",
            "the result is no JSON: Circular reference",
            None,
        ),
        ("def run(): return chr(0xd800)", "ValueError", "the result holds a lone surrogate", None),
        ("def run(): return 'x' * 100", "ResultTooLarge", "", None),
        ("import sys\ndef run():\n    sys.exit(3)\n", "SystemExit", "3", 3),
        ("def run(): raise KeyboardInterrupt", "KeyboardInterrupt", "", 1),
        ("def run():\n    raise ValueError('x' * 9000)\n", "ValueError", "x" * 4000, 2),
        ("def run():\n    raise ValueError(chr(0xd800))\n", "ValueError", "?", 2),
        ("class Bad(Exception):\n    def __str__(self): raise self\ndef run():\n    raise Bad\n", "Bad", "", 4),
        (
            "def run():\n    def f(): return f()\n    return f()\n",
            "RecursionError",
            "maximum recursion depth exceeded",
            2,
        ),
    ],
)
def test_what_it_raises_is_described(code, kind, message, line, python):
    sort, error = python(code, result_max=64)

    assert ("E", kind, line) == (sort, error["type"], error["line"])
    assert message == error["message"] or (message and message in error["message"])
    assert len(error["message"]) <= 4000


def test_a_tool_where_none_is_granted_is_refused_and_reported(sent):
    code = "def run(tools):\n    tools.call('web/search', q='x')\n"
    (reported, (kind, body)), _ = sent(CALL._replace(code=code))

    assert (wire.NOT_GRANTED, b"web/search") == reported
    assert wire.ERROR == kind
    assert "web/search is not granted: --allow tool:web/search" == json.loads(body)["message"]


def test_where_tools_are_granted_a_socket_comes_before_any_code_runs(sent):
    (listening, value), left = sent(
        CALL._replace(code="import os\nos.stat('calls')\ndef run(): return 1\n", tools=True),
        after=lambda: os.path.exists("calls"),
    )

    assert (wire.TOOLS, b"") == listening
    assert (wire.VALUE, b"1") == value
    assert left


def test_a_refused_path_is_described(python):
    _kind, error = python("def run():\n    open('/nowhere/file')\n")

    assert (errno.ENOENT, "/nowhere/file") == (error["errno"], error["path"])


def test_a_path_that_is_no_text_is_not(python):
    _kind, error = python("import os\ndef run():\n    os.stat(b'/nowhere')\n")

    assert (errno.ENOENT, None) == (error["errno"], error["path"])


def test_a_missing_module_is_described(python):
    _kind, error = python("import numpy_that_is_not.linalg\ndef run(): pass\n")

    assert "numpy_that_is_not" == error["module"]


def test_siblings_can_be_imported_and_leave_no_byte_code(python, tmp_path):
    code = "import helper, pack.deep\ndef run(): return [helper.x, pack.deep.y]\n"

    assert ("V", [1, 2]) == python(code, files=(("helper.py", "x = 1"), ("pack/deep.py", "y = 2")))
    assert [] == list(tmp_path.rglob("*.pyc"))


def test_the_environment_is_the_base_and_what_was_granted(python):
    code = "import os\ndef run(): return [os.environ[n] for n in ('HOME', 'PATH', 'TZ', 'CI', 'TMPDIR', 'SAGE_OUT')]\n"
    expected = [
        wire.BOX,
        "/sandbox/bin:/usr/local/bin:/usr/bin:/bin",
        "UTC",
        "yes",
        wire.BOX + "/tmp",
        wire.BOX + "/out",
    ]

    assert ("V", expected) == python(code, env=(("CI", "yes"),))


def test_what_it_printed_is_flushed_before_the_result(sent, tmp_path):
    request = CALL._replace(code="def run(): print('said')")

    def before():
        sys.stdout = open(tmp_path / "out", "w", encoding="utf-8")  # noqa: SIM115

    sent(request, before, lambda: None)
    said = (tmp_path / "out").read_text()

    assert "said\n" == said


@pytest.mark.parametrize("act", ["sys.stdout.close()", "sys.stdout = None", "sys.stdout = sys.stderr = object()"])
def test_streams_that_it_broke_do_not_matter(act, python):
    assert ("V", 1) == python(f"import sys\ndef run():\n    {act}\n    return 1\n")


def test_the_source_is_the_operations_module(python):
    code = "def run():\n    import operation\n    return [__name__, __file__, operation.run is run]\n"

    assert ("V", ["operation", "op.py", True]) == python(code)


def test_a_foundation_is_nothing_to_run(sent, who, project):
    assert ([], None) == sent(found(who, project))


def test_the_rehearsal_leaves_the_module_of_no_operation(in_child):
    def act():
        programs.settle_memory()
        programs.rehearse()
        return sys.modules["operation"].__file__

    assert "<rehearsal>" == in_child(act)


# Commands.


@pytest.mark.parametrize(("argv", "frame"), [(("true",), exited(0)), (("sh", "-c", "exit 7"), exited(7))])
def test_a_commands_exit_is_reported(argv, frame, command):
    assert frame == command(*argv)


def test_a_commands_signal_is_reported(command):
    assert (wire.EXITED, wire.EXIT_STATUS.pack(signal.SIGTERM)) == command("sh", "-c", "kill -TERM $$")


def test_a_commands_environment_is_the_base_and_what_was_granted(command, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    command("sh", "-c", f"env > {tmp_path}/env", env=(("CI", "yes"),))
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())

    assert {**programs._BASE_ENVIRONMENT, "CI": "yes"} == {
        name: seen[name] for name in seen if name not in ("PWD", "SHLVL", "_", "OLDPWD")
    }


@pytest.mark.parametrize(
    ("program", "code"),
    [("/nowhere/tool", errno.ENOENT), ("sage-no-such-tool", errno.ENOENT), ("/etc/passwd", errno.EACCES)],
)
def test_a_command_that_cannot_be_started_is_an_error(program, code, command):
    kind, body = command(program)

    assert wire.ERROR == kind
    assert {"type": "SpawnError", "errno": code, "message": os.strerror(code), "line": None} == json.loads(body)


def test_a_grandchild_that_ends_first_is_reaped_and_not_the_end(command):
    def adopt():
        from sage_sandbox.sandbox.inside import syscalls

        syscalls.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: as pid 1 is of its namespace

    # The orphan has ended before its grandparent does: it holds the pipe that cat reads.
    script = "(sh -c 'exec 1>&2; exit 9' & exit 0) | cat; exit 5"

    assert exited(5) == command("sh", "-c", script, before=adopt)


def test_the_reaper_lets_go_of_the_streams(command, in_child):
    # Nobody else holds the pipe: its reader sees the end when the command closes it.
    read, write = os.pipe()

    def before():
        os.dup2(write, 1)
        os.close(write)

    assert exited(0) == command("sh", "-c", "echo said", before=before)
    os.close(write)
    with open(read, "rb") as file:
        assert b"said\n" == file.read()


def test_a_terminal_becomes_the_commands_own(sent):
    controller, terminal = os.openpty()

    def before():
        os.setsid()
        for number in range(3):
            os.dup2(terminal, number)

    (_, frame), _ = sent(wire.CommandRequest(("sh", "-c", "test -t 0 && tty && echo yes > /dev/tty"), (), True), before)
    said = os.read(controller, 1000)
    os.close(controller)
    os.close(terminal)

    assert exited(0) == frame
    assert b"yes" in said
    assert shutil.which("tty")
