"""The shipped server over stdio, walked by two clients that nobody here wrote, in both eras of the protocol."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from conformance.installed import program, run
from conformance.walk import Said, Say, lay_out, provoke, walk
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import TextContent
from tasks_client import KnowsTasks

SERVE = [sys.executable, "-P", "-m", "sage_sandbox", "serve"]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def environ(own_home):
    return {**os.environ, "HOME": str(own_home)}


@pytest.fixture
def project(tmp_path, environ):
    folder = tmp_path / "project"
    lay_out(folder, environ)
    return folder


@contextmanager
def by_python(project, environ, *, mode, tasks=False) -> Iterator[Say]:
    """The client of MCP's Python SDK: one connection for all calls."""
    command = StdioServerParameters(command=SERVE[0], args=SERVE[1:], cwd=project, env=environ)
    connecting = Client(command, mode=mode, extensions=[KnowsTasks()] if tasks else [])
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(connecting) as client:

        def say(tool: str, **arguments: Any) -> Said:
            result = portal.call(partial(client.call_tool, f"sage_workflow_{tool}", arguments))
            texts = [block.text for block in result.content if isinstance(block, TextContent)]
            return Said(result.is_error, "\n".join(texts), result.structured_content or {})

        yield say


def inspector(project, environ, era, *args):
    """The Inspector's command line: a server of its own for each call."""
    given = [word for name in ("HOME", "PATH") for word in ("-e", f"{name}={environ[name]}")]
    how = [
        "--cli",
        "--quiet",
        "--format",
        "json",
        "--protocol-era",
        era,
        "--connect-timeout",
        "0",
        "--cwd",
        str(project),
        *given,
    ]
    return run([*program("mcp-inspector"), *how, *args, "--", *SERVE], project.parent)


@contextmanager
def by_inspector(project, environ, *, era) -> Iterator[Say]:
    def say(tool: str, **arguments: Any) -> Said:
        call = ["--method", "tools/call", "--tool-name", f"sage_workflow_{tool}"]
        done = inspector(project, environ, era, *call, "--tool-args-json", json.dumps(arguments))
        assert done.returncode in {0, 5}, done.stdout + done.stderr  # 5: the tool said no
        result = json.loads(done.stdout)["result"]
        texts = [block["text"] for block in result["content"] if block["type"] == "text"]
        return Said(result.get("isError", False), "\n".join(texts), result.get("structuredContent", {}))

    yield say


CLIENTS = {
    "python-2026-07-28": partial(by_python, mode="2026-07-28"),
    "python-2025-11-25": partial(by_python, mode="legacy"),
    "python-tasks": partial(by_python, mode="2026-07-28", tasks=True),
    "inspector-modern": partial(by_inspector, era="modern"),
    "inspector-legacy": partial(by_inspector, era="legacy"),
}
FOLLOW_TASKS = {"python-tasks", "inspector-modern"}  # they come back when the run has ended, whatever `wait` says


@pytest.fixture(params=CLIENTS)
def client(request):
    program("mcp-inspector")  # all or none: the walks take their time, and are the same
    return request.param


@pytest.fixture
def say(client, project, environ):
    with CLIENTS[client](project, environ) as saying:
        yield saying


def test_six_tools_lead_through_a_run(say, client, project):
    walk(say, project, follows=client in FOLLOW_TASKS)


def test_each_error_code_says_what_to_do_next(say, project, own_home):
    provoke(say, project, own_home)


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_schemas_of_the_tools_are_portable(project, environ, era):
    done = inspector(project, environ, era, "--method", "tools/list", "--strict")

    assert 0 == done.returncode, done.stderr
    assert 6 == len(json.loads(done.stdout)["result"]["tools"])
