"""Whole processes: the bare interpreter, and the same in bubblewrap."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Final

BARE: Final = (os.path.realpath(sys.executable), "-I", "-S", "-c", "pass")
"""An interpreter without site, environment or working directory: the least that running Python costs."""

NOT_INSTALLED: Final = "not installed"


def run_program(argv: Sequence[str]) -> None:
    """Run a program to its end, silently; by posix_spawn, the cheapest way there is."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
        pid = os.posix_spawn(argv[0], list(argv), dict(os.environ), file_actions=actions)
    finally:
        os.close(null)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"{argv[0]} ended with wait status {status}")


def bubblewrap_argv(program: Sequence[str]) -> list[str] | None:
    """The program in namespaces of its own over a read-only root; None where bubblewrap is not installed.

    Fewer mounts than we make, and no seccomp filter, no Landlock, no limits: the cheapest that bubblewrap can be.
    """
    found = shutil.which("bwrap")
    if found is None:
        return None
    wrapped = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp")
    return [found, *wrapped, "--unshare-all", "--die-with-parent", "--new-session", *program]


def works(argv: Sequence[str] | None) -> str:
    """Empty if the program can be run here, else why not."""
    if argv is None:
        return NOT_INSTALLED
    try:
        run_program(argv)
    except (OSError, RuntimeError) as error:
        return f"does not work here: {error}"
    return ""


def program(argv: Sequence[str]) -> Callable[[], object]:
    """A call that runs the program."""
    return lambda: run_program(argv)
