"""An operation's side of tool calls, as a library and as a program; the supervisor's side is real."""

from __future__ import annotations

import io
import json
import runpy
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sandbox.tool_line import GRANTED, Line, echo

from sage_sandbox.sandbox.calling import Desk
from sage_sandbox.sandbox.calls import Answer, Call, ToolSpec
from sage_sandbox.sandbox.inside import tools


def handle(call: Call) -> Answer:
    """Each tool of the server fails in its own way."""
    kind = call.tool.split("/")[1]
    if kind == "find":
        return echo(call)
    return Answer(ok=False, error=f"it is {kind}", kind=kind.removesuffix("-again"), retryable=kind.endswith("-again"))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nobody listens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tools, "SOCKET", "calls")
    return tmp_path


@pytest.fixture
def line(alone: Path) -> Iterator[Line]:
    """Where a supervisor does."""
    made = Line("calls", GRANTED, Desk(handle, lambda: (ToolSpec("city/find", "finds", b"{}"),)))
    made.serve()
    yield made
    made.close()


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the program: exit code, stdout, stderr."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        out = io.BytesIO()
        err = io.StringIO()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", SimpleNamespace(buffer=out, flush=out.flush))
            patched.setattr(sys, "stderr", err)
            patched.setattr(sys, "stdin", io.StringIO(stdin))
            code = tools.main(list(arguments))
        return code, out.getvalue().decode(), err.getvalue()

    return run


@pytest.fixture
def answering(alone: Path) -> Iterator[Callable[[bytes], None]]:
    """Somebody who listens and answers with these bytes, whatever was asked."""
    threads = []

    def answer(data: bytes) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("calls")
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(data)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()

    yield answer
    for thread in threads:
        thread.join()


# The library.


def test_a_call_returns_what_is_answered(line: Line) -> None:
    assert ["city/find", {"name": "é", "n": [1, None]}] == tools.Tools().call("city/find", name="é", n=[1, None])


def test_the_tools_are_listed(line: Line) -> None:
    assert [{"name": "city/find", "description": "finds", "input_schema": {}}] == tools.Tools().list()


@pytest.mark.parametrize(
    ("tool", "kind", "text"),
    [
        ("city/tool", tools.ToolError, "it is tool"),
        ("city/denied", PermissionError, "it is denied"),
        ("city/transport", tools.TransportError, "it is transport"),
        ("city/cancelled", tools.TransportError, "it is cancelled"),
        ("files/read", PermissionError, "files/read is not granted: --allow tool:files/read"),
        ("city", PermissionError, "no tool has such a name: it is SERVER/TOOL"),
    ],
)
def test_each_way_to_fail_has_its_error(tool: str, kind: type[Exception], text: str, line: Line) -> None:
    with pytest.raises(kind) as caught:
        tools.Tools().call(tool)

    assert text == str(caught.value)


@pytest.mark.parametrize(("tool", "again"), [("city/transport", False), ("city/transport-again", True)])
def test_whether_to_try_again_is_said(tool: str, again: bool, line: Line) -> None:
    with pytest.raises(tools.Tools.TransportError) as caught:
        tools.Tools().call(tool)

    assert again is caught.value.retryable


def test_arguments_that_the_supervisor_refuses_are_a_value_error(line: Line) -> None:
    with pytest.raises(ValueError, match="nested deeper than 64"):
        tools.Tools().call("city/find", a=json.loads("[" * 70 + "]" * 70))


@pytest.mark.parametrize(
    ("value", "kind", "why"),
    [
        (float("nan"), ValueError, "the arguments are no JSON: Out of range"),
        ({1}, TypeError, "the arguments are no JSON: Object of type set"),
        ("\ud800", ValueError, "an argument holds a lone surrogate"),
        ("x" * tools.ARGUMENTS_MAX, ValueError, "the arguments are larger than 1 MiB"),
    ],
)
def test_arguments_that_are_no_json_are_not_sent(value: object, kind: type[Exception], why: str, alone: Path) -> None:
    with pytest.raises(kind, match=why):
        tools.Tools().call("city/find", a=value)


def test_the_name_of_a_tool_is_a_text(alone: Path) -> None:
    with pytest.raises(TypeError, match="SERVER/TOOL"):
        tools.Tools().call(5)  # type: ignore[arg-type]


def test_where_nobody_listens_nothing_is_granted(alone: Path) -> None:
    told: list[str] = []
    with pytest.raises(PermissionError, match="city/find is not granted: --allow tool:city/find"):
        tools.Tools(told.append).call("city/find")
    with pytest.raises(PermissionError):
        tools.Tools().call("city/find")

    assert ["city/find"] == told
    assert [] == tools.Tools().list()


def test_a_socket_that_nobody_accepts_on_is_no_answer(alone: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("calls")
        with pytest.raises(tools.TransportError, match="Connection refused"):
            tools.Tools().call("city/find")


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\0\x09V1"])
def test_half_an_answer_is_none(data: bytes, answering: Callable[[bytes], None]) -> None:
    answering(data)
    with pytest.raises(tools.TransportError, match="the other side is gone"):
        tools.Tools().call("city/find")


# The program.


def test_the_program_prints_the_answer(line: Line, program: Callable[..., tuple[int, str, str]]) -> None:
    call = ("call", "city/find")

    assert (0, '["city/find", {}]\n', "") == program(*call)
    assert (0, '["city/find", {"a": [1]}]\n', "") == program(*call, '{"a": [1]}')


def test_the_program_takes_its_arguments_in_three_ways(
    line: Line, program: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = program("call", "city/find", "-", "--arg", "k=v=w", "--arg", "e=", stdin='{"a": 1, "k": 2}')

    assert (0, ["city/find", {"a": 1, "k": "v=w", "e": ""}]) == (code, json.loads(out))


def test_the_program_lists(line: Line, program: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = program("list")

    assert (0, ["city/find"]) == (code, [tool["name"] for tool in json.loads(out)])


@pytest.mark.parametrize(
    ("tool", "code", "said"),
    [
        ("city/tool", 1, "it is tool"),
        ("city/transport", 69, "it is transport"),
        ("city/transport-again", 75, "it is transport-again"),
        ("files/read", 77, "files/read is not granted: --allow tool:files/read"),
    ],
)
def test_the_programs_exit_code_says_how_it_failed(
    tool: str, code: int, said: str, line: Line, program: Callable[..., tuple[int, str, str]]
) -> None:
    assert (code, "", f"sage-tool: {said}\n") == program("call", tool)


def test_arguments_that_the_supervisor_refuses_are_the_programs_failure(
    line: Line, program: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, said = program("call", "city/find", '{"a":' + "[" * 70 + "]" * 70 + "}")

    assert (1, True) == (code, "nested deeper" in said)


def test_where_nobody_listens_the_program_has_no_tools(
    alone: Path, program: Callable[..., tuple[int, str, str]]
) -> None:
    assert (0, "[]\n", "") == program("list")
    assert (77, "", "sage-tool: a/b is not granted: --allow tool:a/b\n") == program("call", "a/b")


def test_the_file_is_the_program(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    monkeypatch.setattr(sys, "argv", ["sage-tool", "list"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(tools.__file__, run_name="__main__")

    assert 0 == ended.value.code
    assert b"[]\n" == capsysbinary.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "neither list nor call"),
        (("list", "x"), "neither list nor call"),
        (("call",), "neither list nor call"),
        (("call", "a/b", "[]"), "the arguments are no JSON object"),
        (("call", "a/b", "{"), "the arguments are no JSON: Expecting property name"),
        (("call", "a/b", "a=b"), "the arguments are no JSON: Expecting value"),
        (("call", "a/b", "[" * 100_000), "recursion"),
        (("call", "a/b", "--arg"), "--arg is not --arg NAME=VALUE"),
        (("call", "a/b", "--arg", "x"), "--arg x is not --arg NAME=VALUE"),
        (("call", "a/b", "{}", "x=y"), "x=y is not --arg NAME=VALUE"),
        (("call", "a/b", '{"a": NaN}'), "the arguments are no JSON"),
    ],
)
def test_wrong_usage_is_said_with_the_right_one(
    arguments: tuple[str, ...], why: str, alone: Path, program: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, said = program(*arguments)

    assert (2, "") == (code, out)
    assert said.startswith("usage: sage-tool list")
    assert why in said.splitlines()[-1]
