"""``sage-sandbox cancel``: end a run from wherever one is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sage_sandbox.cli import options

if TYPE_CHECKING:
    from sage_sandbox.control.asking import Cancelled
    from sage_sandbox.errors import SageError


@click.command("cancel")
@click.argument("feature")
@click.option("--no-save", is_flag=True, help="Keep nothing of phases that are cut short; those that are done stay.")
@options.as_json()
def command(feature: str, *, no_save: bool, as_json: bool) -> int:
    """End a run; what is done is saved.

    Its process is asked to end, and waited for. It stops its operations, saves what they have done and says when. The
    run can be resumed.
    """
    from sage_sandbox.errors import ExitCode, SageError

    try:
        done = _cancel(feature, save=not no_save)
    except SageError as error:
        if as_json:
            click.echo(json.dumps(_refusal(feature, error), indent=2))
        raise
    kept = done.saved or no_save
    if as_json:
        click.echo(json.dumps(_document(done, success=kept), indent=2))
    else:
        click.echo(_line(done, wanted=not no_save))
    return ExitCode.DONE if kept else ExitCode.FAILED


def _cancel(feature: str, *, save: bool) -> Cancelled:
    from sage_sandbox.api import check_feature
    from sage_sandbox.control.asking import NotRunning, cancel

    check_feature(feature)
    try:
        return cancel(Path.cwd(), feature, save=save)
    except NotRunning:
        raise _not_running(feature) from None


def _not_running(feature: str) -> SageError:
    """Why nobody was there to be asked. NoSuchRun, and what is wrong with its state, are raised."""
    from sage_sandbox.control.asking import NotRunning
    from sage_sandbox.history import History

    with History(Path.cwd()) as history:
        standing = history.of(feature)
    if standing.status == "running":
        hint = "try again; SIGTERM to its process ends it, too, and saves what is done"
        return NotRunning(f"{feature} is running, but cannot be asked: it does not listen yet, or any more", hint)
    return NotRunning(f"{feature} is not running (its status is {standing.status})", f"sage-sandbox status {feature}")


def _line(done: Cancelled, *, wanted: bool) -> str:
    from sage_sandbox.escaping import clip

    feature, at, status = done.feature, clip(done.at, 40), clip(done.status, 20)
    if status != "cancelled":
        return f"✓ {feature} had ended before it could be cancelled: {status}"
    if done.saved:
        return f"✓ {feature} cancelled at {at}; progress saved, resume it with: sage-sandbox resume {feature}"
    if wanted:
        return f"⚠ {feature} cancelled at {at}; what was cut short could not be saved, phases that were done stay"
    return (
        f"✓ {feature} cancelled at {at}; phases that were cut short start anew, those that were done stay, "
        f"with: sage-sandbox resume {feature}"
    )


def _document(done: Cancelled, *, success: bool) -> dict[str, object]:
    """The fields of the specification, and the status: the run may have been quicker than the request."""
    return {
        "success": success,
        "feature": done.feature,
        "cancelledAt": done.at if done.status == "cancelled" else None,
        "checkpointSaved": done.saved,
        "status": done.status,
    }


def _refusal(feature: str, error: SageError) -> dict[str, object]:
    return {
        "success": False,
        "feature": feature,
        "cancelledAt": None,
        "checkpointSaved": False,
        "status": None,
        "errors": [{"message": error.message, "hint": error.hint}],
    }
