"""A project that plants modules where a Python program might look for its own: run from within it, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from escape.attempt import Did, plain

PACKAGE = Path(__file__).resolve().parents[2]
PLANTED = [
    "loky/__init__.py",
    "json.py",
    "pickle.py",
    "yaml.py",
    "pydantic.py",
    "ctypes.py",
    "signal.py",
    "sage_sandbox/__init__.py",
    "click.py",
    "sitecustomize.py",
    "usercustomize.py",
    "psutil/__init__.py",
    "cloudpickle.py",
    "_socket.py",
]
TEMPLATE = """\
name: hostile
phases:
  - id: one
    name: One
    operations:
      - {type: python, code: "def run():\\n    return 1"}
      - {type: command, argv: [echo, two]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in which every name that we import stands for code that leaves a mark."""
    folder = tmp_path / "project"
    for name in PLANTED:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"open({str(tmp_path / 'marks')!r}, 'a').write({name!r} + '\\n')\nraise SystemExit('planted')\n"
        )
    (folder / "hostile.yaml").write_text(TEMPLATE)
    return folder


def test_a_planted_module_is_imported_by_a_plain_interpreter(project: Path, tmp_path: Path) -> None:
    """The act: without our care the project's own module is what runs."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import json"], cwd=project, env={}, capture_output=True, check=False
    )

    assert b"planted" in done.stderr
    assert "json.py\n" == (tmp_path / "marks").read_text()


@pytest.mark.parametrize("start", [["-m", "sage_sandbox"], ["-P", "-m", "sage_sandbox"]], ids=["module", "safe-path"])
def test_a_run_imports_nothing_from_the_project(project: Path, tmp_path: Path, start: list[str]) -> None:
    if start[0] == "-m":
        # The interpreter itself looks here for the package and for sitecustomize, before any line of ours.
        for name in ("sage_sandbox/__init__.py", "sitecustomize.py", "usercustomize.py"):
            (project / name).unlink()
        (project / "sage_sandbox").rmdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "PYTHONPATH": str(PACKAGE),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, *start, "run", "hostile.yaml", "--json"],
        cwd=project,
        env=environment,
        capture_output=True,
        timeout=100,
        check=False,
    )

    assert not (tmp_path / "marks").exists(), (tmp_path / "marks").read_text()
    assert 0 == done.returncode, done.stderr.decode()
    phases = json.loads(done.stdout)["results"]["phases"]
    assert [1, "two\n"] == [operation["result"] for phase in phases for operation in phase["operations"]]


def test_an_operation_imports_nothing_from_the_project(project: Path, tmp_path: Path) -> None:
    """With the project granted, the working directory is full of it; the operation's path is not."""
    from escape.attempt import Bench, granted

    from sage_sandbox.sandbox.supervisor import Supervisor

    supervisor = Supervisor(str(project))
    try:
        bench = Bench(supervisor, project, tmp_path)
        inside = bench.inside(
            "def act():\n    import json, pickle, colorsys\n    return json.__file__", policy=granted(read=(project,))
        )
    finally:
        supervisor.close()
    plain("import json\nassert json.__file__", top=str(project))

    assert isinstance(inside, Did)
    assert not inside.value.startswith(str(project))
