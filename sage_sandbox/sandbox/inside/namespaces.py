"""Namespaces and mounts: the foundation a zygote lays once, and the view of the world each child gets.

Two mount namespaces: the pantry, a tmpfs that no operation ever sees, with `wire.HOST` (the host, recursively),
`wire.ROOT` (what children without grants share), `wire.OWN_ROOT`, `wire.WORK` and `wire.LAYERS` (mount points for a
child's private copy); and the lean one, in which `wire.ROOT` is all there is. Copying and leaving the host's mounts
would be most of a child's cost, so only a child that needs something of the host starts from the pantry.

Every function runs in the zygote or in a child that has not yet given its rights away; each raises OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from _socket import AF_INET, SOCK_DGRAM, SOCK_STREAM, socket
from fcntl import ioctl
from struct import pack
from typing import TYPE_CHECKING

from sage_sandbox.sandbox.inside import syscalls as sc
from sage_sandbox.sandbox.inside import wire

if TYPE_CHECKING:
    from collections.abc import Mapping

READ_ONLY = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
WRITABLE = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
_CLONE = sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE
_WHOLE = sc.AT_EMPTY_PATH | sc.AT_RECURSIVE
_LOOKUP = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_MAGICLINKS
_BENEATH = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_MAGICLINKS
_TMPFS = sc.MS_NOSUID | sc.MS_NODEV
_WHITEOUT = stat.S_IFCHR
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_BACKLOG = 128


# In the zygote, before it serves.


def enter_zygote() -> None:
    """Leave the host's namespaces. The pid namespace begins with the next child."""
    sc.unshare(sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS)
    sc.sethostname("sandbox")


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


def lay_foundation(foundation: wire.Foundation, proc_fd: int) -> int:
    """Build the pantry and the shared root, and move to the lean namespace. Returns a descriptor of the pantry."""
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    host = sc.open_tree(sc.AT_FDCWD, "/", _CLONE)
    # Any folder will do as a mount point: the tmpfs over it becomes the root at once, and `host` was cloned before.
    sc.mount("tmpfs", "/proc", "tmpfs", _TMPFS, "mode=0755")
    os.chdir("/proc")
    _become_root()
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
    _become_root()
    return pantry


def _build_shared_root(foundation: wire.Foundation) -> None:
    for path in (*foundation.folders, wire.BOX, "/dev", "/proc"):
        os.makedirs(wire.ROOT + path, 0o755, exist_ok=True)
    for path, content in foundation.files:
        _make_place(wire.ROOT + path, folder=False)
        with open(wire.ROOT + path, "wb") as file:
            file.write(content)
        if content.startswith(b"#!"):
            os.chmod(wire.ROOT + path, 0o755)  # noqa: S103 - a program, for everybody inside
    for source, path, folder in foundation.binds:
        _bind(wire.HOST, source, wire.ROOT + path, folder, READ_ONLY)
    for name in foundation.devices:
        _bind(wire.HOST, f"/dev/{name}", f"{wire.ROOT}/dev/{name}", False, sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC)
    for path, target in foundation.links:
        os.makedirs(os.path.dirname(wire.ROOT + path), 0o755, exist_ok=True)
        os.symlink(target, wire.ROOT + path)
    tree = sc.open_tree(sc.AT_FDCWD, wire.ROOT, _CLONE)
    sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH, READ_ONLY)
    sc.move_mount(tree, wire.ROOT)
    os.close(tree)


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
    sc.mount("proc", "/proc", "proc", _TMPFS | sc.MS_NOEXEC)
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    try:
        write_maps(proc, str(holder), *owner, outside=outside)
        return os.open(f"{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    finally:
        os.close(proc)
        sc.umount2("/proc", sc.MNT_DETACH)


# In a child, on its way to confinement.


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
    sc.mount("tmpfs", step.target, "tmpfs", _TMPFS, options)
    if step.box:
        os.mkdir(f"{step.target}/stage", 0o700)
        _make_owned(f"{step.target}/{step.box}", 0o700, (step.uid, step.gid))
    for name in ("tmp", "out"):
        _make_owned(os.path.join(step.target, step.box, name), 0o700, (step.uid, step.gid))


def build_own_root(step: wire.OwnRoot) -> None:
    """A root in which mount points for grants can be made, with all that the shared root has."""
    sc.mount("tmpfs", wire.OWN_ROOT, "tmpfs", _TMPFS, "mode=0755,size=1m,nr_inodes=65536")
    for path in (wire.BOX, "/proc", wire.TMP):
        os.makedirs(wire.OWN_ROOT + path, 0o755)
    for path in step.mounts:
        _bind(wire.ROOT, path, wire.OWN_ROOT + path, True, sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID)
    for path, target in step.links:
        os.symlink(target, wire.OWN_ROOT + path)


def place_box(step: wire.Place) -> None:
    """Show the operation its work folder."""
    _bind(wire.WORK, "/box", step.root + wire.BOX, True, WRITABLE)
    _bind(wire.WORK, "/box/tmp", step.root + wire.TMP, True, WRITABLE)


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
        tree = _clone(source, READ_ONLY if step.staged or not step.writable else WRITABLE, idmaps.get(step.owner, 0))
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
        return sc.openat2(at, name, os.O_PATH, _LOOKUP)
    except FileNotFoundError:
        if not may_make:
            raise
    if folder:
        os.mkdir(name, 0o755, dir_fd=at)
    else:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=at))
    return sc.openat2(at, name, os.O_PATH, _LOOKUP)


def _open_granted(step: wire.Attach) -> int:
    host = os.open(wire.HOST, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        source = sc.openat2(host, step.path.lstrip("/"), os.O_PATH, _LOOKUP)
    finally:
        os.close(host)
    found = os.fstat(source)
    if (found.st_dev, found.st_ino) != (step.device, step.inode):
        os.close(source)
        raise OSError(errno.ESTALE, f"{step.path} is no longer what was granted")
    return source


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
        _make_owned(f"{stage}/upper", mode | 0o200, identity)
        options += f",upperdir={stage}/upper,workdir={stage}/work"
    shown = f"{wire.SHOWN}/{step.layer}"
    try:
        sc.mount("overlay", shown, "overlay", _TMPFS | (0 if step.staged else sc.MS_RDONLY), options)
        plain = True
    except OSError:
        # Some file systems cannot be a lower layer (overlayfs.rst). Staged writing has no other way; what is only read
        # can be shown piece by piece.
        if step.staged:
            raise
        _put_entries(step, shown)
        plain = False
    tree = sc.open_tree(sc.AT_FDCWD, shown, _CLONE)
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
    sc.mount("tmpfs", shown, "tmpfs", _TMPFS, "mode=0755,size=1m,nr_inodes=65536")
    lower = os.open(f"{wire.LAYERS}/{step.layer}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for folder in sorted(opened):
        here = sc.openat2(lower, folder or ".", os.O_RDONLY | os.O_DIRECTORY, _LOOKUP)
        for name in os.listdir(here):
            path = f"{folder}/{name}" if folder else name
            if path in replacements:
                if (content := replacements[path]) is not None:
                    _write_new(f"{shown}/{path}", content)
            elif path in opened:
                os.mkdir(f"{shown}/{path}", 0o755)
            else:
                _put_entry(here, name, f"{shown}/{path}")
        os.close(here)
    os.close(lower)
    sc.mount_setattr(sc.AT_FDCWD, shown, 0, READ_ONLY)


def _put_entry(here: int, name: str, target: str) -> None:
    status = os.stat(name, dir_fd=here, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=here), target)
        return
    source = sc.openat2(here, name, os.O_PATH, _LOOKUP)
    tree = _clone(source, READ_ONLY)
    _make_place(target, stat.S_ISDIR(status.st_mode))
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
            _write_new(cover, content or b"", 0 if content is None else 0o444)
        source = os.open(cover, os.O_PATH | os.O_CLOEXEC)
        tree = _clone(source, READ_ONLY)
        sc.move_mount_onto(tree, target)
        for fd in (tree, source, target):
            os.close(fd)


def _mount_masks(step: wire.Attach, mode: int, identity: tuple[int, int]) -> str:
    """A tmpfs with room for every mask and the folders above it: they are not the operation's to pay for."""
    masks = f"{wire.MASKS}/{step.layer}"
    inodes = 16 + sum(path.count("/") + 1 for path, _ in step.masks)
    options = f"mode={mode:o},size=64m,nr_inodes={inodes},uid={identity[0]},gid={identity[1]}"
    sc.mount("tmpfs", masks, "tmpfs", _TMPFS, options)
    return masks


def _mask(masks: str, path: str, content: bytes | None, identity: tuple[int, int]) -> None:
    """In the topmost layer: nothing (a whiteout, allowed without privileges since Linux 5.8), or a file of ours."""
    at = masks
    *folders, name = path.split("/")
    for folder in folders:
        at = f"{at}/{folder}"
        if not os.path.isdir(at):
            _make_owned(at, 0o755, identity)
    if content is None:
        os.mknod(f"{at}/{name}", _WHITEOUT | 0o600, 0)
        return
    _write_new(f"{at}/{name}", content)


def _attach_copy(step: wire.Attach, source: int, identity: tuple[int, int]) -> None:
    """A single file that may be written: a copy in the work folder, which the supervisor commits."""
    stage = f"{wire.WORK}/stage/{step.layer}"
    os.mkdir(stage, 0o700)
    host = os.open(wire.HOST, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    reader = sc.openat2(host, step.path.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK, _LOOKUP)
    writer = os.open(f"{stage}/file", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    if not os.path.sameopenfile(source, reader):
        raise OSError(errno.ESTALE, f"{step.path} is no longer what was granted")
    while part := os.read(reader, 1 << 20):
        os.write(writer, part)
    os.fchown(writer, *identity)
    for fd in (host, reader, writer):
        os.close(fd)
    copy = os.open(f"{stage}/file", os.O_PATH | os.O_CLOEXEC)
    tree = _clone(copy, WRITABLE)
    _show(step, tree)
    for fd in (copy, tree):
        os.close(fd)


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
        _become_root()
    foreign = set(os.listdir("/")) - set(step.entries)
    if foreign:
        raise OSError(errno.EBUSY, f"the host is still there: {min(foreign)}")
    # Not before this is the root, where a link in a granted folder could lead out; and not after it is read-only.
    os.makedirs(step.cwd, 0o755, exist_ok=True)
    if step.root:
        sc.mount_setattr(sc.AT_FDCWD, "/", 0, READ_ONLY)
    os.chdir(step.cwd)


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


_NO_SETUID_FIXUP = 1 << 2


def _become_root() -> None:
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")


def _clone(source: int, attributes: int, idmap: int = 0) -> int:
    tree = sc.open_tree(source, "", sc.AT_EMPTY_PATH | _CLONE)
    try:
        sc.mount_setattr(tree, "", _WHOLE, attributes | (sc.MOUNT_ATTR_IDMAP if idmap else 0), idmap)
    except OSError:
        os.close(tree)
        raise
    return tree


def _bind(base: str, path: str, target: str, folder: bool, attributes: int) -> None:
    """Show ``base + path`` at ``target``. The base is opened anew: a mount of another namespace cannot be cloned."""
    base_fd = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    source = sc.openat2(base_fd, path.lstrip("/"), os.O_PATH, _LOOKUP)
    tree = _clone(source, attributes)
    _make_place(target, folder)
    sc.move_mount(tree, target)
    for fd in (tree, source, base_fd):
        os.close(fd)


def _make_place(path: str, folder: bool) -> None:
    """Something to mount on."""
    if os.path.lexists(path):
        return
    os.makedirs(path if folder else os.path.dirname(path), 0o755, exist_ok=True)
    if not folder:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _write_new(path: str, content: bytes, mode: int = 0o444) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    os.write(fd, content)
    os.close(fd)


def _make_owned(path: str, mode: int, identity: tuple[int, int]) -> None:
    os.mkdir(path, mode)
    os.chown(path, *identity)
    os.chmod(path, mode)
