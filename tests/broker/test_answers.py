"""Answers that are kept: whom they stand in for, and for whom they do not."""

from __future__ import annotations

import json
import os
import select
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from brokered import Registered, puppet, threaded, wait_for

from sage_sandbox.audit.log import open_audit
from sage_sandbox.broker import answers
from sage_sandbox.broker.answers import Request, answer_key, open_answers
from sage_sandbox.broker.calling import NoRecord
from sage_sandbox.broker.runs import Keeping, Registration
from sage_sandbox.brokering import needs_of
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import SageError
from sage_sandbox.store.cache import clear, stats

KEEPING = Keeping("ab" * 32, encrypt=True, ttl_s=86400.0)
QUICK = {"jitter": lambda: 0.0}


@pytest.fixture
def down(tmp_path):
    return tmp_path / "down"


@pytest.fixture
def server(tmp_path, down):
    """One that is broken while there is a file ``down``."""
    return puppet("puppet", "--journal", str(tmp_path / "journal"), "--down", str(down))


@pytest.fixture
def calls(tmp_path):
    journal = tmp_path / "journal"
    return lambda: [line.split()[2] for line in journal.read_text().splitlines() if " call " in line]


def keeping_run(project, *servers, keeping=KEEPING, now=None, **more):
    settings = {**QUICK, "make_answers": partial(open_answers, now=now)} if now else QUICK
    return threaded(project, *servers, keeping=keeping, settings=settings, **more)


def kept_by(project, server, *tools, **more):
    """Call tools in a run of its own, which ends."""
    with keeping_run(project, server, **more) as run:
        for tool in tools:
            assert run.call(tool, text="hello").ok


def unavailable(run, tool="echo", **given):
    """What a call comes to; the whole of it."""
    return run.call(tool, **(given or {"text": "hello"}))


def test_a_kept_answer_stands_in_for_a_server_that_is_unavailable_and_is_said_with_its_age(project, server, down):
    kept_by(project, server, "echo", now=lambda: 1e9)
    down.touch()
    with keeping_run(project, server, now=lambda: 1e9 + 3 * 86400.0, keeping=replace(KEEPING, ttl_s=1e9)) as run:
        first, second = unavailable(run), unavailable(run)

    assert ("hello", 3 * 86400.0, True) == (json.loads(first.value), first.cached_s, first.unavailable)
    assert second == first
    said = [notice.text for notice in run.told if "cached" in notice.text]
    assert ["External API unavailable (puppet) · ✓ using cached data from 3 days ago"] == said


def test_a_kept_answer_stands_in_while_the_breaker_is_open(project, server, down):
    with keeping_run(project, server) as run:
        assert run.call("echo", text="hello").cached_s is None
        down.touch()
        for _ in range(5):
            run.call("drop")
        down.unlink()
        assert run.look()["state"] == "open"
        answer = unavailable(run)

    assert answer.ok
    assert answer.unavailable


def test_a_server_that_answers_is_asked_though_there_is_an_answer(project, server, calls):
    kept_by(project, server, "echo")
    kept_by(project, server, "echo")

    assert calls() == ["echo", "echo"]


def test_what_a_tool_refuses_stays_refused(project, server, calls):
    keeping = replace(KEEPING, first={"a/b": 60.0})
    with keeping_run(project, server, keeping=keeping) as run:
        assert run.call("fail").kind == "tool"
        assert run.call("fail").kind == "tool"

    assert calls() == ["fail", "fail"]
    assert 0 == stats(project).answers


@pytest.mark.parametrize("tool", ["structured", "drop-safe"])
def test_a_tool_that_may_change_something_is_not_answered_from_before(project, server, down, tool):
    with keeping_run(project, server) as run:
        run.call(tool, text="hello")
    down.touch()
    with keeping_run(project, server) as run:
        assert unavailable(run, tool).kind == "transport"

    assert 0 == stats(project).answers


def test_other_arguments_have_other_answers_and_their_order_does_not_count(project, server, down):
    with keeping_run(project, server) as run:
        assert run.call("echo", text="hello", more={"a": 1, "b": 2}).ok
    down.touch()
    with keeping_run(project, server) as run:
        assert unavailable(run, more={"b": 2, "a": 1}, text="hello").ok
        assert not unavailable(run, more={"b": 2, "a": 2}, text="hello").ok
        assert not unavailable(run, "pid", text="hello", more={"a": 1, "b": 2}).ok


def test_other_credentials_have_other_answers(project, server, down):
    server = replace(server, env=(("KEY", "${API_KEY}"),))

    def run_as(key):
        needs = needs_of([server], {"a/b": ("puppet/*",)}, {**os.environ, "API_KEY": key})
        return keeping_run(project, needs=needs)

    with run_as("alice-1") as run:
        assert run.call("echo", text="hello").ok
    down.touch()
    with run_as("bob-1") as run:
        assert not unavailable(run).ok
    with run_as("alice-1") as run:
        assert unavailable(run).ok


def test_a_definition_that_was_approved_anew_has_other_answers(project, server, down):
    kept_by(project, server, "echo")
    down.touch()
    with keeping_run(project, replace(server, args=(*server.args, "--stderr", "x"))) as run:
        assert not unavailable(run).ok


def test_what_was_not_granted_is_not_answered_from_before_either(project, server, down):
    kept_by(project, server, "echo")
    down.touch()
    with keeping_run(project, server, grants={"a/b": ("puppet/pid",)}) as run:
        assert unavailable(run).kind == "denied"


def test_an_operation_that_asks_for_it_is_answered_first_from_what_is_kept(project, server, calls):
    keeping = replace(KEEPING, first={"a/b": 100.0})
    with keeping_run(project, server, keeping=keeping, now=lambda: 1e9) as run:
        assert run.call("structured", x=1).cached_s is None
    with keeping_run(project, server, keeping=keeping, now=lambda: 1e9 + 90) as run:
        answer = run.call("structured", x=1)
        assert (90.0, False, {"given": {"x": 1}}) == (answer.cached_s, answer.unavailable, json.loads(answer.value))
        assert [] == run.told
    with keeping_run(project, server, keeping=keeping, now=lambda: 1e9 + 110) as run:
        assert run.call("structured", x=1).cached_s is None

    assert calls() == ["structured", "structured"]


def test_what_one_template_declares_repeatable_is_so_for_its_own_operations_only(project, server, down):
    grants = {"a/b": ("puppet/*",), "c/d": ("puppet/*",)}
    keeping = replace(KEEPING, first={"a/b": 100.0})
    with keeping_run(project, server, keeping=keeping, grants=grants) as run:
        assert run.call("structured", x=1).ok
    down.touch()
    with keeping_run(project, server, keeping=keeping, grants=grants) as run:
        assert run.call("structured", x=1).ok
        assert not run.call("structured", x=1, operation="c/d").ok


def test_an_operation_that_wants_no_cache_leaves_nothing_and_is_given_nothing(project, server, down):
    never = replace(KEEPING, never=("a/b",))
    kept_by(project, server, "echo", keeping=never)
    assert 0 == stats(project).answers
    kept_by(project, server, "echo")
    assert 1 == stats(project).answers
    down.touch()
    with keeping_run(project, server, keeping=never) as run:
        assert not unavailable(run).ok


def test_a_run_without_a_cache_keeps_nothing(project, server):
    kept_by(project, server, "echo", keeping=None)

    assert not (project / ".sage" / "cache").exists()


def test_where_there_can_be_no_cache_tools_are_called_all_the_same(project, server):
    (project / ".sage").mkdir()
    (project / ".sage" / "cache").symlink_to("/tmp")

    kept_by(project, server, "echo")


def test_an_answer_with_a_secret_in_it_is_not_kept(project, server):
    server = replace(server, env=(("KEY", "${API_KEY}"),))
    needs = needs_of([server], {"a/b": ("puppet/*",)}, {**os.environ, "API_KEY": "open-sesame-1"})
    with keeping_run(project, needs=needs) as run:
        assert run.value("echo", text="it is open-sesame-1") == "it is open-sesame-1"
        assert run.call("echo", text="ghp_" + "a1B2" * 9).ok

    assert 0 == stats(project).answers


def test_an_answer_that_was_changed_or_cleared_or_sealed_by_another_key_is_none(project, server, down):
    kept_by(project, server, "echo")
    down.touch()
    (path,) = (project / ".sage" / "cache").glob("answer-*")
    whole = path.read_bytes()

    def is_there(keeping=KEEPING):
        with keeping_run(project, server, keeping=keeping) as run:
            return unavailable(run).ok

    assert is_there()
    assert not is_there(replace(KEEPING, key="cd" * 32))
    path.write_bytes(whole[:400] + bytes([whole[400] ^ 1]) + whole[401:])
    assert not is_there()
    with project_place(project).folder as user:
        assert 1 == clear(project, user)
    path.write_bytes(whole)
    path.chmod(0o600)
    assert not is_there()
    assert b"hello" not in whole


def test_answers_that_come_faster_than_they_can_be_kept_are_not(project, server, monkeypatch):
    monkeypatch.setattr(answers, "WAITING_MAX", 3)
    kept_by(project, server, "echo")

    assert 0 == stats(project).answers


def test_an_answer_of_before_is_not_given_where_that_cannot_be_written_down(project, server, down):
    class Full(NoRecord):
        async def write(self, kind, text, data):
            if kind == "cached":
                raise SageError("the audit log cannot be written")

    async def make_record(_):
        return Full()

    kept_by(project, server, "echo")
    down.touch()
    with threaded(project, server, keeping=KEEPING, settings={**QUICK, "make_record": make_record}) as run:
        assert "the audit log cannot be written" == unavailable(run).error


def test_what_is_answered_from_before_is_in_the_audit_log(project, server, down):
    place = project_place(project)
    audit, _ = open_audit(project, place, b"k" * 32)
    with place.folder, keeping_run(project, server, audit_key=b"k" * 32) as run:
        run.call("echo", text="hello")
        down.touch()
        run.call("drop")
        assert unavailable(run).ok
        wait_for(lambda: "cached" in (project / ".sage" / "logs" / "audit.jsonl").read_text())
    audit.close()
    entries = [json.loads(line) for line in (project / ".sage" / "logs" / "audit.jsonl").read_text().splitlines()]
    data = [entry["data"] for entry in entries if entry["kind"] == "cached"]

    assert ["puppet/echo"] == [entry["text"] for entry in entries if entry["kind"] == "cached"]
    assert [("a/b", "puppet", True)] == [(one["operation"], one["server"], one["unavailable"]) for one in data]


def test_a_key_says_nothing_and_hangs_on_all_that_makes_an_answer(project):
    server = puppet()
    registration = Registration("t" * 32, "r", "f", "/p", {}, (server,), {}, {"HOME": "/h", "TERM": "x"})
    request = Request("a/b", server, "echo", {"a": 1})
    key = partial(answer_key, request, registration)
    others = [
        answer_key(replace(request, tool="pid"), registration, b"s"),
        answer_key(replace(request, arguments={"a": 2}), registration, b"s"),
        answer_key(replace(request, server=puppet("other")), registration, b"s"),
        answer_key(request, replace(registration, environ={"HOME": "/other", "TERM": "x"}), b"s"),
        key(b"another secret"),
    ]

    assert len({key(b"s"), *others}) == 6
    assert key(b"s") == answer_key(request, replace(registration, environ={"HOME": "/h", "TERM": "y"}), b"s")
    assert key(b"s") == answer_key(replace(request, operation="c/d"), registration, b"s")
    assert (64, "answer-") == (len(key(b"s")), key(b"s")[:7])


def test_a_registration_does_not_print_its_key():
    assert "abab" not in repr(KEEPING)


def test_where_answers_lie_is_this_projects(project, server, tmp_path, down):
    kept_by(project, server, "echo")
    other = tmp_path / "other"
    (other / ".sage").mkdir(parents=True)
    (project / ".sage" / "cache").rename(other / ".sage" / "cache")
    down.touch()
    with keeping_run(other, server) as run:
        assert not unavailable(run).ok
    assert isinstance(run, Registered)
    assert Path(other / ".sage" / "cache").exists()


# -- whether one may stand in --------------------------------------------------------------------------------------


def asking_run(project, server, say, **more):
    return keeping_run(project, server, keeping=replace(KEEPING, asks=True), ask=say, **more)


@pytest.mark.parametrize("use", [True, False])
def test_where_there_is_somebody_they_are_asked_once_for_each_server_in_a_run(project, server, down, use):
    kept_by(project, server, "echo", "pid")
    asked = []

    def say(name, age_s, _give_up_fd):
        asked.append((name, age_s >= 0))
        return use

    down.touch()
    with asking_run(project, server, say) as run:
        given = [unavailable(run).ok, unavailable(run, "pid", text="hello").ok, unavailable(run).ok]
        wait_for(lambda: any("as you said" in notice.text for notice in run.told))

    assert ([use] * 3, [("puppet", True)]) == (given, asked)
    assert f"cached data of puppet is {'used' if use else 'not used'}, as you said" in [one.text for one in run.told]


def test_a_question_that_nobody_answers_ends_with_the_run(project, server, down):
    kept_by(project, server, "echo")
    down.touch()
    asked, given_up = threading.Event(), []

    def say(_name, _age_s, give_up_fd):
        asked.set()
        given_up.append(select.select([give_up_fd], [], [], 30)[0] == [give_up_fd])
        return True

    with asking_run(project, server, say) as run:
        calling = threading.Thread(target=unavailable, args=(run,))
        calling.start()
        assert asked.wait(30)
        run.tools.close()
        calling.join(30)

    assert [True] == given_up
    assert not calling.is_alive()


def test_an_answer_to_no_question_decides_nothing(project, server):
    with asking_run(project, server, lambda *_: True) as run, keeping_run(project, keeping=None, run="2") as other:
        run.tools.ask({"do": "decide", "server": "puppet", "use": False}, 10)
        said, _ = other.tools.ask({"do": "decide", "server": "puppet", "use": False}, 10)

    assert said["kind"] == "denied"
