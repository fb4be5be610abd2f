"""``sage-sandbox tools``: the tool servers of this project, whether they are approved, what they offer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sage_sandbox.cli import options
from sage_sandbox.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sage_sandbox.brokering import Seen
    from sage_sandbox.grants.servers import Approvals
    from sage_sandbox.toolservers.definition import Server
    from sage_sandbox.toolservers.reading import Catalog


APPROVED: Final = "approved"
WIDTH: Final = 200


@click.command("tools")
@click.option("--server", "name", metavar="NAME", help="Only this one, with its tools.")
@click.option(
    "--approve",
    "approved",
    multiple=True,
    metavar="NAME",
    help="Approve a server as it is defined now: it may be started or contacted from then on. May be repeated.",
)
@click.option(
    "--reset",
    multiple=True,
    metavar="NAME",
    help="Call a server again that runs of this project leave alone because it failed. May be repeated.",
)
@options.as_json()
def command(*, name: str | None, approved: tuple[str, ...], reset: tuple[str, ...], as_json: bool) -> int:
    """List the tool servers of this project, and approve them.

    Servers are defined in .mcp.json and .sage/config.toml. A project's definition is a request: nothing is started,
    contacted or expanded for it before you approved it, and it is asked about again when it changes. Those that are
    approved are asked what they offer, which is in the audit log; a server that runs of this project found broken is
    shown as that.
    """
    from sage_sandbox.cli.rendering import render_problems
    from sage_sandbox.cli.running import keep_private
    from sage_sandbox.grants.servers import Approvals
    from sage_sandbox.toolservers.reading import read_catalog

    keep_private()
    project, approvals = Path.cwd(), Approvals.of_user()
    catalog = read_catalog(project)
    _approve([catalog.find(server) for server in approved], project, approvals)
    servers = [catalog.find(name)] if name is not None else list(catalog.servers.values())
    standing = {server.name: _standing(server, project, approvals) for server in servers}
    for server in reset:
        catalog.find(server)  # a name that is none is an error
    asked = [server for server in servers if standing[server.name] == APPROVED]
    seen = _look(asked, project, reset, as_json=as_json)
    if as_json:
        click.echo(json.dumps(_document(servers, standing, seen, catalog), indent=2))
    else:
        for line in _lines(servers, standing, seen, whole=name is not None):
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
        return APPROVED
    return "changed since it was approved" if approvals.knew(server, project) else "not approved"


def _look(servers: Sequence[Server], project: Path, reset: Collection[str], *, as_json: bool) -> dict[str, Seen]:
    """Ask approved servers what they offer, and the project's broker how they stand; first that is written down."""
    from sage_sandbox.brokering import look
    from sage_sandbox.cli.running import passphrase_asker
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.store.opening import open_keys

    if not servers:
        return {}
    place = project_place(project)
    with place.folder:
        keys = open_keys(os.environ, place, ask_passphrase=passphrase_asker(as_json=as_json))
    found = look(servers, str(project), os.environ, audit_key=keys.audit_key(place.id), reset=reset)
    return {seen.name: seen for seen in found}


def _lines(
    servers: Iterable[Server], standing: Mapping[str, str], seen: Mapping[str, Seen], *, whole: bool
) -> Iterator[str]:
    from sage_sandbox.grants.asking_servers import shown

    for server in servers:
        yield from shown(server)
        if standing[server.name] == APPROVED:
            yield from _seen_lines(seen[server.name], whole=whole)
        else:
            yield f"    ✗ {standing[server.name]}"
            yield f"      sage-sandbox tools --approve {server.name}"
    if not standing:
        yield "no tool servers are defined in .mcp.json or .sage/config.toml"


def _seen_lines(seen: Seen, *, whole: bool) -> Iterator[str]:
    from sage_sandbox.escaping import clip

    if seen.error:
        yield f"    ✗ {clip(seen.error, WIDTH)} (breaker: {seen.state})"
        return
    who = " ".join(clip(str(seen.about.get(field, "")), 80) for field in ("name", "version")).strip()
    protocol = clip(str(seen.about.get("protocol", "")), 40)
    yield f"    ✓ approved, answers ({who}, protocol {protocol}, breaker: {seen.state})"
    if whole:
        yield from (f"    {clip(tool.name, 128)}  {_summary(tool.description)}".rstrip() for tool in seen.tools)
    else:
        names = clip(", ".join(tool.name for tool in seen.tools), 4 * WIDTH)
        yield f"    {len(seen.tools)} tools: {names}" if seen.tools else "    no tools"


def _summary(description: str) -> str:
    """The first line of what a server says of a tool."""
    from sage_sandbox.escaping import clip

    return clip(next((line.strip() for line in description.splitlines() if line.strip()), ""), WIDTH)


def _document(
    servers: Iterable[Server], standing: Mapping[str, str], seen: Mapping[str, Seen], catalog: Catalog
) -> dict[str, Any]:
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
                "sandbox": server.sandbox,
                "policy": server.policy,
                "variables": server.variables(),
                "approved": standing[server.name] == APPROVED,
                "approval": standing[server.name],
                **_seen_document(seen.get(server.name)),
            }
            for server in servers
        ],
        "problems": [
            {"file": problem.file, "field": problem.field, "message": problem.message, "severity": problem.severity}
            for problem in catalog.problems
        ],
    }


def _seen_document(seen: Seen | None) -> dict[str, Any]:
    if seen is None:
        return {"breaker": None, "error": "", "about": {}, "tools": []}
    tools = [
        {"name": tool.name, "description": tool.description, "inputSchema": json.loads(tool.input_schema)}
        for tool in seen.tools
    ]
    return {"breaker": seen.state, "error": seen.error, "about": dict(seen.about), "tools": tools}
