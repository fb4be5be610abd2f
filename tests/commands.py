"""The command line as a user meets it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sage_sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE_FOLDER = str(Path(sage_sandbox.__file__).parents[1])


def cli_argv(*args: str) -> list[str]:
    """How to start the command line without an installed script, nothing of the working directory on the path."""
    code = (
        f"import sys; sys.path.insert(0, {PACKAGE_FOLDER!r}); from sage_sandbox.cli.main import main; sys.exit(main())"
    )
    return [sys.executable, "-P", "-c", code, *args]


def run_cli(
    *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run ``sage-sandbox ARGS`` without a terminal; stdout, stderr and exit code."""
    return subprocess.run(
        cli_argv(*args),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running ``code``."""
    # Coverage starts itself in every interpreter, and would be seen.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    argv = [sys.executable, "-P", "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"]
    done = subprocess.run(argv, env={**env, "PYTHONPATH": PACKAGE_FOLDER}, capture_output=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))
