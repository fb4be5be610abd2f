"""The view of the world that each child gets, on its way to confinement.

Every function runs in a child that has not yet given its rights away, and raises OSError.
"""

from __future__ import annotations

import errno
import os
from _socket import AF_INET, SOCK_DGRAM, SOCK_STREAM, socket
from fcntl import ioctl
from struct import pack

from sage_sandbox.sandbox.inside import mounts, wire
from sage_sandbox.sandbox.inside import syscalls as sc

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_BACKLOG = 128


def own_namespaces(step: wire.Namespaces, pantry: int) -> None:
    """A session of its own (``kill(0)`` crosses pid namespaces), its own mounts, perhaps its own loopback."""
    os.setsid()
    if step.pantry:
        sc.setns(pantry, sc.CLONE_NEWNS)
    sc.unshare(sc.CLONE_NEWNS | (sc.CLONE_NEWNET if step.network else 0))
    if step.network:
        with_socket = socket(AF_INET, SOCK_DGRAM, 0)
        try:
            ioctl(with_socket.fileno(), _SIOCSIFFLAGS, pack("16sh22x", b"lo", _IFF_UP))
        finally:
            with_socket.close()


def listen(step: wire.Listen) -> socket:
    """The socket at the one port of our loopback behind which somebody else answers."""
    listener = socket(AF_INET, SOCK_STREAM, 0)
    listener.bind(("127.0.0.1", step.port))
    listener.listen(_BACKLOG)
    return listener


def mount_work(step: wire.Work) -> None:
    """The tmpfs that holds everything the operation may write; it counts against its disk limit."""
    options = f"mode=0700,size={step.size},nr_inodes={step.inodes},uid={step.uid},gid={step.gid}"
    sc.mount("tmpfs", step.target, "tmpfs", mounts.TMPFS, options)
    if step.box:
        os.mkdir(f"{step.target}/stage", 0o700)
        mounts.make_owned(f"{step.target}/{step.box}", 0o700, (step.uid, step.gid))
    for name in ("tmp", "out"):
        mounts.make_owned(os.path.join(step.target, step.box, name), 0o700, (step.uid, step.gid))


def build_own_root(step: wire.OwnRoot) -> None:
    """A root in which mount points for grants can be made, with all that the shared root has."""
    sc.mount("tmpfs", wire.OWN_ROOT, "tmpfs", mounts.TMPFS, "mode=0755,size=1m,nr_inodes=65536")
    for path in (wire.BOX, "/proc", wire.TMP):
        os.makedirs(wire.OWN_ROOT + path, 0o755)
    for path in step.mounts:
        mounts.bind(wire.ROOT, path, wire.OWN_ROOT + path, True, sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID)
    for path, target in step.links:
        os.symlink(target, wire.OWN_ROOT + path)


def place_box(step: wire.Place) -> None:
    """Show the operation its work folder."""
    mounts.bind(wire.WORK, "/box", step.root + wire.BOX, True, mounts.WRITABLE)
    mounts.bind(wire.WORK, "/box/tmp", step.root + wire.TMP, True, mounts.WRITABLE)


def mount_proc(step: wire.Proc) -> bool:
    """A /proc of this pid namespace, processes only; False where the host masks parts of its own and so forbids it."""
    flags = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC | sc.MS_RDONLY
    try:
        sc.mount("proc", step.root + "/proc", "proc", flags, "subset=pid,hidepid=ptraceable")
    except PermissionError:
        return False
    return True


def pivot(step: wire.Pivot) -> None:
    """Make the new root the root, let go of everything else, and look that it is gone."""
    if step.root:
        os.chdir(step.root)
        mounts.become_root()
    foreign = set(os.listdir("/")) - set(step.entries)
    if foreign:
        raise OSError(errno.EBUSY, f"the host is still there: {min(foreign)}")
    # Not before this is the root, where a link in a granted folder could lead out; and not after it is read-only.
    os.makedirs(step.cwd, 0o755, exist_ok=True)
    if step.root:
        sc.mount_setattr(sc.AT_FDCWD, "/", 0, mounts.READ_ONLY)
    os.chdir(step.cwd)
