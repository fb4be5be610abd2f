"""``.sage/cache/``: sealed answers under the digest of what was asked, none older than may be, not too many of them.

One file an answer, named by its key: outcomes of operations, and (``answer-…``) what tools said. The key, the project
and an epoch are authenticated with the content, so an answer that was planted, changed, renamed or brought along
is none. The epoch lies with the user: after `clear` no answer of before counts, whoever puts it back. An answer may be
torn by a power cut; its tag is not true then.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from sage_sandbox.disk.files import Folder, sage_folder
from sage_sandbox.disk.locking import acquire
from sage_sandbox.errors import Locked, SageError, StateCorrupted
from sage_sandbox.frozen import frozen
from sage_sandbox.store.envelope import Subject, open_sealed, seal
from sage_sandbox.store.keys import Keys

FOLDER: Final = "cache"
LOCK: Final = "lock"
LOCK_WAIT_S: Final = 2.0
EPOCH: Final = "cache-epoch"
TTL_DEFAULT_S: Final = 30 * 86400.0
SIZE_MAX: Final = 256 << 20
ENTRY_MAX: Final = 32 << 20
EVICT_EVERY: Final = 32 << 20
"""How many bytes a process writes before it looks at the size of the whole again."""
RECORD_VERSION: Final = "1.0"

TOOL_PREFIX: Final = "answer-"
"""What the key of a tool's answer begins with."""
KEY_LENGTH: Final = 64

_KEY: Final = re.compile(r"[0-9a-f]{64}|answer-[0-9a-f]{57}")
_HINT: Final = re.compile(r"whole-[0-9a-f]{32}")
_HEAD: Final = re.compile(rb'\{"version":"1\.0","madeAt":([1-9][0-9]{0,14}),\n"content":')
_EPOCH: Final = re.compile(rb"[1-9][0-9]{0,14}\n")
_NO_RUN: Final = "0" * 32
_SLACK_S: Final = 60.0
"""How far in the future an answer may have been made: clocks are put back a little."""


@frozen
class Answer:
    """What was found: ``content`` is JSON text, ``age_s`` how long ago it was put there."""

    content: bytes
    age_s: float


@frozen
class Stats:
    """What there is: ages in seconds, None where there is nothing. ``answers`` are those of tools and models."""

    entries: int
    size: int
    oldest_s: float | None
    newest_s: float | None
    answers: int = 0


class CacheStore:
    """The answers of one project, for one process; closed by ``close()``. ``user`` is the user's folder for it.

    Raises OSError or SageError if there can be no cache: nothing may hang on having one.
    """

    def __init__(
        self,
        project: Path,
        project_id: str,
        user: Folder,
        keys: Keys,
        *,
        size_max: int = SIZE_MAX,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = sage_folder(project, FOLDER, make=True)
        try:
            self._sweep(user)
            self._epoch = _epoch(user)
        except BaseException:
            self._folder.close()
            raise
        self._project = project_id
        self._keys = keys
        self._size_max = size_max
        self._now = now
        self._written = 0
        self._stored = False

    def _sweep(self, user: Folder) -> None:
        """Remove what writers that were killed left. One that is writing just now loses its file, and keeps nothing."""
        with suppress(Locked), acquire(self._folder, LOCK, wait_s=0):
            self._folder.sweep()
            user.sweep("cache-")

    def get(self, key: str, ttl_s: float) -> Answer | None:
        """The answer under a key that is not older than ``ttl_s``; None if there is none that is true."""
        try:
            data = self._folder.read(key, ENTRY_MAX)
            opened = open_sealed(data, self._subject(key), self._keys, path=f"{self._folder.path}/{key}")
        except (OSError, SageError):
            return None
        head = _HEAD.match(opened.payload)
        if head is None or opened.generation != self._epoch:
            return None
        age_s = self._now() - int(head[1]) / 1000
        if not -_SLACK_S <= age_s <= ttl_s:
            return None
        return Answer(opened.payload[head.end() : -1], max(age_s, 0.0))

    def put(self, key: str, content: bytes) -> bool:
        """Keep an answer (JSON text) under a key; False if it is too large to be kept. OSError."""
        made_at = round(self._now() * 1000)
        payload = b'{"version":"%b","madeAt":%d,\n"content":%b}' % (RECORD_VERSION.encode(), made_at, content)
        sealed = seal(payload, self._subject(key), self._epoch, self._keys)
        if len(sealed) > min(ENTRY_MAX, self._size_max):
            return False
        with suppress(FileNotFoundError):  # swept by another process meanwhile
            self._folder.write_new(key, sealed, durable=False)
        self._stored = True
        self._written += len(sealed)
        if self._written >= EVICT_EVERY:
            self.evict()
        return True

    def evict(self) -> None:
        """Take away the oldest answers until the rest is not too large, if this process added any. OSError."""
        if not self._stored:
            return
        self._written, self._stored = 0, False
        with suppress(Locked), acquire(self._folder, LOCK, wait_s=LOCK_WAIT_S):
            self._folder.sweep()
            found = sorted(_entries(self._folder))
            total = sum(size for _, size, _ in found)
            for _, size, name in found:
                if total <= self._size_max:
                    break
                with suppress(FileNotFoundError):
                    self._folder.remove(name)
                total -= size

    def mark_whole(self, hint: str, text: bytes) -> None:
        """Leave a mark (`caching.hints`). OSError."""
        with suppress(FileNotFoundError):  # swept by another process meanwhile
            self._folder.write_new(hint, text, durable=False)

    def close(self) -> None:
        """Let go of the folder; a second call does nothing."""
        self._folder.close()

    def _subject(self, key: str) -> Subject:
        return Subject(self._project, "", _NO_RUN, "cache", key, 0)


def stats(project: Path, *, now: Callable[[], float] = time.time) -> Stats:
    """How much is there. OSError, StateCorrupted."""
    try:
        folder = sage_folder(project, FOLDER)
    except FileNotFoundError:
        return Stats(0, 0, None, None)
    with folder:
        found = sorted(_entries(folder))
    ages = [max(0.0, now() - made) for made, _, _ in found]
    answers = sum(name.startswith(TOOL_PREFIX) for _, _, name in found)
    size = sum(size for _, size, _ in found)
    return Stats(len(found), size, max(ages, default=None), min(ages, default=None), answers)


def clear(project: Path, user: Folder | None) -> int:
    """Make every answer of before worth nothing and take it away; how many there were. Locked, OSError."""
    if user is not None:
        _write_epoch(user)
    try:
        folder = sage_folder(project, FOLDER)
    except FileNotFoundError:
        return 0
    with folder, acquire(folder, LOCK, wait_s=LOCK_WAIT_S):
        folder.sweep()
        gone = 0
        for name in folder.names():
            if _KEY.fullmatch(name) or _HINT.fullmatch(name):
                with suppress(FileNotFoundError, IsADirectoryError):
                    folder.remove(name)
                    gone += _KEY.fullmatch(name) is not None
        return gone


def content_json(value: object) -> bytes:
    """Plain data as the text under which it can be kept, always the same for the same data."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _entries(folder: Folder) -> Iterator[tuple[float, int, str]]:
    """When each answer was written, its size, its name."""
    for name in folder.names():
        if _KEY.fullmatch(name):
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield found.st_mtime, found.st_size, name


def _epoch(user: Folder) -> int:
    with suppress(FileNotFoundError, StateCorrupted):
        data = user.read(EPOCH, 64)
        if _EPOCH.fullmatch(data):
            return int(data)
    return _write_epoch(user)


def _write_epoch(user: Folder) -> int:
    """A new epoch, at random: one that is lost does not come again."""
    epoch = secrets.randbelow(10**15 - 1) + 1
    user.write_new(EPOCH, b"%d\n" % epoch)
    return epoch
