"""Answers of tools that a run keeps and others are given, from the command line."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
import termios

import pytest
from brokered import PUPPET, ThreadedTools

from sage_sandbox import brokering
from sage_sandbox.cli import stale
from sage_sandbox.cli.main import main
from sage_sandbox.grants.servers import Approvals
from sage_sandbox.toolservers.reading import read_catalog


class Project:
    """Its operations are calls of a puppet, which is broken while there is a file ``down``."""

    def __init__(self, world, folder):
        self.folder, self.journal, self.down = world.project, folder / "journal", folder / "down"
        args = [PUPPET, "--journal", str(self.journal), "--down", str(self.down)]
        server = {"command": sys.executable, "args": args}
        (self.folder / ".mcp.json").write_text(json.dumps({"mcpServers": {"puppet": server}}))
        Approvals.of_user().add([read_catalog(self.folder).find("puppet")], self.folder)

    def template(self, **fields):
        operation = {"type": "mcp", "tool": "puppet/echo", "params": {"text": "hello"}, **fields}
        phase = {"id": "p", "name": "P", "operations": operation}
        (self.folder / "t.json").write_text(json.dumps({"name": "T", "phases": [phase]}))

    def run(self, *args):
        return main(("run", "t.json", "f", "--restart", "--allow", "tool:puppet/*", *args))

    def calls(self):
        return self.journal.read_text().count(" call ")


@pytest.fixture
def project(world, tmp_path, monkeypatch):
    class Quick(ThreadedTools):
        broker_settings = {"jitter": lambda: 0.0}  # noqa: RUF012

    monkeypatch.setattr(brokering, "Tools", Quick)
    return Project(world, tmp_path)


def document(capsys):
    found = json.loads(capsys.readouterr().out)
    return found["results"]["phases"][0]["operations"][0], found["results"]["metrics"]


def test_a_run_goes_on_with_what_an_earlier_one_was_told_and_says_so(project, capsys):
    project.template()
    assert project.run() == 0
    project.down.touch()
    capsys.readouterr()

    assert project.run("--json") == 0
    said = capsys.readouterr()
    operation = json.loads(said.out)["results"]["phases"][0]["operations"][0]
    answers = [{**answer, "ageMs": 0} for answer in operation["cachedAnswers"]]
    assert ("fulfilled", "hello") == (operation["status"], operation["result"])
    assert [{"tool": "puppet/echo", "ageMs": 0, "unavailable": True, "times": 1}] == answers
    assert operation["cachedMs"] > 0
    assert "⚠ External API unavailable (puppet) · ✓ using cached data from" in said.err
    assert "✓ p/op-1 cached, " in said.err


@pytest.mark.parametrize(("first", "second"), [((), ("--no-cache",)), (("--no-cache",), ()), ((), ("--no-state",))])
def test_without_a_cache_nothing_is_kept_and_nothing_used(project, first, second):
    project.template()
    assert project.run(*first) == 0
    project.down.touch()

    assert project.run(*second) != 0


def test_an_operation_that_may_be_cached_calls_once(project, capsys):
    project.template(cache=True)
    assert project.run("--json") == 0
    operation, metrics = document(capsys)
    assert (None, 0, 1) == (operation["cachedMs"], metrics["cached"], metrics["cacheAsked"])

    assert project.run("--json") == 0
    operation, metrics = document(capsys)
    assert (1, 1, 1.0) == (metrics["cached"], metrics["cacheAsked"], metrics["cacheHitRate"])
    assert [False] == [answer["unavailable"] for answer in operation["cachedAnswers"]]
    assert project.calls() == 1


def test_an_answer_that_is_too_old_for_an_operation_is_asked_for_again(project):
    project.template(cache={"ttl": 1})
    assert project.run() == 0
    assert project.run() == 0

    assert project.calls() == 2


def test_an_operation_that_says_no_is_given_nothing_of_before(project):
    project.template()
    assert project.run() == 0
    project.template(cache=False)
    project.down.touch()

    assert project.run() == 3


def test_answers_are_counted_and_thrown_away_with_the_cache(project, capsys):
    project.template()
    assert project.run() == 0
    capsys.readouterr()

    assert main(("cache", "stats")) == 0
    assert capsys.readouterr().out.startswith("0 outcomes and 1 answer, ")
    assert main(("cache", "clear")) == 0
    assert capsys.readouterr().out == "✓ 1 entry is gone\n"
    project.down.touch()
    assert project.run() == 3


@pytest.mark.parametrize(("use", "code"), [(True, 0), (False, 3)])
def test_on_a_terminal_it_is_asked_whether_to_go_on(project, monkeypatch, capsys, use, code):
    project.template()
    assert project.run() == 0
    monkeypatch.setattr(stale, "terminal_stale_asker", lambda: lambda *_: use)
    project.down.touch()

    assert project.run() == code
    assert f"▸ cached data of puppet is {'used' if use else 'not used'}, as you said" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "use"), [(b"y\n", True), (b"Yes\n", True), (b"n\n", False), (b"\n", False), (b"\x04", False), (b"", False)]
)
def test_only_a_clear_yes_is_one(monkeypatch, keys, use):
    hand, end = pty.openpty()
    gate = os.eventfd(0)
    flush = termios.tcflush

    def flush_and_type(descriptor, queue):
        flush(descriptor, queue)
        if keys:
            os.write(hand, keys)
        else:
            os.eventfd_write(gate, 1)  # the run ended meanwhile

    monkeypatch.setattr(termios, "tcflush", flush_and_type)
    os.write(hand, b"y\n")  # typed before the question
    with os.fdopen(end, "r", encoding="utf-8") as stdin:
        shown = io.StringIO()
        answer = stale.ask("pup\x1bpet", 3 * 86400.0, gate, stdin.fileno(), shown)
    os.close(hand)
    os.close(gate)

    text = "⚠ External API unavailable (pup\\x1bpet) · ✓ using cached data from 3 days ago · continue? [y/n] "
    assert (use, text) == (answer, shown.getvalue())


def test_what_is_no_terminal_is_not_asked(monkeypatch):
    hand, end = pty.openpty()
    with os.fdopen(end, "r", encoding="utf-8") as terminal, io.StringIO() as other:
        assert stale.terminal_stale_asker(terminal, terminal) is not None
        assert stale.terminal_stale_asker(terminal, other) is None
        monkeypatch.setattr("sys.stdin", None)
        assert stale.terminal_stale_asker(None, terminal) is None
        with open("/dev/null", encoding="utf-8") as nothing:  # noqa: PTH123
            assert not stale.ask("p", 0.0, 0, nothing.fileno(), other)
    os.close(hand)
