"""How a child is shown what it was granted of the host: bound, layered over, hidden in part, or copied.

Every function runs in a child that has not yet given its rights away, and raises OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from sage_sandbox.sandbox.inside import mounts, wire
from sage_sandbox.sandbox.inside import syscalls as sc

if TYPE_CHECKING:
    from collections.abc import Mapping

_BENEATH = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_MAGICLINKS
_WHITEOUT = stat.S_IFCHR


def attach(step: wire.Attach, identity: tuple[int, int], idmaps: Mapping[tuple[int, int], int]) -> bool:
    """Show one granted file or folder at the path it has outside. False if what is hidden took the slow way.

    We still have the user's rights, and another operation may be writing to the same folders: from here on nothing of
    the host is reached by a path that could lead elsewhere by now.
    """
    source = _open_granted(step)
    try:
        if step.staged and not step.folder:
            _attach_copy(step, source, identity)
            return True
        attributes = mounts.READ_ONLY if step.staged or not step.writable else mounts.WRITABLE
        tree = mounts.clone(source, attributes, idmaps.get(step.owner, 0))
    finally:
        os.close(source)
    try:
        if step.direct:
            _show(step, tree)
            _cover(step, identity, tree)
            return True
        sc.move_mount(tree, f"{wire.LAYERS}/{step.layer}")
        return _attach_overlay(step, identity)
    finally:
        os.close(tree)


def _open_granted(step: wire.Attach) -> int:
    host = os.open(wire.HOST, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        source = sc.openat2(host, step.path.lstrip("/"), os.O_PATH, mounts.LOOKUP)
    finally:
        os.close(host)
    found = os.fstat(source)
    if (found.st_dev, found.st_ino) != (step.device, step.inode):
        os.close(source)
        raise OSError(errno.ESTALE, f"{step.path} is no longer what was granted")
    return source


def _attach_copy(step: wire.Attach, source: int, identity: tuple[int, int]) -> None:
    """A single file that may be written: a copy in the work folder, which the supervisor commits."""
    stage = f"{wire.WORK}/stage/{step.layer}"
    os.mkdir(stage, 0o700)
    host = os.open(wire.HOST, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    reader = sc.openat2(host, step.path.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK, mounts.LOOKUP)
    writer = os.open(f"{stage}/file", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    if not os.path.sameopenfile(source, reader):
        raise OSError(errno.ESTALE, f"{step.path} is no longer what was granted")
    while part := os.read(reader, 1 << 20):
        os.write(writer, part)
    os.fchown(writer, *identity)
    for fd in (host, reader, writer):
        os.close(fd)
    copy = os.open(f"{stage}/file", os.O_PATH | os.O_CLOEXEC)
    tree = mounts.clone(copy, mounts.WRITABLE)
    _show(step, tree)
    for fd in (copy, tree):
        os.close(fd)


def _attach_overlay(step: wire.Attach, identity: tuple[int, int]) -> bool:
    lower = f"{wire.LAYERS}/{step.layer}"
    mode = stat.S_IMODE(os.stat(lower).st_mode) & 0o777 | 0o500
    masks = _mount_masks(step, mode, identity)
    for path, content in step.masks:
        _mask(masks, path, content, identity)
    # userxattr keeps redirects and metacopy off, as root too: the upper layer stays plain files that can be checked.
    options = f"userxattr,lowerdir={masks}:{lower}"
    if step.staged:
        stage = f"{wire.WORK}/stage/{step.layer}"
        os.mkdir(stage, 0o700)
        os.mkdir(f"{stage}/work", 0o700)
        mounts.make_owned(f"{stage}/upper", mode | 0o200, identity)
        options += f",upperdir={stage}/upper,workdir={stage}/work"
    shown = f"{wire.SHOWN}/{step.layer}"
    try:
        sc.mount("overlay", shown, "overlay", mounts.TMPFS | (0 if step.staged else sc.MS_RDONLY), options)
        plain = True
    except OSError:
        # Some file systems cannot be a lower layer (overlayfs.rst). Staged writing has no other way; what is only read
        # can be shown piece by piece.
        if step.staged:
            raise
        _put_entries(step, shown)
        plain = False
    tree = sc.open_tree(sc.AT_FDCWD, shown, mounts.CLONE)
    try:
        _show(step, tree)
    finally:
        os.close(tree)
    return plain


def _put_entries(step: wire.Attach, shown: str) -> None:
    """A folder without its hidden names, entry by entry: those that hold none are bound, the others made anew."""
    replacements = dict(step.masks)
    opened = {""} | {
        "/".join(parts[:n]) for parts in (p.split("/") for p in replacements) for n in range(1, len(parts))
    }
    sc.mount("tmpfs", shown, "tmpfs", mounts.TMPFS, "mode=0755,size=1m,nr_inodes=65536")
    lower = os.open(f"{wire.LAYERS}/{step.layer}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for folder in sorted(opened):
        here = sc.openat2(lower, folder or ".", os.O_RDONLY | os.O_DIRECTORY, mounts.LOOKUP)
        for name in os.listdir(here):
            path = f"{folder}/{name}" if folder else name
            if path in replacements:
                if (content := replacements[path]) is not None:
                    mounts.write_new(f"{shown}/{path}", content)
            elif path in opened:
                os.mkdir(f"{shown}/{path}", 0o755)
            else:
                _put_entry(here, name, f"{shown}/{path}")
        os.close(here)
    os.close(lower)
    sc.mount_setattr(sc.AT_FDCWD, shown, 0, mounts.READ_ONLY)


def _put_entry(here: int, name: str, target: str) -> None:
    status = os.stat(name, dir_fd=here, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=here), target)
        return
    source = sc.openat2(here, name, os.O_PATH, mounts.LOOKUP)
    tree = mounts.clone(source, mounts.READ_ONLY)
    mounts.make_place(target, stat.S_ISDIR(status.st_mode))
    sc.move_mount(tree, target)
    for fd in (tree, source):
        os.close(fd)


def _cover(step: wire.Attach, identity: tuple[int, int], top: int) -> None:
    """In a direct bind there is no layer to hide things in: mount nothing over each, opened once, beneath ``top``."""
    if not step.masks:
        return
    masks = _mount_masks(step, 0o700, identity)
    for number, (path, content) in enumerate(step.masks):
        target = sc.openat2(top, path, os.O_PATH | os.O_NOFOLLOW, _BENEATH)
        cover = f"{masks}/{number}"
        mode = os.fstat(target).st_mode
        if stat.S_ISLNK(mode):
            # Nothing can be mounted on a link, and it shows no more than its target does by itself.
            os.close(target)
            continue
        if stat.S_ISDIR(mode):
            os.mkdir(cover, 0)
        else:
            mounts.write_new(cover, content or b"", 0 if content is None else 0o444)
        source = os.open(cover, os.O_PATH | os.O_CLOEXEC)
        tree = mounts.clone(source, mounts.READ_ONLY)
        sc.move_mount_onto(tree, target)
        for fd in (tree, source, target):
            os.close(fd)


def _mount_masks(step: wire.Attach, mode: int, identity: tuple[int, int]) -> str:
    """A tmpfs with room for every mask and the folders above it: they are not the operation's to pay for."""
    masks = f"{wire.MASKS}/{step.layer}"
    inodes = 16 + sum(path.count("/") + 1 for path, _ in step.masks)
    options = f"mode={mode:o},size=64m,nr_inodes={inodes},uid={identity[0]},gid={identity[1]}"
    sc.mount("tmpfs", masks, "tmpfs", mounts.TMPFS, options)
    return masks


def _mask(masks: str, path: str, content: bytes | None, identity: tuple[int, int]) -> None:
    """In the topmost layer: nothing (a whiteout, allowed without privileges since Linux 5.8), or a file of ours."""
    at = masks
    *folders, name = path.split("/")
    for folder in folders:
        at = f"{at}/{folder}"
        if not os.path.isdir(at):
            mounts.make_owned(at, 0o755, identity)
    if content is None:
        os.mknod(f"{at}/{name}", _WHITEOUT | 0o600, 0)
        return
    mounts.write_new(f"{at}/{name}", content)


def _show(step: wire.Attach, tree: int) -> None:
    """Put what was made ready where the operation expects it."""
    place = _open_place(step)
    try:
        sc.move_mount_onto(tree, place)
    finally:
        os.close(place)


def _open_place(step: wire.Attach) -> int:
    """A descriptor of what a grant is mounted on; made where it is missing, but only in what is ours alone."""
    ours = {os.stat(step.root).st_dev, os.stat(wire.WORK).st_dev}
    at = os.open(step.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    *folders, last = step.path.strip("/").split("/")
    try:
        for name, folder in (*((name, True) for name in folders), (last, step.folder)):
            below = _enter(at, name, folder, may_make=os.fstat(at).st_dev in ours)
            os.close(at)
            at = below
    except OSError:
        os.close(at)
        raise
    return at


def _enter(at: int, name: str, folder: bool, *, may_make: bool) -> int:
    try:
        return sc.openat2(at, name, os.O_PATH, mounts.LOOKUP)
    except FileNotFoundError:
        if not may_make:
            raise
    if folder:
        os.mkdir(name, 0o755, dir_fd=at)
    else:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=at))
    return sc.openat2(at, name, os.O_PATH, mounts.LOOKUP)
