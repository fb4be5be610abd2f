"""``sage-sandbox tools``: the tool servers of this project, and whether they are approved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sage_sandbox.cli import options
from sage_sandbox.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sage_sandbox.grants.servers import Approvals
    from sage_sandbox.toolservers.definition import Server
    from sage_sandbox.toolservers.reading import Catalog


@click.command("tools")
@click.option("--server", "name", metavar="NAME", help="Only this one.")
@click.option(
    "--approve",
    "approved",
    multiple=True,
    metavar="NAME",
    help="Approve a server as it is defined now: it may be started or contacted from then on. May be repeated.",
)
@options.as_json()
def command(*, name: str | None, approved: tuple[str, ...], as_json: bool) -> int:
    """List the tool servers of this project, and approve them.

    Servers are defined in .mcp.json and .sage/config.toml. A project's definition is a request: nothing is started,
    contacted or expanded for it before you approved it, and it is asked about again when it changes.
    """
    from sage_sandbox.cli.rendering import render_problems
    from sage_sandbox.grants.servers import Approvals
    from sage_sandbox.toolservers.reading import read_catalog

    project, approvals = Path.cwd(), Approvals.of_user()
    catalog = read_catalog(project)
    _approve([catalog.find(server) for server in approved], project, approvals)
    servers = [catalog.find(name)] if name is not None else list(catalog.servers.values())
    standing = {server.name: _standing(server, project, approvals) for server in servers}
    if as_json:
        click.echo(json.dumps(_document(servers, standing, catalog), indent=2))
    else:
        for line in _lines(servers, standing):
            click.echo(line)
        if catalog.problems:
            click.echo(render_problems(catalog.problems), err=True)
    broken = any(problem.severity == "error" for problem in catalog.problems)
    return ExitCode.USAGE if broken else ExitCode.DONE


def _approve(servers: Sequence[Server], project: Path, approvals: Approvals) -> None:
    from sage_sandbox.errors import NotGranted
    from sage_sandbox.grants.asking_servers import shown

    if not servers:
        return
    for server in servers:
        for line in shown(server):
            click.echo(line, err=True)
    try:
        approvals.add(servers, project)
    except OSError as error:
        raise NotGranted(f"the approval cannot be remembered: {error.strerror or error}") from error


def _standing(server: Server, project: Path, approvals: Approvals) -> str:
    if approvals.holds(server, project):
        return "approved"
    return "changed since it was approved" if approvals.knew(server, project) else "not approved"


def _lines(servers: Iterable[Server], standing: dict[str, str]) -> Iterator[str]:
    from sage_sandbox.grants.asking_servers import shown

    for server in servers:
        approved = standing[server.name] == "approved"
        yield from shown(server)
        yield f"    {'✓' if approved else '✗'} {standing[server.name]}"
        if not approved:
            yield f"      sage-sandbox tools --approve {server.name}"
    if not standing:
        yield "no tool servers are defined in .mcp.json or .sage/config.toml"


def _document(servers: Iterable[Server], standing: dict[str, str], catalog: Catalog) -> dict[str, Any]:
    return {
        "servers": [
            {
                "name": server.name,
                "source": server.source,
                "command": server.command,
                "args": server.args,
                "env": [name for name, _ in server.env],
                "url": server.url,
                "headers": [name for name, _ in server.headers],
                "variables": server.variables(),
                "approved": standing[server.name] == "approved",
                "approval": standing[server.name],
            }
            for server in servers
        ],
        "problems": [
            {"file": problem.file, "field": problem.field, "message": problem.message, "severity": problem.severity}
            for problem in catalog.problems
        ],
    }
