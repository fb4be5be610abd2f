"""The foundation a zygote lays once, before it serves.

Two mount namespaces: the pantry, a tmpfs that no operation ever sees, with `wire.HOST` (the host, recursively),
`wire.ROOT` (what children without grants share), `wire.OWN_ROOT`, `wire.WORK` and `wire.LAYERS` (mount points for a
child's private copy); and the lean one, in which `wire.ROOT` is all there is. Copying and leaving the host's mounts
would be most of a child's cost, so only a child that needs something of the host starts from the pantry.
"""

from __future__ import annotations

import os

from sage_sandbox.sandbox.inside import mounts, wire
from sage_sandbox.sandbox.inside import syscalls as sc

_DEVICE = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC


def enter_zygote() -> None:
    """Leave the host's namespaces. The pid namespace begins with the next child."""
    sc.unshare(sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS)
    sc.sethostname("sandbox")


def lay_foundation(foundation: wire.Foundation, proc_fd: int) -> int:
    """Build the pantry and the shared root, and move to the lean namespace. Returns a descriptor of the pantry."""
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    host = sc.open_tree(sc.AT_FDCWD, "/", mounts.CLONE)
    # Any folder will do as a mount point: the tmpfs over it becomes the root at once, and `host` was cloned before.
    sc.mount("tmpfs", "/proc", "tmpfs", mounts.TMPFS, "mode=0755")
    os.chdir("/proc")
    mounts.become_root()
    for path in (wire.HOST, wire.ROOT, wire.OWN_ROOT, wire.WORK):
        os.mkdir(path, 0o755)
    for number in range(wire.LAYERS_MAX):
        os.makedirs(f"{wire.LAYERS}/{number}", 0o755)
        os.makedirs(f"{wire.MASKS}/{number}", 0o755)
        os.makedirs(f"{wire.SHOWN}/{number}", 0o755)
    sc.move_mount(host, wire.HOST)
    os.close(host)
    _build_shared_root(foundation)
    pantry = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    sc.unshare(sc.CLONE_NEWNS)
    os.chdir(wire.ROOT)
    mounts.become_root()
    return pantry


def _build_shared_root(foundation: wire.Foundation) -> None:
    for path in (*foundation.folders, wire.BOX, "/dev", "/proc"):
        os.makedirs(wire.ROOT + path, 0o755, exist_ok=True)
    for path, content in foundation.files:
        mounts.make_place(wire.ROOT + path, folder=False)
        with open(wire.ROOT + path, "wb") as file:
            file.write(content)
        if content.startswith(b"#!"):
            os.chmod(wire.ROOT + path, 0o755)  # noqa: S103 - a program, for everybody inside
    for source, path, folder in foundation.binds:
        mounts.bind(wire.HOST, source, wire.ROOT + path, folder, mounts.READ_ONLY)
    for name in foundation.devices:
        mounts.bind(wire.HOST, f"/dev/{name}", f"{wire.ROOT}/dev/{name}", False, _DEVICE)
    for path, target in foundation.links:
        os.makedirs(os.path.dirname(wire.ROOT + path), 0o755, exist_ok=True)
        os.symlink(target, wire.ROOT + path)
    tree = sc.open_tree(sc.AT_FDCWD, wire.ROOT, mounts.CLONE)
    sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH, mounts.READ_ONLY)
    sc.move_mount(tree, wire.ROOT)
    os.close(tree)
