"""The harness, built once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash.harness import Harness
from crash.shim import Tools, build, compiler


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """The shim and the keeper."""
    if compiler() is None:
        pytest.skip("the crash harness needs a C compiler (cc)")
    return build(tmp_path_factory.mktemp("tools"))


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """The folder in which calls count."""
    folder = tmp_path / "watched"
    folder.mkdir()
    return folder


@pytest.fixture
def harness(tools: Tools, tmp_path: Path, watched: Path) -> Harness:
    """Counts calls below ``watched``."""
    notes = tmp_path / "notes"
    notes.mkdir()
    return Harness(tools, notes, (watched,))
