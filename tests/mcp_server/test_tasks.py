"""The tasks extension, with tasks that are kept in memory; with real runs in test_run_tasks."""

from __future__ import annotations

from dataclasses import replace

import anyio
import httpx
import pytest
from conformance.lasting import FixtureTasks, add_lasting
from mcp.client.client import Client
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    SubscriptionFilter,
    SubscriptionsListenRequest,
    SubscriptionsListenRequestParams,
)
from tasks_client import Anything, KnowsTasks, ask, begin, until

from sage_sandbox.mcp_server.tasks import EXTENSION, Task, TasksExtension, TaskStatus

NOW = "2026-01-31T10:00:00Z"
OTHER = "no-such-task"


@pytest.fixture
def server():
    extension = TasksExtension(FixtureTasks())
    server = MCPServer("test", extensions=[extension], middleware=[extension.check_listening], log_level="ERROR")
    add_lasting(server)
    return server


def with_client(server, *, knows=True, mode="auto"):
    """Run a test's inside with a client."""

    def decorate(inside):
        async def connected():
            async with Client(server, mode=mode, extensions=[KnowsTasks()] if knows else []) as client:
                await inside(client)

        anyio.run(connected)

    return decorate


def test_call_that_takes_long_is_answered_with_a_task(server):
    @with_client(server)
    async def _(client):
        created = await begin(client, "slow_compute", seconds=60)
        seen = await ask(client.session, "tasks/get", created.task_id)

        assert "working" == created.status
        assert created.task_id == seen["taskId"]
        assert "complete" == seen["resultType"]
        assert not {"result", "error", "inputRequests"} & seen.keys()


def test_client_that_follows_its_task_gets_the_ordinary_answer(server):
    @with_client(server)
    async def _(client):
        result = await client.call_tool("slow_compute", {"seconds": 0, "label": "sum"})

        assert "sum: done" == result.content[0].text


def test_call_that_is_answered_at_once_is_no_task(server):
    @with_client(server)
    async def _(client):
        assert "Hello, you!" == (await client.call_tool("greet", {"name": "you"})).content[0].text


def test_error_of_the_tool_is_a_result_and_error_of_the_protocol_is_not(server):
    @with_client(server)
    async def _(client):
        failing = await until(client.session, (await begin(client, "failing_job")).task_id)
        broken = await until(client.session, (await begin(client, "protocol_error_job")).task_id)

        assert ("completed", True) == (failing["status"], failing["result"]["isError"])
        assert ("failed", -32603) == (broken["status"], broken["error"]["code"])
        assert "result" not in broken


def test_cancelled_task_is_cancelled_and_may_be_cancelled_again(server):
    @with_client(server)
    async def _(client):
        created = await begin(client, "slow_compute", seconds=60)
        for _ in range(2):
            said = await ask(client.session, "tasks/cancel", created.task_id)
            assert {"resultType", "_meta"} >= said.keys()

        assert "cancelled" == (await until(client.session, created.task_id))["status"]


def test_task_asks_and_goes_on_with_the_answers(server):
    @with_client(server)
    async def _(client):
        created = await begin(client, "multi_input")
        asked = await until(client.session, created.task_id, "input_required")
        first, second = asked["inputRequests"]
        accept = {"action": "accept", "content": {}}
        await ask(client.session, "tasks/update", created.task_id, {first: accept, "unknown": accept})
        left = await ask(client.session, "tasks/get", created.task_id)
        await ask(client.session, "tasks/update", created.task_id, {second: accept})

        assert "elicitation/create" == asked["inputRequests"][first]["method"]
        assert [second] == list(left["inputRequests"])
        assert "completed" == (await until(client.session, created.task_id))["status"]


def test_tool_that_asks_first_is_a_task_once_it_was_answered(server):
    @with_client(server)
    async def _(client):
        asked = await client.session.call_tool("test_tool_with_task", {}, allow_input_required=True, allow_claimed=True)
        created = await client.session.call_tool(
            "test_tool_with_task",
            {},
            input_responses={"user_name": {"action": "accept", "content": {"name": "Ada"}}},
            request_state=asked.request_state,
            allow_claimed=True,
        )

        assert ["user_name"] == list(asked.input_requests)
        assert "Hello, Ada" == (await until(client.session, created.task_id))["result"]["content"][0]["text"]


@pytest.mark.parametrize(("method", "responses"), [("tasks/get", None), ("tasks/cancel", None), ("tasks/update", {})])
def test_unknown_task_is_an_invalid_parameter(server, method, responses):
    @with_client(server)
    async def _(client):
        with pytest.raises(MCPError) as caught:
            await ask(client.session, method, OTHER, responses)

        assert INVALID_PARAMS == caught.value.code


@pytest.mark.parametrize(("method", "responses"), [("tasks/get", None), ("tasks/cancel", None), ("tasks/update", {})])
def test_client_that_does_not_know_tasks_cannot_ask_for_them(server, method, responses):
    @with_client(server, knows=False)
    async def _(client):
        with pytest.raises(MCPError) as caught:
            await ask(client.session, method, OTHER, responses)

        assert MISSING_REQUIRED_CLIENT_CAPABILITY == caught.value.code
        assert {"requiredCapabilities": {"extensions": {EXTENSION: {}}}} == caught.value.data


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_client_that_does_not_know_tasks_gets_the_ordinary_answer(server, mode):
    @with_client(server, knows=False, mode=mode)
    async def _(client):
        result = await client.call_tool("slow_compute", {"seconds": 0, "label": "sum"})

        assert "sum: done" == result.content[0].text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_tool_that_is_only_a_task_refuses_a_client_that_does_not_know_them(server, mode):
    @with_client(server, knows=False, mode=mode)
    async def _(client):
        with pytest.raises(MCPError) as caught:
            await client.call_tool("failing_job", {})

        assert MISSING_REQUIRED_CLIENT_CAPABILITY == caught.value.code


def test_older_protocol_has_no_tasks(server):
    @with_client(server, mode="legacy")
    async def _(client):
        result = await client.call_tool("slow_compute", {"seconds": 0, "label": "sum"})
        with pytest.raises(MCPError) as caught:
            await ask(client.session, "tasks/get", OTHER)

        assert "sum: done" == result.content[0].text
        assert METHOD_NOT_FOUND == caught.value.code


def listening(task_ids):
    wanted = SubscriptionFilter.model_validate({"toolsListChanged": True, "taskIds": task_ids})
    return SubscriptionsListenRequest(params=SubscriptionsListenRequestParams(notifications=wanted))


def test_client_that_does_not_know_tasks_cannot_subscribe_to_them(server):
    @with_client(server, knows=False)
    async def _(client):
        with pytest.raises(MCPError) as caught:
            await client.session.send_request(listening([OTHER]), Anything)

        assert MISSING_REQUIRED_CLIENT_CAPABILITY == caught.value.code


@pytest.mark.parametrize("knows", [True, False])
def test_subscription_is_served_without_tasks(server, knows):
    @with_client(server, knows=knows)
    async def _(client):
        request = listening([OTHER] if knows else [])
        with anyio.move_on_after(0.2) as scope:
            await client.session.send_request(request, Anything)

        assert scope.cancelled_caught  # it goes on: it was not refused


@pytest.fixture
def over_http(server):
    """What the server answers to a request over HTTP, whose headers are the test's."""
    app = server.streamable_http_app(json_response=True)

    async def post(method, params, **headers):
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
        }
        said = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method, "Accept": "application/json", **headers}
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return (await client.post("/mcp", json=body, headers=said)).json()

    def within(inside):
        async def served():
            async with server.session_manager.run():
                await inside(post)

        anyio.run(served)

    return within


def test_over_http_a_header_names_the_task(over_http):
    @over_http
    async def _(post):
        call = {"name": "slow_compute", "arguments": {"seconds": 60}}
        task = {"taskId": (await post("tools/call", call, **{"Mcp-Name": "slow_compute"}))["result"]["taskId"]}

        assert "working" == (await post("tasks/get", task, **{"Mcp-Name": task["taskId"]}))["result"]["status"]
        for headers in ({}, {"Mcp-Name": OTHER}):
            assert HEADER_MISMATCH == (await post("tasks/get", task, **headers))["error"]["code"]


def test_task_says_what_belongs_to_its_status():
    made = Task("a", "working", NOW, NOW, message="half", result={"content": []}, error={"code": 1}, requests={"k": {}})

    expected: list[tuple[TaskStatus, dict[str, object]]] = [
        ("working", {}),
        ("input_required", {"inputRequests": {"k": {}}}),
        ("completed", {"result": {"content": []}}),
        ("failed", {"error": {"code": 1}}),
        ("cancelled", {}),
    ]
    for status, more in expected:
        task = replace(made, status=status)
        assert {**task.handle(), **more} == task.detail()
        assert ("half", None) == (task.handle()["statusMessage"], task.handle()["ttlMs"])
