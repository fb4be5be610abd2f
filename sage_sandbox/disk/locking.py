"""Locks between processes: flock on a file that is never removed, waited for within bounds, the holder named."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from sage_sandbox.disk.files import Folder, unwritable
from sage_sandbox.errors import Locked, StateUnwritable
from sage_sandbox.escaping import clip

POLL_S: Final = 0.03
"""How long between two attempts: well above the time that a probe holds the lock, well below what a person notices."""
OWNER_WIDTH: Final = 200
_HELD: Final = (errno.EWOULDBLOCK, errno.EACCES)  # EACCES: some network file systems say it so
_UNSUPPORTED: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Lock:
    """A lock that is held until ``release()``, the end of ``with``, or of the process and all it forked without exec.

    The file stays: were it removed, two processes could lock two files of one name.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Let the next one in; a second time does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            # Not by close alone: a child that was forked meanwhile has the same lock open.
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def acquire(
    folder: Folder,
    name: str,
    *,
    wait_s: float,
    who: str = "",
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lock:
    """Take the lock, waiting ``wait_s`` at most; ``who`` is shown to others who wait for it.

    A wait of a second or more outlasts every ``is_held`` of others. Locked if somebody keeps it; StateUnwritable if the
    file cannot be made or its file system has no locks; Untrusted if it is not a lock file of ours.
    """
    path = str(Path(folder.path, name))
    until = clock() + wait_s
    try:
        while (lock := _attempt(folder, name, path, who)) is None:
            left = until - clock()
            if left <= 0:
                raise _locked(folder, name)
            sleep(min(POLL_S, left))
    except OSError as error:
        raise unwritable(error, path) from error
    return lock


def is_held(folder: Folder, name: str) -> bool:
    """Say whether some process holds the lock just now. Nothing is written, and nobody is kept waiting."""
    try:
        fd = folder.open_file(name, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
    except OSError as error:
        if error.errno in _HELD:
            return True
        raise _without_locks(error, str(Path(folder.path, name))) from error
    finally:
        os.close(fd)
    return False


def _attempt(folder: Folder, name: str, path: str, who: str) -> Lock | None:
    from filelock import lock_descriptor  # a command that takes no lock does not wait for its import

    fd = folder.open_file(name, os.O_RDWR | os.O_CREAT)
    lock = Lock(fd)
    try:
        if lock_descriptor(fd, blocking=False) and _is_still(folder, name, fd):
            _sign(fd, who)
            return lock
    except OSError as error:
        lock.release()
        raise _without_locks(error, path) from error
    except BaseException:
        lock.release()
        raise
    lock.release()
    return None


def _is_still(folder: Folder, name: str, fd: int) -> bool:
    """Whether the name leads to the file that was locked: somebody may have removed it between open and lock."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=folder.fd, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _sign(fd: int, who: str) -> None:
    text = f"pid {os.getpid()} since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    data = f"{who}, {text}\n" if who else f"{text}\n"
    with suppress(OSError):  # it is for people only: a full disk does not keep the lock from being held
        os.ftruncate(fd, os.pwrite(fd, data.encode("utf-8", "replace"), 0))


def _locked(folder: Folder, name: str) -> Locked:
    owner = ""
    with suppress(OSError):
        owner = _owner(folder, name)
    message = f"another process runs this ({owner})" if owner else "another process runs this"
    return Locked(message, "wait for it, or end it", owner)


def _owner(folder: Folder, name: str) -> str:
    """What the holder says of itself. It is shown, never acted on."""
    fd = folder.open_file(name, os.O_RDONLY)
    try:
        said = os.pread(fd, 4 * OWNER_WIDTH, 0)
    finally:
        os.close(fd)
    return clip(said.decode("utf-8", "replace").partition("\n")[0], OWNER_WIDTH)


def _without_locks(error: OSError, path: str) -> OSError | StateUnwritable:
    """The error as it is, unless it says that this file system has no locks."""
    if error.errno not in _UNSUPPORTED:
        return error
    reason = os.strerror(error.errno).lower()
    message = f"state cannot be written: the file system of {path} has no locks ({reason})"
    return StateUnwritable(message, "use a folder on a local disk, or `--no-state`", path)
