"""``sage-sandbox validate``: everything that is wrong with a template, at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sage_sandbox.cli.options import as_json as json_option

if TYPE_CHECKING:
    from sage_sandbox.errors import Problem
    from sage_sandbox.workflow.loading import Report


@click.command()
@click.argument("template", metavar="FILE")
@json_option()
def command(template: str, as_json: bool) -> int:
    """Report everything that is wrong with a template. FILE is a path, or a name in .sage/templates."""
    from pathlib import Path

    from sage_sandbox.errors import ExitCode
    from sage_sandbox.workflow.loading import inspect
    from sage_sandbox.workflow.templates import find

    report = inspect(find(template, Path.cwd()))
    (_print_json if as_json else _print_text)(report, template)
    return ExitCode.DONE if report.workflow else ExitCode.USAGE


def _print_json(report: Report, _: str) -> None:
    import json

    document = {
        "valid": report.workflow is not None,
        "errors": [_entry(problem) for problem in report.problems if problem.severity == "error"],
        "warnings": [_entry(problem) for problem in report.problems if problem.severity == "warning"],
        "graph": dict(report.graph),
    }
    click.echo(json.dumps(document, indent=2))


def _entry(problem: Problem) -> dict[str, Any]:
    return {
        "field": problem.field,
        "message": problem.message,
        "severity": problem.severity,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
    }


def _print_text(report: Report, template: str) -> None:
    from sage_sandbox.cli.rendering import render_problems
    from sage_sandbox.escaping import escape
    from sage_sandbox.workflow.findings import count_of

    if report.problems:
        click.echo(render_problems(report.problems), err=True)
    if report.workflow:
        operations = sum(len(phase.operations) for phase in report.workflow.phases)
        phases, depth = report.graph["nodes"], report.graph["depth"]
        counts = f"{count_of(phases, 'phase')}, {count_of(operations, 'operation')}, depth {depth:,}"
        click.echo(f"✓ {escape(template)}: {counts}")
