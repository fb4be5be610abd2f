"""``sage-sandbox list``: the runs of this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sage_sandbox.history import Standing

STATUSES = ("running", "paused", "completed", "failed", "cancelled")


@click.command("list")
@click.option("--filter", "status", type=click.Choice(STATUSES), help="Only runs of this status.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(status: str | None, *, as_json: bool) -> int:
    """List the runs of this project: feature, status, progress, phase, start, template."""
    from sage_sandbox.cli.running import passphrase_asker
    from sage_sandbox.history import History

    with History(Path.cwd(), ask_passphrase=passphrase_asker(as_json=as_json)) as history:
        found = list(history.all(status))
    if as_json:
        click.echo(json.dumps({"workflows": [_document(standing) for standing in found]}, indent=2))
        return 0
    for standing in found:
        click.echo(_line(standing))
    if not found:
        click.echo("no runs here" + (f" that are {status}" if status else ""), err=True)
    return 0


def _document(standing: Standing) -> dict[str, Any]:
    from sage_sandbox.history import standing_document

    whole = standing_document(standing)
    names = ("feature", "template", "phase", "status", "startedAt", "interrupted", "trouble")
    return {name: whole[name] for name in names if name in whole} | {"progress": standing.progress.get("percentage", 0)}


def _line(standing: Standing) -> str:
    from sage_sandbox.escaping import clip, escape

    if standing.trouble and not standing.template:
        return f"{standing.feature}  {standing.status}: {clip(standing.trouble, 200)}"
    done = standing.progress
    status = f"{standing.status} (interrupted)" if standing.interrupted else standing.status
    return (
        f"{standing.feature}  {status}  {done['completed']}/{done['total']} ({done['percentage']} %)  "
        f"{standing.phase or '-'}  {standing.started_at}  {escape(standing.template)}"
    )
