"""The supervisor: in a worker, over one zygote; confines, feeds, watches and ends one operation at a time.

It trusts nothing that comes back. Whatever happens to an operation is an Outcome; only a sandbox that cannot be had is
an exception.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from dataclasses import dataclass, replace
from typing import Final, Literal

from sage_sandbox.errors import NotGranted, SandboxUnavailable, UsageError
from sage_sandbox.outcome import Capabilities, Outcome, rejected
from sage_sandbox.policy import RESULT_MAX, STREAM_KEPT, STREAM_MAX
from sage_sandbox.sandbox import cgroup, collect, packages, steps
from sage_sandbox.sandbox.inside import syscalls, wire
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.masks import Masker
from sage_sandbox.sandbox.nursery import BrokenProtocol, Child, ChildGone, Zygote
from sage_sandbox.sandbox.sampling import Sampler
from sage_sandbox.sandbox.verdict import Ending, Stopped, judge

ZYGOTE_OPERATIONS: Final = 1_000
ZYGOTE_AGE_S: Final = 600.0
"""A zygote is replaced after so many operations or seconds: its children share address layout and hash seed."""

_CGROUP_TICK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Streams:
    """Descriptors of the caller that an operation gets as its own; -1 for a pipe that the supervisor reads.

    ``terminal``: stdin is a terminal that becomes the operation's controlling one.
    """

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    terminal: bool = False

    @property
    def given(self) -> bool:
        """Whether any is the caller's."""
        return max(self.stdin, self.stdout, self.stderr) >= 0


class Supervisor:
    """Runs one operation after the other, each in a child of its own. Not thread-safe; lives as long as its worker.

    ``project`` is the absolute path that operations see as their working directory.
    """

    def __init__(self, project: str, *, slot: int = 0) -> None:
        self.project = os.path.realpath(project)
        self.slot = slot
        self._masker = Masker()
        self._who: steps.Identity | None = None
        self._home: cgroup.CgroupHome | None = None
        self._groups: list[cgroup.Cgroup] = []
        self._zygote: Zygote | None = None
        self._packages: tuple[str, ...] = ()
        self._spare: Child | None = None

    def prepare(self) -> None:
        """Start the zygote and a spare ahead of the first operation. SandboxUnavailable if confinement cannot be had."""
        self._zygote_for(())
        if self._spare is None:
            self._spare = self._spawn(Streams(), self._blueprint(Job("python", project=self.project)))

    def run(self, job: Job, *, cancel_fd: int = -1, streams: Streams = Streams(), stdin: bytes | None = None) -> Outcome:
        """Run one operation to its end, whatever that is. ``stdin`` defaults to the parameters for a command."""
        started = time.monotonic()
        try:
            child = self._confined_child(job, streams)
        except NotGranted as error:
            return rejected("denied", error.message, error.hint)
        except UsageError as error:
            return rejected("error", error.message, error.hint)
        if job.require_cgroup and child.group is None:
            self._bury(child)
            raise SandboxUnavailable("memory=cgroup is required, and no cgroup can be written", "sage-sandbox doctor", "cgroup")
        if stdin is None:
            stdin = job.params if job.type == "command" and not streams.given else b""
        return self._serve(child, job, _Watch(child, job, cancel_fd, stdin, started), streams)

    def close(self) -> None:
        """End the zygote and everything beneath it; remove the cgroups."""
        if self._zygote is not None:
            self._zygote.close()
        self._zygote = self._spare = None
        if self._home is not None:
            self._home.close()
        self._home = None
        self._groups.clear()

    # The zygote.

    def _zygote_for(self, names: tuple[str, ...]) -> Zygote:
        worn = self._zygote is not None and (
            self._packages != names
            or self._zygote.served > ZYGOTE_OPERATIONS
            or time.monotonic() - self._zygote.born > ZYGOTE_AGE_S
        )
        if worn:
            self._drop_zygote()
        if self._zygote is None:
            if self._who is None:
                self._who = steps.identity()
                self._home = cgroup.find()
            base = steps.foundation(self._who, self.project, packages.binds(names))
            self._zygote = Zygote(base)
            self._packages = names
        return self._zygote

    def _drop_zygote(self) -> None:
        if self._zygote is not None:
            children = list(self._zygote.children.values())
            self._zygote.close()
            self._groups += [child.group for child in children if child.group is not None]
        self._zygote = self._spare = None

    def _blueprint(self, job: Job) -> steps.Blueprint:
        assert self._who is not None
        assert self._zygote is not None
        return steps.compile_steps(
            job.policy,
            job.limits,
            self._who,
            self._zygote.foundation,
            project=self.project,
            masker=self._masker,
            cgroup=self._home is not None,
        )

    # Children.

    def _confined_child(self, job: Job, streams: Streams) -> Child:
        """A child with every step applied: the spare where it fits, else a new one; one retry if the zygote had died."""
        for attempt in (1, 2):
            zygote = self._zygote_for(job.packages)
            blueprint = self._blueprint(job)
            try:
                self._map_owners(zygote, blueprint)
                child = self._take_spare(blueprint, streams) or self._spawn(streams, blueprint)
                zygote.wait_born(child)
                child.wait_ready()
                return child
            except SandboxUnavailable:
                self._drop_zygote()
                raise
            except (ChildGone, BrokenProtocol, TimeoutError, OSError):
                self._drop_zygote()
                if attempt == 2:
                    break
        raise SandboxUnavailable("the sandbox's zygote died", "sage-sandbox doctor", "zygote")

    def _map_owners(self, zygote: Zygote, blueprint: steps.Blueprint) -> None:
        foreign = [owner for owner in blueprint.owners if owner not in zygote.mapped_owners]
        if foreign and self._spare is not None:
            # A child has the maps that its zygote had when it was forked.
            self._bury(self._spare)
            self._spare = None
        for owner in foreign:
            zygote.map_owner(owner)

    def _take_spare(self, blueprint: steps.Blueprint, streams: Streams) -> Child | None:
        spare = self._spare
        if spare is None or streams.given:
            return None
        self._spare = None
        if spare.blueprint is None:
            spare.confine(blueprint)
        elif spare.blueprint != blueprint:
            self._bury(spare)
            return None
        return spare

    def _spawn(self, streams: Streams, blueprint: steps.Blueprint | None) -> Child:
        assert self._zygote is not None
        child = self._zygote.spawn(self._free_group(), streams.stdin, streams.stdout, streams.stderr)
        if blueprint is not None:
            child.confine(blueprint)
        return child

    def _free_group(self) -> cgroup.Cgroup | None:
        if self._home is None:
            return None
        return self._groups.pop() if self._groups else self._home.make(f"{self.slot}-{time.monotonic_ns()}")

    def _refill(self, used: steps.Blueprint | None) -> None:
        """Have the next child ready: locked where the next operation likely has no grants either, else half-open."""
        if self._spare is None and self._zygote is not None and used is not None:
            self._spare = self._spawn(Streams(), None if used.bound else used)

    def _bury(self, child: Child) -> None:
        """Kill and reap a child, and keep its cgroup for the next."""
        zygote = self._zygote
        assert zygote is not None
        try:
            zygote.wait_born(child)
            child.kill()
            zygote.wait_gone(child)
        except ChildGone:
            self._drop_zygote()
        if child.group is not None:
            self._groups.append(child.group)
        child.close()

    # One operation.

    def _serve(self, child: Child, job: Job, watch: _Watch, streams: Streams) -> Outcome:
        zygote = self._zygote
        assert zygote is not None
        try:
            if child.group is not None:
                child.group.limit(job.limits.memory, job.limits.pids)
            watch.start(wire.pack(_request(job, streams)))
            if not streams.given:
                self._refill(child.blueprint)
            watch.until_gone(zygote)
        except (ChildGone, BrokenProtocol, BrokenPipeError, ConnectionResetError):
            self._drop_zygote()
            return rejected("worker lost", "the sandbox's zygote died under the operation")
        try:
            outcome = judge(watch.ending())
            return self._collect(child, job, outcome) if child.work_fd >= 0 else outcome
        finally:
            if child.group is not None:
                self._groups.append(child.group)
            child.close()

    def _collect(self, child: Child, job: Job, outcome: Outcome) -> Outcome:
        """Take over what a fulfilled operation left in files; if that cannot be, it is not fulfilled."""
        if not outcome.ok or child.blueprint is None:
            return outcome
        try:
            written = collect.commit_stages(child.work_fd, child.blueprint.stages, job.policy.unprotected)
            artifacts = collect.collect_artifacts(child.work_fd, child.blueprint.box, job.artifacts) if job.artifacts else ()
        except collect.Uncollectable as error:
            return replace(outcome, status="rejected", reason="denied", error=error.message, hint=error.hint, result=b"null")
        except OSError as error:
            text = f"taking over files: {error.strerror}: {error.filename or ''}".rstrip(": ")
            return replace(outcome, status="rejected", reason="error", error=text, result=b"null")
        return replace(outcome, artifacts=artifacts, written=written)


def _request(job: Job, streams: Streams) -> wire.PythonRequest | wire.CommandRequest:
    if job.type == "command":
        return wire.CommandRequest(job.argv, job.env, streams.terminal)
    return wire.PythonRequest(job.code, job.file, job.files, job.params, job.inputs, job.env, RESULT_MAX)


class _Tail:
    """The last bytes of a stream, how many there were in all, and everything while ``whole``."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._kept = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        self._kept += data
        if not self._whole and len(self._kept) > 2 * STREAM_KEPT:
            del self._kept[:-STREAM_KEPT]

    @property
    def all(self) -> bytes:
        return bytes(self._kept)

    @property
    def kept(self) -> bytes:
        return bytes(self._kept[-STREAM_KEPT:])


class _Watch:
    """Everything about one running operation: its streams, its clock, its use of the machine, and why it was stopped."""

    def __init__(self, child: Child, job: Job, cancel_fd: int, stdin: bytes, started: float) -> None:
        self.child = child
        self.job = job
        self.cancel_fd = cancel_fd
        self.started = started
        self.deadline = started + job.limits.timeout_s
        self.stopped: Stopped | None = None
        self.frame: tuple[bytes, bytes] | None = None
        self.stdin = memoryview(stdin)
        self.stdout = _Tail(whole=job.type == "command")
        self.stderr = _Tail(whole=False)
        self.cpu_s = 0.0
        self.max_rss = 0
        self.sampler: Sampler | None = None
        self.next_look = started
        self.poll = select.poll()

    def start(self, request: bytes) -> None:
        """Hand over the request. A large one is read by the child at once, which is trusted until it has it."""
        child = self.child
        child.frames.sock.sendall(request)
        if child.group is None:
            cores = os.cpu_count() or 1
            self.sampler = Sampler(child.host_pid(), child.work_fd, self.job.limits.memory, self.job.limits.cpu_s, cores)
        self.poll.register(child.frames.sock, select.POLLIN)
        for fd in (child.stdout, child.stderr):
            if fd >= 0:
                self.poll.register(fd, select.POLLIN)
        if self.cancel_fd >= 0:
            self.poll.register(self.cancel_fd, select.POLLIN)
        if child.stdin >= 0:
            self._feed()

    def until_gone(self, zygote: Zygote) -> None:
        """Relay, measure and judge until the child and all beneath it are dead."""
        self.poll.register(zygote.fileno(), select.POLLIN)
        while self.child.gone is None:
            timeout = max(0.0, min(self.deadline if not self.stopped else self.next_look, self.next_look) - time.monotonic())
            for fd, _events in self.poll.poll(timeout * 1000):
                self._ready(fd, zygote)
            self._look()
        self._drain()

    def _ready(self, fd: int, zygote: Zygote) -> None:
        child = self.child
        if fd == zygote.fileno():
            zygote.listen()
        elif fd == child.frames.sock.fileno():
            self._read_frames()
        elif fd == child.stdin:
            self._feed()
        elif fd == self.cancel_fd:
            self.poll.unregister(fd)
            self.stop("cancelled")
        else:
            self._read_stream(fd)

    def stop(self, why: Stopped) -> None:
        """Kill it, for the first reason that came up."""
        if self.stopped is None and self.frame is None:
            self.stopped = why
        self.child.kill()

    def _read_frames(self) -> None:
        frames = self.child.frames
        try:
            frames.fill()
            frame = frames.take()
        except (BrokenProtocol, ConnectionResetError):
            frame = None
            self.stop("protocol")
        if frame is not None:
            self.frame = frame
        if frame is not None or frames.closed or self.stopped:
            # One frame is all an operation says: whatever still runs beneath it ends with it.
            self.poll.unregister(frames.sock)
            self.child.kill()

    def _read_stream(self, fd: int) -> None:
        tail = self.stdout if fd == self.child.stdout else self.stderr
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self.poll.unregister(fd)
            return
        tail.add(data)
        if tail.total > STREAM_MAX:
            self.poll.unregister(fd)
            self.frame = None
            self.stop("output")

    def _feed(self) -> None:
        fd = self.child.stdin
        try:
            self.stdin = self.stdin[os.write(fd, self.stdin) :] if self.stdin else self.stdin
        except BlockingIOError:
            self.poll.register(fd, select.POLLOUT)
            return
        except BrokenPipeError:
            self.stdin = self.stdin[:0]
        if self.stdin:
            self.poll.register(fd, select.POLLOUT)
            return
        with contextlib.suppress(KeyError):
            self.poll.unregister(fd)
        os.close(fd)
        self.child.stdin = -1

    def _look(self) -> None:
        """Time, memory and processor: what has run out ends the operation."""
        now = time.monotonic()
        if now >= self.deadline and not self.stopped:
            self.stop("timeout")
        if now < self.next_look or self.child.gone is not None:
            return
        if self.sampler is not None:
            self._sample(self.sampler, now)
        elif self.child.group is not None:
            self._read_group(self.child.group, now)

    def _sample(self, sampler: Sampler, now: float) -> None:
        reading = sampler.tick()
        self.next_look = now + reading.next_s
        self.max_rss = max(self.max_rss, reading.memory)
        self.cpu_s = max(self.cpu_s, reading.cpu_s)
        if reading.over_memory:
            self.stop("memory")
        elif reading.over_cpu:
            self.stop("cpu")

    def _read_group(self, group: cgroup.Cgroup, now: float) -> None:
        usage = group.usage()
        self.next_look = now + _CGROUP_TICK_S
        if usage.oom_kills:
            self.stop("memory")
        elif usage.cpu_s > self.job.limits.cpu_s:
            self.stop("cpu")

    def _drain(self) -> None:
        """What is left in the pipes: everybody who could write to them is dead."""
        for fd, tail in ((self.child.stdout, self.stdout), (self.child.stderr, self.stderr)):
            while fd >= 0 and tail.total <= STREAM_MAX:
                try:
                    data = os.read(fd, 1 << 16)
                except BlockingIOError:
                    break
                if not data:
                    break
                tail.add(data)
        if max(self.stdout.total, self.stderr.total) > STREAM_MAX and self.stopped is None:
            self.stopped = "output"
        if self.frame is None and self.stopped is None:
            self._last_frame()

    def _last_frame(self) -> None:
        with contextlib.suppress(BrokenProtocol, ConnectionResetError, BlockingIOError):
            self.child.frames.sock.setblocking(False)
            while not self.child.frames.closed and self.frame is None:
                self.child.frames.fill()
                self.frame = self.child.frames.take()

    def ending(self) -> Ending:
        """Everything seen, for `judge`."""
        child = self.child
        assert child.gone is not None
        usage = child.group.usage() if child.group is not None else None
        return Ending(
            job=self.job,
            stopped=self.stopped,
            frame=self.frame,
            status=child.gone.status,
            duration_s=time.monotonic() - self.started,
            cpu_s=usage.cpu_s if usage else max(self.cpu_s, child.gone.cpu_s),
            max_rss=usage.max_rss if usage else max(self.max_rss, child.gone.max_rss),
            stdout=self.stdout.all,
            stdout_kept=self.stdout.kept,
            stderr_kept=self.stderr.kept,
            capabilities=self._capabilities(),
            oom_kills=usage.oom_kills if usage else 0,
            pids_refused=usage.pids_refused if usage else 0,
            work_full=_is_full(child.work_fd),
        )

    def _capabilities(self) -> Capabilities:
        blueprint = self.child.blueprint
        overlay = blueprint is not None and any(isinstance(step, wire.Attach) and step.layer >= 0 for step in blueprint.steps)
        hidden: Literal["overlay", "none needed"] = "overlay" if overlay else "none needed"
        memory: Literal["cgroup", "sampled"] = "cgroup" if self.child.group is not None else "sampled"
        return Capabilities(memory, bool(self.child.capabilities.get("proc")), hidden)


def _is_full(work_fd: int) -> bool:
    if work_fd < 0:
        return False
    room = os.fstatvfs(work_fd)
    return room.f_bavail == 0 or room.f_favail == 0


def confine_this_process() -> None:
    """Make the process that holds secrets unreadable for others of its user (PR_SET_DUMPABLE 0)."""
    syscalls.set_dumpable(False)
