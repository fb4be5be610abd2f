"""What a child may ask of the kernel, compiled to the two seccomp programs that hold it there.

Pure: names and numbers in, bytes out; syscalls.py installs them. A process may carry several programs and the kernel
obeys the strictest verdict (seccomp(2)), so the list is applied in two parts:

* `zygote_program`: the whole list, but the calls in `_SETUP` without conditions. Installed once in the zygote and
  inherited, because it costs more to install than to have.
* `lock_program`: the list again for the calls in `_SETUP`, everything else allowed. The child's last step.

`network_program` goes between them in the egress proxy, which is no child: it takes more away.

After the two, every call has exactly the verdict of `_verdicts`. A call that is allowed whatever its arguments are is
decided without reading them, so that the kernel remembers it (the bitmap of Linux 5.11) and runs no program for it.

Verdicts: allowed · EPERM: known and refused · ENOSYS: unknown to our table, and clone3 and openat2, whose arguments lie
in memory where a program cannot read them, so that callers fall back to clone and openat · ENOTTY: an ioctl that is not
listed, which callers take for "this file cannot do that" · the process is killed: a call of another architecture
(int 0x80 is one) or of x32.

Where the names come from: the default profile of moby (github.com/moby/profiles, commit cd3bed8061c7 of 2026-06-30,
seccomp/default_linux.go), without what it allows for a capability. Taken back from it: System V and POSIX message
queues, semaphores and shared memory (a child shares them with its zygote), everything that changes an identity, a mount
or the confinement (`_SETUP`), ptrace, process_vm_readv and _writev, modify_ldt, memfd_secret, name_to_handle_at,
fanotify_mark, listmount, statmount and openat2. More calls than there have conditions.

Which half of an argument counts: registers have 64 bits, but a call that takes an int never sees the upper half, so it
is not compared: a program that did would take `ioctl(fd, 1 << 32 | TIOCSTI)` for another request than the kernel does.
Every condition here is on such an argument, except on the second of prctl.
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

from sage_sandbox.sandbox.inside.syscall_table import NUMBERS

# --- Programs as expressions. Every path through one ends in a verdict. ---


class Verdict(NamedTuple):
    """The end of a path: what the kernel is told."""

    action: int


class Load(NamedTuple):
    """Read a word of struct seccomp_data (linux/seccomp.h), keep the bits of ``mask``, go on."""

    offset: int
    mask: int
    then: Code


class If(NamedTuple):
    """Compare the word that was read, go one way or the other."""

    test: int
    value: int
    then: Code
    otherwise: Code


Code: TypeAlias = Verdict | Load | If
"""Compared and hashed by value; the three differ in length, so none equals another."""

# linux/bpf_common.h; the comparisons are unsigned.
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_NUMBER_AT: Final = 0
_ARCH_AT: Final = 4
_ARGUMENTS_AT: Final = 16
_WORD: Final = 0xFFFF_FFFF


class Assembler:
    """Writes code from its end to its start, for jumps go forward only: what is jumped to is always there already.

    Code that is equal is written once. ``_places`` holds how many instructions there are from each piece to the end.
    The distance of a conditional jump is one byte, which `struct.pack` sees to; our programs are shorter than that.
    """

    def __init__(self) -> None:
        self._reversed: list[bytes] = []
        self._places: dict[Code, int] = {}

    def assemble(self, code: Code) -> bytes:
        """The whole program, an array of struct sock_filter (linux/filter.h)."""
        self._place(code)
        return b"".join(reversed(self._reversed))

    def _place(self, code: Code) -> None:
        if code in self._places:
            return
        if isinstance(code, Verdict):
            self._write(_RETURN, code.action)
        elif isinstance(code, Load):
            self._place(code.then)
            if self._distance(code.then):
                self._write(_JUMP, self._distance(code.then))
            if code.mask != _WORD:
                self._write(_AND, code.mask)
            self._write(_LOAD, code.offset)
        else:
            self._place(code.then)
            self._place(code.otherwise)
            self._write(code.test, code.value, self._distance(code.then), self._distance(code.otherwise))
        self._places[code] = len(self._reversed)

    def _distance(self, code: Code) -> int:
        """How many instructions stand between the one written next and this code."""
        return len(self._reversed) - self._places[code]

    def _write(self, code: int, k: int, then: int = 0, otherwise: int = 0) -> None:
        self._reversed.append(struct.pack("<HBBI", code, then, otherwise, k))  # both architectures are little-endian


def _switch(cases: Mapping[int, Code], otherwise: Code) -> Code:
    """The code for the word's value, found by binary search over runs of values that share one."""
    starts = {0: otherwise}
    for value in sorted(cases):
        starts[value] = cases[value]
        starts[value + 1] = otherwise
    starts.pop(_WORD + 1, None)
    return _search([next(run) for _, run in groupby(starts.items(), key=itemgetter(1))])


def _search(runs: list[tuple[int, Code]]) -> Code:
    if len(runs) == 1:
        return runs[0][1]
    middle = len(runs) // 2
    return If(_IF_AT_LEAST, runs[middle][0], _search(runs[middle:]), _search(runs[:middle]))


def _argument(index: int, cases: Mapping[int, Code], otherwise: Code, mask: int = _WORD) -> Code:
    """The code for an int argument's value under a mask."""
    return Load(_ARGUMENTS_AT + 8 * index, mask, _switch(cases, otherwise))


def _any_bit(index: int, mask: int, then: Code, otherwise: Code) -> Code:
    """One way or the other, by whether an int argument has one of these bits."""
    return Load(_ARGUMENTS_AT + 8 * index, _WORD, If(_IF_ANY_BIT, mask, then, otherwise))


def _zero(index: int, then: Code, otherwise: Code) -> Code:
    """One way or the other, by whether an unsigned long argument is 0 in both halves."""
    lower = _argument(index, {0: then}, otherwise)
    return Load(_ARGUMENTS_AT + 8 * index + 4, _WORD, _switch({0: lower}, otherwise))


_ALLOW: Final = Verdict(0x7FFF_0000)  # SECCOMP_RET_ALLOW
_KILL: Final = Verdict(0x8000_0000)  # SECCOMP_RET_KILL_PROCESS, Linux 4.14
_EPERM: Final = Verdict(0x0005_0000 | errno.EPERM)  # SECCOMP_RET_ERRNO
_ENOSYS: Final = Verdict(0x0005_0000 | errno.ENOSYS)
_ENOTTY: Final = Verdict(0x0005_0000 | errno.ENOTTY)


# --- The list. A name that one of the architectures does not have is skipped there. ---

_AUDIT_ARCH: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}  # linux/audit.h
_X32_BIT: Final = 0x4000_0000  # __X32_SYSCALL_BIT of x86_64, asm/unistd.h


def _names(*groups: str) -> frozenset[str]:
    return frozenset(" ".join(groups).split())


_ALLOWED: Final = _names(
    # files and folders by path
    "access chdir chown faccessat faccessat2 fchdir fchownat futimesat getcwd lchown link linkat lstat newfstatat",
    "readlink readlinkat rename renameat renameat2 rmdir stat statfs statx symlink symlinkat truncate umask unlink",
    "unlinkat utime utimensat utimes getxattr getxattrat lgetxattr listxattr listxattrat llistxattr lremovexattr",
    "lsetxattr removexattr removexattrat setxattr setxattrat inotify_add_watch inotify_init inotify_init1",
    "inotify_rm_watch",
    # descriptors
    "cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fallocate fchown fdatasync fgetxattr",
    "flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate getdents getdents64 lseek pipe pipe2",
    "pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile splice sync sync_file_range",
    "syncfs tee vmsplice write writev io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit",
    # waiting
    "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd",
    "eventfd2 pause poll ppoll pselect6 select",
    # sockets that are there already; which can be made is a condition
    "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg",
    "sendto setsockopt shutdown",
    # memory
    "brk madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock",
    "munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages",
    # processes and threads
    "arch_prctl capget execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake",
    "get_robust_list get_thread_area getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid",
    "getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get process_mrelease rseq",
    "sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler",
    "sched_rr_get_interval sched_yield set_robust_list set_thread_area set_tid_address setpgid setrlimit setsid",
    "uretprobe vfork wait4 waitid",
    # signals
    "kill pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn",
    "rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4 tgkill tkill",
    # time and the machine; setting the clock needs a capability that nobody here has
    "adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer getrandom gettimeofday",
    "nanosleep setitimer sysinfo time timer_create timer_delete timer_getoverrun timer_gettime timer_settime",
    "timerfd_create timerfd_gettime timerfd_settime times uname",
)

_SETUP: Final = _names(
    # namespaces, mounts and their contents; ioctl, for it brings up an own loopback interface (netdevice(7))
    "chroot clone fsconfig fsmount fsopen fspick ioctl mknod mknodat mount mount_setattr move_mount open_tree openat2",
    "pidfd_open pivot_root setns umount2 unshare",
    # identity and capabilities
    "capset prctl setfsgid setfsuid setgid setgroups setregid setresgid setresuid setreuid setuid",
    # the confinement itself
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
)
"""What only our own code in the zygote and in a child that is being set up may do: `lock_program` takes it away."""

_NOT_OF_THE_NETWORK: Final = _names(
    "execve execveat fork vfork kill listen pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo socketpair",
    "tgkill tkill",
)

# clone(2), linux/sched.h: an unsigned long of which the kernel uses the lower half. The bit of CLONE_NEWTIME belongs to
# the number of the exit signal here, and no signal has it.
_NEW_NAMESPACE: Final = (
    0x0002_0000  # CLONE_NEWNS
    | 0x0200_0000  # CLONE_NEWCGROUP
    | 0x0400_0000  # CLONE_NEWUTS
    | 0x0800_0000  # CLONE_NEWIPC
    | 0x1000_0000  # CLONE_NEWUSER
    | 0x2000_0000  # CLONE_NEWPID
    | 0x4000_0000  # CLONE_NEWNET
    | 0x0000_0080  # CLONE_NEWTIME
)

_CLONE_THREAD: Final = 0x0001_0000

# socket(2): three ints. The type carries two flags, equal on both architectures.
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_DGRAM = 1, 2
_SOCK_TYPE: Final = _WORD ^ 0o2000000 ^ 0o4000  # without SOCK_CLOEXEC and SOCK_NONBLOCK
_IPPROTO_TCP, _IPPROTO_UDP = 6, 17

# open(2): flags and mode of the lower half; a mode is read only if a file is made, and is garbage otherwise.
_MAKES_FILE: Final = 0o100 | 0o20000000  # O_CREAT, __O_TMPFILE; equal on both architectures

_NODES: Final = (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)  # mknod(2): 0 is a regular file as well

# ioctl(2): an unsigned int, asm-generic/ioctls.h. Absent on purpose: TIOCSTI and TIOCLINUX, which type into a terminal,
# TIOCSETD, TIOCCONS, and every request to a file system, a disk or a network interface.
_IOCTLS: Final = {
    "TCGETS": 0x5401, "TCSETS": 0x5402, "TCSETSW": 0x5403, "TCSETSF": 0x5404,
    "TCGETA": 0x5405, "TCSETA": 0x5406, "TCSETAW": 0x5407, "TCSETAF": 0x5408,
    "TCGETS2": 0x802C_542A, "TCSETS2": 0x402C_542B, "TCSETSW2": 0x402C_542C, "TCSETSF2": 0x402C_542D,
    "TCSBRK": 0x5409, "TCXONC": 0x540A, "TCFLSH": 0x540B, "TCSBRKP": 0x5425,
    "TIOCEXCL": 0x540C, "TIOCNXCL": 0x540D, "TIOCGEXCL": 0x8004_5440,
    "TIOCSCTTY": 0x540E, "TIOCNOTTY": 0x5422, "TIOCGPGRP": 0x540F, "TIOCSPGRP": 0x5410, "TIOCGSID": 0x5429,
    "TIOCOUTQ": 0x5411, "TIOCGWINSZ": 0x5413, "TIOCSWINSZ": 0x5414,
    "TIOCPKT": 0x5420, "TIOCGPTN": 0x8004_5430, "TIOCSPTLCK": 0x4004_5431, "TIOCGPTPEER": 0x5441,
    "FIONREAD": 0x541B, "FIONBIO": 0x5421, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451, "FIOASYNC": 0x5452,
    "FIOQSIZE": 0x5460,
}  # fmt: skip

# prctl(2): an int option, linux/prctl.h. Absent on purpose: whatever changes capabilities, securebits or seccomp, lets
# others trace, shares memory or cores with others. 50 to 76 from SVE on are the vector, pointer and stack protections
# that arm64 offers a process for itself.
_PRCTLS: Final = {
    "PR_SET_PDEATHSIG": 1, "PR_GET_PDEATHSIG": 2, "PR_GET_DUMPABLE": 3, "PR_GET_KEEPCAPS": 7, "PR_GET_TIMING": 13,
    "PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_GET_SECCOMP": 21, "PR_CAPBSET_READ": 23, "PR_GET_TSC": 25,
    "PR_GET_SECUREBITS": 27, "PR_SET_TIMERSLACK": 29, "PR_GET_TIMERSLACK": 30,
    "PR_SET_CHILD_SUBREAPER": 36, "PR_GET_CHILD_SUBREAPER": 37, "PR_SET_NO_NEW_PRIVS": 38, "PR_GET_NO_NEW_PRIVS": 39,
    "PR_GET_TID_ADDRESS": 40, "PR_SET_THP_DISABLE": 41, "PR_GET_THP_DISABLE": 42,
    "PR_SVE_SET_VL": 50, "PR_SVE_GET_VL": 51, "PR_GET_SPECULATION_CTRL": 52, "PR_PAC_RESET_KEYS": 54,
    "PR_SET_TAGGED_ADDR_CTRL": 55, "PR_GET_TAGGED_ADDR_CTRL": 56, "PR_PAC_SET_ENABLED_KEYS": 60,
    "PR_PAC_GET_ENABLED_KEYS": 61, "PR_SME_SET_VL": 63, "PR_SME_GET_VL": 64, "PR_SET_MDWE": 65, "PR_GET_MDWE": 66,
    "PR_GET_SHADOW_STACK_STATUS": 74, "PR_SET_SHADOW_STACK_STATUS": 75, "PR_LOCK_SHADOW_STACK_STATUS": 76,
    "PR_GET_AUXV": 0x4155_5856, "PR_SET_VMA": 0x5356_4D41,
}  # fmt: skip
_PR_SET_DUMPABLE: Final = 4

# fcntl(2): an unsigned int, linux/fcntl.h. Absent on purpose: F_SETOWN, F_SETOWN_EX and F_SETSIG, which send signals in
# the name of others, F_SETLEASE, F_SETDELEG and F_NOTIFY, which make others outside wait or tell what they do.
_FCNTLS: Final = {
    "F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4, "F_GETLK": 5, "F_SETLK": 6, "F_SETLKW": 7,
    "F_GETOWN": 9, "F_GETSIG": 11, "F_GETOWN_EX": 16, "F_OFD_GETLK": 36, "F_OFD_SETLK": 37, "F_OFD_SETLKW": 38,
    "F_GETLEASE": 1025, "F_DUPFD_QUERY": 1027, "F_CREATED_QUERY": 1028, "F_DUPFD_CLOEXEC": 1030,
    "F_SETPIPE_SZ": 1031, "F_GETPIPE_SZ": 1032, "F_ADD_SEALS": 1033, "F_GET_SEALS": 1034,
    "F_GET_RW_HINT": 1035, "F_SET_RW_HINT": 1036, "F_GET_FILE_RW_HINT": 1037, "F_SET_FILE_RW_HINT": 1038,
}  # fmt: skip

# personality(2): an unsigned int. PER_LINUX, PER_LINUX32, UNAME26, both, and the question which it is: moby's values.
_PERSONALITIES: Final = (0, 0x8, 0x20000, 0x20008, _WORD)

_PRIO_PROCESS: Final = 0  # setpriority(2): two ints
_IOPRIO_WHO_PROCESS: Final = 1  # ioprio_set(2): two ints


def _one_of(index: int, values: Mapping[str, int] | tuple[int, ...], otherwise: Code = _EPERM) -> Code:
    """Allow an int argument that has one of these values."""
    known = values.values() if isinstance(values, Mapping) else values
    return _argument(index, dict.fromkeys(known, _ALLOW), otherwise)


def _plain_mode(index: int) -> Code:
    """Allow a mode (umode_t: 16 bits) without setuid and setgid: files with them can outlive the sandbox."""
    return _any_bit(index, stat.S_ISUID | stat.S_ISGID, _EPERM, _ALLOW)


def _open(flags: int, mode: int) -> Code:
    return _any_bit(flags, _MAKES_FILE, _plain_mode(mode), _ALLOW)


def _mknod(mode: int) -> Code:
    """No devices: character 0:0 is an overlay's whiteout, which takes no privilege to make."""
    return _argument(mode, dict.fromkeys(_NODES, _plain_mode(mode)), _EPERM, mask=0o170000)


def _socket_type(*types: int, allowed: Code = _ALLOW) -> Code:
    return _argument(1, dict.fromkeys(types, allowed), _EPERM, mask=_SOCK_TYPE)


_INTERNET: Final = _socket_type(_SOCK_STREAM, _SOCK_DGRAM, allowed=_one_of(2, (0, _IPPROTO_TCP, _IPPROTO_UDP)))


def _socket() -> Code:
    """Unix streams; TCP and UDP, which reach as far as the network namespace does."""
    families = {_AF_UNIX: _socket_type(_SOCK_STREAM), _AF_INET: _INTERNET, _AF_INET6: _INTERNET}
    return _argument(0, families, _EPERM)


_OWN_PROCESS: Final = _one_of(0, (0,))
"""pid_t is an int. By number even one's own process is refused: outside a pid namespace any number may be given."""

_CONDITIONS: Final = {
    "chmod": _plain_mode(1),
    "clone": _any_bit(0, _NEW_NAMESPACE, _EPERM, _ALLOW),
    "clone3": _ENOSYS,
    "creat": _plain_mode(1),
    "fchmod": _plain_mode(1),
    "fchmodat": _plain_mode(2),
    "fchmodat2": _plain_mode(2),
    "fcntl": _one_of(1, _FCNTLS),
    "ioctl": _one_of(1, _IOCTLS, otherwise=_ENOTTY),
    "ioprio_set": _argument(0, {_IOPRIO_WHO_PROCESS: _one_of(1, (0,))}, _EPERM),
    "mkdir": _plain_mode(1),
    "mkdirat": _plain_mode(2),
    "mknod": _mknod(1),
    "mknodat": _mknod(2),
    "open": _open(flags=1, mode=2),
    "openat": _open(flags=2, mode=3),
    "openat2": _ENOSYS,
    "personality": _one_of(0, _PERSONALITIES),
    "prctl": _argument(
        0,
        dict.fromkeys(_PRCTLS.values(), _ALLOW) | {_PR_SET_DUMPABLE: _zero(1, _ALLOW, _EPERM)},
        _EPERM,
    ),
    "prlimit64": _OWN_PROCESS,
    "sched_setaffinity": _OWN_PROCESS,
    "sched_setattr": _OWN_PROCESS,
    "sched_setparam": _OWN_PROCESS,
    "sched_setscheduler": _OWN_PROCESS,
    "setpriority": _argument(0, {_PRIO_PROCESS: _one_of(1, (0,))}, _EPERM),
    "socket": _socket(),
    "socketpair": _argument(0, {_AF_UNIX: _socket_type(_SOCK_STREAM)}, _EPERM),  # a datagram one reaches any socket
}


def _verdicts(arch: str) -> dict[int, Code]:
    """What a locked child gets for each number that its architecture has, memfd_create refused."""
    allowed = dict.fromkeys(_ALLOWED, _ALLOW)
    return {number: (allowed | _CONDITIONS).get(name, _EPERM) for name, number in NUMBERS[arch].items()}


def _allow(arch: str, names: frozenset[str]) -> dict[int, Code]:
    return {number: _ALLOW for name, number in NUMBERS[arch].items() if name in names}


def _program(arch: str, verdicts: Mapping[int, Code], otherwise: Code) -> bytes:
    """A whole program: the architecture first (seccomp(2), "Caveats"), then the number."""
    native = _switch(verdicts, otherwise)
    if arch == "x86_64":
        native = If(_IF_ANY_BIT, _X32_BIT, _KILL, native)
    native = Load(_NUMBER_AT, _WORD, native)
    return Assembler().assemble(Load(_ARCH_AT, _WORD, If(_IF_EQUAL, _AUDIT_ARCH[arch], native, _KILL)))


def zygote_program(arch: str, *, memfd: bool) -> bytes:
    """The list, and what setting up a child takes. ``memfd``: memfd_create is allowed, for a cgroup counts its memory.

    ``arch`` is `os.uname().machine`: x86_64 or aarch64; KeyError on any other.
    """
    beside = _SETUP | {"memfd_create"} if memfd else _SETUP
    return _program(arch, _verdicts(arch) | _allow(arch, beside), _ENOSYS)


def network_program(arch: str) -> bytes:
    """What a process that only speaks to the network does not need: local sockets, programs, processes, to be a server.

    Only good beside `zygote_program` and before `lock_program`, for it allows everything else.
    """
    refused = _NOT_OF_THE_NETWORK & NUMBERS[arch].keys()
    verdicts: dict[int, Code] = {NUMBERS[arch][name]: _EPERM for name in refused}
    verdicts[NUMBERS[arch]["clone"]] = _any_bit(0, _CLONE_THREAD, _ALLOW, _EPERM)
    verdicts[NUMBERS[arch]["socket"]] = _argument(0, {_AF_INET: _INTERNET, _AF_INET6: _INTERNET}, _EPERM)
    return _program(arch, verdicts, _ALLOW)


def lock_program(arch: str) -> bytes:
    """What takes the setup away again; only good on top of `zygote_program`, for it allows everything else."""
    setup = _allow(arch, _SETUP)
    return _program(arch, {number: verdict for number, verdict in _verdicts(arch).items() if number in setup}, _ALLOW)
