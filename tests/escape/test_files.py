"""Files of the host: what nobody granted is not there, and what was granted goes no further than its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from escape.attempt import Bench, Did, Refused, granted, reached

READ = """
def act(path):
    with open(path) as file:
        return file.read()
"""
LIST = """
def act(path):
    return sorted(os.listdir(path))
"""
WRITE = """
def act(path):
    with open(path, "a") as file:
        file.write("x")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``granted/inner/page`` and, beside what is granted, ``sibling/secret``."""
    (tmp_path / "granted/inner").mkdir(parents=True)
    (tmp_path / "granted/inner/page").write_text("granted")
    (tmp_path / "sibling").mkdir()
    (tmp_path / "sibling/secret").write_text("secret")
    return tmp_path


def test_a_file_of_the_project_is_not_there_without_a_grant(bench: Bench) -> None:
    path = {"path": str(bench.project / "notes.txt")}

    assert Did("of the project") == bench.outside(READ, path)
    assert Refused("ENOENT") == bench.inside(READ, path)


def test_the_project_is_empty_without_a_grant(bench: Bench) -> None:
    assert Did(["notes.txt"]) == bench.outside(LIST, {"path": "."})
    assert Did([]) == bench.inside(LIST, {"path": "."})


def test_a_file_elsewhere_is_not_there(bench: Bench) -> None:
    path = {"path": str(bench.elsewhere / "secret")}

    assert Did("of somebody else") == bench.outside(READ, path)
    assert Refused("ENOENT") == bench.inside(READ, path)


def test_home_is_not_there(bench: Bench, own_home: Path) -> None:
    (own_home / ".ssh").mkdir()
    path = {"path": str(own_home)}

    assert Did([".ssh"]) == bench.outside(LIST, path)
    assert Refused("ENOENT") == bench.inside(LIST, path)


def test_etc_shadow_is_not_there(bench: Bench) -> None:
    outside = bench.outside(READ, {"path": "/etc/shadow"})

    reached(outside, "ENOENT")
    assert Refused("ENOENT") == bench.inside(READ, {"path": "/etc/shadow"})


def test_passwd_names_no_user_of_the_host(bench: Bench) -> None:
    names = "def act():\n    import pwd\n    return len(pwd.getpwall())"
    outside = bench.outside(names)

    assert isinstance(outside, Did)
    assert outside.value > 2
    assert Did(2) == bench.inside(names)


@pytest.mark.parametrize("path", ["/home", "/root", "/sys", "/run", "/var", "/boot", "/mnt", "/opt", "/srv"])
def test_a_folder_of_the_host_is_not_there(bench: Bench, path: str) -> None:
    stat = "def act(path):\n    return os.path.isdir(os.stat(path) and path)"
    if bench.outside(stat, {"path": path}) != Did(True):
        pytest.skip(f"this host has no {path}")

    assert Refused("ENOENT") == bench.inside(stat, {"path": path})


def test_a_sibling_of_a_granted_folder_is_not_there(bench: Bench, folder: Path) -> None:
    path = {"path": str(folder / "sibling/secret")}

    assert Did("secret") == bench.outside(READ, path)
    assert Refused("ENOENT") == bench.inside(READ, path, policy=granted(read=(folder / "granted",)))


def test_dot_dot_does_not_leave_a_granted_folder(bench: Bench, folder: Path) -> None:
    path = {"path": str(folder / "granted/inner/../../sibling/secret")}

    assert Did("secret") == bench.outside(READ, path)
    assert Refused("ENOENT") == bench.inside(READ, path, policy=granted(read=(folder / "granted",)))


def test_the_parent_of_a_granted_folder_shows_nothing_else(bench: Bench, folder: Path) -> None:
    path = {"path": str(folder)}

    assert Did(["granted", "sibling"]) == bench.outside(LIST, path)
    assert Did(["granted"]) == bench.inside(LIST, path, policy=granted(read=(folder / "granted",)))


@pytest.mark.parametrize("target", ["sibling/secret", "../sibling/secret", "/etc/hostname"])
def test_a_symlink_does_not_leave_a_granted_folder(bench: Bench, folder: Path, target: str) -> None:
    # Absolute, and relative to its own place: where it leads is looked up inside, and there is nothing.
    place = target if target.startswith(("/", "..")) else str(folder / target)
    (folder / "granted/link").symlink_to(place)
    path = {"path": str(folder / "granted/link")}
    outside = bench.outside(READ, path)
    inside = bench.inside(READ, path, policy=granted(read=(folder / "granted",)))

    assert isinstance(outside, Did)
    assert inside == (Did("sandbox\n") if target == "/etc/hostname" else Refused("ENOENT"))


def test_a_granted_file_brings_no_other_of_its_folder(bench: Bench, folder: Path) -> None:
    path = {"path": str(folder / "sibling")}
    (folder / "sibling/other").write_text("other")

    assert Did(["other", "secret"]) == bench.outside(LIST, path)
    assert Did(["secret"]) == bench.inside(LIST, path, policy=granted(read=(folder / "sibling/secret",)))


def test_a_read_grant_is_not_written(bench: Bench, folder: Path) -> None:
    path = {"path": str(folder / "granted/inner/page")}

    assert Did() == bench.outside(WRITE, path)
    assert Refused("EROFS") == bench.inside(WRITE, path, policy=granted(read=(folder / "granted",)))
    assert (folder / "granted/inner/page").read_text() == "grantedx"


@pytest.mark.parametrize(
    "act",
    [
        "os.unlink(path)",
        "os.rename(path, path + '2')",
        "os.chmod(path, 0o600)",
        "os.utime(path)",
        "os.truncate(path, 0)",
        "os.symlink('x', path + '2')",
        "os.link(path, path + '2')",
        "os.setxattr(path, 'user.x', b'x')",
    ],
)
def test_a_read_grant_is_not_changed(bench: Bench, folder: Path, act: str) -> None:
    source = f"def act(path):\n    {act}\n"
    path = folder / "granted/inner/page"
    inside = bench.inside(source, {"path": str(path)}, policy=granted(read=(folder / "granted",)))
    outside = bench.outside(source, {"path": str(path)})

    reached(outside, "EROFS")
    assert Did() == outside
    assert Refused("EROFS") == inside


def test_what_others_may_not_read_stays_unreadable_under_a_grant(bench: Bench, folder: Path) -> None:
    """Only root could: its operations have a uid of their own, that of the files' owner in the grant and no more."""
    if os.geteuid():
        pytest.skip("an ordinary user's operations have that user's rights to files")
    path = folder / "granted/of-another"
    path.write_text("private")
    path.chmod(0o600)
    os.chown(path, 12345, 12345)

    assert Did("private") == bench.outside(READ, {"path": str(path)})
    assert Refused("EACCES") == bench.inside(READ, {"path": str(path)}, policy=granted(read=(folder / "granted",)))


@pytest.mark.parametrize("path", ["/usr/x", "/etc/x", "/x", "/dev/x", "/bin/x", "/proc/x"])
def test_the_root_is_not_written(bench: Bench, path: str) -> None:
    make = "def act(path):\n    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))"
    inside = bench.inside(make, {"path": path})

    # The same act, outside, where the user may: it is the place that is refused, not the call.
    assert Did() == bench.outside(make, {"path": str(bench.elsewhere / "made")})
    assert inside in (Refused("EROFS"), Refused("EACCES"), Refused("ENOENT") if path == "/proc/x" else None)


def test_the_root_is_not_made_writable_again(bench: Bench) -> None:
    # MS_REMOUNT | MS_BIND on the root of namespaces of one's own works outside.
    remount = "def act():\n    return call('mount', b'none', b'/', None, 0x1020, None)"

    bench.refuses(remount, "EPERM", own_namespaces=True)


def test_the_root_holds_nothing_of_the_host(bench: Bench) -> None:
    outside, inside = bench.outside(LIST, {"path": "/"}), bench.inside(LIST, {"path": "/"})

    assert isinstance(inside, Did)
    assert isinstance(outside, Did)
    assert "home" in outside.value
    top = str(bench.project).split("/")[1]
    assert set(inside.value) <= {
        "bin",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "sandbox",
        "sbin",
        "tmp",
        "usr",
        top,
    }


def test_there_are_five_devices(bench: Bench) -> None:
    devices = """
    def act():
        return sorted(name for name in os.listdir("/dev") if not os.path.islink("/dev/" + name))
    """
    outside = bench.outside(devices)

    assert isinstance(outside, Did)
    assert len(outside.value) > 5
    assert Did(["full", "null", "random", "urandom", "zero"]) == bench.inside(devices)


def test_what_an_operation_leaves_the_next_one_does_not_find(bench: Bench) -> None:
    leave = """
    def act():
        for folder in ("/tmp", os.environ.get("HOME", "/tmp")):
            open(folder + "/sage-left", "w").close()
    """
    look = "def act():\n    return [os.path.exists(folder + '/sage-left') for folder in ('/tmp', os.environ['HOME'])]"
    bench.outside("def act():\n    open('left', 'w').close()")

    assert Did(True) == bench.outside("def act():\n    return os.path.exists('left')")
    assert Did() == bench.inside(leave)
    assert Did([False, False]) == bench.inside(look)
    (bench.project / "left").unlink()


def test_the_work_folder_is_not_on_the_host(bench: Bench) -> None:
    make = "def act(path):\n    open(path, 'w').close()\n    return os.path.exists(path)"
    path = Path("/tmp/sage-escape-made")

    assert Did(True) == bench.outside(make, {"path": str(bench.elsewhere / "made")})
    assert Did(True) == bench.inside(make, {"path": str(path)})
    assert not path.exists()
