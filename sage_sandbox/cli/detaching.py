"""``--detach``: everything that may be asked or refused happens here, then the run goes on in a process of its own."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from sage_sandbox.cli.running import say

if TYPE_CHECKING:
    from sage_sandbox.api import How


def detach_run(template: str, feature: str | None, how: How, settings: dict[str, Any], *, as_json: bool) -> int:
    """Start ``run`` in a process of its own; 0 once it holds the lock and its first state is on disk."""
    from sage_sandbox.api import run_request
    from sage_sandbox.errors import UsageError

    if settings["no_state"]:
        raise UsageError("--detach needs state: nobody else could say how the run stands", "leave --no-state out")
    request = run_request(
        template, feature, how, params=settings["params"], limits=settings["limits"], restart=settings["restart"]
    )
    return _start(request, as_json=as_json)


def detach_resume(feature: str, how: How, *, from_phase: str | None, update: bool, as_json: bool) -> int:
    """Start ``resume`` in a process of its own."""
    from sage_sandbox.api import resume_request

    return _start(resume_request(feature, how, from_phase=from_phase, update=update), as_json=as_json)


def _start(request: dict[str, Any], *, as_json: bool) -> int:
    from sage_sandbox.detached import launch

    handle, log = launch(request, environ=os.environ)
    if handle.notice:
        say(f"⚠ {handle.notice}")
    if as_json:
        click.echo(json.dumps(handle.document, indent=2))
    else:
        say(f"✓ {request['feature']} runs on its own (its output goes to {log})")
        click.echo(request["feature"])
        say(f"hint: sage-sandbox status {request['feature']} --wait")
    return 0
