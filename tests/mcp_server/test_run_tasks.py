"""Runs as tasks: found again by their names alone, whichever server is asked."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, CallToolRequestParams, CallToolResult, TextContent
from tasks_client import KnowsTasks, ask, begin, until

from sage_sandbox.control.asking import Cancelled, NotAnswering, NotRunning
from sage_sandbox.errors import NoSuchRun, StateCorrupted
from sage_sandbox.history import Standing
from sage_sandbox.mcp_server.run_tasks import Name, RunTasks
from sage_sandbox.mcp_server.server import make_server
from sage_sandbox.store.records import Session

RUN = "0123456789abcdef" * 2
NOW = "2030-01-01T00:00:00.000Z"
LATER = "2030-01-01T00:01:00.000Z"
FIRST = Name("f", RUN, 1)
GOES_ON = Standing(
    "f",
    "running",
    run=RUN,
    started_at=NOW,
    updated_at=NOW,
    progress={"completed": 1, "total": 4, "percentage": 25},
    sessions=(Session(NOW),),
)
PAUSED = replace(GOES_ON, status="paused", sessions=(Session(NOW, LATER, "paused"),))


@dataclass
class FakeRuns:
    """The runs of a project with one feature, which stands as the test says."""

    stands: Standing | Exception = GOES_ON
    cancelled: list[str] = field(default_factory=list)

    def standing(self, feature):
        if isinstance(self.stands, Exception):
            raise self.stands
        if feature != self.stands.feature:
            raise NoSuchRun("there is none")
        return self.stands

    def cancel(self, feature, *, save):
        self.cancelled.append(feature)
        return Cancelled(feature, "cancelled", LATER, saved=save)


def answer(standing, resumed_from):
    said = {"status": standing.status, "resumedFrom": resumed_from}
    return CallToolResult(content=[TextContent(type="text", text=standing.status)], structured_content=said)


def tasks_of(runs: Any) -> RunTasks:
    return RunTasks(runs, answer)


def started(result, *, tool="sage_workflow_execute", runs=None):
    """What becomes of a call that is answered with this."""

    async def answering(_):
        return result

    no_context: Any = None
    call = CallToolRequestParams(name=tool, arguments={"feature": "f"})
    return anyio.run(partial(tasks_of(runs or FakeRuns()).start, call, no_context, answering))


def got(runs, name=FIRST):
    return anyio.run(tasks_of(runs).get, str(name))


def result_of(**said):
    return CallToolResult(content=[], structured_content=said)


@pytest.mark.parametrize("name", [FIRST, Name("a-b", RUN, 12, "build"), Name("f", RUN, 2, "")])
def test_name_says_all_that_it_takes_to_find_the_run(name):
    assert name == Name.read(str(name))


@pytest.mark.parametrize(
    "text",
    ["", "f", f"run.../x.{RUN}.1", f"run.f.{RUN}.0", f"run.f.{RUN[:-1]}.1", f"run.f.{RUN}.1\n", f"run.F.{RUN}.1",
     f"run.f.{RUN}.1234567", f"run.f.{RUN}.1.a/b", f"run.f.{RUN}.1.a.b", f"run.f.{RUN}.١"],
)  # fmt: skip
def test_what_is_no_name_of_ours_is_no_task(text):
    runs = FakeRuns()

    assert Name.read(text) is None
    assert anyio.run(tasks_of(runs).get, text) is None
    assert not anyio.run(tasks_of(runs).update, text, {})
    assert not anyio.run(tasks_of(runs).cancel, text)


def test_run_that_goes_on_is_a_task():
    task = started(result_of(status="running", workflowId=RUN))

    assert (str(FIRST), "working", NOW, "1 of 4 phases (25 %)") == (
        task.id,
        task.status,
        task.created_at,
        task.message,
    )


def test_run_that_is_gone_on_with_is_another_task_and_knows_where_it_began():
    again = replace(GOES_ON, sessions=(Session(NOW, NOW, "paused"), Session(LATER)))
    said = result_of(status="running", workflowId=RUN, resumedFrom="build")

    task = started(said, tool="sage_workflow_resume", runs=FakeRuns(again))

    assert Name("f", RUN, 2, "build") == Name.read(task.id)
    assert LATER == task.created_at


@pytest.mark.parametrize(
    ("result", "tool"),
    [
        (result_of(status="completed", workflowId=RUN), "sage_workflow_execute"),
        (result_of(status="running", workflowId=RUN), "sage_workflow_status"),
        (result_of(status="running", workflowId="f" * 32), "sage_workflow_execute"),
        (CallToolResult(content=[], is_error=True), "sage_workflow_execute"),
        (CallToolResult(content=[]), "sage_workflow_execute"),
        ({}, "sage_workflow_execute"),
    ],
)
def test_other_answers_stay_as_they_are(result, tool):
    assert result is started(result, tool=tool)


def test_answer_stays_where_the_run_is_gone():
    result = result_of(status="running", workflowId=RUN)

    assert result is started(result, runs=FakeRuns(NoSuchRun("gone")))


@pytest.mark.parametrize("status", ["paused", "failed", "completed"])
def test_run_that_ended_is_a_completed_task_with_the_tools_answer(status):
    standing = replace(PAUSED, status=status, sessions=(Session(NOW, LATER, status),))

    task = got(FakeRuns(standing), Name("f", RUN, 1, "build"))

    assert ("completed", LATER) == (task.status, task.updated_at)
    assert {"status": status, "resumedFrom": "build"} == task.result["structuredContent"]


def test_cancelled_run_is_a_cancelled_task():
    task = got(FakeRuns(replace(PAUSED, status="cancelled", sessions=(Session(NOW, LATER, "cancelled"),))))

    assert ("cancelled", None) == (task.status, task.result)


@pytest.mark.parametrize(
    ("ended", "status"), [("cancelled", "cancelled"), ("failed", "completed"), ("", "completed"), ("odd", "completed")]
)
def test_ended_task_stays_as_it_ended_when_the_run_goes_on(ended, status):
    runs = FakeRuns(replace(GOES_ON, sessions=(Session(NOW, LATER if ended else "", ended), Session(LATER))))

    task = got(runs)

    assert status == task.status
    if task.result is not None:
        assert {"failed": "failed"}.get(ended, "paused") == task.result["structuredContent"]["status"]
    assert "working" == got(runs, Name("f", RUN, 2)).status


@pytest.mark.parametrize(
    "name", [Name("g", RUN, 1), Name("f", "f" * 32, 1), Name("f", RUN, 2)], ids=["feature", "run", "session"]
)
def test_task_of_another_run_is_unknown(name):
    assert got(FakeRuns(), name) is None


def test_cancel_asks_the_run_that_goes_on_and_no_other():
    for runs, asked in (
        (FakeRuns(), ["f"]),
        (FakeRuns(PAUSED), []),
        (FakeRuns(replace(GOES_ON, sessions=(Session(NOW, NOW, "paused"), Session(LATER)))), []),
    ):
        assert anyio.run(tasks_of(runs).cancel, str(FIRST))
        assert asked == runs.cancelled


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (NotRunning("it has ended"), PAUSED),
        (NotRunning("it has gone"), NoSuchRun("gone")),
        (NotAnswering("it sleeps"), GOES_ON),
        (PermissionError(13, "Permission denied"), GOES_ON),
    ],
)
def test_cancel_of_a_run_that_does_not_hear_is_acknowledged(error, after):
    class Deaf(FakeRuns):
        def cancel(self, feature, *, save):
            self.cancelled.append(feature)
            self.stands = after
            raise error

    runs = Deaf()

    assert anyio.run(tasks_of(runs).cancel, str(FIRST))
    assert ["f"] == runs.cancelled


def test_cancel_that_is_repeated_does_not_end_the_run_that_took_its_place():
    other = replace(GOES_ON, run="f" * 32)

    class Deaf(FakeRuns):
        def cancel(self, feature, *, save):
            self.cancelled.append(feature)
            self.stands = other
            raise NotRunning("it does not listen")

    runs = Deaf()

    assert anyio.run(tasks_of(runs).cancel, str(FIRST))
    assert ["f"] == runs.cancelled


def test_cancel_of_a_run_that_does_not_listen_yet_is_repeated():
    class Late(FakeRuns):
        def cancel(self, feature, *, save):
            self.cancelled.append(feature)
            if len(self.cancelled) < 3:
                raise NotRunning("it does not listen yet")
            return Cancelled(feature, "cancelled", LATER, saved=save)

    runs = Late()

    assert anyio.run(tasks_of(runs).cancel, str(FIRST))
    assert ["f"] * 3 == runs.cancelled


def test_state_that_cannot_be_read_is_an_error_and_not_an_unknown_task():
    with pytest.raises(MCPError, match="spoiled") as caught:
        got(FakeRuns(StateCorrupted("spoiled")))

    assert INTERNAL_ERROR == caught.value.code
    with pytest.raises(MCPError, match="Permission denied"):
        got(FakeRuns(PermissionError(13, "Permission denied")))


# -- real runs, in processes of their own --------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A project with a template whose second phase takes a while."""
    folder = tmp_path / "project"
    templates = folder / ".sage" / "templates"
    templates.mkdir(parents=True)
    codes = {"first": "return 1", "second": "__import__('time').sleep(4); return 2"}
    phases = [
        {
            "id": phase,
            "name": phase,
            "dependencies": needs,
            "operations": {"type": "python", "code": f"def run(): {code}"},
        }
        for (phase, code), needs in zip(codes.items(), ([], ["first"]), strict=True)
    ]
    (templates / "steps.json").write_text(json.dumps({"name": "steps", "phases": phases}))
    (templates / "short.json").write_text(json.dumps({"name": "short", "phases": phases[:1]}))
    return folder


def client_of(project, *, process=False):
    """A client of a server that was just started: nothing is left in memory of the one before."""
    command = ["-P", "-m", "sage_sandbox", "serve"]
    serving = StdioServerParameters(command=sys.executable, args=command, cwd=project, env=dict(os.environ))
    return Client(serving if process else make_server(project, os.environ), extensions=[KnowsTasks()])


def test_run_is_a_task_that_outlives_its_server(project):
    async def walk():
        async with client_of(project, process=True) as client:
            begun = await begin(client, "sage_workflow_execute", feature="f", template="steps")
            while "1 of 2" not in (seen := await ask(client.session, "tasks/get", begun.task_id))["statusMessage"]:
                assert "working" == seen["status"]
        async with client_of(project) as client:
            assert {"resultType", "_meta"} >= (
                await ask(client.session, "tasks/update", begun.task_id, {"k": {}})
            ).keys()
            assert {"resultType", "_meta"} >= (await ask(client.session, "tasks/cancel", begun.task_id)).keys()
            assert "cancelled" == (await until(client.session, begun.task_id))["status"]
        async with client_of(project) as client:
            resumed = await begin(client, "sage_workflow_resume", feature="f")
        async with client_of(project) as client:
            ended = await until(client.session, resumed.task_id)
            assert "cancelled" == (await ask(client.session, "tasks/get", begun.task_id))["status"]
            for name in (begun.task_id.replace(".f.", ".g."), begun.task_id[:-1] + "3"):
                with pytest.raises(MCPError) as caught:
                    await ask(client.session, "tasks/get", name)
                assert INVALID_PARAMS == caught.value.code
        return ended

    said = anyio.run(walk)["result"]

    assert {"success": True, "status": "completed", "resumedFrom": "second"}.items() <= said[
        "structuredContent"
    ].items()
    assert ["first", "second"] == [phase["id"] for phase in said["structuredContent"]["results"]["phases"]]
    assert not said["isError"]


def test_short_run_is_answered_at_once_or_by_its_task_with_the_same(project):
    async def call():
        async with client_of(project) as client:
            return await client.call_tool("sage_workflow_execute", {"feature": "f", "template": "short"})

    assert "completed" == anyio.run(call).structured_content["status"]
