"""The files of a repository, as every operation of this report sees them: regular, bounded, in one fixed order.

Runs inside a sandbox, in the repository's own folder. The repository is a stranger's: links are not followed, nothing
is read whole before its size is known, and no name or text leaves here that JSON could not carry.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_FILES = 100_000
MAX_TEXT_BYTES = 2 << 20
MAX_TOTAL_BYTES = 512 << 20

NOT_SOURCE = frozenset({".git", ".hg", ".svn", ".sage", "node_modules", "__pycache__"})
"""Folders that hold what tools keep, not what the repository is made of."""

NOT_SOURCE_IF_IT_HOLDS = frozenset({"pyvenv.cfg", "CACHEDIR.TAG"})
"""A folder with one of these is a virtual environment or a cache, whatever its name (https://bford.info/cachedir/)."""


@dataclass(frozen=True, slots=True)
class File:
    """A regular file: its path relative to the repository, as the system spells it, and its size in bytes."""

    path: str
    size: int

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]


@dataclass(slots=True)
class Tree:
    """The files below the working directory, and a count of everything that was passed over and why."""

    files: list[File] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, why: str) -> None:
        """Count one thing that was not looked at."""
        self.skipped[why] = self.skipped.get(why, 0) + 1

    def texts(self, wanted: Callable[[File], bool], max_bytes: int = MAX_TEXT_BYTES) -> Iterator[tuple[File, bytes]]:
        """The text files that are wanted and what they hold; large, binary and unreadable ones are only counted."""
        left = MAX_TOTAL_BYTES
        for file in self.files:
            if not wanted(file):
                continue
            if file.size > max_bytes:
                self.skip("large")
            elif file.size > left:
                self.skip("over the total")
            elif (data := read(file.path, max_bytes)) is None:
                self.skip("unreadable")
            elif is_binary(data):
                self.skip("binary")
            else:
                left -= len(data)
                yield file, data


def tree(max_files: int = MAX_FILES) -> Tree:
    """List the working directory, folder by folder, each in the order of its names."""
    found = Tree()
    folders = ["."]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            found.skip("unreadable")
            continue
        if folder != "." and any(entry.name in NOT_SOURCE_IF_IT_HOLDS for entry in entries):
            found.skip("tool folders")
            continue
        below = []
        for entry in entries:
            path = entry.path.removeprefix("./")
            why = passed_over(entry) if len(found.files) < max_files else "over the total"
            if why is not None:
                found.skip(why)
            elif entry.is_dir(follow_symlinks=False):
                below.append(path)
            else:
                found.files.append(File(path, entry.stat(follow_symlinks=False).st_size))
        folders.extend(reversed(below))
    return found


def passed_over(entry: os.DirEntry[str]) -> str | None:
    """Why an entry is not looked at, or None: then it is a folder or a regular file, and its status is known."""
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
    except OSError:
        return "unreadable"
    if stat.S_ISDIR(mode):
        return "tool folders" if entry.name in NOT_SOURCE else None
    if stat.S_ISREG(mode):
        return None
    return "links" if stat.S_ISLNK(mode) else "special"


def read(path: str, max_bytes: int) -> bytes | None:
    """What a regular file holds, at most ``max_bytes``; None if it is not one, grew past that, or cannot be read."""
    try:
        # O_NONBLOCK: a FIFO that took the file's place must not hold us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            data = stream.read(max_bytes + 1)
        except OSError:
            return None
    return data if len(data) <= max_bytes else None


def is_binary(data: bytes) -> bool:
    """Git's own rule: a NUL among the first 8000 bytes."""
    return b"\0" in data[:8000]


def text_of(data: bytes) -> str:
    """Text in whatever encoding, read as UTF-8: what is not becomes U+FFFD."""
    return data.decode("utf-8", "replace")


def shown(path: str) -> str:
    r"""A path as JSON can carry it: bytes that are not UTF-8 as ``\xff``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def clipped(text: str, width: int = 160) -> str:
    """Text without lone surrogates, at most ``width`` characters long."""
    safe = text.encode("utf-8", "replace").decode("utf-8")
    return safe if len(safe) <= width else safe[: width - 1] + "…"


def number(params: Any, name: str, default: int, most: int) -> int:
    """A parameter that must be a count: from 1 to ``most``, ``default`` when it is not there."""
    value = params.get(name, default) if isinstance(params, dict) else default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
    return value
