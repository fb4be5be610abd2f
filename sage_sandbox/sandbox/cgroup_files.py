"""The files of a cgroup file system: small, read from the beginning, written in one piece."""

from __future__ import annotations

import os
from pathlib import Path


def procs(folder: Path) -> list[str]:
    """Who is in a group. Opened each time: version 1 keeps answering a descriptor with the list of its first read."""
    return read(folder / "cgroup.procs").split()


def make_folder(path: Path) -> None:
    """A new group."""
    os.mkdir(path, 0o755)


def remove_folder(path: Path) -> None:
    """Remove a group without processes and without groups of its own."""
    os.rmdir(path)


def open_for_writing(path: Path) -> int:
    """A descriptor to write to again and again."""
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def read(path: Path) -> str:
    """The whole file; these come a page at a time."""
    content = b""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := os.read(fd, 1 << 16):
            content += piece
    finally:
        os.close(fd)
    return os.fsdecode(content)


def write(path: Path, text: str) -> None:
    """Set a value; OSError says why the kernel does not take it."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def words(path: Path) -> set[str]:
    """The words of a file, none where it cannot be read."""
    try:
        return set(read(path).split())
    except OSError:
        return set()
