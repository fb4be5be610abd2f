"""``sage-sandbox audit``: what was done in this project, and on whose word."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from heapq import merge
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sage_sandbox.audit.chain import Entry
    from sage_sandbox.audit.checking import Verdict
    from sage_sandbox.disk.places import ProjectPlace

_BEGINS = "it begins with the first run of a project"


@click.group("audit")
def command() -> None:
    """Show or verify what was done, and on whose word."""


@command.command("verify")
def verify() -> int:
    """Check that no entry was changed, added or taken out; exit code 13 if one was."""
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.errors import ExitCode, NoSuchRun

    place = project_place(Path.cwd(), make=False)
    if place is None:
        raise NoSuchRun("there is no audit log here", _BEGINS)
    with place.folder:
        verdicts = list(_verdicts(place))
    if not verdicts:
        raise NoSuchRun("there is no audit log here", _BEGINS)
    for where, verdict in verdicts:
        for line in _lines(where, verdict):
            click.echo(line)
    return int(ExitCode.STATE_CORRUPTED) if any(verdict.problems for _, verdict in verdicts) else 0


@command.command("show")
@click.option("--feature", default="", metavar="FEATURE", help="Only what is about this run.")
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the last entries.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(feature: str, last: int | None, *, as_json: bool) -> int:
    """Print the entries: time, feature, kind, text."""
    from sage_sandbox.escaping import escape

    logs = _entries(feature)
    if not logs:
        click.echo("there is no audit log here", err=True)
        return 0
    found = list(deque(merge(*logs, key=lambda entry: entry.time), last))
    if as_json:
        click.echo(json.dumps({"entries": [asdict(entry) for entry in found]}, indent=2))
        return 0
    for entry in found:
        click.echo(escape(f"{entry.time}  {entry.feature or '-'}  {entry.kind}  {entry.text}"))
    return 0


def _verdicts(place: ProjectPlace) -> Iterator[tuple[str, Verdict]]:
    """What is to be said of the project's log, and of the one that is kept where the project cannot be written."""
    from sage_sandbox.audit import checking
    from sage_sandbox.audit.log import FALLBACK
    from sage_sandbox.disk.files import sage_folder
    from sage_sandbox.store.opening import open_keys

    def key() -> bytes:
        return open_keys(os.environ, place, make=False).audit_key(place.id)

    try:
        with sage_folder(Path.cwd(), "logs") as folder:
            yield "", checking.verify(folder, place.folder, key())
    except FileNotFoundError:
        if verdict := checking.gone(place.folder):
            yield "", verdict
    with suppress(FileNotFoundError), place.folder.below(FALLBACK) as folder:
        yield f" in {folder.path}", checking.verify(folder, folder, key())


def _lines(where: str, verdict: Verdict) -> Iterator[str]:
    for number, problem in verdict.problems:
        yield f"✗ line {number}{where} {problem}" if number else f"✗ {problem}{where}"
    if verdict.torn:
        yield f"⚠ the last line{where} was not finished; the next entry heals it"
    if not verdict.problems:
        span = f", from {verdict.first} to {verdict.last}" if verdict.entries else ""
        yield f"✓ {verdict.entries} entries{where}{span}"


def _entries(feature: str) -> list[list[Entry]]:
    """What each of the logs says that are here."""
    from sage_sandbox.audit.checking import entries
    from sage_sandbox.audit.log import FALLBACK
    from sage_sandbox.disk.files import sage_folder
    from sage_sandbox.disk.places import project_place

    found = []
    with suppress(FileNotFoundError), sage_folder(Path.cwd(), "logs") as folder:
        found.append(list(entries(folder, feature)))
    if place := project_place(Path.cwd(), make=False):
        with place.folder, suppress(FileNotFoundError), place.folder.below(FALLBACK) as folder:
            found.append(list(entries(folder, feature)))
    return found
