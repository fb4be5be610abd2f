from __future__ import annotations

import json
import os
import threading
from dataclasses import replace

import pytest
from brokered import puppet, threaded, wait_for

from sage_sandbox.broker.runs import Keeping
from sage_sandbox.errors import ReferenceMissing
from sage_sandbox.operations.base import Circumstances, Setting
from sage_sandbox.operations.caller import Caller
from sage_sandbox.operations.making import make_job
from sage_sandbox.outcome import Outcome, Violation, rejected
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.sandbox.calls import Call
from sage_sandbox.sandbox.job import Job
from sage_sandbox.workflow.definition import Operation

SETTING = Setting("run-1", "/project", "", require_cgroup=False, environ={})
HERE = Circumstances("a", "b", 1, Policy(tool=("puppet/echo",)), Limits(timeout_s=5), b"{}")


def job(tool, timeout_s=30.0, **given):
    return Job("mcp", tool=tool, params=json.dumps(given).encode(), limits=Limits(timeout_s=timeout_s))


@pytest.fixture
def caller(tmp_path):
    with threaded(tmp_path, settings={"jitter": lambda: 0.0}) as run:
        made = Caller()
        made.begin("a/b", run.tools.line)
        yield made
        made.close()


def test_an_mcp_operation_becomes_a_call_with_its_references_filled_in() -> None:
    operation = Operation("b", "mcp", tool="puppet/echo", params={"text": "${feature}", "n": "${x.n}"})
    made = make_job(operation, SETTING, HERE, {"feature": "f", "x": {"n": 5}})

    assert (made.type, made.tool, json.loads(made.params)) == ("mcp", "puppet/echo", {"text": "f", "n": 5})
    assert (made.policy, made.limits) == (HERE.policy, HERE.limits)


def test_no_params_are_no_arguments() -> None:
    assert make_job(Operation("b", "mcp", tool="p/t"), SETTING, HERE, {}).params == b"{}"


def test_a_whole_reference_may_be_the_arguments() -> None:
    operation = Operation("b", "mcp", tool="p/t", params="${x}")

    assert make_job(operation, SETTING, HERE, {"x": {"a": 1}}).params == b'{"a":1}'
    with pytest.raises(ReferenceMissing, match="the arguments of p/t are no mapping"):
        make_job(operation, SETTING, HERE, {"x": [1]})


def test_arguments_have_an_end() -> None:
    operation = Operation("b", "mcp", tool="p/t", params={"text": "x" * (1 << 20)})

    with pytest.raises(ReferenceMissing, match="larger than 1 MiB"):
        make_job(operation, SETTING, HERE, {})


def test_an_answer_is_the_result(caller):
    outcome = caller.run(job("puppet/structured", a=1))

    assert outcome.ok
    assert outcome.value() == {"given": {"a": 1}}
    assert outcome.level == "none"
    assert outcome.duration_s > 0


@pytest.mark.parametrize(
    ("tool", "timeout_s", "reason", "error"),
    [
        ("puppet/fail", 30, "error", "puppet/fail: it cannot be done"),
        ("puppet/drop", 30, "unavailable", "it ended its output"),
        ("puppet/stall", 0.3, "timeout", "gave no answer"),
        ("other/tool", 30, "denied", "other/tool is not granted to a/b"),
    ],
)
def test_what_went_wrong_is_told_apart(caller, tool, timeout_s, reason, error):
    outcome = caller.run(job(tool, timeout_s))

    assert outcome.reason == reason
    assert error in outcome.error


def test_a_denial_names_the_grant(caller):
    outcome = caller.run(job("other/tool"))

    assert outcome.hint == "--allow tool:other/tool"
    assert outcome.violations == (Violation("other/tool is not granted to a/b", "tool:other/tool"),)


def test_a_cancel_ends_the_call(caller):
    gate = os.eventfd(1)

    assert caller.run(job("puppet/sleep", seconds=60), cancel_fd=gate).reason == "cancelled"
    os.close(gate)


def test_what_an_operation_left_waiting_ends_with_it(tmp_path):
    journal = tmp_path / "journal"
    with threaded(tmp_path, puppet("puppet", "--journal", str(journal))) as run:
        caller = Caller()
        caller.begin("a/b", run.tools.line)
        answers = []
        child = threading.Thread(
            target=lambda: answers.append(caller.call(Call("puppet/sleep", b'{"seconds": 60}'), timeout_s=60))
        )
        child.start()
        wait_for(lambda: journal.exists() and "call sleep" in journal.read_text())
        caller.end()
        child.join(20)
        wait_for(lambda: "cancelled" in journal.read_text())
        caller.begin("a/b", run.tools.line)
        assert caller.run(job("puppet/echo", text="alive")).value() == "alive"
        caller.close()

    assert [answer.kind for answer in answers] == ["cancelled"]


def test_answers_of_before_are_noted_for_the_operation_that_was_given_them(tmp_path):
    keeping = Keeping("ab" * 32, encrypt=True, ttl_s=60.0, first={"a/b": 60.0})
    with threaded(tmp_path, keeping=keeping) as run:
        caller = Caller()
        caller.begin("a/b", run.tools.line)
        fresh = caller.noted(caller.run(job("puppet/echo", text="hello")))
        caller.begin("a/b", run.tools.line)
        for _ in range(2):
            caller.call(Call("puppet/echo", b'{"text": "hello"}'))
        again = caller.noted(caller.run(job("puppet/echo", text="hello")))
        caller.begin("a/b", run.tools.line)
        other = caller.noted(Outcome("fulfilled"))
        caller.close()

    (answer,) = again.cached_answers
    assert again.cached_s is not None
    assert again.value() == "hello"
    assert (answer.tool, answer.times, answer.unavailable) == ("puppet/echo", 3, False)
    assert () == fresh.cached_answers == other.cached_answers
    assert fresh.cached_s is None


def test_what_failed_for_want_of_a_server_says_which(caller):
    assert caller.call(Call("puppet/drop", b"{}")).kind == "transport"
    failed = caller.noted(rejected("error", "TransportError: it ended its output"))
    limited = caller.noted(rejected("limit", "memory"))

    assert (failed.reason, failed.lacked) == ("unavailable", ("puppet",))
    assert (limited.reason, limited.lacked) == ("limit", ("puppet",))
    assert caller.noted(Outcome("fulfilled")) == Outcome("fulfilled")


def test_a_call_that_was_waited_for_when_the_time_was_up_is_the_servers_fault(tmp_path):
    journal = tmp_path / "journal"
    with threaded(tmp_path, puppet("puppet", "--journal", str(journal))) as run:
        caller = Caller()
        caller.begin("a/b", run.tools.line)
        child = threading.Thread(target=caller.call, args=(Call("puppet/stall", b"{}"),))
        child.start()
        wait_for(lambda: journal.exists() and "call stall" in journal.read_text())
        late = caller.noted(rejected("timeout", "it took too long"))
        failed = caller.noted(rejected("error", "it failed meanwhile"))
        caller.end()
        child.join(20)
        caller.close()

    assert (late.reason, late.lacked) == ("timeout", ("puppet",))
    assert failed == rejected("error", "it failed meanwhile")


def test_without_a_broker_there_are_no_tools():
    caller = Caller()
    caller.begin("a/b", None)
    caller.end()

    assert caller.call(Call("p/t", b"{}")).kind == "denied"
    assert caller.list_tools() == ()
    assert caller.run(job("p/t")).reason == "denied"
    caller.close()


def test_what_is_listed_is_what_the_operation_that_runs_was_granted(tmp_path):
    grants = {"a/b": ("puppet/echo",), "c/d": ("puppet/fail",)}
    with threaded(tmp_path, puppet(), grants=grants) as run:
        caller = Caller()
        for operation, tool in (("a/b", "puppet/echo"), ("c/d", "puppet/fail")):
            caller.begin(operation, run.tools.line)
            assert [spec.name for spec in caller.list_tools()] == [tool]
        caller.begin("e/f", replace(run.tools.line, token="0" * 64))
        assert caller.list_tools() == ()
        caller.close()


def test_a_result_that_no_reader_should_parse_is_an_error(caller, monkeypatch):
    monkeypatch.setattr("sage_sandbox.sandbox.untrusted.NODES_MAX", 3)
    outcome = caller.run(job("puppet/structured", a=[1, 2, 3, 4, 5]))

    assert outcome.reason == "error"
    assert "nodes" in outcome.error


def test_a_run_that_was_granted_no_model_asks_none() -> None:
    made = Caller()
    made.begin("a/b", None)
    request = {"prompt": "p", "system": "", "maxTokens": 1, "schema": None}
    outcome = made.run(Job("llm", model="a/m", params=json.dumps(request).encode()))

    assert (outcome.reason, outcome.error, outcome.hint) == (
        "denied",
        "no model was granted to this run",
        "--allow model:a/m",
    )
    assert outcome.violations == (Violation("no model was granted to this run", "model:a/m"),)
