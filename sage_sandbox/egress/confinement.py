"""The egress proxy's own confinement: what speaks to a stranger's code and to strangers' hosts may do little else.

It keeps the host's network and sees the host's files, as far as resolving names takes them; no process, no local
socket, no program, no file to write. Each step raises OSError, and a proxy that one of them fails in serves nobody.
"""

from __future__ import annotations

import os
import resource
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from sage_sandbox.sandbox.inside import landlock, rlimits, seccomp
from sage_sandbox.sandbox.inside import syscalls as sc

SYSTEM_FOLDERS: Final = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share", "/usr/local/lib", "/lib", "/lib64")
"""Where the resolver's own modules lie, which it may load late, and the zones of a clock."""
RESOLVER_FILES: Final = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services",
    "/etc/ld.so.cache",
)  # fmt: skip
_NO_SETUID_FIXUP: Final = 1 << 2


def confine(uid: int) -> None:
    """Give away everything but the network. ``uid`` is who to become, 0 to stay who we are."""
    sc.set_dumpable(False)
    _load_resolver()
    abi = sc.landlock_abi()
    ruleset = _ruleset(abi)
    if uid:
        # Never the fix-up that would take our capabilities here: they go below, locked.
        sc.prctl(sc.PR_SET_SECUREBITS, _NO_SETUID_FIXUP)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        sc.drop_bounding_set()
        sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
        sc.prctl(sc.PR_SET_SECUREBITS, sc.SECURE_ALL)
    sc.set_capabilities(0, 0, 0)
    sc.set_dumpable(False)
    rlimits.apply(_LIMITS, 0, 0)
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.landlock_restrict_self(ruleset)
    os.close(ruleset)
    for program in (
        seccomp.zygote_program(sc.ARCH, memfd=False),
        seccomp.network_program(sc.ARCH),
        seccomp.lock_program(sc.ARCH),
    ):
        sc.seccomp_filter(program)
    _check()


# Threads are not counted here: NPROC counts all of a user's.
_LIMITS: Final = (
    (resource.RLIMIT_NOFILE, 1024),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_DATA, 512 << 20),
    (resource.RLIMIT_CORE, 1),
    (resource.RLIMIT_MEMLOCK, 0),
    (resource.RLIMIT_MSGQUEUE, 0),
    (resource.RLIMIT_RTPRIO, 0),
)


def _load_resolver() -> None:
    """Have the resolver read its configuration and load its modules while their files can be opened."""
    with suppress(OSError):
        socket.getaddrinfo(b"localhost", 80, type=socket.SOCK_STREAM)


def _ruleset(abi: int) -> int:
    """Files of the resolver to read; no TCP port to listen on; no signal and no abstract socket to others."""
    handled = landlock.handled_files(abi)
    ruleset = sc.landlock_create_ruleset(
        handled, landlock.BIND_TCP if abi >= 4 else 0, landlock.SCOPE_ALL if abi >= 6 else 0
    )
    # Another program replaces resolv.conf by a rename: where it lies elsewhere, its folder is what stays.
    elsewhere = str(Path("/etc/resolv.conf").resolve().parent)
    folders = (*SYSTEM_FOLDERS, *(() if elsewhere in ("/etc", "/") else (elsewhere,)))
    for path, access in (
        *((folder, landlock.READ_FILE | landlock.READ_DIR) for folder in folders),
        *((file, landlock.READ_FILE) for file in RESOLVER_FILES),
    ):
        with suppress(FileNotFoundError):
            landlock.allow(ruleset, path, access)
    return ruleset


def _check() -> None:
    """Read back from the kernel that it holds; OSError names what does not."""
    claims = {
        "no new privileges": sc.prctl(sc.PR_GET_NO_NEW_PRIVS) == 1,
        "no capability": not any(sc.capabilities()),
        "seccomp filter": sc.prctl(sc.PR_GET_SECCOMP) == sc.SECCOMP_MODE_FILTER,
        "not dumpable": sc.prctl(sc.PR_GET_DUMPABLE) == 0,
        "no local socket": _refused(lambda: socket.socket(socket.AF_UNIX).close()),
        "no other file": _refused(lambda: os.close(os.open("/etc/passwd", os.O_RDONLY))),
    }
    for claim, holds in claims.items():
        if not holds:
            raise PermissionError(1, f"self-check: {claim} does not hold")


def _refused(call: object) -> bool:
    assert callable(call)
    try:
        call()
    except PermissionError:
        return True
    except OSError:
        return False
    return False
