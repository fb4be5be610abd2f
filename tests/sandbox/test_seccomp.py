"""The seccomp programs against a hand-written list, on a machine of our own and on this kernel.

The list below is written the other way round than the module's: it names what is refused or has conditions, and takes
every other call of the table as allowed. So each call is judged twice, and a new one in the table fails until it is
listed on either side.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import fcntl
import importlib.util
import json
import mmap
import os
import platform
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox import bpf

from sage_sandbox.sandbox.inside import seccomp
from sage_sandbox.sandbox.inside.syscall_table import NUMBERS

ALLOW = bpf.ALLOW
EPERM = bpf.ERRNO | errno.EPERM
ENOSYS = bpf.ERRNO | errno.ENOSYS
ENOTTY = bpf.ERRNO | errno.ENOTTY
KILL = bpf.KILL_PROCESS

ARCHES = ("x86_64", "aarch64")
AUDIT = {"x86_64": 62 | 1 << 31 | 1 << 30, "aarch64": 183 | 1 << 31 | 1 << 30}  # EM_*, 64 bits, little-endian
I386 = 3 | 1 << 30
ARM = 40 | 1 << 30
WORD = 0xFFFF_FFFF

ZYGOTE = {
    (arch, memfd): bpf.decode(seccomp.zygote_program(arch, memfd=memfd)) for arch in ARCHES for memfd in (False, True)
}
LOCK = {arch: bpf.decode(seccomp.lock_program(arch)) for arch in ARCHES}


# --- The list, by reason. ---

NEVER = {
    "shares the zygote's ipc and uts namespaces": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget
        semop semtimedop shmat shmctl shmdt shmget setdomainname sethostname""",
    "reaches into other processes": """
        kcmp migrate_pages move_pages pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace""",
    "large kernel surface that operations do not need": """
        bpf io_uring_enter io_uring_register io_uring_setup modify_ldt perf_event_open userfaultfd""",
    "keys of the user": "add_key keyctl request_key",
    "goes round paths, mounts or the counting of memory": """
        fanotify_init fanotify_mark listmount memfd_create memfd_secret name_to_handle_at open_by_handle_at
        statmount""",
    "memory policy, a capability in moby": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "security modules, a capability in moby": "lsm_get_self_attr lsm_list_modules lsm_set_self_attr",
    "the machine, a capability in moby": """
        acct clock_settime delete_module finit_module init_module ioperm iopl kexec_file_load kexec_load lookup_dcookie
        quotactl quotactl_fd reboot settimeofday swapoff swapon syslog vhangup""",
    "gone from the kernel, or never there": """
        _sysctl afs_syscall create_module get_kernel_syms getpmsg nfsservctl putpmsg query_module security sysfs tuxcall
        uselib ustat vserver""",
}
TAKEN_AWAY = {
    "mounts": "fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree umount2",
    "roots and namespaces": "chroot pivot_root setns unshare",
    "identity": "capset setfsgid setfsuid setgid setgroups setregid setresgid setresuid setreuid setuid",
    "confinement": "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    "processes": "pidfd_open",
}
SETUP_CONDITIONAL = frozenset({"clone", "ioctl", "mknod", "mknodat", "openat2", "prctl"})

TERMINAL = """
    TCGETS TCSETS TCSETSW TCSETSF TCGETA TCSETA TCSETAW TCSETAF TCSBRK TCSBRKP TCXONC TCFLSH TIOCEXCL TIOCNXCL TIOCSCTTY
    TIOCNOTTY TIOCGPGRP TIOCSPGRP TIOCOUTQ TIOCGWINSZ TIOCSWINSZ TIOCPKT FIONREAD FIONBIO FIONCLEX FIOCLEX FIOASYNC"""


def request(direction: int, size: int, number: int) -> int:
    """A terminal's request as asm-generic/ioctl.h puts one together: 1 writes, 2 reads."""
    return direction << 30 | size << 16 | ord("T") << 8 | number


IOCTLS = {
    *(getattr(termios, name) for name in TERMINAL.split()),
    *(request(2, 44, 0x2A), request(1, 44, 0x2B), request(1, 44, 0x2C), request(1, 44, 0x2D)),  # struct termios2
    *(request(2, 4, 0x30), request(1, 4, 0x31), request(2, 4, 0x40)),  # TIOCGPTN, TIOCSPTLCK, TIOCGEXCL
    *(request(0, 0, 0x29), request(0, 0, 0x41), request(0, 0, 0x60)),  # TIOCGSID, TIOCGPTPEER, FIOQSIZE
}
PRCTLS = {
    *(1, 2, 3, 7, 13, 15, 16, 21, 23, 25, 27, 29, 30),
    *range(36, 43),  # subreaper, no_new_privs, tid address, THP
    *(50, 51, 52, 54, 55, 56, 60, 61, 63, 64, 65, 66, 74, 75, 76),  # a process's own hardening
    *(int.from_bytes(b"AUXV"), int.from_bytes(b"SVMA")),
}
FCNTLS = {*range(8), 9, 11, 16, 36, 37, 38, 1025, 1027, 1028, *range(1030, 1039)}


def by_bits(mode: int) -> int:
    return EPERM if mode & (stat.S_ISUID | stat.S_ISGID) else ALLOW


def opening(flags: int, mode: int) -> int:
    return by_bits(mode) if flags & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY) else ALLOW


def making(mode: int) -> int:
    return by_bits(mode) if stat.S_IFMT(mode & 0xFFFF) in (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK) else EPERM


def allowed_if(condition: bool) -> int:
    return ALLOW if condition else EPERM


def kind(type_: int) -> int:
    return type_ & ~(socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)


def socket_verdict(family: int, type_: int, protocol: int) -> int:
    if family == socket.AF_UNIX:
        return allowed_if(kind(type_) == socket.SOCK_STREAM)
    internet = family in (socket.AF_INET, socket.AF_INET6)
    plain = kind(type_) in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    return allowed_if(internet and plain and protocol in (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP))


def prctl_verdict(option: int, value: int) -> int:
    return allowed_if(option & WORD in PRCTLS or (option & WORD == 4 and value == 0))


NEW = sum(getattr(os, "CLONE_" + name, bit) for name, bit in {  # os has them from 3.12 on
    "NEWNS": 1 << 17, "NEWCGROUP": 1 << 25, "NEWUTS": 1 << 26, "NEWIPC": 1 << 27, "NEWUSER": 1 << 28,
    "NEWPID": 1 << 29, "NEWNET": 1 << 30, "NEWTIME": 1 << 7}.items())  # fmt: skip

CONDITIONS: Mapping[str, Callable[..., int]] = {
    "chmod": lambda _path, mode, *_: by_bits(mode),
    "clone": lambda flags, *_: allowed_if(not flags & NEW),
    "clone3": lambda *_: ENOSYS,
    "creat": lambda _path, mode, *_: by_bits(mode),
    "fchmod": lambda _fd, mode, *_: by_bits(mode),
    "fchmodat": lambda _fd, _path, mode, *_: by_bits(mode),
    "fchmodat2": lambda _fd, _path, mode, *_: by_bits(mode),
    "fcntl": lambda _fd, command, *_: allowed_if(command & WORD in FCNTLS),
    "ioctl": lambda _fd, request, *_: ALLOW if request & WORD in IOCTLS else ENOTTY,
    "ioprio_set": lambda which, who, *_: allowed_if((which & WORD, who & WORD) == (1, 0)),
    "mkdir": lambda _path, mode, *_: by_bits(mode),
    "mkdirat": lambda _fd, _path, mode, *_: by_bits(mode),
    "mknod": lambda _path, mode, *_: making(mode),
    "mknodat": lambda _fd, _path, mode, *_: making(mode),
    "open": lambda _path, flags, mode, *_: opening(flags, mode),
    "openat": lambda _fd, _path, flags, mode, *_: opening(flags, mode),
    "openat2": lambda *_: ENOSYS,
    "personality": lambda persona, *_: allowed_if(persona & WORD in (0, 0x8, 0x20000, 0x20008, WORD)),
    "prctl": lambda option, value, *_: prctl_verdict(option, value),
    "prlimit64": lambda pid, *_: allowed_if(pid & WORD == 0),
    "sched_setaffinity": lambda pid, *_: allowed_if(pid & WORD == 0),
    "sched_setattr": lambda pid, *_: allowed_if(pid & WORD == 0),
    "sched_setparam": lambda pid, *_: allowed_if(pid & WORD == 0),
    "sched_setscheduler": lambda pid, *_: allowed_if(pid & WORD == 0),
    "setpriority": lambda which, who, *_: allowed_if((which & WORD, who & WORD) == (os.PRIO_PROCESS, 0)),
    "socket": lambda family, type_, protocol, *_: socket_verdict(family & WORD, type_ & WORD, protocol & WORD),
    "socketpair": lambda family, type_, *_: allowed_if((family & WORD, kind(type_ & WORD)) == (1, 1)),
}

REFUSED = {name for names in (*NEVER.values(), *TAKEN_AWAY.values()) for name in names.split()}
SETUP = SETUP_CONDITIONAL | {name for names in TAKEN_AWAY.values() for name in names.split()}


def expected(name: str, args: tuple[int, ...] = (0,) * 6) -> int:
    """The verdict in a locked child."""
    if name in CONDITIONS:
        return CONDITIONS[name](*args)
    return EPERM if name in REFUSED else ALLOW


def locked(arch: str, number: int, args: tuple[int, ...] = (0,) * 6) -> int:
    """The verdict of both programs together."""
    programs = (LOCK[arch], ZYGOTE[arch, False])
    return bpf.strictest([bpf.run(program, AUDIT[arch], number, args).verdict for program in programs])


def in_zygote(arch: str, number: int, args: tuple[int, ...] = (0,) * 6, *, memfd: bool = False) -> int:
    return bpf.run(ZYGOTE[arch, memfd], AUDIT[arch], number, args).verdict


def arches_with(name: str) -> list[str]:
    return [arch for arch in ARCHES if name in NUMBERS[arch]]


EVERY = [(arch, name) for arch in ARCHES for name in NUMBERS[arch]]

TELLING = sorted({
    *(0, 1, 2, 3, 4, 6, 8, 10, 15, 16, 17, 24, 28, 38, 40, 132, 262, 1024, 1026, WORD, 0x4000, 0x20000, 0x20008),
    *IOCTLS, *PRCTLS, *FCNTLS, termios.TIOCSTI, 0x541C, 0x541D, termios.TIOCSETD, 0x4004_9409,
    *(1 << bit for bit in range(32)),
    *(t | socket.SOCK_CLOEXEC for t in range(7)), *(t | socket.SOCK_NONBLOCK for t in range(7)),
    *(t | 0o644 for t in range(0, 0o200000, 0o010000)), 0o4755, 0o2755, 0o6755, 0o1777,
    os.O_CREAT | os.O_WRONLY, os.O_TMPFILE | os.O_RDWR, os.O_DIRECTORY, 0x0120_0011, 0x003D_0F00,
})  # fmt: skip
halves = st.sampled_from([0, 1, WORD, 1 << 31]) | st.integers(0, WORD)
words = st.builds(lambda low, high: low | high << 32, st.sampled_from(TELLING) | st.integers(0, WORD), halves)
arguments = st.tuples(*[words] * 6)


# --- The list holds, for every call of both architectures. ---


@pytest.mark.parametrize("arch", ARCHES)
def test_a_locked_child_gets_the_listed_verdicts(arch: str) -> None:
    verdicts = {name: locked(arch, number) for name, number in NUMBERS[arch].items()}

    assert {name: expected(name) for name in NUMBERS[arch]} == verdicts


@pytest.mark.parametrize("arch", ARCHES)
def test_what_only_speaks_to_the_network_has_no_program_no_process_and_no_local_socket(arch: str) -> None:
    program = bpf.decode(seccomp.network_program(arch))
    numbers = NUMBERS[arch]

    def verdict(name: str, *args: int) -> int:
        return bpf.run(program, AUDIT[arch], numbers[name], args).verdict

    refused = {name for name in numbers if name not in ("clone", "socket") and verdict(name) != ALLOW}
    assert refused == numbers.keys() & {
        "execve", "execveat", "fork", "vfork", "kill", "tkill", "listen", "pidfd_send_signal", "rt_sigqueueinfo",
        "rt_tgsigqueueinfo", "socketpair", "tgkill",
    }  # fmt: skip
    thread = 0x3D0F00  # what pthread_create passes to clone(2)
    assert (ALLOW, EPERM) == (verdict("clone", thread), verdict("clone", signal.SIGCHLD))
    for family in range(50):
        allowed = family in (socket.AF_INET, socket.AF_INET6)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC):
            assert allowed_if(allowed) == verdict("socket", family, kind, 0)
        assert verdict("socket", family, socket.SOCK_RAW, 1) == EPERM


@pytest.mark.parametrize("arch", ARCHES)
def test_before_the_lock_only_the_setup_is_allowed_beside_the_list(arch: str) -> None:
    verdicts = {name: in_zygote(arch, number) for name, number in NUMBERS[arch].items()}

    assert {name: ALLOW if name in SETUP else expected(name) for name in NUMBERS[arch]} == verdicts


def test_the_hand_written_list_names_calls_that_exist() -> None:
    known = {name for arch in ARCHES for name in NUMBERS[arch]}

    assert set() == (REFUSED | CONDITIONS.keys() | SETUP) - known
    assert set() == (seccomp._ALLOWED | seccomp._SETUP | seccomp._CONDITIONS.keys()) - known
    assert set() == seccomp._ALLOWED & (seccomp._SETUP | seccomp._CONDITIONS.keys())


@pytest.mark.parametrize("name", sorted(CONDITIONS))
@given(args=arguments)
def test_arguments_decide_as_listed(name: str, args: tuple[int, ...]) -> None:
    for arch in arches_with(name):
        number = NUMBERS[arch][name]

        assert expected(name, args) == locked(arch, number, args)
        assert (ALLOW if name in SETUP else expected(name, args)) == in_zygote(arch, number, args)


@given(args=arguments, case=st.sampled_from([case for case in EVERY if case[1] not in CONDITIONS]))
def test_arguments_of_other_calls_change_nothing(args: tuple[int, ...], case: tuple[str, str]) -> None:
    arch, name = case

    assert expected(name) == locked(arch, NUMBERS[arch][name], args)


@pytest.mark.parametrize("arch", ARCHES)
def test_without_conditions_the_number_decides_so_that_the_kernel_remembers(arch: str) -> None:
    looked_at = {
        (name, at): bpf.run(program, AUDIT[arch], number).read
        for name, number in NUMBERS[arch].items()
        for at, program in enumerate((LOCK[arch], ZYGOTE[arch, False]))
        if name not in CONDITIONS
    }

    assert {key: {0, 4} for key in looked_at} == looked_at


@pytest.mark.parametrize("arch", ARCHES)
def test_memfd_create_is_allowed_only_where_it_is_counted(arch: str) -> None:
    number = NUMBERS[arch]["memfd_create"]

    assert EPERM == in_zygote(arch, number)
    assert ALLOW == in_zygote(arch, number, memfd=True)
    assert ALLOW == bpf.run(LOCK[arch], AUDIT[arch], number).verdict
    assert all(
        in_zygote(arch, other) == in_zygote(arch, other, memfd=True)
        for name, other in NUMBERS[arch].items()
        if name != "memfd_create"
    )


# --- Whole ranges of the arguments that matter. ---


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("high", [0, 1, WORD])
def test_ioctl_requests(arch: str, high: int) -> None:
    requests = [*range(0x5300, 0x5500), *range(0x8900, 0x8A00), *IOCTLS, 0x4004_9409, 0x4008_6602, 0x8008_6601]
    number = NUMBERS[arch]["ioctl"]

    allowed = {request for request in requests if locked(arch, number, (0, request | high << 32)) == ALLOW}

    assert allowed == IOCTLS
    for name in ("TIOCSTI", "TIOCLINUX", "TIOCSETD", "TIOCCONS"):
        assert ENOTTY == locked(arch, number, (0, getattr(termios, name) | high << 32))


@pytest.mark.parametrize("arch", ARCHES)
def test_fcntl_commands(arch: str) -> None:
    number = NUMBERS[arch]["fcntl"]

    assert FCNTLS == {command for command in range(2000) if locked(arch, number, (0, command)) == ALLOW}
    for command in (fcntl.F_SETLEASE, fcntl.F_NOTIFY, fcntl.F_SETOWN, fcntl.F_SETSIG, 15):
        assert EPERM == locked(arch, number, (0, command | 1 << 32))


@pytest.mark.parametrize("arch", ARCHES)
def test_prctl_options(arch: str) -> None:
    number = NUMBERS[arch]["prctl"]

    assert PRCTLS == {o for o in (*range(300), *PRCTLS, 0x5961_6D61) if locked(arch, number, (o, 1)) == ALLOW}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("value", "verdict"), [(0, ALLOW), (1, EPERM), (2, EPERM), (1 << 32, EPERM), (WORD, EPERM)])
def test_dumpable_can_be_cleared_only_and_is_compared_whole(arch: str, value: int, verdict: int) -> None:
    assert verdict == locked(arch, NUMBERS[arch]["prctl"], (4, value))
    assert verdict == locked(arch, NUMBERS[arch]["prctl"], (4 | 7 << 32, value))


@pytest.mark.parametrize("arch", ARCHES)
def test_sockets(arch: str) -> None:
    kinds = [
        (family, type_ | flags, protocol)
        for family in range(48)
        for type_ in range(12)
        for flags in (0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        for protocol in (0, 1, 6, 17, 58, 132, 136, 262)
    ]
    made = {(f, kind(t), p) for f, t, p in kinds if locked(arch, NUMBERS[arch]["socket"], (f, t, p)) == ALLOW}
    pairs = {(f, kind(t)) for f, t, _ in kinds if locked(arch, NUMBERS[arch]["socketpair"], (f, t)) == ALLOW}

    assert {(2, 1), (2, 2), (10, 1), (10, 2), (1, 1)} == {(family, type_) for family, type_, _ in made}
    assert {0, 6, 17} == {protocol for family, _, protocol in made if family != 1}
    assert {(1, 1)} == pairs


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_DIRECTORY, os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC])
def test_the_mode_of_an_open_that_makes_nothing_is_ignored(arch: str, flags: int) -> None:
    assert ALLOW == locked(arch, NUMBERS[arch]["openat"], (0, 0, flags, 0xDEAD_BEEF_FFFF_FFFF))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("flags", [os.O_CREAT, os.O_TMPFILE | os.O_RDWR, os.O_CREAT | os.O_EXCL | 1 << 32])
@pytest.mark.parametrize(("mode", "verdict"), [(0o1777, ALLOW), (0o4700, EPERM), (0o2070, EPERM), (1 << 32, ALLOW)])
def test_a_file_is_not_made_setuid(arch: str, flags: int, mode: int, verdict: int) -> None:
    assert verdict == locked(arch, NUMBERS[arch]["openat"], (0, 0, flags, mode))


@pytest.mark.parametrize("arch", ARCHES)
def test_priorities_are_the_process_own(arch: str) -> None:
    pairs = [(which | high, who | high) for which in range(4) for who in (0, 1, WORD) for high in (0, 1 << 32)]
    own = {
        name: {
            (which & WORD, who & WORD)
            for which, who in pairs
            if locked(arch, NUMBERS[arch][name], (which, who)) == ALLOW
        }
        for name in ("setpriority", "ioprio_set")
    }

    assert {"setpriority": {(os.PRIO_PROCESS, 0)}, "ioprio_set": {(1, 0)}} == own


@pytest.mark.parametrize("arch", ARCHES)
def test_devices_cannot_be_made(arch: str) -> None:
    number = NUMBERS[arch]["mknodat"]
    allowed = {t for t in range(0, 0o200000, 0o010000) if locked(arch, number, (0, 0, t | 0o600)) == ALLOW}

    assert {0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK} == allowed


# --- Numbers that are not ours. ---


@pytest.mark.parametrize("arch", ARCHES)
@given(number=st.integers(0, WORD), args=arguments)
def test_another_architecture_is_killed(arch: str, number: int, args: tuple[int, ...]) -> None:
    for other in (I386, ARM, 0, AUDIT["aarch64" if arch == "x86_64" else "x86_64"]):
        assert KILL == bpf.run(ZYGOTE[arch, False], other, number, args).verdict
        assert KILL == bpf.run(LOCK[arch], other, number, args).verdict


@given(number=st.integers(0, WORD).map(lambda number: number | 1 << 30) | st.just(1 << 30 | 39))
def test_x32_is_killed(number: int) -> None:
    assert KILL == in_zygote("x86_64", number)
    assert KILL == bpf.run(LOCK["x86_64"], AUDIT["x86_64"], number).verdict


@pytest.mark.parametrize("arch", ARCHES)
@given(number=st.integers(0, 600) | st.integers(0, WORD))
def test_unknown_numbers_are_not_implemented(arch: str, number: int) -> None:
    if number in NUMBERS[arch].values() or (arch == "x86_64" and number & 1 << 30):
        return

    assert ENOSYS == locked(arch, number)


@pytest.mark.parametrize("make", [lambda arch: seccomp.zygote_program(arch, memfd=False), seccomp.lock_program])
def test_other_architectures_have_no_program(make: Callable[[str], bytes]) -> None:
    with pytest.raises(KeyError, match="riscv64"):
        make("riscv64")


# --- The assembler. ---


def test_a_jump_that_is_too_far_is_an_error() -> None:
    verdicts: dict[int, seccomp.Code] = {value: seccomp.Verdict(value) for value in range(600)}

    with pytest.raises(struct.error):
        seccomp.Assembler().assemble(seccomp._switch(verdicts, seccomp.Verdict(600)))


@given(
    cases=st.dictionaries(st.sampled_from([0, 1, 2, 3, 7, WORD - 1, WORD]) | st.integers(0, WORD), st.integers(0, 9)),
    word=st.integers(0, WORD),
)
def test_a_switch_finds_each_value(cases: dict[int, int], word: int) -> None:
    code: dict[int, seccomp.Code] = {value: seccomp.Verdict(verdict) for value, verdict in cases.items()}
    program = bpf.decode(
        seccomp.Assembler().assemble(seccomp.Load(0, WORD, seccomp._switch(code, seccomp.Verdict(10))))
    )

    for value in (*cases, word):
        assert cases.get(value, 10) == bpf.run(program, 0, value).verdict


# --- Real programs need nothing that is refused. ---

CORPUS = Path(__file__).with_name("seccomp_corpus.txt")
DONE_WITHOUT = {
    "clone3": "glibc falls back to clone, whose flags can be read",
    "get_mempolicy": "libnuma in ps asks whether there are nodes and takes EPERM for no",
    "mbind": "OpenBLAS spreads its buffer over nodes and ignores the answer",
    "set_mempolicy": "as get_mempolicy",
    "ioctl 1=0x40049409": "FICLONE: cp copies the bytes instead",
    "socket 0=0x10 1=0x80003 2=0x0": "os.networkInterfaces() of node asks netlink; there are none to tell of",
}


def corpus() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        made, _, _ = line.partition(":")
        name, *looked_at = made.split()
        args = [0] * 6
        for index, _, value in (text.partition("=") for text in looked_at):
            args[int(index)] = int(value, 0)
        yield made, name, tuple(args)


def test_real_programs_need_nothing_that_is_refused() -> None:
    refused = {line for line, name, args in corpus() if locked("x86_64", NUMBERS["x86_64"][name], args) != ALLOW}

    assert DONE_WITHOUT.keys() == refused


# --- The table agrees with the kernel headers of this machine. ---


def generator() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "generate_syscall_table.py"
    spec = importlib.util.spec_from_file_location("generate_syscall_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not module.available() or shutil.which("cc") is None:
        pytest.skip("needs linux-libc-dev of x86-64 and a C preprocessor")
    return module


def test_the_table_is_what_the_generator_writes() -> None:
    tool = generator()
    text = tool.TABLE.read_text(encoding="utf-8")
    if f"Linux {tool.read_version()}," not in text:
        pytest.skip(f"made from other headers than those of Linux {tool.read_version()}")

    assert tool.render() == text


@pytest.mark.parametrize("arch", ARCHES)
def test_headers_of_any_version_agree_with_the_table(arch: str) -> None:
    header = generator().read_header(arch)

    assert {} == {name: n for name, n in header.items() if NUMBERS[arch].get(name, n) != n}
    assert set() == {n for name, n in header.items() if name not in NUMBERS[arch]} & set(NUMBERS[arch].values())


def test_a_header_that_contradicts_the_younger_calls_is_an_error() -> None:
    with pytest.raises(ValueError, match="mseal is 461"):
        generator().merge("aarch64", {"mseal": 461})


# --- This kernel. Each probe is shown to work, or to fail differently, before the programs are there. ---

ARCH = platform.machine()
on_kernel = pytest.mark.skipif(
    ARCH not in NUMBERS or not Path("/proc/sys/kernel/seccomp").exists(), reason="needs seccomp on x86-64 or aarch64"
)
libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
libc.syscall.restype = ctypes.c_long


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def call(name: str | int, *args: int | bytes | None) -> int:
    """The errno of a raw system call, 0 for success. Descriptors it makes are left to the process's end."""
    number = NUMBERS[ARCH][name] if isinstance(name, str) else name
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *words) < 0 else 0


def install(program: bytes) -> None:
    assert not libc.prctl(38, 1, 0, 0, 0)
    assert not libc.syscall(
        ctypes.c_long(NUMBERS[ARCH]["seccomp"]), 1, 0, ctypes.byref(Program(len(program) // 8, program))
    )


def confine() -> None:
    install(seccomp.zygote_program(ARCH, memfd=False))
    install(seccomp.lock_program(ARCH))


def forked(work: Callable[[], object]) -> tuple[int, Any]:
    """How a child ended (its exit code, negative for a signal) and what it reported."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(writer, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as report:
        text = report.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), json.loads(text or b"null")


def ways(folder: bytes) -> dict[str, Callable[[], int]]:
    """One call each, by what is to become of it."""
    how = struct.pack("=QQQ", os.O_RDONLY, 0, 0)
    own = os.getpid
    clash = 0x0002_0000 | 0x200  # CLONE_NEWNS | CLONE_FS: EINVAL from the kernel, so nothing is ever forked
    made = os.O_CREAT | os.O_WRONLY
    return {
        "unshare": lambda: call("unshare", 0x400),  # CLONE_FILES takes no privilege
        "clone new namespace": lambda: call("clone", clash, 0, 0, 0, 0),
        "clone3": lambda: call("clone3", 0, 0),
        "openat2": lambda: call("openat2", -100, b"/", how, len(how)),
        "netlink": lambda: call("socket", socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "unix datagram": lambda: call("socket", socket.AF_UNIX, socket.SOCK_DGRAM, 0),
        "unix datagram pair": lambda: call("socketpair", socket.AF_UNIX, socket.SOCK_DGRAM, 0, bytes(8)),
        "unix datagram, upper half": lambda: call("socket", 1 | 1 << 32, 2 | 1 << 32, 0),
        "setuid bit": lambda: call("fchmodat", -100, folder + b"/file", 0o4755, 0),
        "open with setuid bit": lambda: call("openat", -100, folder + b"/new", made, 0o4755),
        "dumpable": lambda: call("prctl", 4, 1, 0, 0, 0),
        "limit by number": lambda: call("prlimit64", own(), 7, 0, bytes(16)),
        "personality": lambda: call("personality", 0x0040000),
        "memfd": lambda: call("memfd_create", b"x", 0),
        "pidfd": lambda: call("pidfd_open", own(), 0),
        "shared memory": lambda: call("shmget", 0, 0, 0),
        "notify": lambda: call("fcntl", os.open("/", os.O_RDONLY), fcntl.F_NOTIFY, 0),
        "seccomp": lambda: call("seccomp", 2, 0, struct.pack("=I", ALLOW)),
        "setgid": lambda: call("setgid", os.getgid()),
        "unknown": lambda: call(400, 0),
        "getpid": lambda: call("getpid"),
        "unix stream": lambda: call("socket", socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0),
        "open": lambda: call("openat", -100, folder + b"/plain", made, 0o644),
        "own limit": lambda: call("prlimit64", 0, 7, 0, bytes(16)),
        "fifo": lambda: call("mknodat", -100, folder + b"/fifo%d" % os.urandom(1)[0], stat.S_IFIFO | 0o600, 0),
    }


STILL_ALLOWED = {"getpid", "unix stream", "open", "own limit", "fifo"}
NOT_IMPLEMENTED = {"clone3", "openat2", "unknown"}
ANOTHER_ERROR = {"clone new namespace": errno.EINVAL, "clone3": errno.EINVAL, "unknown": errno.ENOSYS,
                 "shared memory": errno.EINVAL}  # fmt: skip


@on_kernel
def test_this_kernel_obeys(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def work() -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        probes = ways(os.fsencode(tmp_path))
        before = {name: probe() for name, probe in probes.items()}
        install(seccomp.zygote_program(ARCH, memfd=False))
        setup = {name: probes[name]() for name in ("unshare", "openat2", "pidfd", "setgid", "seccomp")}
        install(seccomp.lock_program(ARCH))
        return before, setup, {name: probe() for name, probe in probes.items()}

    code, report = forked(work)
    assert code == 0
    before, setup, after = report
    (tmp_path / "new").unlink()

    assert {name: ANOTHER_ERROR.get(name, 0) for name in before} == before
    assert dict.fromkeys(setup, 0) == setup
    assert {
        name: 0 if name in STILL_ALLOWED else errno.ENOSYS if name in NOT_IMPLEMENTED else errno.EPERM for name in after
    } == after


@on_kernel
def test_a_locked_process_still_runs_programs(tmp_path: Path) -> None:
    script = """if True:
        import asyncio, json, socket, sqlite3, subprocess, tempfile, threading
        threading.Thread(target=print).start()
        left, right = socket.socketpair()
        sqlite3.connect(tempfile.mkdtemp() + "/x").execute("create table t (a)")
        async def main():
            return await (await asyncio.create_subprocess_exec("true")).wait()
        print(asyncio.run(main()), subprocess.run("echo b a | tr ' ' '\\\\n' | sort", shell=True).returncode)
    """

    def work() -> list[object]:
        confine()
        run = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
        return [run.returncode, run.stdout.split(), run.stderr]

    assert (0, [0, ["a", "b", "0", "0"], ""]) == forked(work)


@on_kernel
@pytest.mark.skipif(ARCH != "x86_64", reason="x32 and int 0x80 belong to x86-64")
def test_x32_kills_this_kernels_process() -> None:
    def locked_work() -> int:
        confine()
        return call(0x4000_0000 | 39)

    code, _ = forked(lambda: call(0x4000_0000 | 39))

    assert code == 0
    assert -signal.SIGSYS == forked(locked_work)[0]


@on_kernel
@pytest.mark.skipif(ARCH != "x86_64", reason="x32 and int 0x80 belong to x86-64")
def test_int_0x80_kills_this_kernels_process() -> None:
    def interrupt() -> int:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid of i386); int 0x80; ret
        return int(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())

    def locked_work() -> int:
        confine()
        return interrupt()

    code, _ = forked(interrupt)
    if code == -signal.SIGSEGV:
        pytest.skip("this kernel has no int 0x80")

    assert code == 0
    assert -signal.SIGSYS == forked(locked_work)[0]
