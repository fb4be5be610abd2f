"""Where the log and its head lie, and how they are read: in pieces, so that their size does not matter.

The head is a mark with the user, outside the project: it says how far the log had come when it was last made durable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from sage_sandbox.audit.chain import LINE_MAX, Position
from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.marks import Mark
from sage_sandbox.errors import StateCorrupted

LOG: Final = "audit.jsonl"
LOCK: Final = "audit.lock"
HEAD: Final = "audit"
ASIDE: Final = "aside"
_CHUNK: Final = 64 << 10
_NO_MAC: Final = "-"  # of a log without entries: a field of a mark is never empty


def raw_lines(fd: int, start: int = 0) -> Iterator[bytes]:
    """The lines from an offset on, each with its line feed; a last one without it is torn.

    A line that is longer than any of ours is the last one given, cut: it may go on without end.
    """
    left = b""
    while more := os.pread(fd, _CHUNK, start):
        start += len(more)
        *whole, left = (left + more).split(b"\n")
        for line in whole:
            yield line + b"\n"
        if len(left) > LINE_MAX:
            break
    if left:
        yield left


def flaw(raw: bytes) -> str:
    """What is wrong with a line's length, or nothing; `is_torn` says whether it has an end."""
    return "is longer than 64 KiB" if len(raw) > LINE_MAX else ""


def is_torn(raw: bytes) -> bool:
    """Whether its writer was stopped before the line's end."""
    return not raw.endswith(b"\n")


def line_before(fd: int, end: int) -> bytes:
    """The line that ends at an offset, or the end of one that is longer than any of ours."""
    start = max(0, end - LINE_MAX)
    data = os.pread(fd, end - start, start)
    return data[data[:-1].rfind(b"\n") + 1 :]


def read_head(mark: Mark) -> Position | None:
    """The head; None if none was written yet. StateCorrupted."""
    fields = mark.read()
    if fields is None:
        return None
    try:
        seq, mac, size = fields
        return Position(int(seq), "" if mac == _NO_MAC else mac, int(size))
    except ValueError as error:
        raise StateCorrupted(f"{mark.path} is damaged", "", mark.path) from error


def write_head(mark: Mark, head: Position, *, sync: bool = False) -> None:
    """Replace the head; only under the lock, so that it never goes back."""
    mark.write((str(head.seq), head.mac or _NO_MAC, str(head.size)), sync=sync)


def find_head(place: Folder) -> Position | None:
    """The head, for reading; None if there never was one. StateCorrupted."""
    try:
        with Mark.open(place, HEAD) as mark:
            return read_head(mark)
    except FileNotFoundError:
        return None
