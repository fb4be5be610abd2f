"""A folder of the test's own, open; a umask that ends with the test; what was made durable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sage_sandbox.disk.files import Folder


@pytest.fixture
def folder(tmp_path):
    with Folder.open(tmp_path / "own", make=True) as opened:
        yield opened


@pytest.fixture
def set_umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def synced(monkeypatch):
    """The path of every file and folder that was fsynced, in order."""
    calls, fsync = [], os.fsync

    def record(fd):
        calls.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    return calls
