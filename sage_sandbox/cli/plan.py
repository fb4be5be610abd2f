"""``sage-sandbox plan``: the order of a workflow, what it asks for, and what of that is granted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sage_sandbox.cli.options import allow
from sage_sandbox.cli.options import as_json as json_option

if TYPE_CHECKING:
    from sage_sandbox.policy import Grant


@click.command()
@click.argument("template", metavar="FILE")
@allow()
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json", "mermaid", "dot"]),
    default="text",
    show_default=True,
    help="How to draw it.",
)
@json_option()
def command(template: str, grants: tuple[Grant, ...], style: str, as_json: bool) -> None:
    """Draw the order of a workflow, and what it asks for. FILE is a path, or a name in .sage/templates."""
    from pathlib import Path

    from sage_sandbox.cli import drawing
    from sage_sandbox.grants.review import review
    from sage_sandbox.workflow.loading import load
    from sage_sandbox.workflow.planning import plan
    from sage_sandbox.workflow.templates import find

    workflow = load(find(template, Path.cwd()))
    picture = drawing.Picture(workflow, plan(workflow), review(workflow, grants, Path.cwd()))
    draw = {"text": drawing.text, "json": drawing.document, "mermaid": drawing.mermaid, "dot": drawing.dot}
    click.echo(draw["json" if as_json else style](picture))
