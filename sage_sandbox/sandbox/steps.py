"""A policy compiled: what a zygote lays once, and the ordered steps that confine one child. Done inside."""

from __future__ import annotations

import math
import os
import resource
import stat
import sys
from functools import cache

from sage_sandbox.errors import NotGranted, SandboxUnavailable
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.sandbox.inside import seccomp, syscalls, tools, wire
from sage_sandbox.sandbox.masks import Masker
from sage_sandbox.sandbox.packages import FOLDER as PACKAGES
from sage_sandbox.sandbox.packages import Bind
from sage_sandbox.sandbox.system import ETC, SYSTEM_FOLDERS

DEVICES = ("null", "zero", "full", "random", "urandom")
UID_BASE = 0x7000_0000
"""As root, a worker's operations run as this plus the worker's pid: above systemd's container ranges, below 2^31
(systemd's UIDS-GIDS document lists 1879048192 to 2147483647 as unused)."""

PIDS_WITHOUT_CGROUP = 32

PROXY_PORT = 3128
"""Where the egress proxy answers, on the loopback of an operation with a net grant: nothing else is there yet."""
_INODE_BYTES = 4096
_PYTHON = f"{wire.PROGRAMS}/.python"
"""A link to the interpreter: the first line of a program cannot name every path (execve(2))."""


@frozen
class Identity:
    """As whom operations run: ``privileged`` if the host's root is who starts them."""

    uid: int
    gid: int
    privileged: bool


def identity() -> Identity:
    """The user's own ids; for the host's root, ids of this process alone that own nothing.

    SandboxUnavailable for a root that lacks what giving up its identity takes.
    """
    uid = os.geteuid()
    if uid != 0 or not _in_first_user_namespace():
        return Identity(uid, os.getegid(), privileged=False)
    effective = syscalls.capabilities()[0]
    needed = {"CAP_SYS_ADMIN": 21, "CAP_SETUID": 7, "CAP_SETGID": 6, "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1}
    missing = [name for name, bit in needed.items() if not effective >> bit & 1]
    if missing:
        raise SandboxUnavailable(
            f"running as root without {missing[0]}",
            f"run as an ordinary user, or in a container add --cap-add {missing[0].removeprefix('CAP_')}",
            "capabilities",
        )
    return Identity(UID_BASE + os.getpid(), UID_BASE + os.getpid(), privileged=True)


def _in_first_user_namespace() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return [int(number) for number in file.read().split()] == [0, 0, 0xFFFF_FFFF]


def foundation(
    who: Identity, project: str, packages: tuple[Bind, ...] = (), *, cgroup: bool = False
) -> wire.Foundation:
    """What the zygote of this project and set of packages builds once for all its children.

    With a ``cgroup`` they may make memfds: what these hold is in no process's resident set, but a cgroup counts it.
    """
    owner = os.stat(project)
    links, binds = _system_folders()
    etc_links, etc_binds = _etc()
    prefix = os.path.realpath(sys.base_prefix)
    if not _beneath(prefix, "/usr"):
        binds.append((prefix, prefix, True))
    device_links = [(f"/dev/{name}", f"/proc/self/fd/{n}") for n, name in enumerate(("stdin", "stdout", "stderr"))]
    return wire.Foundation(
        binds=(*binds, *etc_binds, *packages),
        files=(*_own_etc(who), (f"{wire.PROGRAMS}/sage-tool", _tool_program())),
        links=(
            *links, *etc_links, *device_links, ("/dev/fd", "/proc/self/fd"), (wire.SHARED_MEMORY, wire.BOX + wire.TMP),
            (wire.TMP, wire.BOX + wire.TMP), (_PYTHON, os.path.realpath(sys.executable)),
        ),
        folders=() if _beneath(project, wire.TMP) else (project,),
        devices=DEVICES,
        owner=(owner.st_uid, owner.st_gid),
        uid=who.uid,
        gid=who.gid,
        privileged=who.privileged,
        seccomp=_programs(memfd=cgroup),
        landlock_abi=syscalls.landlock_abi(),
        packages=(PACKAGES,) if packages else (),
    )  # fmt: skip


@cache
def _programs(*, memfd: bool) -> tuple[bytes, bytes]:
    return seccomp.zygote_program(syscalls.ARCH, memfd=memfd), seccomp.lock_program(syscalls.ARCH)


def _system_folders() -> tuple[list[tuple[str, str]], list[Bind]]:
    links: list[tuple[str, str]] = []
    binds: list[Bind] = [("/usr", "/usr", True)]
    for name in SYSTEM_FOLDERS:
        path = f"/{name}"
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        elif os.path.isdir(path):
            binds.append((path, path, True))
    return links, binds


def _etc() -> tuple[list[tuple[str, str]], list[Bind]]:
    links: list[tuple[str, str]] = []
    binds: list[Bind] = []
    for name in ETC:
        path = f"/etc/{name}"
        if os.path.islink(path) and os.path.realpath(path).startswith("/usr/"):
            links.append((path, os.path.realpath(path)))
        elif os.path.exists(path):
            binds.append((os.path.realpath(path), path, os.path.isdir(path)))
    return links, binds


def _own_etc(who: Identity) -> tuple[tuple[str, bytes], ...]:
    passwd = f"root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nsage:x:{who.uid}:{who.gid}:sage:{wire.BOX}:/bin/sh\n"
    if who.uid == 0:
        passwd = f"root:x:0:0:root:{wire.BOX}:/bin/sh\n"
    return (
        ("/etc/passwd", passwd.encode()),
        ("/etc/group", f"root:x:0:\nsage:x:{who.gid}:\n".encode()),
        ("/etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 sandbox\n"),
        ("/etc/hostname", b"sandbox\n"),
        ("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n"),
    )


def _tool_program() -> bytes:
    """`sage-tool`: a module of ours as a program of its own."""
    with open(tools.__file__, "rb") as file:
        return f"#!{_PYTHON} -IS\n".encode() + file.read()


@frozen
class Blueprint:
    """The steps of one child. Equal blueprints make equal children: a spare prepared for one serves the other."""

    ahead: tuple[wire.Step, ...]
    """What can be done before the operation is known; with grants, nothing that shows any of them."""
    steps: tuple[wire.Step, ...]
    """The rest, done for this operation where there are grants."""
    stages: tuple[Stage, ...] = ()
    owners: tuple[tuple[int, int], ...] = ()
    bound: bool = False
    """Whether it holds grants: then the steps are applied for one operation, never ahead of it."""

    @property
    def box(self) -> str:
        """The path of the operation's own folder beneath its work folder."""
        return "box" if self.bound else "."


@frozen
class Stage:
    """Where writes to one granted path are held until the operation succeeded: layer number, path, whether a folder."""

    layer: int
    path: str
    folder: bool


def compile_steps(policy: Policy, limits: Limits, who: Identity, base: wire.Foundation, *, project: str, masker: Masker,
                  cgroup: bool) -> Blueprint:  # fmt: skip
    """The whole confinement of one operation as data. NotGranted if a granted path is no longer there."""
    grants = _grants(policy, masker)
    # Unix sockets in the abstract namespace belong to a network namespace; before Landlock ABI 6 nothing else parts
    # them.
    outside = bool(policy.net)
    network = policy.loopback or outside or base.landlock_abi < 6
    ahead: tuple[wire.Step, ...] = (
        wire.Namespaces(network, bool(grants)),
        *([wire.Listen(PROXY_PORT)] if outside else ()),
        *(_granted_view(limits, who, base) if grants else _lean_view(limits, who)),
    )
    root = wire.OWN_ROOT if grants else ""
    opened = tuple(grant.path for grant in grants if grant.writable)
    files = tuple(grant.path for grant in grants if grant.writable and not grant.folder)
    rest: tuple[wire.Step, ...] = (
        *grants,
        wire.Proc(root),
        wire.Landlock(
            bool(grants) or policy.loopback or outside,
            root,
            (wire.TMP, *opened) if grants else (),
            files,
            policy.loopback,
            PROXY_PORT if outside else 0,
        ),
        wire.Pivot(root, project, _entries(base, grants)),
        wire.Identity(who.uid, who.gid, who.privileged),
        wire.Descriptors(),
        wire.Defaults(),
        _rlimits(limits, cgroup=cgroup),
        wire.Powerless(),
        wire.Restrict(),
        wire.Seccomp(),
        wire.SelfCheck(),
    )
    stages = tuple(Stage(grant.layer, grant.path, grant.folder) for grant in grants if grant.staged)
    owners = tuple({grant.owner for grant in grants}) if who.privileged else ()
    return Blueprint(ahead, rest, stages, owners, bool(grants))


def _lean_view(limits: Limits, who: Identity) -> list[wire.Step]:
    """The shared root and a work folder: all that an operation without grants sees."""
    return [wire.Work(wire.BOX, "", limits.disk, _inodes(limits), who.uid, who.gid)]


def _granted_view(limits: Limits, who: Identity, base: wire.Foundation) -> list[wire.Step]:
    """A root of its own, for the grants to be put in."""
    work = wire.Work(wire.WORK, "box", limits.disk, _inodes(limits), who.uid, who.gid)
    return [work, _own_root(base), wire.Place(wire.OWN_ROOT)]


def _inodes(limits: Limits) -> int:
    return limits.disk // _INODE_BYTES + 1024


def _own_root(base: wire.Foundation) -> wire.OwnRoot:
    tops = {path for _source, path, folder in base.binds if folder and not _beneath(path, "/etc")}
    links = tuple((path, target) for path, target in base.links if path.count("/") == 1 and path != wire.TMP)
    packages = {PACKAGES} if base.packages else set()
    tops = {path for path in tops if not _beneath(path, PACKAGES)} | packages | {"/etc", "/dev", wire.PROGRAMS}
    return wire.OwnRoot(tuple(sorted(tops)), links)


def _entries(base: wire.Foundation, grants: list[wire.Attach]) -> tuple[str, ...]:
    paths = [path for _source, path, _folder in base.binds]
    paths += [path for path, _ in (*base.files, *base.links)]
    paths += [*base.folders, *(grant.path for grant in grants), "/dev", "/proc", wire.TMP, wire.BOX]
    return tuple(sorted({path.split("/")[1] for path in paths}))


def _grants(policy: Policy, masker: Masker) -> list[wire.Attach]:
    """Every granted path once, with the widest of its rights, parents before what lies in them."""
    modes: dict[str, str] = {}
    for mode in ("read", "write", "write_through"):
        for path in getattr(policy, mode):
            modes[path] = mode
    named = frozenset(modes)
    if len(modes) > wire.LAYERS_MAX:
        raise NotGranted(f"{len(modes)} granted paths, at most {wire.LAYERS_MAX} can be shown to one operation")
    return [
        _attach(path, modes[path], number, masker, named)
        for number, path in enumerate(sorted(modes, key=lambda path: (path.count("/"), path)))
    ]


def _attach(path: str, mode: str, number: int, masker: Masker, named: frozenset[str]) -> wire.Attach:
    try:
        fd = syscalls.openat2(
            syscalls.AT_FDCWD, path, os.O_PATH, syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
        )
    except OSError as error:
        raise NotGranted(f"granted path {path}: {os.strerror(error.errno or 0)}", "grant its real path") from error
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    folder = stat.S_ISDIR(found.st_mode)
    if not folder and not stat.S_ISREG(found.st_mode):
        raise NotGranted(f"granted path {path} is neither a file nor a folder")
    staged = mode == "write"
    overlay = folder and mode != "write_through"
    return wire.Attach(
        path=path,
        device=found.st_dev,
        inode=found.st_ino,
        owner=(found.st_uid, found.st_gid),
        folder=folder,
        writable=mode != "read",
        layer=number,
        direct=not (overlay or staged),
        staged=staged,
        masks=masker.masks(path, named) if folder else (),
        root=wire.OWN_ROOT,
    )


def _rlimits(limits: Limits, *, cgroup: bool) -> wire.Rlimits:
    pids = limits.pids if cgroup else min(limits.pids, PIDS_WITHOUT_CGROUP)
    values = (
        # One more second than the sum over all processes may reach: the supervisor names that limit first.
        (resource.RLIMIT_CPU, math.ceil(limits.cpu_s) + 1),
        (resource.RLIMIT_NPROC, pids),
        (resource.RLIMIT_FSIZE, limits.disk),
        # No /proc tells what waits in sockets and pipes: without a cgroup only their number bounds it (`sampling`).
        (resource.RLIMIT_NOFILE, 1024 if cgroup else 256),
        # 1, for 0 does not stop a core_pattern that is a pipe (core(5)).
        (resource.RLIMIT_CORE, 1),
        (resource.RLIMIT_MEMLOCK, 64 << 10),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_RTPRIO, 0),
    )
    return wire.Rlimits(values, 0 if cgroup else limits.memory)


def _beneath(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")
