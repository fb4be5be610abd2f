from __future__ import annotations

import pytest
from brokered import threaded


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def run(project):
    """A registered run with one puppet."""
    with threaded(project) as made:
        yield made
