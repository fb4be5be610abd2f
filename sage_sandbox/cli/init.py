"""``sage-sandbox init``: the files that a project, its editors and its agents expect."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import click

from sage_sandbox.cli import options

if TYPE_CHECKING:
    from sage_sandbox.projectfiles.changes import Change

_DONE: Final = {"new": "created", "changed": "changed", "same": "unchanged", "kept": "kept as it is"}
_REFUSED: Final = "not changed"


@click.command("init")
@click.option("--yes", is_flag=True, help="Change files that are there without asking.")
@options.as_json()
def command(*, yes: bool, as_json: bool) -> int:
    """Write what a project needs: .sage/, and what editors and agents expect.

    In the working directory: .sage/ with a README, a config.toml, templates and their JSON Schema; lines in .gitignore;
    an entry in .mcp.json by which agents start our MCP server; the command .claude/commands/sage.workflow.md and
    the same as a skill, .agents/skills/sage-workflow/SKILL.md.

    A file that is there is changed only after its diff was shown and you said yes. Without a terminal, and without
    --yes, it stays as it is: exit code 15. README, config.toml and templates are yours once they are written. Other
    entries of .mcp.json and lines of .gitignore are left alone. Links are not followed. A second time nothing is left
    to do.
    """
    from sage_sandbox.errors import ExitCode
    from sage_sandbox.projectfiles.changes import look, write
    from sage_sandbox.projectfiles.wanted import wanted

    project = Path.cwd()
    changes = look(project, wanted())
    ask = None if as_json else _terminal_asker()
    agreed = [
        change for change in changes if change.standing == "changed" and _agree(change, ask, yes=yes, quiet=as_json)
    ]
    written = [change for change in changes if change.standing == "new" or change in agreed]
    write(project, written)
    outcomes = {change.path: _outcome(change, written) for change in changes}
    _show(changes, outcomes, as_json=as_json)
    if _REFUSED in outcomes.values() and ask is None:
        click.echo("hint: --yes changes what is there, too", err=True)
        return ExitCode.NOT_GRANTED
    return ExitCode.DONE


def _agree(change: Change, ask: Callable[[Change], bool] | None, *, yes: bool, quiet: bool) -> bool:
    """Show what would change, and whether it shall."""
    from sage_sandbox.escaping import escape

    if not quiet:
        for line in change.diff():
            click.echo(escape(line), err=True)
    return yes or (ask is not None and ask(change))


def _terminal_asker() -> Callable[[Change], bool] | None:
    """Somebody to ask, if both ends are a terminal."""
    stdin, stderr = sys.stdin, sys.stderr
    if stdin is None or stderr is None or not (stdin.isatty() and stderr.isatty()):
        return None
    return lambda change: ask(change, stdin, stderr)


def ask(change: Change, stdin: TextIO, stderr: TextIO) -> bool:
    """Ask whether a file shall change so, and wait for one line typed after it; anything but a clear yes is a no."""
    from sage_sandbox.grants.asking import read_line

    stderr.write(f"Change {change.path}? y = yes, n = no [n] ")
    stderr.flush()
    return read_line(stdin.fileno()).strip().lower() in ("y", "yes")


def _show(changes: Sequence[Change], outcomes: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_document(changes, outcomes), indent=2))
        return
    from sage_sandbox.projectfiles.merging import MCP_JSON, SERVER

    # What starts when an agent opens this project is not ours to change, and not ours to call good.
    suspect = {change.path for change in changes if change.standing == "kept" and change.path == MCP_JSON}
    for path, outcome in outcomes.items():
        click.echo(f"{'⚠' if outcome == _REFUSED or path in suspect else '✓'} {path}: {outcome}")
    for path in suspect:
        click.echo(f"hint: the entry {SERVER} of {path} is not ours: look at what it starts", err=True)


def _outcome(change: Change, written: Sequence[Change]) -> str:
    return _REFUSED if change.standing == "changed" and change not in written else _DONE[change.standing]


def _document(changes: Sequence[Change], outcomes: dict[str, str]) -> dict[str, object]:
    return {
        "files": [
            {
                "path": change.path,
                "outcome": outcomes[change.path],
                "diff": list(change.diff()) if change.standing == "changed" else [],
            }
            for change in changes
        ]
    }
