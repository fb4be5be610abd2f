"""``sage-sandbox resume``: go on with a run that was stopped or killed."""

from __future__ import annotations

from typing import Any

import click

from sage_sandbox.cli.running import carry_out, how_of, reported, run_options


@click.command("resume")
@click.argument("feature")
@click.option("--from", "from_phase", metavar="PHASE", help="Run this phase and all that follow from it again.")
@click.option("--update", is_flag=True, help="Take the template as it is on disk now; unchanged phases are kept.")
@run_options()
def command(feature: str, *, from_phase: str | None, update: bool, as_json: bool, detach: bool, **settings: Any) -> int:
    """Go on with a run that was stopped, paused or killed.

    Phases that are done are kept; of the others, operations that were fulfilled are. What is kept and what runs again
    is said first. The template is the one that was stored, whatever the file says now.
    """

    def act() -> int:
        from sage_sandbox.api import prepare_resume

        how = how_of(settings, as_json=as_json)
        if detach:
            from sage_sandbox.cli.detaching import detach_resume

            return detach_resume(feature, how, from_phase=from_phase, update=update, as_json=as_json)

        ready = prepare_resume(feature, how, from_phase=from_phase, update=update)
        return carry_out(ready, as_json=as_json, full=settings["full"])

    return reported(feature, as_json, act)
