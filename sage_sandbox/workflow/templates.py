"""Where a template is: a path that the user typed, or a name in the project's ``.sage/templates`` or among our own."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sage_sandbox.errors import UsageError
from sage_sandbox.workflow.findings import did_you_mean, quote
from sage_sandbox.workflow.parsing import FORMATS

BUILTIN: Final = Path(__file__).parent / "builtin"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.IGNORECASE)


def find(name_or_path: str, project: Path) -> Path:
    """The file of a template; UsageError, with the names that there are, if there is none.

    What looks like a path is taken as one, unread. A name is only ever looked up, and what a repository put below
    ``.sage`` is taken only if it is a regular file of this user, reached without a link.
    """
    if "/" in name_or_path or Path(name_or_path).suffix.lower() in FORMATS:
        return Path(name_or_path)
    if not _NAME.fullmatch(name_or_path):
        raise UsageError(f"{quote(name_or_path)} is neither a template's path nor a name", _hint(project))
    try:
        if (path := _look_up(name_or_path, project)) is not None:
            return path
    except PermissionError as error:
        raise UsageError(f"cannot open {error.filename}: permission denied", "it is another user's") from error
    close = did_you_mean(name_or_path, names(project))
    raise UsageError(f"there is no template {quote(name_or_path)}{close}", _hint(project))


def _look_up(name: str, project: Path) -> Path | None:
    for folder, is_ours in _folders(project):
        for suffix in FORMATS:
            path = folder / f"{name}{suffix}"
            if (is_ours or _is_safe(path, name)) and path.is_file():
                return path
    return None


def find_named(name: str, project: Path) -> Path:
    """As `find`, for a name that is somebody else's word: what looks like a path is refused."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{quote(name)} is not the name of a template", _hint(project))
    return find(name, project)


def names(project: Path) -> list[str]:
    """The names of the templates that a project has, and of our own."""
    found = {path.stem for folder, _ in _folders(project) for path in _files(folder) if _NAME.fullmatch(path.stem)}
    return sorted(found)


def _folders(project: Path) -> list[tuple[Path, bool]]:
    """Where names are looked up, in this order, and whether what lies there is ours."""
    return [(project / ".sage" / "templates", False), (BUILTIN, True)]


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in folder.iterdir() if path.suffix in FORMATS)
    except OSError:
        return


def _hint(project: Path) -> str:
    known = names(project)
    return f"known here: {', '.join(known)}" if known else "write a path such as ./flow.yaml"


def _is_safe(path: Path, name: str) -> bool:
    """False if there is no such file; UsageError if there is one that must not be trusted."""
    for folder in (path.parent.parent, path.parent):
        if folder.is_symlink():
            raise UsageError(f"the template {quote(name)} lies behind a link ({folder.parent.name}/{folder.name})")
    try:
        status = os.lstat(path)
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"the template {quote(name)} is not a regular file")
    if status.st_uid != os.geteuid():
        raise UsageError(f"the template {quote(name)} belongs to another user")
    return True
