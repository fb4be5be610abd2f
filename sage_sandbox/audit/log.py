"""Writing the audit log: one line at a time, under a lock, each following from the one before it.

Several processes append to one log. Under the lock each looks at what the others wrote since, heals a last line whose
writer was killed, and adds its own. The head, kept with the user, follows after an fsync of the log: it is never ahead.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from sage_sandbox.audit.chain import BEGINNING, HEALED, PRUNED, Chain, Entry, Position, draft, parse, read, seal, stamp
from sage_sandbox.audit.files import ASIDE, HEAD, LOCK, LOG, is_torn, raw_lines, read_head, write_head
from sage_sandbox.disk.files import Folder, sage_folder, unwritable
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.marks import Mark
from sage_sandbox.disk.places import ProjectPlace, user_config
from sage_sandbox.errors import Locked, SageError, StateUnwritable, UsageError
from sage_sandbox.policy import parse_duration

LOCK_WAIT_S: Final = 10.0
RETENTION: Final = timedelta(days=30)
PRUNE_EVERY: Final = timedelta(days=1)
FALLBACK: Final = "audit-log"
_CONFIG_MAX: Final = 1 << 20

Now = Callable[[], datetime]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """One process's hold on a log, from `open` to `close`."""

    def __init__(self, folder: Folder, head: Mark, fd: int, key: bytes, now: Now) -> None:
        self._folder = folder
        self._head = head
        self._fd = fd
        self._key = key
        self._now = now
        self._at = read_head(head) or BEGINNING
        self._waiting: list[Entry] = []

    @classmethod
    def open(cls, folder: Folder, place: Folder, key: bytes, *, now: Now = _utc_now) -> Self:
        """Open the log in ``folder``, whose head is in ``place``; both stay the caller's. OSError, StateCorrupted."""
        head = Mark.open(place, HEAD, make=True)
        try:
            return cls(folder, head, _opened(folder), key, now)
        except BaseException:
            head.close()
            raise

    def write(
        self,
        kind: str,
        text: str,
        *,
        run: str = "",
        feature: str = "",
        data: Mapping[str, Any] | None = None,
        durable: bool = False,
    ) -> None:
        """Write one entry before the act it is about; ``durable``: fsynced, and the head follows. StateUnwritable."""
        entry = draft(stamp(self._now()), kind, text, run=run, feature=feature, data=data)
        try:
            with acquire(self._folder, LOCK, wait_s=LOCK_WAIT_S, who="audit"):
                self._append((*self._waiting, entry), durable=durable)
        except Locked as error:
            raise StateUnwritable(f"the audit log cannot be written: {error.message}", error.hint) from error
        except OSError as error:
            raise unwritable(error, f"{self._folder.path}/{LOG}") from error

    def reduce(
        self, kind: str, text: str, *, run: str = "", feature: str = "", data: Mapping[str, Any] | None = None
    ) -> None:
        """Write an entry about what only reduces: it never waits and never fails; it may come a little later."""
        self._waiting.append(draft(stamp(self._now()), kind, text, run=run, feature=feature, data=data))
        with suppress(SageError, OSError), acquire(self._folder, LOCK, wait_s=0, who="audit"):
            self._append(tuple(self._waiting))

    def begin_anew(self, key: bytes, aside: str, text: str) -> None:
        """Go on under another key: the log so far is kept as ``aside``; a line stands for it, as for what is pruned.

        Killed in between, there is the old log or the new one.
        """
        try:
            with acquire(self._folder, LOCK, wait_s=LOCK_WAIT_S, who="audit"):
                self._catch_up()
                with self._folder.below(ASIDE, make=True) as other:
                    other.write_new(aside, b"".join(raw_lines(self._fd)))
                    other.sync()
                line = draft(stamp(self._now()), PRUNED, f"{text}; the entries before are in {ASIDE}/{aside}")
                self._key = key
                self._replace(replace(line, seq=self._at.seq, previous=self._at.mac), [])
        except OSError as error:
            raise unwritable(error, f"{self._folder.path}/{LOG}") from error

    def prune(self, older_than: timedelta) -> None:
        """Drop the entries that are older, at most once a day; the chain goes on from a line that stands for them."""
        oldest = self._now() - older_than
        if not self._has_older(oldest):
            return
        with acquire(self._folder, LOCK, wait_s=LOCK_WAIT_S, who="audit"):
            self._catch_up()
            kept = list(raw_lines(self._fd))
            dropped: list[bytes] = []
            while kept and (entry := parse(kept[0])) is not None and entry.time < stamp(oldest):
                dropped.append(kept.pop(0))
            last = next((found for raw in reversed(dropped) if (found := read(raw, self._key))), None)
            if last is None:
                return
            count = sum((gone := parse(raw)) is not None and gone.kind != PRUNED for raw in dropped)
            text = f"{count} entries from before {stamp(oldest)[:10]} were dropped"
            line = draft(stamp(self._now()), PRUNED, text)
            self._replace(replace(line, seq=last.entry.seq, previous=last.link), kept)

    def close(self) -> None:
        """Write what waited, if that can be, and close the files."""
        if self._fd < 0:
            return
        if self._waiting:
            with suppress(SageError, OSError), acquire(self._folder, LOCK, wait_s=1.0, who="audit"):
                self._append(tuple(self._waiting), durable=True)
        os.close(self._fd)
        self._fd = -1
        self._head.close()
        self._folder.close()

    # -- under the lock ------------------------------------------------------------------------------------------

    def _append(self, entries: tuple[Entry, ...], *, durable: bool = False) -> None:
        torn = self._catch_up()
        if torn:
            healed = draft(stamp(self._now()), HEALED, f"{torn} bytes of a line that was not finished were cut off")
            entries = (healed, *entries)
        at, lines = self._at, []
        for entry in entries:
            raw, mac = seal(replace(entry, seq=at.seq + 1, previous=at.mac), self._key)
            lines.append(raw)
            at = Position(at.seq + 1, mac, at.size + len(raw))
        self._put(b"".join(lines))
        self._at = at
        self._waiting.clear()
        if durable:
            os.fdatasync(self._fd)
            write_head(self._head, at)

    def _put(self, data: bytes) -> None:
        """Append, whole or not at all."""
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self._at.size)
            raise

    def _catch_up(self) -> int:
        """Look at what others wrote; how many bytes of a torn last line were cut off."""
        if not _is_still(self._folder, self._fd):
            self._reopen()
        head = read_head(self._head) or BEGINNING
        if os.fstat(self._fd).st_size < self._at.size:  # pruned by another process, or cut by somebody
            self._at = BEGINNING
        chain = Chain(self._key, self._at)
        torn = 0
        for raw in raw_lines(self._fd, self._at.size):
            if is_torn(raw):
                torn = os.fstat(self._fd).st_size - chain.size
                os.ftruncate(self._fd, chain.size)
                break
            chain.follow(raw)
        # What the head knows of was written: if it is gone, the gap stays visible.
        self._at = chain.end if chain.end.seq >= head.seq else head._replace(size=chain.size)
        return torn

    def _replace(self, first: Entry, kept: list[bytes]) -> None:
        """Put a shorter log in the place of this one: a line for all that came before, and what is kept."""
        data = seal(first, self._key)[0] + b"".join(kept)
        self._folder.write_new(LOG, data)
        self._folder.sync()
        self._reopen()
        self._at = self._at._replace(size=len(data))
        write_head(self._head, self._at, sync=True)

    def _has_older(self, oldest: datetime) -> bool:
        """Whether the first lines say that something is to be dropped: no more of the log is read for that."""
        first = []
        for raw in raw_lines(self._fd):
            first.append(parse(raw))
            if len(first) == 2:
                break
        if first and first[0] is not None and first[0].kind == PRUNED:
            if first[0].time > stamp(self._now() - PRUNE_EVERY):
                return False
            first = first[1:]
        return bool(first) and first[0] is not None and first[0].time < stamp(oldest)

    def _reopen(self) -> None:
        fd = _opened(self._folder)
        os.close(self._fd)
        self._fd = fd


def open_audit(
    project: Path,
    place: ProjectPlace,
    key: bytes,
    *,
    environ: Mapping[str, str] | None = None,
    now: Now = _utc_now,
) -> tuple[AuditLog, str]:
    """The log of a project, pruned; and what is to be said where it cannot be in ``.sage/logs``. StateUnwritable."""
    notice = ""
    try:
        folder = sage_folder(project, "logs", make=True)
        log = _open_in(folder, place.folder, key, now)
    except OSError as error:
        try:
            folder = place.folder.below(FALLBACK, make=True)
            log = _open_in(folder, folder, key, now)
        except OSError as other:
            raise unwritable(other, place.folder.path) from error
        notice = f"the audit log cannot be written in .sage/logs; it goes to {folder.path}"
    log.prune(retention(user_config(environ)))
    return log, notice


def retention(config: Path) -> timedelta:
    """How long entries are kept: ``audit_retention`` in the user's ``config.toml``, else 30 days. UsageError."""
    try:
        with Folder.open(config) as folder:
            found = tomllib.loads(folder.read("config.toml", _CONFIG_MAX).decode())
    except FileNotFoundError:
        return RETENTION
    except ValueError as error:
        raise UsageError(f"{config}/config.toml is not TOML: {error}") from error
    text = found.get("audit_retention")
    if text is None:
        return RETENTION
    try:
        days = str(text).removesuffix("d")
        return timedelta(days=int(days)) if str(text).endswith("d") else timedelta(seconds=parse_duration(text))
    except ValueError as error:
        raise UsageError(f"{config}/config.toml: audit_retention: {error}", 'write "30d"') from error


def _open_in(folder: Folder, place: Folder, key: bytes, now: Now) -> AuditLog:
    try:
        return AuditLog.open(folder, place, key, now=now)
    except BaseException:
        folder.close()
        raise


def _opened(folder: Folder) -> int:
    return folder.open_file(LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT)


def _is_still(folder: Folder, fd: int) -> bool:
    """Whether the name leads to the open file: another process may have pruned the log."""
    try:
        return os.path.samestat(os.stat(LOG, dir_fd=folder.fd, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
