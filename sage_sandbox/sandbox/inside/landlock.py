"""Landlock rulesets (landlock(7), Documentation/userspace-api/landlock.rst): what a child may do to files it can see.

The mount namespace decides what exists; this is the second, independent layer. A right that the kernel's ABI does not
know is left out: seccomp and the mounts still stand for it, and `sage-sandbox doctor` shows the ABI.
"""

from __future__ import annotations

import os

from sage_sandbox.sandbox.inside import syscalls, wire

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
MAKE_CHAR = 1 << 6
MAKE_BLOCK = 1 << 11
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

ALL_FILES = (1 << 16) - 1
BIND_TCP = 0b01
CONNECT_TCP = 0b10
NET_TCP = BIND_TCP | CONNECT_TCP
SCOPE_ALL = 0b11

READ = EXECUTE | READ_FILE | READ_DIR
WRITE = ALL_FILES & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | TRUNCATE

# What each ABI added: 2 REFER (5.19), 3 TRUNCATE (6.2), 4 TCP (6.7), 5 IOCTL_DEV (6.10), 6 scopes (6.12).
_UNKNOWN = {1: REFER | TRUNCATE | IOCTL_DEV, 2: TRUNCATE | IOCTL_DEV, 3: IOCTL_DEV, 4: IOCTL_DEV}


def handled_files(abi: int) -> int:
    """The file rights that this ABI can deny."""
    return ALL_FILES & ~_UNKNOWN.get(abi, 0)


def build(abi: int, devices: tuple[str, ...], step: wire.Landlock) -> int:
    """A ruleset descriptor: read and run beneath the root, write in the work folder, the devices and granted paths."""
    handled = handled_files(abi)
    tcp = 0 if abi < 4 or step.network else NET_TCP
    ruleset = syscalls.landlock_create_ruleset(handled, tcp, SCOPE_ALL if abi >= 6 else 0)
    allow(ruleset, step.root or "/", READ & handled)
    allow(ruleset, step.root + os.path.dirname(wire.BOX), WRITE & handled)
    for name in devices:
        allow(ruleset, f"{step.root}/dev/{name}", DEVICE & handled)
    for path in step.writable:
        allow(ruleset, step.root + path, WRITE & handled & (FILE_RIGHTS if path in step.files else ALL_FILES))
    if tcp and step.port:
        syscalls.landlock_add_port(ruleset, step.port, CONNECT_TCP)
    return ruleset


def allow(ruleset: int, path: str, access: int) -> None:
    """Add these rights beneath a path; OSError if it is not there."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        syscalls.landlock_add_path(ruleset, fd, access)
    finally:
        os.close(fd)
