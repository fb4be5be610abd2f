"""What `init` would do is known before it writes, and it writes each file whole or not at all."""

from __future__ import annotations

import os

import pytest

from sage_sandbox.disk.files import LINK, NOT_REGULAR, Folder, Untrusted
from sage_sandbox.errors import SageError
from sage_sandbox.projectfiles.changes import Change, look, write
from sage_sandbox.projectfiles.wanted import Wanted, wanted

OURS = Wanted("a/b/file", lambda _: b"ours\n")
LINKS = (
    ".sage",
    ".sage/templates",
    ".sage/README.md",
    ".gitignore",
    ".mcp.json",
    ".claude",
    ".claude/commands",
    ".agents",
)


@pytest.mark.parametrize(
    ("before", "standing"), [(None, "new"), (b"ours\n", "same"), (b"theirs\n", "changed"), (b"", "changed")]
)
def test_a_file_is_new_or_the_same_or_changed(tmp_path, before, standing):
    if before is not None:
        (tmp_path / "a/b").mkdir(parents=True)
        (tmp_path / "a/b/file").write_bytes(before)
    (change,) = look(tmp_path, (OURS,))

    assert (standing, before, b"ours\n") == (change.standing, change.before, change.after)


def test_looking_writes_nothing(tmp_path):
    look(tmp_path, wanted())

    assert [] == list(tmp_path.iterdir())


def test_what_was_written_is_the_same_from_then_on(tmp_path):
    write(tmp_path, look(tmp_path, wanted()))

    assert {"same"} == {change.standing for change in look(tmp_path, wanted())}


def test_what_the_user_made_of_it_is_kept(tmp_path):
    write(tmp_path, look(tmp_path, wanted()))
    mine = (".sage/README.md", ".sage/config.toml", ".sage/templates/hello.yaml")
    for path in mine:
        (tmp_path / path).write_text("# mine\n")
    (tmp_path / ".mcp.json").write_text('{"mcpServers": {"sage-sandbox": {"command": "mine"}}}')
    standings = {change.path: change.standing for change in look(tmp_path, wanted())}

    assert {*mine, ".mcp.json"} == {path for path, standing in standings.items() if standing == "kept"}
    assert "changed" not in standings.values()


def test_what_is_ours_is_brought_up_to_date(tmp_path):
    write(tmp_path, look(tmp_path, wanted()))
    ours = (".sage/schema/template.json", ".claude/commands/sage.workflow.md", ".agents/skills/sage-workflow/SKILL.md")
    for path in ours:
        (tmp_path / path).write_text("of an earlier version\n")

    assert set(ours) == {change.path for change in look(tmp_path, wanted()) if change.standing == "changed"}


@pytest.mark.parametrize("planted", LINKS)
def test_a_link_is_refused_by_name_and_nothing_is_written(tmp_path, planted):
    project, outside = tmp_path / "project", tmp_path / "outside"
    outside.mkdir()
    (project / planted).parent.mkdir(parents=True)
    (project / planted).symlink_to(outside)
    with pytest.raises(Untrusted) as caught:
        look(project, wanted())

    assert (str(project / planted), LINK) == (caught.value.path, caught.value.reason)
    assert [] == list(outside.iterdir())


def test_a_link_that_is_planted_meanwhile_is_not_followed(tmp_path):
    project, outside = tmp_path / "project", tmp_path / "outside"
    project.mkdir()
    outside.mkdir()
    changes = look(project, wanted())
    (project / ".sage").symlink_to(outside)
    with pytest.raises(Untrusted):
        write(project, changes)

    assert [] == list(outside.iterdir())


def test_a_pipe_in_a_files_place_is_refused(tmp_path):
    os.mkfifo(tmp_path / ".mcp.json")
    with pytest.raises(Untrusted) as caught:
        look(tmp_path, wanted())

    assert caught.value.reason == NOT_REGULAR


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path):
    (tmp_path / ".gitignore").write_text("a\n")
    changes = [change for change in look(tmp_path, wanted()) if change.path == ".gitignore"]
    (tmp_path / ".gitignore").write_text("b\n")
    with pytest.raises(SageError, match=r"\.gitignore has changed meanwhile"):
        write(tmp_path, changes)

    assert (tmp_path / ".gitignore").read_text() == "b\n"


def test_a_write_that_fails_leaves_what_was_there_and_no_temporary_file(tmp_path, monkeypatch):
    (tmp_path / ".gitignore").write_text("a\n")
    changes = [change for change in look(tmp_path, wanted()) if change.path == ".gitignore"]

    def fail(*_):
        raise OSError(28, "no space")

    monkeypatch.setattr(Folder, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, changes)

    assert {".gitignore": "a\n"} == {path.name: path.read_text() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / ".gitignore"
    path.write_text("a\n")
    path.chmod(mode)
    write(tmp_path, look(tmp_path, wanted()))

    assert mode == path.stat().st_mode & 0o7777


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_new_file_has_the_mode_that_any_program_would_give_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write(tmp_path, look(tmp_path, wanted()))
        assert umask == os.umask(umask)
    finally:
        os.umask(before)

    assert mode == (tmp_path / ".mcp.json").stat().st_mode & 0o7777


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0o077, 0o700)])
def test_a_new_folder_is_made_as_any_program_would_make_it_and_ours_for_its_user_alone(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write(tmp_path, look(tmp_path, wanted()))
    finally:
        os.umask(before)
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    modes = {(path.relative_to(tmp_path).parts[0], path.stat().st_mode & 0o7777) for path in folders}

    assert {(".sage", 0o700), (".claude", mode), (".agents", mode)} == modes


def test_a_diff_shows_what_goes_and_what_comes():
    change = Change("f", b"one\ntwo", b"one\nthree\n")

    assert [
        "--- a/f", "+++ b/f", "@@ -1,2 +1,2 @@", " one", "-two (no line feed at the end)", "+three"
    ] == list(change.diff())  # fmt: skip


def test_a_diff_of_bytes_that_are_no_text_spells_them():
    assert r"-\xff" in list(Change("f", b"\xff\n", b"").diff())
