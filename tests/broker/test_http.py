"""Tool servers behind an address: what they answer, and what they do instead."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest
from brokered import threaded
from http_puppet import http_puppet

from sage_sandbox.toolservers.definition import Server


@pytest.fixture
def web():
    with http_puppet() as server:
        yield server


@pytest.fixture
def run(project, web):
    definition = Server("puppet", ".mcp.json", url=web.url, headers=(("Authorization", "Bearer ${API_KEY}"),))
    with threaded(
        project, definition, environ={**os.environ, "API_KEY": "k-1"}, settings={"jitter": lambda: 0.0}
    ) as made:
        yield made


def test_a_call_is_answered_and_headers_are_sent(run):
    assert run.value("echo", text="hi") == "hi"
    given = run.value("headers")
    assert given["authorization"] == "Bearer k-1"
    assert given["accept-encoding"] == "identity"
    assert given["mcp-session-id"] == "s-1"


def test_an_answer_may_come_as_an_event(run):
    assert run.value("events") == "by event"


@pytest.mark.parametrize(
    ("tool", "kind", "error", "calls"),
    [
        ("busy", "transport", "puppet answered with HTTP status 503", 3),
        ("busy-for-long", "transport", "puppet answered with HTTP status 429", 1),
        ("broken", "transport", "puppet answered with HTTP status 500", 1),
        ("forgot", "transport", "puppet answered with HTTP status 404", 3),
        ("no", "tool", "puppet answered with HTTP status 403", 1),
        ("huge", "transport", "it answered with more than 17 MiB", 1),
        ("brackets", "transport", "more than 200,000 nodes", 1),
        ("packed", "transport", "", 1),
        ("huge-event", "transport", "", 1),
        ("hang-up", "transport", "", 1),
        ("moved", "tool", "not followed", 1),
        ("html", "tool", "unexpected content type", 1),
    ],
)
def test_what_comes_instead_of_an_answer_is_told_apart(run, web, tool, kind, error, calls):
    answer = run.call(tool)

    assert not answer.ok
    assert answer.kind == kind
    assert error.lower() in answer.error.lower()
    assert len(web.calls) == calls
    assert run.value("echo", text="alive") == "alive"


def test_a_server_that_asks_for_time_gets_it(run, web):
    began = time.monotonic()

    assert run.value("once-busy") == "not busy any more"
    assert time.monotonic() - began >= 1.0
    assert web.calls == ["once-busy", "once-busy"]


def test_nobody_at_the_address_fails_the_call_and_opens_the_breaker(project):
    with threaded(
        project, Server("puppet", ".mcp.json", url="http://127.0.0.1:9/mcp"), settings={"jitter": lambda: 0.0}
    ) as run:
        answer = run.call("echo")
        run.call("echo")
        state = run.look()["state"]

    assert (answer.kind, answer.retryable) == ("transport", True)
    assert state == "open"


MODERN = """
import sys
from mcp.server import MCPServer
server = MCPServer("modern")

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
"""


def test_the_newer_protocol_is_spoken_by_http_too(project):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-P", "-c", MODERN, str(port)], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)
        with threaded(project, Server("puppet", ".mcp.json", url=f"http://127.0.0.1:{port}/mcp")) as run:
            assert run.value("add", a=2, b=3) == {"result": 5}
            assert run.look(start=True)["about"]["protocol"] == "2026-07-28"
    finally:
        process.kill()
        process.wait()
