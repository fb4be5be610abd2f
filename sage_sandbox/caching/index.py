"""What was known of files by their times: kept with the user, so that an unchanged tree need not be read again.

One line a folder: its path, the fingerprint of everything it showed, the digest that belongs to it, and each file's own
digest, which is parsed only where the fingerprint differs. Nothing here is believed of a file that changed in the two
seconds before it was read: two changes may have the same time then (git's "racy" entries, gitformat-index(5)).
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sage_sandbox.disk.files import Folder
from sage_sandbox.errors import SageError

FILE: Final = "cache-index"
SIZE_MAX: Final = 64 << 20
_FIRST_LINE: Final = b"sage-sandbox cache index 1\n"

Stamp = tuple[int, int, int, int]
"""Size, mtime and ctime in ns, inode."""


@dataclass(slots=True)
class FolderRecord:
    """One folder as it was last read. ``files``: stamp and digest (hex) by name, of those that can be believed.

    ``fingerprint`` and ``digest`` are empty where anything in it cannot.
    """

    fingerprint: str = ""
    digest: str = ""
    raw: bytes = b"{}"
    _files: dict[str, tuple[Stamp, str]] | None = None

    @property
    def files(self) -> dict[str, tuple[Stamp, str]]:
        """Parsed when first asked for."""
        if self._files is None:
            self._files = {name: (_stamp(stamp), str(digest)) for name, (stamp, digest) in json.loads(self.raw).items()}
        return self._files

    @classmethod
    def of(cls, fingerprint: str, digest: str, files: dict[str, tuple[Stamp, str]]) -> FolderRecord:
        """A record of what was just read."""
        return cls(fingerprint, digest, b"", files)

    def line(self, path: str) -> bytes:
        """The record as it is kept."""
        raw = self.raw or json.dumps(self._files, separators=(",", ":")).encode()
        return b"\t".join((json.dumps(path).encode(), self.fingerprint.encode(), self.digest.encode(), raw))


@dataclass(slots=True)
class Index:
    """The records of one project's folders, and of all else that operations there were granted."""

    folders: dict[str, FolderRecord] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    changed: bool = False

    @classmethod
    def load(cls, user: Folder) -> Index:
        """What was kept; an index that cannot be read is an empty one: everything is read again."""
        index = cls()
        with suppress(OSError, SageError, ValueError):
            first, *lines = user.read(FILE, SIZE_MAX).splitlines(keepends=True)
            if first == _FIRST_LINE:
                index.folders = dict(_read_line(line) for line in lines)
        return index

    def save(self, user: Folder) -> None:
        """Keep it; where it has become too large, only what was used. OSError."""
        if not self.changed:
            return
        data = self._text(self.folders.keys())
        if len(data) > SIZE_MAX // 2:
            data = self._text(self.used)
        if len(data) <= SIZE_MAX:
            user.write_new(FILE, data, durable=False)
        self.changed = False

    def get(self, path: str) -> FolderRecord:
        """What is known of a folder."""
        self.used.add(path)
        return self.folders.get(path) or FolderRecord()

    def set(self, path: str, record: FolderRecord) -> None:
        """Remember a folder as it was just read."""
        self.folders[path] = record
        self.changed = True

    def _text(self, paths: Any) -> bytes:
        lines = (self.folders[path].line(path) + b"\n" for path in paths if path in self.folders)
        return _FIRST_LINE + b"".join(lines)


def _read_line(line: bytes) -> tuple[str, FolderRecord]:
    path, fingerprint, digest, raw = line.rstrip(b"\n").split(b"\t")
    return json.loads(path), FolderRecord(fingerprint.decode("ascii"), digest.decode("ascii"), raw)


def _stamp(given: list[int]) -> Stamp:
    size, mtime, ctime, inode = given
    return size, mtime, ctime, inode
