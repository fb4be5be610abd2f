"""Programs that print a moment: how long after their start that was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks.harness import Round
from benchmarks.machine import HERE


def module(name: str, *arguments: str) -> list[str]:
    """How a program of this folder is started."""
    return [sys.executable, "-m", f"benchmarks.{name}", *arguments]


def until_printed(
    argv: Sequence[str],
    *,
    cwd: str = str(HERE.parent),
    moment: Callable[[str], float] = float,
    times: int = 1,
    environ: Mapping[str, str] | None = None,
) -> Round:
    """A round that starts the program and takes the monotonic time it prints for its end.

    ``environ`` is added to the environment. The clock is one for all processes of a machine, in every namespace that a
    sandbox makes.
    """

    def measure() -> list[float]:
        values = []
        for _ in range(times):
            started = time.monotonic()
            done = subprocess.run(
                argv,
                cwd=cwd,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {done.stderr}")
            values.append(moment(done.stdout) - started)
        return values

    return measure
