"""Folders to grant: generated projects with something to hide in them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SMALL: Final = 200
LARGE: Final = 5_000
_FILES_A_FOLDER: Final = 10
_HIDDEN: Final = (".env", "server.key", ".git/config", "deploy/.npmrc")


def make_project(root: Path, files: int) -> str:
    """A project of about so many files, ten a folder, with a few that a read grant does not show; its real path."""
    for number in range(files):
        folder = root / f"part{number // (10 * _FILES_A_FOLDER)}" / f"module{number // _FILES_A_FOLDER}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}.py").write_text(f"VALUE = {number}\n", encoding="utf-8")
    for name in _HIDDEN:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("[core]\n\tbare = false\n", encoding="utf-8")
    return str(root.resolve())
