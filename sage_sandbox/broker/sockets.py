"""The broker's socket at its place: in a folder only its user can enter, each side looking at who the other is."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from sage_sandbox.disk.files import Folder

PROTOCOL: Final = 1
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred, unix(7): pid, uid, gid
_BACKLOG: Final = 128


def socket_name(project: str) -> str:
    """The name of a project's broker (``project`` is its real path): short, and another one for other code of ours."""
    parts = (str(PROTOCOL), str(Path(__file__).resolve().parent), project)
    return "broker-" + hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def bind(folder: Folder, name: str) -> socket.socket:
    """Listen under a name, in the place of whatever has it. The caller holds the lock of that name."""
    with suppress(FileNotFoundError):
        folder.remove(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = f"{_by_descriptor(folder)}/{name}"
        listener.bind(path)
        Path(path).chmod(0o600)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: str) -> socket.socket:
    """A connection to a socket that, like its folder, is this user's alone. OSError, Untrusted where there is none."""
    where = Path(path)
    with Folder.given(where.parent.parent) as above, above.below(where.parent.name) as folder:
        found = os.stat(where.name, dir_fd=folder.fd, follow_symlinks=False)
        if os.fstat(folder.fd).st_mode & 0o077 or not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{path} is not this user's alone")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(f"{_by_descriptor(folder)}/{where.name}")
        except BaseException:
            sock.close()
            raise
    if not is_ours(sock):
        sock.close()
        raise PermissionError(f"another user listens at {path}")
    return sock


def is_ours(sock: socket.socket) -> bool:
    """Whether the other side is a process of this user, by the kernel's knowledge."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(data)[1] == os.geteuid())


def _by_descriptor(folder: Folder) -> str:
    """A path of a few bytes, whatever the folder's: a socket's has room for 107 (unix(7))."""
    return f"/proc/self/fd/{folder.fd}"
