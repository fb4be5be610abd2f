"""``sage-sandbox audit``: what was done in this project, and on whose word."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import asdict
from pathlib import Path

import click


@click.group("audit")
def command() -> None:
    """Show or verify what was done, and on whose word."""


@command.command("verify")
def verify() -> int:
    """Check that no entry was changed, added or taken out; exit code 13 if one was."""
    from sage_sandbox.audit import checking
    from sage_sandbox.disk.files import sage_folder
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.errors import ExitCode, NoSuchRun
    from sage_sandbox.store.opening import open_keys

    missing = NoSuchRun("there is no audit log here", "it begins with the first run of a project")
    place = project_place(Path.cwd(), make=False)
    if place is None:
        raise missing
    with place.folder:
        keys = open_keys(os.environ, place, make=False)
        try:
            with sage_folder(Path.cwd(), "logs") as folder:
                verdict = checking.verify(folder, place.folder, keys.audit_key(place.id))
        except FileNotFoundError:
            raise missing from None
    for number, problem in verdict.problems:
        click.echo(f"✗ line {number} {problem}" if number else f"✗ {problem}")
    if verdict.torn:
        click.echo("⚠ the last line was not finished; the next entry heals it")
    if verdict.problems:
        return int(ExitCode.STATE_CORRUPTED)
    click.echo(f"✓ {verdict.entries} entries, from {verdict.first} to {verdict.last}")
    return 0


@command.command("show")
@click.option("--feature", default="", metavar="FEATURE", help="Only what is about this run.")
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the last entries.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(feature: str, last: int | None, *, as_json: bool) -> int:
    """Print the entries: time, feature, kind, text."""
    from sage_sandbox.audit.checking import entries
    from sage_sandbox.disk.files import sage_folder
    from sage_sandbox.escaping import escape

    try:
        with sage_folder(Path.cwd(), "logs") as folder:
            found = list(deque(entries(folder, feature), last))
    except FileNotFoundError:
        click.echo("there is no audit log here", err=True)
        return 0
    if as_json:
        click.echo(json.dumps({"entries": [asdict(entry) for entry in found]}, indent=2))
        return 0
    for entry in found:
        click.echo(escape(f"{entry.time}  {entry.feature or '-'}  {entry.kind}  {entry.text}"))
    return 0
