"""Mounts and namespaces, made for real in throw-away processes."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="arg-type,index"

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

import pytest
from sandbox.standin import climbed, compiled, inherit, whole

from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.inside import attaching, entry, foundation, identity, mounts, namespaces, wire
from sage_sandbox.sandbox.inside import syscalls as sc

pytestmark = pytest.mark.usefixtures("_namespaces")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="idmapped mounts for another owner: root only")


@pytest.fixture
def inside(in_child, who, project):
    """Confine a throw-away process by a policy, and look around in it."""

    def look(policy, act):
        blueprint = compiled(who, project, policy)

        def confined():
            climbed(inherit(who, project), whole(blueprint))
            return act()

        return in_child(confined)

    return look


@pytest.fixture
def attached(in_child, who, project):
    """Climb up to the grants with a changed Attach, as whoever a zygote is; what ``act`` found."""

    def climb(policy, change=lambda step: step, act=lambda: None, before=lambda: None):
        plan = whole(compiled(who, project, policy))
        grants = [change(step) for step in plan if isinstance(step, wire.Attach)]
        first = [step for step in plan if isinstance(step, wire.Namespaces | wire.Work | wire.OwnRoot | wire.Place)]

        def apply():
            inherited = inherit(who, project)
            climbed(inherited, tuple(first))
            before()
            for step in grants:
                attaching.attach(step, (who.uid, who.gid), inherited.idmaps)
            return act()

        return in_child(apply)

    return climb


def attempt(act, *args):
    """What an act came to: its value, or the name of the errno."""
    try:
        return act(*args)
    except OSError as error:
        return errno.errorcode[error.errno]


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path, text="written"):
    with open(path, "w", encoding="utf-8") as file:
        return file.write(text)


# The views.


def test_without_grants_there_is_the_system_a_box_and_nothing_else(inside, project):
    seen = inside(Policy(), lambda: {
        "cwd": os.listdir(project),
        "box": sorted(os.listdir(wire.BOX)),
        "home": attempt(os.listdir, "/home"),
        "usr": attempt(write, "/usr/x"),
        "tmp": attempt(write, "/tmp/x"),
        "outside": [attempt(read, "/tmp/x"), read(f"{wire.BOX}/tmp/x")],
        "null": attempt(write, "/dev/null"),
        "zero": os.path.exists("/dev/zero"),
        "kmsg": attempt(os.stat, "/dev/kmsg"),
        "passwd": "sage" in read("/etc/passwd") or "root:x:0:0:root:/sandbox" in read("/etc/passwd"),
        "host": os.uname().nodename,
        "mode": oct(os.stat(wire.BOX).st_mode),
    })  # fmt: skip

    assert {
        "cwd": [], "box": ["out", "tmp"], "home": "ENOENT", "usr": "EROFS", "tmp": 7, "outside": ["written"] * 2,
        "null": 7, "zero": True, "kmsg": "ENOENT", "passwd": True, "host": "sandbox", "mode": "0o40700",
    } == {**seen, "usr": "EROFS" if seen["usr"] in ("EROFS", "EACCES") else seen["usr"]}  # fmt: skip


def test_a_read_grant_shows_the_folder_read_only_without_hidden_names(inside, project):
    (project / ".env").write_text("secret")
    (project / "deep").mkdir()
    (project / "deep/id_rsa").write_text("secret")
    (project / ".git").mkdir()
    (project / ".git/config").write_text("[core]\n\tbare = true\n\tfsmonitor = evil\n")
    seen = inside(Policy(read=(str(project),)), lambda: {
        "names": sorted(os.listdir(".")),
        "deep": os.listdir("deep"),
        "notes": read("notes.txt"),
        "config": read(".git/config"),
        "env": attempt(read, ".env"),
        "write": attempt(write, "notes.txt") in ("EROFS", "EACCES"),
        "setuid": bool(os.statvfs(".").f_flag & os.ST_NOSUID),
    })  # fmt: skip

    assert {
        "names": [".git", "deep", "notes.txt"], "deep": [], "notes": "of the project",
        "config": "[core]\n\tbare = true\n", "env": "ENOENT", "write": True, "setuid": True,
    } == seen  # fmt: skip


@pytest.mark.parametrize("mode", ["read", "write", "write_through"])
def test_beside_a_granted_folder_the_working_directory_is_the_project_and_empty(in_child, who, project, mode):
    elsewhere = "/var/lib"  # as good as a project: not below a folder that is made anyway, as /tmp is
    blueprint = compiled(who, elsewhere, Policy(**{mode: (str(project),)}))

    def confined():
        climbed(inherit(who, elsewhere), whole(blueprint))
        return os.getcwd(), os.listdir("."), read(f"{project}/notes.txt"), attempt(os.mkdir, "/var/new")

    *seen, refusal = in_child(confined)

    assert [elsewhere, [], "of the project"] == seen
    assert refusal in ("EROFS", "EACCES")


def test_a_write_grant_is_staged_and_touches_nothing_outside(inside, project):
    seen = inside(Policy(write=(str(project),)), lambda: [
        attempt(write, "notes.txt"), attempt(write, "new"), read("notes.txt"), attempt(os.unlink, "notes.txt"),
        os.listdir("."),
    ])  # fmt: skip

    assert [7, 7, "written", None, ["new"]] == seen
    assert ["notes.txt"] == os.listdir(project)
    assert "of the project" == (project / "notes.txt").read_text()


def test_a_single_file_to_write_is_a_copy(inside, project):
    path = str(project / "notes.txt")
    seen = inside(Policy(write=(path,)), lambda: [read(path), attempt(write, path), read(path), os.listdir(project)])

    assert ["of the project", 7, "written", ["notes.txt"]] == seen
    assert "of the project" == (project / "notes.txt").read_text()


def test_writing_through_is_direct_and_still_covers_hidden_names(inside, project):
    (project / ".env").write_text("secret")
    (project / ".sage").mkdir()
    (project / ".sage/state").write_text("secret")
    seen = inside(Policy(write_through=(str(project),)), lambda: [
        attempt(write, "new"), attempt(read, ".env"), attempt(os.listdir, ".sage"),
        attempt(write, ".env") in ("EROFS", "EACCES"),
    ])  # fmt: skip

    assert [7, "EACCES", "EACCES", True] == seen
    assert "written" == (project / "new").read_text()
    assert "secret" == (project / ".env").read_text()


def test_a_hidden_name_that_is_a_link_shows_what_its_target_does(inside, project):
    (project / "server.pem").write_text("secret")
    (project / ".env").symlink_to("server.pem")
    (project / "id_rsa").symlink_to("notes.txt")
    seen = inside(Policy(write_through=(str(project),)), lambda: [attempt(read, ".env"), attempt(read, "id_rsa")])

    assert ["EACCES", "of the project"] == seen


def test_a_single_file_to_read_is_there_alone(inside, project):
    (project / "other").write_text("")
    path = str(project / "notes.txt")
    seen = inside(
        Policy(read=(path,)), lambda: [read(path), os.listdir(project), attempt(write, path) in ("EROFS", "EACCES")]
    )

    assert ["of the project", ["notes.txt"], True] == seen


def test_a_grant_within_a_grant_keeps_its_own_right(inside, project):
    (project / "out").mkdir()
    seen = inside(
        Policy(read=(str(project),), write_through=(str(project / "out"),)),
        lambda: [attempt(write, "notes.txt") in ("EROFS", "EACCES"), attempt(write, "out/new")],
    )

    assert [True, 7] == seen
    assert "written" == (project / "out/new").read_text()


def test_without_loopback_there_is_no_network_and_with_it_its_own(inside):
    def connect():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            with socket.create_connection(listener.getsockname()) as client:
                return client.getpeername()[0]

    assert "127.0.0.1" == inside(Policy(loopback=True), connect)
    assert isinstance(inside(Policy(), lambda: attempt(connect)), str)
    assert "127.0.0.1" != inside(Policy(), lambda: attempt(connect))


def test_the_work_folder_is_as_large_as_the_limit(in_child, who, project):
    blueprint = compiled(who, project, disk=1 << 20)

    def act():
        climbed(inherit(who, project), whole(blueprint))
        return [attempt(write, f"{wire.BOX}/{name}", "x" * 900_000) for name in ("out/one", "tmp/two")]

    assert [900_000, "ENOSPC"] == in_child(act)


def test_proc_shows_this_namespace_or_is_absent(inside):
    seen = inside(Policy(), lambda: sorted(name for name in os.listdir("/proc") if name.isdigit()))

    assert seen in (["1"], [])


# What can go wrong on the way.


def test_a_granted_path_that_became_another_is_refused(attached, project):
    for mode in ("read", "write", "write_through"):
        for path in (project, project / "notes.txt"):
            with pytest.raises(OSError, match=f"{path} is no longer what was granted") as caught:
                attached(Policy(**{mode: (str(path),)}), lambda step: step._replace(inode=step.inode + 1))
            assert errno.ESTALE == caught.value.errno


def test_a_staged_file_that_is_replaced_while_it_is_copied_is_refused(attached, project, monkeypatch):
    monkeypatch.setattr(os.path, "sameopenfile", lambda _one, _other: False)

    with pytest.raises(OSError, match="is no longer what was granted") as caught:
        attached(Policy(write=(str(project / "notes.txt"),)))
    assert errno.ESTALE == caught.value.errno


def test_a_granted_path_through_a_link_is_refused(attached, project):
    (project / "link").symlink_to("notes.txt")

    with pytest.raises(OSError, match="openat2") as caught:
        attached(Policy(read=(str(project / "notes.txt"),)), lambda step: step._replace(path=str(project / "link")))
    assert errno.ELOOP == caught.value.errno


def test_nothing_is_made_in_a_granted_folder_for_a_grant_within_it(attached, project):
    (project / ".env").write_text("secret")
    (project / "inner").mkdir()

    def hide(step):
        # As if it had come after the first grant was shown.
        return step._replace(masks=(*step.masks, ("inner", None))) if step.path == str(project) else step

    with pytest.raises(FileNotFoundError, match="openat2"):
        attached(Policy(read=(str(project), str(project / "inner"))), hide)
    assert [] == os.listdir(project / "inner")


def test_a_mount_that_cannot_be_made_read_only_is_refused(attached, project, monkeypatch):
    plain = sc.mount_setattr

    def before():
        def refuse(*_args):
            raise OSError(errno.EPERM, "mount_setattr: no")

        sc.mount_setattr = refuse

    assert sc.mount_setattr is plain
    with pytest.raises(PermissionError, match="mount_setattr"):
        attached(Policy(read=(str(project),)), before=before)


def test_masks_deep_in_a_tree_share_their_folders(attached, project):
    (project / "a/b").mkdir(parents=True)
    for name in ("a/b/one.key", "a/b/two.key", "a/three.key"):
        (project / name).write_text("secret")
    seen = attached(Policy(read=(str(project),)), act=lambda: [
        sorted(os.listdir(f"{wire.OWN_ROOT}{project}/a")), os.listdir(f"{wire.OWN_ROOT}{project}/a/b"),
    ])  # fmt: skip

    assert [["b"], []] == seen


@pytest.fixture
def no_overlay(monkeypatch):
    """A file system that cannot be the lower layer of an overlay."""
    plain = sc.mount

    def mount(source, target, kind, flags=0, data=""):
        if kind == "overlay":
            raise OSError(errno.EINVAL, "mount: Invalid argument")
        plain(source, target, kind, flags, data)

    monkeypatch.setattr(sc, "mount", mount)


def test_without_an_overlay_a_folder_is_shown_entry_by_entry(in_child, no_overlay, who, project):
    for name in ("a/b/secret.key", "a/b/plain", "a/other/file", ".env", ".git/config", ".git/HEAD"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (project / "link").symlink_to("notes.txt")
    blueprint = compiled(who, project, Policy(read=(str(project),)))

    def act():
        ascent = climbed(inherit(who, project), whole(blueprint))
        names = sorted(
            os.path.relpath(os.path.join(here, file)) for here, _folders, files in os.walk(".") for file in files
        )
        return (
            ascent.capabilities.get("hidden"),
            names,
            read("link"),
            read(".git/config"),
            attempt(write, "a/new") in ("EROFS", "EACCES"),
        )

    assert (
        "entries", [".git/HEAD", ".git/config", "a/b/plain", "a/other/file", "link", "notes.txt"],
        "of the project", "[core]\n", True,
    ) == in_child(act)  # fmt: skip


def test_without_an_overlay_nothing_can_be_staged(attached, no_overlay, project):
    with pytest.raises(OSError, match="mount: Invalid argument"):
        attached(Policy(write=(str(project),)))


def test_a_name_that_was_hidden_and_is_gone_is_an_error_in_a_direct_bind(attached, project):
    with pytest.raises(FileNotFoundError):
        attached(Policy(write_through=(str(project),)), lambda step: step._replace(masks=((".env", None),)))


def test_a_proc_that_the_host_forbids_is_absent_and_said(in_child, monkeypatch):
    def refuse(*_args):
        raise PermissionError(errno.EPERM, "mount")

    monkeypatch.setattr(sc, "mount", refuse)

    assert namespaces.mount_proc(wire.Proc("")) is False


def test_a_root_with_something_foreign_in_it_is_refused(in_child, who, project):
    plan = whole(compiled(who, project))
    (pivot,) = [step for step in plan if isinstance(step, wire.Pivot)]
    entries = tuple(name for name in pivot.entries if name != "usr")

    def act():
        climbed(inherit(who, project), plan[: plan.index(pivot)])
        namespaces.pivot(pivot._replace(entries=entries))

    with pytest.raises(OSError, match="the host is still there: usr") as caught:
        in_child(act)
    assert errno.EBUSY == caught.value.errno


def test_maps_show_one_user_and_deny_setgroups(in_child, who):
    def act():
        uid, gid = os.geteuid(), os.getegid()
        proc = os.open("/proc", os.O_PATH)
        sc.unshare(sc.CLONE_NEWUSER)
        identity.write_maps(proc, "self", uid, gid)
        return [read(f"/proc/self/{name}").split() for name in ("uid_map", "gid_map", "setgroups")], uid, gid

    maps, uid, gid = in_child(act)

    assert [[str(uid), str(uid), "1"], [str(gid), str(gid), "1"], ["deny"]] == maps


def test_an_ordinary_user_becomes_itself_alone(in_child):
    def act():
        uid, gid = os.geteuid(), os.getegid()
        identity.become(wire.Identity(uid, gid, switch=False), os.open("/proc", os.O_PATH))
        return [read(f"/proc/self/{name}").split() for name in ("uid_map", "gid_map")] == [
            [str(n), str(n), "1"] for n in (uid, gid)
        ]

    assert in_child(act)


def test_entering_makes_every_namespace_but_pid_anew(in_child, who):
    def links():
        return {
            kind: os.readlink(f"/proc/self/ns/{kind}")
            for kind in ("mnt", "net", "ipc", "uts", "pid", "pid_for_children")
        }

    def act():
        before = links()
        if not who.privileged:
            entry.enter_user_namespace()
        foundation.enter_zygote()
        # The one for children cannot be read before it has a child.
        after = {}
        for kind in before:
            with suppress(FileNotFoundError):
                after[kind] = os.readlink(f"/proc/self/ns/{kind}")
        return {kind for kind in after if after[kind] != before[kind]}

    assert {"mnt", "net", "ipc", "uts"} == in_child(act)


# Idmapped mounts.


@as_root
def test_files_of_another_owner_are_shown_as_the_operations(in_child, who, project):
    os.chown(project, 1000, 1000)
    secret = project / "secret"
    secret.write_text("of uid 1000")
    secret.chmod(0o600)
    os.chown(secret, 1000, 1000)
    blueprint = compiled(who, project, Policy(read=(str(secret),), write_through=(str(project),)))

    def act():
        inherited = inherit(who, project)
        climbed(inherited, whole(blueprint))
        write("new")
        return read(secret), os.stat(secret).st_uid, os.stat("new").st_uid

    assert ("of uid 1000", who.uid, who.uid) == in_child(act)
    assert 1000 == os.stat(project / "new").st_uid


@as_root
def test_an_idmap_is_a_user_namespace(in_child, who, project):
    def act():
        inherit(who, project)
        fd = identity.make_idmap((1000, 1000), who.uid, who.gid)
        return stat.S_ISREG(os.fstat(fd).st_mode), os.readlink(f"/proc/self/fd/{fd}") if os.path.exists(
            "/proc/self"
        ) else "user:"

    regular, name = in_child(act)

    assert regular
    assert name.startswith("user:")


def test_an_idmap_that_cannot_be_made_is_an_error(in_child, monkeypatch):
    def refuse(_flags):
        raise PermissionError(errno.EPERM, "unshare")

    monkeypatch.setattr(sc, "unshare", refuse)

    with pytest.raises(PermissionError, match="no user namespace for idmapped mounts"):
        in_child(lambda: identity.make_idmap((1000, 1000), 5, 5))


def test_places_that_are_there_are_left_alone(tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (True, False):
        mounts.make_place(str(tmp_path / "file"), folder)
    mounts.make_place(str(tmp_path / "a/b"), folder=True)
    mounts.make_place(str(tmp_path / "c/d"), folder=False)

    assert "kept" == (tmp_path / "file").read_text()
    assert (tmp_path / "a/b").is_dir()
    assert (tmp_path / "c/d").is_file()
