"""A project, a home beside it, and workflows that ask; nothing here depends on who runs the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sage_sandbox.grants.places import Place, Places
from sage_sandbox.policy import Policy
from sage_sandbox.workflow.definition import Operation, Phase, Workflow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = (tmp_path / "project").resolve()
    for name in ("src/deep", "docs", ".git/hooks", ".github/workflows", "~"):
        (folder / name).mkdir(parents=True)
    for name in ("src/a.py", "docs/index.md", ".git/config", ".env", "server.key", "Makefile", "conftest.py"):
        (folder / name).write_text("x")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = (tmp_path / "user").resolve()
    for name in (".ssh", ".config/sage-sandbox", "plans/data"):
        (folder / name).mkdir(parents=True)
    (folder / ".netrc").write_text("x")
    return folder


@pytest.fixture
def places(project: Path, home: Path, tmp_path: Path) -> Places:
    tools = (tmp_path / "tools").resolve()
    (tools / "bin").mkdir(parents=True)
    own = (tmp_path / "conf/sage-sandbox").resolve()
    own.mkdir(parents=True)
    private = Place(str(own), "where sage-sandbox keeps its own files")
    return Places(str(project), (str(home),), (private,), (private, Place(str(tools / "bin"), "a folder on PATH")))


@pytest.fixture
def make_workflow(tmp_path: Path) -> Callable[..., Workflow]:
    def make(*policies: Policy, digest: str = "d1", source: str = "", **more: object) -> Workflow:
        operations = tuple(Operation(f"op-{n}", "python", policy=policy) for n, policy in enumerate(policies, 1))
        source = source or str(tmp_path / "template.yaml")
        return Workflow("report", (Phase("survey", "Survey", operations),), source=source, digest=digest, **more)  # type: ignore[arg-type]

    return make
