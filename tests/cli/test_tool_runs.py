"""Workflows that call tools, from the command line: approved, granted, called, paused where a server is gone."""

from __future__ import annotations

import json
import sys

import pytest
from brokered import PUPPET, ThreadedTools
from commands import run_cli

from sage_sandbox import brokering
from sage_sandbox.brokering import shared_servers
from sage_sandbox.errors import UsageError
from sage_sandbox.grants.servers import Approvals
from sage_sandbox.toolservers.reading import read_catalog

ALLOW = ("--allow", "tool:puppet/*")


def tool(name, server="puppet", **more):
    return {"type": "mcp", "tool": f"{server}/{name}", **more}


@pytest.fixture
def tools(world, monkeypatch, tmp_path):
    """The project of `world`, with a puppet that is not approved yet; the broker is in this process."""

    class Quick(ThreadedTools):
        broker_settings = {"jitter": lambda: 0.0}  # noqa: RUF012

    monkeypatch.setattr(brokering, "Tools", Quick)
    world.journal = tmp_path / "journal"
    define(world)
    return world


def define(world, *args, **more):
    server = {"command": sys.executable, "args": [PUPPET, "--journal", str(world.journal), *args], **more}
    (world.project / ".mcp.json").write_text(json.dumps({"mcpServers": {"puppet": server}}))


def template(world, *phases):
    made = [
        {"id": f"p{n}", "name": "P", "operations": operations, "dependencies": [f"p{n - 1}"] if n > 1 else []}
        for n, operations in enumerate(phases, 1)
    ]
    (world.project / "t.yaml").write_text(json.dumps({"name": "Tools", "phases": made}))


def approve(world, name="puppet"):
    """As ``tools --approve`` does, without asking the server what it offers."""
    Approvals.of_user().add([read_catalog(world.project).find(name)], world.project)


def results(capsys):
    return {phase["id"]: phase for phase in json.loads(capsys.readouterr().out)["results"]["phases"]}


def test_a_repository_starts_no_program_and_sends_no_key_by_itself(tools, capsys):
    template(tools, tool("echo"))

    assert tools.run(*ALLOW) == 15
    said = capsys.readouterr().err
    assert "puppet: this tool server is not approved, so nothing was started or contacted" in said
    assert "sage-sandbox tools --approve puppet" in said
    assert not tools.journal.exists()
    assert not tools.state("workflow-f.json").exists()


def test_an_approval_without_a_grant_is_not_enough(tools, capsys):
    template(tools, tool("echo"))
    approve(tools)

    assert tools.run() == 15
    assert "--allow tool:puppet/echo" in capsys.readouterr().err
    assert not tools.journal.exists()


def test_tools_are_called_with_the_results_of_others(tools, capsys):
    template(
        tools, [tool("structured", params={"x": [1, "two"]})], tool("echo", params={"text": "${p1.op-1.given.x.1}"})
    )
    approve(tools)
    capsys.readouterr()

    assert tools.run(*ALLOW, "--json") == 0
    assert '"two"' in capsys.readouterr().out
    calls = [line.split()[2] for line in tools.journal.read_text().splitlines() if " call " in line]
    assert calls == ["structured", "echo"]
    assert "end" in tools.journal.read_text()


def test_a_reference_in_an_answer_stays_text(tools, capsys):
    template(tools, tool("echo", params={"text": "$${p1}"}), tool("echo", params={"text": "${p1}"}))
    approve(tools)

    assert tools.run(*ALLOW) == 0
    assert capsys.readouterr().out.count("${p1}") == 2


def test_a_changed_definition_is_asked_about_again(tools, capsys):
    template(tools, tool("echo"))
    approve(tools)
    define(tools, "--stderr", "changed")

    assert tools.run(*ALLOW) == 15
    assert not tools.journal.exists()


def test_an_unknown_server_is_a_usage_error(tools, capsys):
    template(tools, tool("echo", server="pupett"))

    assert tools.run("--allow", "tool:pupett/*") == 2
    assert "did you mean puppet?" in capsys.readouterr().err


def test_a_variable_that_is_not_set_is_said_before_anything_runs(tools, capsys):
    define(tools, env={"KEY": "${PUPPET_KEY}"})
    template(tools, tool("echo"))
    approve(tools)

    assert tools.run(*ALLOW) == 2
    assert "the tool server puppet needs PUPPET_KEY" in capsys.readouterr().err


def test_a_server_that_is_gone_pauses_the_run_and_a_resume_goes_on(tools, capsys):
    template(tools, tool("echo", params={"text": "kept"}), tool("drop"))
    approve(tools)

    assert tools.run(*ALLOW) == 3
    assert "resume later with: sage-sandbox resume f" in capsys.readouterr().err
    (tools.project / "t.yaml").write_text((tools.project / "t.yaml").read_text().replace("puppet/drop", "puppet/echo"))
    assert tools.resume("--update", *ALLOW) == 0
    calls = [line.split()[2] for line in tools.journal.read_text().splitlines() if " call " in line]
    assert calls == ["echo", "drop", "echo"]


def test_a_tool_that_says_no_fails_the_run(tools):
    template(tools, tool("fail"))
    approve(tools)

    assert tools.run(*ALLOW) == 1


def test_retries_cover_a_server_that_is_gone(tools):
    template(tools, tool("drop", retries=2))
    approve(tools)

    assert tools.run(*ALLOW) == 3
    assert tools.journal.read_text().count("call drop") == 3


def test_calls_are_in_the_audit_log_between_start_and_stop(tools, capsys):
    template(tools, tool("echo"))
    approve(tools)
    tools.run(*ALLOW)
    capsys.readouterr()

    assert tools.main("audit", "verify") == 0
    lines = (tools.project / ".sage" / "logs" / "audit.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds == ["start", "grants", "call", "state", "stop"]


def test_a_plan_names_the_tool_and_what_it_takes(tools, capsys):
    template(tools, tool("echo"))

    assert tools.main("plan", "t.yaml") == 0
    said = capsys.readouterr().out
    assert "mcp  puppet/echo" in said
    assert "✗ tool:puppet/echo  not granted: what it is called with goes to puppet" in said


def test_a_detached_run_gets_what_its_servers_take(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    server = {"command": sys.executable, "args": [PUPPET], "env": {"KEY": "${PUPPET_KEY}"}}
    (project / ".mcp.json").write_text(json.dumps({"mcpServers": {"puppet": server}}))
    phase = {"id": "a", "name": "A", "operations": tool("echo", params={"text": "from afar"})}
    (project / "t.yaml").write_text(json.dumps({"name": "T", "phases": [phase]}))
    env = {"PUPPET_KEY": "k-12345678"}
    assert run_cli("tools", "--approve", "puppet", cwd=project).returncode == 0
    started = run_cli("run", "t.yaml", "f", *ALLOW, "--detach", cwd=project, env=env)

    assert started.returncode == 0, started.stderr
    ended = run_cli("logs", "f", "--follow", cwd=project)
    assert "run completed" in ended.stdout


def test_exec_has_nothing_to_run_in_the_place_of_a_tool(tools, capsys):
    template(tools, tool("echo"))

    assert tools.main("exec", "--like", "t.yaml:p1/op-1", *ALLOW) == 2


@pytest.mark.parametrize(("text", "names"), [("", ()), ('shared_servers = ["time", "docs"]', ("time", "docs"))])
def test_shared_servers_are_the_users_word(tmp_path, text, names):
    folder = tmp_path / "sage-sandbox"
    folder.mkdir()
    (folder / "config.toml").write_text(text)

    assert shared_servers({"XDG_CONFIG_HOME": str(tmp_path)}) == names
    assert shared_servers({"XDG_CONFIG_HOME": str(tmp_path / "none")}) == ()


@pytest.mark.parametrize("text", ["=", "shared_servers = true", "shared_servers = [1]"])
def test_what_is_no_list_of_servers_is_refused(tmp_path, text):
    folder = tmp_path / "sage-sandbox"
    folder.mkdir()
    (folder / "config.toml").write_text(text)

    with pytest.raises(UsageError, match=r"config\.toml"):
        shared_servers({"XDG_CONFIG_HOME": str(tmp_path)})
