"""Which environment variables an ``env:`` grant may name."""

from __future__ import annotations

import re
from typing import Final

from sage_sandbox.errors import UsageError

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_STEERING_NAMES: Final = frozenset({"PATH", "HOME", "TMPDIR"})
_STEERING_PREFIXES: Final = ("SAGE_", "LD_", "PYTHON", "GIT_")
_CREDENTIAL: Final = re.compile(r"(KEY|TOKEN|SECRET|PASSWO?R?D|PASS|AUTH|CREDENTIALS?)(_|$)", re.IGNORECASE)


def check_name(name: str) -> None:
    """UsageError unless the variable may be handed to an operation."""
    if not _NAME.fullmatch(name):
        raise UsageError("that is not the name of an environment variable", "letters, digits and _ only, no value")
    if name in _STEERING_NAMES or name.startswith(_STEERING_PREFIXES):
        raise UsageError("this variable is never handed in: it steers the programs inside, or is our own")


def looks_like_credential(name: str) -> bool:
    """Whether a variable of this name most likely holds a secret."""
    return _CREDENTIAL.search(name) is not None
