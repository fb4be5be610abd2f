"""Terminals: an operation never has the user's, and cannot type into the one it may have been given."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable

import pytest
from escape.attempt import Bench, Did, Refused

from sage_sandbox.cli.terminal import own_terminal
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.watch import Relay

PYTHON = os.path.realpath(sys.executable)


def quietly(seen: bytearray) -> Callable[[int, bytes], bytes]:
    """Keep what a relay is to write, and write nothing."""

    def spell(_number: int, data: bytes) -> bytes:
        seen.extend(data)
        return b""

    return spell


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_no_stream_is_a_terminal(bench: Bench, fd: int) -> None:
    look = "def act(fd):\n    return os.isatty(fd)"
    ours, theirs = pty.openpty()
    kept = os.dup(fd)
    try:
        os.dup2(theirs, fd)
        outcome = bench.run("import os\ndef run(params):\n    return os.isatty(params['fd'])", {"fd": fd})
        terminal = os.isatty(fd)
    finally:
        os.dup2(kept, fd)
        for held in (kept, ours, theirs):
            os.close(held)

    assert terminal
    assert outcome.value() is False
    assert Did(False) == bench.inside(look, {"fd": fd})


def test_there_is_no_controlling_terminal(bench: Bench) -> None:
    controlling = """
    def act():
        os.close(os.open("/dev/tty", os.O_RDWR))
    """
    with_one = """
    def act():
        import pty
        pid, fd = pty.fork()
        if not pid:
            os.close(os.open("/dev/tty", os.O_RDWR))
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    """

    assert Did(7) == bench.outside(with_one)
    assert Refused("ENOENT") == bench.inside(controlling)


def test_no_new_terminal_is_made(bench: Bench) -> None:
    make = "def act():\n    for fd in os.openpty():\n        os.close(fd)"

    assert Did() == bench.outside(make)
    assert Refused("ENOENT") == bench.inside(make)


TYPE = """
import errno, fcntl, os, sys
print(os.isatty(0), flush=True)
for request in (0x5412, 0x1_0000_5412, 0x541C, 0x5423):
    try:
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.ioctl(0, ctypes.c_ulong(request), ctypes.c_char_p(b"x"))
        print(done if done >= 0 else errno.errorcode[ctypes.get_errno()], flush=True)
    except OSError as error:
        print(error)
"""


def test_nothing_is_typed_into_a_terminal_of_its_own(bench: Bench) -> None:
    """With `exec --tty` a command has a terminal, and the user's is behind that."""
    seen = bytearray()
    with own_terminal() as (terminal, controller):
        job = Job("command", argv=(PYTHON, "-I", "-S", "-c", TYPE), project=str(bench.project))
        outcome = bench.supervisor.run(job, relay=Relay(-1, (1, 1), quietly(seen), terminal, controller))

    assert outcome.ok, outcome
    # Outside, TIOCLINUX and TIOCSETD mean something else to a pseudo-terminal, and TIOCSTI is root's since Linux 6.2.
    kernel = "def act():\n    call('ioctl', os.openpty()[1], 0x5423, struct.pack('i', 0))"
    assert bench.outside(kernel) != Refused("ENOTTY")
    assert ["True", "ENOTTY", "ENOTTY", "ENOTTY", "ENOTTY"] == bytes(seen).decode().split()


def test_the_terminal_of_a_command_is_its_controlling_one_and_no_others(bench: Bench) -> None:
    seen = bytearray()
    argv = (PYTHON, "-I", "-S", "-c", "import os; print(os.getsid(0), os.tcgetpgrp(0))")
    with own_terminal() as (terminal, controller):
        job = Job("command", argv=argv, project=str(bench.project))
        outcome = bench.supervisor.run(job, relay=Relay(-1, (1, 1), quietly(seen), terminal, controller))

    assert outcome.ok, outcome
    assert ["1", "1"] == bytes(seen).decode().split()
