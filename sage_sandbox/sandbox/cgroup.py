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
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

LEAF: Final = "sage-main"
"""Where this process stands on version 2 while its siblings are the groups of operations."""

CONTROLLERS_V1: Final = ("memory", "pids", "cpuacct")
CONTROLLERS_V2: Final = frozenset({"memory", "pids"})
_OUR_GROUPS: Final = re.compile(r"sage-(\d+)-(\d+)-(\d+)-[\w-]+")
_PATIENCE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """What an operation's processes used together since `Cgroup.limit`.

    ``max_rss`` is the peak of everything charged: anonymous memory, tmpfs, page cache and kernel memory. ``oom_kills``
    over 0 means the memory limit was exceeded, whatever else the processes report: version 1 kills one process of many.
    """

    max_rss: int
    cpu_s: float
    oom_kills: int
    pids_refused: int


@dataclass(frozen=True, slots=True)
class _Counters:
    """Counters that only grow: an operation's share is the difference."""

    cpu_s: float = 0.0
    oom_kills: int = 0
    pids_refused: int = 0


@dataclass(frozen=True, slots=True)
class _Places:
    """The folder of one group for each controller: the same one three times on version 2."""

    memory: Path
    pids: Path
    cpu: Path

    def each(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((self.memory, self.pids, self.cpu)))

    def below(self, name: str) -> _Places:
        return _Places(self.memory / name, self.pids / name, self.cpu / name)


class Cgroup(ABC):
    """One group, recycled: `limit`, `join`, `usage`, and again. Every method raises OSError if the kernel refuses.

    ``procs_fds`` are open for writing, one for each hierarchy: a process writes a pid as its own pid namespace names
    it, or ``0`` for itself. They change when a group had to be made anew, which only `limit` does.
    """

    def __init__(self, places: _Places) -> None:
        self._places = places
        self._limits: tuple[int, int] | None = None
        self._base = _Counters()
        self._held: dict[str, int] = {}
        self.procs_fds: tuple[int, ...] = ()
        self._build()

    def limit(self, memory: int, pids: int) -> None:
        """Limit the next operation to ``memory`` bytes (swap included) and ``pids`` tasks, and count from zero."""
        if self._limits is not None:
            self._give_back(memory, pids)
        if self._limits != (memory, pids):
            self._write_limits(memory, pids)
            self._limits = (memory, pids)
        self._reset_peak()
        self._base = self._counters()

    def join(self, pid: int) -> None:
        """Put a process in; what it forks follows. Mostly 0.1 ms, rarely 10: the kernel may wait for a grace period."""
        for fd in self.procs_fds:
            os.write(fd, str(pid).encode())

    def usage(self) -> GroupUsage:
        """What was used since `limit`."""
        now, base = self._counters(), self._base
        return GroupUsage(
            self._peak(),
            max(0.0, now.cpu_s - base.cpu_s),
            now.oom_kills - base.oom_kills,
            now.pids_refused - base.pids_refused,
        )

    def kill(self, patience_s: float = _PATIENCE_S) -> None:
        """Kill every process and wait until none is left, or for ``patience_s``; `empty` says which."""
        deadline, pause = time.monotonic() + patience_s, 0.0002
        while not self.empty() and time.monotonic() < deadline:
            self._kill_once()
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def empty(self) -> bool:
        """Whether no process is left in it; zombies are gone from a group before they are reaped."""
        return not any(_procs(folder) for folder in self._places.each())

    def remove(self) -> None:
        """Remove the group from the kernel; it must be empty."""
        self._close()
        for folder in self._places.each():
            with suppress(FileNotFoundError):
                _remove_folder(folder)

    def _build(self) -> None:
        try:
            for folder in self._places.each():
                _make_folder(folder)
            self.procs_fds = tuple(_open_for_writing(folder / "cgroup.procs") for folder in self._places.each())
            self._prepare()
        except OSError:
            with suppress(OSError):
                self.remove()
            raise

    def _rebuild(self) -> None:
        self.remove()
        self._limits = None
        self._build()

    def _close(self) -> None:
        for fd in (*self.procs_fds, *self._held.values()):
            os.close(fd)
        self.procs_fds = ()
        self._held.clear()

    def _get(self, path: str) -> str:
        """A file of the group, through a descriptor that is kept: a tenth of what opening it again costs."""
        if path not in self._held:
            self._held[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return _read_all(self._held[path])

    def _keyed(self, path: str, key: str) -> int:
        """The number behind ``key`` in a flat-keyed file; 0 where this kernel does not count it."""
        try:
            lines = (line.split() for line in self._get(path).splitlines())
            return next((int(value) for name, value in lines if name == key), 0)
        except FileNotFoundError:
            return 0

    def _give_back(self, memory: int, pids: int) -> None:
        """Let go of what the last operation left charged: page cache, a dead tmpfs. Where that fails, a new group.

        A zombie is in no group's list and yet counts as one of its tasks until somebody reaps it.
        """
        if self._charged() > memory // 32:
            self._reclaim()
        tasks = int(self._get(f"{self._places.pids}/pids.current"))
        if tasks > pids // 8 or self._charged() > memory // 8:
            self._rebuild()

    def _pids(self) -> set[int]:
        """Its processes; 0 stands for one that our pid namespace has no name for, and must never reach kill(2)."""
        return {int(pid) for folder in self._places.each() for pid in _procs(folder)} - {0}

    def _kill_each(self) -> None:
        with _pidfds(self._pids()) as held:
            # A pid read before its descriptor was opened may be another process by now: ask the group once more.
            for pid in self._pids() & held.keys():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(held[pid], signal.SIGKILL)

    @abstractmethod
    def _prepare(self) -> None:
        """Set what every operation needs and none changes."""

    @abstractmethod
    def _write_limits(self, memory: int, pids: int) -> None: ...

    @abstractmethod
    def _reset_peak(self) -> None: ...

    @abstractmethod
    def _peak(self) -> int: ...

    @abstractmethod
    def _charged(self) -> int:
        """Bytes charged now."""

    @abstractmethod
    def _reclaim(self) -> None:
        """Ask the kernel to drop what is charged; the group is empty."""

    @abstractmethod
    def _counters(self) -> _Counters: ...

    @abstractmethod
    def _kill_once(self) -> None: ...


class _GroupV1(Cgroup):
    """A folder in each of the memory, pids and cpuacct trees."""

    def _prepare(self) -> None:
        memory = self._places.memory
        # Inherited: with the OOM killer off, a process over its limit would hang instead of dying.
        _write(memory / "memory.oom_control", "0")
        # Where swap is not accounted (no memsw files), at least this group's own reclaim does not swap.
        with suppress(OSError):
            _write(memory / "memory.swappiness", "0")

    def _write_limits(self, memory: int, pids: int) -> None:
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if self._limits is not None and memory > self._limits[0]:
            names.reverse()  # memory plus swap may never be the smaller of the two
        for name in names:
            with suppress(FileNotFoundError):
                _write(self._places.memory / name, str(memory))
        _write(self._places.pids / "pids.max", str(pids))

    def _reset_peak(self) -> None:
        _write(self._places.memory / "memory.max_usage_in_bytes", "0")

    def _peak(self) -> int:
        return int(self._get(f"{self._places.memory}/memory.max_usage_in_bytes"))

    def _charged(self) -> int:
        return int(self._get(f"{self._places.memory}/memory.usage_in_bytes"))

    def _reclaim(self) -> None:
        _write(self._places.memory / "memory.force_empty", "0")

    def _counters(self) -> _Counters:
        return _Counters(
            int(self._get(f"{self._places.cpu}/cpuacct.usage")) / 1e9,
            self._keyed(f"{self._places.memory}/memory.oom_control", "oom_kill"),
            self._keyed(f"{self._places.pids}/pids.events", "max"),
        )

    def _kill_once(self) -> None:
        # No fork from here on: one pass is enough, however fast they multiply.
        _write(self._places.pids / "pids.max", "0")
        self._limits = None if self._limits is None else (self._limits[0], 0)
        self._kill_each()


class _GroupV2(Cgroup):
    """A folder in the one tree, its controllers handed down by the parent."""

    def __init__(self, places: _Places) -> None:
        self._folder = places.memory
        self._peak_fd = -1
        self._resettable = True
        self._highest = 0
        super().__init__(places)

    def _prepare(self) -> None:
        _write(self._folder / "memory.oom.group", "1")
        for name in ("memory.swap.max", "memory.zswap.max"):
            with suppress(FileNotFoundError):
                _write(self._folder / name, "0")
        self._open_peak()

    def _open_peak(self) -> None:
        """memory.peak is 5.19, and written to from 6.12 on: a reset holds for the descriptor it was made through."""
        path = self._folder / "memory.peak"
        try:
            self._peak_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._resettable = False
            with suppress(FileNotFoundError):
                self._peak_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _close(self) -> None:
        super()._close()
        if self._peak_fd >= 0:
            os.close(self._peak_fd)
            self._peak_fd = -1

    def _write_limits(self, memory: int, pids: int) -> None:
        _write(self._folder / "memory.max", str(memory))
        _write(self._folder / "pids.max", str(pids))

    def limit(self, memory: int, pids: int) -> None:
        """As promised above; a peak that cannot be reset makes it a new group."""
        used = self._limits is not None
        if used and not self._resettable and self._peak_fd >= 0:
            self._rebuild()
        super().limit(memory, pids)

    def _reset_peak(self) -> None:
        self._highest = 0
        if self._resettable:
            try:
                os.pwrite(self._peak_fd, b"0\n", 0)
            except OSError:
                self._resettable = False  # before 6.12; a group that was never used needs no reset

    def _peak(self) -> int:
        if self._peak_fd >= 0:
            return int(os.pread(self._peak_fd, 64, 0))
        self._highest = max(self._highest, self._charged())
        return self._highest

    def _charged(self) -> int:
        return int(self._get(f"{self._folder}/memory.current"))

    def _reclaim(self) -> None:
        # memory.reclaim is 5.19; EAGAIN says it gave back less than was asked for.
        with suppress(FileNotFoundError, BlockingIOError):
            _write(self._folder / "memory.reclaim", str(self._charged()))

    def _counters(self) -> _Counters:
        return _Counters(
            self._keyed(f"{self._folder}/cpu.stat", "usage_usec") / 1e6,
            self._keyed(f"{self._folder}/memory.events", "oom_kill"),
            self._keyed(f"{self._folder}/pids.events", "max"),
        )

    def _kill_once(self) -> None:
        """cgroup.kill is 5.14: it also reaches what is being forked."""
        try:
            _write(self._folder / "cgroup.kill", "1")
        except FileNotFoundError:
            self._kill_each()


class CgroupHome:
    """Where this process may make groups, and those it made. One a process; closed at its end.

    ``where`` is the folder (of the memory controller) that the groups are made in, ``version`` the kernel interface.
    """

    def __init__(self, version: Literal[1, 2], base: _Places, tag: str) -> None:
        self.version = version
        self.where = base.memory
        self._base = base
        self._tag = tag
        self._made: list[Cgroup] = []

    def make(self, name: str) -> Cgroup:
        """A new group; ``name``: letters, digits, hyphens; in use once at a time. OSError if the kernel refuses."""
        places = self._base.below(f"{self._tag}-{name}")
        group: Cgroup = _GroupV1(places) if self.version == 1 else _GroupV2(places)
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
        self.mounts = dict(_cgroup_mounts(_read(proc / "self/mountinfo"), limits_root))

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
        lines = (line.split(":", 2) for line in _read(self._proc / "self/cgroup").splitlines())
        return {name: path for _, names, path in lines for name in names.split(",")}

    def tag(self) -> str:
        """``sage-<pid namespace>-<pid>-<start time>``: enough to know later whether the owner of a group lives."""
        return f"sage-{self._namespace()}-{os.getpid()}-{self._started(os.getpid())}"

    def _namespace(self) -> int:
        return os.stat(self._proc / "self/ns/pid").st_ino

    def _started(self, pid: int) -> int:
        """Start time in clock ticks since boot, field 22; -1 if there is no such process."""
        try:
            return int(_read(self._proc / str(pid) / "stat").rpartition(")")[2].split()[19])
        except (FileNotFoundError, ProcessLookupError):
            return -1

    def sweep(self, folder: Path) -> None:
        """Remove empty groups below ``folder`` whose owner, one of ours in this pid namespace, is dead."""
        for name in os.listdir(folder):
            match = _OUR_GROUPS.fullmatch(name)
            if match and int(match[1]) == self._namespace() and self._started(int(match[2])) != int(match[3]):
                with suppress(OSError):
                    _remove_folder(folder / name)


def _homes_v1(world: _World) -> Iterator[CgroupHome]:
    base = _Places(*(world.folder(controller) for controller in CONTROLLERS_V1))
    for folder in base.each():
        world.sweep(folder)
    yield CgroupHome(1, base, world.tag())


def _homes_v2(world: _World, delegate: Delegate) -> Iterator[CgroupHome]:
    """The places to try, the best first, each made ready only when the one before it did not do."""
    for found in (_own_v2, lambda world: _delegated_v2(world, delegate), _handed_down_v2):
        if (folder := found(world)) is not None:
            world.sweep(folder)
            yield CgroupHome(2, _Places(folder, folder, folder), world.tag())


def _own_v2(world: _World) -> Path | None:
    """Our own group, if it is ours to divide: already divided by us, or made so now."""
    own = world.folder("")
    if own.name == LEAF and _hands_down(own.parent):
        return own.parent
    return own if _words(own / "cgroup.controllers") >= CONTROLLERS_V2 and _divide(own) else None


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
    return _words(folder / "cgroup.subtree_control") >= CONTROLLERS_V2


def _divide(group: Path) -> bool:
    """Move ourselves into a leaf and give the group's children limits; undone if others live in the group (EBUSY)."""
    leaf = group / LEAF
    try:
        with suppress(FileExistsError):
            _make_folder(leaf)
        _write(leaf / "cgroup.procs", "0")
        _write(group / "cgroup.subtree_control", "+memory +pids")
    except OSError:
        with suppress(OSError):
            _write(group / "cgroup.procs", "0")
            _remove_folder(leaf)
        return False
    return True


BUSCTL: Final = "/usr/bin/busctl"


def systemd_request(pid: int, uid: int) -> tuple[Path, list[str], dict[str, str]]:
    """How to ask systemd for a delegated scope around ``pid``: the bus socket, the command, its whole environment.

    org.freedesktop.systemd1(5), StartTransientUnit; root asks the system's manager, a user their own. That a user's
    manager takes a process from a login session's scope needs systemd 238.
    """
    runtime = f"/run/user/{uid}"
    bus = Path("/run/dbus/system_bus_socket" if uid == 0 else f"{runtime}/bus")
    object_ = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
    properties = ("3", "PIDs", "au", "1", str(pid), "Delegate", "b", "true", "CollectMode", "s", "inactive-or-failed")
    command = [
        *(BUSCTL, "--system" if uid == 0 else "--user", "--quiet", "call", *object_, "StartTransientUnit"),
        *("ssa(sv)a(sa(sv))", f"sage-sandbox-{pid}.scope", "fail", *properties, "0"),
    ]
    environment = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": runtime}
    environment["DBUS_SYSTEM_BUS_ADDRESS" if uid == 0 else "DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={bus}"
    return bus, command, environment


def ask_systemd(pid: int) -> bool:
    """Ask systemd for a delegated scope around ``pid``; False where there is no systemd, no bus or no consent."""
    bus, command, environment = systemd_request(pid, os.getuid())
    if not (os.access(command[0], os.X_OK) and bus.is_socket()):
        return False
    return _succeeds(command, environment)


def _succeeds(command: list[str], environment: dict[str, str]) -> bool:
    try:
        done = subprocess.run(
            command, env=environment, cwd="/", timeout=_PATIENCE_S, check=False, stdin=-3, stdout=-3, stderr=-3
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


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


@contextmanager
def _pidfds(pids: set[int]) -> Iterator[dict[int, int]]:
    held: dict[int, int] = {}
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                held[pid] = os.pidfd_open(pid)
        yield held
    finally:
        for fd in held.values():
            os.close(fd)


def _procs(folder: Path) -> list[str]:
    """Who is in a group. Opened each time: version 1 keeps answering a descriptor with the list of its first read."""
    return _read(folder / "cgroup.procs").split()


def _make_folder(path: Path) -> None:
    os.mkdir(path, 0o755)


def _remove_folder(path: Path) -> None:
    os.rmdir(path)


def _open_for_writing(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def _read(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read_all(fd)
    finally:
        os.close(fd)


def _read_all(fd: int) -> str:
    """A file of /proc or a cgroup from its beginning; these come a page at a time."""
    content = b""
    while piece := os.pread(fd, 1 << 16, len(content)):
        content += piece
    return os.fsdecode(content)


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _words(path: Path) -> set[str]:
    try:
        return set(_read(path).split())
    except OSError:
        return set()
