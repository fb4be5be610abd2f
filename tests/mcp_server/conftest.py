"""What the tests of the server share."""

from __future__ import annotations

import os

import pytest
from mcp_talk import ONE, TWO, Project


@pytest.fixture
def project(tmp_path):
    """A project with one template, and a user of its own."""
    folder = tmp_path / "project"
    folder.mkdir()
    made = Project(folder, dict(os.environ))
    made.write("hello", ONE, TWO)
    return made
