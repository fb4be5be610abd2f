"""The identity of what an operation can run and load besides what it was granted: interpreter, programs, libraries.

Reading all of them would cost more than most operations. What is looked at is what every installation changes: the
databases of package managers, the folders that programs and libraries lie in, the settings shown from /etc, the
interpreter and its library. A file far inside /usr that is changed in place by hand is not noticed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from sage_sandbox.sandbox import inside
from sage_sandbox.sandbox.inside.programs import SEARCHED
from sage_sandbox.sandbox.system import ETC, SYSTEM_FOLDERS

PACKAGE_DATABASES: Final = (
    "/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite", "/var/lib/rpm/Packages", "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/Packages.db", "/lib/apk/db/installed", "/var/lib/pacman/local", "/run/current-system",
)  # fmt: skip
"""dpkg(1), rpm(8), apk(8), pacman(8), NixOS."""
DEEP: Final = ("/usr", "/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/local", "/usr/local/lib")
"""Of these the folders in them count, too."""

Found = tuple[str, tuple[int, ...] | None]
"""A path, and what stat says of where it leads: device, inode, size, mtime and ctime in ns; None: there is nothing."""


def system() -> list[object]:
    """What operations see of the machine and of its software, as plain data."""
    kernel = os.uname()
    return [
        [kernel.sysname, kernel.release, kernel.machine, len(os.sched_getaffinity(0))],
        [sys.implementation.name, sys.version, sys.base_prefix],
        [_of(path) for path in (*PACKAGE_DATABASES, *(f"/etc/{name}" for name in ETC))],
        [_of(path) for path in _folders()],
        [_of(path) for path in _interpreter()],
        [_of(str(path)) for path in sorted(Path(inside.__file__).parent.glob("*.py"))],
    ]


def program(name: str, project: str) -> list[object]:
    """Which file a command's first word is in the sandbox, by each place that it could be at, as plain data."""
    if "/" in name:
        places: Iterable[str] = (str(Path(project, name)),)
    else:
        places = (f"{folder}/{name}" for folder in SEARCHED.split(":"))
    return [[os.path.realpath(place), _of(place)] for place in places]


def _folders() -> Iterator[str]:
    yield from SEARCHED.split(":")
    for name in SYSTEM_FOLDERS:
        yield f"/{name}"
    for path in DEEP:
        yield path
        yield from _inner(path)


def _interpreter() -> Iterator[str]:
    library = str(Path(os.path.realpath(os.__file__)).parent)
    yield from (os.path.realpath(sys.executable), sys.base_prefix, f"{sys.base_prefix}/lib", library)
    yield from _inner(library)


def _inner(path: str) -> list[str]:
    """The folders in a folder."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _of(path: str) -> Found:
    try:
        found = os.stat(path)
    except OSError:
        return path, None
    return path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
