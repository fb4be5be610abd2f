"""``sage-sandbox run``: a template, what it may touch, and what became of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from sage_sandbox.cli import options
from sage_sandbox.cli.running import carry_out, how_of, reported, run_options, say

if TYPE_CHECKING:
    from sage_sandbox.api import How, Prepared


@click.command("run")
@click.argument("template")
@click.argument("feature", required=False)
@options.param()
@options.limit()
@click.option("--restart", is_flag=True, help="Start anew; what an unfinished run of the feature left is put aside.")
@click.option("--no-state", is_flag=True, help="Save nothing: a run that ends early cannot be resumed.")
@run_options()
def command(template: str, feature: str | None, *, as_json: bool, detach: bool, **settings: Any) -> int:
    """Run a workflow, every operation in a sandbox of its own.

    TEMPLATE is a file, or the name of one in .sage/templates. FEATURE names this run (a-z, 0-9 and -; default: made
    from the workflow's name).

    A template asks for what it needs. What neither --allow nor a remembered answer grants is asked for on a terminal;
    without one the run is refused with exit code 15 and a list of what to add. Progress goes to stderr, results to
    stdout: of each the part that its template says is kept, by default 2,000 bytes, and no personal data. What is
    saved, and what later phases get, is whole.

    Every phase that ends is saved, encrypted, below .sage/state. A run that was stopped or killed goes on with
    `sage-sandbox resume FEATURE`.
    """

    def act() -> int:
        how = how_of(settings, as_json=as_json)
        if detach:
            from sage_sandbox.cli.detaching import detach_run

            return detach_run(template, feature, how, settings, as_json=as_json)
        return carry_out(_prepared(template, feature, how, settings), as_json=as_json, full=settings["full"])

    return reported(feature, as_json, act)


def _prepared(template: str, feature: str | None, how: How, settings: dict[str, Any]) -> Prepared:
    """Get ready; where state cannot be kept, ask on a terminal whether to go without."""
    from sage_sandbox.api import prepare
    from sage_sandbox.errors import StateUnwritable

    given: dict[str, Any] = {
        "params": settings["params"],
        "limits": settings["limits"],
        "restart": settings["restart"],
    }
    try:
        ready = prepare(template, feature, how, **given, state=not settings["no_state"])
    except StateUnwritable as error:
        if how.ask is None or not sys.stdin.isatty():
            raise
        say(f"⚠ {error.message}")
        if not click.confirm("run without saving? it cannot be resumed then", default=False, err=True):
            raise
        ready = prepare(template, feature, how, **given, state=False)
    if ready.journal is None:
        say("⚠ nothing is saved: this run cannot be resumed")
    return ready
