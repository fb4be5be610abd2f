"""The result socket, descriptor 3 of a Python operation: what is written to it is data, never more than an outcome."""

from __future__ import annotations

import json
import pickle
import struct
import time

import pytest
from escape.attempt import Bench, Did

from sage_sandbox.escaping import escape
from sage_sandbox.outcome import Capabilities
from sage_sandbox.policy import RESULT_MAX, Limits
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.untrusted import NODES_MAX
from sage_sandbox.sandbox.verdict import Ending, judge

GARBAGE = "the operation wrote to its result channel what is no result"
SEND = """
import os, struct
def put(data):
    while data:
        data = data[os.write(3, data):]
def send(kind, body):
    put(struct.pack(">I", 1 + len(body)) + kind + body)
"""


def loads(text: str) -> object:
    """What a parser without our check makes of it: the act succeeding outside."""
    return json.loads(text)


@pytest.mark.parametrize(
    "data",
    [
        "b'\\xff' * 100",
        "b'\\0' * 100",
        "struct.pack('>I', 0)",
        "struct.pack('>I', 1 << 31) + b'V'",
        "struct.pack('>I', 18 << 20) + b'V1'",
        "b'GET / HTTP/1.1\\r\\n\\r\\n'",
        "struct.pack('>I', 2) + b'?1'",
        "struct.pack('>I', 1) + b'R'",
        "struct.pack('>I', 2) + b'W1'",
        "struct.pack('>I', 2) + b'F1'",
        "struct.pack('>I', 2) + b'S1'",
    ],
)
def test_garbage_is_an_error_of_the_operation(bench: Bench, data: str) -> None:
    outcome = bench.run(f"{SEND}\ndef run():\n    put({data})\n    os.read(0, 1)\n    import time\n    time.sleep(60)")

    assert ("rejected", "error", GARBAGE) == (outcome.status, outcome.reason, outcome.error)
    assert Did(1) == bench.inside("def act():\n    return os.getpid()")


def test_a_length_without_a_body_is_no_result(bench: Bench) -> None:
    outcome = bench.run(f"{SEND}\ndef run():\n    put(struct.pack('>I', 100) + b'V')\n    os._exit(0)")

    assert ("rejected", "error") == (outcome.status, outcome.reason)
    assert "ended without a result" in outcome.error


def test_an_operation_that_closes_the_channel_has_no_result(bench: Bench) -> None:
    outcome = bench.run("import os, time\ndef run():\n    os.close(3)\n    time.sleep(60)")

    assert ("rejected", "error") == (outcome.status, outcome.reason)


@pytest.mark.parametrize("body", ["struct.pack('>i', 0)", "b''", "b'123456789'"])
def test_a_python_operation_is_not_taken_for_a_command_that_exited(bench: Bench, body: str) -> None:
    outcome = bench.run(f"{SEND}\ndef run():\n    send(b'X', {body})")

    assert ("rejected", "error", GARBAGE) == (outcome.status, outcome.reason, outcome.error)
    assert outcome.exit_code is None


def test_a_forged_end_of_a_command_at_the_processor_limit_is_an_outcome(bench: Bench) -> None:
    """The wait status in it is looked at to name the limit; it may be anything."""
    job = Job("python", limits=Limits(cpu_s=1))
    ending = Ending(job, None, (b"X", b""), 0, 1.0, 1.01, 0, b"", b"", b"", Capabilities())

    assert "rejected" == judge(ending).status


@pytest.mark.parametrize(
    "error",
    [
        "{}",
        "[]",
        "1",
        "null",
        '"x"',
        '{"type": []}',
        '{"errno": []}',
        '{"errno": {}}',
        '{"errno": 1e300}',
        '{"errno": -1, "path": "/x"}',
        '{"type": "SpawnError"}',
        '{"type": "SpawnError", "errno": 2}',
        '{"line": -1}',
        '{"line": true}',
        '{"message": {}, "path": []}',
        '{"errno": 2, "path": "' + "a/" * 4000 + '"}',
        '{"errno": 2, "path": "\\u0000"}',
        '{"module": "a.b", "errno": 2}',
        '{"module": 5}',
    ],
)
def test_a_forged_error_is_an_outcome(bench: Bench, error: str) -> None:
    outcome = bench.run(f"{SEND}\ndef run():\n    send(b'E', {error.encode()!r})")

    assert "rejected" == outcome.status
    assert len(outcome.error) < 10_000


def test_an_exception_of_any_name_is_an_outcome(bench: Bench) -> None:
    """The words of the protocol are no names that an operation may not use."""
    for name in ("SpawnError", "ResultTooLarge", "StepFailed"):
        outcome = bench.run(f"class {name}(Exception): pass\ndef run():\n    raise {name}('x')")

        assert "rejected" == outcome.status


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "[NaN]",
        "1e999",
        "-1e999",
    ],
)
def test_a_number_that_json_does_not_have_is_refused(bench: Bench, text: str) -> None:
    outcome = bench.run(f"{SEND}\ndef run():\n    send(b'V', {text.encode()!r})")

    assert isinstance(loads(text), float | list)
    assert ("rejected", "error") == (outcome.status, outcome.reason)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 65 + "]" * 65, '{"a":' * 100_000, "[" + "1," * 200_001 + "1]", "[[],[" * 50_000]
)
def test_a_shape_that_would_exhaust_a_parser_is_refused(bench: Bench, text: str) -> None:
    outcome = bench.run(f"{SEND}\ndef run(params):\n    send(b'V', params['text'].encode())", {"text": text})

    assert ("rejected", "error") == (outcome.status, outcome.reason)
    assert "the result" in outcome.error


@pytest.mark.parametrize(
    "body",
    [
        "b'\"\\xff\"'",
        "b'\"\\\\ud800\"'",
        "b'\\xef\\xbb\\xbf1'",
        "b''",
        "b'{'",
        "b'1 2'",
        "b'[1,]'",
        "b'\"\\n\"'",
        "b'9' * 5000",
    ],
)
def test_what_is_no_clean_json_is_refused(bench: Bench, body: str) -> None:
    outcome = bench.run(f"{SEND}\ndef run():\n    send(b'V', {body})")

    assert ("rejected", "error") == (outcome.status, outcome.reason)


def test_a_string_without_an_end_is_refused_at_once(bench: Bench) -> None:
    """32 KiB of what may be 16 MiB: the time must not grow with the square of the size."""
    started = time.process_time()
    outcome = bench.run(f"{SEND}\ndef run():\n    send(b'V', b'\"' + b'\\\\\"' * (1 << 14))")

    assert ("rejected", "error") == (outcome.status, outcome.reason)
    assert time.process_time() - started < 0.5


def test_a_long_line_on_stderr_is_judged_at_once(bench: Bench) -> None:
    """A third of what is kept of a stream, with no slash in it."""
    started = time.process_time()
    outcome = bench.command(
        "sh", "-c", "head -c 24000 /dev/zero | tr '\\0' a >&2; echo ': Permission denied' >&2; exit 1"
    )

    assert "error" == outcome.reason
    assert time.process_time() - started < 0.5


def test_a_result_larger_than_the_cap_is_refused_by_the_child(bench: Bench) -> None:
    outcome = bench.run(f"def run():\n    return 'x' * {RESULT_MAX}")

    assert ("rejected", "limit", "result limit 16 MiB exceeded") == (outcome.status, outcome.reason, outcome.error)


def test_a_frame_larger_than_the_cap_is_refused_by_the_supervisor(bench: Bench) -> None:
    outcome = bench.run(f"{SEND}\ndef run():\n    send(b'V', b'\"' + b'x' * {RESULT_MAX + (1 << 20)} + b'\"')")
    just = bench.run(f"{SEND}\ndef run():\n    send(b'V', b'\"' + b'x' * {RESULT_MAX} + b'\"')")

    assert ("rejected", "error", GARBAGE) == (outcome.status, outcome.reason, outcome.error)
    assert ("rejected", "error", "the result is larger than 16 MiB") == (just.status, just.reason, just.error)


@pytest.mark.parametrize(("what", "output"), [("\\n", "lines"), ("\\001", "text")])
def test_what_a_command_wrote_is_no_larger_as_a_result_than_a_result_may_be(
    bench: Bench, what: str, output: str
) -> None:
    outcome = bench.command("sh", "-c", f"head -c 12000000 /dev/zero | tr '\\0' '{what}'", output=output)

    assert len(outcome.result) <= RESULT_MAX
    assert outcome.result.count(b",") <= NODES_MAX


def test_pickled_bytes_stay_bytes(bench: Bench) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("__import__('os').environ.__setitem__('SAGE_BOMB', '1')",)

    data = pickle.dumps(Bomb())
    outcome = bench.run(f"{SEND}\ndef run():\n    send(b'V', {data!r})")
    text = bench.run(f"def run():\n    return {data.decode('latin-1')!r}")

    assert b"eval" in data
    assert "rejected" == outcome.status
    assert text.value() == data.decode("latin-1")


def test_only_the_first_frame_counts(bench: Bench) -> None:
    outcome = bench.run(f"{SEND}\ndef run():\n    put((struct.pack('>I', 2) + b'V1') * 3)\n    return 2")

    assert (True, 1) == (outcome.ok, outcome.value())


def test_a_result_is_the_operations_own_word_and_ends_it(bench: Bench) -> None:
    """Nothing of it goes on after it has sent one."""
    code = f"{SEND}\ndef run():\n    if os.fork():\n        send(b'V', b'1')\n    import time\n    time.sleep(60)"
    outcome = bench.run(code)

    assert (True, 1) == (outcome.ok, outcome.value())
    assert outcome.duration_s < 30


def test_what_returns_something_else_than_data_is_refused(bench: Bench) -> None:
    for value in ("object()", "{1}", "b'x'", "float('nan')", "'\\ud800'", "{(1, 2): 3}"):
        outcome = bench.run(f"def run():\n    return {value}")

        assert ("rejected", "error") == (outcome.status, outcome.reason), value


def test_an_exception_that_hides_its_message_is_an_outcome(bench: Bench) -> None:
    code = (
        "class E(Exception):\n"
        "    def __str__(self):\n"
        "        import os\n"
        "        raise SystemExit(0)\n"
        "def run():\n"
        "    raise E"
    )
    outcome = bench.run(code)

    assert ("rejected", "error") == (outcome.status, outcome.reason)
    assert outcome.error.startswith("E")


def test_an_escape_sequence_in_a_message_does_not_reach_a_terminal(bench: Bench) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\u202egpj.exe\r\n$ "
    outcome = bench.run(f"def run():\n    raise ValueError({hostile!r})")
    shown = escape(outcome.error)

    assert "\x1b" in outcome.error
    assert shown.isprintable()
    assert "\\x1b]0;owned\\x07" in shown


def test_a_frame_is_big_endian_and_counts_its_kind() -> None:
    """What the tests above forge is what the supervisor reads."""
    assert b"\0\0\0\x02" == struct.pack(">I", 2)
