"""``sage-sandbox run``: a template, what it may touch, and what became of it."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sage_sandbox.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sage_sandbox.errors import SageError
    from sage_sandbox.policy import Grant
    from sage_sandbox.runner import Runner
    from sage_sandbox.workflow.definition import AskedLimits


@click.command("run")
@click.argument("template")
@click.argument("feature", required=False)
@options.param()
@options.allow()
@options.limit()
@click.option(
    "--parallel",
    type=click.IntRange(1, 9999),
    metavar="N",
    help="How many operations at once [SAGE_PARALLEL_LIMIT, 4].",
)
@click.option("--sequential", is_flag=True, help="One operation at a time.")
@options.timeout("the workflow")
@options.require()
@options.as_json()
def command(template: str, feature: str | None, *, as_json: bool, **settings: Any) -> int:
    """Run a workflow, every operation in a sandbox of its own.

    TEMPLATE is a file, or the name of one in .sage/templates. FEATURE names this run (a-z, 0-9 and -; default: made
    from the workflow's name).

    A template asks for what it needs. What neither --allow nor a remembered answer grants is asked for on a terminal;
    without one the run is refused with exit code 15 and a list of what to add. Progress goes to stderr, results to
    stdout: the kept part of each, or all of it with --json.
    """
    from sage_sandbox.errors import SageError

    try:
        return _run(template, feature, as_json, settings)
    except SageError as error:
        if as_json:
            click.echo(json.dumps(_refusal(feature, error), indent=2))
        raise


def _run(template: str, feature: str | None, as_json: bool, settings: dict[str, Any]) -> int:
    from sage_sandbox.api import prepare
    from sage_sandbox.grants.asking import terminal_asker
    from sage_sandbox.observe.progress import Progress

    grants: tuple[Grant, ...] = settings["grants"]
    limits: AskedLimits = settings["limits"]
    ready = prepare(
        template,
        feature,
        params=settings["params"],
        allow=grants,
        limits=limits,
        parallel=settings["parallel"],
        sequential=settings["sequential"],
        timeout_s=settings["timeout_s"],
        require=settings["requirements"],
        observers=(Progress(),),
        ask=None if as_json else terminal_asker(),
    )
    for notice in ready.notices:
        _say(f"⚠ {notice}")
    with cancelled_by_signals(ready.runner):
        result = ready.runner.run()

    from sage_sandbox.cli.results import result_lines
    from sage_sandbox.document import document

    if as_json:
        click.echo(json.dumps(document(result), indent=2))
    else:
        for line in result_lines(result, ready.workflow):
            click.echo(line)
    return int(result.exit_code)


@contextmanager
def cancelled_by_signals(runner: Runner) -> Iterator[None]:
    """While this lasts, Ctrl-C, SIGTERM and a closed terminal end the run instead of the process."""

    def cancel(_: int, __: object) -> None:
        runner.cancel()

    before = {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refusal(feature: str | None, error: SageError) -> dict[str, Any]:
    """The document of a run that did not start: the same fields, nothing in them."""
    problems = getattr(error, "problems", ()) or getattr(error, "missing", ())
    return {
        "success": False,
        "workflowId": None,
        "feature": feature,
        "workflow": None,
        "status": "failed",
        "exitCode": int(error.exit_code),
        "results": None,
        "errors": [
            {"phase": "", "operation": "", "reason": "refused", "message": str(text), "hint": error.hint}
            for text in (problems or (error.message,))
        ],
        "hint": error.hint,
    }


def _say(text: str) -> None:
    from sage_sandbox.escaping import escape

    click.echo(escape(text), err=True)
