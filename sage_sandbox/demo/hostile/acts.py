"""One act, tried: what came of it, or what the kernel answered."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any


def attempt(name: str, act: Callable[[], tuple[str, Any]]) -> dict[str, Any]:
    """Do it. ``answer`` says what happened in a few words, ``loot`` is what was taken, None when nothing was."""
    try:
        answer, loot = act()
    except OSError as error:
        spelt = errno.errorcode.get(error.errno or 0, "no errno")
        return {"act": name, "done": False, "answer": f"{spelt} ({type(error).__name__})", "loot": None}
    return {"act": name, "done": True, "answer": answer, "loot": loot}
