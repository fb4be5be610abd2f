from __future__ import annotations

import json
import sys
import time

import pytest
from brokered import PUPPET, registered
from commands import run_cli

from sage_sandbox.toolservers.reading import read_catalog

MARK = "started"
KEY = "${ANTHROPIC_API_KEY}"


@pytest.fixture
def project(tmp_path):
    """A project whose .mcp.json would start a program that leaves a mark, and send a key to somebody."""
    folder = tmp_path / "project"
    folder.mkdir()
    servers = {
        "marker": {"command": "/bin/sh", "args": ["-c", f"touch {folder}/{MARK}"], "env": {"K": KEY}},
        "sender": {"url": "http://127.0.0.1:9/mcp", "headers": {"Authorization": f"Bearer {KEY}"}},
    }
    (folder / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))
    return folder


def tools(project, *args):
    return run_cli("tools", *args, cwd=project, env={"ANTHROPIC_API_KEY": "sk-secret-value"})


def test_servers_are_listed_with_what_they_would_do_and_nothing_is_started(project):
    done = tools(project)

    assert done.returncode == 0
    assert "marker (.mcp.json)" in done.stdout
    assert "starts, in the project's folder: /bin/sh -c" in done.stdout
    assert "calls: http://127.0.0.1:9/mcp" in done.stdout
    assert "✗ not approved" in done.stdout
    assert "sage-sandbox tools --approve marker" in done.stdout
    assert "sk-secret-value" not in done.stdout + done.stderr
    assert not (project / MARK).exists()


def test_an_approval_is_for_the_definition_as_it_is(project):
    approved = tools(project, "--approve", "marker")
    assert approved.returncode == 0
    assert "marker (.mcp.json)" in approved.stderr
    assert "✗ not approved" not in tools(project, "--server", "marker").stdout

    text = (project / ".mcp.json").read_text()
    (project / ".mcp.json").write_text(text.replace("touch", "rm"))
    assert "✗ changed since it was approved" in tools(project, "--server", "marker").stdout


def test_json_says_the_same_without_values(project):
    done = tools(project, "--json")
    content = json.loads(done.stdout)

    assert [server["name"] for server in content["servers"]] == ["marker", "sender"]
    assert content["servers"][0]["env"] == ["K"]
    assert content["servers"][1]["headers"] == ["Authorization"]
    assert {server["approval"] for server in content["servers"]} == {"not approved"}
    assert content["problems"] == []


def test_a_project_without_servers_says_where_they_would_be_defined(tmp_path):
    done = run_cli("tools", cwd=tmp_path)

    assert done.returncode == 0
    assert "no tool servers are defined in .mcp.json" in done.stdout


def test_what_is_wrong_is_said_and_the_rest_is_listed(project):
    content = json.loads((project / ".mcp.json").read_text())
    content["mcpServers"]["broken"] = {"args": [1]}
    (project / ".mcp.json").write_text(json.dumps(content))
    done = tools(project)

    assert done.returncode == 2
    assert "marker" in done.stdout
    assert "mcpServers.broken: needs a command, or a url" in done.stderr


def test_an_unknown_name_is_a_usage_error(project):
    done = tools(project, "--server", "maker")

    assert done.returncode == 2
    assert "there is no tool server maker" in done.stderr
    assert "hint: did you mean marker?" in done.stderr


def test_an_approval_that_cannot_be_kept_is_refused(project, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run_cli("tools", "--approve", "marker", cwd=project, env={"XDG_CONFIG_HOME": str(blocked)})

    assert done.returncode == 15
    assert "cannot be remembered" in done.stderr


# -- servers that are approved -------------------------------------------------------------------------------------


@pytest.fixture
def puppets(project, tmp_path):
    """Beside those of `project`, one that works and one that cannot start."""
    content = json.loads((project / ".mcp.json").read_text())
    journal = str(tmp_path / "journal")
    content["mcpServers"]["puppet"] = {"command": sys.executable, "args": [PUPPET, "--journal", journal]}
    content["mcpServers"]["broken"] = {"command": sys.executable, "args": [PUPPET, "--refuse-start"]}
    (project / ".mcp.json").write_text(json.dumps(content))
    assert tools(project, "--approve", "puppet", "--approve", "broken").returncode == 0
    return project


def test_what_is_approved_is_asked_what_it_offers_and_nothing_else_is_started(puppets):
    done = tools(puppets)

    assert done.returncode == 0
    assert "✓ approved, answers (puppet 7, protocol 2025-11-25, breaker: closed)" in done.stdout
    assert "24 tools: echo, structured" in done.stdout
    assert "it ended its output" in done.stdout
    assert "✗ not approved" in done.stdout
    assert not (puppets / MARK).exists()


def test_that_a_server_is_asked_is_in_the_audit_log(puppets):
    lines = (puppets / ".sage" / "logs" / "audit.jsonl").read_text().splitlines()
    asked = [(entry["kind"], entry["text"], entry["run"]) for entry in map(json.loads, lines)]

    assert ("call", "puppet/*", "") in asked
    assert ("call", "broken/*", "") in asked
    assert run_cli("audit", "verify", cwd=puppets).returncode == 0


def test_a_server_is_not_asked_where_that_cannot_be_written_down(puppets, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    before = (tmp_path / "journal").read_text()
    done = run_cli("tools", cwd=puppets, env={"XDG_STATE_HOME": str(blocked)})

    assert done.returncode != 0
    assert "cannot be written" in done.stderr
    assert (tmp_path / "journal").read_text() == before


def test_one_server_is_shown_with_its_tools(puppets):
    done = tools(puppets, "--server", "puppet")

    assert "    echo  does echo\n" in done.stdout
    assert "broken" not in done.stdout


def test_json_has_tools_and_health(puppets):
    servers = {server["name"]: server for server in json.loads(tools(puppets, "--json").stdout)["servers"]}

    assert servers["puppet"]["breaker"] == "closed"
    assert servers["puppet"]["about"]["protocol"] == "2025-11-25"
    assert servers["puppet"]["tools"][0] == {
        "name": "echo", "description": "does echo", "inputSchema": {"type": "object"}
    }  # fmt: skip
    assert "it ended its output" in servers["broken"]["error"]
    assert servers["marker"]["breaker"] is None


def test_nothing_is_left_running(puppets, tmp_path):
    tools(puppets)
    until = time.monotonic() + 20
    while "end" not in (tmp_path / "journal").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_health_is_what_the_runs_of_the_project_found(puppets):
    server = read_catalog(puppets).find("puppet")
    with registered(puppets, server) as run:
        for _ in range(5):
            run.call("drop")
        servers = {server["name"]: server for server in json.loads(tools(puppets, "--json").stdout)["servers"]}

        again = tools(puppets, "--server", "puppet", "--reset", "puppet")

    assert servers["puppet"]["breaker"] == "open"
    assert "failed 5 times in a row" in servers["puppet"]["error"]
    assert "✓ approved, answers (puppet 7, protocol 2025-11-25, breaker: closed)" in again.stdout
