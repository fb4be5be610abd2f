from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from sage_sandbox.disk.files import Folder
from sage_sandbox.errors import NotGranted
from sage_sandbox.grants import remembered
from sage_sandbox.grants.memory import DIGESTS_KEPT, Change, Memory
from sage_sandbox.policy import Grant, Policy
from sage_sandbox.workflow.definition import Workflow

Make = Callable[..., Workflow]
SRC = Grant("read", "/p/src")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "somebody/.config/sage-sandbox"


@pytest.fixture
def memory(folder: Path) -> Memory:
    return Memory(folder)


@pytest.fixture
def stored(memory: Memory, project: Path, make_workflow: Make, folder: Path) -> Path:
    memory.remember(make_workflow(Policy(read=("src",))), project, [SRC])
    return folder / "grants.json"


class TestRemembering:
    def test_what_was_allowed_is_recalled(self, memory: Memory, project: Path, make_workflow: Make) -> None:
        workflow = make_workflow(Policy(read=("src",)))
        grants = (
            SRC,
            Grant("write-through", "/p/a b"),
            Grant("loopback"),
            Grant("env", "CI"),
            Grant("net", "example.org:443"),
        )

        memory.remember(workflow, project, grants)

        assert grants == memory.recall(workflow, project)
        assert grants == Memory(memory.folder).recall(workflow, project)

    def test_nothing_is_known_at_first(self, memory: Memory, folder: Path, project: Path, make_workflow: Make) -> None:
        assert memory.recall(make_workflow(), project) == ()
        assert memory.what_changed(make_workflow(), project) is None
        assert not folder.exists()

    def test_another_digest_recalls_nothing(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        assert memory.recall(make_workflow(digest="d2"), project) == ()

    def test_another_project_recalls_nothing(
        self, memory: Memory, stored: Path, home: Path, make_workflow: Make
    ) -> None:
        assert memory.recall(make_workflow(digest="d1"), home) == ()

    def test_a_link_to_the_project_is_the_project(
        self, memory: Memory, stored: Path, tmp_path: Path, project: Path, make_workflow: Make
    ) -> None:
        (tmp_path / "link").symlink_to(project)

        assert (SRC,) == memory.recall(make_workflow(digest="d1"), tmp_path / "link")

    def test_the_same_bytes_in_another_place_are_the_same_template(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        assert (SRC,) == memory.recall(make_workflow(digest="d1", source="/elsewhere.yaml"), project)

    def test_answers_add_up(self, memory: Memory, stored: Path, project: Path, make_workflow: Make) -> None:
        memory.remember(make_workflow(digest="d1"), project, [Grant("loopback"), SRC])

        assert (SRC, Grant("loopback")) == memory.recall(make_workflow(digest="d1"), project)

    def test_forced_grants_are_for_one_run(self, memory: Memory, project: Path, make_workflow: Make) -> None:
        memory.remember(
            make_workflow(), project, [Grant("read", "/h", forced=True), Grant("write", ".git", forced=True), SRC]
        )

        assert (SRC,) == memory.recall(make_workflow(), project)

    def test_what_has_no_digest_is_neither_remembered_nor_recalled(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        nameless = make_workflow(digest="")

        assert memory.forgets(nameless) == "the workflow does not come from a template file"
        assert memory.recall(nameless, project) == ()
        assert memory.what_changed(nameless, project) is None
        with pytest.raises(OSError, match="does not come from a template file"):
            memory.remember(nameless, project, [SRC])

    def test_a_workflow_without_a_path_is_known_by_its_digest(self, memory: Memory, project: Path) -> None:
        workflow = Workflow("w", (), digest="d")

        memory.remember(workflow, project, [SRC])

        assert (SRC,) == memory.recall(workflow, project)
        assert memory.what_changed(Workflow("w", (), digest="e"), project) is None

    def test_the_oldest_versions_of_a_template_are_forgotten(
        self, memory: Memory, project: Path, make_workflow: Make
    ) -> None:
        for number in range(DIGESTS_KEPT + 2):
            memory.remember(make_workflow(digest=f"v{number}"), project, [SRC])
        memory.remember(make_workflow(digest="other", source="/other.yaml"), project, [SRC])

        known = [bool(memory.recall(make_workflow(digest=f"v{number}"), project)) for number in range(DIGESTS_KEPT + 2)]

        assert [False, False, *([True] * DIGESTS_KEPT)] == known
        assert memory.recall(make_workflow(digest="other"), project)


class TestChanges:
    def test_a_changed_template_says_which_asks_are_new_and_gone(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        now = make_workflow(Policy(write=("docs",)), digest="d2")

        assert Change(new=("write:docs",), gone=("read:src",)) == memory.what_changed(now, project)

    def test_changed_code_with_the_same_asks_is_a_change_too(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        assert Change() == memory.what_changed(make_workflow(Policy(read=("src",)), digest="d2"), project)

    def test_the_latest_known_version_is_compared(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        memory.remember(make_workflow(Policy(loopback=True), digest="d2"), project, [Grant("loopback")])

        assert Change() == memory.what_changed(make_workflow(Policy(loopback=True), digest="d3"), project)

    def test_the_known_version_has_not_changed(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        assert memory.what_changed(make_workflow(digest="d1"), project) is None

    def test_another_template_is_no_change(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        assert memory.what_changed(make_workflow(digest="d2", source="/other.yaml"), project) is None


class TestTheFile:
    def test_it_is_the_users_alone(self, stored: Path) -> None:
        assert stored.stat().st_mode & 0o777 == 0o600
        assert stored.parent.stat().st_mode & 0o777 == 0o700

    def test_it_is_replaced_whole(self, memory: Memory, stored: Path, project: Path, make_workflow: Make) -> None:
        with stored.open() as before:
            memory.remember(make_workflow(digest="d2"), project, [SRC])
            content = json.load(before)

        assert 1 == len(content["records"])
        assert ["grants.json", "grants.lock"] == sorted(path.name for path in stored.parent.iterdir())

    def test_what_a_killed_process_left_is_swept(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        left = stored.with_name("grants.json.0badf00d.tmp")
        left.write_text("half of i")

        memory.remember(make_workflow(digest="d2"), project, [SRC])

        assert (SRC,) == memory.recall(make_workflow(digest="d2"), project)
        assert not left.exists()

    def test_a_failed_write_leaves_the_old_file(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, "input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="input/output"):
            memory.remember(make_workflow(digest="d2"), project, [SRC])

        assert (SRC,) == memory.recall(make_workflow(digest="d1"), project)

    def test_it_does_not_outgrow_what_is_read(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remembered, "SIZE_MAX", stored.stat().st_size + 10)

        with pytest.raises(OSError, match="too much is remembered"):
            memory.remember(make_workflow(digest="d2"), project, [SRC])

    def test_two_that_remember_at_once_lose_nothing(self, memory: Memory, project: Path, make_workflow: Make) -> None:
        def remember(number: int) -> None:
            Memory(memory.folder).remember(
                make_workflow(digest="d", source="/t"), project, [Grant("env", f"N{number}")]
            )

        threads = [threading.Thread(target=remember, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert {f"N{number}" for number in range(8)} == {
            grant.value for grant in memory.recall(make_workflow(digest="d"), project)
        }

    def test_a_lock_that_somebody_holds_is_waited_for_and_then_said(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remembered, "LOCK_WAIT_S", 0.01)
        with FileLock(stored.with_name("grants.lock")), pytest.raises(OSError, match=r"grants\.lock"):
            memory.remember(make_workflow(digest="d2"), project, [SRC])

    def test_a_file_system_without_locks_is_said(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)

        with pytest.raises(OSError, match="has no locks"):
            memory.remember(make_workflow(digest="d2"), project, [SRC])

    def test_nothing_is_added_in_a_folder_that_others_may_write(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        stored.parent.chmod(0o770)

        with pytest.raises(NotGranted, match="others may write to it") as caught:
            memory.remember(make_workflow(digest="d2"), project, [SRC])

        assert caught.value.hint == f"chmod go-w {stored.parent}"


class TestDamage:
    @pytest.mark.parametrize(
        ("reason", "content"),
        [
            ("not JSON", ""),
            ("not JSON", "{"),
            ("not JSON", "\xff"),
            ("not in the format", "[]"),
            ("not in the format", '{"version": 2}'),
            ("should be a list", '{"version": 1}'),
            ("should be a mapping", '{"version": 1, "records": [1]}'),
            ("should be a text", '{"version": 1, "records": [{}]}'),
            ("should be a list", '{"version": 1, "records": [{"project": "", "template": "", "digest": ""}]}'),
        ],
    )
    def test_it_is_said_in_one_line_with_what_to_do(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, reason: str, content: str
    ) -> None:
        stored.write_text(content, encoding="latin-1")

        with pytest.raises(NotGranted, match=f"the remembered grants in {stored} cannot be used: .*{reason}") as caught:
            memory.recall(make_workflow(), project)

        assert caught.value.hint == "mend the file, or remove it and answer again"

    @pytest.mark.parametrize("grant", ["read:src", "read!:/h", "write!:.git", "nonsense", 1])
    def test_a_grant_that_is_never_remembered_is_damage(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, grant: object
    ) -> None:
        content = json.loads(stored.read_text())
        content["records"][0]["grants"] = [grant]
        stored.write_text(json.dumps(content))

        with pytest.raises(NotGranted, match="cannot be used"):
            memory.recall(make_workflow(), project)

    def test_endless_nesting_is_damage(self, memory: Memory, stored: Path, project: Path, make_workflow: Make) -> None:
        stored.write_text("[" * 200_000)

        with pytest.raises(NotGranted, match="cannot be used"):
            memory.recall(make_workflow(), project)

    def test_damage_is_not_overwritten(self, memory: Memory, stored: Path, project: Path, make_workflow: Make) -> None:
        stored.write_text("{")

        with pytest.raises(NotGranted):
            memory.remember(make_workflow(), project, [SRC])
        assert stored.read_text() == "{"

    def test_a_file_that_is_too_large_is_not_read(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remembered, "SIZE_MAX", 10)

        with pytest.raises(NotGranted, match="is larger than 10 bytes"):
            memory.recall(make_workflow(), project)

    @pytest.mark.parametrize(("reason", "mode"), [("others may write to it", 0o620), ("others may write to it", 0o602)])
    def test_a_file_that_others_may_write_is_not_trusted(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, reason: str, mode: int
    ) -> None:
        stored.chmod(mode)

        with pytest.raises(NotGranted, match=reason):
            memory.recall(make_workflow(), project)

    def test_a_folder_that_others_may_write_is_not_trusted(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make
    ) -> None:
        stored.parent.chmod(0o770)

        with pytest.raises(NotGranted, match=f"{stored.parent}: others may write to it"):
            memory.recall(make_workflow(), project)

    def test_a_file_of_another_user_is_not_trusted(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

        with pytest.raises(NotGranted, match="belongs to another user"):
            memory.recall(make_workflow(), project)

    def test_a_link_is_not_followed(self, memory: Memory, stored: Path, project: Path, make_workflow: Make) -> None:
        stored.rename(stored.with_name("elsewhere"))
        stored.symlink_to("elsewhere")

        with pytest.raises(NotGranted, match="is a symbolic link"):
            memory.recall(make_workflow(), project)

    def test_a_fifo_does_not_hang(self, memory: Memory, stored: Path, project: Path, make_workflow: Make) -> None:
        stored.unlink()
        os.mkfifo(stored, 0o600)

        with pytest.raises(NotGranted, match="not a regular file"):
            memory.recall(make_workflow(), project)

    def test_other_reasons_are_named(
        self, memory: Memory, stored: Path, project: Path, make_workflow: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> bytes:
            raise PermissionError(errno.EACCES, "whatever")

        monkeypatch.setattr(Folder, "read", refuse)

        with pytest.raises(NotGranted, match="permission denied"):
            memory.recall(make_workflow(), project)


class TestWhere:
    def test_it_is_in_the_configuration_folder(self, tmp_path: Path) -> None:
        assert Memory.of_user({"XDG_CONFIG_HOME": str(tmp_path), "HOME": "/h"}).folder == tmp_path / "sage-sandbox"

    @pytest.mark.parametrize("base", ["", "relative"])
    def test_else_in_home(self, base: str) -> None:
        assert Memory.of_user({"XDG_CONFIG_HOME": base, "HOME": "/h"}).folder == Path("/h/.config/sage-sandbox")

    def test_without_home_the_password_database_says_where(self, monkeypatch: pytest.MonkeyPatch) -> None:
        entry = pwd.struct_passwd(("me", "x", 1, 1, "", "/home/me", "/bin/sh"))
        monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)

        assert Memory.of_user({}).folder == Path("/home/me/.config/sage-sandbox")

    def test_the_environment_of_the_process_is_the_default(self, own_home: Path) -> None:
        assert Memory.of_user().folder == own_home / ".config/sage-sandbox"

    def test_a_user_without_an_entry_has_no_memory_and_is_told(
        self, project: Path, make_workflow: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)

        memory = Memory.of_user({})

        assert "no home folder is known" in memory.forgets(make_workflow())
        assert memory.recall(make_workflow(), project) == ()
        with pytest.raises(OSError, match="no home folder is known"):
            memory.remember(make_workflow(), project, [SRC])

    def test_a_home_that_is_no_folder_remembers_nothing(self, project: Path, make_workflow: Make) -> None:
        memory = Memory.of_user({"HOME": "/dev/null"})

        assert memory.recall(make_workflow(), project) == ()
        with pytest.raises(NotADirectoryError):
            memory.remember(make_workflow(), project, [SRC])

    def test_a_home_that_we_may_not_look_into_remembers_nothing(
        self, stored: Path, memory: Memory, project: Path, make_workflow: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> int:
            raise PermissionError(errno.EACCES, "permission denied")

        monkeypatch.setattr(os, "open", refuse)

        assert memory.recall(make_workflow(), project) == ()


def test_nothing_heavy_is_loaded_to_recall() -> None:
    heavy = "'filelock', 'psutil', 'pydantic'"
    code = f"import sys, sage_sandbox.grants.approval; print([name for name in ({heavy}) if name in sys.modules])"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.strip() == "[]"
