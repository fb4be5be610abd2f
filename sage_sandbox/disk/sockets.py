"""Unix sockets at their places: in a folder only its user can enter, each side looking at who the other is."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from sage_sandbox.disk.files import Folder

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred, unix(7): pid, uid, gid
_BACKLOG: Final = 128


class Peer(NamedTuple):
    """A process, as it was when it connected or began to listen, and of the kernel's knowledge."""

    pid: int
    uid: int

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this user."""
        return self.uid == os.geteuid()


def peer_of(sock: socket.socket) -> Peer:
    """Who is at the other end."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)


def bind(folder: Folder, name: str) -> socket.socket:
    """Listen under a name, in the place of whatever has it. The caller holds the lock that says whose name it is."""
    with suppress(FileNotFoundError):
        folder.remove(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = _short(folder, name)
        listener.bind(path)
        Path(path).chmod(0o600)  # a umask may take away even what its owner needs
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(
    path: str | Path, *, dial: Callable[[socket.socket, str], None] = lambda sock, path: sock.connect(path)
) -> socket.socket:
    """A connection to a socket that, like its folder, is this user's alone. OSError, Untrusted where there is none.

    ``dial``: how to connect, to a path that is good for this moment only.
    """
    place = Path(path)
    with Folder.given(place.parent.parent) as above, above.below(place.parent.name) as folder:
        found = os.stat(place.name, dir_fd=folder.fd, follow_symlinks=False)
        if os.fstat(folder.fd).st_mode & 0o077 or not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{path} is not this user's alone")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            dial(sock, _short(folder, place.name))
        except BaseException:
            sock.close()
            raise
    if not peer_of(sock).is_ours:
        sock.close()
        raise PermissionError(f"another user listens at {path}")
    return sock


def _short(folder: Folder, name: str) -> str:
    """A path whose length does not depend on the folder's: a socket's has room for 107 bytes (unix(7))."""
    return f"/proc/self/fd/{folder.fd}/{name}"
