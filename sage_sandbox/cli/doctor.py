"""``sage-sandbox doctor``: what the kernel offers, what each thing gives, and how to get what is missing."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sage_sandbox.cli import options
from sage_sandbox.errors import ExitCode, SandboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sage_sandbox.sandbox.probe import Feature


@click.command("doctor")
@options.as_json()
def command(*, as_json: bool) -> int:
    """Say which kernel features are here, what each gives, and how to get the others.

    Every feature is tried, not looked up; the last line is an operation that was run confined. Marks: ✓ here, ✗ missing
    and needed, – missing and replaced by something weaker that an outcome names.

    Exits 0 if operations can be confined at level full, else 14.
    """
    features = probed()
    for line in [_document(features)] if as_json else _lines(features):
        click.echo(line)
    return ExitCode.DONE if features[-1].here else ExitCode.SANDBOX_UNAVAILABLE


def probed() -> tuple[Feature, ...]:
    """Every feature, tried; the last is whether operations can be confined at level full. SandboxUnavailable."""
    if sys.platform != "linux":
        raise SandboxUnavailable(
            f"operations are confined with the Linux kernel, and this is {sys.platform}",
            "validate, plan and schema work here",
            "linux",
        )
    from sage_sandbox.sandbox.probe import probe

    return probe()


def _document(features: Sequence[Feature]) -> str:
    level = "full" if features[-1].here else "none"
    return json.dumps({"level": level, "features": [asdict(feature) for feature in features]}, indent=2)


def _lines(features: Sequence[Feature]) -> Iterator[str]:
    """The table, then a line for each thing that can be had and is not."""
    from sage_sandbox.escaping import escape

    names = max(len(feature.name) for feature in features)
    gives = max(len(feature.gives) for feature in features)
    for feature in features:
        yield f"{_mark(feature)} {feature.name:{names}}  {feature.gives:{gives}}  {escape(feature.detail)}".rstrip()
    missing = [feature for feature in features if feature.how]
    if missing:
        yield from ("", "how to get more:")
    for feature in missing:
        yield f"  {feature.name:{names}}  {escape(feature.how)}"


def _mark(feature: Feature) -> str:
    if feature.here:
        return "✓"
    return "✗" if feature.needed else "–"
