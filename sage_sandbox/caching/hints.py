"""A mark that the last run of a template found or kept an outcome for everything: the next most likely starts nothing.

It decides only how early workers are started: anybody may have put it there.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sage_sandbox.disk.files import sage_folder
from sage_sandbox.errors import SageError

TEXT_MAX = 1024


def hint_of(template: Path) -> tuple[str, bytes]:
    """The name of a template's mark, and what it says of the file as it is now. OSError."""
    found = template.stat()
    name = hashlib.sha256(os.fsencode(os.path.realpath(template))).hexdigest()[:32]
    return f"whole-{name}", f"{found.st_size} {found.st_mtime_ns} {found.st_ino}\n".encode()


def is_whole(project: Path, template: Path) -> bool:
    """Whether there is a mark for the template as it is now."""
    try:
        with sage_folder(project, "cache") as folder:
            name, text = hint_of(template)
            return folder.read(name, TEXT_MAX) == text
    except (OSError, SageError):
        return False
