"""``sage-sandbox status``: how one run stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sage_sandbox.history import Standing


@click.command("status")
@click.argument("feature")
@click.option("--wait", is_flag=True, help="Wait until no process runs it.")
@click.option("--full", is_flag=True, help="Show every phase.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(feature: str, *, wait: bool, full: bool, as_json: bool) -> int:
    """Show how a run stands: progress, metrics, errors. A running one is asked, and never kept waiting."""
    from sage_sandbox.api import check_feature
    from sage_sandbox.cli.running import passphrase_asker
    from sage_sandbox.history import History, standing_document, wait_for

    check_feature(feature)
    if wait:
        wait_for(Path.cwd(), feature)
    with History(Path.cwd(), ask_passphrase=passphrase_asker(as_json=as_json)) as history:
        standing = history.of(feature, full=full)
    if as_json:
        click.echo(json.dumps(standing_document(standing, full=full), indent=2))
    else:
        for line in _lines(standing, full=full):
            click.echo(line)
    return 0


def _lines(standing: Standing, *, full: bool) -> Iterator[str]:
    from sage_sandbox.escaping import clip, escape

    done = standing.progress
    yield f"{standing.feature}: {standing.status}" + (" (its process was killed)" if standing.interrupted else "")
    yield f"template: {escape(standing.template)}"
    yield f"progress: {done['completed']} of {done['total']} phases ({done['percentage']} %)"
    if standing.phase:
        yield f"last phase: {standing.phase}"
    yield f"started: {standing.started_at}, last saved: {standing.updated_at}"
    if standing.metrics.get("totalTime"):
        yield f"worked for: {_spoken(float(standing.metrics['totalTime']) / 1000)}"
    if standing.trouble:
        yield f"⚠ {clip(standing.trouble, 300)}"
    for error in standing.errors if full else standing.errors[:5]:
        place = "/".join(part for part in (error.get("phase"), error.get("operation")) if part)
        yield (
            f"✗ {clip(place, 140)}: {clip(str(error.get('message')), 300)}"
            if place
            else f"✗ {clip(str(error.get('message')), 300)}"
        )
    if full:
        for phase, outcome in standing.phases:
            yield f"  {phase}: {outcome}"
    if standing.status in ("paused", "failed", "cancelled"):
        yield f"hint: sage-sandbox resume {standing.feature}"


def _spoken(seconds: float) -> str:
    from sage_sandbox.observe.progress import spoken

    return spoken(seconds)
