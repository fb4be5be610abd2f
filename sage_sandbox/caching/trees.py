"""The digest of everything that a read grant shows: names, kinds, permissions, link targets, bytes.

What a sandbox hides is left out, by the same walk that finds it for the sandbox. Times are not part of it: they are the
clock, in another place. One digest a folder, one of these for the whole, so a change is looked for in its folder only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from sage_sandbox.caching.index import FolderRecord, Index, Stamp
from sage_sandbox.sandbox.masks import Masker

ENTRIES_MAX: Final = 200_000
BYTES_MAX: Final = 1 << 30
"""How much is looked at and read for one digest: an operation that may read more than this is run."""
SETTLED_NS: Final = 2_000_000_000
_PIECE: Final = 1 << 20
_STAMP: Final = struct.Struct("<7q")
_OWN: Final = struct.Struct("<3q")


class TooLarge(Exception):
    """There is more to read than is worth it: ``args`` is the granted path."""


class Abandoned(Exception):
    """Nobody waits for the digest any more."""


@dataclass(slots=True)
class Trees:
    """Digests granted paths. Lives as long as its index is loaded; used by one thread.

    ``abandoned`` is asked between files whether to stop.
    """

    index: Index
    abandoned: Callable[[], bool] = lambda: False
    now_ns: Callable[[], int] = time.time_ns
    entries_max: int = ENTRIES_MAX
    bytes_max: int = BYTES_MAX
    masker: Masker = field(default_factory=Masker)

    def digest(self, root: str, named: frozenset[str] = frozenset(), *, masked: bool = True) -> str:
        """The digest (hex) of a file or folder as a sandbox shows it; ``named`` as for `Masker.masks`.

        Not ``masked``: nothing in it is hidden, as in packages.

        OSError if it is not there; NotGranted where a sandbox would refuse it; TooLarge; Abandoned.
        """
        walk = _Walk(self, root)
        found = os.lstat(root)
        if not stat.S_ISDIR(found.st_mode):
            return walk.single(found)
        return walk.whole(found, dict(self.masker.masks(root, named)) if masked else {})


class _Walk:
    """One look at one granted path."""

    def __init__(self, trees: Trees, root: str) -> None:
        self._trees = trees
        self._root = root
        self._settled_ns = trees.now_ns() - SETTLED_NS
        self._entries = 0
        self._bytes = 0

    def single(self, found: os.stat_result) -> str:
        """The digest of a granted file."""
        folder, _, name = self._root.rpartition("/")
        path = f"{folder}/\0{name}"  # by itself: whatever else is in its folder was not granted
        stamp, own = _stamp(found), _OWN.pack(found.st_mode, found.st_uid, found.st_gid)
        known = self._trees.index.get(path)
        if known.files.get(name, (None, ""))[0] == stamp:
            content = known.files[name][1]
        else:
            content, believed = self._content(self._root, found)
            self._trees.index.set(path, FolderRecord.of("", "", {name: (stamp, content)} if believed else {}))
        return hashlib.sha256(b"file" + own + content.encode()).hexdigest()

    def whole(self, found: os.stat_result, masks: dict[str, bytes | None]) -> str:
        """The digest of a granted folder: of each folder in it by its path."""
        total = hashlib.sha256(b"tree" + _OWN.pack(found.st_mode, found.st_uid, found.st_gid))
        stack = [""]
        while stack:
            prefix = stack.pop()
            digest, folders = self._folder(prefix, masks)
            total.update(b"%d:" % len(name := os.fsencode(prefix)) + name + digest.encode())
            stack += [f"{prefix}{name}/" for name in folders]
        return total.hexdigest()

    def _folder(self, prefix: str, masks: dict[str, bytes | None]) -> tuple[str, list[str]]:
        """The digest of what one folder shows, and its folders in an order that only their names make."""
        path = f"{self._root}/{prefix}".rstrip("/")
        shown = sorted(self._shown(path, prefix, masks), key=lambda item: item[0])
        parts, folders = [], []
        settled = True
        for name, found in shown:
            if stat.S_ISDIR(found.st_mode):
                folders.append(name)
            elif max(found.st_mtime_ns, found.st_ctime_ns) > self._settled_ns:
                settled = False
            # Of a folder what it holds is looked at by itself.
            times = (0, 0, 0, 0) if stat.S_ISDIR(found.st_mode) else _stamp(found)
            parts.append(os.fsencode(name) + b"\0" + _STAMP.pack(found.st_mode, found.st_uid, found.st_gid, *times))
            parts.append(masks.get(prefix + name) or b"")
        fingerprint = hashlib.sha256(b"".join(b"%d:" % len(part) + part for part in parts)).hexdigest()
        known = self._trees.index.get(path)
        if settled and known.fingerprint == fingerprint:
            return known.digest, folders
        digest, files, believed = self._read(path, prefix, shown, masks, known)
        whole = settled and believed
        self._trees.index.set(path, FolderRecord.of(fingerprint if whole else "", digest if whole else "", files))
        return digest, folders

    def _shown(self, path: str, prefix: str, masks: dict[str, bytes | None]) -> Iterator[tuple[str, os.stat_result]]:
        """Everything in a folder that is not hidden, as it is and not where it leads."""
        if self._trees.abandoned():
            raise Abandoned
        with os.scandir(path) as entries:
            for entry in entries:
                if masks.get(prefix + entry.name, b"") is not None:
                    self._entries += 1
                    yield entry.name, entry.stat(follow_symlinks=False)
        if self._entries > self._trees.entries_max:
            raise TooLarge(self._root)

    def _read(
        self,
        path: str,
        prefix: str,
        shown: list[tuple[str, os.stat_result]],
        masks: dict[str, bytes | None],
        known: FolderRecord,
    ) -> tuple[str, dict[str, tuple[Stamp, str]], bool]:
        """The digest of a folder of which something changed; what to remember of its files, and whether of all."""
        whole = hashlib.sha256()
        files: dict[str, tuple[Stamp, str]] = {}
        believed = True
        for name, found in shown:
            stamp = _stamp(found)
            if (replaced := masks.get(prefix + name)) is not None:
                content = hashlib.sha256(replaced).hexdigest()
            elif stat.S_ISDIR(found.st_mode):
                content = ""
            elif stat.S_ISLNK(found.st_mode):
                content = os.fsencode(os.readlink(f"{path}/{name}")).hex()
            elif name in known.files and known.files[name][0] == stamp:
                content = known.files[name][1]
                files[name] = (stamp, content)
            else:
                content, settled = self._content(f"{path}/{name}", found)
                believed = believed and settled
                if settled:
                    files[name] = (stamp, content)
            own = _OWN.pack(found.st_mode, found.st_uid, found.st_gid)
            parts = (os.fsencode(name), own, content.encode())
            whole.update(b"".join(b"%d:" % len(part) + part for part in parts))
        return whole.hexdigest(), files, believed

    def _content(self, path: str, found: os.stat_result) -> tuple[str, bool]:
        """The digest of a file's bytes, and whether its times will tell if they change."""
        if not stat.S_ISREG(found.st_mode):
            return "special", False
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except PermissionError:
            return "unreadable", False
        with open(fd, "rb", buffering=0) as file:
            digest = hashlib.sha256()
            while piece := file.read(_PIECE):
                digest.update(piece)
                self._bytes += len(piece)
                if self._bytes > self._trees.bytes_max:
                    raise TooLarge(self._root)
                if self._trees.abandoned():
                    raise Abandoned
            after = os.fstat(fd)
        same = _stamp(after) == _stamp(found)
        return digest.hexdigest(), same and max(found.st_mtime_ns, found.st_ctime_ns) <= self._settled_ns


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
