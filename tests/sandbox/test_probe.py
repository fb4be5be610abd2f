"""The probe: on this kernel, and on machines that lack something."""

from __future__ import annotations

import errno
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.sandbox import probe, steps
from sage_sandbox.sandbox.inside import syscalls as sc
from sage_sandbox.sandbox.probe import Host, attempt


class Played(Host):
    """A machine of our making: everything works unless the test says otherwise."""

    def __init__(self, folder, *, release="6.12.1-generic", refused=None, abi=7, home=None, full=None, supported=True):
        super().__init__(proc=folder / "proc", root=folder)
        self._release = release
        self._refused = refused or {}
        self._abi = abi
        self._home = home
        self._full = full
        self._supported = supported

    def release(self):
        return self._release

    def supported(self):
        return self._supported

    def attempt(self, act):
        name = next(tried.name for tried in (*probe._TRIES, probe._IDMAP) if tried.act is act)
        code = self._refused.get(name)
        return OSError(code, os.strerror(code)) if code else None

    def landlock_abi(self):
        return self._abi

    def cgroup_home(self):
        return self._home

    def run_one(self):
        if self._full is not None:
            raise self._full
        return 0.05, 0.001

    def set(self, name, value):
        path = self.proc / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def found(host):
    return {feature.name: feature for feature in probe.probe(host)}


# This machine.


def test_what_works_here_is_found_to_work():
    """Attempts and the answer agree: where an operation runs confined, everything it needs was found."""
    features = probe.probe()
    lacking = [feature for feature in features if feature.needed and not feature.here]

    assert features[-1].name == "level full"
    assert features[-1].here == (not lacking)
    if not features[-1].here:
        pytest.skip(f"no level full here: {features[-1].detail}")
    assert "ms" in features[-1].detail


def test_probing_leaves_this_process_where_it_was():
    def state():
        namespaces = {str(link): link.readlink() for link in Path("/proc/self/ns").iterdir()}
        return namespaces, Path.cwd(), os.geteuid(), sc.prctl(sc.PR_GET_NO_NEW_PRIVS), sc.prctl(sc.PR_GET_SECCOMP)

    before = state()
    for tried in (*probe._TRIES, probe._IDMAP):
        attempt(tried.act)

    assert before == state()


def test_an_attempt_that_succeeds_has_no_error():
    assert attempt(lambda: None) is None


def test_an_attempt_brings_the_kernels_answer_back():
    def refused():
        raise OSError(errno.EPERM, "mount: Operation not permitted")

    error = attempt(refused)

    assert error is not None
    assert (errno.EPERM, "mount: Operation not permitted") == (error.errno, error.strerror)


def test_an_attempt_that_fails_otherwise_is_named():
    def surprised():
        raise KeyError("surprise")

    error = attempt(surprised)

    assert "KeyError: 'surprise'" in str(error)


def test_an_attempt_that_is_killed_is_no_success():
    assert attempt(lambda: os.kill(os.getpid(), signal.SIGKILL)) is not None


def test_as_an_ordinary_user_the_way_leads_through_a_user_namespace():
    """Root plays the user in a throw-away process; the attempts are those a user's doctor makes."""
    if os.geteuid():
        pytest.skip("we are an ordinary user: every other test shows it")

    def as_user(act):
        os.setgroups([])
        os.setresgid(10001, 10001, 10001)
        os.setresuid(10001, 10001, 10001)
        sc.set_dumpable(True)
        act()

    errors = {tried.name: attempt(partial(as_user, tried.act)) for tried in probe._TRIES if tried.needed}
    if errors["user namespaces"] is not None:
        pytest.skip(f"no user namespaces for users: {errors['user namespaces']}")
    assert dict.fromkeys(errors) == errors


# Machines that lack something.


def test_with_everything_there_level_full_names_its_time(tmp_path):
    level = found(Played(tmp_path))["level full"]

    assert level.here
    assert level.detail == "an operation ran in 1.0 ms, the first in 50 ms"


def test_what_is_needed_and_missing_is_why_level_full_is_not_there(tmp_path):
    refused = {"user namespaces": errno.EPERM, "overlay, writing": errno.EINVAL}
    host = Played(tmp_path, refused=refused, full=SandboxUnavailable("no zygote", "ask around"))
    host.set("user/max_user_namespaces", 0)
    features = found(host)

    assert not features["level full"].here
    assert features["level full"].detail == "needs user namespaces"
    assert features["level full"].how == "sudo sysctl -w user.max_user_namespaces=15000"


def test_an_unexplained_refusal_is_passed_on(tmp_path):
    level = found(Played(tmp_path, full=SandboxUnavailable("no zygote", "ask around")))["level full"]

    assert (False, "no zygote", "ask around") == (level.here, level.detail, level.how)


@pytest.mark.parametrize(
    ("setting", "value", "how"),
    [
        ("user/max_user_namespaces", 0, "user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", 0, "kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", 1, "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("kernel/something_else", 1, "a security module"),
    ],
)
def test_forbidden_namespaces_name_the_switch(tmp_path, setting, value, how):
    host = Played(tmp_path, refused={"user namespaces": errno.EPERM})
    host.set(setting, value)

    assert how in found(host)["user namespaces"].how


@pytest.mark.parametrize(
    ("mark", "how"),
    [(".dockerenv", "systempaths=unconfined"), ("run/.containerenv", "unmask=ALL")],
)
def test_in_a_container_the_flags_are_named(tmp_path, mark, how):
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).touch()
    feature = found(Played(tmp_path, refused={"own /proc": errno.EPERM}))["own /proc"]

    assert how in feature.how
    assert not feature.needed


def test_an_unknown_call_names_the_kernel_that_has_it(tmp_path):
    assert "Linux 5.12" in found(Played(tmp_path, refused={"mount_setattr": errno.ENOSYS}))["mount_setattr"].how


def test_an_odd_error_has_no_advice(tmp_path):
    assert found(Played(tmp_path, refused={"pidfd": errno.EMFILE}))["pidfd"].how == ""


@pytest.mark.parametrize(
    ("release", "here"), [("5.13.0", True), ("6.1.0-18-amd64", True), ("5.12.19", False), ("4.18.0-513.el8", False)]
)
def test_the_kernel_floor(tmp_path, release, here):
    assert here == found(Played(tmp_path, release=release))["Linux kernel"].here


def test_an_unsupported_processor_is_named(tmp_path):
    assert not found(Played(tmp_path, supported=False))["architecture"].here


@pytest.mark.parametrize(
    ("abi", "covers", "lacks"),
    [(1, "files", "TCP"), (4, "TCP ports", "ioctls"), (6, "abstract sockets", "audit"), (9, "audit", "nothing")],
)
def test_each_landlock_abi_says_what_it_covers(tmp_path, abi, covers, lacks):
    landlock = found(Played(tmp_path, abi=abi))["Landlock"]

    assert landlock.here
    assert covers in landlock.detail
    assert lacks not in landlock.detail
    assert bool(landlock.how) == (abi < 6)


def test_without_landlock_the_kernel_parameter_is_named(tmp_path):
    landlock = found(Played(tmp_path, abi=0))["Landlock"]

    assert not landlock.here
    assert "lsm=" in landlock.how


@pytest.mark.parametrize(
    ("mark", "how"),
    [
        ("sys/fs/cgroup/memory", "root"),
        ("run/systemd/system", "systemd-run --user --scope -p Delegate=yes sage-sandbox run"),
        (".dockerenv", "--cgroupns=private"),
        ("nothing", "may write"),
    ],
)
def test_without_a_cgroup_the_way_to_one_is_named(tmp_path, mark, how):
    (tmp_path / mark).mkdir(parents=True)
    memory = found(Played(tmp_path))["memory: cgroup"]

    assert not memory.here
    assert "sampled" in memory.detail
    assert how in memory.how


def test_a_cgroup_home_is_named_and_closed(tmp_path):
    class Home:
        version = 2
        where = "/sys/fs/cgroup/user.slice"
        closed = False

        def close(self):
            self.closed = True

    home = Home()
    memory = found(Played(tmp_path, home=home))["memory: cgroup"]

    assert (True, True) == (memory.here, home.closed)
    assert memory.detail == "version 2, below /sys/fs/cgroup/user.slice"


def test_what_this_version_does_not_have_is_said(tmp_path):
    features = found(Played(tmp_path))

    assert ["not in this version"] * 2 == [features[name].detail for name in ("level reduced", "bubblewrap")]


def test_idmapped_mounts_are_roots_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert "idmapped mounts" not in found(Played(tmp_path))


# An attempt that a kernel lets through without doing what was asked is a failure.


def fake_calls(monkeypatch, *names, value=0):
    for name in names:
        monkeypatch.setattr(sc, name, lambda *_, **__: value)


def test_a_mount_that_stayed_writable_is_not_accepted(monkeypatch):
    fake_calls(monkeypatch, "unshare", "mount", "open_tree", "mount_setattr", "move_mount")
    monkeypatch.setattr(probe, "_enter", lambda kinds: None)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((0,) * 10))

    with pytest.raises(OSError, match="still writable"):
        probe._mount_calls()


def test_a_root_that_did_not_change_is_not_accepted(monkeypatch):
    fake_calls(monkeypatch, "mount", "pivot_root", "umount2")
    monkeypatch.setattr(probe, "_enter", lambda kinds: None)
    monkeypatch.setattr(os, "chdir", lambda path: None)

    with pytest.raises(OSError, match="old root"):
        probe._mount_namespace()


def test_a_pid_that_is_not_1_is_not_accepted(monkeypatch):
    fake_calls(monkeypatch, "unshare")
    monkeypatch.setattr(probe, "_enter", lambda kinds: None)

    with pytest.raises(OSError, match="not pid 1"):
        probe._pid_namespace()


def test_a_filter_that_is_not_in_force_is_not_accepted(monkeypatch):
    fake_calls(monkeypatch, "seccomp_filter", "prctl")

    with pytest.raises(OSError, match="not in force"):
        probe._seccomp()


def test_an_overlay_that_does_not_hide_is_not_accepted(monkeypatch, tmp_path):
    fake_calls(monkeypatch, "mount")
    monkeypatch.setattr(probe, "_enter", lambda kinds: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "chdir", lambda path: None)
    monkeypatch.setattr(os, "mknod", lambda *_: None)
    monkeypatch.setattr(os, "listdir", lambda path: ["hidden"])

    with pytest.raises(OSError, match="does not hide"):
        probe._overlay(upper=False)


def test_root_without_the_rights_of_root_counts_as_a_user(monkeypatch):
    def refuse():
        raise SandboxUnavailable("running as root without CAP_SYS_ADMIN")

    monkeypatch.setattr(steps, "identity", refuse)

    assert not probe._may_do_all()


def test_an_operation_that_was_not_confined_is_no_level_full(monkeypatch):
    from sage_sandbox.outcome import Outcome
    from sage_sandbox.sandbox import supervisor

    class Loose:
        def __init__(self, project):
            pass

        def run(self, job):
            return Outcome("fulfilled", result=b"42", level="none")

        def close(self):
            raise OSError

    monkeypatch.setattr(supervisor, "Supervisor", Loose)

    with pytest.raises(SandboxUnavailable, match="not confined"):
        probe.run_one()
