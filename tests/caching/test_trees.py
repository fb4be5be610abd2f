"""A digest says what a grant shows, and stays the same as long as that does; times are never believed too early."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sage_sandbox.caching.index import FILE, Index
from sage_sandbox.caching.trees import Abandoned, TooLarge, Trees
from sage_sandbox.disk.files import Folder
from sage_sandbox.errors import NotGranted

LATER = 10_000_000_000
"""Ten seconds in ns: long enough for what was just written to be believed."""


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    (root / "top.txt").write_text("top")
    (root / "a" / "one.txt").write_text("one")
    (root / "a" / "b" / "two.txt").write_text("two")
    (root / "a" / "link").symlink_to("one.txt")
    (root / ".env").write_text("SECRET=1")
    return root


def digest(root, index=None, named=frozenset(), **given):
    given.setdefault("now_ns", lambda: time.time_ns() + LATER)
    return Trees(index if index is not None else Index(), **given).digest(str(root), named)


def reads(monkeypatch):
    """Which files are opened from now on."""
    opened = []
    real = os.open

    def noting(path, *args, **kwargs):
        opened.append(Path(path).name)
        return real(path, *args, **kwargs)

    monkeypatch.setattr("sage_sandbox.caching.trees.os.open", noting)
    return opened


CHANGES = {
    "bytes": lambda root: (root / "a/one.txt").write_text("eno"),
    "a new file": lambda root: (root / "a/b/new").write_text(""),
    "a file less": lambda root: (root / "top.txt").unlink(),
    "a name": lambda root: (root / "top.txt").rename(root / "other.txt"),
    "a place": lambda root: (root / "top.txt").rename(root / "a/top.txt"),
    "an empty folder": lambda root: (root / "a/c").mkdir(),
    "permissions": lambda root: (root / "top.txt").chmod(0o755),
    "a folder's permissions": lambda root: (root / "a/b").chmod(0o700),
    "where a link leads": lambda root: ((root / "a/link").unlink(), (root / "a/link").symlink_to("two.txt")),
    "a link for a file": lambda root: ((root / "top.txt").unlink(), (root / "top.txt").symlink_to("a")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("known", [False, True], ids=["read anew", "known"])
def test_whatever_an_operation_could_see_changes_the_digest(tree, change, known):
    index = Index()
    before = digest(tree, index)

    change(tree)

    assert before != digest(tree, index if known else Index())
    assert digest(tree, index) == digest(tree)


def test_the_same_is_the_same_whatever_the_times_say(tree):
    before = digest(tree)

    for path in tree.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)

    assert before == digest(tree)


def test_what_is_hidden_is_no_part_of_it_and_is_not_read(tree, monkeypatch):
    before = digest(tree)
    opened = reads(monkeypatch)

    (tree / ".env").write_text("SECRET=2")
    (tree / "a" / "id_rsa").write_text("private")

    assert before == digest(tree)
    assert not {".env", "id_rsa"} & set(opened)


def test_what_is_hidden_and_named_by_a_grant_is_a_part_of_it(tree):
    named = frozenset({str(tree / ".env")})
    before = digest(tree, named=named)
    assert before != digest(tree)

    (tree / ".env").write_text("SECRET=2")

    assert before != digest(tree, named=named)


def test_of_a_git_configuration_only_what_the_sandbox_shows_counts(tree):
    (tree / ".git").mkdir()
    (tree / ".git/config").write_text("[core]\n\tbare = false\n[remote]\n\turl = https://token@host\n")
    before = digest(tree)

    (tree / ".git/config").write_text("[core]\n\tbare = false\n")
    assert before == digest(tree)
    (tree / ".git/config").write_text("[core]\n\tbare = true\n")
    assert before != digest(tree)


def test_an_unchanged_tree_is_not_read_again(tree, monkeypatch):
    index = Index()
    before = digest(tree, index)
    opened = reads(monkeypatch)

    assert before == digest(tree, index)
    assert opened == []


def test_only_what_changed_is_read_again(tree, monkeypatch):
    index = Index()
    digest(tree, index)
    opened = reads(monkeypatch)

    (tree / "a" / "one.txt").write_text("another")
    digest(tree, index)

    assert opened == ["one.txt"]


def test_a_file_that_changed_just_now_is_read_again_though_its_times_are_the_same(tree, monkeypatch):
    """The clock of a file system ticks: two changes in one tick leave the same size and times."""
    index = Index()
    path = tree / "top.txt"
    kept = path.stat()
    now = time.time_ns
    before = digest(tree, index, now_ns=now)

    path.write_text("pot")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    real = os.scandir

    class Stale:
        """The listing of a file system on which the change time did not move either."""

        def __init__(self, entry):
            self.name = entry.name
            self.path = entry.path
            self.is_dir, self.is_file, self.is_symlink = entry.is_dir, entry.is_file, entry.is_symlink
            self._entry = entry

        def stat(self, *, follow_symlinks=True):
            return kept if self.name == "top.txt" else self._entry.stat(follow_symlinks=follow_symlinks)

    class Listing:
        def __init__(self, path):
            self._entries = real(path)

        def __enter__(self):
            return (Stale(entry) for entry in self._entries)

        def __exit__(self, *_):
            self._entries.close()

    monkeypatch.setattr("sage_sandbox.caching.trees.os.scandir", Listing)
    assert before != digest(tree, index, now_ns=now)


def test_the_same_size_and_time_do_not_hide_a_change(tree):
    index = Index()
    path = tree / "top.txt"
    before, kept = digest(tree, index), path.stat()

    path.write_text("pot")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))

    assert (kept.st_size, kept.st_mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert before != digest(tree, index)


def test_another_file_in_its_place_is_seen(tree):
    index = Index()
    before = digest(tree, index)
    (tree / "new").write_text("pot")
    kept = (tree / "top.txt").stat()
    os.utime(tree / "new", ns=(kept.st_atime_ns, kept.st_mtime_ns))

    (tree / "new").replace(tree / "top.txt")

    assert before != digest(tree, index)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_that_and_nothing_else(tree):
    (tree / "top.txt").chmod(0)
    index = Index()

    assert digest(tree, index) == digest(tree, index)


def test_a_single_file_is_digested_by_itself(tree, monkeypatch):
    index = Index()
    before = digest(tree / "top.txt", index)
    (tree / "a" / "one.txt").write_text("another")
    opened = reads(monkeypatch)

    assert before == digest(tree / "top.txt", index)
    assert opened == []
    (tree / "top.txt").write_text("pot")
    assert before != digest(tree / "top.txt", index)


def test_too_much_is_not_digested(tree):
    with pytest.raises(TooLarge):
        digest(tree, entries_max=3)
    with pytest.raises(TooLarge):
        digest(tree, bytes_max=5)


def test_it_can_be_abandoned(tree):
    with pytest.raises(Abandoned):
        digest(tree, abandoned=lambda: True)
    with pytest.raises(Abandoned):
        digest(tree / "top.txt", abandoned=lambda: True)


def test_what_is_not_there_is_an_error_and_what_is_refused_is_refused(tree, monkeypatch):
    with pytest.raises(FileNotFoundError):
        digest(tree / "nothing")
    monkeypatch.setattr(os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError()))
    with pytest.raises(NotGranted):
        digest(tree)


def test_names_of_any_bytes_are_digested_and_kept(tree, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tree) + b"/a\tb\n\xff"))
    odd.mkdir()
    (odd / os.fsdecode(b"\xfe")).write_text("1")
    index = Index()
    before = digest(tree, index)

    with Folder.given(tmp_path) as user:
        index.save(user)
        again = Index.load(user)

    assert again.folders.keys() == index.folders.keys()
    assert before == digest(tree, again)
    (odd / os.fsdecode(b"\xfe")).write_text("2")
    assert before != digest(tree, again)


def test_an_index_is_kept_and_serves_another_process(tree, tmp_path, monkeypatch):
    index = Index()
    before = digest(tree, index)
    with Folder.given(tmp_path) as user:
        index.save(user)
        index.save(user)  # nothing changed since
        again = Index.load(user)
    opened = reads(monkeypatch)

    assert before == digest(tree, again)
    assert opened == []


@pytest.mark.parametrize("spoiled", [b"", b"something else\n", b"sage-sandbox cache index 1\nx\n", b"\xff" * 40])
def test_an_index_that_cannot_be_read_is_an_empty_one(tmp_path, spoiled):
    (tmp_path / FILE).write_bytes(spoiled)
    (tmp_path / FILE).chmod(0o600)

    with Folder.given(tmp_path) as user:
        assert Index.load(user).folders == {}


def test_an_index_that_is_too_large_keeps_what_was_used(tree, tmp_path, monkeypatch):
    index = Index()
    digest(tree, index)
    with Folder.given(tmp_path) as user:
        index.save(user)
        later = Index.load(user)
        (tree / "a" / "one.txt").write_text("another")
        digest(tree / "a", later)
        monkeypatch.setattr("sage_sandbox.caching.index.SIZE_MAX", 1500)
        later.save(user)
        monkeypatch.undo()

        assert {str(tree / "a"), str(tree / "a/b")} == Index.load(user).folders.keys()
