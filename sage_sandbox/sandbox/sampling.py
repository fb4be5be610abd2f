"""An operation's processes measured from outside, where no cgroup counts them.

A `Sampler` belongs to one operation. Each `tick` walks the process tree below the child, adds up what it finds and says
when to look again: as late as the headroom allows, if every core filled memory as fast as it can.

What is counted as memory is what cannot be given back: anonymous and shared memory of the processes, and the pages of
the work folder, a tmpfs. Mapped files are the host's cache and are left out. The cheap sum of resident pages is above
that and only trips the wire; what decides is the proportional share (smaps_rollup, Linux 4.14), in which ten
processes that share a page hold a tenth of it each. Reading it needs ptrace access to each process (proc(5)). An
ordinary user has it to an undumpable process only if that was exec'd inside a user namespace of the user's own: its
memory belongs to the namespace of its last execve(2). Where the share is not told, RssAnon and RssShmem are added up,
pages shared over a fork once for each process: an operation may be stopped early where it shares a lot, never late. A
mapped file of the work folder counts twice, for the same reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

FILL_RATE: Final = 2.5 * (1 << 30)
"""Bytes a second that one core can at most touch first (measured: page faults with zeroing)."""

SHORTEST_S: Final = 0.002
LONGEST_S: Final = 0.1
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_SEEN_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """What one tick found. Sizes in bytes.

    ``rss`` is the sum of resident pages, ``pss`` what the processes hold for themselves (None while ``rss`` did not
    trip), ``work`` the use of the work folder; ``processes`` is 0 when the child is gone, or hidden from us (hidepid).
    ``next_s`` says when to look again.
    """

    rss: int
    pss: int | None
    cpu_s: float
    processes: int
    over_memory: bool
    over_cpu: bool
    next_s: float
    work: int = 0

    @property
    def memory(self) -> int:
        """What counts against the limit, as exactly as it is known."""
        return (self.rss if self.pss is None else self.pss) + self.work


@dataclass(frozen=True, slots=True)
class _Process:
    """One process: processor seconds of its own, and of the dead children it waited for."""

    pid: int
    started: int
    own_s: float
    waited_s: float
    rss: int


class Sampler:
    """Watches the process tree below ``pid``, a host pid.

    Nothing leaves the tree: orphans in a pid namespace are adopted by its pid 1, the child. ``work_fd`` is a descriptor
    of the work folder, or -1. ``cpu_limit_s`` holds for all processes together, dead ones too.
    """

    def __init__(
        self,
        pid: int,
        work_fd: int,
        limit: int,
        cpu_limit_s: float,
        cores: int,
        *,
        proc: str = "/proc",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pid = pid
        self._work_fd = work_fd
        self._limit = limit
        self._cpu_limit_s = cpu_limit_s
        self._cores = max(1, cores)
        self._proc = proc
        self._clock = clock
        self._cpu = _CpuTime()

    def tick(self) -> Reading:
        """Measure now; processes that vanish on the way are left out."""
        began = self._clock()
        processes = [found for pid in tree(self._pid, self._proc) if (found := _measure(pid, self._proc))]
        rss, work, cpu_s = sum(p.rss for p in processes), _used(self._work_fd), self._cpu.add(processes)
        tripped = rss + work > self._limit
        pss = sum(_share(p.pid, self._proc) for p in processes) if tripped else None
        memory = (rss if pss is None else pss) + work
        next_s = max(self._pause(memory, cpu_s), 3 * (self._clock() - began))
        over_memory, over_cpu = memory > self._limit, cpu_s > self._cpu_limit_s
        return Reading(rss, pss, cpu_s, len(processes), over_memory, over_cpu, min(next_s, LONGEST_S), work)

    def _pause(self, memory: int, cpu_s: float) -> float:
        """How long neither limit can be passed by much, within bounds."""
        filled_s = (self._limit - memory) / (FILL_RATE * self._cores)
        spent_s = (self._cpu_limit_s - cpu_s) / self._cores
        return min(max(min(filled_s, spent_s), SHORTEST_S), LONGEST_S)


class _CpuTime:
    """Processor time of a tree, the dead included, that never falls.

    Two sums are each too low: what the living say of themselves and of children they waited for misses children that
    were reaped without a wait (SIGCHLD ignored, see wait(2)); what each process was last seen with misses what it did
    after. The larger one is used.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], float] = {}
        self._seen_s = 0.0
        self._highest_s = 0.0

    def add(self, processes: Iterable[_Process]) -> float:
        told_s = 0.0
        alive = {}
        for process in processes:
            key = (process.pid, process.started)
            told_s += process.own_s + process.waited_s
            self._seen_s += process.own_s - self._seen.get(key, 0.0)
            alive[key] = process.own_s
        self._seen = (self._seen if len(self._seen) < _SEEN_MAX else {}) | alive
        self._highest_s = max(self._highest_s, told_s, self._seen_s)
        return self._highest_s


def tree(pid: int, proc: str = "/proc") -> list[int]:
    """A process and all its descendants; empty if it is gone.

    By ``/proc/<pid>/task/<tid>/children`` (CONFIG_PROC_CHILDREN, Linux 4.2), else from the parents of all processes.
    One that is forked while we look may be missed, and is found by the next tick.
    """
    if _read(f"{proc}/{pid}/stat") == b"":
        return []
    found = [pid]
    if not os.path.exists(f"{proc}/{pid}/task/{pid}/children"):
        return _tree_by_parents(pid, proc)
    for parent in found:
        found += [child for child in _children(parent, proc) if child not in found]  # adopted while we look
    return found


def _children(pid: int, proc: str) -> list[int]:
    tasks: list[str] = []
    with suppress(OSError):
        tasks = os.listdir(f"{proc}/{pid}/task")
    return [int(child) for task in tasks for child in _read(f"{proc}/{pid}/task/{task}/children").split()]


def _tree_by_parents(pid: int, proc: str) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir(proc):
        if name.isdecimal() and (fields := _stat(int(name), proc)):
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for parent in found:
        found += children.get(parent, ())
    return found


def _stat(pid: int, proc: str) -> list[bytes]:
    """Fields 3 (state) and on of /proc/<pid>/stat; the name before them may hold anything, brackets too."""
    return _read(f"{proc}/{pid}/stat").rpartition(b")")[2].split()


def _measure(pid: int, proc: str) -> _Process | None:
    """One process; None if it vanished. statm, not stat, for memory: it is the exact one of the two (Linux 6.17)."""
    fields, memory = _stat(pid, proc), _read(f"{proc}/{pid}/statm").split()
    if len(fields) < 20:
        return None
    own, waited = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    rss = int(memory[1]) * _PAGE if memory else 0
    return _Process(pid, int(fields[19]), own / _TICKS, waited / _TICKS, rss)


def _share(pid: int, proc: str) -> int:
    """What a process holds for itself: its share of unevictable pages, or all of them where the share is not told."""
    try:
        rollup = _fields_kib(_read_or_raise(f"{proc}/{pid}/smaps_rollup"))
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:  # EACCES: not ours to inspect; no such file before 4.14, but 5.13 is the floor
        status = _fields_kib(_read(f"{proc}/{pid}/status"))
        return status.get(b"RssAnon", 0) + status.get(b"RssShmem", 0)
    return rollup.get(b"Pss", 0) - rollup.get(b"Pss_File", 0)


def _fields_kib(text: bytes) -> dict[bytes, int]:
    """The ``Name:  123 kB`` lines, in bytes."""
    lines = (line.split() for line in text.splitlines() if line.endswith(b" kB"))
    return {words[0].rstrip(b":"): int(words[1]) * 1024 for words in lines}


def _used(work_fd: int) -> int:
    """Bytes in the file system of the work folder."""
    if work_fd < 0:
        return 0
    use = os.fstatvfs(work_fd)
    return (use.f_blocks - use.f_bfree) * use.f_frsize


def _read(path: str) -> bytes:
    """A short file of /proc; empty if its process is gone or hidden."""
    try:
        return _read_or_raise(path)
    except OSError:
        return b""


def _read_or_raise(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)
