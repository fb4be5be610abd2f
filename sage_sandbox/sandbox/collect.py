"""Files that an operation left, taken over after its whole process tree is dead.

Everything is reached from a descriptor of the work folder that was opened before user code ran, without following any
link or leaving its file system. What cannot be taken over as a plain file is named, and nothing of the lot is kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from sage_sandbox.errors import SageError
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Artifact
from sage_sandbox.policy import (
    ARTIFACT_DEPTH_MAX,
    ARTIFACT_FILES_MAX,
    ARTIFACTS_MAX,
    format_size,
    is_hidden,
    is_protected,
)
from sage_sandbox.sandbox.inside import syscalls as sc
from sage_sandbox.sandbox.steps import Stage

_BENEATH = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_MAGICLINKS | sc.RESOLVE_NO_XDEV
_OPAQUE = "user.overlay.opaque"
_NAME_MAX = 255
_PAGE = 4096


class Uncollectable(SageError):
    """What the operation left is not what it may leave; the message names the file and why."""


@frozen
class Found:
    """One entry of a folder that an operation wrote: its path as components, and what lstat(2) said of it."""

    parts: tuple[str, ...]
    status: os.stat_result

    @property
    def path(self) -> str:
        """The components as a relative path."""
        return "/".join(self.parts)


def find_artifacts(work_fd: int, box: str) -> list[Found]:
    """The files in ``$SAGE_OUT``; Uncollectable if there is one that will not be taken over."""
    with _opened(work_fd, f"{box}/out", os.O_RDONLY | os.O_DIRECTORY) as source:
        files = [entry for entry in _walk(source) if not stat.S_ISDIR(entry.status.st_mode)]
    _check_artifacts(files)
    return files


def take_artifacts(work_fd: int, box: str, files: list[Found], destination: str) -> tuple[Artifact, ...]:
    """Copy what `find_artifacts` found into a new folder ``destination.tmp``, whole and durable or not at all.

    Whoever settles the operation renames it, once it is known for good that these are its artifacts.
    """
    if not files:
        return ()
    with _opened(work_fd, f"{box}/out", os.O_RDONLY | os.O_DIRECTORY) as source:
        folder, name = os.path.split(destination)
        with _made_folder(folder) as parent:
            return _take_over(source, files, parent, f"{name}.tmp")


def _take_over(source: int, files: list[Found], parent: int, name: str) -> tuple[Artifact, ...]:
    """Copy everything into a new folder, in the place of what an attempt before left."""
    shutil.rmtree(name, ignore_errors=True, dir_fd=parent)
    os.mkdir(name, 0o700, dir_fd=parent)
    try:
        with _opened(parent, name, os.O_RDONLY | os.O_DIRECTORY) as target:
            artifacts = tuple(_copy_artifact(source, entry, target) for entry in files)
            _sync_folders(target, {entry.parts[:depth] for entry in files for depth in range(len(entry.parts))})
    except BaseException:
        shutil.rmtree(name, ignore_errors=True, dir_fd=parent)
        raise
    return artifacts


def _sync_folders(top: int, folders: set[tuple[str, ...]]) -> None:
    for parts in folders:
        with _opened(top, "/".join(parts) or ".", os.O_RDONLY | os.O_DIRECTORY) as folder:
            os.fsync(folder)


@contextmanager
def _made_folder(path: str) -> Iterator[int]:
    """A folder, made with all above it where they are missing; a link anywhere on the way is an OSError (ELOOP).

    A repository may bring a ``.sage`` with links in it: a name is never followed to somewhere else.
    """
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in path.strip("/").split("/"):
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=fd)
            below = sc.openat2(fd, name, os.O_PATH | os.O_DIRECTORY, sc.RESOLVE_NO_SYMLINKS)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _check_artifacts(files: list[Found]) -> None:
    if len(files) > ARTIFACT_FILES_MAX:
        raise Uncollectable(f"artifacts: more than {ARTIFACT_FILES_MAX:,} files")
    for entry in files:
        if not stat.S_ISREG(entry.status.st_mode):
            raise Uncollectable(f"artifact {entry.path!r} is no regular file")
        if entry.status.st_nlink != 1:
            raise Uncollectable(f"artifact {entry.path!r} has more than one link")
        if entry.status.st_blocks * 512 + _PAGE < entry.status.st_size:
            raise Uncollectable(f"artifact {entry.path!r} is sparse")
    if sum(entry.status.st_size for entry in files) > ARTIFACTS_MAX:
        raise Uncollectable(f"artifacts: more than {format_size(ARTIFACTS_MAX)}")


def _copy_artifact(source: int, entry: Found, target: int) -> Artifact:
    digest = hashlib.sha256()
    # One name at a time, each from a descriptor: others may write here while we do.
    with _opened(source, entry.path, os.O_RDONLY | os.O_NONBLOCK) as reader, ExitStack() as folders:
        parent = target
        for name in entry.parts[:-1]:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            parent = folders.enter_context(_opened(parent, name, os.O_PATH | os.O_DIRECTORY))
        size = _copy(reader, entry.parts[-1], entry.status.st_size, digest.update, dir_fd=parent)
    return Artifact(entry.path, size, digest.hexdigest())


def plan_commit(
    work_fd: int, stages: tuple[Stage, ...], named: frozenset[str], unprotected: tuple[str, ...], most: int
) -> list[Change]:
    """What carrying out the writes to ``write:`` grants comes to, before the first file is touched.

    ``named`` are the granted paths, ``most`` the bytes there may be in all (sparse files hold fewer than they say).
    A protected name, a hidden one that exists outside, a link or a special file refuse the lot (Uncollectable).
    """
    changes = [change for stage in stages for change in _plan(work_fd, stage, named, unprotected)]
    if sum(change.size for change in changes) > most:
        raise Uncollectable(f"wrote files of more than {format_size(most)} in all")
    return changes


def commit(work_fd: int, changes: list[Change]) -> tuple[str, ...]:
    """Carry the changes out, file by file; the absolute paths of the files."""
    for change in changes:
        change.carry_out(work_fd)
    return tuple(change.path for change in changes if not change.folder)


@frozen
class Change:
    """One thing to do outside: write the staged file ``source`` to ``path`` beneath ``root``, or remove it (None)."""

    root: str
    relative: str
    source: str | None
    size: int = 0
    folder: bool = False

    @property
    def path(self) -> str:
        """Where it happens, absolute."""
        return os.path.join(self.root, self.relative) if self.relative else self.root

    def carry_out(self, work_fd: int) -> None:
        """Do it; the target's folder is opened without following links, so nothing outside the grant is reached."""
        top, relative = (self.root, self.relative) if self.relative else os.path.split(self.root)
        folder, name = os.path.split(relative)
        with _opened(sc.AT_FDCWD, top, os.O_PATH | os.O_DIRECTORY, sc.RESOLVE_NO_SYMLINKS) as base:
            owner = os.fstat(base)
            with _opened(base, folder or ".", os.O_PATH | os.O_DIRECTORY) as parent:
                if self.folder:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=parent)
                        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)
                elif self.source is None:
                    _remove(parent, name)
                else:
                    self._replace(work_fd, parent, name, (owner.st_uid, owner.st_gid))

    def _replace(self, work_fd: int, parent: int, name: str, owner: tuple[int, int]) -> None:
        assert self.source is not None
        temporary = f".{name[:200]}.sage-{os.getpid()}"
        with _opened(work_fd, self.source, os.O_RDONLY | os.O_NONBLOCK) as reader:
            try:
                _copy(reader, temporary, self.size, mode=_mode_outside(parent, name), dir_fd=parent, owner=owner)
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=parent)
                raise


def _plan(work_fd: int, stage: Stage, named: frozenset[str], unprotected: tuple[str, ...]) -> Iterator[Change]:
    if not stage.folder:
        yield from _plan_file(work_fd, stage)
        return
    base = f"stage/{stage.layer}/upper"
    with _opened(work_fd, base, os.O_RDONLY | os.O_DIRECTORY) as upper:
        for entry in _walk(upper):
            if is_protected(_below_grant(stage.path, entry.parts), unprotected):
                part = _protected_part(_below_grant(stage.path, entry.parts))
                raise Uncollectable(f"wrote {entry.path!r}, a protected name", f"--allow 'write!:{part}'")
            _check_hidden(stage, entry, named)
            yield from _plan_entry(upper, base, stage, entry, unprotected)


def _plan_file(work_fd: int, stage: Stage) -> Iterator[Change]:
    source = f"stage/{stage.layer}/file"
    with _opened(work_fd, source, os.O_RDONLY | os.O_NONBLOCK) as reader:
        status = os.fstat(reader)
        with _opened(sc.AT_FDCWD, stage.path, os.O_RDONLY | os.O_NONBLOCK, sc.RESOLVE_NO_SYMLINKS) as original:
            if not _same_content(reader, original):
                yield Change(stage.path, "", source, status.st_size)


def _plan_entry(upper: int, base: str, stage: Stage, entry: Found, unprotected: tuple[str, ...]) -> Iterator[Change]:
    mode = entry.status.st_mode
    if stat.S_ISCHR(mode) and entry.status.st_rdev == 0:
        yield _removal(stage, entry, unprotected)
    elif stat.S_ISDIR(mode):
        if _is_opaque(upper, entry.path):
            yield _removal(stage, entry, unprotected)
        elif not _is_folder(stage, entry, otherwise=True):
            raise Uncollectable(f"wrote into {entry.path!r}, which is no folder any more")
        yield Change(stage.path, entry.path, f"{base}/{entry.path}", folder=True)
    elif not stat.S_ISREG(mode):
        raise Uncollectable(f"wrote {entry.path!r}, which is no regular file")
    elif entry.status.st_nlink != 1:
        raise Uncollectable(f"wrote {entry.path!r}, which has more than one link")
    else:
        if _is_folder(stage, entry, otherwise=False):
            yield _removal(stage, entry, unprotected)
        yield Change(stage.path, entry.path, f"{base}/{entry.path}", entry.status.st_size)


def _is_folder(stage: Stage, entry: Found, *, otherwise: bool) -> bool:
    """Whether there is a folder outside where the operation left something; ``otherwise`` if there is nothing."""
    try:
        return stat.S_ISDIR(os.lstat(os.path.join(stage.path, entry.path)).st_mode)
    except OSError:
        return otherwise


def _removal(stage: Stage, entry: Found, unprotected: tuple[str, ...]) -> Change:
    """Remove a file, or a folder with all that is in it outside.

    A protected or hidden name in there, or another file system mounted there, refuses the lot: the operation saw none
    of it.
    """
    doomed = os.path.join(stage.path, entry.path)
    device = os.lstat(stage.path).st_dev
    if not os.path.islink(doomed):
        for folder, folders, files in os.walk(doomed, followlinks=False):
            if os.lstat(folder).st_dev != device:
                raise Uncollectable(f"removed {entry.path!r}, which holds another file system")
            for name in (*folders, *files):
                parts = (*entry.parts, *os.path.relpath(os.path.join(folder, name), doomed).split("/"))
                if is_hidden(name) or is_protected(_below_grant(stage.path, parts), unprotected):
                    raise Uncollectable(f"removed {entry.path!r}, which holds {name!r}, a protected name")
    return Change(stage.path, entry.path, None)


def _below_grant(root: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The path with the granted folder's own name before it: ``write:.github`` does not open ``.github/workflows``."""
    return (os.path.basename(root), *parts)


def _protected_part(parts: tuple[str, ...]) -> str:
    """The name on the list that these components hold: the shortest run of them that is protected by itself."""
    runs = (parts[start:end] for end in range(1, len(parts) + 1) for start in range(end - 1, -1, -1))
    return "/".join(next((run for run in runs if is_protected(run)), parts))


def _check_hidden(stage: Stage, entry: Found, named: frozenset[str]) -> None:
    """What the operation could not see it must not replace."""
    outside = os.path.join(stage.path, entry.path)
    if any(map(is_hidden, entry.parts)) and outside not in named and os.path.lexists(outside):
        raise Uncollectable(f"wrote {entry.path!r}, which exists and is hidden from it", f"--allow write:{outside}")


def _is_opaque(upper: int, path: str) -> bool:
    with _opened(upper, path, os.O_RDONLY | os.O_DIRECTORY) as folder:
        try:
            return os.getxattr(folder, _OPAQUE) == b"y"
        except OSError:
            return False


def _walk(top: int) -> Iterator[Found]:
    """Everything beneath a folder, folders before what is in them; Uncollectable for names that are no plain text."""
    stack: list[tuple[str, ...]] = [()]
    count = 0
    while stack:
        here = stack.pop()
        with _opened(top, "/".join(here) or ".", os.O_RDONLY | os.O_DIRECTORY) as folder:
            for name in sorted(os.listdir(folder)):
                entry = Found((*here, name), os.stat(name, dir_fd=folder, follow_symlinks=False))
                count += 1
                _check_name(entry, count)
                yield entry
                if stat.S_ISDIR(entry.status.st_mode):
                    stack.append(entry.parts)


def _check_name(entry: Found, count: int) -> None:
    if count > 20 * ARTIFACT_FILES_MAX:
        raise Uncollectable(f"left more than {20 * ARTIFACT_FILES_MAX:,} files and folders")
    if len(entry.parts) > ARTIFACT_DEPTH_MAX:
        raise Uncollectable(f"left folders nested deeper than {ARTIFACT_DEPTH_MAX}")
    name = entry.parts[-1]
    if not name.isprintable() or len(os.fsencode(name)) > _NAME_MAX or name.encode("utf-8", "replace").decode() != name:
        raise Uncollectable(f"left a file whose name is no printable text: {name!r}")


def _copy(reader: int, target: str, most: int, observe: object = None, *, mode: int = 0o600, dir_fd: int | None = None,
          owner: tuple[int, int] | None = None) -> int:  # fmt: skip
    """Copy at most what was announced (a sparse or growing file is refused) to a new file; its size."""
    writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        size = 0
        while part := os.read(reader, 1 << 20):
            size += len(part)
            if size > most:
                raise Uncollectable("a file grew while it was taken over")
            if callable(observe):
                observe(part)
            view = memoryview(part)
            while view:
                view = view[os.write(writer, view) :]
        os.fchmod(writer, mode)
        if owner is not None and os.geteuid() == 0:
            os.fchown(writer, *owner)
        os.fsync(writer)
    finally:
        os.close(writer)
    return size


def _mode_outside(parent: int, name: str) -> int:
    """What was private stays private; nothing becomes executable."""
    try:
        return stat.S_IMODE(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode) & 0o666
    except FileNotFoundError:
        return 0o644


def _same_content(one: int, other: int) -> bool:
    while True:
        left, right = os.read(one, 1 << 20), os.read(other, 1 << 20)
        if left != right:
            return False
        if not left:
            return True


def _remove(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=parent)
    except FileNotFoundError:
        return


@contextmanager
def _opened(base: int, path: str, flags: int, resolve: int = _BENEATH) -> Iterator[int]:
    fd = sc.openat2(base, path, flags, resolve)
    try:
        yield fd
    finally:
        os.close(fd)
