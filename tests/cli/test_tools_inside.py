"""Sandboxed operations that call tools, from the command line: through supervisor and broker to a real server."""

from __future__ import annotations

import json
import sys

import pytest
from brokered import PUPPET
from commands import run_cli

LISTS_AND_CALLS = """
def run(params, tools):
    names = [tool["name"] for tool in tools.list()]
    answers = [tools.call("puppet/structured", x=number) for number in range(params["times"])]
    return {"names": names, "sum": sum(answer["given"]["x"] for answer in answers)}
"""
CALLS_ANOTHER = """
def run(tools):
    try:
        tools.call("puppet/echo", text="not granted")
    except PermissionError as error:
        return str(error)
"""
ECHOES = """
def run(params, tools):
    return [tools.call("puppet/echo", text=str(number)) for number in range(params["times"])]
"""
WAITS = "def run(tools): tools.call('puppet/sleep', seconds=60)"


class Project:
    """One with a puppet that is approved; ``journal`` is what the puppet noted."""

    def __init__(self, folder):
        self.folder, self.journal, self.down = folder / "project", folder / "journal", folder / "down"
        self.folder.mkdir()
        args = [PUPPET, "--journal", str(self.journal), "--down", str(self.down)]
        server = {"command": sys.executable, "args": args}
        (self.folder / ".mcp.json").write_text(json.dumps({"mcpServers": {"puppet": server}}))
        assert run_cli("tools", "--approve", "puppet", cwd=self.folder).returncode == 0

    def run(self, *operations):
        phase = {"id": "p", "name": "P", "operations": list(operations)}
        (self.folder / "t.json").write_text(json.dumps({"name": "T", "phases": [phase]}))
        done = run_cli("run", "t.json", "f", "--restart", "--allow", "tool:puppet/*", "--json", cwd=self.folder)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["results"]["phases"][0]["operations"]

    def noted(self, what):
        return [line for line in self.journal.read_text().splitlines() if what in line]


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def python(code, *granted, **more):
    return {"type": "python", "code": code, "policy": {"tool": list(granted)}, **more}


def test_sandboxed_code_calls_tools_and_hands_back_what_it_made_of_them(project):
    code, (operation,) = project.run(python(LISTS_AND_CALLS, "puppet/structured", params={"times": 4}))

    assert (0, {"names": ["puppet/structured"], "sum": 6}) == (code, operation["result"])
    assert 4 == len(project.noted(" call structured"))


def test_sandboxed_code_is_refused_what_its_own_policy_lacks_though_the_run_has_it(project):
    code, (refused, _) = project.run(
        python(CALLS_ANOTHER, "puppet/structured"), python(LISTS_AND_CALLS, "puppet/*", params={"times": 1})
    )

    assert (0, "puppet/echo is not granted: --allow tool:puppet/echo") == (code, refused["result"])
    assert [] == project.noted(" call echo")


def test_a_command_calls_tools_with_a_program_on_its_path(project):
    argv = ["sage-tool", "call", "puppet/structured", '{"x": 5}']
    code, (operation,) = project.run(
        {"type": "command", "argv": argv, "output": "json", "policy": {"tool": ["puppet/structured"]}}
    )

    assert (0, 5) == (code, operation["result"]["given"]["x"])


def test_what_was_told_inside_is_kept_and_told_again_while_the_server_is_unavailable(project):
    assert 0 == project.run(python(ECHOES, "puppet/echo", params={"times": 3}))[0]
    project.down.touch()
    code, (operation,) = project.run(python(ECHOES, "puppet/echo", params={"times": 3}))

    (answer,) = operation["cachedAnswers"]
    assert (0, ["0", "1", "2"], None) == (code, operation["result"], operation["cachedMs"])
    assert ("puppet/echo", 3, True) == (answer["tool"], answer["times"], answer["unavailable"])


def test_a_call_is_given_up_at_the_server_when_its_operation_is_over(project):
    code, _ = project.run(python(WAITS, "puppet/sleep", timeout="6s"))

    assert 0 != code
    assert 1 == len(project.noted(" call sleep")) == len(project.noted(" cancelled"))
