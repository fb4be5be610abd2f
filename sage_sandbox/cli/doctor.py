"""``sage-sandbox doctor``: what the kernel offers, what each thing gives, and how to get what is missing."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sage_sandbox.cli import options
from sage_sandbox.errors import ExitCode, SandboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sage_sandbox.sandbox.probe import Feature


@click.command("doctor")
@options.as_json()
def command(*, as_json: bool) -> int:
    """Say which kernel features are here, what each gives, and how to get the others.

    Every feature is tried, not looked up, and so are the processes by which operations reach hosts and tools; the last
    line is an operation that was run confined. Marks: ✓ here, ✗ missing and needed, – missing and replaced by something
    weaker that an outcome names, or what asks for it is refused.

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

    *found, level = probe()
    return (*found, *_processes(), level)


def _processes() -> Iterator[Feature]:
    """What runs beside operations that reach out, each started once for nothing."""
    from sage_sandbox.brokering import try_one as try_broker
    from sage_sandbox.egress.gate import try_one as try_proxy

    yield _tried("egress proxy", "net grants: operations reach granted hosts, and no others", try_proxy)
    gives = "tool grants: sessions and credentials in one process"
    with tempfile.TemporaryDirectory(prefix="sage-doctor-") as folder:
        yield _tried("tool broker", gives, lambda: try_broker(folder, os.environ))


def _tried(name: str, gives: str, act: Callable[[], None]) -> Feature:
    from sage_sandbox.errors import SageError
    from sage_sandbox.sandbox.probe import Feature

    began = time.monotonic()
    try:
        act()
    except (SageError, OSError) as error:
        return Feature(name, False, gives, str(error), getattr(error, "hint", ""), needed=False)
    return Feature(
        name, True, gives, f"started and ended in {(time.monotonic() - began) * 1000:.0f} ms", "", needed=False
    )


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
