"""``ACTIVE_WORKFLOWS.json``: what runs in a project now, for people. The locks are the truth: nothing hangs on it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final

from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.locking import acquire, is_held
from sage_sandbox.errors import SageError, StateCorrupted
from sage_sandbox.store.layout import lock_name

FILE: Final = "ACTIVE_WORKFLOWS.json"
LOCK: Final = "ACTIVE_WORKFLOWS.lock"
SIZE_MAX: Final = 1 << 20
LOCK_WAIT_S: Final = 2.0


def announce(folder: Folder, feature: str, entry: dict[str, Any]) -> None:
    """Add a run to the list. A list that cannot be written stops nothing."""
    _change(folder, feature, entry)


def withdraw(folder: Folder, feature: str) -> None:
    """Take a run off the list."""
    _change(folder, feature, None)


def listed(folder: Folder) -> dict[str, dict[str, Any]]:
    """The entries of runs whose lock is held, by feature; an unreadable list is an empty one."""
    try:
        raw = json.loads(folder.read(FILE, SIZE_MAX))["workflows"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, StateCorrupted):
        return {}
    entries = [_plain(item) for item in raw if isinstance(item, dict)] if isinstance(raw, list) else []
    return {item["feature"]: item for item in entries if _runs(folder, item.get("feature"))}


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry says in one word each: anybody may have written the list, nested deeper than it could be again."""
    return {name: value for name, value in entry.items() if isinstance(value, str | int | float)}


def _runs(folder: Folder, feature: object) -> bool:
    """Whether a process holds the lock of a feature: what a killed run left on the list is healed by it."""
    if not isinstance(feature, str) or not feature.replace("-", "").isalnum():
        return False
    with suppress(OSError, SageError):
        return is_held(folder, lock_name(feature))
    return False


def _change(folder: Folder, feature: str, entry: dict[str, Any] | None) -> None:
    with suppress(OSError, SageError), acquire(folder, LOCK, wait_s=LOCK_WAIT_S):
        folder.sweep(f"{FILE}.")
        entries = {name: item for name, item in listed(folder).items() if name != feature}
        if entry is not None:
            entries[feature] = {"feature": feature, **entry}
        document = {"workflows": [entries[name] for name in sorted(entries)]}
        data = json.dumps(document, indent=1).encode() + b"\n"
        if data != _bytes(folder):
            folder.write_new(FILE, data)


def _bytes(folder: Folder) -> bytes:
    try:
        return folder.read(FILE, SIZE_MAX)
    except (OSError, StateCorrupted):
        return b""
