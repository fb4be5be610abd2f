"""Records of older major versions, turned into today's.

A breaking change of a record adds one named function here, at the end of its kind: the n-th turns a record of version
n.x into one of version n+1.0. The caller keeps the old file until the new one was read back. A new optional field
needs none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sage_sandbox.errors import StateCorrupted, StateTooNew

Record = dict[str, Any]
Migration = Callable[[Record], Record]

MIGRATIONS: Final[Mapping[str, Sequence[Migration]]] = {"state": (), "definition": (), "checkpoint": ()}
"""By kind; empty, as 1.0 is the first."""

_VERSION: Final = re.compile(r"([1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")


def upgrade(kind: str, record: Record, migrations: Mapping[str, Sequence[Migration]] = MIGRATIONS) -> Record:
    """The record as of the current major version; a newer minor one is as good. StateTooNew, StateCorrupted."""
    steps = migrations[kind]
    version = record.get("version")
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise StateCorrupted(f"the {kind} has no version that this program knows: {version!r}")
    major = int(match[1])
    if major > len(steps) + 1:
        raise StateTooNew(f"the {kind} was written by a later version (records {version})", "update sage-sandbox")
    for migrate in steps[major - 1 :]:
        record = migrate(record)
    return record
