"""What an operation writes to a granted folder: held back, checked, then carried out; some names never are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from escape.attempt import Bench, Did, granted, plain, running_act

from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import Limits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A granted folder that has a file, and a deep place."""
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "tree/page").write_text("old")
    return tmp_path / "tree"


def write(bench: Bench, folder: Path, body: str, limits: Limits = Limits()) -> Outcome:
    """Run a body in which ``top`` is the folder, granted for writing."""
    code = "import os\n" + f"top = {str(folder)!r}\ndef run():\n    " + body.replace("\n", "\n    ")
    return bench.run(code, policy=granted(write=(folder,)), limits=limits)


def test_nothing_is_written_before_the_end(bench: Bench, folder: Path) -> None:
    body = f"""
    def act():
        with open({str(folder / "page")!r}, "w") as file:
            file.write("new")
        os.write(1, b"ready\\n")
        os.read(0, 1)
    """
    with running_act(bench, body, policy=granted(write=(folder,))) as op:
        assert "ready" == op.line()
        meanwhile = (folder / "page").read_text()
        op.go_on()
        assert op.wait().ok

    assert "old" == meanwhile
    assert "new" == (folder / "page").read_text()


def test_an_operation_that_failed_has_written_nothing(bench: Bench, folder: Path) -> None:
    outcome = write(
        bench, folder, "open(top + '/page', 'w').write('new')\nopen(top + '/more', 'w').close()\nraise ValueError"
    )

    assert "rejected" == outcome.status
    assert ["a", "page"] == sorted(os.listdir(folder))
    assert "old" == (folder / "page").read_text()


PROTECTED = [
    ".git/hooks/post-checkout",
    ".git/config",
    ".GIT/hooks/pre-commit",
    ".github/workflows/ci.yml",
    ".GitHub/Workflows/ci.yml",
    ".envrc",
    ".env",
    ".ENV.local",
    ".vscode/tasks.json",
    ".idea/workspace.xml",
    ".claude/settings.json",
    "CLAUDE.md",
    "Agents.MD",
    ".mcp.json",
    ".husky/pre-commit",
    "conftest.py",
    "sitecustomize.py",
    "evil.pth",
    ".pre-commit-config.yaml",
    ".gitmodules",
    ".gitattributes",
    ".sage/templates/x.yaml",
    ".devcontainer/devcontainer.json",
    ".npmrc",
    ".yarnrc.yml",
    "mise.toml",
    ".tool-versions",
    ".hg/hgrc",
    ".git./config",
    ".git /config",
]


@pytest.mark.parametrize("depth", ["", "a/b/"])
@pytest.mark.parametrize("name", PROTECTED)
def test_a_protected_name_is_not_written(bench: Bench, folder: Path, name: str, depth: str) -> None:
    target = depth + name
    body = f"os.makedirs(os.path.dirname(top + '/{target}'), exist_ok=True)\nopen(top + '/{target}', 'w').write('x')"
    outcome = write(bench, folder, body + "\nopen(top + '/page', 'w').write('new')")

    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert "protected name" in outcome.error
    assert not (folder / target).exists()
    assert "old" == (folder / "page").read_text()
    plain(body, top=str(folder))
    assert (folder / target).exists()


@pytest.mark.parametrize("name", [".g\u200cit/hooks/x", ".env\u2060"])
def test_a_name_that_only_looks_protected_is_refused_too(bench: Bench, folder: Path, name: str) -> None:
    body = (
        f"os.makedirs(os.path.dirname(top + '/' + {name!r}), exist_ok=True)\nopen(top + '/' + {name!r}, 'w').write('x')"
    )
    outcome = write(bench, folder, body)

    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert not (folder / name).exists()


def test_a_granted_folder_does_not_hide_the_first_half_of_a_protected_name(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / ".github"
    (folder / "workflows").mkdir(parents=True)
    outcome = write(bench, folder, "open(top + '/workflows/ci.yml', 'w').write('x')")

    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert [] == os.listdir(folder / "workflows")


def test_a_protected_folder_is_not_removed(bench: Bench, folder: Path) -> None:
    (folder / ".git/hooks").mkdir(parents=True)
    (folder / ".git/HEAD").write_text("ref")
    outcome = write(bench, folder, "import shutil\nshutil.rmtree(top + '/.git')")

    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert "ref" == (folder / ".git/HEAD").read_text()


@pytest.mark.parametrize(
    "again", ["", "\nos.mkdir(top + '/a')", "\nopen(top + '/a', 'w').close()"], ids=["gone", "anew", "as-a-file"]
)
@pytest.mark.parametrize("name", [".git/HEAD", ".env", ".envrc", "b/.env", "b/.sage/state/run"])
def test_a_protected_name_is_not_removed_with_the_folder_it_is_in(
    bench: Bench, folder: Path, name: str, again: str
) -> None:
    """A whiteout, or an opaque folder, stands for all that was beneath it, seen or hidden."""
    path = folder / "a" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    outcome = write(bench, folder, "import shutil\nshutil.rmtree(top + '/a')" + again)

    assert path.is_file()
    assert "precious" == path.read_text()
    assert not outcome.ok


def test_a_protected_name_is_not_moved_away_with_the_folder_it_is_in(bench: Bench, folder: Path) -> None:
    (folder / "a/.git").mkdir()
    (folder / "a/.git/HEAD").write_text("ref")
    write(bench, folder, "import shutil\nshutil.move(top + '/a', top + '/c')")

    assert "ref" == (folder / "a/.git/HEAD").read_text()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../elsewhere", "page"])
def test_a_symlink_is_not_written(bench: Bench, folder: Path, target: str) -> None:
    body = f"os.symlink({target!r}, top + '/link')"
    outcome = write(bench, folder, body)

    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert "no regular file" in outcome.error
    assert not (folder / "link").is_symlink()
    plain(body, top=str(folder))
    assert (folder / "link").is_symlink()


def test_what_cannot_be_carried_out_is_known_before_the_first_file_is_written(bench: Bench, folder: Path) -> None:
    (folder / "z").mkdir()
    body = "open(top + '/page', 'w').write('new')\nos.rmdir(top + '/z')\nopen(top + '/z', 'w').close()"
    outcome = write(bench, folder, body)

    assert ("new" if outcome.ok else "old") == (folder / "page").read_text()
    assert outcome.ok == (folder / "z").is_file()


def test_a_symlink_of_the_host_is_not_written_through(bench: Bench, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (folder / "link").symlink_to(tmp_path / "victim")
    outcome = write(bench, folder, "os.unlink(top + '/link')\nopen(top + '/link', 'w').write('new')")

    assert outcome.ok
    assert "precious" == (tmp_path / "victim").read_text()
    assert "new" == (folder / "link").read_text()
    assert not (folder / "link").is_symlink()


def test_a_folder_that_became_a_link_meanwhile_is_not_written_through(
    bench: Bench, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "victim").mkdir()
    body = f"""
    def act():
        with open({str(folder / "a/b/made")!r}, "w") as file:
            file.write("new")
        os.write(1, b"ready\\n")
        os.read(0, 1)
    """
    with running_act(bench, body, policy=granted(write=(folder,))) as op:
        assert "ready" == op.line()
        (folder / "a/b").rmdir()
        (folder / "a/b").symlink_to(tmp_path / "victim")
        op.go_on()
        outcome = op.wait()

    assert not outcome.ok
    assert [] == os.listdir(tmp_path / "victim")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.mkfifo(top + '/p')", "no regular file"),
        ("os.link(top + '/page', top + '/l')", "more than one link"),
        ("import socket\nos.chdir(top)\nsocket.socket(socket.AF_UNIX).bind('s')", "no regular file"),
        ("open(top + '/a\\nb', 'w').close()", "no printable text"),
        ("open(top + '/\\x1b[2J', 'w').close()", "no printable text"),
        ("os.makedirs(top + '/d' * 20)", "nested deeper"),
    ],
    ids=["fifo", "hard-link", "socket", "newline", "escape", "depth"],
)
def test_what_is_no_plain_file_is_not_written(bench: Bench, folder: Path, body: str, words: str) -> None:
    outcome = write(bench, folder, "open(top + '/page', 'w').write('new')\n" + body)

    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert words in outcome.error
    assert "old" == (folder / "page").read_text()
    assert ["a", "page"] == sorted(os.listdir(folder))


def test_rights_to_run_a_file_are_dropped(bench: Bench, folder: Path) -> None:
    body = "open(top + '/tool', 'w').write('#!/bin/sh')\nos.chmod(top + '/tool', 0o755)"
    outcome = write(bench, folder, body)

    assert outcome.ok
    assert 0o644 == stat.S_IMODE((folder / "tool").stat().st_mode)
    plain(body, top=str(folder))
    assert 0o755 == stat.S_IMODE((folder / "tool").stat().st_mode)


def test_an_extended_attribute_is_not_taken_over(bench: Bench, folder: Path) -> None:
    body = "open(top + '/made', 'w').close()\nos.setxattr(top + '/made', 'user.sage', b'x')"
    outcome = write(bench, folder, body)

    if outcome.ok:
        assert [] == [name for name in os.listxattr(folder / "made") if name.startswith("user.")]
    plain(body, top=str(folder))
    assert ["user.sage"] == [name for name in os.listxattr(folder / "made") if name.startswith("user.")]


def test_an_overlay_attribute_is_not_forged(bench: Bench, folder: Path) -> None:
    """One that says a folder is opaque would remove what is beneath it outside."""
    (folder / "a/b/kept").write_text("kept")
    write(
        bench,
        folder,
        "try:\n"
        "    os.setxattr(top + '/a', 'user.overlay.opaque', b'y')\n"
        "except OSError:\n"
        "    pass\n"
        "open(top + '/a/x', 'w').close()",
    )

    assert "kept" == (folder / "a/b/kept").read_text()


def test_sparse_files_write_no_more_than_the_disk_limit(bench: Bench, folder: Path) -> None:
    body = "for n in range(24):\n    os.truncate(os.open(f'{top}/{n}', os.O_CREAT | os.O_WRONLY, 0o600), 1 << 20)"
    outcome = write(bench, folder, body, Limits(disk=2 << 20))
    written = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())

    assert written <= 2 << 20
    assert not outcome.ok


def test_a_file_beside_a_granted_file_is_not_written(bench: Bench, folder: Path) -> None:
    """At most it is in the operation's own /tmp, where the way to the granted file lies here."""
    code = f"def run():\n    open({str(folder / 'more')!r}, 'w').close()"
    outcome = bench.run(code, policy=granted(write=(folder / "page",)))

    assert () == outcome.written
    assert ["a", "page"] == sorted(os.listdir(folder))
    plain("open(path, 'w').close()", path=str(folder / "more"))


def test_a_granted_file_is_replaced_and_not_its_target(bench: Bench, folder: Path) -> None:
    code = f"def run():\n    with open({str(folder / 'page')!r}, 'w') as file:\n        file.write('new')"
    outcome = bench.run(code, policy=granted(write=(folder / "page",)))

    assert outcome.ok
    assert "new" == (folder / "page").read_text()


def test_nothing_is_left_beside_what_was_written(bench: Bench, folder: Path) -> None:
    outcome = write(bench, folder, "open(top + '/a/made', 'w').write('x')")

    assert outcome.ok
    assert (str(folder / "a/made"),) == outcome.written
    assert ["a", "page"] == sorted(os.listdir(folder))
    assert ["b", "made"] == sorted(os.listdir(folder / "a"))


def test_what_was_written_is_the_users(bench: Bench, folder: Path) -> None:
    owner = folder.stat()
    outcome = write(bench, folder, "os.mkdir(top + '/new')\nopen(top + '/new/made', 'w').close()")
    found = (folder / "new/made").stat()

    assert outcome.ok
    assert (owner.st_uid, owner.st_gid) == (found.st_uid, found.st_gid)
    assert Did([]) == bench.outside(
        "def act(path):\n    return [n for n in os.listdir(path) if n.startswith('.')]", {"path": str(folder)}
    )
