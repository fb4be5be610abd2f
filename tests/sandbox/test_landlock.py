"""Rulesets: what each ABI is asked for, and what the kernel then refuses."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="func-returns-value,redundant-expr"

from __future__ import annotations

import os

import pytest

from sage_sandbox.sandbox.inside import landlock, syscalls, wire
from sage_sandbox.sandbox.inside.landlock import ALL_FILES, CONNECT_TCP, IOCTL_DEV, NET_TCP, REFER, SCOPE_ALL, TRUNCATE


@pytest.fixture
def root(tmp_path):
    """A tree with the places that a ruleset names."""
    for folder in ("sandbox/box", "dev", "granted", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("dev/null", "granted.txt", "outside/file"):
        (tmp_path / file).write_text("there")
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """The kernel calls a ruleset is made of, instead of making them: (handled, network, scopes), {path: rights}."""
    made, rules = [], {}
    monkeypatch.setattr(syscalls, "landlock_create_ruleset", lambda *what: made.append(what) or 99)
    monkeypatch.setattr(
        syscalls,
        "landlock_add_path",
        lambda _ruleset, fd, access: rules.update({os.readlink(f"/proc/self/fd/{fd}"): access}),
    )
    return made, rules


def step(root, *, writable=(), files=(), network=False, port=0):
    return wire.Landlock(own=True, root=str(root), writable=writable, files=files, network=network, port=port)


@pytest.mark.parametrize(
    ("abi", "files", "network", "scopes"),
    [
        (1, ALL_FILES & ~(REFER | TRUNCATE | IOCTL_DEV), 0, 0),
        (2, ALL_FILES & ~(TRUNCATE | IOCTL_DEV), 0, 0),
        (3, ALL_FILES & ~IOCTL_DEV, 0, 0),
        (4, ALL_FILES & ~IOCTL_DEV, NET_TCP, 0),
        (5, ALL_FILES, NET_TCP, 0),
        (6, ALL_FILES, NET_TCP, SCOPE_ALL),
        (7, ALL_FILES, NET_TCP, SCOPE_ALL),
    ],
)
def test_each_abi_is_asked_for_all_it_knows(abi, files, network, scopes, root, asked):
    made, rules = asked
    landlock.build(abi, ("null",), step(root))

    assert files == landlock.handled_files(abi)
    assert [(files, network, scopes)] == made
    assert all(access == access & files for access in rules.values())


def test_loopback_leaves_tcp_alone(root, asked):
    made, _rules = asked
    landlock.build(6, (), step(root, network=True))

    assert [(ALL_FILES, 0, SCOPE_ALL)] == made


@pytest.mark.parametrize(
    ("abi", "network", "rules"), [(3, False, []), (4, False, [(3128, CONNECT_TCP)]), (6, True, [])]
)
def test_one_port_may_be_connected_to_where_tcp_is_handled(abi, network, rules, root, asked, monkeypatch):
    ports = []
    monkeypatch.setattr(syscalls, "landlock_add_port", lambda _ruleset, port, access: ports.append((port, access)))
    landlock.build(abi, (), step(root, network=network, port=3128))

    assert rules == ports


def test_rights_are_those_of_each_place(root, asked):
    _made, rules = asked
    landlock.build(6, ("null",), step(root, writable=("/granted", "/granted.txt"), files=("/granted.txt",)))

    assert {
        str(root): landlock.READ,
        f"{root}/sandbox": landlock.WRITE,
        f"{root}/dev/null": landlock.DEVICE,
        f"{root}/granted": landlock.WRITE,
        f"{root}/granted.txt": landlock.FILE_RIGHTS,
    } == rules


def test_a_place_that_is_not_there_is_an_error(root, asked):
    with pytest.raises(FileNotFoundError):
        landlock.build(6, ("zero",), step(root))


def test_what_is_in_no_rule_is_refused_by_the_kernel(root, in_child):
    abi = syscalls.landlock_abi()
    if not abi:
        pytest.skip("Landlock")

    def attempt(path, flags):
        try:
            os.close(os.open(root / path, flags | os.O_CLOEXEC, 0o600))
        except PermissionError:
            return False
        return True

    def act():
        ruleset = landlock.build(
            abi, ("null",), step(root, writable=("/granted", "/granted.txt"), files=("/granted.txt",))
        )
        before = attempt("outside/file", os.O_WRONLY), os.path.isdir(root.parent) and bool(os.listdir(root.parent))
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.landlock_restrict_self(ruleset)
        try:
            above = bool(os.listdir(root.parent))
        except PermissionError:
            above = False
        return before, above, {
            "read": attempt("outside/file", os.O_RDONLY),
            "write": attempt("outside/file", os.O_WRONLY),
            "make": attempt("outside/new", os.O_WRONLY | os.O_CREAT),
            "box": attempt("sandbox/box/new", os.O_WRONLY | os.O_CREAT),
            "granted": attempt("granted/new", os.O_WRONLY | os.O_CREAT),
            "granted file": attempt("granted.txt", os.O_WRONLY),
            "device": attempt("dev/null", os.O_WRONLY),
        }  # fmt: skip

    before, above, after = in_child(act)

    assert (True, True) == before
    assert not above
    assert {
        "read": True, "write": False, "make": False, "box": True, "granted": True, "granted file": True, "device": True,
    } == after  # fmt: skip
