"""How a process of ours is started from another one: with this very package, and nothing of the folder it is in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_HOME: Final = str(Path(__file__).resolve().parents[2])
_BOOT: Final = """\
import sys
from importlib import import_module
from importlib.util import find_spec
from os.path import realpath
home, module, *arguments = sys.argv[1:]
found = find_spec("sage_sandbox")
if found is None or realpath(found.origin or "") != realpath(home + "/sage_sandbox/__init__.py"):
    sys.path.insert(0, home)
sys.exit(import_module("sage_sandbox." + module).main(*arguments))
"""


def booted(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line that calls ``main`` of a module of this package with these texts."""
    return (sys.executable, "-P", "-c", _BOOT, _HOME, module, *arguments)
