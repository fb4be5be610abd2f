"""A log, its head, and a clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sage_sandbox.audit.log import AuditLog
from sage_sandbox.disk.files import Folder

KEY = bytes(range(32))
OTHER_KEY = bytes(32)


class Clock:
    def __init__(self):
        self.time = datetime(2026, 1, 31, 10, tzinfo=UTC)

    def __call__(self):
        self.time += timedelta(microseconds=1)
        return self.time

    def move(self, **by):
        self.time += timedelta(**by)


class Place:
    """The two folders a log lives in; `open` gives a log that is closed after the test."""

    def __init__(self, root):
        self.root = root
        self.clock = Clock()
        self.folder = Folder.open(root / "logs", make=True)
        self.user = Folder.open(root / "user", make=True)
        self.opened = []

    @property
    def path(self):
        return Path(self.folder.path, "audit.jsonl")

    def open(self, key=KEY):
        log = AuditLog.open(Folder.open(self.folder.path), self.user, key, now=self.clock)
        self.opened.append(log)
        return log

    def filled(self, count, *, key=KEY, durable=True):
        """A closed log of so many entries."""
        log = self.open(key)
        for number in range(1, count + 1):
            log.write("state", f"entry {number}", feature="f", durable=durable and number == count)
        log.close()
        return self.path.read_bytes()

    def close(self):
        for log in self.opened:
            log.close()
        self.folder.close()
        self.user.close()


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()
