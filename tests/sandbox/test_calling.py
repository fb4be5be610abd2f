"""The supervisor's side of tool calls, with a caller that is a socket of the test's own; then real operations."""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox.tool_line import GRANTED, PATIENCE_S, Line, echo, frame, receive

from sage_sandbox.outcome import Outcome, Violation
from sage_sandbox.policy import RESULT_MAX, Policy
from sage_sandbox.sandbox import calling
from sage_sandbox.sandbox.calling import Desk, NoCall, ToolCalls
from sage_sandbox.sandbox.calls import Answer, Call, CallHandler, ToolSpec
from sage_sandbox.sandbox.inside import tools
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor

Make = Callable[..., Line]


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make a line; the path of a socket is short."""
    monkeypatch.chdir(tmp_path)
    made: list[Line] = []

    def make(handle: CallHandler | None = echo, policy: Policy = GRANTED, **more: Any) -> Line:
        made.append(Line(f"calls-{len(made)}", policy, Desk(handle, **more)))
        return made[-1]

    yield make
    for each in made:
        each.close()


# One call.


def test_a_granted_call_is_handed_over_and_answered(line: Make) -> None:
    taken = line()

    assert Answer(ok=True, value=b'["city/find", {"name": "Bern", "n": 1.5}]') == taken.call(
        "city/find", '{ "name": "Bern",\n"n": 1.5 }'
    )
    assert (1, ()) == (taken.calls.made, taken.calls.denied())


def test_the_handler_gets_the_arguments_as_they_were_understood(line: Make) -> None:
    seen: list[Call] = []

    def handle(call: Call) -> Answer:
        seen.append(call)
        return Answer(ok=True)

    line(handle).call("time/now", '{"a" : "\\u00e9", "b": [ ]}')

    assert [Call("time/now", '{"a":"é","b":[]}'.encode())] == seen


@pytest.mark.parametrize(
    ("tool", "grant"),
    [
        ("time/then", "tool:time/then"),
        ("files/read", "tool:files/read"),
        ("files/a/b", "tool:files/*"),
        ("City/find", "tool:City/find"),
    ],
)
def test_a_call_that_is_not_granted_is_denied_and_noted(tool: str, grant: str, line: Make) -> None:
    taken = line()
    text = f"{tool} is not granted: --allow {grant}"

    assert Answer(ok=False, error=text, kind="denied") == taken.call(tool)
    assert ((text, Violation(f"tried to call {tool}", grant)),) == taken.calls.denied()
    assert 0 == taken.calls.made


@pytest.mark.parametrize(
    "tool", ["", "city", "city/", "city/../x", "/city/x", "city/a\0b", "city/a\nb", "city/ü", "../city/x"]
)
def test_what_is_no_tools_name_is_denied_without_repeating_it(tool: str, line: Make) -> None:
    taken = line()
    answer = taken.call(tool)

    assert Answer(ok=False, error="no tool has such a name: it is SERVER/TOOL", kind="denied") == answer
    assert [Violation("tried to call what is no tool")] == [violation for _, violation in taken.calls.denied()]


def test_without_a_handler_every_call_is_denied(line: Make) -> None:
    taken = line(None)

    assert Answer(ok=False, error="city/find cannot be called: this run has no tools", kind="denied") == taken.call(
        "city/find"
    )
    assert [Violation("tried to call city/find")] == [violation for _, violation in taken.calls.denied()]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(ok=False, error="no such city", kind="tool"),
        Answer(ok=False, error="the server is gone", kind="transport", retryable=True),
        Answer(ok=False, error="cancelled", kind="cancelled"),
    ],
)
def test_what_the_handler_says_is_passed_on(answer: Answer, line: Make) -> None:
    taken = line(lambda _call: answer)

    assert answer == taken.call("city/find")
    assert () == taken.calls.denied()


def test_a_handler_that_denies_is_a_violation_too(line: Make) -> None:
    taken = line(lambda _call: Answer(ok=False, error="not approved", kind="denied"))
    taken.call("city/find")

    assert (("not approved", Violation("tried to call city/find")),) == taken.calls.denied()


def test_a_handler_that_raises_costs_its_call(line: Make) -> None:
    def broken(_call: Call) -> Answer:
        raise KeyError("secret")

    taken = line(broken)

    assert Answer(ok=False, error="the call failed: KeyError", kind="transport") == taken.call("city/find")
    assert taken.calls.abuse is None


def test_an_answer_larger_than_a_result_may_be_is_the_tools_error(line: Make) -> None:
    taken = line(lambda _call: Answer(ok=True, value=b" " * RESULT_MAX + b"1"))

    assert Answer(ok=False, error="the answer is larger than 16 MiB", kind="tool") == taken.call("city/find")


# The list.


SPECS = (ToolSpec("city/find", "finds", b'{"type":"object"}'), ToolSpec("files/read", "reads", b"{}"))


def test_only_what_is_granted_is_listed(line: Make) -> None:
    answer = line(list_tools=lambda: SPECS).send(frame(tools.LIST, b""))

    assert answer is not None
    assert [{"name": "city/find", "description": "finds", "input_schema": {"type": "object"}}] == json.loads(
        answer.value
    )


def test_nothing_is_listed_where_nobody_knows_any(line: Make) -> None:
    assert Answer(ok=True, value=b"[]") == line().send(frame(tools.LIST, b""))


def test_a_list_that_cannot_be_had_is_said(line: Make) -> None:
    taken = line(list_tools=lambda: (ToolSpec("city/x", "", b"{"),))

    assert Answer(ok=False, error="the tools cannot be listed: JSONDecodeError", kind="transport") == taken.send(
        frame(tools.LIST, b"")
    )


# What is no call.


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\xff\xff\xff\xffC",
        frame(b"V", b"1"),
        frame(b"?", b""),
        frame(tools.LIST, b"x"),
        frame(tools.CALL, b"1"),
        frame(tools.CALL, b"[]"),
        frame(tools.CALL, b"{}"),
        frame(tools.CALL, b'{"tool":"city/find"}'),
        frame(tools.CALL, b'{"tool":"city/find","arguments":{},"id":1}'),
        frame(tools.CALL, b'{"tool":["city/find"],"arguments":{}}'),
        frame(tools.CALL, b'{"tool":"city/find","arguments":[]}'),
        frame(tools.CALL, b'{"tool":"city/find","arguments":"{}"}'),
    ],
)
def test_what_no_caller_of_ours_sends_is_abuse(data: bytes, line: Make) -> None:
    taken = line()

    assert taken.send(data) is None
    taken.wait()
    assert ("garbled", 0) == (taken.calls.abuse, taken.calls.made)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('{"a":NaN}', "the call holds NaN"),
        ('{"a":1e999}', "the call holds 1e999"),
        ('{"a":"\\ud800"}', "lone surrogate"),
        ('{"a":1,"a":2}', "the call holds a name twice"),
        ('{"a":{"b":1,"b":1}}', "the call holds a name twice"),
        ('{"a":' + "[" * 65 + "]" * 65 + "}", "nested deeper than 64"),
        ('{"a":[' + "1," * 200_001 + "1]}", "more than 200,000 nodes"),
        ('{"a":' + "9" * 5000 + "}", "not JSON"),
        ('{"a":"' + "x" * tools.ARGUMENTS_MAX + '"}', "the arguments are larger than 1 MiB"),
        ("{", "not JSON"),
    ],
)
def test_arguments_that_nobody_should_parse_are_refused(arguments: str, why: str, line: Make) -> None:
    taken = line()
    answer = taken.call("city/find", arguments)

    assert answer is not None
    assert ("arguments", False) == (answer.kind, answer.ok)
    assert why in answer.error
    assert (None, 0) == (taken.calls.abuse, taken.calls.made)


def test_bytes_that_are_no_text_are_refused(line: Make) -> None:
    answer = line().send(frame(tools.CALL, b'{"tool":"\xff","arguments":{}}'))

    assert answer is not None
    assert "the call is not UTF-8" == answer.error


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0\x09C", frame(tools.CALL, b'{"tool"')[:-1]])
def test_a_caller_that_hangs_up_is_no_abuse(data: bytes, line: Make) -> None:
    taken = line()

    assert taken.send(data) is None
    taken.wait()
    assert taken.calls.abuse is None
    assert taken.call("city/find") is not None


# How many.


@pytest.fixture
def held(line: Make) -> Iterator[tuple[Line, threading.Event]]:
    """A line whose handler waits until it is let go."""
    go = threading.Event()

    def handle(call: Call) -> Answer:
        assert go.wait(PATIENCE_S)
        return echo(call)

    yield line(handle), go
    go.set()


def test_a_caller_that_stalls_stops_nobody_else(line: Make) -> None:
    taken = line()
    taken.connect().sendall(b"\0\0")

    assert taken.call("city/find") is not None


def test_no_more_than_so_many_calls_are_taken_at_a_time(held: tuple[Line, threading.Event]) -> None:
    taken, go = held
    clients = [taken.waiting() for _ in range(calling.IN_FLIGHT_MAX + 1)]
    room = [taken.calls.accept() for _ in clients[:-1]]
    for client in clients:
        client.sendall(frame(tools.CALL, b'{"tool":"city/find","arguments":{}}'))
    go.set()
    for client in clients[:-1]:
        assert receive(client) is not None
    taken.wait()

    assert [True] * (calling.IN_FLIGHT_MAX - 1) + [False] == room
    assert taken.calls.woken()
    assert taken.calls.accept()
    assert receive(clients[-1]) is not None


def test_calls_of_operations_that_are_over_use_up_the_room_for_threads(line: Make) -> None:
    taken = line(room=threading.Semaphore(0))

    busy = Answer(ok=False, error="too many calls wait for an answer", kind="transport", retryable=True)
    assert busy == receive(taken.connect())


def test_the_room_is_given_back(line: Make) -> None:
    room = threading.Semaphore(1)
    taken = line(room=room)
    for _ in range(3):
        assert room.acquire(timeout=PATIENCE_S)
        room.release()
        assert taken.call("city/find") is not None


def test_too_many_calls_are_abuse(line: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "CALLS_MAX", 2)
    taken = line()
    for name in (b"files/a", b"files/b"):
        taken.calls.refuse(name)
    before = taken.calls.abuse
    taken.connect()

    assert before is None
    assert "calls" == taken.calls.abuse


def test_only_so_many_denials_are_kept(line: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "_DENIED_KEPT", 3)
    taken = line()
    for number in range(9):
        taken.calls.refuse(b"files/%d" % number)

    assert 3 == len(taken.calls.denied())


def test_nobody_there_any_more_is_no_call(line: Make) -> None:
    taken = line()

    assert taken.calls.accept()
    assert -1 == ToolCalls(GRANTED, Desk(), expected=False).fileno()


def test_closing_hangs_up_on_who_waits_and_forgets_what_comes_late(held: tuple[Line, threading.Event]) -> None:
    taken, go = held
    stalled = taken.connect()
    called = taken.connect()
    called.sendall(frame(tools.CALL, b'{"tool":"city/find","arguments":{}}'))
    taken.calls.close()
    go.set()

    assert receive(stalled) is None
    assert receive(called) is None


def test_what_does_not_listen_is_no_line() -> None:
    one, other = socket.socketpair()
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for sock in (one, datagrams, socket.create_server(("127.0.0.1", 0))):
        calls = ToolCalls(GRANTED, Desk(), expected=True)
        with pytest.raises(NoCall):
            calls.listen(sock.detach())
        calls.close()
    other.close()


# Real operations.


@pytest.fixture(scope="module")
def answered(_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """A supervisor whose operations may be given tools."""

    def handle(call: Call) -> Answer:
        if call.tool == "city/lost":
            return Answer(ok=False, error="no such city", kind="tool")
        if call.tool == "city/down":
            return Answer(ok=False, error="the server is down", kind="transport", retryable=True)
        return echo(call)

    project = tmp_path_factory.mktemp("answered")
    (project / "notes.txt").write_text("of the project")
    made = Supervisor(str(project), handle_call=handle, list_tools=lambda: SPECS)
    yield made
    made.close()


def python(supervisor: Supervisor, code: str, policy: Policy = GRANTED, **more: Any) -> Outcome:
    return supervisor.run(Job("python", code=code, policy=policy, project=supervisor.project, **more))


def shell(supervisor: Supervisor, script: str, policy: Policy = GRANTED, **more: Any) -> Outcome:
    argv = ("sh", "-c", script)
    return supervisor.run(Job("command", argv=argv, policy=policy, project=supervisor.project, **more))


def test_a_python_operation_calls_and_lists_its_tools(answered: Supervisor) -> None:
    code = "def run(params, tools):\n    return [tools.call('city/find', name='é', tool=1, self=2), tools.list()]"
    outcome = python(answered, code)

    assert [
        ["city/find", {"name": "é", "tool": 1, "self": 2}],
        [{"name": "city/find", "description": "finds", "input_schema": {"type": "object"}}],
    ] == outcome.value()
    assert (1, ()) == (outcome.calls, outcome.violations)


@pytest.mark.parametrize("policy", [GRANTED, Policy()])
def test_a_refused_call_is_an_error_inside_and_a_violation(policy: Policy, answered: Supervisor) -> None:
    code = "def run(tools):\n    tools.call('files/read', path='/etc')"
    outcome = python(answered, code, policy)
    catching = code.replace("tools.call(", "try: tools.call(") + "\n    except PermissionError as e: return str(e)"
    caught = python(answered, catching, policy)

    assert ("rejected", "denied", "--allow tool:files/read") == (outcome.status, outcome.reason, outcome.hint)
    assert "PermissionError: files/read is not granted: --allow tool:files/read (<operation>, line 2)" == outcome.error
    assert (Violation("tried to call files/read", "tool:files/read"),) == outcome.violations == caught.violations
    assert "files/read is not granted: --allow tool:files/read" == caught.value()
    assert 0 == outcome.calls


def test_the_errors_of_a_tool_and_of_the_way_to_it_are_told_apart(answered: Supervisor) -> None:
    code = (
        "def run(tools):\n"
        "    try:\n"
        "        tools.call('city/lost')\n"
        "    except tools.Error as error:\n"
        "        first = str(error)\n"
        "    try:\n"
        "        tools.call('city/down')\n"
        "    except tools.TransportError as error:\n"
        "        return [first, str(error), error.retryable]\n"
    )

    assert ["no such city", "the server is down", True] == python(answered, code).value()
    assert (
        "ToolError: no such city (<operation>, line 2)"
        == python(answered, "def run(tools):\n    tools.call('city/lost')").error
    )


def test_threads_and_forks_of_an_operation_call_at_the_same_time(answered: Supervisor) -> None:
    code = (
        "import os, threading\n"
        "def run(tools):\n"
        "    found = []\n"
        "    def call(n):\n"
        "        found.append(tools.call('city/find', n=n)[1]['n'])\n"
        "    threads = [threading.Thread(target=call, args=(n,)) for n in range(6)]\n"
        "    for thread in threads: thread.start()\n"
        "    for thread in threads: thread.join()\n"
        "    read, write = os.pipe()\n"
        "    for n in range(3):\n"
        "        if not os.fork():\n"
        "            os.write(write, b'%d' % tools.call('city/find', n=n)[1]['n'])\n"
        "            os._exit(0)\n"
        "    for n in range(3): os.wait()\n"
        "    return [sorted(found), sorted(os.read(read, 9).decode())]\n"
    )
    outcome = python(answered, code)

    assert [list(range(6)), ["0", "1", "2"]] == outcome.value()
    assert 9 == outcome.calls


def test_a_command_calls_and_lists_its_tools(answered: Supervisor) -> None:
    outcome = shell(answered, "sage-tool list && sage-tool call city/find '{\"a\": [1]}' --arg k=v=w", output="lines")
    listed, found = map(json.loads, outcome.value())

    assert ["city/find"] == [tool["name"] for tool in listed]
    assert ["city/find", {"a": [1], "k": "v=w"}] == found
    assert 1 == outcome.calls


def test_many_helpers_of_a_command_call_at_the_same_time(answered: Supervisor) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sage-tool call city/find --arg i=$i & done; wait"
    outcome = shell(answered, script, output="lines")

    assert {str(n) for n in range(1, 13)} == {json.loads(line)[1]["i"] for line in outcome.value()}
    assert 12 == outcome.calls


@pytest.mark.parametrize("policy", [GRANTED, Policy()])
def test_a_refused_call_of_a_command_is_a_violation(policy: Policy, answered: Supervisor) -> None:
    outcome = shell(answered, "sage-tool call files/read", policy)
    passed = shell(answered, "sage-tool call files/read; test $? = 77", policy)

    assert ("denied", 77, "--allow tool:files/read") == (outcome.reason, outcome.exit_code, outcome.hint)
    assert passed.ok
    assert (Violation("tried to call files/read", "tool:files/read"),) == outcome.violations == passed.violations


def test_a_helper_beneath_a_python_operation_calls_too(answered: Supervisor) -> None:
    code = (
        "import subprocess\n"
        "def run():\n"
        "    return subprocess.run(['sage-tool', 'call', 'time/now'], capture_output=True, text=True).stdout"
    )

    assert ["time/now", {}] == json.loads(python(answered, code).value())


def test_tools_and_files_can_both_be_granted(answered: Supervisor) -> None:
    policy = Policy(read=(answered.project,), tool=("city/find",))

    assert shell(answered, "cat notes.txt && sage-tool call city/find", policy).ok
    assert python(
        answered, "def run(tools):\n    return [open('notes.txt').read(), tools.call('city/find')]", policy
    ).ok


def test_a_reference_in_an_answer_and_in_a_result_stays_text(answered: Supervisor) -> None:
    outcome = python(answered, "def run(tools):\n    return tools.call('city/find', q='${params.secret}')")

    assert ["city/find", {"q": "${params.secret}"}] == outcome.value()


def test_a_large_answer_arrives_whole(answered: Supervisor) -> None:
    code = "def run(tools):\n    return len(tools.call('city/find', q='x' * 1_000_000)[1]['q'])"

    assert 1_000_000 == python(answered, code).value()


def test_arguments_that_are_no_json_are_the_operations_own_error(answered: Supervisor) -> None:
    for value, why in (
        ("float('nan')", "the arguments are no JSON"),
        ("'\\ud800'", "lone surrogate"),
        ("{1}", "the arguments are no JSON"),
        ("'x' * (1 << 20)", "larger than 1 MiB"),
        ("[[]] * 300_000", "the call has more than 200,000 nodes"),
    ):
        outcome = python(answered, f"def run(tools):\n    tools.call('city/find', a={value})")

        assert "error" == outcome.reason
        assert why in outcome.error


# Time.


@pytest.fixture
def slow(_namespaces: None, project: Path) -> Iterator[tuple[Supervisor, queue.Queue[str], threading.Event]]:
    """A supervisor whose handler tells that it was called, and waits until it is let go."""
    called: queue.Queue[str] = queue.Queue()
    go = threading.Event()

    def handle(call: Call) -> Answer:
        called.put(call.tool)
        assert go.wait(PATIENCE_S)
        return Answer(ok=True)

    made = Supervisor(str(project), handle_call=handle)
    yield made, called, go
    go.set()
    made.close()


def test_a_call_in_flight_is_cancelled_with_its_operation(
    slow: tuple[Supervisor, queue.Queue[str], threading.Event],
) -> None:
    supervisor, called, go = slow
    read, write = os.pipe()
    job = Job("python", code="def run(tools):\n    tools.call('city/find')", policy=GRANTED, project=supervisor.project)
    cancel = threading.Thread(target=lambda: (called.get(timeout=PATIENCE_S), os.write(write, b"x")))
    cancel.start()
    outcome = supervisor.run(job, cancel_fd=read)
    cancel.join()

    assert ("rejected", "cancelled", 1) == (outcome.status, outcome.reason, outcome.calls)
    go.set()
    assert python(supervisor, "def run(tools):\n    return tools.call('city/find')").ok
    for fd in (read, write):
        os.close(fd)


def test_an_operation_that_ends_before_its_call_is_answered_is_over(
    slow: tuple[Supervisor, queue.Queue[str], threading.Event],
) -> None:
    supervisor, _called, _go = slow
    code = (
        "import threading, time\n"
        "def run(tools):\n"
        "    threading.Thread(target=tools.call, args=('city/find',), daemon=True).start()\n"
        "    time.sleep(0.2)\n"
        "    return 1\n"
    )
    started = time.monotonic()
    outcome = python(supervisor, code)

    assert (True, 1) == (outcome.ok, outcome.value())
    assert time.monotonic() - started < PATIENCE_S
    assert outcome.calls in {0, 1}
