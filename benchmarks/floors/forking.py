"""The rates of `fork_rate` on all cores at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final, Literal

_PROGRAM: Final = Path(__file__).with_name("fork_rate.py")


def fork_rate(kind: Literal["bare", "served"], cores: int, seconds: float) -> float:
    """Forks a second of ``cores`` lean interpreters together."""
    argv = [os.path.realpath(sys.executable), "-I", "-S", str(_PROGRAM), kind, str(seconds)]
    running = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}, text=True) for _ in range(cores)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in running)
