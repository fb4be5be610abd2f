"""Which folders of this machine a grant must not, or not lightly, reach."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from sage_sandbox.disk.places import runtime_folders
from sage_sandbox.frozen import frozen

# Top folders: a grant for the root of the tree is an ancestor of every one of them, so "/" needs no entry of its own.
UNREADABLE_ROOTS: Final = ("/proc", "/sys", "/dev", "/run")
UNWRITABLE_ROOTS: Final = (
    "/etc", "/dev", "/proc", "/sys", "/run", "/boot", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
    "/var/spool/cron", "/var/spool/at",
)  # fmt: skip


@frozen
class Place:
    """A folder that is special, and why, in words that complete "which is …"."""

    path: str
    why: str


@frozen
class Places:
    """The project and what surrounds it, all real absolute paths, looked up once per command.

    ``homes`` are the user's: the one in HOME first, then the one of the password database. ``private`` are folders
    outside home that are read only with ``read!``; ``steering`` are those that programs outside a sandbox obey.
    """

    project: str
    homes: tuple[str, ...] = ()
    private: tuple[Place, ...] = ()
    steering: tuple[Place, ...] = ()


def is_beneath(path: str, folder: str) -> bool:
    """Whether a real path lies in a folder, at any depth, or is it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def in_dot_folder(path: str, homes: tuple[str, ...]) -> bool:
    """Whether a path lies in (or is) a hidden entry of a home."""
    return any(is_beneath(path, home) and path[len(home) :].lstrip("/").startswith(".") for home in homes)


def find_places(project: Path, environ: Mapping[str, str] | None = None) -> Places:
    """Look at this process, its environment and its user."""
    environ = os.environ if environ is None else environ
    root = os.path.realpath(project)
    private = tuple(Place(os.path.realpath(path), "where sage-sandbox keeps its own files") for path in _own(environ))
    system = tuple(Place(os.path.realpath(path), "part of the system") for path in UNWRITABLE_ROOTS)
    steering = _distinct((*private, *system, *_steering(environ), *_programs(environ, root)))
    return Places(root, _homes(environ), private, steering)


def _homes(environ: Mapping[str, str]) -> tuple[str, ...]:
    candidates = [environ.get("HOME", "")]
    with suppress(KeyError):  # a container started with an arbitrary uid
        candidates.append(pwd.getpwuid(os.getuid()).pw_dir)
    return tuple(dict.fromkeys(os.path.realpath(path) for path in candidates if Path(path).is_absolute()))


def _own(environ: Mapping[str, str]) -> Iterator[str]:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        if Path(base := environ.get(name, "")).is_absolute():
            yield f"{base}/sage-sandbox"
    yield from map(str, runtime_folders(environ))


def _steering(environ: Mapping[str, str]) -> Iterator[Place]:
    # The defaults of these lie in dot-folders of home and in /etc, which are refused anyway.
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        if Path(base := environ.get(name, "")).is_absolute():
            yield Place(os.path.realpath(f"{base}/systemd"), "a folder of systemd units")
            yield Place(os.path.realpath(f"{base}/autostart"), "a folder of programs started at login")
    for base in environ.get("XDG_CONFIG_DIRS", "").split(":"):
        if Path(base).is_absolute():
            yield Place(os.path.realpath(f"{base}/autostart"), "a folder of programs started at login")


def _programs(environ: Mapping[str, str], project: str) -> Iterator[Place]:
    # Relative entries follow whoever's working directory and cannot be held against a path.
    for path in environ.get("PATH", "").split(":"):
        if Path(path).is_absolute():
            yield Place(os.path.realpath(path), "a folder on PATH")
    for path in _import_path(project):
        yield Place(os.path.realpath(path), "a folder this program's Python imports from")
    for path in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix):
        yield Place(os.path.realpath(path), "part of the Python that runs this program")


def _import_path(project: str) -> list[str]:
    path = list(sys.path)
    # A script in the project puts the project first (Python's own doing, without -P); the user may still grant it.
    if path and not sys.flags.safe_path and os.path.realpath(path[0]) == project:
        del path[0]
    return [entry for entry in path if Path(entry).is_absolute()]


def _distinct(places: tuple[Place, ...]) -> tuple[Place, ...]:
    first: dict[str, Place] = {}
    for place in places:
        if place.path != "/":
            first.setdefault(place.path, place)
    return tuple(first.values())
