"""HTTP: on the loopback, for who knows the token, and for no page of a browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import anyio
import httpx2
import pytest
from commands import cli_argv, run_cli
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_talk import LEGACY, MODERN, ask

from sage_sandbox.errors import UsageError
from sage_sandbox.mcp_server import http

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
GIVEN = "t" * 40


@pytest.fixture
def served(project):
    """A server over HTTP: its URL, its Authorization header, its process."""
    process = subprocess.Popen(
        cli_argv("serve", "--http", "127.0.0.1:0"), cwd=project.path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url, header = process.stdout.readline().strip(), process.stdout.readline().strip()
    yield url, header.removeprefix("Authorization: "), process
    process.send_signal(signal.SIGINT)
    assert 130 == process.wait(60)
    process.stdout.close()


def post(url, **headers):
    """The status of a request."""
    sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, json.dumps(PING).encode(), sent)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
def test_with_the_token_it_is_the_same_server(served, project, mode):
    url, authorization, _ = served

    async def story():
        async with httpx2.AsyncClient(headers={"Authorization": authorization}, timeout=60) as connection:
            transport = streamable_http_client(url, http_client=connection)
            async with Client(transport, mode=mode) as client:
                document = await ask(client, "execute", feature="one", template="hello", options={"wait": 600})
                assert "completed" == document["status"]
                assert "sage://health" in [str(one.uri) for one in (await client.list_resources()).resources]

    anyio.run(story)


def test_without_the_token_nothing_is_answered(served):
    url, authorization, _ = served

    assert 401 == post(url)
    assert 401 == post(url, Authorization="Bearer wrong")
    assert 401 == post(url, Authorization=authorization.replace("Bearer", "Basic"))
    assert 401 == post(url + "/elsewhere")
    assert 404 == post(url + "/elsewhere", Authorization=authorization)


def test_a_page_of_a_browser_is_refused_with_the_token_too(served):
    url, authorization, _ = served
    port = url.split(":")[2].split("/")[0]

    assert 403 == post(url, Authorization=authorization, Origin="https://example.org")
    assert 403 == post(url, Authorization=authorization, Origin="http://127.0.0.1:1")
    assert 403 == post(url, Authorization=authorization, Origin="null")
    assert 421 == post(url, Authorization=authorization, Host=f"rebound.example.org:{port}")
    assert post(url, Authorization=authorization, Origin=f"http://127.0.0.1:{port}") not in (401, 403, 421)


def test_the_token_of_the_environment_is_taken_and_told_to_nobody(project):
    env = {**os.environ, "SAGE_SERVE_TOKEN": GIVEN}
    argv = cli_argv("serve", "--http", "127.0.0.1:0")
    with subprocess.Popen(argv, cwd=project.path, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert 401 == post(url)
        assert 401 != post(url, Authorization=f"Bearer {GIVEN}")
        process.send_signal(signal.SIGINT)
        assert "" == process.stdout.read()


@pytest.mark.parametrize("token", ["short", "with blanks in it " + "x" * 40, "é" * 40, "x" * 40 + "\n"])
def test_a_token_that_is_none_is_refused(token):
    with pytest.raises(UsageError, match="SAGE_SERVE_TOKEN has to have 32 characters"):
        http.check_token(token)


def test_tokens_are_long_and_never_the_same():
    assert len(http.make_token()) >= http.TOKEN_LEAST
    assert http.make_token() != http.make_token()


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "192.0.2.1:80", "[::]:0", "127.0.0.1", "localhost:80", ":80", "127.0.0.1:x"]
)
def test_only_the_loopback_is_listened_on(address):
    with pytest.raises(UsageError, match=r"is not (ADDRESS:PORT|on this machine's loopback)"):
        http.listen(address)


def test_a_port_that_is_taken_is_said():
    with http.listen("127.0.0.1:0") as taken, pytest.raises(UsageError, match="cannot listen on"):
        http.listen(http.authority(taken))


def test_the_authority_of_version_6_has_brackets():
    try:
        sock = http.listen("[::1]:0")
    except UsageError:
        pytest.skip("no IPv6 on the loopback here")
    with sock:
        assert http.authority(sock).startswith("[::1]:")


def test_json_is_for_the_check_only(project):
    done = run_cli("serve", "--json", cwd=project.path)

    assert (2, "") == (done.returncode, done.stdout)
    assert "--json belongs to --check" in done.stderr


def test_the_check_says_whether_it_would_work(project):
    done = run_cli("serve", "--check", "--json", cwd=project.path)
    document = json.loads(done.stdout)

    assert 0 == done.returncode, done.stdout
    assert ("ok", "full", ["hello"]) == (document["status"], document["sandbox"], document["templates"])
    done = run_cli("serve", "--check", cwd=project.path)
    assert done.stdout.startswith("✓ sage-sandbox ")


def test_the_check_says_what_is_wrong(project):
    state = Path(project.path, ".sage", "state")
    state.mkdir()
    (state / "workflow-x.json").write_text("{}", encoding="utf-8")
    done = run_cli("serve", "--check", cwd=project.path)

    assert 1 == done.returncode
    assert "\n  ✗ x: " in done.stdout
