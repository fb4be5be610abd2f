"""Where a measurement was taken, and what is made equal before it."""

from __future__ import annotations

import compileall
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any, Final

import psutil

HERE: Final = Path(__file__).resolve().parent
_OURS: Final = ("sage_sandbox", "loky", "click", "cloudpickle", "yaml")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "memory_mb": psutil.virtual_memory().total // 1_000_000,
        "uid": os.geteuid(),
    }


def load() -> float:
    """How many processes wanted a core during the last minute: above what we start ourselves, figures are noise."""
    return round(os.getloadavg()[0], 2)


def compile_byte_code() -> None:
    """Compile both sides of every comparison; what cannot be written was compiled when it was installed."""
    folders = [HERE]
    for name in _OURS:
        spec = importlib.util.find_spec(name)
        folders += [Path(place) for place in (spec.submodule_search_locations or () if spec else ())]
    for folder in folders:
        compileall.compile_dir(folder, quiet=2)
