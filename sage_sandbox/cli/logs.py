"""``sage-sandbox logs``: what happened in a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

_POLL_S = 0.2


@click.command("logs")
@click.argument("feature")
@click.option("--follow", "-f", is_flag=True, help="Go on until no process runs it any more.")
def command(feature: str, *, follow: bool) -> int:
    """Show what happened in a run: phases, operations, failures, with their times.

    Lines are kept for 30 days in .sage/logs/orchestration.jsonl.
    """
    from sage_sandbox.api import check_feature
    from sage_sandbox.disk.files import sage_folder
    from sage_sandbox.errors import NoSuchRun
    from sage_sandbox.observe.log import read_log, rendered

    check_feature(feature)
    found = False
    try:
        with sage_folder(Path.cwd(), "logs") as folder:
            more = _while_it_runs(feature) if follow else lambda: False
            for entry in read_log(folder, feature, more=more):
                found = True
                click.echo(rendered(entry))
    except FileNotFoundError:
        found = False
    if not found:
        raise NoSuchRun(f"nothing is logged of {feature} in this project", "sage-sandbox list shows what there is")
    return 0


def _while_it_runs(feature: str) -> Callable[[], bool]:
    """Wait a little and say whether to look again: as long as the feature runs, and once more after that."""
    from sage_sandbox.disk.locking import is_held
    from sage_sandbox.store.layout import lock_name, state_folder

    ended = False

    def more() -> bool:
        nonlocal ended
        if ended:
            return False
        with state_folder(Path.cwd()) as folder:
            ended = not is_held(folder, lock_name(feature))
        if not ended:
            time.sleep(_POLL_S)
        return True

    return more
