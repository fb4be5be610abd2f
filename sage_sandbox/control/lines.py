"""What is said over the control socket of a run, and where that is.

One line of JSON there, one back. A run is found by what it listens on, never by a number that a file holds.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

REQUEST_MAX: Final = 4096
ANSWER_MAX: Final = 1 << 16
"""The longest lines, in bytes. An answer goes out in one piece: a Unix socket holds 208 KiB that nobody has read."""


def address(project_id: str, feature: str) -> str:
    """The name of a run's socket: it says nothing of either, and is short whatever they are."""
    return hashlib.sha256(f"{project_id}\0{feature}".encode()).hexdigest()[:32] + ".sock"


def parse(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
