"""One operation's process: confined step by step, then told what to run, then gone.

We are a fork of the zygote and pid 1 of a pid namespace of our own. There is no logger and no network, and an exception
that escapes reaches nobody: whatever goes wrong is reported over the result socket, or we die.
"""

from __future__ import annotations

import errno
import json
import os
import select
from typing import TYPE_CHECKING, Any, NamedTuple

from sage_sandbox.sandbox.inside import attaching, identity, landlock, namespaces, programs, rlimits, wire
from sage_sandbox.sandbox.inside import syscalls as sc

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

RESULT_FD = 3
RULESET_FD = 4


class Inheritance(NamedTuple):
    """What the zygote made once and every child may use on its way in."""

    proc_fd: int
    pantry_fd: int
    ruleset_fd: int
    idmaps: dict[tuple[int, int], int]
    foundation: wire.Foundation


class Ascent:
    """The steps of one child, applied in order; ``capabilities`` gathers what the named exceptions came to."""

    def __init__(self, inherited: Inheritance, sock: socket) -> None:
        self._sock = sock
        self.inherited = inherited
        self.identity = (inherited.foundation.uid, inherited.foundation.gid)
        self.capabilities: dict[str, Any] = {"proc": False}
        self.confined = False
        self._apply: dict[type[wire.Step], Callable[[Any], None]] = {
            wire.Namespaces: self._namespaces,
            wire.Listen: self._listen,
            wire.Work: self._work,
            wire.OwnRoot: namespaces.build_own_root,
            wire.Place: namespaces.place_box,
            wire.Attach: self._attach,
            wire.Proc: self._proc,
            wire.Pivot: namespaces.pivot,
            wire.Landlock: self._landlock,
            wire.Identity: self._identity,
            wire.Descriptors: self._descriptors,
            wire.Defaults: self._defaults,
            wire.Rlimits: self._rlimits,
            wire.Powerless: self._powerless,
            wire.Restrict: self._restrict,
            wire.Seccomp: self._seccomp,
            wire.SelfCheck: self._self_check,
        }

    def climb(self, steps: tuple[wire.Step, ...]) -> None:
        """Apply every step; StepFailed names the one that could not be, and nothing after it is tried."""
        for step in steps:
            try:
                self._apply[type(step)](step)
            except (OSError, ValueError) as error:
                code = error.errno if isinstance(error, OSError) else errno.EINVAL
                raise StepFailed(type(step).__name__, code or 0, str(error)) from error

    def _namespaces(self, step: wire.Namespaces) -> None:
        namespaces.own_namespaces(step, self.inherited.pantry_fd)

    def _listen(self, step: wire.Listen) -> None:
        # Whoever holds it serves it: from here on that is the egress proxy, and not us.
        listener = namespaces.listen(step)
        wire.send_descriptor(self._sock, wire.LISTENER, b"", listener.fileno())
        listener.close()

    def _work(self, step: wire.Work) -> None:
        namespaces.mount_work(step)
        # The supervisor collects from this descriptor when we are dead; nothing of ours has run beneath it yet.
        fd = os.open(step.target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        wire.send_descriptor(self._sock, wire.WORK_FOLDER, b"", fd)
        os.close(fd)

    def _attach(self, step: wire.Attach) -> None:
        if not attaching.attach(step, self.identity, self.inherited.idmaps):
            self.capabilities["hidden"] = "entries"

    def _proc(self, step: wire.Proc) -> None:
        self.capabilities["proc"] = namespaces.mount_proc(step)

    def _landlock(self, step: wire.Landlock) -> None:
        # Built while paths of the tree being assembled can be opened; put in force by Restrict.
        foundation = self.inherited.foundation
        fd = self.inherited.ruleset_fd
        if step.own:
            fd = landlock.build(foundation.landlock_abi, foundation.devices, step)
        if fd != RULESET_FD:
            os.dup2(fd, RULESET_FD, inheritable=False)

    def _identity(self, step: wire.Identity) -> None:
        self._mapped = rlimits.mapped_bytes(self.inherited.proc_fd)
        identity.become(step, self.inherited.proc_fd)

    def _descriptors(self, _step: wire.Descriptors) -> None:
        os.closerange(RULESET_FD + 1, 1 << 30)

    def _defaults(self, _step: wire.Defaults) -> None:
        os.umask(0o077)

    def _rlimits(self, step: wire.Rlimits) -> None:
        rlimits.apply(step.values, step.address_space, self._mapped)

    def _powerless(self, _step: wire.Powerless) -> None:
        sc.drop_bounding_set()
        sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
        sc.prctl(sc.PR_SET_SECUREBITS, sc.SECURE_ALL)
        sc.set_capabilities(0, 0, 0)
        sc.set_dumpable(False)
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)

    def _restrict(self, _step: wire.Restrict) -> None:
        sc.landlock_restrict_self(RULESET_FD)
        os.close(RULESET_FD)

    def _seccomp(self, _step: wire.Seccomp) -> None:
        sc.seccomp_filter(self.inherited.foundation.seccomp[1])

    def _self_check(self, _step: wire.SelfCheck) -> None:
        check_confined()
        self.confined = True


class StepFailed(Exception):
    """A step could not be applied: nothing may run in this process any more."""

    def __init__(self, step: str, code: int, message: str) -> None:
        super().__init__(step, code, message)
        self.step = step
        self.code = code
        self.message = message


def check_confined() -> None:
    """Read back from the kernel what the steps were to bring about; OSError names what does not hold."""
    claims = {
        "no new privileges": sc.prctl(sc.PR_GET_NO_NEW_PRIVS) == 1,
        "no capability": not any(sc.capabilities()),
        "seccomp filter": sc.prctl(sc.PR_GET_SECCOMP) == sc.SECCOMP_MODE_FILTER,
        "not dumpable": sc.prctl(sc.PR_GET_DUMPABLE) == 0,
        "no foreign descriptor": no_foreign_descriptor(),
        "mount is refused": _refused(lambda: sc.umount2("/", 0)),
        "no new user namespace": _refused(lambda: sc.unshare(sc.CLONE_NEWUSER)),
    }
    for claim, holds in claims.items():
        if not holds:
            raise OSError(errno.EPERM, f"self-check: {claim} does not hold")


# The 64 descriptors above the result's: poll(2) marks each that is closed POLLNVAL, all in one call.
_FOREIGN = select.poll()
for _number in range(RESULT_FD + 1, RESULT_FD + 65):
    _FOREIGN.register(_number, 0)


def no_foreign_descriptor() -> bool:
    """Whether nothing is open above the result's descriptor."""
    found = _FOREIGN.poll(0)
    return len(found) == 64 and all(event == select.POLLNVAL for _fd, event in found)


def _refused(call: Callable[[], None]) -> bool:
    try:
        call()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def main(sock: socket, inherited: Inheritance) -> None:
    """The child's life after the fork. ``sock`` is descriptor 3; returns only to `os._exit`."""
    # Touch what an operation will touch, while nobody waits for us: the copy-on-write faults are taken here.
    programs.rehearse()
    ascent = Ascent(inherited, sock)
    try:
        while not ascent.confined:
            ascent.climb(wire.unpack_steps(wire.receive(sock)))
    except StepFailed as failure:
        wire.send(sock, wire.REFUSED, json.dumps([failure.step, failure.code, failure.message]).encode())
        return
    wire.send(sock, wire.READY, json.dumps(ascent.capabilities).encode())
    try:
        programs.run(sock, wire.unpack_request(wire.receive(sock)))
    except MemoryError:
        # The request alone was more than the operation may have.
        wire.send(sock, wire.ERROR, b'{"type": "MemoryError"}')
