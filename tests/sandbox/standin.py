"""A throw-away process put where a zygote stands, and where its children climb from: for steps taken one at a time."""

from __future__ import annotations

import os
import signal
from _socket import AF_UNIX, SOCK_STREAM, socket, socketpair
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sage_sandbox.policy import Limits, Policy
from sage_sandbox.sandbox import nursery, steps
from sage_sandbox.sandbox.inside import child, entry, syscalls, wire, zygote
from sage_sandbox.sandbox.inside.foundation import enter_zygote
from sage_sandbox.sandbox.masks import Masker

CALL: Final = wire.PythonRequest("def run():\n    return 'ran'\n", "op.py", (), b"null", b"{}", (), 1 << 20, False)


def found(who: steps.Identity, project: Path) -> wire.Foundation:
    return steps.foundation(who, str(project))


def compiled(who: steps.Identity, project: Path, policy: Policy = Policy(), **limits: Any) -> steps.Blueprint:
    return steps.compile_steps(
        policy,
        replace(Limits(), **limits),
        who,
        found(who, project),
        project=str(project),
        masker=Masker(),
        cgroup=False,
    )


def whole(blueprint: steps.Blueprint) -> tuple[wire.Step, ...]:
    """Every step, those done ahead first."""
    return blueprint.ahead + blueprint.steps


def enter(*, privileged: bool) -> None:
    """Become pid 1 of a pid namespace, as a zygote does; who stays behind waits and says nothing."""
    if not privileged:
        entry.enter_user_namespace()
    enter_zygote()
    if inner := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0x7F)
    syscalls.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: when the test kills who stayed behind


def inherit(who: steps.Identity, project: Path) -> child.Inheritance:
    """Be a zygote with its foundation laid. Must run in a throw-away process."""
    foundation = found(who, project)
    enter(privileged=who.privileged)
    return zygote._prepare(foundation)


def pair() -> tuple[socket, socket]:
    """The supervisor's end and the child's, which lies where a child has it."""
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    os.dup2(theirs.fileno(), child.RESULT_FD, inheritable=False)
    ours_low = socket(AF_UNIX, SOCK_STREAM, 0, os.dup2(ours.detach(), 2))
    return ours_low, socket(AF_UNIX, SOCK_STREAM, 0, child.RESULT_FD)


def climbed(inherited: child.Inheritance, plan: tuple[wire.Step, ...]) -> child.Ascent:
    """Apply steps in this process: the supervisor's end of its socket is descriptor 2."""
    _ours, theirs = pair()
    ascent = child.Ascent(inherited, theirs)
    _kept.extend((_ours, theirs))
    ascent.climb(plan)
    return ascent


_kept: list[socket] = []


def frames(sock: socket) -> list[tuple[bytes, bytes]]:
    """Every frame that is there, up to the end of the stream or of what was sent."""
    sock.setblocking(False)
    data = bytearray()
    try:
        while part := sock.recv(1 << 20):
            data += part
    except BlockingIOError:
        pass
    reader = nursery.Frames.__new__(nursery.Frames)
    reader._buffer = data
    taken = []
    while frame := reader.take():
        taken.append(frame)
    return taken
