"""The kernel calls that Python's standard library does not have, each raising OSError with its own name.

The only module of the project that imports ctypes. Numbers from 424 on are the same on every architecture; the few
older ones are listed for the two that are supported. Sources: the man pages named at each function, linux/uapi
headers of 6.18.
"""

from __future__ import annotations

import ctypes
import os
import struct

ARCH = os.uname().machine
_OLD_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capget": 125, "capset": 126, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "capget": 90, "capset": 91, "seccomp": 277},
}
_OLD = _OLD_NUMBERS.get(ARCH, {})
SUPPORTED = bool(_OLD)

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_GET_SECCOMP = 21
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
# NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock; KEEP_CAPS locked at off (capabilities(7)).
SECURE_ALL = 0b1110_1111

LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_RULE_NET_PORT = 2
RENAME_NOREPLACE = 1

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_long = ctypes.c_long
_prctl = _libc.prctl


def _checked(result: int, name: str, about: str = "") -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}", about or None)
    return int(result)


def _text(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _checked(_libc.setns(fd, kind), "setns")


def sethostname(name: str) -> None:
    """sethostname(2)."""
    raw = name.encode()
    _checked(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), "sethostname")


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(_text(source), _text(target), _text(kind), ctypes.c_ulong(flags), _text(data) or None)
    _checked(result, "mount", target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(_text(target), flags), "umount2", target)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _checked(_syscall(_long(_OLD["pivot_root"]), _text(new), _text(old)), "pivot_root", new)


def openat2(dir_fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2), Linux 5.6: a descriptor, close-on-exec."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd = _syscall(_long(437), dir_fd, _text(path), how, ctypes.c_size_t(len(how)))
        # EAGAIN: a rename raced with RESOLVE_IN_ROOT or RESOLVE_BENEATH (man page); asking again is the remedy.
        if fd >= 0 or ctypes.get_errno() != 11:
            return _checked(fd, "openat2", path)


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """open_tree(2), Linux 5.2: a descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy."""
    return _checked(_syscall(_long(428), dir_fd, _text(path), ctypes.c_uint(flags)), "open_tree", path)


def move_mount(from_fd: int, to_path: str) -> None:
    """move_mount(2), Linux 5.2: attach the detached tree ``from_fd`` at ``to_path``."""
    result = _syscall(_long(429), from_fd, b"", AT_FDCWD, _text(to_path), ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH))
    _checked(result, "move_mount", to_path)


def move_mount_onto(from_fd: int, to_fd: int) -> None:
    """move_mount(2): attach the detached tree ``from_fd`` to what ``to_fd`` is open on; no name is looked up."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _checked(_syscall(_long(429), from_fd, b"", to_fd, b"", ctypes.c_uint(flags)), "move_mount")


def mount_setattr(fd: int, path: str, flags: int, attributes: int, userns_fd: int = 0) -> None:
    """mount_setattr(2), Linux 5.12: set mount attributes, MOUNT_ATTR_IDMAP among them."""
    attr = struct.pack("=QQQQ", attributes, 0, 0, userns_fd)
    result = _syscall(_long(442), fd, _text(path), ctypes.c_uint(flags), attr, ctypes.c_size_t(len(attr)))
    _checked(result, "mount_setattr", path)


def renameat2(from_fd: int, source: str, to_fd: int, target: str, flags: int) -> None:
    """renameat2(2)."""
    _checked(_libc.renameat2(from_fd, _text(source), to_fd, _text(target), ctypes.c_uint(flags)), "renameat2", target)


def prctl(option: int, value: int = 0, third: int = 0) -> int:
    """prctl(2)."""
    return _checked(_prctl(option, value, third, 0, 0), f"prctl({option})")


def set_dumpable(dumpable: bool) -> None:
    """PR_SET_DUMPABLE: whether processes of the same user may read this one's memory and /proc files."""
    prctl(PR_SET_DUMPABLE, int(dumpable))


def drop_bounding_set() -> None:
    """PR_CAPBSET_DROP for every capability of this kernel (at most 64; EINVAL ends the list)."""
    for number in range(64):
        if _prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            if ctypes.get_errno() == 22 and number > 0:
                return
            _checked(-1, "prctl(PR_CAPBSET_DROP)")


def capabilities() -> tuple[int, int, int]:
    """capget(2) of this process: effective, permitted and inheritable, as bit sets."""
    header = struct.pack("=Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    _checked(_syscall(_long(_OLD["capget"]), header, data), "capget")
    words = struct.unpack("=6I", data.raw)
    return (words[0] | words[3] << 32, words[1] | words[4] << 32, words[2] | words[5] << 32)


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of this process, bit sets (_LINUX_CAPABILITY_VERSION_3)."""
    header = struct.pack("=Ii", 0x20080522, 0)
    sets = (effective, permitted, inheritable)
    data = struct.pack("=6I", *(word & 0xFFFF_FFFF for word in sets), *(word >> 32 for word in sets))
    _checked(_syscall(_long(_OLD["capset"]), header, data), "capset")


def keep_capabilities_over_exec() -> None:
    """Make every permitted capability ambient (capabilities(7), Linux 4.3): execve(2) takes them from any but uid 0."""
    permitted = capabilities()[1]
    set_capabilities(permitted, permitted, permitted)
    for number in range(permitted.bit_length()):
        if permitted >> number & 1:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)


def landlock_abi() -> int:
    """The Landlock ABI version of this kernel; 0 where there is none (landlock_create_ruleset(2))."""
    return max(0, int(_syscall(_long(444), None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def landlock_create_ruleset(handled_fs: int, handled_net: int, scoped: int) -> int:
    """landlock_create_ruleset(2), Linux 5.13: a ruleset descriptor. Trailing zero fields are cut for older kernels."""
    words = [handled_fs, handled_net, scoped]
    while len(words) > 1 and not words[-1]:
        words.pop()
    attr = struct.pack(f"={len(words)}Q", *words)
    fd = _syscall(_long(444), attr, ctypes.c_size_t(len(attr)), ctypes.c_uint(0))
    return _checked(fd, "landlock_create_ruleset")


def landlock_add_path(ruleset: int, fd: int, access: int) -> None:
    """landlock_add_rule(2): allow ``access`` beneath what ``fd`` is open on."""
    rule = struct.pack("=Qi", access, fd)
    result = _syscall(_long(445), ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, ctypes.c_uint(0))
    _checked(result, "landlock_add_rule")


def landlock_add_port(ruleset: int, port: int, access: int) -> None:
    """landlock_add_rule(2), Linux 6.7: allow ``access`` to a TCP port."""
    rule = struct.pack("=QQ", access, port)
    result = _syscall(_long(445), ruleset, LANDLOCK_RULE_NET_PORT, rule, ctypes.c_uint(0))
    _checked(result, "landlock_add_rule")


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2)."""
    _checked(_syscall(_long(446), ruleset, ctypes.c_uint(0)), "landlock_restrict_self")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def seccomp_filter(program: bytes) -> None:
    """seccomp(2) SECCOMP_SET_MODE_FILTER with a program of 8-byte sock_filter records."""
    held = _Program(len(program) // 8, program)
    _checked(_syscall(_long(_OLD["seccomp"]), 1, 0, ctypes.byref(held)), "seccomp")
