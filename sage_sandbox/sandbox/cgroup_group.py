"""One control group: a folder (or three) in which the kernel counts and limits an operation's processes together.

Version 2 is one tree (Documentation/admin-guide/cgroup-v2.rst). Version 1 is a tree for each controller (cgroups(7),
Documentation/admin-guide/cgroup-v1/memory.rst), in practice for root.
"""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sage_sandbox.frozen import frozen
from sage_sandbox.sandbox import cgroup_files as files

PATIENCE_S: Final = 2.0
_PAGE: Final = 4096


@frozen
class GroupUsage:
    """What an operation's processes used together since `Cgroup.begin`.

    ``max_rss`` is the peak of everything charged: anonymous memory, tmpfs, page cache and kernel memory. ``oom_kills``
    over 0 means the memory limit was exceeded, whatever else the processes report: version 1 kills one process of many.
    """

    max_rss: int
    cpu_s: float
    oom_kills: int
    pids_refused: int


@frozen
class Counters:
    """Counters that only grow: an operation's share is the difference."""

    cpu_s: float = 0.0
    oom_kills: int = 0
    pids_refused: int = 0


@frozen
class Places:
    """The folder of one group for each controller: the same one three times on version 2."""

    memory: Path
    pids: Path
    cpu: Path

    def each(self) -> tuple[Path, ...]:
        """Every folder once."""
        return tuple(dict.fromkeys((self.memory, self.pids, self.cpu)))

    def below(self, name: str) -> Places:
        """The folders of a group beneath this one."""
        return Places(self.memory / name, self.pids / name, self.cpu / name)


class Cgroup(ABC):
    """One group, recycled: `limit`, `join`, `begin`, `usage`, and again. OSError where the kernel refuses.

    ``procs_fds`` are open for writing, one for each hierarchy: a process writes a pid as its own pid namespace names
    it, or ``0`` for itself. They change when a group had to be made anew, which only `limit` does.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._limits: tuple[int, int] | None = None
        self._base = Counters()
        self._held: dict[str, int] = {}
        self.procs_fds: tuple[int, ...] = ()
        self._build()

    def limit(self, memory: int, pids: int) -> None:
        """Limit what joins next to ``memory`` bytes (swap included) and ``pids`` tasks."""
        if self._limits is not None:
            self._give_back(memory, pids)
        self._limit(memory, pids)

    def begin(self, memory: int, pids: int) -> None:
        """Limit the members to this and count from zero: nothing is given back, the group stays."""
        self._limit(memory, pids)
        self._reset_peak()
        self._base = self._counters()

    def _limit(self, memory: int, pids: int) -> None:
        if self._limits != (memory, pids):
            self._write_limits(memory, pids)
            self._limits = (memory, pids)

    def join(self, pid: int) -> None:
        """Put a process in; what it forks follows. Mostly 0.1 ms, rarely 10: the kernel may wait for a grace period."""
        for fd in self.procs_fds:
            os.write(fd, str(pid).encode())

    def usage(self) -> GroupUsage:
        """What was used since `begin`, or in all."""
        now, base = self._counters(), self._base
        return GroupUsage(
            self._peak(),
            max(0.0, now.cpu_s - base.cpu_s),
            now.oom_kills - base.oom_kills,
            now.pids_refused - base.pids_refused,
        )

    def kill(self, patience_s: float = PATIENCE_S) -> None:
        """Kill every process and wait until none is left, or for ``patience_s``; `empty` says which."""
        deadline, pause = time.monotonic() + patience_s, 0.0002
        while not self.empty() and time.monotonic() < deadline:
            self._kill_once()
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def empty(self) -> bool:
        """Whether no process is left in it; zombies are gone from a group before they are reaped."""
        return not any(files.procs(folder) for folder in self._places.each())

    def remove(self) -> None:
        """Remove the group from the kernel; it must be empty."""
        self._close()
        for folder in self._places.each():
            with suppress(FileNotFoundError):
                files.remove_folder(folder)

    def _build(self) -> None:
        try:
            for folder in self._places.each():
                files.make_folder(folder)
            self.procs_fds = tuple(files.open_for_writing(folder / "cgroup.procs") for folder in self._places.each())
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

    def _get(self, folder: Path, name: str) -> bytes:
        """A file of a few lines, through a descriptor that is kept: a tenth of what opening it again costs."""
        fd = self._held.get(name)
        if fd is None:
            fd = self._held[name] = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(fd, _PAGE, 0)

    def _keyed(self, folder: Path, name: str, key: bytes) -> int:
        """The number behind ``key`` in a flat-keyed file; 0 where this kernel does not count it."""
        try:
            words = self._get(folder, name).split()
        except FileNotFoundError:
            return 0
        return int(words[words.index(key) + 1]) if key in words else 0

    def _give_back(self, memory: int, pids: int) -> None:
        """Let go of what the last operation left charged: page cache, a dead tmpfs. Where that fails, a new group.

        A zombie is in no group's list and yet counts as one of its tasks until somebody reaps it.
        """
        if self._charged() > memory // 32:
            self._reclaim()
        tasks = int(self._get(self._places.pids, "pids.current"))
        if tasks > pids // 8 or self._charged() > memory // 8:
            self._rebuild()

    def _pids(self) -> set[int]:
        """Its processes; 0 stands for one that our pid namespace has no name for, and must never reach kill(2)."""
        return {int(pid) for folder in self._places.each() for pid in files.procs(folder)} - {0}

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
    def _counters(self) -> Counters: ...

    @abstractmethod
    def _kill_once(self) -> None: ...


class GroupV1(Cgroup):
    """A folder in each of the memory, pids and cpuacct trees."""

    def _prepare(self) -> None:
        memory = self._places.memory
        # Inherited: with the OOM killer off, a process over its limit would hang instead of dying.
        files.write(memory / "memory.oom_control", "0")
        # Where swap is not accounted (no memsw files), at least this group's own reclaim does not swap.
        with suppress(OSError):
            files.write(memory / "memory.swappiness", "0")

    def _write_limits(self, memory: int, pids: int) -> None:
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if self._limits is not None and memory > self._limits[0]:
            names.reverse()  # memory plus swap may never be the smaller of the two
        for name in names:
            with suppress(FileNotFoundError):
                files.write(self._places.memory / name, str(memory))
        files.write(self._places.pids / "pids.max", str(pids))

    def _reset_peak(self) -> None:
        files.write(self._places.memory / "memory.max_usage_in_bytes", "0")

    def _peak(self) -> int:
        return int(self._get(self._places.memory, "memory.max_usage_in_bytes"))

    def _charged(self) -> int:
        return int(self._get(self._places.memory, "memory.usage_in_bytes"))

    def _reclaim(self) -> None:
        files.write(self._places.memory / "memory.force_empty", "0")

    def _counters(self) -> Counters:
        return Counters(
            int(self._get(self._places.cpu, "cpuacct.usage")) / 1e9,
            self._keyed(self._places.memory, "memory.oom_control", b"oom_kill"),
            self._keyed(self._places.pids, "pids.events", b"max"),
        )

    def _kill_once(self) -> None:
        # No fork from here on: one pass is enough, however fast they multiply.
        files.write(self._places.pids / "pids.max", "0")
        self._limits = None if self._limits is None else (self._limits[0], 0)
        self._kill_each()


class GroupV2(Cgroup):
    """A folder in the one tree, its controllers handed down by the parent."""

    def __init__(self, places: Places) -> None:
        self._folder = places.memory
        self._peak_fd = -1
        self._resettable = True
        self._highest = 0
        super().__init__(places)

    def _prepare(self) -> None:
        files.write(self._folder / "memory.oom.group", "1")
        for name in ("memory.swap.max", "memory.zswap.max"):
            with suppress(FileNotFoundError):
                files.write(self._folder / name, "0")
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
        files.write(self._folder / "memory.max", str(memory))
        files.write(self._folder / "pids.max", str(pids))

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
        return int(self._get(self._folder, "memory.current"))

    def _reclaim(self) -> None:
        # memory.reclaim is 5.19; EAGAIN says it gave back less than was asked for.
        with suppress(FileNotFoundError, BlockingIOError):
            files.write(self._folder / "memory.reclaim", str(self._charged()))

    def _counters(self) -> Counters:
        return Counters(
            self._keyed(self._folder, "cpu.stat", b"usage_usec") / 1e6,
            self._keyed(self._folder, "memory.events", b"oom_kill"),
            self._keyed(self._folder, "pids.events", b"max"),
        )

    def _kill_once(self) -> None:
        """cgroup.kill is 5.14: it also reaches what is being forked."""
        try:
            files.write(self._folder / "cgroup.kill", "1")
        except FileNotFoundError:
            self._kill_each()


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
