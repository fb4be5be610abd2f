"""What `init` would do to each file of a project, found out before anything is written; and the writing."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from sage_sandbox.disk.files import Folder
from sage_sandbox.errors import SageError
from sage_sandbox.frozen import frozen
from sage_sandbox.projectfiles.wanted import Wanted

Standing = Literal["new", "same", "changed", "kept"]

SIZE_MAX: Final = 4 << 20


@frozen
class Change:
    """One file: what it holds (None: there is none) and what it would hold. ``kept``: it is left to the user."""

    path: str
    before: bytes | None
    after: bytes
    kept: bool = False

    @property
    def standing(self) -> Standing:
        """``new``, ``changed``, or why nothing is to be done: ``same``, ``kept``."""
        if self.before is None:
            return "new"
        if self.before != self.after:
            return "changed"
        return "kept" if self.kept else "same"

    def diff(self) -> Iterator[str]:
        """What changes, line by line, as ``diff -u`` shows it; made of what somebody else wrote."""
        before, after = ((data or b"").decode("utf-8", "backslashreplace") for data in (self.before, self.after))
        names = ("/dev/null" if self.before is None else f"a/{self.path}", f"b/{self.path}")
        for line in difflib.unified_diff(_lines(before), _lines(after), *names, lineterm=""):
            yield line.rstrip("\r")


def look(project: Path, wanted: Sequence[Wanted]) -> tuple[Change, ...]:
    """Read what is there. Untrusted, by name, if a link or somebody else's is; UsageError if it cannot be merged."""
    with Folder.given(project) as folder:
        return tuple(_look(folder, one) for one in wanted)


def write(project: Path, changes: Sequence[Change]) -> None:
    """Put each file in place, whole or not at all. SageError if one has changed since it was looked at."""
    for change in changes:
        *folders, name = change.path.split("/")
        # What is not ours alone is made as any program would make it: others read what is in version control.
        mode = 0o700 if folders[:1] == [".sage"] else 0o777
        with Folder.given(project) as top, top.below(*folders, make=True, mode=mode) as folder:
            if _read(folder, name) != change.before:
                raise SageError(f"{change.path} has changed meanwhile", "sage-sandbox init once more looks again")
            folder.write_new(name, change.after, mode=_mode(folder, name))
            folder.sync()


def _look(top: Folder, wanted: Wanted) -> Change:
    *folders, name = wanted.path.split("/")
    try:
        with top.below(*folders) as folder:
            before = _read(folder, name)
    except FileNotFoundError:
        before = None
    after = wanted.make(before)
    return Change(wanted.path, before, after, kept=before == after and wanted.is_kept(after))


def _read(folder: Folder, name: str) -> bytes | None:
    try:
        # In a project that is shared, others may write: what is there is merged with, and is not believed.
        return folder.read(name, SIZE_MAX, shared=True)
    except FileNotFoundError:
        return None


def _mode(folder: Folder, name: str) -> int:
    """The mode that a file has; of a new one what any program would give it: others read what is in version control."""
    try:
        return stat.S_IMODE(os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    return umask


def _lines(text: str) -> list[str]:
    """Lines at line feeds only, with a word where the last one has none: as diff(1) does."""
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else [*lines[:-1], lines[-1] + " (no line feed at the end)"]
