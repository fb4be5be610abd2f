"""Over one running operation: its streams, its clock, its use of the machine, and why it was stopped if it was."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from typing import Final, Literal

from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Capabilities, Contact
from sage_sandbox.policy import STREAM_KEPT, STREAM_MAX
from sage_sandbox.sandbox.calling import NoCall, ToolCalls
from sage_sandbox.sandbox.cgroup import Cgroup
from sage_sandbox.sandbox.inside import wire
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.nursery import BrokenProtocol, Child, Zygote
from sage_sandbox.sandbox.sampling import Sampler
from sage_sandbox.sandbox.verdict import Ending, Stopped

_CGROUP_TICK_S: Final = 0.05
_CHUNK: Final = 1 << 16


@frozen
class Relay:
    """Passes an operation's streams on while it runs: bytes from ``source`` go in, what comes out goes to ``sinks``.

    ``sinks`` are the descriptors for stdout and stderr, ``spell`` says what is written for what came (1 or 2, and the
    bytes). A sink that takes nothing holds the operation up, and never its limits. ``terminal`` and ``controller`` are
    the two ends of a terminal of the operation's own, -1 for pipes.
    """

    source: int
    sinks: tuple[int, int]
    spell: Callable[[int, bytes], bytes]
    terminal: int = -1
    controller: int = -1


class Tail:
    """The last bytes of a stream and how many there were in all; everything of it while ``whole``."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._bytes = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        """Append, and forget what is too old."""
        self.total += len(data)
        self._bytes += data
        if not self._whole and len(self._bytes) > 2 * STREAM_KEPT:
            del self._bytes[:-STREAM_KEPT]

    @property
    def all(self) -> bytes:
        """Everything that is held."""
        return bytes(self._bytes)

    @property
    def kept(self) -> bytes:
        """The last 64 KiB."""
        return bytes(self._bytes[-STREAM_KEPT:])


class Watch:
    """Lives from a confined child to its `ending`. One poll loop; every descriptor in it has one handler."""

    def __init__(
        self,
        child: Child,
        job: Job,
        started: float,
        cancel_fd: int,
        stdin: bytes,
        relay: Relay | None,
        calls: ToolCalls,
    ) -> None:
        self.child = child
        self.job = job
        self.calls = calls
        self.relay = relay
        self.started = started
        self.deadline = started + job.limits.timeout_s
        self.stopped: Stopped | None = None
        self.frame: tuple[bytes, bytes] | None = None
        self.stdout = Tail(whole=job.type == "command" and relay is None)
        self.stderr = Tail(whole=False)
        self.cpu_s = 0.0
        self.max_rss = 0
        self.sampler: Sampler | None = None
        self.next_look = started
        self._cancel_fd = cancel_fd
        self._stdin = bytearray(stdin if relay is None else b"")
        self._source = relay.source if relay is not None else -1
        self._outgoing = {1: bytearray(), 2: bytearray()}
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], object]] = {}

    # Waiting.

    def start(self, request: bytes) -> None:
        """Hand over the request. A large one is read by the child at once, which is trusted until it has it."""
        child = self.child
        # A child that the kernel killed over its request ends as any other: what became of it is read below.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            child.frames.sock.sendall(request)
        if child.group is None:
            cores = os.cpu_count() or 1
            self.sampler = Sampler(
                child.host_pid(), child.work_fd, self.job.limits.memory, self.job.limits.cpu_s, cores
            )
        else:
            self.next_look = self.started + _CGROUP_TICK_S
        self._listen(child.frames.sock.fileno(), self._read_frames)
        self._listen_to_stream(1)
        if child.stderr >= 0:
            self._listen_to_stream(2)
        self._listen(self._cancel_fd, self._cancelled)
        if self.relay is not None:
            self._listen(self._source, self._read_source)
        else:
            self._feed()

    def until_gone(self, zygote: Zygote, meanwhile: Callable[[], None], delay_s: float) -> None:
        """Relay, measure and judge until the child and all beneath it are dead.

        ``meanwhile`` is called once, when the operation has run for ``delay_s`` or is over.
        """
        self._listen(zygote.fileno(), zygote.listen)
        moment: float | None = time.monotonic() + delay_s
        while self.child.gone is None:
            until = self.next_look if self.stopped else min(self.deadline, self.next_look)
            if moment is not None:
                until = min(until, moment)
                if time.monotonic() >= moment:
                    moment = None
                    meanwhile()
            for fd, _events in self._poll.poll(max(0.0, until - time.monotonic()) * 1000):
                if fd in self._handlers:
                    self._handlers[fd]()
            self._look()
        if moment is not None:
            meanwhile()
        self._drain()

    def stop(self, why: Stopped) -> None:
        """Kill it, for the first reason that came up."""
        if self.stopped is None and self.frame is None:
            self.stopped = why
        self.child.kill()

    def _listen(self, fd: int, handler: Callable[[], object], events: int = select.POLLIN) -> None:
        if fd >= 0:
            self._handlers[fd] = handler
            self._poll.register(fd, events)

    def _ignore(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # What the operation sends.

    def _read_frames(self) -> None:
        frames = self.child.frames
        frame = None
        try:
            frame = self._next_frame()
        except (BrokenProtocol, ConnectionResetError):
            self.stop("protocol")
        if frame is not None:
            self.frame = frame
        if frame is not None or frames.closed or self.stopped:
            # One frame is all an operation says: whatever still runs beneath it ends with it.
            self._ignore(frames.sock.fileno())
            self.child.kill()

    def _next_frame(self) -> tuple[bytes, bytes] | None:
        """Read what is there; its last word, if that has come. What else a child sends is about its tool calls."""
        frames = self.child.frames
        frames.fill(descriptors=self.calls.expected)
        while (frame := frames.take()) is not None and self._is_about_calls(*frame):
            continue
        return frame

    def _is_about_calls(self, kind: bytes, body: bytes) -> bool:
        if kind == wire.TOOLS and self.calls.expected and self.child.frames.fds:
            self._open_calls(self.child.frames.fds.pop())
            return True
        if kind == wire.NOT_GRANTED and self.job.type == "python":
            self.calls.refuse(body)
            if self.calls.abuse is not None:
                self.stop(self.calls.abuse)
                raise BrokenProtocol
            return True
        return False

    def _read_stream(self, fd: int, number: Literal[1, 2]) -> bool:
        """Take what is there; whether there was anything."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            # EIO from a terminal: the last process on it has closed it.
            data = b""
        if data:
            self._take(number, data)
        else:
            self._ignore(fd)
        return bool(data)

    def _take(self, number: Literal[1, 2], data: bytes) -> None:
        tail = self.stdout if number == 1 else self.stderr
        tail.add(data)
        if self.relay is not None:
            self._pass_on(number, data)
        elif tail.total > STREAM_MAX:
            # It may have sent a result too, but it is killed for this.
            self.frame = None
            self.stop("output")
            self._ignore(self.child.stdout if number == 1 else self.child.stderr)

    def _pass_on(self, number: Literal[1, 2], data: bytes) -> None:
        """Hold back the stream until its sink has taken this."""
        assert self.relay is not None
        self._outgoing[number] += self.relay.spell(number, data)
        self._ignore(self._stream(number))
        self._listen(self.relay.sinks[number - 1], lambda: self._flush(number), select.POLLOUT)

    def _flush(self, number: Literal[1, 2]) -> None:
        # POLLOUT promises room for PIPE_BUF bytes (pipe(7)): the caller's descriptors stay blocking, they are not ours.
        assert self.relay is not None
        sink, waiting = self.relay.sinks[number - 1], self._outgoing[number]
        try:
            del waiting[: os.write(sink, waiting[: select.PIPE_BUF])]
        except OSError:
            # Nobody reads ours any more: let the operation find that out as it would without us, by SIGPIPE.
            waiting.clear()
            self._ignore(sink)
            self._close_stream(number)
            return
        if not waiting:
            self._ignore(sink)
            self._listen_to_stream(number)

    def _stream(self, number: Literal[1, 2]) -> int:
        if self.relay is not None and self.relay.controller >= 0:
            return self.relay.controller
        return self.child.stdout if number == 1 else self.child.stderr

    def _listen_to_stream(self, number: Literal[1, 2]) -> None:
        fd = self._stream(number)
        self._listen(fd, lambda: self._read_stream(fd, number))

    def _close_stream(self, number: Literal[1, 2]) -> None:
        child = self.child
        fd = child.stdout if number == 1 else child.stderr
        if fd < 0:
            self.stop("cancelled")
            return
        self._ignore(fd)
        os.close(fd)
        if number == 1:
            child.stdout = -1
        else:
            child.stderr = -1

    # What goes in.

    def _read_source(self) -> None:
        """More of the caller's stdin, never ahead of what the operation has taken."""
        data = os.read(self._source, _CHUNK)
        self._ignore(self._source)
        if data:
            self._stdin += data
        else:
            self._source = -1
        self._feed()

    def _feed(self) -> None:
        controller = self.relay.controller if self.relay is not None else -1
        target = controller if controller >= 0 else self.child.stdin
        if target < 0:
            return
        try:
            while self._stdin:
                del self._stdin[: os.write(target, self._stdin)]
        except BlockingIOError:
            self._listen(target, self._feed, select.POLLOUT)
            return
        except OSError:
            # Nobody reads it any more.
            self._stdin.clear()
            self._source = -1
        if target == self.child.stdin:
            self._ignore(target)
        if self._source >= 0:
            self._listen(self._source, self._read_source)
        elif target == self.child.stdin:
            os.close(target)
            self.child.stdin = -1

    # What it calls.

    def _open_calls(self, fd: int) -> None:
        try:
            self.calls.listen(fd)
        except NoCall as error:
            raise BrokenProtocol from error
        self._listen(self.calls.wake, self._call_ended)
        self._listen(self.calls.fileno(), self._call_begins)

    def _call_begins(self) -> None:
        if not self.calls.accept():
            self._ignore(self.calls.fileno())
        self._stop_abuse()

    def _call_ended(self) -> None:
        if self.calls.woken() and self.calls.fileno() not in self._handlers:
            self._listen(self.calls.fileno(), self._call_begins)
        self._stop_abuse()

    def _stop_abuse(self) -> None:
        if self.calls.abuse is not None:
            self.stop(self.calls.abuse)

    # What it uses.

    def _cancelled(self) -> None:
        self._ignore(self._cancel_fd)
        self.stop("cancelled")

    def _look(self) -> None:
        """Time, memory and processor: what has run out ends the operation."""
        now = time.monotonic()
        if now >= self.deadline and not self.stopped:
            self.stop("timeout")
        if now < self.next_look or self.child.gone is not None:
            return
        self.next_look = now + _CGROUP_TICK_S
        if self.sampler is not None:
            self._sample(self.sampler, now)
        elif self.child.group is not None:
            self._read_group(self.child.group)

    def _sample(self, sampler: Sampler, now: float) -> None:
        reading = sampler.tick()
        self.next_look = now + reading.next_s
        self.max_rss = max(self.max_rss, reading.memory)
        self.cpu_s = max(self.cpu_s, reading.cpu_s)
        if reading.over_memory:
            self.stop("memory")
        elif reading.over_cpu:
            self.stop("cpu")

    def _read_group(self, group: Cgroup) -> None:
        usage = group.usage()
        if usage.oom_kills:
            self.stop("memory")
        elif usage.cpu_s > self.job.limits.cpu_s:
            self.stop("cpu")

    # What is left.

    def _drain(self) -> None:
        """What is still in the pipes: everybody who could write to them is dead."""
        numbers: tuple[Literal[1, 2], ...] = (1, 2) if self.child.stderr >= 0 else (1,)
        for number in numbers:
            fd = self._stream(number)
            if self.relay is not None:
                self._flush_rest(number)
            elif fd in self._handlers:
                while self._read_stream(fd, number) and fd in self._handlers:
                    continue
        if self.frame is None and self.stopped is None:
            self._last_frame()

    def _flush_rest(self, number: Literal[1, 2]) -> None:
        """Pass on what is left. Whoever ended the operation does not wait for a sink that takes nothing."""
        assert self.relay is not None
        ready = select.poll()
        ready.register(self.relay.sinks[number - 1], select.POLLOUT)
        while self._outgoing[number] or (self._stream(number) >= 0 and self._read_stream(self._stream(number), number)):
            if self.stopped and not ready.poll(0):
                return
            self._flush(number)

    def _last_frame(self) -> None:
        frames = self.child.frames
        frames.sock.setblocking(False)
        with contextlib.suppress(BrokenProtocol, ConnectionResetError, BlockingIOError):
            while not frames.closed and self.frame is None:
                self.frame = self._next_frame()

    def ending(self, contacts: tuple[Contact, ...] = ()) -> Ending:
        """Everything seen, for `verdict.judge`; ``contacts`` is what the egress proxy saw."""
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
            capabilities=_capabilities(child),
            oom_kills=usage.oom_kills if usage else 0,
            pids_refused=usage.pids_refused if usage else 0,
            work_full=_is_full(child.work_fd),
            contacts=contacts,
            calls=self.calls.made,
            denied=self.calls.denied(),
        )


def _capabilities(child: Child) -> Capabilities:
    memory: Literal["cgroup", "sampled"] = "sampled" if child.group is None else "cgroup"
    return Capabilities(memory, bool(child.capabilities.get("proc")), _hidden(child))


def _hidden(child: Child) -> Literal["overlay", "entries", "none needed"]:
    steps = child.blueprint.steps if child.blueprint is not None else ()
    if not any(isinstance(step, wire.Attach) and step.folder and not step.direct for step in steps):
        return "none needed"
    return "entries" if child.capabilities.get("hidden") == "entries" else "overlay"


def _is_full(work_fd: int) -> bool:
    """Whether the work folder has no room for one more page or file."""
    if work_fd < 0:
        return False
    room = os.fstatvfs(work_fd)
    return room.f_bavail == 0 or room.f_favail == 0
