"""Writing the audit log: one line at a time, under a lock, each following from the one before it.

Several processes append to one log. Under the lock each looks at what the others wrote since, heals a last line whose
writer was killed, and adds its own. The head, kept with the user, follows after an fsync of the log: it is never ahead.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Self

from sage_sandbox.audit.chain import BEGINNING, HEALED, PRUNED, Chain, Entry, Position, draft, parse, read, seal, stamp
from sage_sandbox.audit.files import ASIDE, HEAD, LOCK, LOG, is_torn, line_before, raw_lines, read_head, write_head
from sage_sandbox.disk.files import Folder, sage_folder, unwritable
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.marks import Mark
from sage_sandbox.disk.places import ProjectPlace, user_config
from sage_sandbox.disk.settings import user_settings
from sage_sandbox.errors import Locked, SageError, StateUnwritable, UsageError
from sage_sandbox.policy import parse_duration

LOCK_WAIT_S: Final = 10.0
RETENTION: Final = timedelta(days=30)
PRUNE_EVERY: Final = timedelta(days=1)
FALLBACK: Final = "audit-log"
_ENDS: Final = ("stop", "cancel")

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
        self._looked = False
        """Whether `_at` is a place in the file that is open now."""
        self._waiting: list[Entry] = []
        self._ended = False
        """Whether an entry about the end of a run still waits for the head."""
        self._given_up = False

    @classmethod
    def open(cls, folder: Folder, place: Folder, key: bytes, *, now: Now = _utc_now) -> Self:
        """Open the log in ``folder``, which is closed with it; its head is in ``place``. OSError, StateCorrupted."""
        head = _opened_head(place)
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
                self._append(entry, durable=durable)
        except Locked as error:
            raise StateUnwritable(f"the audit log cannot be written: {error.message}", error.hint) from error
        except OSError as error:
            raise unwritable(error, f"{self._folder.path}/{LOG}") from error

    def reduce(
        self, kind: str, text: str, *, run: str = "", feature: str = "", data: Mapping[str, Any] | None = None
    ) -> None:
        """Write an entry about what only reduces: it never waits and never fails; it may come a little later."""
        self._ended = self._ended or kind in _ENDS
        self._waiting.append(draft(stamp(self._now()), kind, text, run=run, feature=feature, data=data))
        with suppress(SageError, OSError), acquire(self._folder, LOCK, wait_s=0, who="audit"):
            self._append()

    def begin_anew(self, key: bytes, aside: str, text: str) -> None:
        """Go on under another key: the log so far is kept as ``aside``; a line stands for it, as for what is pruned.

        Killed in between, there is the old log or the new one.
        """
        try:
            with acquire(self._folder, LOCK, wait_s=LOCK_WAIT_S, who="audit"):
                self._append(durable=True)
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
            # The head first: killed after the rename, the next one finds what it names further up in the log.
            self._append(durable=True)
            lines = list(raw_lines(self._fd))
            # A line that is not authentic stays, and all after it: a forged time must not make evidence go away.
            authentic = (read(raw, self._key) for raw in lines)
            dropped = list(takewhile(lambda line: line is not None and line.entry.time < stamp(oldest), authentic))
            if not dropped or (last := dropped[-1]) is None:
                return
            count = sum(line is not None and line.entry.kind != PRUNED for line in dropped)
            text = f"{count} entries from before {stamp(oldest)[:10]} were dropped"
            stands = draft(stamp(self._now()), PRUNED, text)
            self._replace(replace(stands, seq=last.entry.seq, previous=last.link), lines[len(dropped) :])

    def close(self) -> None:
        """Write what waited, if that can be, bring the head up to the end of a run, and close the files."""
        if self._fd < 0:
            return
        if self._waiting or self._ended:
            with suppress(SageError, OSError), acquire(self._folder, LOCK, wait_s=1.0, who="audit"):
                self._append(durable=True)
        os.close(self._fd)
        self._fd = -1
        self._head.close()
        self._folder.close()

    # -- under the lock ------------------------------------------------------------------------------------------

    def _append(self, *entries: Entry, durable: bool = False) -> None:
        """Write what waited, then these; without any, only heal what is torn."""
        if self._given_up:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        torn = self._catch_up()
        if torn:
            healed = draft(stamp(self._now()), HEALED, f"{torn} bytes of a line that was not finished were cut off")
            entries = (healed, *entries)
        waiting = tuple(self._waiting)
        at, lines = self._at, []
        for entry in (*waiting, *entries):
            raw, mac = seal(replace(entry, seq=at.seq + 1, previous=at.mac), self._key)
            lines.append(raw)
            at = Position(at.seq + 1, mac, at.size + len(raw))
        self._put(b"".join(lines))
        self._at = at
        del self._waiting[: len(waiting)]  # another thread may have added one meanwhile
        if durable:
            self._sync()
            write_head(self._head, at)
            self._ended = False

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError:
            # The kernel may have dropped what it could not write, and report success the next time (fsyncgate, 2018).
            self._given_up = True
            raise

    def _put(self, data: bytes) -> None:
        """Append, whole or not at all."""
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._fd, left) :]
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._fd, self._at.size)
            raise

    def _catch_up(self) -> int:
        """Look at what others wrote; how many bytes of a torn last line were cut off."""
        if not _is_still(self._folder, self._fd):
            self._reopen()
        if self._looked and os.fstat(self._fd).st_size == self._at.size:
            return 0
        known = sorted((self._at, read_head(self._head) or BEGINNING), reverse=True)
        # A log that was pruned has the same entries elsewhere: where neither is in its place, all of it is read.
        chain = Chain(self._key, next((position for position in known if self._ends(position)), None))
        torn = 0
        for raw in raw_lines(self._fd, chain.size):
            if is_torn(raw):
                torn = os.fstat(self._fd).st_size - chain.size
                os.ftruncate(self._fd, chain.size)
                break
            chain.follow(raw)
        # What the head or this process knows of was written: if it is gone, the gap stays visible.
        self._at = chain.end if chain.end.seq >= known[0].seq else known[0]._replace(size=chain.size)
        self._looked = True
        return torn

    def _ends(self, position: Position) -> bool:
        """Whether the entry of a position ends where it says."""
        line = read(line_before(self._fd, position.size), self._key) if position.seq else None
        return line is not None and (line.entry.seq, line.link) == (position.seq, position.mac)

    def _replace(self, first: Entry, kept: list[bytes]) -> None:
        """Put a shorter log in the place of this one: a line for all that came before, and what is kept."""
        data = seal(first, self._key)[0] + b"".join(kept)
        self._folder.sweep(f"{LOG}.")
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
        self._fd, self._looked = fd, False


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
    older_than = retention(user_config(environ))
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
    with suppress(OSError, StateUnwritable, Locked):  # the next start tries again
        log.prune(older_than)
    return log, notice


def retention(config: Path) -> timedelta:
    """How long entries are kept: ``audit_retention`` in the user's ``config.toml``, else 30 days. UsageError."""
    text = user_settings(config).get("audit_retention")
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


def _opened_head(place: Folder) -> Mark:
    if HEAD not in place.names():
        # One at a time: who comes second must not put an empty head in the place of one that is in use.
        with acquire(place, LOCK, wait_s=LOCK_WAIT_S, who="audit"):
            place.sweep(f"{HEAD}.")
            return Mark.open(place, HEAD, make=True)
    return Mark.open(place, HEAD, make=True)


def _opened(folder: Folder) -> int:
    flags = os.O_RDWR | os.O_APPEND
    try:
        return folder.open_file(LOG, flags)
    except FileNotFoundError:
        fd = folder.open_file(LOG, flags | os.O_CREAT)
        folder.sync()  # an entry is not durable in a file whose name is not
        return fd


def _is_still(folder: Folder, fd: int) -> bool:
    """Whether the name leads to the open file: another process may have pruned the log."""
    try:
        return os.path.samestat(os.stat(LOG, dir_fd=folder.fd, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
