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
mapped file of the work folder counts twice, for the same reason. A process whose first thread has ended shows no memory
under its own name (/proc/<pid>/statm is zeros, proc(5)); its other threads show it.

Not seen: what the kernel holds for the operation, above all bytes waiting in sockets, which no file of /proc tells.
RLIMIT_NOFILE is what bounds it, 256 for each of at most 32 processes (and once more for descriptors on their way
through a socket, unix(7)). A socket holds up to net.core.wmem_default, 208 KiB, about 50 MiB in one process; but with
SO_SNDBUF twice net.core.wmem_max (socket(7)), 8 MiB where that is 4 MiB: measured, 490 MiB in one process that asked
for 1 MiB each, 2 GiB with 1024 descriptors. Pipes hold 64 MiB for each user (pipe-user-pages-soft, pipe(7)). Only a
cgroup counts this.

What is counted as processor time: see `_CpuTime`. There is no exact source without a cgroup for processes that nobody
waits for. It is a sample, and the moments of the ticks are drawn, so that an operation cannot work between them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import SystemRandom
from typing import Final

from sage_sandbox.frozen import frozen

FILL_RATE: Final = 2.5 * (1 << 30)
"""Bytes a second that one core can at most touch first (measured: page faults with zeroing)."""

SHORTEST_S: Final = 0.002
LONGEST_S: Final = 0.1
CHURN_S: Final = 0.02
"""The longest pause while processes come and go unseen: the sample's error falls with the root of it."""

_MARGIN: Final = 2.0
"""Standard deviations by which a sample of processor time must be above what is known for certain."""

_DRAW: Final = SystemRandom().random
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_GONE_MAX: Final = 4096


@frozen
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


@frozen
class _Process:
    """One process: processor seconds of its own, and of the dead children it waited for.

    ``working`` is how many cores its threads keep busy at this moment.
    """

    pid: int
    started: int
    own_s: float
    waited_s: float
    rss: int
    working: float = 0.0


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
        draw: Callable[[], float] = _DRAW,
    ) -> None:
        self._pid = pid
        self._work_fd = work_fd
        self._limit = limit
        self._cpu_limit_s = cpu_limit_s
        self._cores = max(1, cores)
        self._proc = proc
        self._clock = clock
        self._draw = draw
        self._cpu = _CpuTime(self._cores)
        self._ticked: float | None = None
        # We have run, so zeros mean that this kernel does not keep the account (CONFIG_SCHED_INFO).
        self._counts = _read(f"{proc}/self/schedstat").split()[2:] > [b"0"]

    def tick(self) -> Reading:
        """Measure now; the memory of processes that vanish on the way is left out, not their work."""
        began = self._clock()
        gap_s = 0.0 if self._ticked is None else began - self._ticked
        self._ticked = began
        pids = tree(self._pid, self._proc)
        # Our first process ends with everything beneath it: its time need not be sampled.
        found = (_measure(pid, self._proc, sampled=pid != self._pid, counts=self._counts) for pid in pids)
        processes = [process for process in found if process]
        cpu_s = self._cpu.add(processes, len(pids) - len(processes), gap_s)
        rss, work = sum(p.rss for p in processes), _used(self._work_fd)
        tripped = rss + work > self._limit
        pss = sum(_share(p, self._proc) for p in processes) if tripped else None
        memory = (rss if pss is None else pss) + work
        next_s = max(self._pause(memory, cpu_s), 3 * (self._clock() - began))
        over_memory, over_cpu = memory > self._limit, cpu_s > self._cpu_limit_s
        return Reading(rss, pss, cpu_s, len(processes), over_memory, over_cpu, min(next_s, LONGEST_S), work)

    def _pause(self, memory: int, cpu_s: float) -> float:
        """How long neither limit can be passed by much, within bounds; up to half of it is left to chance."""
        filled_s = (self._limit - memory) / (FILL_RATE * self._cores)
        spent_s = (self._cpu_limit_s - cpu_s) / self._cores
        longest_s = CHURN_S if self._cpu.unsettled else LONGEST_S
        return max(min(filled_s, spent_s, longest_s) * (0.5 + self._draw() / 2), SHORTEST_S)


@dataclass(slots=True)
class _Trace:
    """What is known of one process: seconds it told, seconds sampled, and what it counts for since it is gone."""

    own_s: float = 0.0
    sampled_s: float = 0.0
    settled_s: float = 0.0


class _CpuTime:
    """Processor time of a tree, the dead included, that never falls.

    Two sums are exact and each too low: what the living say of themselves and of children they waited for misses
    children that were reaped without a wait (SIGCHLD ignored or SA_NOCLDWAIT, see wait(2)), whose time the kernel adds
    to nobody; what each process was last seen with misses what it did after, and all of whom no tick met.

    The third is a sample. A thread found at work at a tick counts for the whole gap since the tick before: as the
    moments are drawn, this is on average just what it used, however short its life and whenever it slept, and an
    operation that cannot know them cannot be met less often. The living count with what they tell; one that is gone
    counts with its sample, but no less than it was last seen with, and at most one gap more on each core. One that
    vanished between its parent's list and its own file was at work. Waiting for a core is not work: a runnable thread
    counts with the part of its time that it ran (/proc/<pid>/schedstat; wholly, where there is none). That part is
    known late, so many short processes at once on a machine with far more to run than cores can count for more than
    they used (measured: twelve to a core, 2.4 times). The sample's error has a standard deviation of about the root
    of (gap times seconds); it counts less two of these, so that an operation whose children are waited for, of which
    the first sum is right, is not stopped by chance. With a gap of 20 ms, an operation passes 2 s by about 0.6 s and
    60 s by 2.5 s before it is stopped; measured on two cores, 2 s by 0.3 to 3.3 s.

    A bound that cannot be passed exists too: every core at work in every gap in which pids were used up. It would
    stop any shell script on a machine of 64 cores after a sixtieth of its limit.

    The largest one is used.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._living: dict[tuple[int, int], _Trace] = {}
        self._gone: dict[tuple[int, int], _Trace] = {}
        self._seen_s = 0.0
        self._settled_s = 0.0
        self._variance = 0.0
        self._highest_s = 0.0
        self.unsettled = False
        """Whether a process came or went at work since the tick before."""

    def add(self, processes: list[_Process], vanished: int, gap_s: float) -> float:
        """Count one tick, ``gap_s`` after the one before; ``vanished`` processes were listed and then gone."""
        working = vanished + sum(process.working for process in processes)
        credit_s = gap_s * min(1.0, self._cores / working) if working else 0.0
        before, alive = self._variance, {}
        self.unsettled = vanished > 0
        for process in processes:
            alive[process.pid, process.started] = self._meet(process, credit_s)
        self._settled_s += vanished * credit_s
        self._variance += vanished * credit_s**2
        if len(self._gone) > _GONE_MAX:
            self._gone.clear()
        for key in self._living.keys() - alive.keys():
            self._gone[key] = self._living[key]
            self._settle(self._gone[key], gap_s * self._cores)
        self._living = alive
        self.unsettled = self.unsettled or self._variance > before
        told_s = sum(process.own_s + process.waited_s for process in processes)
        error_s = max(self._variance, 0.0) ** 0.5
        sampled_s = self._settled_s + sum(process.own_s for process in processes) - _MARGIN * error_s
        self._highest_s = max(self._highest_s, told_s, self._seen_s, sampled_s)
        return self._highest_s

    def _meet(self, process: _Process, credit_s: float) -> _Trace:
        key = (process.pid, process.started)
        trace = self._living.get(key)
        if trace is None and (trace := self._gone.pop(key, None)) is not None:
            # Not gone, only missed: it was adopted while we looked.
            self._settled_s -= trace.settled_s
            self._variance -= (trace.settled_s - trace.own_s) ** 2
        if trace is None:
            trace = _Trace()
            self.unsettled = self.unsettled or process.working > 0
        self._seen_s += process.own_s - trace.own_s
        trace.own_s = process.own_s
        trace.sampled_s += process.working * credit_s
        return trace

    def _settle(self, trace: _Trace, most_s: float) -> None:
        trace.settled_s = min(max(trace.sampled_s, trace.own_s), trace.own_s + most_s)
        self._settled_s += trace.settled_s
        self._variance += (trace.settled_s - trace.own_s) ** 2


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
    return [int(child) for thread in _threads(pid, proc) for child in _read(f"{thread}/children").split()]


def _threads(pid: int, proc: str) -> list[str]:
    """The folders of a process's threads; none if it is gone."""
    with suppress(OSError):
        return [f"{proc}/{pid}/task/{name}" for name in os.listdir(f"{proc}/{pid}/task")]
    return []


def _tree_by_parents(pid: int, proc: str) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir(proc):
        if name.isdecimal() and (fields := _stat(f"{proc}/{name}")):
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for parent in found:
        found += children.get(parent, ())
    return found


def _stat(folder: str) -> list[bytes]:
    """Fields 3 (state) and on of the stat of a process or thread; the name before may hold anything, brackets too."""
    return _read(f"{folder}/stat").rpartition(b")")[2].split()


def _measure(pid: int, proc: str, *, sampled: bool = False, counts: bool = False) -> _Process | None:
    """One process; None if it vanished. statm, not stat, for memory: it is the exact one of the two (Linux 6.17)."""
    home = f"{proc}/{pid}"
    fields = _stat(home)
    if len(fields) < 20:
        return None
    own, waited = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    alone = int(fields[17]) < 2
    # All threads share one memory: whoever lives tells it. Several looks, for each may end just before its own.
    rss = _resident(home) or (0 if alone else max(map(_resident, _threads(pid, proc)), default=0))
    working = 0.0
    if sampled:
        threads = ((thread, _stat(thread)) for thread in _threads(pid, proc)) if not alone else ((home, fields),)
        working = sum(_working(folder, stat, counts=counts) for folder, stat in threads)
    return _Process(pid, int(fields[19]), own / _TICKS, waited / _TICKS, rss, working)


def _resident(folder: str) -> int:
    memory = _read(f"{folder}/statm").split()
    return int(memory[1]) * _PAGE if memory else 0


def _working(folder: str, fields: list[bytes], *, counts: bool) -> float:
    """How much of a core a thread has at this moment: none if it sleeps, else the part of its time that it ran."""
    if not fields or fields[0] != b"R":
        return 0.0
    told = [int(word) for word in _read(f"{folder}/schedstat").split()]
    if len(told) < 3 or not counts:
        return 1.0
    ran, waited, slices = told
    if not slices:  # forked and not yet run
        return 0.0
    # Until its first slice ends or the scheduler's tick comes, no time is told: it runs now.
    return ran / (ran + waited) if ran else 1.0


def _share(process: _Process, proc: str) -> int:
    """What a process holds for itself: its share of unevictable pages, or all of them where the share is not told."""
    home = f"{proc}/{process.pid}"
    for folder in (home, *_threads(process.pid, proc)):
        if (share := _share_told(folder)) is not None:
            return share
    # Threads that end one after the other, each as we come to it: the process is there, and holds what it held.
    fields = _stat(home)
    return process.rss if fields and int(fields[17]) > 1 else 0


def _share_told(folder: str) -> int | None:
    """The share as one thread tells it; None if it has ended."""
    try:
        rollup = _fields_kib(_read_or_raise(f"{folder}/smaps_rollup"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:  # EACCES: not ours to inspect; no such file before 4.14, but 5.13 is the floor
        status = _fields_kib(_read(f"{folder}/status"))
        return status[b"RssAnon"] + status.get(b"RssShmem", 0) if b"RssAnon" in status else None
    return rollup[b"Pss"] - rollup.get(b"Pss_File", 0) if b"Pss" in rollup else None


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
