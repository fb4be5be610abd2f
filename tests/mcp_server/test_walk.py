"""The server as the process that a client starts, from the first call to the last, in both eras of the protocol."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from mcp_talk import LEGACY, MODERN, TWO, ask, links_of, refused, text_of, until

from sage_sandbox.errors import NoSuchRun
from sage_sandbox.history import History


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
def test_a_run_is_executed_cancelled_resumed_listed_and_its_template_validated(project, mode):
    project.gated(
        "gated",
        {
            **TWO,
            "dependencies": ["wait"],
            "operations": {"type": "python", "code": "def run(inputs):\n    return inputs['wait']"},
        },
    )

    async def story(client):
        started = await ask(client, "execute", feature="walk", template="gated", options={"wait": 0})
        assert ("running", True) == (started["status"], started["success"])
        assert "running" == (await ask(client, "status", feature="walk"))["status"]

        cancelled = await ask(client, "cancel", feature="walk")
        assert {"success": True, "feature": "walk", "checkpointSaved": True} == {
            name: value for name, value in cancelled.items() if name != "cancelledAt"
        }
        assert "cancelled" == (await ask(client, "status", feature="walk"))["status"]

        project.open_gate()
        resumed = await ask(client, "resume", feature="walk")
        assert ("wait", True, started["workflowId"]) == (
            resumed["resumedFrom"],
            resumed["success"],
            resumed["workflowId"],
        )
        status = await ask(client, "status", feature="walk", wait_s=600)
        assert ("completed", {"completed": 2, "total": 2, "percentage": 100}) == (status["status"], status["progress"])
        run = json.loads((await client.read_resource("sage://runs/walk")).contents[0].text)
        results = {phase["id"]: phase["operations"][0]["result"] for phase in run["results"]["phases"]}
        assert {"wait": "through", "b": "through"} == results

        listed = await ask(client, "list", filter="completed")
        assert [("walk", "gated", "completed", 100)] == [
            (run["feature"], run["template"], run["status"], run["progress"]) for run in listed["workflows"]
        ]
        assert [] == (await ask(client, "list", filter="failed"))["workflows"]
        checked = await ask(client, "validate", template="gated")
        assert (True, {"nodes": 2, "edges": 1, "depth": 2}) == (checked["valid"], checked["graph"])

    project.talk(story, mode)


def test_results_come_with_the_answer_and_links_to_the_rest(project):
    async def story(client):
        result = await client.call_tool(
            "sage_workflow_execute", {"feature": "one", "template": "hello", "options": LONG}
        )

        assert "one is completed: 2 of 2 phases, phase b\nb (completed): 8" == text_of(result)
        assert [f"sage://runs/one{below}" for below in ("", "/report", "/log")] == links_of(result)
        run = json.loads((await client.read_resource("sage://runs/one")).contents[0].text)
        assert result.structured_content == {name: run[name] for name in result.structured_content}
        log = (await client.read_resource("sage://runs/one/log")).contents[0].text
        assert "run completed" in log.splitlines()[-1]

    project.talk(story)


LONG = {"wait": 600}
THREADS_MOST = 1 + 40
"""The loop's, and as many as anyio lets work at once: they stay for the next call."""

CLIENT = """
import sys, anyio
from mcp import Client
from mcp_talk import Project
from pathlib import Path
import os

async def main():
    async with Client(Project(Path(sys.argv[1]), dict(os.environ)).served, mode=sys.argv[2]) as client:
        arguments = {"feature": "orphan", "template": "gated", "options": {"wait": 600}}
        await client.call_tool("sage_workflow_execute", arguments)

anyio.run(main)
"""


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
def test_a_client_that_is_killed_in_the_middle_loses_nothing(project, mode):
    project.gated()
    paths = os.pathsep.join((str(Path(__file__).parents[1]), *filter(None, sys.path)))
    env = {**project.environ, "PYTHONPATH": paths}
    killed = subprocess.Popen([sys.executable, "-P", "-c", CLIENT, str(project.path), mode], env=env)
    try:
        _until(lambda: _status(project, "orphan") == "running", killed)
        [server] = _children(killed.pid)
    finally:
        killed.kill()
        killed.wait()
    _until(lambda: not Path(f"/proc/{server}").exists() or _is_zombie(server))
    assert "running" == _status(project, "orphan")

    async def story(client):
        assert "running" == (await ask(client, "status", feature="orphan"))["status"]
        project.open_gate()
        assert "completed" == (await ask(client, "status", feature="orphan", wait_s=600))["status"]
        run = json.loads((await client.read_resource("sage://runs/orphan")).contents[0].text)
        assert "through" == run["results"]["phases"][0]["operations"][0]["result"]

    project.talk(story, mode)


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
def test_a_call_that_its_client_cancels_cancels_the_run(project, mode):
    project.gated()

    async def story(client):
        async with anyio.create_task_group() as tasks:
            arguments = {"feature": "unwanted", "template": "gated", "options": {"wait": 600}}
            tasks.start_soon(client.call_tool, "sage_workflow_execute", arguments)
            await until(lambda: _runs(client, "unwanted"))
            tasks.cancel_scope.cancel()
        status = await ask(client, "status", feature="unwanted", wait_s=600)
        assert "cancelled" == status["status"]

    project.talk(story, mode)


def test_who_stops_waiting_for_a_status_leaves_the_run_alone(project):
    project.gated()

    async def story(client):
        await ask(client, "execute", feature="wanted", template="gated", options={"wait": 0})
        with anyio.move_on_after(0.3):
            await client.call_tool("sage_workflow_status", {"feature": "wanted", "wait_s": 600})
        assert "running" == (await ask(client, "status", feature="wanted"))["status"]
        project.open_gate()
        assert "completed" == (await ask(client, "status", feature="wanted", wait_s=600))["status"]

    project.talk(story)


def test_the_process_with_the_keys_cannot_be_looked_into(project):
    others = set(_children(os.getpid()))

    async def story(client):
        assert (await client.list_tools()).tools
        [server] = set(_children(os.getpid())) - others
        assert 0 == _owner(f"/proc/{server}/environ")  # undumpable (proc(5))

    project.talk(story)


@pytest.mark.parametrize("calls", [60, pytest.param(1000, marks=pytest.mark.stress)])
def test_calls_leave_no_descriptor_thread_or_process_behind(project, calls):
    others = set(_children(os.getpid()))

    async def story(client):
        await ask(client, "execute", feature="one", template="hello", options=LONG)
        [server] = set(_children(os.getpid())) - others
        await _call_many(client, 40)
        await until(lambda: _is_alone(server))  # the run's process has said that it is done, and goes
        before = _descriptors(server)
        for _ in range(calls // 20):
            await _call_many(client, 20)
        assert before == _descriptors(server)
        assert await _is_alone(server)
        assert THREADS_MOST >= len(_tasks(server))

    project.talk(story)


async def _call_many(client, count):
    """Different calls at once, some of which are refused."""

    async def call(number):
        match number % 4:
            case 0:
                await ask(client, "status", feature="one")
            case 1:
                await refused(client, "cancel", feature="one")
            case 2:
                await ask(client, "validate", template="hello")
            case _:
                await ask(client, "list")

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(call, number)


def test_an_endless_line_ends_the_session_and_holds_no_memory(project):
    served = project.served
    server = subprocess.Popen(
        [served.command, *served.args], cwd=served.cwd, env=served.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdin is not None
    with server, pytest.raises(BrokenPipeError):
        _write_without_end(server.stdin.fileno())

    assert 0 == server.returncode


def test_what_is_no_message_is_left_alone_and_input_that_ends_ends_the_server(project):
    served = project.served
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    done = subprocess.run(
        [served.command, *served.args],
        cwd=served.cwd,
        env=served.env,
        input=b"what?\n" + json.dumps(ping).encode() + b"\n",
        capture_output=True,
        check=True,
        timeout=60,
    )

    assert [{"jsonrpc": "2.0", "id": 1, "result": {}}] == [json.loads(line) for line in done.stdout.splitlines()]


def test_ctrl_c_ends_it_without_a_word(project):
    served = project.served
    with subprocess.Popen(
        [served.command, *served.args],
        cwd=served.cwd,
        env=served.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        os.write(server.stdin.fileno(), b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        assert server.stdout.readline()
        server.send_signal(signal.SIGINT)
        assert (b"", b"\n") == server.communicate(timeout=60)  # as after every verb that ^C ends

    assert 130 == server.returncode


def test_files_and_terminals_are_served_too(project, tmp_path):
    served = project.served
    asked, told = tmp_path / "asked", tmp_path / "told"
    asked.write_text('{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n', encoding="utf-8")
    with asked.open("rb") as stdin, told.open("wb") as stdout:
        argv = [served.command, *served.args]
        subprocess.run(argv, cwd=served.cwd, env=served.env, stdin=stdin, stdout=stdout, check=True, timeout=60)

    assert {"jsonrpc": "2.0", "id": 1, "result": {}} == json.loads(told.read_text(encoding="utf-8"))


def _status(project, feature):
    with History(project.path, project.environ) as history, suppress(NoSuchRun):
        return history.of(feature).status
    return ""


async def _runs(client, feature):
    result = await client.call_tool("sage_workflow_status", {"feature": feature})
    return not result.is_error and result.structured_content["status"] == "running"


def _until(holds, process=None, patience_s=60):
    until = time.monotonic() + patience_s
    while not holds():
        assert process is None or process.poll() is None, "it ended"
        assert time.monotonic() < until
        time.sleep(0.02)


def _write_without_end(fd):
    for _ in range(1024):
        os.write(fd, b"x" * (1 << 16))


def _tasks(pid):
    return list(Path(f"/proc/{pid}/task").iterdir())


def _started_by(pid):
    return [int(one) for task in _tasks(pid) for one in (task / "children").read_text(encoding="ascii").split()]


def _children(pid):
    """The servers that a process has started."""
    return [one for one in _started_by(pid) if b"serve" in Path(f"/proc/{one}/cmdline").read_bytes()]


async def _is_alone(pid):
    return not _started_by(pid)


def _owner(path):
    return Path(path).stat().st_uid


def _is_zombie(pid):
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="ascii")


def _descriptors(pid):
    """How many it has open, where that can be seen: of a process that is undumpable, by root only."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir())) if os.access(f"/proc/{pid}/fd", os.R_OK) else 0
