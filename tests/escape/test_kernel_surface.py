"""The kernel's surface: calls that no operation needs are refused before the kernel looks at their arguments.

Outside, each is made with arguments that do no harm, or in namespaces of its own, and the kernel does it or says what
is wrong with them. Inside, the answer is the filter's, whatever the arguments are.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import pytest
from escape.attempt import Bench, Did, Died, Refused, needs_root, reached

from sage_sandbox.sandbox.inside.syscall_table import NUMBERS

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="a trap of x86-64 only")


@dataclass(frozen=True)
class Call:
    """Arguments as source text. ``own``: as the root of namespaces of its own."""

    name: str
    arguments: str
    refusal: str = "EPERM"
    own: bool = False
    note: str = ""

    @property
    def act(self) -> str:
        return f"""
        def act():
            held = ctypes.create_string_buffer(4096)
            result = call({self.name!r}, {self.arguments})
            return result
        """

    @property
    def label(self) -> str:
        return f"{self.name}-{self.note}" if self.note else self.name


CALLS = [
    # mounts and roots
    Call("mount", "b'none', b'/tmp', b'tmpfs', 0, None", own=True),
    Call("umount2", "b'/proc', 2", own=True),
    Call("pivot_root", "b'/', b'/'", own=True),
    Call("chroot", "b'/'", own=True),
    Call("open_tree", "-100, b'/', 1", own=True),
    Call("move_mount", "-1, b'', -1, b'', 0", own=True),
    Call("fsopen", "b'tmpfs', 0", own=True),
    Call("fsmount", "-1, 0, 0", own=True),
    Call("fsconfig", "-1, 0, None, None, 0", own=True),
    Call("fspick", "-100, b'/', 0", own=True),
    Call("mount_setattr", "-1, b'', 0x1000, held, 32", own=True),
    Call("statmount", "held, held, 4096, 0"),
    Call("listmount", "held, held, 1, 0"),
    # namespaces
    Call("unshare", "0x10000000", note="user"),
    Call("unshare", "0x00020000", own=True, note="mount"),
    Call("unshare", "0x40000000", own=True, note="net"),
    Call("setns", "-1, 0"),
    Call("clone", "0x10000000 | 0x200, None, None, None, None", note="user"),  # with CLONE_FS: EINVAL
    Call("clone", "0x20000000 | 0x10000, None, None, None, None", note="pid"),
    Call("clone3", "held, 0", refusal="ENOSYS"),
    # other processes
    Call("ptrace", "0, 0, 0, 0"),
    Call("process_vm_readv", "os.getpid(), None, 0, None, 0, 0"),
    Call("process_vm_writev", "os.getpid(), None, 0, None, 0, 0"),
    Call("pidfd_open", "os.getpid(), 0"),
    Call("pidfd_getfd", "-1, 0, 0"),
    Call("process_madvise", "-1, None, 0, 0, 0"),
    Call("kcmp", "os.getpid(), os.getpid(), 0, 0, 1"),
    Call("move_pages", "0, 0, None, None, None, 0"),
    Call("migrate_pages", "0, 0, None, None"),
    # keys, programs, rings, counters
    Call("keyctl", "0, -2, 1"),
    Call("add_key", "b'user', b'sage-escape', b'x', 1, -2"),
    Call("request_key", "b'user', b'sage-escape', None, -2"),
    Call("bpf", "0, held, 1 << 20"),
    Call("io_uring_setup", "0, held"),
    Call("io_uring_enter", "-1, 0, 0, 0, None, 0"),
    Call("io_uring_register", "-1, 0, None, 0"),
    Call("perf_event_open", "held, 0, -1, -1, 0xffff"),
    Call("userfaultfd", "1"),
    Call("memfd_secret", "0"),
    Call("set_mempolicy", "0, None, 0"),
    Call("mbind", "None, 0, 0, None, 0, 0"),
    Call("lookup_dcookie", "0, held, 10"),
    # files behind the back of paths
    Call("openat2", "-100, b'/', held, 24", refusal="ENOSYS"),
    Call("name_to_handle_at", "-100, b'/', held, held, 0xffff"),
    Call("open_by_handle_at", "-1, None, 0"),
    Call("fanotify_init", "0x200, 0"),
    Call("fanotify_mark", "-1, 0, 0, 0, None"),
    Call("quotactl", "0, None, 0, None"),
    Call("quotactl_fd", "-1, 0, 0, None"),
    # the machine
    Call("reboot", "0, 0, 0, None"),
    Call("init_module", "None, 0, b''"),
    Call("finit_module", "-1, b'', 0xffff"),
    Call("delete_module", "None, 0"),
    Call("kexec_load", "0, 17, None, 0"),
    Call("kexec_file_load", "-1, -1, 0, None, 0xffff"),
    Call("swapon", "b'/nonexistent', 0x7fff0000"),
    Call("swapoff", "b'/nonexistent'"),
    Call("acct", "b'/nonexistent'"),
    Call("syslog", "10, None, 0"),
    Call("settimeofday", "1, None"),
    Call("clock_settime", "0, None"),
    Call("sethostname", "b'changed', 7", own=True),
    Call("setdomainname", "b'changed', 7", own=True),
    Call("vhangup", ""),
    Call("iopl", "4"),
    Call("ioperm", "1 << 40, 1, 1"),
    Call("modify_ldt", "0, held, 16"),
    Call("personality", "0x0040000", note="no-randomisation"),
    Call("personality", "0x0400000", note="read-implies-exec"),
    Call("nfsservctl", "0, None, None"),
    Call("uselib", "b'/nonexistent'"),
    Call("sysfs", "3"),
    # System V and POSIX objects
    Call("shmget", "0, 4096, 0o600", own=True),
    Call("shmat", "-1, None, 0"),
    Call("shmctl", "-1, 0, None"),
    Call("msgget", "0, 0o600", own=True),
    Call("msgsnd", "-1, held, 1, 0"),
    Call("semget", "0, 1, 0o600", own=True),
    Call("semop", "-1, held, 1"),
    Call("mq_open", "None, 0, 0, None"),
    Call("mq_unlink", "None"),
    # the confinement
    Call("seccomp", "99, 0, None"),
    Call("landlock_create_ruleset", "None, 0, 1"),
    Call("landlock_add_rule", "-1, 1, held, 0"),
    Call("landlock_restrict_self", "-1, 0"),
    Call("prctl", "4, 1, 0, 0, 0", note="dumpable"),
    Call("prctl", "8, 0, 0, 0, 0", note="keep-capabilities"),
    Call("prctl", "22, 99, 0, 0, 0", note="seccomp"),
    Call("prctl", "24, 9999, 0, 0, 0", own=True, note="bounding-set"),
    Call("prctl", "26, 1, 0, 0, 0", note="time-stamp-counter"),
    Call("prctl", "28, 0, 0, 0, 0", own=True, note="securebits"),
    Call("prctl", "31, 0, 0, 0, 0", note="perf-events"),
    Call("prctl", "35, 15, held, 8, 0", note="memory-map"),
    Call("prctl", "47, 4, 0, 0, 0", note="ambient-set"),
    Call("prctl", "53, 9999, 0, 0, 0", note="speculation"),
    Call("prctl", "59, 0, 0, 0, 0", note="dispatch"),
    Call("prctl", "62, 0, 0, 0, held", note="core-scheduling"),
    Call("prctl", "0x59616d61, -1, 0, 0, 0", note="ptracer"),
    # identity
    Call("setuid", "os.getuid()"),
    Call("setgid", "os.getgid()"),
    Call("setreuid", "-1, -1"),
    Call("setregid", "-1, -1"),
    Call("setresuid", "-1, -1, -1"),
    Call("setresgid", "-1, -1, -1"),
    Call("setfsuid", "os.getuid()"),
    Call("setfsgid", "os.getgid()"),
    Call("capset", "None, None"),
    # limits and priorities of others
    Call("prlimit64", "os.getpid(), 7, None, held"),
    Call("sched_setaffinity", "os.getpid(), 8, b'\\xff' * 8"),
    Call("sched_setscheduler", "os.getpid(), 0, struct.pack('i', 0)"),
    Call("sched_setparam", "os.getpid(), struct.pack('i', 0)"),
    Call("setpriority", "2, os.getuid(), 0", note="user"),
    Call("ioprio_set", "3, os.getuid(), 0", note="user"),
    # descriptors that tell or delay others
    Call("fcntl", "0, 8, os.getpid()", note="setown"),
    Call("fcntl", "0, 10, 0", note="setsig"),
    Call("fcntl", "0, 15, held", note="setown-ex"),
    Call("fcntl", "0, 1024, 2", note="lease"),
    Call("fcntl", "os.open('/', 0), 1026, 1", note="notify"),
    Call("fcntl", "0, 1 << 32 | 1024, 2", note="lease-with-a-high-word"),
    # terminals, disks and interfaces: asked of a closed descriptor, so that the kernel says EBADF
    Call("ioctl", "-1, 0x5412, held", refusal="ENOTTY", note="TIOCSTI"),
    Call("ioctl", "-1, 1 << 32 | 0x5412, held", refusal="ENOTTY", note="TIOCSTI-with-a-high-word"),
    Call("ioctl", "-1, 0x541C, held", refusal="ENOTTY", note="TIOCLINUX"),
    Call("ioctl", "-1, 0x5423, held", refusal="ENOTTY", note="TIOCSETD"),
    Call("ioctl", "-1, 0x541D, held", refusal="ENOTTY", note="TIOCCONS"),
    Call("ioctl", "-1, 0x8914, held", refusal="ENOTTY", note="SIOCSIFFLAGS"),
    Call("ioctl", "-1, 0x40049409, 0", refusal="ENOTTY", note="FICLONE"),
    Call("ioctl", "-1, 0x40086602, held", refusal="ENOTTY", note="FS_IOC_SETFLAGS"),
    Call("ioctl", "-1, 0xC0045877, 0", refusal="ENOTTY", note="FIFREEZE"),
    Call("ioctl", "-1, 0x40085203, held", refusal="ENOTTY", note="RNDADDENTROPY"),
    Call("ioctl", "-1, 0xB701, 0", refusal="ENOTTY", note="NS_GET_USERNS"),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.label)
def test_a_call_is_refused(bench: Bench, call: Call) -> None:
    if call.name not in NUMBERS[platform.machine()]:
        pytest.skip(f"{platform.machine()} has no {call.name}")
    bench.refuses(call.act, call.refusal, own_namespaces=call.own)


def test_an_unnamed_file_in_memory_is_made_only_where_a_cgroup_counts_it(bench: Bench) -> None:
    make = "def act():\n    os.close(os.memfd_create('x'))"
    counted = bench.run("def run():\n    pass").capabilities.memory == "cgroup"

    assert Did() == bench.outside(make)
    assert bench.inside(make) == (Did() if counted else Refused("EPERM"))


@pytest.mark.parametrize(
    "act",
    [
        "os.chmod(path, 0o4755)",
        "os.chmod(path, 0o2755)",
        "os.fchmod(fd, 0o4755)",
        "call('fchmodat2', -100, path.encode(), 0o4755, 0)",
        "os.close(os.open(path + '2', os.O_CREAT, 0o4755))",
        "call('creat', path.encode() + b'2', 0o4755)",
        "call('open', path.encode() + b'2', os.O_CREAT, 0o2755)",
        "os.mkdir(path + '2', 0o2755)",
        "call('mkdir', path.encode() + b'2', 0o4755)",
        "os.mknod(path + '2', 0o104755)",
        "os.close(os.open(os.path.dirname(path), os.O_TMPFILE | os.O_WRONLY, 0o4755))",
    ],
)
def test_no_file_gets_a_setuid_or_setgid_bit(bench: Bench, tmp_path: Path, act: str) -> None:
    made = f"""
    def act(folder):
        path = folder + "/f"
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o755)
        {act}
    """
    outside = bench.outside(made, {"folder": str(tmp_path)})

    if outside == Refused("ENOSYS"):
        pytest.skip("this kernel does not have the call")
    assert isinstance(outside, Did)
    assert Refused("EPERM") == bench.inside(made, {"folder": "/tmp"})


def test_no_whiteout_is_made(bench: Bench, tmp_path: Path) -> None:
    make = "def act(folder):\n    os.mknod(folder + '/w', 0o020600, 0)"

    assert Did() == bench.outside(make, {"folder": str(tmp_path)})
    assert Refused("EPERM") == bench.inside(make, {"folder": "/tmp"})


@needs_root("make a device")
@pytest.mark.parametrize("kind", [0o020600, 0o060600], ids=["character", "block"])
def test_no_device_is_made(bench: Bench, tmp_path: Path, kind: int) -> None:
    make = f"def act(folder):\n    os.mknod(folder + '/d', {kind}, os.makedev(1, 5))"

    assert Did() == bench.outside(make, {"folder": str(tmp_path)})
    assert Refused("EPERM") == bench.inside(make, {"folder": "/tmp"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RLIMIT_NPROC", 500),
        ("RLIMIT_FSIZE", 128 << 20),
        ("RLIMIT_NOFILE", 1025),
        ("RLIMIT_CPU", 100),
        ("RLIMIT_CORE", 2),
        ("RLIMIT_MEMLOCK", 65 << 10),
        ("RLIMIT_MSGQUEUE", 1),
    ],
)
def test_no_limit_is_raised(bench: Bench, name: str, value: int) -> None:
    """Outside the same value is within what the user has."""
    set_it = """
    def act(name, value):
        import resource
        call("prlimit64", 0, getattr(resource, name, 12), struct.pack("QQ", value, value), None)
    """

    bench.refuses(set_it, "EPERM", {"name": name, "value": value})


@needs_root("set the clock")
def test_the_clock_is_not_tuned(bench: Bench) -> None:
    """adjtimex(2) may be asked for the time; ADJ_TICK with a tick that no clock has, root is told, is invalid."""
    tune = """
    def act():
        held = ctypes.create_string_buffer(struct.pack("Ixxxx10q", 0x4000, *[0] * 9, 1), 1024)
        call("adjtimex", held)
    """

    assert Refused("EINVAL") == bench.outside(tune)
    assert Refused("EPERM") == bench.inside(tune)


@pytest.mark.parametrize("number", [600, 1000, 0x3FFFFFFF])
def test_a_call_that_nobody_knows_is_answered_as_unknown(bench: Bench, number: int) -> None:
    """A call that comes with a later kernel is refused here, not passed on."""
    unknown = f"def act():\n    NR['later'] = {number}\n    call('later')"

    assert Refused("ENOSYS") == bench.inside(unknown)


_MACHINE_CODE = """
def act():
    import mmap
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("{code}"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    result = ctypes.CFUNCTYPE(ctypes.c_long)(address)()
    if result < 0:
        raise OSError(-result, "call")
    return result > 0
"""


@X86
def test_a_call_of_the_32_bit_kind_kills(bench: Bench) -> None:
    # mov eax, 20 (getpid of i386); int 0x80; ret
    code = _MACHINE_CODE.format(code="b814000000cd80c3")
    outside = bench.outside(code)
    if outside == Died("SIGSEGV"):
        pytest.skip("this kernel was built without 32-bit calls")

    assert Did(True) == outside
    assert Died("killed by SIGSYS") == bench.inside(code)


@X86
def test_a_call_of_the_x32_kind_kills(bench: Bench) -> None:
    # mov eax, 0x40000000 + 39 (getpid of x32); syscall; ret
    code = _MACHINE_CODE.format(code="b8270000400f05c3")
    outside = bench.outside(code)

    assert outside in (Did(True), Refused("ENOSYS"))
    assert Died("killed by SIGSYS") == bench.inside(code)


def test_the_kernel_is_told_of_no_rights(bench: Bench) -> None:
    bench.needs_proc()
    status = """
    def act():
        import re
        lines = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
        return {name: lines[name].strip() for name in names}
    """
    outside, inside = bench.outside(status), bench.inside(status)

    assert isinstance(outside, Did)
    assert "0" == outside.value["NoNewPrivs"]
    nothing = "0" * 16
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert Did({**dict.fromkeys(names, nothing), "NoNewPrivs": "1", "Seccomp": "2"}) == inside


def test_a_command_is_told_of_no_rights_either(bench: Bench) -> None:
    """What execve(2) would give back to root: nothing, by no_new_privs, securebits and an empty bounding set."""
    bench.needs_proc()
    outcome = bench.command("grep", "-E", "CapEff|CapBnd|NoNewPrivs|Seccomp:", "/proc/self/status", output="lines")

    assert ["CapEff:\t" + "0" * 16, "CapBnd:\t" + "0" * 16, "NoNewPrivs:\t1", "Seccomp:\t2"] == outcome.value()


@pytest.mark.parametrize("program", ["su", "mount", "passwd", "newgrp", "ping", "chsh", "sudo"])
def test_a_setuid_program_gains_nothing(bench: Bench, program: str) -> None:
    path = next((p for p in (f"/usr/bin/{program}", f"/bin/{program}") if os.path.exists(p)), None)
    if path is None or not os.stat(path).st_mode & 0o4000:
        pytest.skip(f"no setuid {program} here")
    flags = "def act(path):\n    return [os.statvfs(path).f_flag & os.ST_NOSUID > 0, libc.prctl(39, 0, 0, 0, 0)]"
    outside, inside = bench.outside(flags, {"path": path}), bench.inside(flags, {"path": path})

    assert Did([False, 0]) == outside
    assert Did([True, 1]) == inside


@needs_root("become another user")
def test_root_is_not_become(bench: Bench) -> None:
    become = "def act():\n    os.setuid(0)"

    assert Did() == bench.outside(become)
    assert Refused("EPERM") == bench.inside(become)


def test_groups_are_not_changed(bench: Bench) -> None:
    change = "def act():\n    os.setgroups([])"
    outside = bench.outside(change)

    reached(outside, "EPERM")
    assert Did() == outside
    assert Refused("EPERM") == bench.inside(change)


def test_what_an_operation_needs_still_works(bench: Bench) -> None:
    """The control for everything above: refusals are not the sandbox being broken."""
    work = """
    def act():
        import subprocess, tempfile, threading, hashlib
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        thread = threading.Thread(target=hashlib.sha256)
        thread.start()
        thread.join()
        a, b = socket.socketpair()
        a.send(b"y")
        os.symlink("x", "/tmp/l")
        os.chmod(os.environ["HOME"], 0o700)
        return [b.recv(1).decode(), subprocess.run(["sh", "-c", "echo z"], capture_output=True, text=True).stdout]
    """

    assert Did(["y", "z\n"]) == bench.inside(work)
