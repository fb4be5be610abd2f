"""What every part of the foundation and of a child's view is mounted with.

Everything here runs in the zygote or in a child that has not yet given its rights away, and raises OSError.
"""

from __future__ import annotations

import os

from sage_sandbox.sandbox.inside import syscalls as sc

READ_ONLY = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
WRITABLE = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
TMPFS = sc.MS_NOSUID | sc.MS_NODEV
CLONE = sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE
LOOKUP = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_MAGICLINKS
_WHOLE = sc.AT_EMPTY_PATH | sc.AT_RECURSIVE


def become_root() -> None:
    """Make the working directory the root, and let go of what was."""
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")


def clone(source: int, attributes: int, idmap: int = 0) -> int:
    """A copy of the mounts at a descriptor, with all its mounts given ``attributes``; not attached anywhere yet."""
    tree = sc.open_tree(source, "", sc.AT_EMPTY_PATH | CLONE)
    try:
        sc.mount_setattr(tree, "", _WHOLE, attributes | (sc.MOUNT_ATTR_IDMAP if idmap else 0), idmap)
    except OSError:
        os.close(tree)
        raise
    return tree


def bind(base: str, path: str, target: str, folder: bool, attributes: int) -> None:
    """Show ``base + path`` at ``target``. The base is opened anew: a mount of another namespace cannot be cloned."""
    base_fd = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    source = sc.openat2(base_fd, path.lstrip("/"), os.O_PATH, LOOKUP)
    tree = clone(source, attributes)
    make_place(target, folder)
    sc.move_mount(tree, target)
    for fd in (tree, source, base_fd):
        os.close(fd)


def make_place(path: str, folder: bool) -> None:
    """Something to mount on."""
    if os.path.lexists(path):
        return
    os.makedirs(path if folder else os.path.dirname(path), 0o755, exist_ok=True)
    if not folder:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def write_new(path: str, content: bytes, mode: int = 0o444) -> None:
    """A file that was not there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    os.write(fd, content)
    os.close(fd)


def make_owned(path: str, mode: int, identity: tuple[int, int]) -> None:
    """A folder that was not there, of this user and group; ``mode`` whatever the umask is."""
    os.mkdir(path, mode)
    os.chown(path, *identity)
    os.chmod(path, mode)
