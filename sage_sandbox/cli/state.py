"""``sage-sandbox state``: look after what runs have saved."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from sage_sandbox.disk.files import Folder
    from sage_sandbox.disk.places import ProjectPlace
    from sage_sandbox.store.keys import Keys


@click.group("state")
def command() -> None:
    """Verify, export, re-encrypt or throw away what runs have saved in this project."""


class _Opened(NamedTuple):
    folder: Folder
    place: ProjectPlace
    keys: Keys


@command.command("verify")
@click.argument("feature", required=False)
def verify(feature: str | None) -> int:
    """Check every file of the state, or of one run; exit code 13 if one is damaged, 12 if the key is not here."""
    from sage_sandbox.escaping import escape
    from sage_sandbox.store import upkeep

    codes = {0}
    with _opened() as (folder, place, keys):
        for name, found, code in upkeep.verify(folder, place, keys, _features(folder, feature)):
            codes.add(code)
            click.echo(f"✗ {name}: " + escape("; ".join(found)) if found else f"✓ {name}")
    return max(codes)


@command.command("export")
@click.argument("feature")
def export(feature: str) -> int:
    """Print a whole run, decrypted, as one JSON document: state, checkpoints with their results, template, grants."""
    from sage_sandbox.document import outcome_document
    from sage_sandbox.store.reading import read_run
    from sage_sandbox.store.upkeep import export as exported

    with _opened() as (folder, place, keys):
        (name,) = _features(folder, feature)
        click.echo(json.dumps(exported(read_run(folder, place, name, keys), outcome_document), indent=2))
    return 0


@command.command("rekey")
@click.option(
    "--old-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the key that sealed what is there, where it is not among yours any more.",
)
def rekey(old_key_file: Path | None) -> int:
    """Encrypt the state anew, and take it over where its folder was moved or put back from a backup.

    The new key is made and kept in your configuration folder, or is the one the environment names.
    """
    from sage_sandbox.store import upkeep
    from sage_sandbox.store.opening import renewed_keys

    with _opened(make=True) as (folder, place, former):
        _refuse_while_running(folder)
        keys = renewed_keys(os.environ, place, old_key_file=old_key_file)
        _begin_audit_anew(place, former, keys)
        features = upkeep.rekey(folder, place, keys)
    click.echo(f"✓ {len(features)} {'run is' if len(features) == 1 else 'runs are'} sealed with key {keys.id}")
    return 0


def _refuse_while_running(folder: Folder) -> None:
    """Locked if a run goes on: it would go on writing with the former key."""
    from sage_sandbox.disk.locking import is_held
    from sage_sandbox.errors import Locked
    from sage_sandbox.store.layout import features_among, lock_name

    for feature in features_among(folder.names()):
        if is_held(folder, lock_name(feature)):
            hint = f"wait for it, or end it with: sage-sandbox cancel {feature}"
            raise Locked(f"{feature} is being run: its state cannot be sealed anew", hint)


def _begin_audit_anew(place: ProjectPlace, former: Keys, keys: Keys) -> None:
    """Lay the audit log aside, which was authenticated with the former key, and go on with another."""
    from datetime import UTC, datetime

    from sage_sandbox.audit.log import open_audit

    log, _ = open_audit(Path.cwd(), place, former.audit_key(place.id))
    try:
        aside = f"audit.{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.jsonl"
        log.begin_anew(keys.audit_key(place.id), aside, f"the state is sealed with key {keys.id} from now on")
    finally:
        log.close()


@command.command("gc")
@click.option("--older-than", metavar="AGE", default="30d", show_default=True, help="How long ago a run has ended.")
def gc(older_than: str) -> int:
    """Throw away the state of runs that ended long ago, and what was put aside. Paused and interrupted runs stay."""
    from datetime import UTC, datetime

    from sage_sandbox.store import upkeep

    with _opened() as (folder, place, keys):
        gone = upkeep.collect_garbage(
            folder,
            place,
            keys,
            _age(older_than),
            age_s=lambda text: (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds(),
        )
    for name in gone:
        click.echo(f"removed {name}")
    if not gone:
        click.echo("nothing is that old", err=True)
    return 0


def _age(text: str) -> float:
    """An age in seconds: a duration, or days as ``30d``."""
    from sage_sandbox.errors import UsageError
    from sage_sandbox.policy import parse_duration

    if text.endswith("d") and text[:-1].isdigit():
        return int(text[:-1]) * 86400.0
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--older-than: {error}", "write 30d or 12h") from error


def _features(folder: Folder, feature: str | None) -> list[str]:
    from sage_sandbox.api import check_feature
    from sage_sandbox.errors import NoSuchRun
    from sage_sandbox.store.layout import features_among

    known = features_among(folder.names())
    if feature is None:
        return known
    check_feature(feature)
    if feature not in known:
        raise NoSuchRun(f"there is no run of {feature} in this project", "sage-sandbox list shows what there is")
    return [feature]


@contextmanager
def _opened(*, make: bool = False) -> Iterator[_Opened]:
    """The state of the project in the working directory, its place with the user, and the user's keys."""
    from sage_sandbox.cli.running import passphrase_asker
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.errors import NoSuchRun, StateCorrupted
    from sage_sandbox.store.layout import state_folder
    from sage_sandbox.store.opening import open_keys
    from sage_sandbox.store.reading import ADOPT_HINT

    try:
        folder = state_folder(Path.cwd())
    except FileNotFoundError:
        raise NoSuchRun("nothing was saved in this project", "sage-sandbox run starts something") from None
    with folder:
        place = project_place(Path.cwd(), make=make)
        if place is None:
            raise StateCorrupted(f"the state in {folder.path} was not made here by this user", ADOPT_HINT, folder.path)
        with place.folder:
            yield _Opened(folder, place, open_keys(os.environ, place, ask_passphrase=passphrase_asker(), make=make))
