"""What a folder grant does not show: hidden names, sockets and FIFOs, found by a walk; and what takes their place."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sage_sandbox.errors import NotGranted
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import is_git_config, is_hidden

Mask = tuple[str, bytes | None]
_CORE_KEYS = ("repositoryformatversion", "bare")
_SETTLED_NS = 2_000_000_000
_EXTENSIONS = ("objectformat", "refstorage", "worktreeconfig", "partialclone", "noop", "compatobjectformat")


@frozen
class _Listing:
    """One folder as last read: valid while its modification time, change time and inode stay the same.

    ``covered`` is what a grant of the folder does not show, ``configs`` what it shows in other words.
    """

    stamp: tuple[int, int, int]
    folders: tuple[str, ...] = ()
    covered: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()


_NOTHING = _Listing((0, 0, 0))


@dataclass(slots=True)
class Masker:
    """Finds what to mask. Lives as long as its supervisor.

    Each folder's listing is kept while its mtime, ctime and inode are unchanged: a large tree costs one stat a folder
    the next time.
    """

    known: dict[str, _Listing] = field(default_factory=dict)

    def masks(self, root: str, named: frozenset[str] = frozenset()) -> tuple[Mask, ...]:
        """(path relative to ``root``, replacement or None) for everything beneath it that a folder grant leaves out.

        ``named`` are absolute paths that grants name themselves: these stay, and of a hidden folder the way to them
        does. A folder that may not be listed is left out whole: what to hide in it cannot be known. NotGranted where
        that is ``root`` itself, or where a folder cannot be looked into for another reason.
        """
        return tuple(self._walk(root, named))

    def _walk(self, root: str, named: frozenset[str]) -> Iterator[Mask]:
        # A stack, not recursion: a hostile tree may be deeper than Python's. Each entry: its path as a prefix, and
        # whether it is a hidden folder on the way to something that is named.
        stack = [("", False)]
        while stack:
            prefix, hidden = stack.pop()
            listing = self._list(f"{root}/{prefix}".rstrip("/"))
            if listing is None:
                yield self._unlisted(root, prefix, named)
                continue
            for name in os.listdir(f"{root}/{prefix}") if hidden else listing.covered:
                absolute = f"{root}/{prefix}{name}"
                if absolute in named:
                    continue
                if _leads_to(absolute, named):
                    stack.append((f"{prefix}{name}/", True))
                else:
                    yield prefix + name, None
            if hidden:
                continue
            for name in listing.configs:
                if f"{root}/{prefix}{name}" not in named:
                    yield prefix + name, git_config(Path(root, prefix, name))
            stack += [(f"{prefix}{name}/", False) for name in listing.folders]

    def _unlisted(self, root: str, prefix: str, named: frozenset[str]) -> Mask:
        folder = f"{root}/{prefix}".rstrip("/")
        if not prefix or _leads_to(folder, named):
            raise NotGranted(f"{folder} may not be listed, so what to hide in it cannot be known")
        return prefix.rstrip("/"), None

    def _list(self, folder: str) -> _Listing | None:
        """What is in it; None if that may not be read."""
        try:
            status = os.lstat(folder)
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            known = self.known.get(folder)
            if known is None or known.stamp != stamp:
                known = _read_folder(folder, stamp)
                # Coarse clocks (before Linux 6.13) give two changes one stamp: what changed just now is not kept.
                if time.time_ns() - max(stamp[:2]) >= _SETTLED_NS:
                    self.known[folder] = known
        except (FileNotFoundError, NotADirectoryError):
            return _NOTHING
        except PermissionError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise NotGranted(f"a folder in {folder[:80]}… lies deeper than a path may lead") from error
            raise NotGranted(f"{folder} cannot be searched for what to hide: {error.strerror}") from error
        return known


def _leads_to(path: str, named: frozenset[str]) -> bool:
    return any(other.startswith(path + "/") for other in named)


def _read_folder(folder: str, stamp: tuple[int, int, int]) -> _Listing:
    folders, covered, configs = [], [], []
    above = folder.split("/")
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_hidden(entry.name) or not (is_folder or entry.is_file(follow_symlinks=False) or entry.is_symlink()):
                covered.append(entry.name)
            elif is_folder:
                folders.append(entry.name)
            elif is_git_config([*above, entry.name]):
                configs.append(entry.name)
    return _Listing(stamp, tuple(folders), tuple(covered), tuple(configs))


def git_config(path: Path) -> bytes:
    """A configuration that lets git read the repository and says nothing else: format version, bareness, extensions.

    Keys and values are taken over from the real file only where they are known words (git-config(1),
    gitrepository-layout).
    """
    found = _git_settings(path)
    lines = ["[core]", *(f"\t{key} = {found[('core', key)]}" for key in _CORE_KEYS if ("core", key) in found)]
    extensions = [f"\t{key} = {found[('extensions', key)]}" for key in _EXTENSIONS if ("extensions", key) in found]
    if extensions:
        lines += ["[extensions]", *extensions]
    return ("\n".join(lines) + "\n").encode()


def _git_settings(path: Path) -> dict[tuple[str, str], str]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    with open(fd, "rb") as file:
        text = file.read(1 << 20).decode("utf-8", "replace") if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    found: dict[tuple[str, str], str] = {}
    section = ""
    for line in text.splitlines():
        if match := re.match(r"\s*\[\s*([A-Za-z.-]+)\s*\]", line):
            section = match[1].lower()
        elif match := re.match(r"\s*([A-Za-z][A-Za-z0-9-]*)\s*=\s*\"?([A-Za-z0-9_-]{1,64})\"?\s*$", line):
            found[(section, match[1].lower())] = match[2]
    return found
