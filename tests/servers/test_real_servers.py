"""Tool servers that nobody here wrote, over stdio and HTTP, in both eras of MCP. `tox -e servers` brings them."""

from __future__ import annotations

import json
import os
import subprocess
import threading

import pytest
from brokered import registered
from real_servers import program, serving_everything

from sage_sandbox.cli.main import main
from sage_sandbox.toolservers.definition import Server


def server(name, *args, program_name, **more):
    return Server(name, ".mcp.json", program(program_name), args, **more)


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "notes.txt").write_text("three\nlines\nhere\n")
    return folder


@pytest.fixture
def everything_by_http():
    """server-everything behind an address of this machine."""
    with serving_everything() as port:
        yield Server("everything", ".mcp.json", url=f"http://127.0.0.1:{port}/mcp")


def test_time_speaks_the_newer_protocol(project):
    with registered(project, server("time", program_name="mcp-server-time")) as run:
        said = run.look("time", start=True)
        value = run.value("time/get_current_time", timezone="UTC")
        wrong = run.call("time/get_current_time", timezone="Mars/Phobos")

    assert said["about"]["protocol"] == "2026-07-28"
    assert value["timezone"] == "UTC"
    assert wrong.kind == "tool"
    assert "Mars/Phobos" in wrong.error


def test_git_reads_a_repository(project):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for args in (["init", "-q"], ["add", "."], ["commit", "-qm", "the first of them"]):
        subprocess.run([*git, *args], cwd=project, check=True)
    with registered(project, server("git", program_name="mcp-server-git")) as run:
        log = run.value("git/git_log", repo_path=str(project))

    assert "the first of them" in json.dumps(log)


@pytest.fixture(params=["stdio", "http"])
def everything(request):
    if request.param == "http":
        return request.getfixturevalue("everything_by_http")
    return server("everything", program_name="mcp-server-everything")


def test_everything_gives_texts_data_and_blocks(project, everything):
    with registered(project, everything) as run:
        assert run.look("everything", start=True)["about"]["protocol"] == "2025-11-25"
        assert run.value("everything/echo", message="hi") == "Echo: hi"
        assert "temperature" in run.value("everything/get-structured-content", location="New York")
        assert {block["type"] for block in run.value("everything/get-tiny-image")} == {"text", "image"}


def test_everything_tells_progress_and_is_cancelled(project, everything):
    with registered(project, everything) as run:
        run.value("everything/echo", message="warm")
        assert run.value("everything/trigger-long-running-operation", duration=3, steps=3)
        gate = os.eventfd(0)
        answers = []
        calling = threading.Thread(
            target=lambda: answers.append(
                run.call("everything/trigger-long-running-operation", duration=60, steps=2, cancel_fd=gate)
            )
        )
        calling.start()
        os.eventfd_write(gate, 1)
        calling.join(20)
        os.close(gate)
        assert run.value("everything/echo", message="alive") == "Echo: alive"

    assert answers[0].kind == "cancelled"
    assert any("trigger-long-running-operation: " in notice.text for notice in run.told)


def test_filesystem_keeps_to_its_folder(project):
    with registered(project, server("fs", str(project), program_name="mcp-server-filesystem")) as run:
        text = run.value("fs/read_text_file", path=str(project / "notes.txt"))
        refused = run.call("fs/read_text_file", path="/etc/passwd")

    assert "three" in json.dumps(text)
    assert refused.kind == "tool"
    assert "denied" in refused.error


def test_memory_remembers_within_a_session(project):
    memory = server("memory", program_name="mcp-server-memory", env=(("MEMORY_FILE_PATH", str(project / "m.json")),))
    with registered(project, memory) as run:
        run.value("memory/create_entities", entities=[{"name": "a", "entityType": "t", "observations": ["o"]}])
        graph = run.value("memory/read_graph")

    assert [entity["name"] for entity in graph["entities"]] == ["a"]


def test_a_workflow_uses_three_of_them(project, monkeypatch, capsys):
    servers = {
        "time": {"command": program("mcp-server-time")},
        "fs": {"command": program("mcp-server-filesystem"), "args": [str(project)]},
        "memory": {"command": program("mcp-server-memory"), "env": {"MEMORY_FILE_PATH": str(project / "m.json")}},
    }
    (project / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))
    entity = {"name": "note", "entityType": "day", "observations": ["${now.datetime}"]}
    phases = [
        {"id": "now", "name": "Now",
         "operations": {"type": "mcp", "tool": "time/get_current_time", "params": {"timezone": "UTC"}}},
        {"id": "note", "name": "Note", "dependencies": ["now"], "operations": [
            {"id": "keep", "type": "mcp", "tool": "memory/create_entities", "params": {"entities": [entity]}},
            {"id": "read", "type": "mcp", "tool": "fs/list_directory", "params": {"path": str(project)}}]},
    ]  # fmt: skip
    (project / "t.json").write_text(json.dumps({"name": "three", "phases": phases}))
    monkeypatch.chdir(project)
    for name in servers:
        assert main(["tools", "--approve", name, "--server", name]) == 0
    capsys.readouterr()
    allow = [word for name in servers for word in ("--allow", f"tool:{name}/*")]

    assert main(["run", "t.json", *allow]) == 0
    said = capsys.readouterr().out
    assert "notes.txt" in said
