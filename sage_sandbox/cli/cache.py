"""``sage-sandbox cache``: what is kept so that it need not run, or be asked, again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from sage_sandbox.cli import options


@click.group("cache")
def command() -> None:
    """Show or throw away what is kept so that the same operation need not run again."""


@command.command("stats")
@options.as_json()
def stats(*, as_json: bool) -> int:
    """Show how many outcomes and answers this project keeps, how large they are, and how old."""
    from sage_sandbox.caching.cache import cache_ttl
    from sage_sandbox.observe.progress import spoken
    from sage_sandbox.policy import format_size
    from sage_sandbox.store.cache import SIZE_MAX
    from sage_sandbox.store.cache import stats as found_in

    found, ttl_s = found_in(Path.cwd()), cache_ttl(os.environ)
    if as_json:
        plain = asdict(found)
        ages = {f"{name}Ms": _ms(plain.pop(f"{name}_s")) for name in ("oldest", "newest")}
        click.echo(json.dumps({**plain, **ages, "sizeMax": SIZE_MAX, "ttlMs": _ms(ttl_s)}, indent=2))
        return 0
    outcomes = found.entries - found.answers
    count = "1 outcome" if outcomes == 1 else f"{outcomes:,} outcomes"
    if found.answers:
        count += " and 1 answer" if found.answers == 1 else f" and {found.answers:,} answers"
    click.echo(f"{count}, {format_size(found.size)} of {format_size(SIZE_MAX)} at most")
    if found.oldest_s is not None and found.newest_s is not None:
        click.echo(
            f"kept {spoken(found.newest_s)} to {spoken(found.oldest_s)} ago; worth nothing after {spoken(ttl_s)}"
        )
    return 0


@command.command("clear")
@options.as_json()
def clear(*, as_json: bool) -> int:
    """Throw away every kept outcome and answer of this project; none counts any more, whoever puts it back."""
    from sage_sandbox.disk.files import unwritable
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.store.cache import clear as cleared

    try:
        place = project_place(Path.cwd(), make=False)
        if place is None:
            gone = cleared(Path.cwd(), None)
        else:
            with place.folder:
                gone = cleared(Path.cwd(), place.folder)
    except OSError as error:
        raise unwritable(error, ".sage/cache") from error
    if as_json:
        click.echo(json.dumps({"removed": gone}, indent=2))
    else:
        click.echo("✓ 1 entry is gone" if gone == 1 else f"✓ {gone:,} entries are gone")
    return 0


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
