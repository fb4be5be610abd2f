"""``sage-sandbox serve``: the tools for agents, over the Model Context Protocol."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sage_sandbox.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@click.command("serve")
@click.option("--http", "address", metavar="ADDRESS:PORT", help="Serve HTTP on the loopback instead, e.g. 127.0.0.1:0.")
@click.option("--check", is_flag=True, help="Say whether it could serve here, and operations could run; then end.")
@click.option("--json", "as_json", is_flag=True, help="With --check: print one JSON document.")
def command(*, address: str | None, check: bool, as_json: bool) -> int:
    """Serve the tools for agents, over the Model Context Protocol.

    They are sage_workflow_execute, _resume, _list, _status, _cancel and _validate, for this project, on stdin and
    stdout. Whoever calls them may run the project's templates with what you allowed for good, and with nothing else:
    templates are named, never given as paths, and what one asks for and you did not allow is refused with the command
    that you would have to type. A run is a process of its own, and goes on when the client or this server ends.

    With --http the URL is printed, and the header that a client has to send; a token of yours is read from
    SAGE_SERVE_TOKEN.
    """
    from sage_sandbox.cli.running import keep_private
    from sage_sandbox.errors import UsageError

    if as_json and not check:
        raise UsageError("--json belongs to --check", "stdout is the client's otherwise")
    if check:
        return _check(as_json=as_json)
    keep_private()
    environ = dict(os.environ)
    # A run is not to have it: neither in its environment nor in /proc of what it is started by.
    token = environ.pop("SAGE_SERVE_TOKEN", "")
    os.environ.pop("SAGE_SERVE_TOKEN", None)
    project = Path(os.path.realpath("."))
    if address is None:
        from sage_sandbox.mcp_server.server import make_server
        from sage_sandbox.mcp_server.stdio import serve_stdio

        serve_stdio(make_server(project, environ))
    else:
        _serve_http(project, environ, address, token)
    return 0


def _serve_http(project: Path, environ: Mapping[str, str], address: str, given: str) -> None:
    from sage_sandbox.mcp_server import http

    token = http.check_token(given) if given else http.make_token()
    with http.listen(address) as sock:
        from sage_sandbox.mcp_server.server import make_server

        server = make_server(project, environ)

        def ready() -> None:
            click.echo(f"http://{http.authority(sock)}{http.PATH}")
            if not given:
                click.echo(f"Authorization: Bearer {token}")

        http.serve_http(server, sock, token, ready=ready)


def _check(*, as_json: bool) -> int:
    from sage_sandbox.mcp_server.health import health
    from sage_sandbox.mcp_server.runs import Runs

    document = health(Runs(Path(os.path.realpath(".")), dict(os.environ)))
    sandbox = _sandbox()
    document |= {"sandbox": sandbox or "full", "status": "degraded" if sandbox else document["status"]}
    for line in [json.dumps(document, indent=2)] if as_json else _lines(document):
        click.echo(line)
    if sandbox:
        return ExitCode.SANDBOX_UNAVAILABLE
    return ExitCode.DONE if document["status"] == "ok" else ExitCode.FAILED


def _sandbox() -> str:
    """Why no operation can run here; empty if one can: it was tried."""
    from sage_sandbox.cli.doctor import probed

    last = probed()[-1]
    return "" if last.here else last.detail


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    from sage_sandbox.escaping import escape

    mark = "✓" if document["status"] == "ok" else "✗"
    yield f"{mark} sage-sandbox {document['version']}, protocol {document['protocol']} and earlier"
    yield f"  project: {escape(document['project'])}"
    yield f"  templates: {', '.join(document['templates']) or 'none'}"
    running = f", running: {', '.join(document['running'])}" if document["running"] else ""
    yield f"  runs: {document['runs']}{running}"
    yield f"  sandbox: {escape(document['sandbox'])}"
    for problem in document["problems"]:
        yield f"  ✗ {problem}"
