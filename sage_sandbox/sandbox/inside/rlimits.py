"""Resource limits of one process (setrlimit(2)), and the process attributes that go with them."""

from __future__ import annotations

import os
import resource
import signal

# What the interpreter maps while it loads libraries and grows its heap is not the operation's doing.
SLACK = 32 << 20


def apply(values: tuple[tuple[int, int], ...], address_space: int, mapped: int) -> None:
    """Set each limit, soft = hard; ``address_space`` (bytes, 0 for none) counts above what is ``mapped`` already.

    A hard limit that is lower already stays (`ulimit -Hc 0` of a hardened session): raising one takes CAP_SYS_RESOURCE
    outside our user namespace (setrlimit(2)), and less is only more confinement.
    """
    if address_space:
        values += ((resource.RLIMIT_AS, address_space + mapped + SLACK),)
    for kind, value in values:
        hard = resource.getrlimit(kind)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lowest, lowest))


def mapped_bytes(proc_fd: int) -> int:
    """The size of this process's address space, read beneath a descriptor of a /proc."""
    fd = os.open("self/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        return int(os.read(fd, 100).split()[0]) * resource.getpagesize()
    finally:
        os.close(fd)


def default_signals() -> None:
    """Every signal to its default, none blocked: a forked Python has SIGPIPE and SIGXFSZ ignored, and SIGINT caught."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
