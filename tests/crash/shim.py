"""The two small programs of the harness, built where the tests run: a shim that crashes, a keeper that cleans up."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
WARNINGS = ("-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Tools:
    """Where the built programs are."""

    shim: Path
    keeper: Path


def compiler() -> str | None:
    """A C compiler, if this machine has one."""
    return shutil.which("cc")


def build(folder: Path) -> Tools:
    """Compile both into ``folder``."""
    tools = Tools(folder / "shim.so", folder / "keeper")
    _compile("shim.c", tools.shim, "-shared", "-fPIC", "-fvisibility=hidden")
    _compile("keeper.c", tools.keeper)
    return tools


def _compile(source: str, target: Path, *how: str) -> None:
    cc = compiler()
    assert cc is not None
    subprocess.run([cc, "-O2", *WARNINGS, *how, "-o", target, HERE / source], check=True)
