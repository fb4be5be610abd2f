"""The way into a zygote.

An ordinary user's zygote lives in a user namespace of its own, and is started anew inside it: memory belongs to the
user namespace of the last exec, and only so may the supervisor, which owns that namespace, read the use of an
undumpable child (ptrace_may_access, Linux 4.10). Host root needs no user namespace here.
"""

from __future__ import annotations

import os
import sys

OWN_NAMESPACE = "own-user-namespace"


def main() -> None:
    """Run by the supervisor's boot line, with the package's folder, the control descriptor, perhaps a marker."""
    if sys.argv[-1] != OWN_NAMESPACE:
        from sage_sandbox.sandbox.inside import zygote

        zygote.main(int(sys.argv[2]))
        return
    enter_user_namespace()
    os.execve(sys.executable, sys.orig_argv[:-1], {})  # noqa: S606 - ourselves again


def enter_user_namespace() -> None:
    """Become the one user of a new user namespace, with every capability in it, also after exec."""
    from sage_sandbox.sandbox.inside import identity, syscalls

    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    identity.write_maps(proc, "self", uid, gid)
    os.close(proc)
    syscalls.keep_capabilities_over_exec()
