"""Where things of the user's lie, and which project is which."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, overload

from sage_sandbox.disk.files import Folder, Untrusted, unwritable
from sage_sandbox.disk.locking import acquire
from sage_sandbox.errors import SageError, StateCorrupted, UsageError
from sage_sandbox.frozen import frozen

RUN_USER: Final = Path("/run/user")
TEMPORARY: Final = Path("/tmp")  # noqa: S108 - what is made there is 0700, ours, and never reached by a link
PROJECT: Final = "project"
_OWN: Final = "sage-sandbox"
_ID: Final = re.compile(rb"[0-9a-f]{32}\n")
_LOCK_WAIT_S: Final = 10.0


@frozen
class ProjectPlace:
    """A project by its real path and random id, and the user's ``folder`` for it, which the caller closes."""

    real: str
    id: str
    folder: Folder


def user_config(environ: Mapping[str, str] | None = None) -> Path:
    """Where the user's settings, grants and keys are."""
    return _base("XDG_CONFIG_HOME", ".config", environ) / _OWN


def user_state(environ: Mapping[str, str] | None = None) -> Path:
    """Where the ids of projects are, and how far their state had come."""
    return _base("XDG_STATE_HOME", ".local/state", environ) / _OWN


def runtime_folders(environ: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Where sockets may be, best first: the same answer for every process of one user, as far as possible."""
    environ = os.environ if environ is None else environ
    # First what does not depend on the environment: cron, sudo and ssh commands often lack XDG_RUNTIME_DIR.
    by_system = RUN_USER / str(os.geteuid())
    by_session = Path(environ.get("XDG_RUNTIME_DIR", ""))
    found = [by_system / _OWN] if _is_ours(by_system) else []
    if by_session.is_absolute() and by_session != by_system:
        found.append(by_session / _OWN)
    return (*found, TEMPORARY / f"{_OWN}-{os.geteuid()}")


def open_runtime(environ: Mapping[str, str] | None = None) -> Folder:
    """Open the first of the runtime folders that is, or can be made, ours alone."""
    candidates = runtime_folders(environ)
    for path in candidates:
        with suppress(OSError, Untrusted):
            return _open_private(path)
    tried = ", ".join(str(path) for path in candidates)
    raise SageError(f"no folder of this user's own for sockets: tried {tried}", "set XDG_RUNTIME_DIR to one")


@overload
def project_place(project: Path, environ: Mapping[str, str] | None = None) -> ProjectPlace: ...
@overload
def project_place(project: Path, environ: Mapping[str, str] | None = None, *, make: bool) -> ProjectPlace | None: ...
def project_place(project: Path, environ: Mapping[str, str] | None = None, *, make: bool = True) -> ProjectPlace | None:
    """Find the project's id and the user's folder for it; ``make``: on first use they are made, else None then.

    StateUnwritable if they cannot be made (without ``make``: OSError as it is); StateCorrupted if the id is damaged.
    """
    real = os.path.realpath(project)
    path = user_state(environ) / "projects" / hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
    try:
        folder = _open_place(path, make=make)
        try:
            return ProjectPlace(real, _project_id(folder, make=make), folder)
        except BaseException:
            folder.close()
            raise
    except OSError as error:
        if make:
            raise unwritable(error, str(path)) from error
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise


def _base(variable: str, below_home: str, environ: Mapping[str, str] | None) -> Path:
    environ = os.environ if environ is None else environ
    chosen = Path(environ.get(variable, ""))
    if chosen.is_absolute():  # the specification has relative ones ignored
        return chosen
    home = Path(environ.get("HOME", ""))
    if not home.is_absolute():
        try:
            home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        except KeyError as error:
            raise UsageError(f"no home folder is known: set HOME or {variable}") from error
    return home / below_home


def _is_ours(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _open_private(path: Path) -> Folder:
    with Folder.given(path.parent) as above:
        _check_above(above)
        folder = above.below(path.name, make=True)
    if os.fstat(folder.fd).st_mode & 0o077:
        folder.close()
        raise Untrusted(f"{path} is open to others", "", str(path), "is open to others")
    return folder


def _check_above(above: Folder) -> None:
    """Refuse a folder in which somebody else could put another one in the place of ours."""
    found = os.fstat(above.fd)
    swappable = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if found.st_uid not in {0, os.geteuid()} or swappable:
        raise Untrusted(f"{above.path} is not safe", "", above.path, "is not safe")


def _open_place(path: Path, *, make: bool) -> Folder:
    with Folder.open(path.parents[1], make=make) as state:
        return state.below(*path.parts[-2:], make=make)


def _project_id(folder: Folder, *, make: bool) -> str:
    try:
        return _read_id(folder)
    except FileNotFoundError:
        if not make:
            raise
    with acquire(folder, f"{PROJECT}.lock", wait_s=_LOCK_WAIT_S):
        with suppress(FileNotFoundError):
            return _read_id(folder)  # another process was quicker
        folder.sweep(f"{PROJECT}.")
        folder.write_new(PROJECT, os.urandom(16).hex().encode() + b"\n")
        folder.sync()
    return _read_id(folder)


def _read_id(folder: Folder) -> str:
    data = folder.read(PROJECT, 64)
    if not _ID.fullmatch(data):
        path = str(Path(folder.path, PROJECT))
        hint = "remove it; `sage-sandbox state rekey` then takes over what the project holds"
        raise StateCorrupted(f"{path} is damaged", hint, path)
    return data.decode().rstrip()
