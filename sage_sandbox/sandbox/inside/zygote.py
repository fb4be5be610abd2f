"""The zygote: a small, warm interpreter that forks a child for every operation and sees nothing of what they do.

It is started with an empty environment and nothing but a control socket, lays the foundation its children
share, and then only forks and reaps. Pid 1 of its own pid namespace: when it ends, everything beneath it ends. It ends
when the other side of the control socket is gone.
"""

from __future__ import annotations

import array
import json
import os
import select
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket

from sage_sandbox.sandbox.inside import child, identity, landlock, programs, rlimits, wire
from sage_sandbox.sandbox.inside import syscalls as sc
from sage_sandbox.sandbox.inside.foundation import enter_zygote, lay_foundation

CONTROL_FD = 9
_PASSED_FDS = 16
_REHEARSALS = 20
OOM_SCORE_ADJ = 900


def main(control_fd: int) -> None:
    """Serve one supervisor until it hangs up."""
    # Children use 3 and 4 for themselves: nothing the zygote keeps may lie there.
    if control_fd != CONTROL_FD:
        os.dup2(control_fd, CONTROL_FD, inheritable=False)
        os.close(control_fd)
    for reserved in (child.RESULT_FD, child.RULESET_FD):
        os.dup2(0, reserved, inheritable=False)
    control = socket(AF_UNIX, SOCK_STREAM, 0, CONTROL_FD)
    rlimits.default_signals()
    os.umask(0o022)
    try:
        foundation = wire.unpack_request(wire.receive(control))
        assert isinstance(foundation, wire.Foundation)
        enter_zygote()
        if inner := os.fork():
            # We are the way into the pid namespace, nothing more: stay until it ends, so that it can be reaped.
            control.close()
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0x7F)
        inherited = _prepare(foundation)
    except OSError as error:
        wire.send(control, wire.REFUSED, json.dumps(["foundation", error.errno, str(error)]).encode())
        os._exit(1)
    wire.send(control, wire.READY, b"{}")
    Nursery(control, inherited).serve()


def _prepare(foundation: wire.Foundation) -> child.Inheritance:
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    _go_first(proc)
    pantry = lay_foundation(foundation, proc)
    everyone = wire.Landlock(own=False, root="", writable=(), files=(), network=False, port=0)
    ruleset = landlock.build(foundation.landlock_abi, foundation.devices, everyone)
    idmaps: dict[tuple[int, int], int] = {}
    if foundation.privileged:
        idmaps[foundation.owner] = identity.make_idmap(foundation.owner, foundation.uid, foundation.gid)
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.seccomp_filter(foundation.seccomp[0])
    sys.path[:] = [path for path in sys.path if path.startswith(sys.base_prefix)] + list(foundation.packages)
    # What an operation sees of how it was started: nothing of the host's folders.
    sys.argv[:] = sys.orig_argv[:] = ["operation"]
    programs.settle_memory()
    # Often enough that the interpreter has specialized this code (PEP 659): each child would do it again, page by page.
    for _ in range(_REHEARSALS):
        programs.rehearse()
    return child.Inheritance(proc, pantry, ruleset, idmaps, foundation)


def _go_first(proc_fd: int) -> None:
    """Where the machine runs out of memory, we and our children end before what the user runs.

    Never lowered: that takes CAP_SYS_RESOURCE (proc(5)), and a container may have given us 1000.
    """
    fd = os.open("self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        if int(os.read(fd, 16)) < OOM_SCORE_ADJ:
            os.write(fd, str(OOM_SCORE_ADJ).encode())
    finally:
        os.close(fd)


class Nursery:
    """The loop: fork on request, report every end."""

    def __init__(self, control: socket, inherited: child.Inheritance) -> None:
        self.control = control
        self.inherited = inherited
        self.home = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=inherited.proc_fd)
        self.poll = select.poll()
        self.poll.register(control.fileno(), select.POLLIN)
        self.children: dict[int, tuple[int, int]] = {}

    def serve(self) -> None:
        """Until the supervisor is gone; then everything in our pid namespace is."""
        while True:
            for fd, _event in self.poll.poll():
                if fd == self.control.fileno():
                    self._obey()
                else:
                    self._reap(fd)

    def _obey(self) -> None:
        body, passed = self._receive()
        if len(body) < wire.ORDER.size:
            os._exit(0)
        order, first, second = wire.ORDER.unpack(body)
        if order == wire.SPAWN:
            self._spawn(first, passed)
        else:
            self._map((first, second))

    def _spawn(self, serial: int, passed: list[int]) -> None:
        # unshare(CLONE_NEWPID) works once from a process's own namespace: go back before the next one.
        sc.unshare(sc.CLONE_NEWPID)
        pid = os.fork()
        if not pid:
            self._become_child(passed)
        sc.setns(self.home, sc.CLONE_NEWPID)
        for fd in passed:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        wire.send_descriptor(self.control, wire.SPAWNED, wire.LENGTH.pack(serial), pidfd)
        self.children[pidfd] = (serial, pid)
        self.poll.register(pidfd, select.POLLIN)

    def _map(self, owner: tuple[int, int]) -> None:
        foundation = self.inherited.foundation
        try:
            self.inherited.idmaps[owner] = identity.make_idmap(owner, foundation.uid, foundation.gid)
        except OSError as error:
            wire.send(self.control, wire.REFUSED, json.dumps(["idmap", error.errno, str(error)]).encode())
            return
        wire.send(self.control, wire.READY, b"{}")

    def _receive(self) -> tuple[bytes, list[int]]:
        fds = array.array("i")
        try:
            body, ancillary, _flags, _address = self.control.recvmsg(wire.ORDER.size, 4 * _PASSED_FDS + 64)
        except ConnectionResetError:
            return b"", []  # the supervisor is gone, and has not read all we said
        for level, kind, data in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return body, list(fds)

    def _become_child(self, passed: list[int]) -> None:
        # We are the child now, not the zygote: never return into its loop.
        try:
            result, *streams = passed[:4]
            for number, fd in enumerate(streams):
                os.dup2(fd, number)
            for fd in passed[4:]:
                # A cgroup's list of members: "0" moves whoever writes it (cgroups(7)).
                os.write(fd, b"0")
            self.control.detach()
            os.dup2(result, child.RESULT_FD, inheritable=False)
            child.main(socket(AF_UNIX, SOCK_STREAM, 0, child.RESULT_FD), self.inherited)
        finally:
            os._exit(0)

    def _reap(self, pidfd: int) -> None:
        serial, pid = self.children.pop(pidfd)
        self.poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        report = wire.CHILD_GONE.pack(serial, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
        wire.send(self.control, wire.EXITED, report)
