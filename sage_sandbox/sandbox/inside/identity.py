"""Who a process is, and whose the files it sees are: user namespaces and their maps (user_namespaces(7)).

Every function raises OSError.
"""

from __future__ import annotations

import errno
import os

from sage_sandbox.sandbox.inside import mounts, wire
from sage_sandbox.sandbox.inside import syscalls as sc

_NO_SETUID_FIXUP = 1 << 2


def write_maps(proc_fd: int, process: str, uid: int, gid: int, outside: tuple[int, int] | None = None) -> None:
    """One user and group, and no setgroups(2) (user_namespaces(7)): each itself, unless ``outside`` says who."""
    outer_uid, outer_gid = outside or (uid, gid)
    maps = (("setgroups", "deny"), ("uid_map", f"{uid} {outer_uid} 1"), ("gid_map", f"{gid} {outer_gid} 1"))
    for name, text in maps:
        fd = os.open(f"{process}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def make_idmap(owner: tuple[int, int], uid: int, gid: int) -> int:
    """A user namespace that shows ``owner``'s files as those of ``uid`` and ``gid`` in a mount (mount_setattr(2))."""
    ready, go = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    holder = os.fork()
    if not holder:
        # We exist to hold a user namespace until our parent has opened it; nothing is imported, nothing returns.
        try:
            os.close(go[1])
            sc.unshare(sc.CLONE_NEWUSER)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    os.close(go[0])
    try:
        if not os.read(ready[0], 1):
            raise OSError(errno.EPERM, "unshare: no user namespace for idmapped mounts")
        return _mapped_namespace(holder, owner, (uid, gid))
    finally:
        os.close(ready[0])
        os.close(go[1])
        os.waitpid(holder, 0)


def _mapped_namespace(holder: int, owner: tuple[int, int], outside: tuple[int, int]) -> int:
    os.makedirs("/proc", exist_ok=True)
    sc.mount("proc", "/proc", "proc", mounts.TMPFS | sc.MS_NOEXEC)
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    try:
        write_maps(proc, str(holder), *owner, outside=outside)
        return os.open(f"{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    finally:
        os.close(proc)
        sc.umount2("/proc", sc.MNT_DETACH)


def become(step: wire.Identity, proc_fd: int) -> None:
    """Drop to the operation's user, in a user namespace of its own that owns no mount and no network."""
    if step.switch:
        os.setgroups([])
        sc.prctl(sc.PR_SET_SECUREBITS, _NO_SETUID_FIXUP)
        os.setresgid(step.gid, step.gid, step.gid)
        os.setresuid(step.uid, step.uid, step.uid)
        # A changed uid makes a process undumpable, and its map files root's (proc(5)); undone until they are written.
        sc.set_dumpable(True)
    sc.unshare(sc.CLONE_NEWUSER)
    write_maps(proc_fd, "self", step.uid, step.gid)
