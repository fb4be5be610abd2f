"""The socket that tool calls go over: whatever is written to it, the handler sees granted calls and nothing else."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

import pytest
from escape.attempt import PATIENCE_S

from sage_sandbox.outcome import Outcome, Violation
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.sandbox import calling
from sage_sandbox.sandbox.calls import Answer, Call
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor

GRANTED = Policy(tool=("files/read",))
NO_CALL = "the operation wrote to its tool channel what is no call"
NO_RESULT = "the operation wrote to its result channel what is no result"

RAW = """
import array, json, os, socket, struct, threading, time
PATH = "/sandbox/box/.sage-tools"
def connect():
    made = socket.socket(socket.AF_UNIX)
    made.connect(PATH)
    return made
def frame(kind, body):
    return struct.pack(">I", 1 + len(body)) + kind + body
def call(tool, arguments="{}"):
    return frame(b"C", ('{"tool":%s,"arguments":%s}' % (json.dumps(tool), arguments)).encode())
def answer(made):
    data = b""
    try:
        while part := made.recv(1 << 20):
            data += part
    except ConnectionResetError:  # with something of ours unread
        pass
    return data[4:].decode("latin-1")
def ask(data):
    made = connect()
    made.sendall(data)
    return answer(made)
def wait_for_the_end():
    time.sleep(600)
"""


@dataclass
class Office:
    """A supervisor, and what its handler was asked; ``go`` lets answers leave."""

    project: str
    supervisor: Supervisor = field(init=False)
    asked: list[Call] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    value: bytes = b'"a file"'

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(self.project, handle_call=self.handle)

    def handle(self, call: Call) -> Answer:
        self.asked.append(call)
        assert self.go.wait(PATIENCE_S)
        return Answer(ok=True, value=self.value)

    def run(self, body: str, policy: Policy = GRANTED, **more: object) -> Outcome:
        """The body of an operation's run(tools)."""
        code = f"{RAW}\ndef run(tools):\n{indent(body, '    ')}"
        job = Job("python", code=code, policy=policy, project=self.supervisor.project, **more)  # type: ignore[arg-type]
        return self.supervisor.run(job)

    def still_works(self) -> None:
        """The next operation's call is answered."""
        self.asked.clear()
        outcome = self.run("return tools.call('files/read', path='a')")

        assert (True, json.loads(self.value), 1) == (outcome.ok, outcome.value(), outcome.calls)
        assert [Call("files/read", b'{"path":"a"}')] == self.asked


def descriptors() -> int:
    """How many we have: a few are opened and closed with children, cgroups and threads, never so many as are sent."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(str(tmp_path))
    made.go.set()
    yield made
    made.go.set()
    made.supervisor.close()


def test_a_call_can_be_written_by_hand(office: Office) -> None:
    """What the attacks below vary goes through."""
    outcome = office.run("return ask(call('files/read', '{\"path\":\"a\"}'))")

    assert 'V"a file"' == outcome.value()
    assert [Call("files/read", b'{"path":"a"}')] == office.asked


@pytest.mark.parametrize(
    "data",
    [
        "b'\\xff' * 100",
        "b'\\0' * 100",
        "b'GET / HTTP/1.1\\r\\n\\r\\n'",
        "struct.pack('>I', 0)",
        "struct.pack('>I', 1 << 31) + b'C'",
        "struct.pack('>I', 2 << 20) + b'C'",
        "frame(b'V', b'1')",
        "frame(b'E', b'{}')",
        "frame(b'T', b'')",
        "frame(b'X', b'\\0\\0\\0\\0')",
        "frame(b'?', b'')",
        "frame(b'L', b'1')",
        "frame(b'C', b'[]')",
        "frame(b'C', b'{\"tool\":\"files/read\"}')",
        "frame(b'C', b'{\"tool\":{},\"arguments\":{}}')",
        'frame(b\'C\', b\'{"tool":"files/read","arguments":[]}\')',
        'frame(b\'C\', b\'{"tool":"files/read","arguments":{},"id":7}\')',
    ],
)
def test_garbage_ends_the_operation_and_nothing_else(data: str, office: Office) -> None:
    outcome = office.run(f"connect().sendall({data})\nwait_for_the_end()")

    assert ("rejected", "error", NO_CALL) == (outcome.status, outcome.reason, outcome.error)
    assert [] == office.asked
    office.still_works()


@pytest.mark.parametrize(
    "arguments",
    [
        "'{\"a\":' + '[' * 100_000 + '}'",
        "'{\"a\":' + '[' * 65 + ']' * 65 + '}'",
        "'{\"a\":[' + '1,' * 300_000 + '1]}'",
        "'{\"a\":NaN}'",
        "'{\"a\":-Infinity}'",
        "'{\"a\":1e999}'",
        '\'{"a":"\\\\ud800"}\'',
        '\'{"path":"a","path":"/etc/shadow"}\'',
        "'{\"a\":\"' + 'x' * 1_048_570 + '\"}'",
        "'{\"a\":' + '9' * 5000 + '}'",
        "'{} {}'",
        "'{'",
    ],
)
def test_arguments_that_would_harm_a_parser_reach_none(arguments: str, office: Office) -> None:
    outcome = office.run(f"return ask(call('files/read', {arguments}))")

    assert outcome.value().startswith('E{"kind": "arguments"')
    assert ([], 0) == (office.asked, outcome.calls)
    office.still_works()


@pytest.mark.parametrize(
    ("tool", "granted"),
    [
        ("files/write", "tool:files/write"),
        ("mail/send", "tool:mail/send"),
        ("files/read/../write", ""),
        ("files/../files/read", ""),
        ("files/read\0", ""),
        ("files/read\nfiles/write", ""),
        ("files/read ", ""),
        ("FILES/read", "tool:FILES/read"),
        ("files/re*", ""),
        ("*/*", ""),
        ("files/*", ""),
        ("", ""),
        ("a" * 100_000, ""),
    ],
)
def test_a_tool_that_is_not_granted_is_not_called(tool: str, granted: str, office: Office) -> None:
    outcome = office.run(
        f"try:\n    tools.call({tool!r}, path='a')\nexcept PermissionError as error:\n    return str(error)"
    )
    violation = Violation(f"tried to call {tool}", granted) if granted else Violation("tried to call what is no tool")

    assert outcome.ok
    assert (violation,) == outcome.violations
    assert outcome.value().isprintable()
    assert ([], 0) == (office.asked, outcome.calls)
    office.still_works()


def test_a_bare_star_grants_nothing(office: Office) -> None:
    outcome = office.run("tools.call('files/read')", Policy(tool=("*", "*/*", "files/r*")))

    assert ("denied", []) == (outcome.reason, office.asked)


def test_where_nothing_is_granted_nobody_listens(office: Office) -> None:
    outcome = office.run("connect()", Policy())

    assert "FileNotFoundError" in outcome.error
    assert [] == office.asked


def test_an_operation_that_answers_itself_fools_itself_only(office: Office) -> None:
    body = (
        "os.unlink(PATH)\n"
        "forged = socket.socket(socket.AF_UNIX)\n"
        "forged.bind(PATH)\n"
        "forged.listen()\n"
        "def serve():\n"
        "    made, _ = forged.accept()\n"
        "    made.recv(100_000)\n"
        "    made.sendall(frame(b'V', b'\"forged\"'))\n"
        "threading.Thread(target=serve).start()\n"
        "return tools.call('files/read')"
    )
    outcome = office.run(body)

    assert ("forged", 0, []) == (outcome.value(), outcome.calls, office.asked)
    office.still_works()


def test_a_connection_carries_one_call(office: Office) -> None:
    outcome = office.run("return ask(call('files/read') + call('files/write') + frame(b'V', b'1'))")

    assert (True, 1, ()) == (outcome.ok, outcome.calls, outcome.violations)
    assert ["files/read"] == [call.tool for call in office.asked]


@pytest.mark.parametrize("sent", ["call('files/read')", "frame(b'L', b'')", "frame(b'T', b'')"])
def test_the_result_channel_takes_no_calls(sent: str, office: Office) -> None:
    outcome = office.run(f"os.write(3, {sent})\nwait_for_the_end()")

    assert ("rejected", "error", NO_RESULT) == (outcome.status, outcome.reason, outcome.error)
    assert [] == office.asked
    office.still_works()


@pytest.mark.parametrize("policy", [GRANTED, Policy()])
def test_a_descriptor_sent_over_the_result_channel_is_not_taken(policy: Policy, office: Office) -> None:
    """Not even one that listens, under the very word that our own code sends one with."""
    body = (
        "other = socket.socket(socket.AF_UNIX)\n"
        "other.bind('/sandbox/box/other')\n"
        "other.listen()\n"
        "result = socket.socket(fileno=3)\n"
        "socket.send_fds(result, [frame(b'T', b'')], [other.fileno()] * 50)\n"
        "wait_for_the_end()"
    )
    office.still_works()
    before = descriptors()
    outcome = office.run(body, policy)
    office.still_works()

    assert ("rejected", NO_RESULT) == (outcome.status, outcome.error)
    assert descriptors() - before < 25


def test_descriptors_sent_with_a_call_are_not_taken(office: Office) -> None:
    body = (
        "made = connect()\n"
        "socket.send_fds(made, [call('files/read')], [os.open('/dev/null', os.O_RDONLY)] * 50)\n"
        "return [answer(made), len(os.listdir('/dev'))]"
    )
    before = descriptors()
    outcome = office.run(body)

    assert 'V"a file"' == outcome.value()[0]
    assert descriptors() - before < 25


def test_a_violation_that_an_operation_makes_up_is_bounded(office: Office) -> None:
    body = "os.write(3, b''.join(frame(b'N', b'files/x%d' % n) for n in range(500)))\nreturn 1"
    outcome = office.run(body, Policy())

    assert (True, 1) == (outcome.ok, outcome.value())
    assert 0 < len(outcome.violations) <= 100
    assert all(violation.allow.startswith("tool:files/x") for violation in outcome.violations)


@pytest.mark.parametrize("name", ["b'\\xff\\0\\n'", "b''", "b'x' * 100_000"])
def test_a_made_up_violation_says_nothing_of_its_own(name: str, office: Office) -> None:
    outcome = office.run(f"os.write(3, frame(b'N', {name}))\nreturn 1", Policy())

    assert (Violation("tried to call what is no tool"),) == outcome.violations


# Floods and stalls.


@pytest.mark.parametrize(
    ("body", "policy"),
    [
        ("while True: tools.call('files/read')", GRANTED),
        ("while True:\n    try: tools.call('mail/send')\n    except PermissionError: pass", GRANTED),
        ("while True:\n    try: tools.call('mail/send')\n    except PermissionError: pass", Policy()),
        ("while True: connect().close()", GRANTED),
        ("while True: os.write(3, frame(b'N', b'a/b') * 1000)", Policy()),
    ],
)
def test_a_flood_of_calls_is_a_limit(
    body: str, policy: Policy, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "CALLS_MAX", 300)
    outcome = office.run(body, policy)

    assert ("rejected", "limit", "calls limit 10,000 exceeded") == (outcome.status, outcome.reason, outcome.error)
    assert outcome.calls <= 300
    office.still_works()


def test_callers_that_say_nothing_hold_up_their_own_operation_only(office: Office) -> None:
    """As many as may call at a time, and more that wait: the supervisor goes on to watch the time."""
    before = threading.active_count()
    body = "silent = [connect() for _ in range(30)]\nsilent[0].sendall(b'\\0\\0')\ntools.call('files/read')"
    outcome = office.run(body, limits=Limits(timeout_s=1))

    assert ("rejected", "timeout", 0) == (outcome.status, outcome.reason, outcome.calls)
    office.still_works()
    assert before + calling.IN_FLIGHT_MAX + 1 >= threading.active_count()


def test_an_answer_that_nobody_reads_is_let_go(office: Office) -> None:
    office.value = b'"' + b"x" * (8 << 20) + b'"'
    outcome = office.run(
        "made = connect()\nmade.sendall(call('files/read'))\nassert made.recv(1)\nreturn [1, made.fileno() > 0]"
    )

    assert [1, True] == outcome.value()
    office.value = b'"a file"'
    office.still_works()


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os._exit(0)", "error"),
        ("os.close(3)", "error"),
        ("wait_for_the_end()", "timeout"),
        ("os.write(3, frame(b'V', b'1'))", None),
    ],
)
def test_an_operation_may_end_while_its_call_is_carried_out(end: str, reason: str | None, office: Office) -> None:
    office.go.clear()
    body = f"threading.Thread(target=tools.call, args=('files/read',), daemon=True).start()\ntime.sleep(0.1)\n{end}\n"
    outcome = office.run(body + "wait_for_the_end()", limits=Limits(timeout_s=3))

    assert reason == outcome.reason
    office.go.set()
    office.still_works()


def test_what_a_command_writes_to_the_channel_is_no_more_than_an_operation_does(office: Office) -> None:
    program = f"{RAW}\nconnect().sendall(b'GET / HTTP/1.1')\nwait_for_the_end()"
    job = Job("command", argv=("python3", "-c", program), policy=GRANTED, project=office.supervisor.project)
    outcome = office.supervisor.run(job)

    assert ("rejected", "error", NO_CALL) == (outcome.status, outcome.reason, outcome.error)
    office.still_works()


def test_the_socket_of_one_operation_is_not_that_of_the_next(office: Office) -> None:
    """The path is the same, and what listens there is another's."""
    first = office.run("os.mkdir('/sandbox/box/kept')\nreturn sorted(os.listdir('/sandbox/box'))")
    second = office.run("return sorted(os.listdir('/sandbox/box'))")

    assert ".sage-tools" in first.value()
    assert "kept" in first.value()
    assert "kept" not in second.value()
