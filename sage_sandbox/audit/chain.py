"""The lines of the audit log: how one is written, and whether it follows from those before it. Pure.

Each line carries an HMAC over its own bytes and the mac of the line before, so none can be changed, added, taken out or
moved by somebody who lacks the key. That none is missing at the end is what the head, kept elsewhere, is for.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from sage_sandbox.frozen import frozen

LINE_MAX: Final = 64 << 10
TEXT_MAX: Final = 4096
_NAME_MAX: Final = 200
PRUNED: Final = "pruned"
HEALED: Final = "healed"
KINDS: Final = frozenset(
    {"start", "stop", "resume", "cancel"}
    | {"state", "grants", "violation", "outside", "call", "cached", "usage", "breaker", "error", "rekey"}
    | {PRUNED, HEALED}
)

# What follows the body. Anything else in its place, be it one space more, is no line of ours.
_SEALED: Final = re.compile(rb'(.*),"mac":"([0-9a-f]{64})"\}\n', re.DOTALL)
_FIELDS: Final[Mapping[str, type]] = {
    "seq": int,
    "time": str,
    "run": str,
    "feature": str,
    "kind": str,
    "text": str,
    "data": dict,
    "previous": str,
}


@frozen
class Entry:
    """One line, without its mac; the fields in the order in which they are written."""

    seq: int
    time: str
    run: str
    feature: str
    kind: str
    text: str
    data: Mapping[str, Any]
    previous: str


class Line(NamedTuple):
    """An authentic line."""

    entry: Entry
    mac: str

    @property
    def link(self) -> str:
        """What the next line has as ``previous``: a ``pruned`` line stands for the last one that was dropped."""
        return self.entry.previous if self.entry.kind == PRUNED else self.mac


class Position(NamedTuple):
    """How far a log has come: number and mac of its last entry, and its size in bytes."""

    seq: int = 0
    mac: str = ""
    size: int = 0


BEGINNING: Final = Position()


# -- one line ------------------------------------------------------------------------------------------------------


def stamp(time: datetime) -> str:
    """A time as the log has it: of one width, so that the order of the texts is the order of the times."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def draft(
    time: str, kind: str, text: str, *, run: str = "", feature: str = "", data: Mapping[str, Any] | None = None
) -> Entry:
    """An entry that has no place in the chain yet, cut to what fits into a line. ValueError for another kind."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not a kind of entry")
    entry = Entry(0, time, run[:_NAME_MAX], feature[:_NAME_MAX], kind, _cut(text), {}, "")
    # What the number and the two macs will take is less than the 300 bytes that are set aside for it.
    return replace(entry, data=_fitting(data or {}, LINE_MAX - len(_body(entry)) - 300))


def seal(entry: Entry, key: bytes) -> tuple[bytes, str]:
    """The line of an entry, and its mac."""
    body = _body(entry)
    mac = _mac(key, body)
    return b'%s,"mac":"%s"}\n' % (body, mac.encode("ascii")), mac


def read(raw: bytes, key: bytes) -> Line | None:
    """A line; None unless it was written with this key, every byte of it."""
    if len(raw) > LINE_MAX or not (found := _SEALED.fullmatch(raw)):
        return None
    body, mac = found[1], found[2].decode("ascii")
    if not hmac.compare_digest(mac, _mac(key, body)):
        return None
    entry = parse(raw)
    return Line(entry, mac) if entry else None


def parse(raw: bytes) -> Entry | None:
    """What a line says, whoever wrote it; None if that is no entry."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    fields: dict[str, Any] = {name: found.get(name) for name in _FIELDS}
    if any(type(fields[name]) is not kind for name, kind in _FIELDS.items()):
        return None
    return Entry(**fields)


def _body(entry: Entry) -> bytes:
    fields = {name: getattr(entry, name) for name in _FIELDS}
    return json.dumps(fields, separators=(",", ":")).removesuffix("}").encode("ascii")


def _mac(key: bytes, body: bytes) -> str:
    return hmac.digest(key, body, "sha256").hex()


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


def _fitting(data: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """The data if it fits; else how large it would be, for an entry is never refused for what comes with it."""
    try:
        size = len(json.dumps(data, separators=(",", ":"), allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return {"omitted": "not JSON"}
    return dict(data) if size <= most else {"omitted": size}


# -- one after the other -------------------------------------------------------------------------------------------


class Chain:
    """Follows a log line by line: how far it has come, and what is wrong with each line.

    It begins after ``start``, or with whatever line comes first. Of the ``marks`` it is known that the entry of their
    number is theirs.
    """

    def __init__(self, key: bytes, start: Position | None = None, marks: Sequence[Position] = ()) -> None:
        self.first: Entry | None = None
        """The first authentic line."""
        self.missing = 0
        """How many entries are missing before it."""
        self.entries = 0
        self.size = start.size if start else 0
        """Where the line after the last one begins."""
        self.time = ""
        """When the last authentic entry was written."""
        self._key = key
        self._marks = marks
        self._last = start
        self._doubtful = 0

    @property
    def end(self) -> Position:
        """Where the chain stands."""
        return (self._last or BEGINNING)._replace(size=self.size)

    def follow(self, raw: bytes) -> str:
        """Take in one whole line; what is wrong with it, or nothing."""
        self.size += len(raw)
        line = read(raw, self._key)
        if line is None:
            self._doubtful += 1
            return "was changed, or was not written by this log"
        self.entries += 1
        self.time = line.entry.time
        wrong = self._misplaced(line.entry)
        if self._last is None or line.entry.seq > self._last.seq:
            self._last, self._doubtful = Position(line.entry.seq, line.link), 0
        return wrong or self._exchanged(line)

    def lost(self) -> int:
        """How many entries are missing at the end."""
        return max((mark.seq - self.end.seq for mark in self._marks), default=0)

    def _misplaced(self, entry: Entry) -> str:
        if self.first is None:
            self.first = entry
        if self._last is None:
            # A line that was changed was an entry once: it is not missing.
            self.missing = 0 if entry.kind == PRUNED else max(0, entry.seq - 1 - self._doubtful)
            return ""
        skipped = entry.seq - self._last.seq - 1
        if skipped < 0:
            return f"is entry {entry.seq}, which belongs before entry {self._last.seq}"
        if skipped > self._doubtful:
            return f"is entry {entry.seq}: {skipped - self._doubtful} before it are missing"
        if skipped == 0 and entry.previous != self._last.mac:
            return f"is entry {entry.seq}, but does not follow from entry {self._last.seq}"
        return ""

    def _exchanged(self, line: Line) -> str:
        if any(mark.seq == line.entry.seq and mark.mac != line.link for mark in self._marks):
            return f"is not what was written as entry {line.entry.seq}"
        return ""
