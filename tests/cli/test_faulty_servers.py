"""Runs whose tool servers break: what is left alone, what stands in, where a run pauses, and how it goes on."""

from __future__ import annotations

import json
import sys

import pytest
from brokered import PUPPET
from commands import run_cli

# Told what it wants to know, it goes on; one that gets no answer gives its own account of that.
ASKS = """
def run(params, tools):
    def ask(tool, **given):
        try:
            return tools.call(tool, **given)
        except tools.TransportError as error:
            return {"none": str(error)}

    broken = [ask("broken/echo", text=f"never asked before {number}") for number in range(params["times"])]
    return {
        "broken": broken[-1],
        "known": ask("broken/echo", text="known"),
        "steady": ask("steady/echo", text="steady"),
    }
"""
NEEDS = "def run(tools): return tools.call('broken/echo', text='unknown')"
ALLOW = ("--allow", "tool:broken/*", "--allow", "tool:steady/*")


def operation(code, **more):
    return {"type": "python", "code": code, "policy": {"tool": ["broken/*", "steady/*"]}, **more}


class Project:
    """One with two servers that are approved, of which one is broken while there is a file ``down``."""

    def __init__(self, folder):
        self.folder, self.down, self.journal = folder / "project", folder / "down", folder / "journal"
        self.folder.mkdir()
        broken = [PUPPET, "--down", str(self.down), "--journal", str(self.journal)]
        servers = {
            name: {"command": sys.executable, "args": args} for name, args in (("broken", broken), ("steady", [PUPPET]))
        }
        (self.folder / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))
        assert run_cli("tools", "--approve", "broken", "--approve", "steady", cwd=self.folder).returncode == 0

    def template(self, *operations):
        phases = [
            {"id": f"p{n}", "name": "P", "operations": one, "dependencies": [f"p{n - 1}"] if n > 1 else []}
            for n, one in enumerate(operations, 1)
        ]
        (self.folder / "t.json").write_text(json.dumps({"name": "T", "phases": phases}))

    def run(self, *args):
        return run_cli("run", "t.json", "f", *ALLOW, *args, cwd=self.folder)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def results(done):
    found = json.loads(done.stdout)
    return found, {phase["id"]: phase["operations"] for phase in found["results"]["phases"]}


def test_a_breaker_opens_others_are_untouched_kept_data_is_used_and_the_run_pauses_without_it_and_goes_on(project):
    project.template({"type": "mcp", "tool": "broken/echo", "params": {"text": "known"}})
    assert project.run().returncode == 0
    # What a tool that changes nothing is asked is tried three times: two such calls are more than five failures.
    project.template(operation(ASKS, params={"times": 2}), operation(NEEDS))
    project.down.touch()
    paused = project.run("--restart", "--json")

    document, phases = results(paused)
    asked, needing = phases["p1"][0], phases["p2"][0]
    assert (3, "paused") == (paused.returncode, document["status"])
    assert "it failed 5 times in a row" in asked["result"]["broken"]["none"]
    assert ("known", "steady") == (asked["result"]["known"], asked["result"]["steady"])
    assert ["broken/echo"] == [answer["tool"] for answer in asked["cachedAnswers"] if answer["unavailable"]]
    assert ("unavailable", ["broken"]) == (needing["error"]["reason"], needing["lacked"])
    assert "once broken is back, resume it with: sage-sandbox resume f" == document["hint"]
    assert "⚠ broken is left alone for a minute: it failed 5 times in a row" in paused.stderr
    assert "⚠ External API unavailable (broken) · ✓ using cached data from" in paused.stderr
    assert "⚠ External API unavailable (broken) · no cached data stands in · ✓ progress saved" in paused.stderr
    assert "resume later with: sage-sandbox resume f" in paused.stderr
    starts = project.journal.read_text().count(" start")

    project.down.unlink()
    resumed = run_cli("resume", "f", *ALLOW, "--json", cwd=project.folder)

    document, phases = results(resumed)
    assert (0, "unknown") == (resumed.returncode, phases["p2"][0]["result"])
    assert asked["result"] == phases["p1"][0]["result"]
    assert 1 == project.journal.read_text().count(" start") - starts


def test_a_breaker_and_what_stood_in_are_in_the_audit_log(project):
    project.template(operation(ASKS, params={"times": 1}))
    assert project.run().returncode == 0
    project.template(operation(ASKS, params={"times": 2}))
    project.down.touch()
    assert project.run("--restart").returncode == 0

    assert run_cli("audit", "verify", cwd=project.folder).returncode == 0
    lines = (project.folder / ".sage" / "logs" / "audit.jsonl").read_text().splitlines()
    noted = [(entry["kind"], entry["text"]) for entry in map(json.loads, lines)]
    assert ("breaker", "broken: closed to open") in noted
    assert ("cached", "broken/echo") in noted
    assert noted.count(("call", "steady/echo")) == 2


def test_without_state_it_is_said_that_nothing_was_saved(project):
    project.template(operation(NEEDS))
    project.down.touch()
    done = project.run("--no-state", "--json")

    assert 3 == done.returncode
    assert "nothing was saved: once broken is back, run it again" == json.loads(done.stdout)["hint"]
    assert "no cached data stands in\n" in done.stderr


@pytest.mark.parametrize("fault", ["half", "huge-line", "brackets", "wrong-id", "flood", "stall", "drop"])
def test_whatever_a_server_does_wrong_the_run_that_needs_it_pauses(project, fault):
    code = f"def run(tools): return tools.call('broken/{fault}')"
    project.template(operation(code, timeout="2s"))
    done = project.run("--json")

    document, phases = results(done)
    assert 3 == done.returncode, done.stderr
    assert ["broken"] == phases["p1"][0]["lacked"]
    assert document["hint"].startswith("once broken is back, ")


def test_a_tool_that_says_no_pauses_nothing(project):
    project.template(operation("def run(tools): return tools.call('broken/fail')"))
    done = project.run("--json")

    _, phases = results(done)
    assert (1, "error", []) == (done.returncode, phases["p1"][0]["error"]["reason"], phases["p1"][0]["lacked"])
