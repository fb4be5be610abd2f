"""What a grant on a folder leaves out: secrets by name at any depth, git's configuration, sockets and FIFOs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from escape.attempt import Bench, Did, Died, Refused, granted, needs_root, running_act

from sage_sandbox.policy import Limits
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.steps import Blueprint

READ = """
def act(path):
    with open(path) as file:
        return file.read()
"""
LIST = """
def act(path):
    return sorted(os.listdir(path))
"""
CONNECT = """
def act(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A granted folder with a deep place in it."""
    (tmp_path / "tree/a/b/c").mkdir(parents=True)
    return tmp_path / "tree"


@contextmanager
def listening(path: Path) -> Iterator[None]:
    """A Unix socket that takes connections."""
    here = os.getcwd()
    os.chdir(path.parent)  # a path in sockaddr_un has 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
            server.listen()
            path.chmod(0o777)
            yield
    finally:
        os.chdir(here)


@pytest.mark.parametrize("depth", [".", "a/b/c"])
@pytest.mark.parametrize(
    "name",
    [".env", ".env.local", ".envrc", ".netrc", ".npmrc", ".pypirc", "id_rsa", "id_ed25519", "server.pem", "tls.key"],
)
def test_a_hidden_name_is_not_there(bench: Bench, folder: Path, depth: str, name: str) -> None:
    path = folder / depth / name
    path.write_text("secret")

    assert Did("secret") == bench.outside(READ, {"path": str(path)})
    assert Refused("ENOENT") == bench.inside(READ, {"path": str(path)}, policy=granted(read=(folder,)))


def test_a_hidden_name_is_not_listed(bench: Bench, folder: Path) -> None:
    (folder / ".env").write_text("secret")

    assert Did([".env", "a"]) == bench.outside(LIST, {"path": str(folder)})
    assert Did(["a"]) == bench.inside(LIST, {"path": str(folder)}, policy=granted(read=(folder,)))


def test_the_runners_own_folder_is_not_there(bench: Bench, folder: Path) -> None:
    (folder / "a/.sage/state").mkdir(parents=True)
    (folder / "a/.sage/state/run").write_text("state")
    path = {"path": str(folder / "a/.sage/state/run")}

    assert Did("state") == bench.outside(READ, path)
    assert Refused("ENOENT") == bench.inside(READ, path, policy=granted(read=(folder,)))


@pytest.mark.parametrize("place", [".git", "a/.git", ".git/modules/x", ".git/worktrees/x"])
@pytest.mark.parametrize("name", ["config", "config.worktree"])
def test_a_git_configuration_shows_no_remote(bench: Bench, folder: Path, place: str, name: str) -> None:
    config = folder / place / name
    config.parent.mkdir(parents=True)
    config.write_text('[core]\n\tbare = false\n[remote "o"]\n\turl = https://user:secret@example.org/\n')
    inside = bench.inside(READ, {"path": str(config)}, policy=granted(read=(folder,)))
    outside = bench.outside(READ, {"path": str(config)})

    assert isinstance(outside, Did)
    assert "secret" in outside.value
    assert Did("[core]\n\tbare = false\n") == inside


@pytest.mark.parametrize(
    "inner",
    [".git/modules/x", ".git/modules", ".git"],
)
def test_a_git_configuration_shows_no_remote_where_the_grant_starts_within_git(
    bench: Bench, folder: Path, inner: str
) -> None:
    config = folder / ".git/modules/x/config"
    config.parent.mkdir(parents=True)
    config.write_text('[core]\n\tbare = false\n[remote "o"]\n\turl = https://user:secret@example.org/\n')
    inside = bench.inside(READ, {"path": str(config)}, policy=granted(read=(folder / inner,)))

    assert "secret" in str(bench.outside(READ, {"path": str(config)}))
    assert "secret" not in str(inside)


def test_a_hidden_name_in_a_writable_grant_is_not_there(bench: Bench, folder: Path) -> None:
    (folder / "a/.env").write_text("secret")
    path = {"path": str(folder / "a/.env")}

    assert Did("secret") == bench.outside(READ, path)
    assert Refused("ENOENT") == bench.inside(READ, path, policy=granted(write=(folder,)))


def test_a_hidden_name_deeper_than_any_path_is_not_there(bench: Bench, folder: Path) -> None:
    """Step by step one gets further than a path of 4,096 bytes leads."""
    make = """
    def act(path):
        os.chdir(path)
        for _ in range(30):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        open(".env", "w").close()
    """
    look = """
    def act(path):
        os.chdir(path)
        for _ in range(30):
            os.chdir("d" * 200)
        return os.listdir(".")
    """
    path = {"path": str(folder)}

    assert Did() == bench.outside(make, path)
    assert Did([".env"]) == bench.outside(look, path)
    seen = bench.inside(look, path, policy=granted(read=(folder,)))
    assert isinstance(seen, Died)
    assert "lies deeper than a path may lead" in seen.how


def test_a_folder_with_many_hidden_names_can_be_granted(bench: Bench, folder: Path) -> None:
    for number in range(1_500):
        (folder / f"{number}").mkdir()
        (folder / f"{number}/.env").touch()
    visible = (
        "def act(path):\n    return [n for n in os.listdir(path) if os.listdir(path + '/' + n) not in ([], ['b'])]"
    )
    inside = bench.inside(visible, {"path": str(folder)}, policy=granted(read=(folder,)), limits=Limits(disk=1 << 20))

    assert Did([]) == inside


def test_a_hidden_name_that_a_grant_names_is_the_only_one_there(bench: Bench, folder: Path) -> None:
    (folder / ".env").write_text("named")
    (folder / "a/.env").write_text("secret")
    policy = granted(read=(folder, folder / ".env"))

    assert Did("named") == bench.inside(READ, {"path": str(folder / ".env")}, policy=policy)
    assert Did("secret") == bench.outside(READ, {"path": str(folder / "a/.env")})
    assert Refused("ENOENT") == bench.inside(READ, {"path": str(folder / "a/.env")}, policy=policy)


def test_a_hidden_name_made_after_the_folder_was_seen_is_not_there(bench: Bench, folder: Path) -> None:
    """The masker remembers folders: a new name changes what it remembered them by."""
    path, policy = folder / "a/b/.env", granted(read=(folder,))

    assert Did(["c"]) == bench.inside(LIST, {"path": str(path.parent)}, policy=policy)
    path.write_text("secret")

    assert Did("secret") == bench.outside(READ, {"path": str(path)})
    assert Refused("ENOENT") == bench.inside(READ, {"path": str(path)}, policy=policy)


def test_a_symlink_does_not_show_a_hidden_name(bench: Bench, folder: Path) -> None:
    (folder / ".env").write_text("secret")
    (folder / "a/link").symlink_to("../.env")
    path = {"path": str(folder / "a/link")}

    assert Did("secret") == bench.outside(READ, path)
    assert Refused("ENOENT") == bench.inside(READ, path, policy=granted(read=(folder,)))


def test_a_hidden_name_is_not_shown_by_a_rename_over_it_outside(bench: Bench, folder: Path) -> None:
    """A mount over the file would fall off; a whiteout is for the name."""
    (folder / ".env").write_text("old")
    (folder / "next").write_text("secret")
    path = {"path": str(folder / ".env")}
    swap = """
    def act(path):
        print("ready", flush=True)
        os.read(0, 1)
        return open(path).read()
    """
    with running_act(bench, swap, path, policy=granted(read=(folder,))) as op:
        assert "ready" == op.line()
        (folder / "next").rename(folder / ".env")
        op.go_on()
        outcome = op.wait()

    assert Did("secret") == bench.outside(READ, path)
    assert {"errno": "ENOENT"} == outcome.value()


def test_a_hidden_name_is_not_reached_by_the_number_of_its_inode(bench: Bench, folder: Path) -> None:
    (folder / ".env").write_text("secret")
    handle = """
    def act(path):
        held = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
        mount = ctypes.c_int()
        call("name_to_handle_at", -100, path.encode(), held, ctypes.byref(mount), 0)
    """

    bench.refuses(handle, "EPERM", {"path": str(folder / "a")}, policy=granted(read=(folder,)))


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_socket_in_a_granted_folder_takes_no_connection(bench: Bench, folder: Path, kind: str) -> None:
    path = folder / "a/s"
    with listening(path):
        policy = granted(**{kind: (folder,)})

        assert Did() == bench.outside(f"os.chdir({str(path.parent)!r})" + CONNECT, {"path": "s"})
        assert Refused("ENOENT") == bench.inside(
            f"os.chdir({str(path.parent)!r})" + CONNECT, {"path": "s"}, policy=policy
        )


def test_a_socket_in_a_write_through_folder_takes_no_connection(bench: Bench, folder: Path) -> None:
    path = folder / "a/s"
    with listening(path):
        act, policy = f"os.chdir({str(path.parent)!r})" + CONNECT, granted(write_through=(folder,))

        assert Did() == bench.outside(act, {"path": "s"})
        assert isinstance(bench.inside(act, {"path": "s"}, policy=policy), Refused)


def test_a_hidden_name_in_a_write_through_folder_is_not_there(bench: Bench, folder: Path) -> None:
    (folder / "a/.env").write_text("secret")
    path = {"path": str(folder / "a/.env")}

    assert Did("secret") == bench.outside(READ, path)
    assert isinstance(bench.inside(READ, path, policy=granted(write_through=(folder,))), Refused)


def test_a_socket_that_appears_in_a_granted_folder_takes_no_connection(bench: Bench, folder: Path) -> None:
    """Nobody can mask what is not there yet: an overlay's inode is not the one that the socket was bound to."""
    path = folder / "a/s"
    connect = f"""
    def act():
        os.chdir({str(path.parent)!r})
        os.write(1, b"ready\\n")
        os.read(0, 1)
        with socket.socket(socket.AF_UNIX) as made:
            made.connect("s")
    """
    with running_act(bench, connect, policy=granted(read=(folder,))) as op:
        assert "ready" == op.line()
        with listening(path):
            op.go_on()
            outcome = op.wait()

            assert Did() == bench.outside(f"os.chdir({str(path.parent)!r})" + CONNECT, {"path": "s"})
    assert outcome.value() in ({"errno": "ECONNREFUSED"}, {"errno": "ENOENT"})


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_fifo_in_a_granted_folder_is_not_there(bench: Bench, folder: Path, kind: str) -> None:
    path = folder / "a/pipe"
    os.mkfifo(path)
    write = "def act(path):\n    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))"

    assert Did() == bench.outside(write, {"path": str(path)})
    assert Refused("ENOENT") == bench.inside(write, {"path": str(path)}, policy=granted(**{kind: (folder,)}))


@needs_root("make a device")
def test_a_device_in_a_granted_folder_is_not_there(bench: Bench, folder: Path) -> None:
    path = folder / "a/zero"
    os.mknod(path, 0o020666, os.makedev(1, 5))
    path.chmod(0o666)
    read = "def act(path):\n    return open(path, 'rb').read(1).hex()"

    assert Did("00") == bench.outside(read, {"path": str(path)})
    assert Refused("ENOENT") == bench.inside(read, {"path": str(path)}, policy=granted(read=(folder,)))


@needs_root("make a device")
def test_a_device_in_a_write_through_folder_is_not_opened(bench: Bench, folder: Path) -> None:
    path = folder / "a/zero"
    os.mknod(path, 0o020666, os.makedev(1, 5))
    path.chmod(0o666)
    read = "def act(path):\n    return open(path, 'rb').read(1).hex()"

    assert Did("00") == bench.outside(read, {"path": str(path)})
    # Covered by an empty file, or not opened at all.
    assert bench.inside(read, {"path": str(path)}, policy=granted(write_through=(folder,))) in (
        Did(""),
        Refused("EACCES"),
    )


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_the_folder_to_grant_is_refused_if_it_is_a_link_by_now(bench: Bench, folder: Path, kind: str) -> None:
    policy = granted(read=(folder / "a",))
    (folder / "a/page").write_text("granted")
    (bench.elsewhere / "page").write_text("secret")
    path = {"path": str(folder / "a/page")}
    assert Did("granted") == bench.inside(READ, path, policy=policy)
    if kind == "link":
        (folder / "a").rename(folder / "was")
        (folder / "a").symlink_to(bench.elsewhere)
    else:
        # A link further up.
        folder.rename(folder.parent / "was")
        (folder.parent / "other/a").mkdir(parents=True)
        (folder.parent / "other/a/page").write_text("secret")
        folder.symlink_to(folder.parent / "other")
    outcome = bench.run("def run():\n    pass", policy=policy)

    assert Did("secret") == bench.outside(READ, path)
    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert "symbolic links" in outcome.error


def test_a_folder_swapped_while_the_sandbox_is_built_is_refused(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look that the supervisor takes and the one that the child takes."""
    policy = granted(read=(folder / "a",))
    compile_steps = bench.supervisor._blueprint

    def swap_after(job: Job) -> Blueprint:
        blueprint = compile_steps(job)
        if not (folder / "was").exists():
            (folder / "a").rename(folder / "was")
            (folder / "a").mkdir()
            (folder / "a/page").write_text("secret")
        return blueprint

    monkeypatch.setattr(bench.supervisor, "_blueprint", swap_after)
    outcome = bench.run(READ.replace("act", "run"), {}, policy=policy)

    assert (folder / "was").exists()
    assert Did("secret") == bench.outside(READ, {"path": str(folder / "a/page")})
    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert "no longer what was granted" in outcome.error
