"""One act, tried twice: by a plain interpreter of the same user, and by an operation in the sandbox.

An act is source text that defines ``act(...)`` and raises OSError where the kernel refuses. The same text runs on both
sides, so that what is shown denied inside is what was shown possible outside.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest

from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.sandbox.inside.syscall_table import NUMBERS
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor
from sage_sandbox.sandbox.watch import Relay

PATIENCE_S: Final = 60.0
ROOT: Final = os.geteuid() == 0

_PRELUDE: Final = f"""
import ctypes, errno, os, socket, stat, struct, sys
NR = {NUMBERS.get(os.uname().machine, {})!r}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(name, *args):
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = libc.syscall(ctypes.c_long(NR[name]), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
def run(params):
    try:
        return {{"value": act(**params)}}
    except OSError as error:
        return {{"errno": errno.errorcode.get(error.errno, str(error))}}
"""

# The highest rights that the user who runs the tests can have without being given any.
_OWN_NAMESPACES: Final = """
def enter():
    ids, flags = (os.geteuid(), os.getegid()), 0x20000 | 0x4000000 | 0x8000000 | 0x40000000
    if libc.unshare(flags if ids[0] == 0 else flags | 0x10000000):
        raise SystemExit(os.strerror(ctypes.get_errno()))
    if ids[0]:
        for name, text in ("setgroups", "deny"), ("uid_map", f"0 {ids[0]} 1"), ("gid_map", f"0 {ids[1]} 1"):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
enter()
"""
_PLAIN: Final = "\nimport json\nprint(json.dumps(run(json.loads(sys.stdin.read()))))\n"


@dataclass(frozen=True, slots=True)
class Did:
    """The act went through."""

    value: Any = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The kernel said no: the name of the errno."""

    error: str


@dataclass(frozen=True, slots=True)
class Died:
    """The process did not live to tell: an outcome's words, or a negative exit status."""

    how: str


End = Did | Refused | Died


@dataclass(frozen=True, slots=True)
class Bench:
    """A supervisor, the project its operations see, and a folder that nobody granted."""

    supervisor: Supervisor
    project: Path
    elsewhere: Path

    def outside(self, act: str, params: Mapping[str, Any] | None = None, *, own_namespaces: bool = False) -> End:
        """The act by a plain interpreter of the same user; with ``own_namespaces`` as the root of new ones."""
        text = _PRELUDE + (_OWN_NAMESPACES if own_namespaces else "") + dedent(act) + _PLAIN
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", text],
            input=json.dumps(params or {}).encode(),
            capture_output=True,
            cwd=self.project,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            assert done.returncode < 0, done.stderr.decode()
            return Died(signal.Signals(-done.returncode).name)
        return _end(json.loads(done.stdout))

    def inside(self, act: str, params: Mapping[str, Any] | None = None, **job: Any) -> End:
        """The act by an operation in the sandbox, granted nothing unless ``policy`` says so."""
        outcome = self.run(_PRELUDE + dedent(act), params, **job)
        return _end(outcome.value()) if outcome.ok else Died(outcome.error)

    def run(self, code: str, params: Mapping[str, Any] | None = None, **job: Any) -> Outcome:
        """Any Python operation."""
        return self.supervisor.run(self.job(code, params, **job))

    def job(self, code: str, params: Mapping[str, Any] | None = None, **job: Any) -> Job:
        """A Python operation of the project."""
        return Job(
            "python", code=dedent(code), params=json.dumps(params or {}).encode(), project=str(self.project), **job
        )

    def command(self, *argv: str, **job: Any) -> Outcome:
        """Any command operation."""
        return self.supervisor.run(Job("command", argv=argv, project=str(self.project), **job))

    def needs_proc(self) -> None:
        """Skip where the host forbids an operation a /proc of its own: then it has none, which the outcome says."""
        if not self.run("def run():\n    pass").capabilities.proc:
            pytest.skip("this host lets no user mount a /proc: operations have none")

    def refuses(self, act: str, refusal: str, params: Mapping[str, Any] | None = None, *, own_namespaces: bool = False,
                **job: Any) -> None:  # fmt: skip
        """Assert that the kernel is reached outside, and that inside the answer is ``refusal``."""
        outside = self.outside(act, params, own_namespaces=own_namespaces)
        reached(outside, refusal)
        inside = self.inside(act, params, **job)

        assert Refused(refusal) == inside, f"outside: {outside}"


def reached(outside: End, refusal: str) -> None:
    """Skip, with a name, where what happened outside proves nothing about the sandbox."""
    if outside == Refused(refusal):
        pytest.skip(f"{refusal} is this kernel's own answer to this user, too")
    if outside == Refused("ENOSYS"):
        pytest.skip("this kernel does not have the call")


def plain(body: str, **names: str) -> None:
    """Source text by a plain interpreter, where these names stand for these strings; it must go through."""
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    subprocess.run([sys.executable, "-I", "-S", "-c", f"import os\n{given}{body}"], check=True, timeout=PATIENCE_S)


def needs_root(why: str) -> pytest.MarkDecorator:
    """A skip for a user to whom the kernel refuses the act anyway."""
    return pytest.mark.skipif(not ROOT, reason=f"outside too, only root may {why}")


def _end(told: Mapping[str, Any]) -> End:
    return Refused(told["errno"]) if "errno" in told else Did(told["value"])


@dataclass(slots=True)
class Running:
    """An operation that goes on while a test does something: what it has printed, and how it ended once it did."""

    printed: queue.Queue[str]
    over: threading.Event
    _stdin: int
    _cancel: int
    outcome: Outcome | None = None

    def line(self) -> str:
        """The next whole line of its output."""
        return self.printed.get(timeout=PATIENCE_S)

    def go_on(self) -> None:
        """Let an act proceed that reads a byte of its stdin."""
        os.write(self._stdin, b"x")

    def wait(self) -> Outcome:
        """Until it has ended by itself."""
        assert self.over.wait(PATIENCE_S)
        assert self.outcome is not None
        return self.outcome

    def cancel(self) -> None:
        """Have the supervisor end it."""
        os.write(self._cancel, b"x")


@contextmanager
def running(supervisor: Supervisor, job: Job) -> Iterator[Running]:
    """Run a job in a thread; cancelled at the end if it has not ended by then."""
    (cancelled, cancel), (stdin, feed) = os.pipe(), os.pipe()
    held = Running(queue.Queue(), threading.Event(), feed, cancel)
    rest = bytearray()
    nowhere = os.open(os.devnull, os.O_WRONLY)

    def tap(_number: int, data: bytes) -> bytes:
        rest.extend(data)
        *lines, last = bytes(rest).split(b"\n")
        rest[:] = last
        for line in lines:
            held.printed.put(line.decode())
        return b""

    def work() -> None:
        held.outcome = supervisor.run(job, cancel_fd=cancelled, relay=Relay(stdin, (nowhere, nowhere), tap))
        held.over.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield held
    finally:
        held.cancel()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        for fd in (cancelled, cancel, stdin, feed, nowhere):
            os.close(fd)


@contextmanager
def running_act(bench: Bench, act: str, params: Mapping[str, Any] | None = None, **job: Any) -> Iterator[Running]:
    """An act in the sandbox, while a test does something."""
    with running(bench.supervisor, bench.job(_PRELUDE + dedent(act), params, **job)) as held:
        yield held


def granted(
    *, read: tuple[Path, ...] = (), write: tuple[Path, ...] = (), write_through: tuple[Path, ...] = ()
) -> Policy:
    """A policy over real paths."""
    return Policy(
        tuple(os.path.realpath(path) for path in read),
        tuple(os.path.realpath(path) for path in write),
        tuple(os.path.realpath(path) for path in write_through),
    )


SMALL: Final = Limits(memory=64 << 20, cpu_s=20, pids=16, disk=8 << 20, timeout_s=30)
