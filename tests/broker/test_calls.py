"""What a tool call comes to: answers, refusals and faults, told apart."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from brokered import puppet, registered, threaded, wait_for

from sage_sandbox.broker.client import BrokerClient, specs_of
from sage_sandbox.sandbox.calls import Answer, Call
from sage_sandbox.toolservers.definition import Server


def journal_of(path):
    return path.read_text().splitlines() if path.exists() else []


# -- answers -------------------------------------------------------------------------------------------------------


def test_a_single_text_is_the_result_as_it_is(run):
    assert run.value("echo", text="hello ${a.b} \x1b") == "hello ${a.b} \x1b"


def test_structured_content_is_preferred(run):
    assert run.value("structured", a=[1, {"b": None}]) == {"given": {"a": [1, {"b": None}]}}


def test_other_content_is_a_list_of_blocks(run):
    assert run.value("blocks") == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def test_one_session_serves_many_calls(run):
    assert len({run.value("pid") for _ in range(5)}) == 1


def test_lines_that_are_no_messages_are_passed_over(run):
    assert run.value("garbage") == "after the garbage"


def test_a_server_starts_in_the_project_with_a_small_environment_and_a_safe_path(project):
    environ = {**os.environ, "SAGE_STATE_KEY": "0" * 64, "ANTHROPIC_API_KEY": "sk-1", "API_KEY": "k-1", "OTHER": "x"}
    server = puppet(env=(("KEY", "${API_KEY}"), ("ZONE", "${ZONE:-UTC}")))
    with threaded(project, server, environ=environ) as run:
        given = run.value("environ")
        cwd = run.value("cwd")

    assert cwd == os.path.realpath(project)
    assert given["KEY"] == "k-1"
    assert given["ZONE"] == "UTC"
    assert given["PYTHONSAFEPATH"] == "1"
    assert not {"SAGE_STATE_KEY", "ANTHROPIC_API_KEY", "API_KEY", "OTHER"} & given.keys()


def test_what_a_variable_lacks_is_said_and_nothing_is_started(project, tmp_path):
    server = puppet("puppet", "--journal", str(tmp_path / "journal"), env=(("KEY", "${API_KEY}"),))
    with threaded(project, server, environ={"HOME": os.environ["HOME"]}, settings={"jitter": lambda: 0.0}) as run:
        answer = run.call("echo")

    assert "puppet needs API_KEY, which is not set" in answer.error
    assert journal_of(tmp_path / "journal") == []


def test_tools_are_listed_as_far_as_they_are_granted(project):
    with threaded(project, grants={"a/b": ("puppet/echo", "puppet/fail"), "c/d": ("nobody/*",)}) as run:
        specs = run.client.list_tools("a/b")
        assert run.client.list_tools("c/d") == ()
        assert run.client.list_tools("x/y") == ()

    assert [spec.name for spec in specs] == ["puppet/echo", "puppet/fail"]
    assert specs[0].description == "does echo"
    assert json.loads(specs[0].input_schema) == {"type": "object"}


# -- refusals ------------------------------------------------------------------------------------------------------


def test_an_error_of_the_tool_is_told_as_that(run):
    assert run.call("fail") == Answer(ok=False, error="puppet/fail: it cannot be done", kind="tool")


def test_an_error_of_the_protocol_is_an_answer_too(run):
    assert run.call("rpc-error") == Answer(ok=False, error="puppet: no such argument", kind="tool")
    assert run.call("unheard-of").kind == "tool"


def test_a_server_that_answers_no_is_not_left_alone(run):
    for _ in range(7):
        run.call("fail")

    assert run.look()["state"] == "closed"


def test_what_was_not_granted_is_denied_by_the_broker_itself(project, tmp_path):
    server = puppet("puppet", "--journal", str(tmp_path / "journal"))
    with threaded(project, server, grants={"a/b": ("puppet/echo",), "c/d": ("puppet/*",)}) as run:
        denied = run.call("fail")
        nowhere = run.call("puppet/echo", operation="e/f")

    assert denied == Answer(ok=False, error="puppet/fail is not granted to a/b", kind="denied")
    assert nowhere.kind == "denied"
    assert journal_of(tmp_path / "journal") == []


def test_a_grant_for_one_server_is_none_for_another_of_a_similar_name(project):
    with threaded(project, puppet("pup"), puppet("puppet"), grants={"a/b": ("pup/*",)}) as run:
        assert run.call("puppet/echo").kind == "denied"
        assert run.call("pup/../puppet/echo").kind == "tool"


def test_a_granted_server_that_is_not_registered_is_denied(project):
    with threaded(project, grants={"a/b": ("other/*",)}) as run:
        assert run.call("other/echo") == Answer(
            ok=False, error="there is no tool server other in this run", kind="denied"
        )


def test_another_token_is_none(run):
    stranger = BrokerClient(run.tools.line.path, "0" * 64)

    assert stranger.call("a/b", Call("puppet/echo", b"{}")).kind == "denied"
    stranger.close()


@pytest.mark.parametrize("arguments", [b"[]", b"{", b"1", b"[" * 100_000])
def test_arguments_that_are_no_mapping_are_refused(run, arguments):
    answer = run.client.call("a/b", Call("puppet/echo", arguments))

    assert answer == Answer(ok=False, error="the arguments of a tool are a mapping", kind="tool")


def test_an_answer_that_is_too_large_is_refused_and_the_session_lives(run):
    before = run.value("pid")
    answer = run.call("huge-text")

    assert answer == Answer(ok=False, error="puppet/huge-text answered with more than 16 MiB", kind="tool")
    assert run.value("pid") == before


# -- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "error"),
    [
        ("drop", "it ended its output"),
        ("half", "it ended its output"),
        ("huge-line", "it wrote a line of more than 17 MiB"),
        ("brackets", "the result has more than 200,000 nodes"),
        ("no-result", "gave an answer that is none"),
    ],
)
def test_a_server_that_breaks_fails_the_call_and_the_next_one_gets_a_new_session(run, tool, error):
    answer = run.call(tool)

    assert not answer.ok
    assert (answer.kind, answer.retryable) == ("transport", True)
    assert error in answer.error
    assert run.value("echo", text="alive") == "alive"


@pytest.mark.parametrize("tool", ["stall", "wrong-id", "flood"])
def test_a_server_that_does_not_answer_costs_its_caller_the_time_it_gave(run, tool):
    run.value("echo")
    answer = run.call(tool, timeout_s=0.3)

    assert answer.kind == "transport"
    assert "puppet gave no answer in 0 s" in answer.error
    assert run.value("echo", text="alive") == "alive"


def test_what_a_server_complained_of_last_is_in_the_error(project):
    server = puppet("puppet", "--refuse-start", "--stderr", "no database")
    with threaded(project, server, settings={"jitter": lambda: 0.0}) as run:
        answer = run.call("echo")

    assert answer.kind == "transport"
    assert "(it said: no database)" in answer.error


@pytest.mark.parametrize(
    ("command", "error"), [("/no/such/program", "no such file"), ("/etc/passwd", "permission denied"), ("cat", "")]
)
def test_a_program_that_is_no_server_is_said(project, command, error):
    server = Server("puppet", ".mcp.json", command)
    with threaded(project, server, settings={"jitter": lambda: 0.0, "start_s": 1.0}) as run:
        answer = run.call("echo")

    assert answer.kind == "transport"
    assert error in answer.error


def test_five_failures_leave_the_server_alone_and_the_others_work(project, tmp_path):
    journal = tmp_path / "journal"
    with threaded(project, puppet("bad", "--journal", str(journal)), puppet("good")) as run:
        failed = [run.call("bad/drop") for _ in range(5)]
        refused = run.call("bad/echo")
        good = run.call("good/echo", text="untouched")
        said = run.look("bad")

    assert {answer.kind for answer in failed} == {"transport"}
    assert "bad is not called: it failed 5 times in a row" in refused.error
    assert (refused.kind, refused.retryable) == ("transport", True)
    assert good.value == b'"untouched"'
    assert said["state"] == "open"
    assert sum("call" in line for line in journal_of(journal)) == 5
    assert [notice.text for notice in run.told if "left alone" in notice.text] == [
        "bad is left alone for a minute: it failed 5 times in a row (bad: it ended its output)"
    ]


def test_after_a_minute_one_call_tries_it(project):
    now = [1000.0]
    with threaded(project, settings={"clock": lambda: now[0]}) as run:
        for _ in range(5):
            run.call("drop")
        assert not run.call("echo").ok
        now[0] += 60.0
        assert run.value("echo", text="back") == "back"
        assert run.look()["state"] == "closed"

    assert [notice.text for notice in run.told][-2:] == [
        "puppet is tried again with one call",
        "puppet is called again",
    ]


def test_a_breaker_is_reset_by_hand(run):
    for _ in range(5):
        run.call("drop")
    run.tools.ask({"do": "reset", "server": "puppet"}, 5)

    assert run.value("echo", text="back") == "back"


def test_what_is_safe_to_repeat_is_repeated_and_each_attempt_told(project, tmp_path):
    journal = tmp_path / "journal"
    with threaded(project, puppet("puppet", "--journal", str(journal)), settings={"jitter": lambda: 0.0}) as run:
        safe = run.call("drop-safe")
        unsafe = run.call("drop")

    assert not safe.ok
    assert not unsafe.ok
    calls = [line.split()[2] for line in journal_of(journal) if " call " in line]
    assert calls == ["drop-safe"] * 3 + ["drop"]
    assert sum("puppet/drop-safe again in" in notice.text for notice in run.told) == 2


def test_no_more_than_four_calls_are_under_way_at_once(project):
    with threaded(project) as run:
        run.value("echo")
        seen = []
        threads = [threading.Thread(target=lambda: seen.append(int(run.value("count")))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(seen) == 12
    assert max(seen) <= 4


def test_a_definition_may_say_how_many(project):
    with threaded(project, puppet(at_once=1)) as run:
        run.value("echo")
        seen = []
        threads = [threading.Thread(target=lambda: seen.append(int(run.value("count")))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert seen == [1, 1, 1]


def test_a_call_that_waits_too_long_for_its_turn_fails_without_being_made(project, monkeypatch):
    monkeypatch.setattr("sage_sandbox.broker.calling.QUEUE_S", 0.0)
    with threaded(project, puppet(at_once=1)) as run:
        run.value("echo")
        first = threading.Thread(target=run.call, args=("sleep",), kwargs={"seconds": 2})
        first.start()
        wait_for(run.tools.broker._services.of(puppet(at_once=1)).throttle._places.locked)
        answer = run.call("echo", timeout_s=0.2)
        first.join()

    assert answer.error == "puppet/echo waited 0 s for its turn"
    assert answer.retryable


def test_a_call_that_is_given_up_is_cancelled_at_the_server(project, tmp_path):
    journal = tmp_path / "journal"
    gate = os.eventfd(0)
    with threaded(project, puppet("puppet", "--journal", str(journal))) as run:
        run.value("echo")
        answers = []
        calling = threading.Thread(
            target=lambda: answers.append(run.call("sleep", seconds=60, cancel_fd=gate, timeout_s=60))
        )
        calling.start()
        wait_for(lambda: any("call sleep" in line for line in journal_of(journal)))
        os.eventfd_write(gate, 1)
        calling.join(20)
        wait_for(lambda: any("cancelled" in line for line in journal_of(journal)))
        assert run.look()["state"] == "closed"
        assert run.value("echo", text="alive") == "alive"
    os.close(gate)

    assert answers == [Answer(ok=False, error="cancelled", kind="cancelled")]


def test_progress_is_told_now_and_then(project):
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    with threaded(project, settings={"clock": clock}) as run:
        run.call("progress", timeout_s=600)
        wait_for(lambda: any("step" in notice.text for notice in run.told))

    assert any("a/b: puppet/progress: 1 of 3, step 1" in notice.text for notice in run.told)


def test_a_list_of_tools_as_it_comes():
    assert specs_of(b"") == ()


def test_every_fault_leaves_the_process_of_the_broker_alive_and_small(project):
    """All of them in the real thing: 100 MB in a line are not held."""
    with registered(project, puppet(), puppet("good")) as run:
        assert run.call("good/echo", text="a").ok
        for tool in ("drop", "half", "huge-line", "brackets", "stall", "wrong-id", "flood", "no-result"):
            assert not run.call(tool, timeout_s=0.5).ok
            run.tools.ask({"do": "reset", "server": "puppet"}, 5)
        assert run.call("good/echo", text="b").ok
        status = Path(f"/proc/{run.pid}/status").read_text()

    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 220 << 10  # KiB; at rest it is 90 MiB
