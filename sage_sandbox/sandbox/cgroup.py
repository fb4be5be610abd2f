"""Groups of processes whose memory, number and processor time the kernel counts and limits together.

`find` says where this process may make groups; a `CgroupHome` makes them; a `Cgroup` serves one operation after the
other. Nothing here is required: where there is no home, `sage_sandbox.sandbox.sampling` takes its place and the outcome
says so.

Two kernel interfaces fit the seam. Version 2 is one tree (Documentation/admin-guide/cgroup-v2.rst): a group that hands
controllers to its children may hold no process itself, so the caller moves into a leaf beside the groups it makes.
Version 1 is a tree for each controller (cgroups(7), Documentation/admin-guide/cgroup-v1/memory.rst), in practice for
root.

Call `find` in the coordinator before workers exist, and before a zygote does: only processes born later follow us.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from sage_sandbox.sandbox import cgroup_files as files
from sage_sandbox.sandbox.cgroup_group import Cgroup, GroupUsage, GroupV1, GroupV2, Places
from sage_sandbox.sandbox.delegation import ask_systemd

__all__ = ["Cgroup", "CgroupHome", "Delegate", "GroupUsage", "find"]

LEAF: Final = "sage-main"
"""Where this process stands on version 2 while its siblings are the groups of operations."""

CONTROLLERS_V1: Final = ("memory", "pids", "cpuacct")
CONTROLLERS_V2: Final = frozenset({"memory", "pids"})
_OUR_GROUPS: Final = re.compile(r"sage-(\d+)-(\d+)-(\d+)-[\w-]+")
_PATIENCE_S: Final = 2.0


class CgroupHome:
    """Where this process may make groups, and those it made. One a process; closed at its end.

    ``where`` is the folder (of the memory controller) that the groups are made in, ``version`` the kernel interface.
    """

    def __init__(self, version: Literal[1, 2], base: Places, tag: str) -> None:
        self.version = version
        self.where = base.memory
        self._base = base
        self._tag = tag
        self._made: list[Cgroup] = []

    def make(self, name: str) -> Cgroup:
        """A new group; ``name``: letters, digits, hyphens; in use once at a time. OSError if the kernel refuses."""
        places = self._base.below(f"{self._tag}-{name}")
        group: Cgroup = GroupV1(places) if self.version == 1 else GroupV2(places)
        self._made.append(group)
        return group

    def close(self) -> None:
        """Kill what is left in the groups made here and remove them; never raises."""
        for group in self._made:
            with suppress(OSError):
                group.kill()
                group.remove()
        self._made.clear()

    def _works(self) -> bool:
        """Make a group, limit it, remove it: what a kernel really grants shows in no other way."""
        try:
            group = self.make("trial")
            try:
                group.limit(64 << 20, 8)
                group.usage()
            finally:
                group.remove()
        except (OSError, ValueError):
            return False
        finally:
            self._made.clear()
        return True


Delegate = Callable[[int], bool]
"""Asks whoever manages the machine's groups to give the process a group of its own; whether that was accepted."""


def find(
    limits_root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc"), delegate: Delegate | None = None
) -> CgroupHome | None:
    """Where this process may make groups, or None if nowhere; never raises.

    Only file systems mounted at or below ``limits_root`` count. On version 2 this may move the calling process: into a
    leaf of its own group, or into a scope that ``delegate`` (default `ask_systemd`) obtained. Empty groups that dead
    processes of ours left are removed on the way.
    """
    try:
        world = _World(limits_root, proc)
        homes = _homes_v1(world) if "memory" in world.mounts else _homes_v2(world, delegate or ask_systemd)
        return next((home for home in homes if home._works()), None)  # noqa: SLF001 - one module, one story
    except (OSError, ValueError):
        return None


class _World:
    """What /proc says about the cgroup file systems and this process's place in them (cgroups(7), proc(5))."""

    def __init__(self, limits_root: Path, proc: Path) -> None:
        self._proc = proc
        self.mounts = dict(_cgroup_mounts(files.read(proc / "self/mountinfo"), limits_root))

    def folder(self, controller: str) -> Path:
        """Our own group's folder for a controller (empty: version 2); OSError if it is out of sight."""
        if controller not in self.mounts:
            raise FileNotFoundError(errno.ENOENT, f"no {controller or 'version 2'} cgroup file system")
        root, point = self.mounts[controller]
        path = Path(self._membership()[controller])
        # Under a container without a cgroup namespace both name the container's group as the host sees it.
        inside = path.relative_to(root) if path.is_relative_to(root) else Path()
        if ".." in inside.parts:
            raise FileNotFoundError(errno.ENOENT, f"{path} is outside of the cgroup namespace")
        return point / inside

    def _membership(self) -> dict[str, str]:
        lines = (line.split(":", 2) for line in files.read(self._proc / "self/cgroup").splitlines())
        return {name: path for _, names, path in lines for name in names.split(",")}

    def tag(self) -> str:
        """``sage-<pid namespace>-<pid>-<start time>``: enough to know later whether the owner of a group lives."""
        return f"sage-{self._namespace()}-{os.getpid()}-{self._started(os.getpid())}"

    def _namespace(self) -> int:
        return os.stat(self._proc / "self/ns/pid").st_ino

    def _started(self, pid: int) -> int:
        """Start time in clock ticks since boot, field 22; -1 if there is no such process."""
        try:
            return int(files.read(self._proc / str(pid) / "stat").rpartition(")")[2].split()[19])
        except (FileNotFoundError, ProcessLookupError):
            return -1

    def sweep(self, folder: Path) -> None:
        """Remove empty groups below ``folder`` whose owner, one of ours in this pid namespace, is dead."""
        for name in os.listdir(folder):
            match = _OUR_GROUPS.fullmatch(name)
            if match and int(match[1]) == self._namespace() and self._started(int(match[2])) != int(match[3]):
                with suppress(OSError):
                    files.remove_folder(folder / name)


def _homes_v1(world: _World) -> Iterator[CgroupHome]:
    base = Places(*(world.folder(controller) for controller in CONTROLLERS_V1))
    for folder in base.each():
        world.sweep(folder)
    yield CgroupHome(1, base, world.tag())


def _homes_v2(world: _World, delegate: Delegate) -> Iterator[CgroupHome]:
    """The places to try, the best first, each made ready only when the one before it did not do."""
    for found in (_own_v2, lambda world: _delegated_v2(world, delegate), _handed_down_v2):
        if (folder := found(world)) is not None:
            world.sweep(folder)
            yield CgroupHome(2, Places(folder, folder, folder), world.tag())


def _own_v2(world: _World) -> Path | None:
    """Our own group, if it is ours to divide: already divided by us, or made so now."""
    own = world.folder("")
    if own.name == LEAF and _hands_down(own.parent):
        return own.parent
    return own if files.words(own / "cgroup.controllers") >= CONTROLLERS_V2 and _divide(own) else None


def _delegated_v2(world: _World, delegate: Delegate) -> Path | None:
    """A group that the machine's manager gives us on request."""
    before = world.folder("")
    if not delegate(os.getpid()):
        return None
    deadline = time.monotonic() + _PATIENCE_S
    while world.folder("") == before and time.monotonic() < deadline:
        time.sleep(0.002)  # the manager answers with a job, and moves us when it comes to it
    return _own_v2(world) if world.folder("") != before else None


def _handed_down_v2(world: _World) -> Path | None:
    """The nearest ancestor that hands controllers to its children already and lets us make one."""
    _, top = world.mounts[""]
    own = world.folder("")
    above = (folder for folder in own.parents if folder.is_relative_to(top))
    return next((f for f in above if _hands_down(f) and os.access(f / "cgroup.procs", os.W_OK)), None)


def _hands_down(folder: Path) -> bool:
    return files.words(folder / "cgroup.subtree_control") >= CONTROLLERS_V2


def _divide(group: Path) -> bool:
    """Move ourselves into a leaf and give the group's children limits; undone if others live in the group (EBUSY)."""
    leaf = group / LEAF
    try:
        with suppress(FileExistsError):
            files.make_folder(leaf)
        files.write(leaf / "cgroup.procs", "0")
        files.write(group / "cgroup.subtree_control", "+memory +pids")
    except OSError:
        with suppress(OSError):
            files.write(group / "cgroup.procs", "0")
            files.remove_folder(leaf)
        return False
    return True


def _cgroup_mounts(mountinfo: str, limits_root: Path) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Each controller's (root of the mount, mount point), version 2 under the empty name; see proc(5), mountinfo."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        (_, _, _, root, point, *_), (kind, _, options) = left.split(" "), right.split(" ", 2)
        if kind in ("cgroup", "cgroup2") and (place := _unescaped(point)).is_relative_to(limits_root):
            names = [""] if kind == "cgroup2" else [o for o in options.split(",") if o in CONTROLLERS_V1]
            yield from ((name, (_unescaped(root), place)) for name in names)


def _unescaped(text: str) -> Path:
    """Mountinfo writes blanks, tabs, line ends and backslashes as three octal digits."""
    return Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text))
