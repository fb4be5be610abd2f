"""Reading the audit log: whether it is whole, and what it says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from sage_sandbox.audit.chain import LINE_MAX, Chain, Entry, parse
from sage_sandbox.audit.files import LOG, find_head, flaw, is_torn, raw_lines
from sage_sandbox.disk.files import Folder


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is in a log: ``problems`` by line number (0: at its end); ``torn`` if its last line was not finished."""

    entries: int = 0
    first: str = ""
    last: str = ""
    problems: tuple[tuple[int, str], ...] = ()
    torn: bool = False


def verify(folder: Folder, place: Folder, key: bytes) -> Verdict:
    """Follow the whole log; FileNotFoundError if there is none, StateCorrupted if its head is damaged."""
    # The head first: what it knows of is in the log by then.
    head = find_head(place)
    fd = folder.open_file(LOG, os.O_RDONLY)
    try:
        return _followed(fd, Chain(key, None, (head,) if head and head.seq else ()))
    finally:
        os.close(fd)


def _followed(fd: int, chain: Chain) -> Verdict:
    problems: list[tuple[int, str]] = []
    torn = False
    for number, raw in enumerate(raw_lines(fd), 1):
        torn = is_torn(raw) and len(raw) <= LINE_MAX
        if not torn and (wrong := flaw(raw) or chain.follow(raw)):
            problems.append((number, wrong))
        if number == 1 and chain.missing:
            problems.append((1, f"{chain.missing} entries before it are missing"))
    if (lost := chain.lost()) > 0:
        problems.append((0, f"{lost} entries are missing at the end"))
    first = chain.first.time if chain.first else ""
    return Verdict(chain.entries, first, chain.time, tuple(problems), torn)


def entries(folder: Folder, feature: str = "") -> Iterator[Entry]:
    """What the log says, of one feature or all; lines that are none are passed over. FileNotFoundError."""
    fd = folder.open_file(LOG, os.O_RDONLY)
    try:
        for raw in raw_lines(fd):
            entry = parse(raw)
            if entry is not None and feature in ("", entry.feature):
                yield entry
    finally:
        os.close(fd)
