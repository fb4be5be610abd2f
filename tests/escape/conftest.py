"""What every attack starts from: one supervisor a module, a project, and a secret beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from escape.attempt import Bench

from sage_sandbox.operations.confining import supervisor as confining


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench whose operations are granted nothing unless a test says so."""
    project = Path(tmp_path_factory.mktemp("project"))
    elsewhere = Path(tmp_path_factory.mktemp("elsewhere"))
    (project / "notes.txt").write_text("of the project")
    (elsewhere / "secret").write_text("of somebody else")
    supervisor = confining(str(project))
    supervisor.prepare()
    yield Bench(supervisor, project, elsewhere)
    supervisor.close()
