"""Runs a command under the shim: counts its file-changing calls, crashes it at one of them, tells what it did."""

from __future__ import annotations

import errno
import mmap
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from crash.shim import Tools
    from crash.warm import Warm

Scope = Literal["tree", "process"]
WRITES = frozenset({"write", "pwrite", "writev", "sendfile", "copy_file_range", "splice"})
"""Calls that can be stopped in the middle: half of the bytes."""
_CONTROL_BYTES = 64
_FIRED = ("", "crashed", "fired", "not cut")


@dataclass(frozen=True)
class Command:
    """What to run, where, in which environment."""

    argv: Sequence[str | Path]
    cwd: Path
    env: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """What the shim does to which call; ``Plan()`` only counts."""

    verb: str = "record"
    when: str = "once"
    at: int = 0
    error: int = 0
    only: str = ""
    about: str = ""
    """If given, ``at`` counts the calls of that name which are about a path that contains this."""

    def __str__(self) -> str:
        name = f" {errno.errorcode[self.error]}" if self.error else ""
        return f"{self.verb} {self.when} {self.at}{name} {self.only} {self.about}".rstrip()

    @property
    def spelled(self) -> str:
        """As the shim reads it."""
        return f"{self.verb} {self.when} {self.at} {self.error}"


@dataclass(frozen=True)
class Timer:
    """A kill -9 that comes whenever it comes: after a time, of the first process alone or of all."""

    after_s: float
    scope: Scope = "tree"


@dataclass(frozen=True)
class Call:
    """One counted call. ``result`` is None if it never came back, a negative errno if it failed."""

    number: int
    began_ns: int
    pid: int
    name: str
    flags: int
    size: int
    path: str
    other: str
    result: int | None = None
    ended_ns: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return self.result is not None and self.result >= 0

    def __str__(self) -> str:
        return f"{self.number} {self.name}({self.path}{f' -> {self.other}' if self.other else ''}) = {self.result}"


@dataclass(frozen=True)
class Result:
    """What became of a command: ``code`` as subprocess has it, negative for a signal."""

    code: int
    stdout: str
    stderr: str
    count: int
    fired: str
    """``crashed`` by a plan for the tree, ``fired`` any other plan, ``not cut`` if no power was to be cut, or empty."""
    calls: tuple[Call, ...] = ()
    left: int = 0
    """Processes that outlived the command's own and had to be killed."""


class TookTooLong(AssertionError):
    """The command did not end in time; all of it was killed."""


@dataclass
class Running:
    """A command under its keeper: ``ended()`` waits for its own process, ``result()`` for all that it started."""

    folder: Path
    control: mmap.mmap
    report: int
    leash: int
    until: float
    keeper: subprocess.Popen[bytes] | None
    """None: somebody else's child."""
    _unread: bytes = b""
    _words: dict[str, int] = field(default_factory=dict)

    def ended(self) -> int:
        """The exit code of the command's own process; others may still be there."""
        return os.waitstatus_to_exitcode(self._word("main"))

    def result(self) -> Result:
        """What became of it, once nothing of it is left."""
        code, left = self.ended(), self._word("left")
        count, fired = (int.from_bytes(self.control[start : start + 4], "little") for start in (0, 16))
        trace = self.folder / "trace"
        calls = tuple(read_trace(trace.read_text("ascii"))) if trace.exists() else ()
        return Result(code, self._text("stdout"), self._text("stderr"), count, _FIRED[fired], calls, left)

    def close(self) -> None:
        """Kill what is left, if anything is."""
        os.close(self.leash)
        while os.read(self.report, 4096):  # the keeper is the last who has its other end
            pass
        if self.keeper is not None:
            self.keeper.wait()
        os.close(self.report)
        self.control.close()

    def _word(self, word: str) -> int:
        while word not in self._words:
            if not select.select([self.report], [], [], max(0.0, self.until - time.monotonic()))[0]:
                raise TookTooLong(self._text("stderr"))
            more = os.read(self.report, 4096)
            assert more, "the keeper is gone"
            *lines, self._unread = (self._unread + more).split(b"\n")
            self._words |= {name.decode(): int(value) for name, value in (line.split() for line in lines)}
        return self._words[word]

    def _text(self, name: str) -> str:
        return (self.folder / name).read_text("utf-8", "replace")


@dataclass(frozen=True)
class Harness:
    """How commands are run: the built tools, where notes are kept meanwhile, and below which paths calls count."""

    tools: Tools
    notes: Path
    watched: tuple[Path, ...]
    mount: Path | None = None
    """Where a ``cut`` plan cuts the power."""
    warm: Warm | None = None
    """What forks for a command, instead of starting it; None: every command is started."""

    def run(self, command: Command, plan: Plan = Plan(), **how: Any) -> Result:
        """Run a command to its end, whichever end the plan has in store."""
        with self.started(command, plan, **how) as running:
            return running.result()

    @contextmanager
    def started(
        self,
        command: Command,
        plan: Plan = Plan(),
        *,
        scope: Scope = "tree",
        trace: bool = False,
        timer: Timer | None = None,
        linger_s: float = 0.0,
        timeout_s: float = 60.0,
    ) -> Iterator[Running]:
        """Start a command. What it started may outlive its own process by ``linger_s``, and never the block."""
        with tempfile.TemporaryDirectory(dir=self.notes) as name:
            folder = Path(name)
            (folder / "control").write_bytes(bytes(_CONTROL_BYTES))
            env = {**command.env, **self._environment(folder, plan, scope)}
            if trace:
                (folder / "trace").touch()
                env["CRASH_TRACE"] = str(folder / "trace")
            start = self.warm.start if self.warm else self._start
            running = _running(start, folder, command, env, timer, linger_s, time.monotonic() + timeout_s)
            try:
                yield running
            finally:
                running.close()

    def _start(
        self, command: Command, env: Mapping[str, str], kept: Sequence[str], fds: tuple[int, int, int, int]
    ) -> subprocess.Popen[bytes]:
        """Start a command under a keeper told ``kept``; ``fds``: its stdout, its stderr, the keeper's two."""
        stdout, stderr, *own = fds
        return subprocess.Popen(
            [self.tools.keeper, *map(str, own), *kept, *command.argv],
            cwd=command.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=own,
        )

    def _environment(self, folder: Path, plan: Plan, scope: Scope) -> dict[str, str]:
        return {
            "CRASH_SHIM": str(self.tools.shim),
            "CRASH_PATHS": ":".join(str(path) for path in self.watched),
            "CRASH_CONTROL": str(folder / "control"),
            "CRASH_PLAN": plan.spelled,
            "CRASH_SCOPE": scope,
            **({"CRASH_ONLY": plan.only, "CRASH_ABOUT": plan.about} if plan.only else {}),
            **({"CRASH_MOUNT": str(self.mount)} if self.mount else {}),
        }


def _running(
    start: Callable[
        [Command, Mapping[str, str], Sequence[str], tuple[int, int, int, int]], subprocess.Popen[bytes] | None
    ],
    folder: Path,
    command: Command,
    env: Mapping[str, str],
    timer: Timer | None,
    linger_s: float,
    until: float,
) -> Running:
    report, report_end = os.pipe2(os.O_CLOEXEC)
    leash_end, leash = os.pipe2(os.O_CLOEXEC)
    kill = (timer.scope, str(int(timer.after_s * 1e6))) if timer else ("none", "0")
    kept = (*kill, str(int(linger_s * 1000)))
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        keeper = start(command, env, kept, (stdout.fileno(), stderr.fileno(), report_end, leash_end))
    os.close(report_end)
    os.close(leash_end)
    with (folder / "control").open("r+b") as file:
        control = mmap.mmap(file.fileno(), _CONTROL_BYTES)
    return Running(folder, control, report, leash, until, keeper)


def plans_for(calls: Sequence[Call], verbs: Sequence[str]) -> Iterator[Plan]:
    """Every plan there is for the calls of a recorded run, call by call."""
    for call in calls:
        in_parts = call.name in WRITES and call.size > 1
        for verb in ("kill", "cut"):
            if verb in verbs:
                yield Plan(verb, "before", call.number)
                if in_parts:
                    yield Plan(verb, "middle", call.number)
                yield Plan(verb, "after", call.number)
        if "fail" in verbs:
            for error in (errno.ENOSPC, errno.EIO):
                yield Plan("fail", "once", call.number, error)
                yield Plan("fail", "ever", call.number, error)
        if "short" in verbs and in_parts:
            yield Plan("short", "once", call.number)


def read_trace(text: str) -> list[Call]:
    """The calls of a trace, by number. A last line that a kill has torn is left out."""
    lines = [line.split("\t") for line in text.split("\n")[:-1]]
    ended = {number: (int(result), int(ended_ns)) for kind, number, ended_ns, result in _only(lines, "-")}
    calls = [
        Call(
            int(number),
            int(began),
            int(pid),
            name,
            int(flags),
            int(size),
            _plain(path),
            _plain(other),
            *ended.get(number, (None, None)),
        )
        for _, number, began, pid, name, flags, size, path, other in _only(lines, "+")
    ]
    return sorted(calls, key=lambda call: call.number)


def _only(lines: list[list[str]], kind: str) -> list[list[str]]:
    return [line for line in lines if line[0] == kind]


def _plain(text: str) -> str:
    raw = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)
    return os.fsdecode(raw.encode("latin-1"))
