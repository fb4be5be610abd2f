"""What ``.git`` itself says, without git: so that the report can tell a missing history from one it could not read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any


def run() -> dict[str, Any]:
    """``state`` is none, elsewhere (a worktree's or submodule's pointer), empty (no commit yet) or ready."""
    kind = kind_of(".git")
    if kind != "folder":
        return {"state": "elsewhere" if kind == "file" else "none", "branch": None, "shallow": False}
    head = first_line(".git/HEAD")
    branch = head.removeprefix("ref: refs/heads/") if head.startswith("ref: refs/heads/") else None
    return {
        "state": "ready" if has_commit(head) else "empty",
        # reftable keeps its refs elsewhere and says so with a branch that cannot exist (git's Documentation/technical).
        "branch": None if branch is None or branch == ".invalid" else branch,
        "shallow": kind_of(".git/shallow") == "file",
    }


def has_commit(head: str) -> bool:
    """Whether HEAD leads to a commit, as far as the loose and packed refs tell; a reftable is given the benefit."""
    if not head.startswith("ref: "):
        return bool(head)
    ref = head.removeprefix("ref: ")
    if ref == "refs/heads/.invalid" or kind_of(".git/reftable") == "folder":
        return True
    if ".." not in ref and kind_of(f".git/{ref}") == "file":
        return True
    return any(line.rstrip().endswith(f" {ref}") for line in read(".git/packed-refs", 64 << 20).splitlines())


def kind_of(path: str) -> str | None:
    """``folder``, ``file``, or None for anything else, a link among them."""
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else None


def first_line(path: str) -> str:
    """The first line of a short file, or nothing."""
    return read(path, 4096).partition("\n")[0].strip()


def read(path: str, max_bytes: int) -> str:
    """What a file holds, at most so much of it; nothing if it cannot be read."""
    if kind_of(path) != "file":
        return ""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(max_bytes).decode("utf-8", "replace")
    except OSError:
        return ""
