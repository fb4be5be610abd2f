"""Each kernel call: it does what its manual page says, and says its own name where it is refused."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="func-returns-value,operator,redundant-expr"

from __future__ import annotations

import ctypes
import errno
import os
import struct

import pytest

from sage_sandbox.sandbox.inside import seccomp, syscalls

ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


def as_nobody():
    """Root's refusals are an ordinary user's."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)


REFUSED = {
    "unshare": lambda: syscalls.unshare(syscalls.CLONE_NEWNS),
    "setns": lambda: syscalls.setns(-1, 0),
    "sethostname": lambda: syscalls.sethostname("x"),
    "mount": lambda: syscalls.mount("none", "/", None, syscalls.MS_REC),
    "umount2": lambda: syscalls.umount2("/nowhere", 0),
    "pivot_root": lambda: syscalls.pivot_root("/nowhere", "/nowhere"),
    "openat2": lambda: syscalls.openat2(syscalls.AT_FDCWD, "/nowhere", os.O_PATH, 0),
    "open_tree": lambda: syscalls.open_tree(syscalls.AT_FDCWD, "/nowhere", syscalls.OPEN_TREE_CLOEXEC),
    "move_mount": lambda: syscalls.move_mount(-1, "/nowhere"),
    "mount_setattr": lambda: syscalls.mount_setattr(-1, "", syscalls.AT_EMPTY_PATH, 0),
    "renameat2": lambda: syscalls.renameat2(syscalls.AT_FDCWD, "/nowhere", syscalls.AT_FDCWD, "/nowhere2", 0),
    "prctl(-1)": lambda: syscalls.prctl(-1),
    "prctl(PR_CAPBSET_DROP)": syscalls.drop_bounding_set,
    "capset": lambda: syscalls.set_capabilities(1, 1, 0),
    "landlock_create_ruleset": lambda: syscalls.landlock_create_ruleset(1 << 63, 0, 0),
    "landlock_add_rule": lambda: syscalls.landlock_add_path(-1, -1, 1),
    "landlock_restrict_self": lambda: syscalls.landlock_restrict_self(-1),
    "seccomp": lambda: syscalls.seccomp_filter(b""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_call_raises_with_its_name(name, in_child):
    def act():
        as_nobody()
        REFUSED[name]()

    with pytest.raises(OSError, match=rf"{name.partition('(')[0]}.*: ") as caught:
        in_child(act)

    assert caught.value.errno in {
        errno.EPERM,
        errno.EBADF,
        errno.ENOENT,
        errno.EINVAL,
        errno.ENOMSG,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
    }
    assert name in caught.value.strerror


def test_capget_raises_with_its_name(monkeypatch):
    monkeypatch.setitem(syscalls._OLD, "capget", 100_000)

    with pytest.raises(OSError, match="capget: Function not implemented"):
        syscalls.capabilities()


def test_openat2_asks_again_where_a_rename_raced(monkeypatch, tmp_path):
    answers = [-1, -1, 42]

    def answer(*_args):
        ctypes.set_errno(errno.EAGAIN)
        return answers.pop(0)

    monkeypatch.setattr(syscalls, "_syscall", answer)

    assert 42 == syscalls.openat2(syscalls.AT_FDCWD, "x", 0, 0)


def test_openat2_stays_beneath(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    base = os.open(tmp_path, os.O_PATH)

    for path, flags, code in (
        ("..", syscalls.RESOLVE_BENEATH, errno.EXDEV),
        ("link", syscalls.RESOLVE_NO_SYMLINKS, errno.ELOOP),
    ):
        with pytest.raises(OSError, match="openat2") as caught:
            syscalls.openat2(base, path, os.O_PATH, flags)
        assert code == caught.value.errno
    fd = syscalls.openat2(base, ".", os.O_PATH, syscalls.RESOLVE_BENEATH)

    assert not os.get_inheritable(fd)
    os.close(fd)
    os.close(base)


def test_renameat2_does_not_replace(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    base = os.open(tmp_path, os.O_PATH)

    with pytest.raises(FileExistsError, match="renameat2"):
        syscalls.renameat2(base, "a", base, "b", syscalls.RENAME_NOREPLACE)
    syscalls.renameat2(base, "a", base, "c", syscalls.RENAME_NOREPLACE)
    os.close(base)

    assert ["b", "c"] == sorted(os.listdir(tmp_path))


@pytest.mark.usefixtures("_namespaces")
def test_capabilities_are_given_away_for_good(in_child, who):
    def act():
        if not who.privileged:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        before = syscalls.capabilities()
        syscalls.set_capabilities(1 << 7, 1 << 7, 1 << 6)
        between = syscalls.capabilities()
        syscalls.set_capabilities(0, 0, 0)
        return before, between, syscalls.capabilities()

    before, between, after = in_child(act)

    assert before[0] >> 21 & 1
    assert (1 << 7, 1 << 7, 1 << 6) == between
    assert (0, 0, 0) == after


@pytest.mark.usefixtures("_namespaces")
def test_the_bounding_set_is_empty_once_dropped(in_child, who):
    def act():
        if not who.privileged:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        syscalls.drop_bounding_set()
        return [number for number in range(41) if syscalls.prctl(syscalls.PR_CAPBSET_READ, number)]

    assert [] == in_child(act)


def test_a_kernel_of_64_capabilities_has_all_of_them_dropped(monkeypatch):
    dropped = []
    monkeypatch.setattr(syscalls, "_prctl", lambda _option, number, *_rest: dropped.append(number) or 0)
    syscalls.drop_bounding_set()

    assert list(range(64)) == dropped


@pytest.mark.usefixtures("_namespaces")
def test_permitted_capabilities_become_ambient(in_child, who):
    def act():
        if not who.privileged:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        syscalls.set_capabilities(0b1010_0000, 0b1010_0000, 0)
        syscalls.keep_capabilities_over_exec()
        with open("/proc/self/status", encoding="ascii") as file:
            ambient = next(line.split()[1] for line in file if line.startswith("CapAmb"))
        return int(ambient, 16), syscalls.capabilities()[2]

    assert (0b1010_0000, 0b1010_0000) == in_child(act)


def test_a_port_that_cannot_be_added_to_a_ruleset_is_an_error():
    with pytest.raises(OSError, match="landlock_add_rule: "):
        syscalls.landlock_add_port(-1, 3128, 2)


def test_landlock_abi_is_0_where_the_kernel_has_none(monkeypatch):
    monkeypatch.setattr(syscalls, "_syscall", lambda *_args: -1)

    assert 0 == syscalls.landlock_abi()


@pytest.mark.parametrize(("fields", "size"), [((1, 0, 0), 8), ((1, 2, 0), 16), ((1, 0, 4), 24), ((0, 0, 0), 8)])
def test_a_ruleset_is_asked_for_without_the_fields_an_older_kernel_lacks(monkeypatch, fields, size):
    seen = []
    monkeypatch.setattr(
        syscalls, "_syscall", lambda _number, attr, length, _flags: seen.append((attr, length.value)) or 7
    )

    assert 7 == syscalls.landlock_create_ruleset(*fields)
    assert [(struct.pack("=3Q", *fields)[:size], size)] == seen


def test_a_process_is_made_undumpable_and_dumpable_again(in_child):
    def act():
        seen = []
        for dumpable in (False, True):
            syscalls.set_dumpable(dumpable)
            seen.append(syscalls.prctl(syscalls.PR_GET_DUMPABLE))
        return seen

    assert [0, 1] == in_child(act)


@pytest.mark.skipif(not syscalls.SUPPORTED, reason="seccomp programs for this architecture")
def test_a_filter_is_in_force_once_installed(in_child):
    def act():
        before = syscalls.prctl(syscalls.PR_GET_SECCOMP)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.seccomp_filter(ALLOW_ALL)
        syscalls.seccomp_filter(seccomp.lock_program(syscalls.ARCH))
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        except PermissionError:
            return before, syscalls.prctl(syscalls.PR_GET_SECCOMP)
        return None

    assert (0, syscalls.SECCOMP_MODE_FILTER) == in_child(act)


@pytest.mark.usefixtures("_namespaces")
def test_the_host_name_is_the_namespaces_own(in_child, who):
    def act():
        syscalls.unshare(syscalls.CLONE_NEWUTS | (0 if who.privileged else syscalls.CLONE_NEWUSER))
        syscalls.sethostname("sandbox")
        return os.uname().nodename

    assert "sandbox" == in_child(act)
    assert "sandbox" != os.uname().nodename
