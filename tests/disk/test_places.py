"""Where the user's things are, and that a project keeps its id."""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from sage_sandbox.disk import places
from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.locking import acquire, is_held
from sage_sandbox.disk.places import open_runtime, project_place, runtime_folders, user_config, user_state
from sage_sandbox.errors import Locked, SageError, StateCorrupted, StateUnwritable, UsageError

FIND = """
import sys
from pathlib import Path
from sage_sandbox.disk.places import project_place
print("ready", flush=True)
sys.stdin.readline()
print(project_place(Path(sys.argv[1])).id)
"""


@pytest.fixture
def project(tmp_path):
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture
def state(own_home):
    return own_home / ".local/state/sage-sandbox"


@pytest.fixture
def id_file(project):
    place = project_place(project)
    place.folder.close()
    return Path(place.folder.path, "project")


class TestTheUser:
    @pytest.mark.parametrize(
        ("find", "variable", "below"),
        [(user_config, "XDG_CONFIG_HOME", ".config"), (user_state, "XDG_STATE_HOME", ".local/state")],
    )
    class TestFolders:
        def test_the_variable_says_where(self, find, variable, below):
            assert Path("/x/sage-sandbox") == find({variable: "/x", "HOME": "/h"})

        @pytest.mark.parametrize("value", ["", "relative"])
        def test_else_home_does(self, find, variable, below, value):
            assert Path("/h", below, "sage-sandbox") == find({variable: value, "HOME": "/h"})

        @pytest.mark.parametrize("home", [{}, {"HOME": ""}, {"HOME": "relative"}])
        def test_else_the_password_database(self, find, variable, below, home, monkeypatch):
            entry = pwd.struct_passwd(("me", "x", 1, 1, "", "/home/me", "/bin/sh"))
            monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)

            assert Path("/home/me", below, "sage-sandbox") == find(home)

        def test_a_user_without_an_entry_is_told(self, find, variable, below, monkeypatch):
            monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)

            with pytest.raises(UsageError, match=f"set HOME or {variable}"):
                find({})

        def test_the_environment_of_the_process_is_the_default(self, find, variable, below, own_home):
            assert own_home / below / "sage-sandbox" == find()


class TestTheProject:
    def test_it_keeps_its_id(self, project, state):
        first, second = project_place(project), project_place(project, make=False)

        digest = hashlib.sha256(os.fsencode(project.resolve())).hexdigest()[:32]
        assert first.id == second.id  # type: ignore[union-attr]
        assert first.real == str(project.resolve())
        assert first.folder.path == str(state / "projects" / digest)
        assert Path(first.folder.path, "project").read_text() == f"{first.id}\n"
        first.folder.close()
        second.folder.close()  # type: ignore[union-attr]

    def test_a_link_to_it_is_the_same_project(self, project, id_file, tmp_path):
        (tmp_path / "link").symlink_to(project)

        place = project_place(tmp_path / "link")

        assert f"{place.id}\n" == id_file.read_text()
        place.folder.close()

    def test_another_project_has_another_id(self, project, id_file, tmp_path):
        place = project_place(tmp_path)

        assert f"{place.id}\n" != id_file.read_text()
        place.folder.close()

    def test_the_id_says_nothing_of_the_path(self, id_file, project):
        before = id_file.read_text()
        id_file.unlink()
        project_place(project).folder.close()

        assert before != id_file.read_text()

    def test_another_user_folder_may_be_named(self, project, tmp_path):
        place = project_place(project, {"XDG_STATE_HOME": str(tmp_path / "s")})

        assert place.folder.path.startswith(str(tmp_path / "s/sage-sandbox/projects/"))
        place.folder.close()

    def test_all_of_it_is_the_users_alone(self, id_file, own_home):
        made = [path for path in own_home.rglob("*") if path.is_dir()]

        assert {0o700} == {path.stat().st_mode & 0o777 for path in made}
        assert 5 == len(made)
        assert {0o600} == {path.stat().st_mode & 0o777 for path in id_file.parent.iterdir()}

    def test_nothing_is_made_unasked(self, project, own_home):
        assert project_place(project, make=False) is None
        assert [] == list(own_home.iterdir())

    def test_an_id_that_is_missing_is_not_made_unasked(self, project, id_file):
        id_file.unlink()

        assert project_place(project, make=False) is None
        assert not id_file.exists()

    def test_a_new_id_is_durable_before_it_is_used(self, project, synced, monkeypatch):
        rename = os.rename
        monkeypatch.setattr(os, "rename", lambda *a, **k: synced.append("rename") or rename(*a, **k))

        place = project_place(project)
        place.folder.close()

        assert synced[-3].startswith(f"{place.folder.path}/project.")
        assert synced[-2:] == ["rename", place.folder.path]

    def test_what_a_killed_process_left_is_swept(self, project, id_file):
        id_file.rename(id_file.with_name("project.0badf00d.tmp"))

        project_place(project).folder.close()

        assert {"project", "project.lock"} == {path.name for path in id_file.parent.iterdir()}

    def test_the_quicker_process_names_it(self, project, monkeypatch):
        def come_second(folder, name, **how):
            folder.write_new("project", b"ab" * 16 + b"\n")
            return acquire(folder, name, **how)

        monkeypatch.setattr(places, "acquire", come_second)
        place = project_place(project)

        assert "ab" * 16 == place.id
        assert not is_held(place.folder, "project.lock")
        place.folder.close()

    def test_processes_that_come_at_once_agree(self, project):
        command = [sys.executable, "-c", FIND, str(project)]
        racing = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
        for process in racing:
            assert process.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        for process in racing:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]

        ids = {process.communicate()[0] for process in racing}

        place = project_place(project, make=False)
        assert {f"{place.id}\n"} == ids  # type: ignore[union-attr]
        place.folder.close()  # type: ignore[union-attr]

    def test_a_maker_that_hangs_is_said(self, project, id_file, monkeypatch):
        id_file.unlink()
        monkeypatch.setattr(places, "_LOCK_WAIT_S", 0)

        with (
            Folder.open(id_file.parent) as folder,
            acquire(folder, "project.lock", wait_s=0),
            pytest.raises(Locked),
        ):
            project_place(project)


class TestDamage:
    @pytest.mark.parametrize("make", [True, False])
    @pytest.mark.parametrize("content", ["", "\n", "ab" * 16, "AB" * 16 + "\n", "ab" * 15 + "\n", "ab" * 16 + "\n\n"])
    def test_what_is_no_id_is_named_and_kept(self, project, id_file, content, make):
        id_file.write_text(content)

        with pytest.raises(StateCorrupted, match=f"{id_file} is damaged") as caught:
            project_place(project, make=make)

        assert caught.value.path == str(id_file)
        assert "state rekey" in caught.value.hint
        assert content == id_file.read_text()

    def test_a_file_of_another_kind_is_refused(self, project, id_file):
        id_file.unlink()
        id_file.symlink_to("project.lock")

        with pytest.raises(Untrusted, match="is a symbolic link"):
            project_place(project)

    def test_a_folder_that_others_may_write_is_refused(self, project, id_file, state):
        state.chmod(0o770)

        with pytest.raises(Untrusted, match="others may write to it"):
            project_place(project)

    def test_a_home_that_is_no_folder_is_said(self, project):
        with pytest.raises(StateUnwritable, match=r"state cannot be written: /dev/null/.*: not a directory"):
            project_place(project, {"HOME": "/dev/null"})

        assert project_place(project, {"HOME": "/dev/null"}, make=False) is None

    def test_a_home_that_we_may_not_look_into_is_said(self, project, id_file, monkeypatch):
        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)

        with pytest.raises(StateUnwritable, match="permission denied"):
            project_place(project)
        with pytest.raises(PermissionError):
            project_place(project, make=False)


class TestWhileItRuns:
    @pytest.fixture(autouse=True)
    def _own_system(self, tmp_path, monkeypatch):
        for name, place in (("RUN_USER", "run"), ("TEMPORARY", "tmp")):
            (tmp_path / place).mkdir()
            monkeypatch.setattr(places, name, tmp_path / place)

    @pytest.fixture
    def by_system(self, tmp_path):
        path = tmp_path / "run" / str(os.geteuid())
        path.mkdir(mode=0o700)
        return path

    @pytest.fixture
    def by_session(self, tmp_path):
        path = tmp_path / "session"
        path.mkdir(mode=0o700)
        return path

    @pytest.fixture
    def temporary(self, tmp_path):
        return tmp_path / f"tmp/sage-sandbox-{os.geteuid()}"

    def test_what_does_not_hang_on_the_environment_comes_first(self, by_system, by_session, temporary):
        found = runtime_folders({"XDG_RUNTIME_DIR": str(by_session)})

        assert (by_system / "sage-sandbox", by_session / "sage-sandbox", temporary) == found

    def test_one_place_is_named_once(self, by_system, temporary):
        assert (by_system / "sage-sandbox", temporary) == runtime_folders({"XDG_RUNTIME_DIR": str(by_system)})

    @pytest.mark.parametrize("value", ["", "relative"])
    def test_a_place_that_is_not_absolute_is_ignored(self, temporary, value):
        assert (temporary,) == runtime_folders({"XDG_RUNTIME_DIR": value})

    def test_another_users_is_not_ours(self, by_system, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        by_system.rename(by_system.with_name(str(os.getuid() + 1)))

        assert by_system.parent not in [path.parents[1] for path in runtime_folders({})]

    def test_the_environment_of_the_process_is_the_default(self, by_session, temporary, monkeypatch):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(by_session))

        assert (by_session / "sage-sandbox", temporary) == runtime_folders()

    def test_the_first_is_made_for_the_user_alone(self, by_system, temporary):
        for _ in range(2):
            with open_runtime({}) as opened:
                assert opened.path == str(by_system / "sage-sandbox")

        assert (by_system / "sage-sandbox").stat().st_mode & 0o777 == 0o700
        assert not temporary.exists()

    @pytest.mark.parametrize("reason", ["link", "file", "open to others", "gone", "swappable"])
    def test_one_that_is_not_safe_is_passed_over(self, by_session, temporary, tmp_path, reason):
        own = by_session / "sage-sandbox"
        if reason == "link":
            own.symlink_to(tmp_path)
        elif reason == "file":
            own.touch()
        elif reason == "open to others":
            own.mkdir(mode=0o755)
        elif reason == "gone":
            by_session.rmdir()
        else:
            by_session.chmod(0o777)

        with open_runtime({"XDG_RUNTIME_DIR": str(by_session)}) as opened:
            assert opened.path == str(temporary)

    def test_a_shared_folder_will_do_where_nobody_can_swap_names(self, temporary):
        temporary.parent.chmod(0o1777)

        with open_runtime({}) as opened:
            assert opened.path == str(temporary)

    def test_where_none_is_safe_it_is_said(self, temporary):
        temporary.parent.chmod(0o777)

        with pytest.raises(SageError, match=f"tried {temporary}") as caught:
            open_runtime({})

        assert caught.value.hint == "set XDG_RUNTIME_DIR to one"

    def test_a_folder_of_a_stranger_is_not_safe(self, temporary, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
        if os.getuid() == 0:
            os.chown(temporary.parent, 12345, 12345)

        with pytest.raises(SageError, match="no folder of this user's own"):
            open_runtime({})
