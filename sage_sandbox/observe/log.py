"""``.sage/logs/orchestration.jsonl``: what happened in the runs of a project, one line of JSON each; written and read.

Lines of runs that go on side by side stand whole between each other: each is one write(2) in append mode. Results are
not in it, only what an operation failed with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import singledispatchmethod
from typing import Any, Final, Literal

from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.locking import acquire
from sage_sandbox.errors import SageError
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

LOG: Final = "orchestration.jsonl"
LOCK: Final = "orchestration.lock"
RETENTION: Final = timedelta(days=30)
TEXT_MAX: Final = 500
_CHUNK: Final = 64 << 10
_LINE_MAX: Final = 64 << 10
_LEVELS: Final = {"info": "INFO", "warning": "WARN", "error": "ERROR"}

Level = Literal["INFO", "WARN", "ERROR"]
Entry = dict[str, Any]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Log:
    """An observer that writes down what happens in one run; it owns ``folder`` (``.sage/logs``) until the run has settled."""

    def __init__(self, folder: Folder, feature: str, run: str, *, now: Callable[[], datetime] = _utc_now) -> None:
        self._folder = folder
        self._context = {"feature": feature, "run": run}
        self._now = now
        with suppress(SageError, OSError), acquire(folder, LOCK, wait_s=0, who="log"):
            _drop_old(folder, _stamp(now() - RETENTION))
        self._fd = folder.open_file(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, event: Event) -> None:
        """Write the line of an event."""
        self._on(event)

    @singledispatchmethod
    def _on(self, event: Event) -> None:
        """Events that are not worth a line."""

    @_on.register
    def _(self, event: RunStarted) -> None:
        kept = f", {event.kept} phases kept" if event.kept else ""
        self._write("INFO", f"run {event.workflow}: {event.phases} phases, {event.operations} operations{kept}")

    @_on.register
    def _(self, event: PhaseStarted) -> None:
        self._write("INFO", f"{event.phase} started", phase=event.phase)

    @_on.register
    def _(self, event: OperationStarted) -> None:
        again = f", attempt {event.attempt}" if event.attempt > 1 else ""
        what = f"{event.phase}/{event.operation} started{again}"
        self._write("INFO", what, phase=event.phase, operation=event.operation)

    @_on.register
    def _(self, event: OperationSettled) -> None:
        outcome, name = event.outcome, f"{event.phase}/{event.operation}"
        context = {"phase": event.phase, "operation": event.operation, "durationMs": round(outcome.duration_s * 1000, 3)}
        if outcome.ok:
            self._write("INFO", f"{name} fulfilled", **context)
        else:
            self._write("ERROR", f"{name} rejected: {outcome.reason}: {outcome.error}", reason=outcome.reason, **context)

    @_on.register
    def _(self, event: PhaseSettled) -> None:
        level: Level = "INFO" if event.status == "completed" else "WARN"
        text = f"{event.phase} {event.status} ({event.fulfilled} of {event.total})"
        self._write(level, text, phase=event.phase, status=event.status)

    @_on.register
    def _(self, event: Notice) -> None:
        self._write(_LEVELS[event.level], event.text)

    @_on.register
    def _(self, event: RunSettled) -> None:
        level: Level = "INFO" if event.status == "completed" else "WARN"
        self._write(level, f"run {event.status}", status=event.status, durationMs=round(event.duration_s * 1000, 3))
        os.close(self._fd)
        self._folder.close()

    def _write(self, level: str, message: str, **context: Any) -> None:
        entry = {
            "time": _stamp(self._now()),
            "level": level,
            "message": message if len(message) <= TEXT_MAX else message[: TEXT_MAX - 1] + "…",
            "context": {**self._context, **context},
        }
        os.write(self._fd, json.dumps(entry, separators=(",", ":")).encode() + b"\n")


def read_log(folder: Folder, feature: str, *, more: Callable[[], bool] = lambda: False) -> Iterator[Entry]:
    """What the log says of a feature; at its end ``more`` is asked (it may wait) whether to look again.

    FileNotFoundError if there is no log. Lines that are none are passed over.
    """
    fd = folder.open_file(LOG, os.O_RDONLY)
    try:
        left, at = b"", 0
        while True:
            data = os.pread(fd, _CHUNK, at)
            at += len(data)
            *lines, left = (left + data).split(b"\n")
            left = left if len(left) <= _LINE_MAX else b""
            yield from (entry for line in lines if (entry := _parse(line)) and entry["context"].get("feature") == feature)
            if not data and not more():
                return
    finally:
        os.close(fd)


def rendered(entry: Entry) -> str:
    """An entry as a line for a terminal."""
    return f"{clip(str(entry['time']), 40)} {clip(str(entry['level']), 8):<5} {clip(str(entry['message']), TEXT_MAX)}"


def _parse(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(entry, dict) and {"time", "level", "message"} <= entry.keys()
    return entry if known and isinstance(entry.get("context"), dict) else None


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _drop_old(folder: Folder, oldest: str) -> None:
    """Rewrite the log without what is too old, if its first line is; a run that writes meanwhile may lose a line."""
    fd = folder.open_file(LOG, os.O_RDONLY)
    try:
        first = _parse(os.pread(fd, _LINE_MAX, 0).partition(b"\n")[0])
        if first is None or first["time"] >= oldest:
            return
        lines = b"".join(iter(lambda: os.read(fd, _CHUNK), b"")).splitlines(keepends=True)
    finally:
        os.close(fd)
    kept = [line for line in lines if (entry := _parse(line)) and entry["time"] >= oldest]
    folder.write_new(LOG, b"".join(kept))
