"""``sage-sandbox schema``: the format of a template, for editors."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """Print the JSON Schema of a template."""
    import json

    from sage_sandbox.workflow.model import schema

    click.echo(json.dumps(schema(), indent=2))
