"""Tries to read what belongs to the user: a file, the home folder, private keys, another process's environment."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from acts import attempt


def run(params: Any) -> dict[str, Any]:
    """Every act in turn; one that is refused does not stop the next."""
    return {
        "acts": [
            attempt("secret", lambda: read(params["secret"])),
            attempt("home", lambda: names_in(params["home"])),
            attempt("neighbour", lambda: read(f"/proc/{params['neighbour']}/environ")),
            *(attempt(f"key {index}", partial(can_open, path)) for index, path in enumerate(params["keys"])),
        ]
    }


def read(path: str) -> tuple[str, str]:
    """The first 4096 bytes of a file."""
    with Path(path).open("rb") as stream:
        data = stream.read(4096)
    return f"read {len(data)} bytes", data.decode("utf-8", "backslashreplace")


def names_in(folder: str) -> tuple[str, list[str]]:
    """What lies in a folder: at most 10,000 names."""
    names = sorted(entry.name for entry in Path(folder).iterdir())
    return f"{len(names)} names", [name.encode("utf-8", "backslashreplace").decode() for name in names[:10_000]]


def can_open(path: str) -> tuple[str, bool]:
    """Open a private key and leave it unread: that much is proof, and more is none of a demo's business."""
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    return "opened", True
