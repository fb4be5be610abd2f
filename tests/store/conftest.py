"""A run that was saved, in a project of the test's own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from store.stored import Stored, ended


@pytest.fixture
def empty(tmp_path):
    """A project in which nothing ran."""
    return Stored(tmp_path / "project")


@pytest.fixture
def stored(empty):
    """Phases a and b are done, c failed, d never ran; the main file was written three times."""
    return _saved(empty)


@pytest.fixture
def in_memory(monkeypatch):
    """The same, where nothing waits for a disk: for tests that lose what is on it by hand, hundreds of times."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        monkeypatch.setenv("HOME", folder)
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        yield _saved(Stored(Path(folder, "project")))


def _saved(empty):
    empty.begin()
    with empty.resumed() as store:
        store.commit([ended("a"), ended("b", b'{"x": [1.50]}')])
        store.save(store.read().state)
        store.commit([ended("c", outcome="failed")])
    empty.save(status="paused")
    return empty
