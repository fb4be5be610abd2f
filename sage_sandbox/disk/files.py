"""One way to open, read and replace a file that somebody else may have put there.

Everything below ``.sage/`` and in the user's own folders is reached from an open directory, one name at a time and
never through a link. What is read is a regular file of this user with one name, writable by nobody else, not larger
than its reader expects. Each check is made on the descriptor, after the open: before it, there is time to swap.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from sage_sandbox.errors import StateCorrupted, StateUnwritable

LINK: Final = "is a symbolic link"
NOT_REGULAR: Final = "is not a regular file"
NOT_A_FOLDER: Final = "is not a folder"
ANOTHER_USER: Final = "belongs to another user"
MORE_NAMES: Final = "has more than one name"
WRITABLE: Final = "others may write to it"

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# NONBLOCK: a FIFO or a device in a file's place must not hang us; it changes nothing for a regular file.
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TEMPORARY: Final = re.compile(r".+\.[0-9a-f]{8}\.tmp", re.DOTALL)
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
# What open() says of a link under O_NOFOLLOW, of a socket, and of a folder that is opened for writing.
_REASONS: Final = {errno.ELOOP: LINK, errno.ENXIO: NOT_REGULAR, errno.EISDIR: NOT_REGULAR}
# A file system on which a folder cannot be fsynced says so in one of these ways; there is nothing to be done about it.
_NO_FOLDER_FSYNC: Final = (errno.EINVAL, errno.ENOTSUP)


class Untrusted(StateCorrupted):
    """What stands at ``path`` is not what this program would have put there: ``reason`` says why it is not opened."""

    def __init__(self, message: str, hint: str = "", path: str = "", reason: str = "") -> None:
        Exception.__init__(self, message, hint, path, reason)
        self.message = message
        self.hint = hint
        self.path = path
        self.reason = reason


class Folder:
    """An open folder: ``fd`` is what is used, ``path`` is for messages. Closed by ``with`` or ``close()``."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def open(cls, path: str | Path, *, make: bool = False) -> Self:
        """Open a folder of the user's own; links on the way are the user's choice. ``make``: with all above it, 0700.

        Untrusted if it is somebody else's or others may write to it; OSError if it cannot be opened or made.
        """
        if not Path(path).is_absolute():
            raise ValueError(f"{path} is not absolute")
        if make:
            _make_with_parents(Path(path))
        folder = cls.given(path)
        try:
            _check_owned(os.fstat(folder.fd), folder.path)
        except Untrusted:
            folder.close()
            raise
        return folder

    @classmethod
    def given(cls, path: str | Path) -> Self:
        """Open the folder the user named, whoever's it is: nothing is checked but what lies below it."""
        return cls(str(path), os.open(path, _FOLDER))

    def below(self, *names: str, make: bool = False, mode: int = 0o700) -> Folder:
        """Open a folder below this one, name by name; ``make``: each that is missing, with ``mode`` less the umask.

        FileNotFoundError if there is none; Untrusted if one on the way is a link, no folder or another user's.
        """
        folder = Folder(self.path, os.dup(self.fd))
        for name in names:
            with folder:
                folder = folder._next(name, mode if make else None)
        return folder

    def read(self, name: str, most: int, *, shared: bool = False) -> bytes:
        """The bytes of a file, of which there may be ``most``. ``shared``: others may write to it, too."""
        fd, found = self._open_file(name, os.O_RDONLY, 0o600, shared=shared)
        try:
            # A file without end is refused before it is read, one that grows meanwhile as soon as it is too large.
            size = found.st_size
            data = _read_at_most(fd, size, most + 1) if size <= most else b""
        finally:
            os.close(fd)
        if max(size, len(data)) > most:
            raise _untrusted(self._of(name), f"is larger than {_spell_size(most)}")
        return data

    def open_file(self, name: str, flags: int, mode: int = 0o600, *, shared: bool = False) -> int:
        """Open a file that is kept open (a lock, a log); with ``O_CREAT`` it may be made."""
        return self._open_file(name, flags, mode, shared=shared)[0]

    def _open_file(self, name: str, flags: int, mode: int, *, shared: bool) -> tuple[int, os.stat_result]:
        """The descriptor, and what it was found to be."""
        if flags & os.O_TRUNC:
            raise ValueError("O_TRUNC acts before anything is checked")
        try:
            fd = os.open(_single(name), flags | _FILE, mode, dir_fd=self.fd)
        except OSError as error:
            if reason := _REASONS.get(error.errno or 0):
                raise _untrusted(self._of(name), reason) from error
            raise
        try:
            found = os.fstat(fd)
            self._check_file(name, found, shared=shared)
            if flags & os.O_CREAT and mode & ~found.st_mode:
                os.fchmod(fd, mode)  # a umask may take away even what the owner needs
        except BaseException:
            os.close(fd)
            raise
        return fd, found

    def write_new(self, name: str, data: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
        """Put a file in place, whole or not at all; the folder is not fsynced. OSError: what was there is still there.

        Not ``durable``: a power cut may leave it torn, so only for what its reader can tell to be whole and do without.

        After a failed fsync the file is given up, never synced again: the kernel may have dropped the pages it could
        not write, and report success the next time (fsyncgate, 2018).
        """
        temporary = f"{_single(name)}.{os.urandom(4).hex()}.tmp"
        fd = self.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            _write_all(fd, data, mode, durable=durable)
            self.rename(temporary, self, name)
        except BaseException:
            with suppress(OSError):
                self.remove(temporary)
            raise

    def sync(self) -> None:
        """Make durable which names this folder holds."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            if error.errno not in _NO_FOLDER_FSYNC:
                raise

    def names(self) -> list[str]:
        """Every name in it, in no order."""
        # Of a descriptor of its own: two threads that list one descriptor share its position.
        fd = os.open(".", _FOLDER, dir_fd=self.fd)
        try:
            return os.listdir(fd)  # noqa: PTH208 - a Path has no descriptor
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        """Take away one name, whatever it leads to; not a folder's."""
        os.unlink(_single(name), dir_fd=self.fd)

    def rename(self, name: str, other: Folder, new: str) -> None:
        """Move a name into ``other`` as ``new``, in place of what stands there."""
        os.rename(_single(name), _single(new), src_dir_fd=self.fd, dst_dir_fd=other.fd)

    def sweep(self, prefix: str = "") -> int:
        """Remove what writers that were killed left here, and say how many. Only whoever holds the lock may.

        ``prefix``: only of names that start so, where several processes write in one folder under locks of their own.
        """
        names = (name for name in self.names() if name.startswith(prefix) and _TEMPORARY.fullmatch(name))
        left = [name for name in names if self._is_regular(name)]
        for name in left:
            self.remove(name)
        return len(left)

    def close(self) -> None:
        """Close the descriptor; a second time does nothing."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _of(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _next(self, name: str, mode: int | None) -> Folder:
        try:
            fd = self._open_folder(name)
        except FileNotFoundError:
            if mode is None:
                raise
            self._make_folder(name, mode)
            fd = self._open_folder(name)
        if os.fstat(fd).st_uid != os.geteuid():
            os.close(fd)
            raise _untrusted(self._of(name), ANOTHER_USER)
        return Folder(self._of(name), fd)

    def _open_folder(self, name: str) -> int:
        try:
            return os.open(_single(name), _FOLDER | os.O_NOFOLLOW, dir_fd=self.fd)
        except NotADirectoryError as error:  # with O_DIRECTORY the kernel says it of a link, too
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            raise _untrusted(self._of(name), LINK if stat.S_ISLNK(found.st_mode) else NOT_A_FOLDER) from error

    def _make_folder(self, name: str, mode: int) -> None:
        with suppress(FileExistsError):  # another process was quicker; it may not have synced it yet
            os.mkdir(name, mode, dir_fd=self.fd)
            self._give_owner_access(name)
        self.sync()

    def _give_owner_access(self, name: str) -> None:
        """Undo a umask that takes away what the owner needs: without it the new folder could not be opened."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            if 0o700 & ~os.fstat(fd).st_mode:
                Path(f"/proc/self/fd/{fd}").chmod(0o700)  # fchmod refuses such a descriptor, chmod a name that is none
        finally:
            os.close(fd)

    def _check_file(self, name: str, found: os.stat_result, *, shared: bool) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise _untrusted(self._of(name), NOT_REGULAR)
        if found.st_nlink > 1:  # 0: replaced since it was opened, and whole
            raise _untrusted(self._of(name), MORE_NAMES)
        _check_owned(found, self._of(name), shared=shared)

    def _is_regular(self, name: str) -> bool:
        return stat.S_ISREG(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)


def sage_folder(project: Path, *names: str, make: bool = False) -> Folder:
    """Open ``.sage``, or a folder below it, of a project: whatever is opened there is opened from here."""
    with Folder.given(project) as folder:
        return folder.below(".sage", *names, make=make)


def unwritable(error: OSError, path: str) -> StateUnwritable:
    """Say an error of the file system as what it means to a run."""
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    hint = "`--no-state` runs without it; such a run cannot be resumed"
    return StateUnwritable(f"state cannot be written: {path}: {reason}", hint, path)


def _untrusted(path: str, reason: str) -> Untrusted:
    if reason == WRITABLE:
        return Untrusted(f"{path}: {reason}", f"chmod go-w {path}", path, reason)
    return Untrusted(f"{path} {reason}", "", path, reason)


def _check_owned(found: os.stat_result, path: str, *, shared: bool = False) -> None:
    if found.st_uid != os.geteuid():
        raise _untrusted(path, ANOTHER_USER)
    if not shared and found.st_mode & _OTHERS_WRITE:
        raise _untrusted(path, WRITABLE)


def _single(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name:
        raise ValueError(f"{name!r} is not a single name")
    return name


def _make_with_parents(path: Path) -> None:
    if path.is_dir():
        return
    _make_with_parents(path.parent)
    with Folder.given(path.parent) as above:
        above._make_folder(path.name, 0o700)  # noqa: SLF001 - a Folder's own way to make one


def _read_at_most(fd: int, expected: int, most: int) -> bytes:
    """What a regular file holds; a read that asks for more than is ``expected``, and gets that, has come to its end."""
    data = b""
    while (asked := min(max(expected, 4096) + 1, most - len(data))) and (more := os.read(fd, asked)):
        data += more
        if len(data) == expected and len(more) < asked:
            break
    return data


def _write_all(fd: int, data: bytes, mode: int, *, durable: bool) -> None:
    try:
        if mode != 0o600:
            os.fchmod(fd, mode)
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _spell_size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
