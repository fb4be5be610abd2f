"""What is left beneath a supervisor when nothing should be: seen from outside, by the process table."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

from sage_sandbox.sandbox.supervisor import Supervisor


def remains(supervisor: Supervisor) -> list[str]:
    """Every process beneath the zygote that is neither its own inner half nor the spare that waits for work."""
    zygote = supervisor._zygote
    if zygote is None:
        return []
    top = zygote._process.pid
    for child in list(zygote.children.values()):
        zygote.wait_born(child)
    expected = {top, *(child.host_pid() for child in zygote.children.values())}
    found = []
    for process in psutil.Process(top).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.pid not in expected and process.ppid() != top:
                found.append(f"{process.pid} {process.status()} {process.cmdline()}")
    return found


def alive(pid: int) -> bool:
    """Whether a process still runs; a zombie does not."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def marked(word: str) -> list[int]:
    """Host pids of processes that carry a word in their command line."""
    processes = [process for process in psutil.process_iter(["cmdline"]) if process.pid != os.getpid()]
    return [process.pid for process in processes if word in " ".join(process.info["cmdline"] or ())]
