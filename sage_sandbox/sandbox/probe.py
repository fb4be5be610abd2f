"""What this kernel and this host offer an operation's sandbox, found by trying.

Nothing is concluded from a version where an attempt is cheap: distributions back-port, containers and security modules
take away. Each attempt runs in a forked process of its own that enters namespaces, tries one thing and is gone. The
last row is the answer: an operation, run as every other is.

Only `cgroup.find` may leave something behind: where it has to, it moves this process (see there).
"""

from __future__ import annotations

import errno
import os
import re
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from sage_sandbox.errors import SageError
from sage_sandbox.frozen import frozen
from sage_sandbox.sandbox import cgroup, steps
from sage_sandbox.sandbox.inside import identity, mounts
from sage_sandbox.sandbox.inside import syscalls as sc

LEVEL_FULL: Final = "level full"
ABSENT: Final = "not in this version"
KERNEL_FLOOR: Final = (5, 13)
_ALLOW_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW

_LANDLOCK: Final = (
    (1, "files"),
    (2, "moves between folders"),
    (3, "truncation"),
    (4, "TCP ports"),
    (5, "device ioctls"),
    (6, "signals and abstract sockets"),
    (7, "audit of denials"),
)


@frozen
class Feature:
    """One thing the sandbox is made of.

    ``gives`` says what for, ``detail`` what was found, ``how`` what would bring it (empty if it is here, or if nothing
    would). Without a ``needed`` one there is no level full.
    """

    name: str
    here: bool
    gives: str
    detail: str
    how: str
    needed: bool


def probe(host: Host | None = None) -> tuple[Feature, ...]:
    """Try everything; the last feature says whether level full can be had, by having it."""
    host = host or Host()
    found = (*_machine(host), *_attempts(host), _landlock(host), *_memory(host), *_absent())
    return (*found, _level_full(host, found))


class Host:
    """The machine as the probe meets it: each method may be replaced to play another one."""

    def __init__(self, proc: Path = Path("/proc"), root: Path = Path("/")) -> None:
        self.proc = proc
        self.root = root

    def release(self) -> str:
        """The kernel's version."""
        return os.uname().release

    def supported(self) -> bool:
        """Whether the seccomp program and the system call numbers are written for this processor."""
        return sc.SUPPORTED

    def attempt(self, act: Callable[[], None]) -> OSError | None:
        """Act in a forked process; what the kernel said, None if it let it."""
        return attempt(act)

    def landlock_abi(self) -> int:
        """The Landlock ABI; 0 where there is none, or it is switched off."""
        return sc.landlock_abi()

    def cgroup_home(self) -> cgroup.CgroupHome | None:
        """Where groups can be made."""
        return cgroup.find()

    def run_one(self) -> tuple[float, float]:
        """Run an operation at level full, twice: seconds of the first, a zygote's start included, and of the second."""
        return run_one()

    def setting(self, name: str) -> int | None:
        """A sysctl, by its path below /proc/sys; None if this kernel has no such."""
        try:
            return int((self.proc / "sys" / name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def container(self) -> str:
        """``docker`` or ``podman`` if this looks like the inside of one."""
        for mark, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
            if (self.root / mark).exists():
                return name
        return ""


# Attempts.


def attempt(act: Callable[[], None]) -> OSError | None:
    """Act in a forked process; the OSError it ended with, or None."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        # We are a throw-away: whatever we changed ends with us, and our answer is a number and a sentence.
        os.close(reader)
        os.write(writer, _told(act))
        os._exit(0)
    os.close(writer)
    told = b"".join(iter(lambda: os.read(reader, 4096), b""))
    os.close(reader)
    os.waitpid(pid, 0)
    code, _, message = told.decode(errors="replace").partition(" ")
    if not code:
        return OSError(errno.EINTR, "the process that tried it was killed")
    return OSError(int(code), message) if int(code) else None


def _told(act: Callable[[], None]) -> bytes:
    try:
        act()
    except OSError as error:
        return f"{error.errno or errno.EIO} {error.strerror or error}".encode()
    except Exception as error:  # noqa: BLE001 - it must reach the parent, or nobody
        return f"{errno.EIO} {type(error).__name__}: {error}".encode()
    return b"0"


def _enter(kinds: int) -> None:
    """Namespaces as a zygote enters them: root with its rights, a user by way of a user namespace."""
    uid, gid = os.geteuid(), os.getegid()
    privileged = uid == 0 and _may_do_all()
    sc.unshare(kinds if privileged else kinds | sc.CLONE_NEWUSER)
    if not privileged:
        with _proc_fd() as proc:
            identity.write_maps(proc, "self", uid, gid)
    if kinds & sc.CLONE_NEWNS:
        sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)


def _may_do_all() -> bool:
    try:
        return steps.identity().privileged
    except SageError:
        return False


@contextmanager
def _proc_fd() -> Iterator[int]:
    fd = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _in_new_pid_namespace(act: Callable[[], None]) -> None:
    sc.unshare(sc.CLONE_NEWPID)
    if (error := attempt(act)) is not None:
        raise error


def _user_namespace() -> None:
    """Make one and use a right in it: AppArmor (Ubuntu 24.04) lets it be made and takes every right away."""
    uid, gid = os.geteuid(), os.getegid()
    sc.unshare(sc.CLONE_NEWUSER | sc.CLONE_NEWUTS)
    with _proc_fd() as proc:
        identity.write_maps(proc, "self", uid, gid)
    sc.sethostname("sandbox")
    sc.unshare(sc.CLONE_NEWUSER)  # the child's own, inside of the zygote's


def _mount_namespace() -> None:
    _enter(sc.CLONE_NEWNS)
    sc.mount("tmpfs", "/proc", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755,size=64k")
    os.chdir("/proc")
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    if os.listdir("/"):
        raise OSError(errno.EBUSY, "pivot_root: the old root is still there")


def _pid_namespace() -> None:
    def be_first() -> None:
        if os.getpid() != 1:
            raise OSError(errno.EINVAL, f"unshare: not pid 1 but {os.getpid()}")

    _enter(0)
    _in_new_pid_namespace(be_first)


def _openat2() -> None:
    os.close(sc.openat2(sc.AT_FDCWD, "/", os.O_PATH, sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_SYMLINKS))


def _mount_calls() -> None:
    _enter(sc.CLONE_NEWNS)
    tree = sc.open_tree(sc.AT_FDCWD, "/", sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE)
    sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | sc.AT_RECURSIVE, mounts.READ_ONLY)
    sc.move_mount(tree, "/proc")
    if not os.statvfs("/proc/proc").f_flag & os.ST_RDONLY:
        raise OSError(errno.EPERM, "mount_setattr: a mount beneath the bind is still writable")


def _idmapped_mounts() -> None:
    _enter(sc.CLONE_NEWNS)
    folder = os.getcwd()
    userns = identity.make_idmap((os.geteuid(), os.getegid()), 4_000_000, 4_000_000)
    tree = sc.open_tree(sc.AT_FDCWD, folder, sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC)
    sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH, mounts.READ_ONLY | sc.MOUNT_ATTR_IDMAP, userns)


def _seccomp() -> None:
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.seccomp_filter(_ALLOW_ALL)
    if sc.prctl(sc.PR_GET_SECCOMP) != sc.SECCOMP_MODE_FILTER:
        raise OSError(errno.EINVAL, "seccomp: the filter is not in force")


def _no_new_privs() -> None:
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)


def _overlay(upper: bool) -> None:
    _enter(sc.CLONE_NEWNS)
    sc.mount("tmpfs", "/proc", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755,size=1m")
    os.chdir("/proc")
    for name in ("top", "low", "up", "work", "here"):
        os.mkdir(name)
    os.mknod("top/hidden", 0o020600, 0)  # a whiteout, allowed without privileges since Linux 5.8
    Path("low/hidden").touch()
    layers = ",upperdir=up,workdir=work" if upper else ""
    sc.mount("overlay", "here", "overlay", sc.MS_NOSUID | sc.MS_NODEV, f"userxattr,lowerdir=top:low{layers}")
    if os.listdir("here"):
        raise OSError(errno.EINVAL, "overlay: a whiteout does not hide")
    if upper:
        Path("here/new").touch()


def _own_proc() -> None:
    def mount() -> None:
        flags = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC | sc.MS_RDONLY
        sc.mount("proc", "/proc", "proc", flags, "subset=pid,hidepid=ptraceable")

    _enter(sc.CLONE_NEWNS)
    _in_new_pid_namespace(mount)


def _pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


class _Try(NamedTuple):
    """One attempt: the Linux version it came with, and whether level full needs it."""

    name: str
    gives: str
    act: Callable[[], None]
    since: str
    needed: bool = True


_TRIES: Final = (
    _Try("user namespaces", "rights that end at the sandbox", _user_namespace, "3.8"),
    _Try("mount namespaces", "a file system of its own", _mount_namespace, "3.8"),
    _Try("pid namespaces", "no sight of other processes", _pid_namespace, "3.8"),
    _Try("network namespaces", "no network", lambda: _enter(sc.CLONE_NEWNET), "3.8"),
    _Try(
        "ipc and uts namespaces", "no shared IPC, no hostname", lambda: _enter(sc.CLONE_NEWIPC | sc.CLONE_NEWUTS), "3.8"
    ),
    _Try("openat2", "grants that no link redirects", _openat2, "5.6"),
    _Try("mount_setattr", "binds that are read-only throughout", _mount_calls, "5.12"),
    _Try("seccomp filter", "an allow list of system calls", _seccomp, "3.17"),
    _Try("no_new_privs", "no setuid programs", _no_new_privs, "3.5"),
    _Try("pidfd", "the right process is killed", _pidfd, "5.3"),
    _Try("own /proc", "tools that read /proc", _own_proc, "5.8", needed=False),
    _Try(
        "overlay, reading", "hidden names inside granted folders", lambda: _overlay(upper=False), "5.11", needed=False
    ),
    _Try("overlay, writing", "staged writes", lambda: _overlay(upper=True), "6.6", needed=False),
)

_IDMAP: Final = _Try(
    "idmapped mounts", "root's grants under an id of their own", _idmapped_mounts, "5.12", needed=False
)


def _attempts(host: Host) -> Iterator[Feature]:
    tries = (*_TRIES, _IDMAP) if os.geteuid() == 0 else _TRIES
    for tried in tries:
        error = host.attempt(tried.act)
        detail = "works" if error is None else f"{error.strerror}"
        how = "" if error is None else _how(tried, error, host)
        yield Feature(tried.name, error is None, tried.gives, detail, how, tried.needed)


def _how(tried: _Try, error: OSError, host: Host) -> str:
    """What would bring a feature whose attempt ended with ``error``."""
    if host.container() and error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        return _container_flags(host.container())
    if error.errno in (errno.ENOSYS, errno.ENODEV, errno.EINVAL):
        return f"Linux {tried.since} or later, with this built in"
    return _namespace_how(host) if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC) else ""


def _container_flags(container: str) -> str:
    unmask = "systempaths=unconfined" if container == "docker" else "unmask=ALL"
    apparmor = " --security-opt apparmor=unconfined" if container == "docker" else ""
    return f"{container} run --security-opt seccomp=unconfined{apparmor} --security-opt {unmask} …"


def _namespace_how(host: Host) -> str:
    if host.setting("user/max_user_namespaces") == 0:
        return "sudo sysctl -w user.max_user_namespaces=15000"
    if host.setting("kernel/unprivileged_userns_clone") == 0:
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if host.setting("kernel/apparmor_restrict_unprivileged_userns") == 1:
        return "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with 'userns,'"
    return "a kernel and a security module that let this user make user namespaces"


# What is looked up.


def _machine(host: Host) -> Iterator[Feature]:
    release = host.release()
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    floor = ".".join(map(str, KERNEL_FLOOR))
    new_enough = version >= KERNEL_FLOOR
    yield Feature(
        "Linux kernel",
        new_enough,
        "everything below",
        release,
        "" if new_enough else f"Linux {floor} or later",
        needed=True,
    )
    here = host.supported()
    how = "" if here else "an x86-64 or aarch64 machine, and a 64-bit Python"
    yield Feature("architecture", here, "system call numbers we know", os.uname().machine, how, needed=True)


def _landlock(host: Host) -> Feature:
    abi = host.landlock_abi()
    gives = "a second wall, by path and by right"
    if abi < 1:
        how = "CONFIG_SECURITY_LANDLOCK, and landlock in the kernel's lsm= parameter"
        return Feature("Landlock", False, gives, "switched off or not built in", how, needed=True)
    covers = ", ".join(what for since, what in _LANDLOCK if since <= abi)
    how = "" if abi >= 6 else "Linux 6.12 for all of it; mounts, seccomp and namespaces stand for what is missing"
    return Feature("Landlock", True, gives, f"ABI {abi}: {covers}", how, needed=True)


def _memory(host: Host) -> Iterator[Feature]:
    home = host.cgroup_home()
    gives = "memory, processes and CPU held exactly, for all processes together"
    if home is None:
        yield Feature(
            "memory: cgroup", False, gives, "memory: sampled takes its place", _cgroup_how(host), needed=False
        )
        return
    detail = f"version {home.version}, below {home.where}"
    home.close()
    yield Feature("memory: cgroup", True, gives, detail, "", needed=False)


def _cgroup_how(host: Host) -> str:
    if (host.root / "sys/fs/cgroup/memory").exists():
        return "run as root: this machine has cgroup v1, which has no safe delegation"
    if host.container():
        return f"{host.container()} run --cgroupns=private, with /sys/fs/cgroup writable"
    if (host.root / "run/systemd/system").exists():
        return "systemd-run --user --scope -p Delegate=yes sage-sandbox run …"
    return "a cgroup v2 group that this user may write"


def _absent() -> Iterator[Feature]:
    without = "where user namespaces are forbidden"
    yield Feature("level reduced", False, f"Landlock, seccomp and limits only, {without}", ABSENT, "", needed=False)
    yield Feature("bubblewrap", False, f"level full by way of bwrap, {without}", ABSENT, "", needed=False)


# The answer.


def _level_full(host: Host, found: tuple[Feature, ...]) -> Feature:
    """Level full, by running an operation: what the rows above say of needed features explains a refusal."""
    gives = "operations run, each in a sandbox of its own"
    missing = [feature for feature in found if feature.needed and not feature.here]
    try:
        first_s, next_s = host.run_one()
    except (SageError, OSError) as error:
        reason = "needs " + ", ".join(feature.name for feature in missing) if missing else str(error)
        hints = [feature.how for feature in missing if feature.how] or [getattr(error, "hint", "")]
        return Feature(LEVEL_FULL, False, gives, reason, hints[0], needed=True)
    detail = f"an operation ran in {next_s * 1000:.1f} ms, the first in {first_s * 1000:.0f} ms"
    return Feature(LEVEL_FULL, True, gives, detail, "", needed=True)


def run_one() -> tuple[float, float]:
    """Run two trivial operations at level full; seconds each took. SandboxUnavailable or OSError if they cannot run."""
    from sage_sandbox.errors import SandboxUnavailable
    from sage_sandbox.sandbox.job import Job
    from sage_sandbox.sandbox.supervisor import Supervisor

    with tempfile.TemporaryDirectory(prefix="sage-doctor-") as folder:
        supervisor = Supervisor(folder)
        times = []
        try:
            for _ in range(2):
                began = time.monotonic()
                outcome = supervisor.run(Job("python", code="def run():\n    return 42\n", project=folder))
                times.append(time.monotonic() - began)
                if outcome.result != b"42" or outcome.level != "full":
                    raise SandboxUnavailable(outcome.error or "the trial operation was not confined", outcome.hint)
        finally:
            with suppress(OSError):
                supervisor.close()
    return times[0], times[1]
