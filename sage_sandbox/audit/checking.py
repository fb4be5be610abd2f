"""Reading the audit log: whether it is whole, and what it says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from sage_sandbox.audit.chain import LINE_MAX, Chain, Entry, parse
from sage_sandbox.audit.files import LOG, find_head, flaw, is_torn, raw_lines
from sage_sandbox.disk.files import Folder
from sage_sandbox.frozen import frozen

PROBLEMS_MAX: Final = 100
"""How many problems are listed one by one: a log that somebody filled with rubbish must not fill the memory."""


@frozen
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


def gone(place: Folder) -> Verdict | None:
    """The verdict on a log that is not there; None if there never was one."""
    head = find_head(place)
    return Verdict(problems=((0, f"the log is gone: it had {head.seq} entries"),)) if head and head.seq else None


def _followed(fd: int, chain: Chain) -> Verdict:
    problems: list[tuple[int, str]] = []
    number, torn, more = 0, False, 0
    for number, raw in enumerate(raw_lines(fd), 1):
        torn = is_torn(raw) and len(raw) <= LINE_MAX
        begins = chain.first is None
        wrong = "" if torn else flaw(raw) or chain.follow(raw)
        if begins and chain.missing:
            wrong = f"is entry {chain.missing + number}: {chain.missing} before it are missing"
        if wrong and len(problems) < PROBLEMS_MAX:
            problems.append((number, wrong))
        elif wrong:
            more += 1
    if problems and not chain.entries:
        problem = f"none of the {number} lines was written with this key: it is another one, or all were exchanged"
        return Verdict(problems=((0, problem),), torn=torn)
    if more:
        problems.append((0, f"{more} more lines are wrong"))
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
