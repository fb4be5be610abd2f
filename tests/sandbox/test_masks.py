"""What a folder grant does not show, found on real trees."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="attr-defined,func-returns-value,redundant-expr"

from __future__ import annotations

import os
import socket
import subprocess
import time

import pytest

from sage_sandbox.errors import NotGranted
from sage_sandbox.sandbox import masks
from sage_sandbox.sandbox.masks import Masker, git_config

HIDDEN = (
    ".sage/state.json",
    ".env",
    ".env.local",
    "deep/er/.netrc",
    "a/server.pem",
    "a/b/tls.key",
    "id_ed25519",
    ".npmrc",
    ".pypirc",
)


@pytest.fixture
def tree(tmp_path):
    """A project with something of everything, and a repository in it."""
    root = tmp_path / "project"
    for name in (*HIDDEN, "src/main.py", "src/deep/util.py", "README", ".git/HEAD", "identity.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for config in (".git/config", ".git/modules/lib/config", ".git/worktrees/w/config.worktree"):
        (root / config).parent.mkdir(parents=True, exist_ok=True)
        (root / config).write_text(
            '[core]\n\tbare = true\n[remote "origin"]\n\turl = https://user:secret@example.org\n'
        )
    (root / "src/config").write_text("no git configuration")
    return root


def masked(root, *named, masker=None):
    return dict((masker or Masker()).masks(str(root), frozenset(map(str, named))))


def test_hidden_names_are_covered_at_any_depth(tree):
    found = masked(tree)

    assert {
        ".sage", ".env", ".env.local", "deep/er/.netrc", "a/server.pem", "a/b/tls.key", "id_ed25519",
        ".npmrc", ".pypirc",
    } == {path for path, replacement in found.items() if replacement is None}  # fmt: skip


def test_git_configurations_are_replaced_by_ones_without_remotes(tree):
    found = {path: text for path, text in masked(tree).items() if text is not None}

    assert {".git/config", ".git/modules/lib/config", ".git/worktrees/w/config.worktree"} == set(found)
    assert {b"[core]\n\tbare = true\n"} == set(found.values())


def test_git_configurations_are_replaced_where_the_repository_itself_is_granted(tree):
    found = masked(tree / ".git")

    assert {"config", "modules/lib/config", "worktrees/w/config.worktree"} == set(found)
    assert None not in found.values()


def test_what_a_grant_names_stays(tree):
    found = masked(tree, tree, tree / ".env", tree / ".git/config")

    assert not {".env", ".git/config"} & set(found)
    assert ".env.local" in found


def test_a_hidden_folder_is_opened_on_the_way_to_what_is_named(tree):
    (tree / ".sage/templates/x").mkdir(parents=True)
    (tree / ".sage/logs").mkdir()
    found = masked(tree, tree / ".sage/templates/x")

    assert ".sage" not in found
    assert found[".sage/logs"] is None
    assert ".sage/templates/x" not in found


def test_files_beside_what_is_named_in_a_hidden_folder_stay_hidden(tree):
    (tree / ".sage/templates").mkdir(parents=True)
    (tree / ".sage/templates/a.yaml").write_text("named")
    (tree / ".sage/templates/b.yaml").write_text("not named")
    found = masked(tree, tree, tree / ".sage/templates/a.yaml")

    assert found[".sage/state.json"] is None
    assert found[".sage/templates/b.yaml"] is None
    assert ".sage/templates/a.yaml" not in found


def test_sockets_and_fifos_are_covered_and_links_are_not(tree, monkeypatch):
    os.mkfifo(tree / "src/fifo")
    (tree / "src/link").symlink_to("/etc/passwd")
    (tree / "src/dangling").symlink_to("nowhere")
    monkeypatch.chdir(tree)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("src/sock")
        found = masked(tree)

    assert {"src/fifo": None, "src/sock": None} == {
        path: text for path, text in found.items() if path.startswith("src/")
    }


def test_a_folder_that_did_not_change_is_not_read_again(tree, monkeypatch):
    masker = Masker()
    read = []
    plain = os.scandir
    later = time.time_ns() + 10**12
    # What changed a moment ago may change again under the same stamp: it is not kept.
    monkeypatch.setattr(masks.time, "time_ns", lambda: later)
    monkeypatch.setattr(masks.os, "scandir", lambda folder: read.append(str(folder)) or plain(folder))
    first = masked(tree, masker=masker)
    folders = len(read)
    again = masked(tree, masker=masker)

    assert first == again
    assert len(read) == folders > 5

    (tree / "src/new.key").write_text("")
    found = masked(tree, masker=masker)

    assert {**first, "src/new.key": None} == found
    assert [str(tree / "src")] == read[folders:]


def test_a_folder_that_changed_just_now_is_read_again(tree, monkeypatch):
    masker = Masker()
    monkeypatch.setattr(masks.time, "time_ns", lambda: os.stat(tree).st_ctime_ns)
    masked(tree, masker=masker)

    assert str(tree) not in masker.known


def test_a_folder_that_may_not_be_listed_is_left_out_whole(tree, monkeypatch):
    (tree / "open").mkdir()
    (tree / "closed").mkdir()
    plain = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError
        return plain(folder)

    monkeypatch.setattr(masks.os, "scandir", refuse)

    found = masked(tree)

    assert found["closed"] is None
    assert "open" not in found


def test_a_granted_folder_that_may_not_be_listed_is_refused(tree, monkeypatch):
    def refuse(_folder):
        raise PermissionError

    monkeypatch.setattr(masks.os, "scandir", refuse)

    with pytest.raises(NotGranted, match="may not be listed"):
        masked(tree)


def test_a_folder_that_cannot_be_searched_is_refused(tree, monkeypatch):
    def refuse(_folder):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(masks.os, "scandir", refuse)

    with pytest.raises(NotGranted, match="cannot be searched for what to hide: Too many open files"):
        masked(tree)


def test_a_folder_that_is_gone_has_nothing_to_mask(tmp_path):
    assert {} == masked(tmp_path / "gone")


@pytest.fixture
def deep(tmp_path):
    """Make a chain of folders; gone before pytest, for which it is too deep, wants to remove it."""

    def make(depth):
        top = os.open(tmp_path, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=top)
            below = os.open("d", os.O_RDONLY, dir_fd=top)
            os.close(top)
            top = below
        os.close(top)
        return tmp_path

    yield make
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_tree_deeper_than_the_stack_is_walked(deep):
    assert {} == masked(deep(1200))


def test_a_tree_deeper_than_a_path_may_lead_is_not_granted(deep):
    with pytest.raises(NotGranted, match="lies deeper than a path may lead"):
        masked(deep(2100))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", b"[core]\n"),
        ("[core]\n\trepositoryformatversion = 1\n\tbare = false\n",
         b"[core]\n\trepositoryformatversion = 1\n\tbare = false\n"),
        ("[CORE]\n BARE=true\n", b"[core]\n\tbare = true\n"),
        ('[core]\n\trepositoryformatversion = "0"\n', b"[core]\n\trepositoryformatversion = 0\n"),
        ("[extensions]\n\tobjectFormat = sha256\n\tworktreeConfig = true\n",
         b"[core]\n[extensions]\n\tobjectformat = sha256\n\tworktreeconfig = true\n"),
        ("[core]\n\tfsmonitor = ./evil\n\thooksPath = /x\n\tpager = evil\n[alias]\n\tst = !evil\n", b"[core]\n"),
        ("[core]\n\tbare = $(evil)\n\trepositoryformatversion = 0; evil\n", b"[core]\n"),
        ('[remote "x"]\n\tbare = true\n[include]\n\tpath = /x\n', b"[core]\n"),
    ],
)  # fmt: skip
def test_a_git_configuration_keeps_known_words_only(text, kept, tmp_path):
    (tmp_path / "config").write_text(text)

    assert kept == git_config(tmp_path / "config")


@pytest.mark.parametrize("kind", ["missing", "link", "fifo"])
def test_what_is_no_plain_git_configuration_says_nothing(kind, tmp_path):
    path = tmp_path / "config"
    if kind == "link":
        (tmp_path / "real").write_text("[core]\n\tbare = true\n")
        path.symlink_to("real")
    elif kind == "fifo":
        os.mkfifo(path)

    assert b"[core]\n" == git_config(path)
