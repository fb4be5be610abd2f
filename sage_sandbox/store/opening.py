"""Which keys open the state of one project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from sage_sandbox.disk.places import ProjectPlace, user_config
from sage_sandbox.errors import SageError
from sage_sandbox.store.keys import Keys, find_keys, read_key_file, rotate

_NAMED: Final = ("SAGE_STATE_KEY", "SAGE_STATE_KEY_FILE", "SAGE_STATE_PASSPHRASE")


def open_keys(
    environ: Mapping[str, str],
    place: ProjectPlace,
    *,
    ask_passphrase: Callable[[], str] | None = None,
    make: bool = True,
) -> Keys:
    """The user's keys, as `keys.find_keys`; the salt of a passphrase is the project's id: random, and its own."""
    salt, config = bytes.fromhex(place.id), user_config(environ)
    return find_keys(environ, config=config, ask_passphrase=ask_passphrase, salt=salt, make=make)


def renewed_keys(environ: Mapping[str, str], place: ProjectPlace, *, old_key_file: Path | None = None) -> Keys:
    """What `state rekey` seals with: a new key, or the one the environment names; former ones still open."""
    keys = open_keys(environ, place)
    if any(name in environ for name in _NAMED):
        unnamed = {name: value for name, value in environ.items() if name not in _NAMED}
        with suppress(SageError):
            keys = keys.also(find_keys(unnamed, config=user_config(environ), make=False))
    else:
        keys = rotate(user_config(environ), encrypt=keys.encrypt)
    return keys.also(read_key_file(old_key_file)) if old_key_file is not None else keys
