from __future__ import annotations

import json

import pytest
from commands import run_cli

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
    assert "✓ approved" in tools(project, "--server", "marker").stdout

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
