"""The log for people: ``.sage/logs/orchestration.jsonl``, a line of JSON for each thing worth telling, of every run.

Runs that go on together append to one file, each line by one write, so lines are whole and in the order of writing.
Each holds a shared lock meanwhile; what is older than 30 days is dropped by a run that, as it starts, finds no other.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sage_sandbox.disk.files import Folder
from sage_sandbox.escaping import clip
from sage_sandbox.events import (
    Event,
    Notice,
    OperationSettled,
    OperationStarted,
    PhaseSettled,
    PhaseStarted,
    RunSettled,
    RunStarted,
)
from sage_sandbox.frozen import frozen
from sage_sandbox.observe.progress import cached, spoken
from sage_sandbox.results.personal import cleaned

FILE: Final = "orchestration.jsonl"
LOCK: Final = "orchestration.lock"
KEPT: Final = timedelta(days=30)
KEPT_BYTES: Final = 64 << 20
"""The most that is kept when old lines are dropped: a log that somebody filled does not fill our memory."""
TEXT_MOST: Final = 500
LINE_MOST: Final = 1 << 16
SHOWN_MOST: Final = 1000
WAIT_S: Final = 1.0
"""How long to wait for a run that drops old lines; then the log goes on without the lock."""
_POLL_S: Final = 0.03

Level = Literal["INFO", "WARN", "ERROR"]
_NOTICES: Final[Mapping[str, Level]] = {"info": "INFO", "warning": "WARN", "error": "ERROR"}
_PHASES: Final[Mapping[str, Level]] = {"completed": "INFO", "failed": "ERROR", "timeout": "ERROR"}
_RUNS: Final[Mapping[str, Level]] = {"completed": "INFO", "failed": "ERROR"}


@frozen
class Entry:
    """One line. ``context`` names the feature and the run, and what else the message is about."""

    time: str
    level: str
    message: str
    context: Mapping[str, Any] = field(default_factory=dict)


def utc_now() -> datetime:
    """What time it is."""
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """A time in UTC as the log has it: to be compared as text."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# -- what is told --------------------------------------------------------------------------------------------------


def told(event: Event) -> tuple[Level, str, dict[str, Any]] | None:
    """What the log has to say about an event: never what an operation returned or printed, and no personal data."""
    match event:
        case RunStarted():
            about = {"phases": event.phases, "operations": event.operations, "kept": event.kept}
            return "INFO", f"run {'resumed' if event.kept else 'started'}: {event.workflow}", about
        case PhaseStarted():
            return "INFO", "phase started", {"phase": event.phase, "operations": event.operations}
        case OperationStarted() if event.attempt > 1:
            where = {"phase": event.phase, "operation": event.operation, "attempt": event.attempt}
            return "WARN", f"operation started again (attempt {event.attempt})", where
        case OperationSettled():
            return _operation(event)
        case PhaseSettled():
            text = f"phase {event.status}: {event.fulfilled} of {event.total} fulfilled ({spoken(event.duration_s)})"
            counts = {"fulfilled": event.fulfilled, "total": event.total, "durationMs": _ms(event.duration_s)}
            return _PHASES.get(event.status, "WARN"), text, {"phase": event.phase, "status": event.status, **counts}
        case RunSettled():
            text = f"run {event.status} ({spoken(event.duration_s)})"
            how = {"status": event.status, "durationMs": _ms(event.duration_s), "resumable": event.resumable}
            if event.weight.produced:
                how |= {"bytesProduced": event.weight.produced, "bytesHandedBack": event.weight.handed}
            return _RUNS.get(event.status, "WARN"), text, how
        case Notice():
            return _NOTICES[event.level], cleaned(event.text), {}
    return None


def _operation(event: OperationSettled) -> tuple[Level, str, dict[str, Any]]:
    outcome = event.outcome
    where: dict[str, Any] = {"phase": event.phase, "operation": event.operation}
    where["durationMs"] = _ms(outcome.duration_s)
    if outcome.scrubbed:
        where["scrubbed"] = outcome.scrubbed
    if outcome.violations:
        where["violations"] = len(outcome.violations)
    if not outcome.ok:
        text = f"operation rejected, {outcome.reason}: {cleaned(outcome.error)}"
        if outcome.hint:
            where["hint"] = _cut(cleaned(outcome.hint))
        return "WARN" if outcome.reason == "cancelled" else "ERROR", text, where
    text = f"operation fulfilled ({spoken(outcome.duration_s)})"
    if outcome.cached_s is not None:
        text = f"operation not run: {cached(outcome.cached_s)}"
        where["cachedMs"] = _ms(outcome.cached_s)
    if outcome.scrubbed:
        return "WARN", f"{text}; {outcome.scrubbed} secrets in what it left were replaced", where
    return "INFO", text, where


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MOST else text[: TEXT_MOST - 1] + "…"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


# -- writing -------------------------------------------------------------------------------------------------------


class Log:
    """An observer that appends what happens in one run of a feature to the log in a folder, which it closes.

    It lets go of the file after the last event, or by ``close()``. What cannot be written raises, at once or with an
    event: Untrusted if something else stands in the log's place, OSError otherwise.
    """

    def __init__(
        self,
        folder: Folder,
        feature: str,
        run: str,
        *,
        now: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._feature = feature
        self._run = run
        self._now = now
        with folder:
            lock = folder.open_file(LOCK, os.O_RDWR | os.O_CREAT)
            held = [lock]
            self._let_go = weakref.finalize(self, _close_all, held)
            if _locked(lock, fcntl.LOCK_EX):
                folder.sweep(FILE)
                _drop_older(folder, stamp(now() - KEPT))
            _share(lock, sleep)
            self._fd = folder.open_file(FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            held.append(self._fd)
        self._torn = _is_torn(self._fd)

    def __call__(self, event: Event) -> None:
        """Write down what there is to tell about an event."""
        if (news := told(event)) is not None:
            level, message, about = news
            context = {"feature": self._feature, "run": self._run, **about}
            self._append(Entry(stamp(self._now()), level, _cut(message), context))
        if isinstance(event, RunSettled):
            self.close()

    def close(self) -> None:
        """Let go of the file; nothing can be written any more."""
        self._let_go()
        self._fd = -1

    def _append(self, entry: Entry) -> None:
        # ASCII only: what others wrote into a message does nothing to a terminal that the file is shown on.
        line = json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n"
        if self._torn:
            line = b"\n" + line
        self._torn = os.write(self._fd, line) < len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _is_torn(fd: int) -> bool:
    """Whether somebody was cut off in the middle of the last line."""
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"


def _share(lock: int, sleep: Callable[[float], None]) -> None:
    """Keep others from replacing the file while this run writes to it; one that does so just now is waited for."""
    waited = 0.0
    while not _locked(lock, fcntl.LOCK_SH) and waited < WAIT_S:
        sleep(_POLL_S)
        waited += _POLL_S


def _locked(fd: int, how: int) -> bool:
    """Take a lock, or turn one into another, if that can be done at once. Where there are no locks, nothing is."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _drop_older(folder: Folder, oldest: str) -> None:
    """Put a log that begins before ``oldest`` in place anew, from the first line on that is not older."""
    try:
        fd = folder.open_file(FILE, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        if not _begins_before(fd, oldest):
            return
        size, start = os.fstat(fd).st_size, 0
        for end, line in _lines(fd, 0):
            entry = parse(line)
            if entry is not None and entry.time >= oldest:
                break
            start = end
        start = max(start, size - KEPT_BYTES)
        kept = os.pread(fd, size - start, start)
    finally:
        os.close(fd)
    folder.write_new(FILE, kept)


def _begins_before(fd: int, oldest: str) -> bool:
    """Whether the first entry is older. It is looked for at the beginning only: most often there is nothing to do."""
    for end, line in _lines(fd, 0):
        if (entry := parse(line)) is not None:
            return entry.time < oldest
        if end > LINE_MOST:
            break
    return False


# -- reading -------------------------------------------------------------------------------------------------------


def read_log(folder: Folder, feature: str, *, more: Callable[[], bool] = lambda: False) -> Iterator[Entry]:
    """What the log in ``.sage/logs`` says about a feature, in the order it was written; torn and foreign lines aside.

    At the end ``more`` is asked whether to look once again; it may wait before it answers. Untrusted if something else
    stands in the log's place.
    """
    tail = _Tail(folder)
    word = feature.encode()
    try:
        while True:
            for line in tail.lines():
                entry = parse(line) if word in line else None
                if entry is not None and entry.context.get("feature") == feature:
                    yield entry
            if not more():
                return
    finally:
        tail.close()


def parse(line: bytes) -> Entry | None:
    """A line of the log; None if it is none."""
    try:
        raw = json.loads(line)
        entry = Entry(raw["time"], raw["level"], raw["message"], raw["context"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    texts = (entry.time, entry.level, entry.message)
    return entry if all(isinstance(text, str) for text in texts) and isinstance(entry.context, dict) else None


def rendered(entry: Entry) -> str:
    """An entry as one line for a terminal, escaped: parts of it may be a template's or a child's."""
    parts = [str(entry.context[name]) for name in ("phase", "operation") if entry.context.get(name)]
    where = "/".join(parts) + ": " if parts else ""
    hint = f" · hint: {entry.context['hint']}" if entry.context.get("hint") else ""
    return clip(f"{entry.time} {entry.level:<5} {where}{entry.message}{hint}", SHOWN_MOST)


class _Tail:
    """Reads on in a file that is appended to, and that may be replaced by one that begins later."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._fd = -1
        self._offset = 0
        self._last = b""

    def lines(self) -> Iterator[bytes]:
        """The whole lines that were added since the last time."""
        yield from self._added()
        if self._fd < 0 or self._is_replaced():
            self._open()
            yield from self._added()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _added(self) -> Iterator[bytes]:
        if self._fd < 0:
            return
        for end, line in _lines(self._fd, self._offset):
            self._offset = end
            if line:
                self._last = line
                yield line

    def _is_replaced(self) -> bool:
        found = os.fstat(self._fd)
        with suppress(FileNotFoundError):  # gone: there may be another soon
            there = os.stat(FILE, dir_fd=self._folder.fd, follow_symlinks=False)
            return not os.path.samestat(there, found) or found.st_size < self._offset
        return False

    def _open(self) -> None:
        """Open what is there now, behind the last line that was read already."""
        self.close()
        self._offset = 0
        with suppress(FileNotFoundError):
            self._fd = self._folder.open_file(FILE, os.O_RDONLY)
            if self._last:
                self._offset = max((end for end, line in _lines(self._fd, 0) if line == self._last), default=0)


def _lines(fd: int, offset: int) -> Iterator[tuple[int, bytes]]:
    """The whole lines from an offset on, each with where it ends; of one that is too long, an empty one."""
    held = b""
    while chunk := os.pread(fd, LINE_MOST, offset + len(held)):
        *whole, held = (held + chunk).split(b"\n")
        for line in whole:
            offset += len(line) + 1
            yield offset, line
        if len(held) > LINE_MOST:
            offset += len(held)
            held = b""
            yield offset, b""
