from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from sage_sandbox.errors import UsageError
from sage_sandbox.grants.places import Places
from sage_sandbox.grants.resolving import (
    Allowed,
    demands,
    protected_names,
    resolve,
    resolve_allowed,
    resolve_path,
)
from sage_sandbox.policy import Grant, parse_grant


def _allow(places: Places, *texts: str) -> Allowed:
    return resolve_allowed([parse_grant(text) for text in texts], places)


def _refusal(places: Places, *texts: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        _allow(places, *texts)
    return caught.value


class TestPaths:
    @pytest.mark.parametrize(
        ("expected", "text"),
        [("", "."), ("src", "src"), ("src", "src/"), ("src", "./src/../src"), ("src/a.py", "src/a.py"), ("~", "~")],
    )
    def test_a_relative_path_lies_beneath_the_project(self, project: Path, expected: str, text: str) -> None:
        assert str(project / expected) == resolve_path(text, str(project))

    def test_an_absolute_path_may_lie_anywhere(self, project: Path, home: Path) -> None:
        assert str(home / "plans") == resolve_path(f"{home}/plans/", str(project))

    def test_a_link_inside_the_project_means_its_target(self, project: Path) -> None:
        (project / "link").symlink_to("src")

        assert str(project / "src") == resolve_path("link", str(project))

    def test_a_link_that_leaves_the_project_is_refused_with_its_target(self, project: Path, home: Path) -> None:
        (project / "link").symlink_to(home / "plans")

        with pytest.raises(UsageError, match=rf"leads out of the project, to {home}/plans$") as caught:
            resolve_path("link/data/..", str(project))

        assert f"if that is meant, write {home}/plans" == caught.value.hint

    def test_dots_that_leave_the_project_are_refused(self, project: Path, home: Path) -> None:
        with pytest.raises(UsageError, match="leads out of the project"):
            resolve_path("../user", str(project))

    def test_a_sibling_that_starts_with_the_projects_name_is_outside(self, project: Path) -> None:
        Path(f"{project}-2").mkdir()

        with pytest.raises(UsageError, match="leads out of the project"):
            resolve_path("../project-2", str(project))

    def test_what_does_not_exist_is_said_with_a_hint(self, project: Path) -> None:
        with pytest.raises(UsageError, match=f"no such file or folder in {project}") as caught:
            resolve_path("nothing", str(project))

        assert "it must exist before the run" in caught.value.hint

    def test_an_absolute_path_that_does_not_exist_is_said(self, project: Path) -> None:
        with pytest.raises(UsageError, match=r"^no such file or folder$"):
            resolve_path("/nowhere/at/all", str(project))

    def test_a_tilde_is_a_name_like_any_other_in_a_template(self, project: Path) -> None:
        with pytest.raises(UsageError) as caught:
            resolve_path("~/.ssh", str(project))

        assert caught.value.hint == "~ stands for home after --allow only"

    @pytest.mark.parametrize("text", ["", "a\0b", "\ud800"])
    def test_what_no_file_can_be_called_is_not_a_path(self, project: Path, text: str) -> None:
        with pytest.raises(UsageError, match="not a path"):
            resolve_path(text, str(project))

    @pytest.mark.parametrize(
        ("expected", "text"), [("not a directory", "Makefile/x"), ("file name too long", "x" * 300)]
    )
    def test_other_reasons_are_named(self, project: Path, expected: str, text: str) -> None:
        with pytest.raises(UsageError, match=expected):
            resolve_path(text, str(project))

    def test_a_loop_of_links_is_named(self, project: Path) -> None:
        (project / "loop").symlink_to("loop")

        with pytest.raises(UsageError, match="symbolic links"):
            resolve_path("loop", str(project))

    def test_a_fifo_or_socket_is_neither_file_nor_folder(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        os.mkfifo(project / "fifo")
        monkeypatch.chdir(project)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")

        for name in ("fifo", "socket"):
            with pytest.raises(UsageError, match="neither a file nor a folder"):
                resolve_path(name, str(project))


class TestReading:
    @pytest.mark.parametrize("path", ["/", "/proc", "/proc/self", "/sys", "/dev", "/run"])
    def test_parts_of_the_host_that_no_sandbox_shows_are_refused_even_when_forced(
        self, places: Places, path: str
    ) -> None:
        assert "a part of the host that no sandbox shows" in str(_refusal(places, f"read!:{path}"))

    def test_system_folders_may_be_read(self, places: Places) -> None:
        assert (Grant("read", "/etc"),) == _allow(places, "read:/etc").grants

    @pytest.mark.parametrize("name", [".", ".ssh", ".netrc", ".config/sage-sandbox", ".."])
    def test_home_and_its_dot_folders_take_an_exclamation_mark(self, places: Places, home: Path, name: str) -> None:
        path = str((home / name).resolve())

        assert f"if that is meant, use --allow read!:{path}" == _refusal(places, f"read:{path}").hint
        assert (Grant("read", path, forced=True),) == _allow(places, f"read!:{path}").grants

    def test_other_folders_of_home_do_not(self, places: Places, home: Path) -> None:
        assert (Grant("read", f"{home}/plans"),) == _allow(places, f"read:{home}/plans").grants

    def test_our_own_files_take_an_exclamation_mark_wherever_they_lie(self, places: Places, tmp_path: Path) -> None:
        assert "holds" in str(_refusal(places, f"read:{tmp_path.resolve()}/conf"))
        assert "keeps its own files" in str(_refusal(places, f"read:{places.private[0].path}"))

    def test_a_project_that_is_home_takes_an_exclamation_mark(self, places: Places, home: Path) -> None:
        at_home = replace(places, project=str(home))

        assert "if that is meant, use --allow read!:." == _refusal(at_home, "read:.").hint
        assert (Grant("read", str(home), forced=True),) == _allow(at_home, "read!:.").grants

    def test_a_hidden_file_may_be_named(self, places: Places, project: Path) -> None:
        assert (Grant("read", str(project / ".env")),) == _allow(places, "read:.env").grants

    def test_a_tilde_that_the_user_typed_is_home(self, places: Places, home: Path) -> None:
        assert (Grant("read", f"{home}/plans"),) == _allow(places, "read:~/plans").grants
        assert (Grant("read", str(home), forced=True),) == _allow(places, "read!:~").grants

    def test_a_tilde_without_a_home_is_said(self, places: Places) -> None:
        assert "no home folder is known" in str(_refusal(replace(places, homes=()), "read:~/plans"))


class TestWriting:
    @pytest.mark.parametrize("kind", ["write", "write-through"])
    @pytest.mark.parametrize("path", ["/", "/etc", "/etc/ssl", "/usr/share", "/dev", "/proc", "/sys", "/run", "/boot"])
    def test_system_folders_are_never_granted(self, project: Path, kind: str, path: str) -> None:
        from sage_sandbox.grants.places import find_places

        if not Path(path).exists():
            pytest.skip(f"there is no {path} here")
        real = find_places(project, {})

        assert "never granted for writing" in str(_refusal(real, f"{kind}:{path}"))

    @pytest.mark.parametrize("kind", ["write", "write-through"])
    @pytest.mark.parametrize("name", [".", "..", ".ssh", ".config"])
    def test_home_its_ancestors_and_its_dot_folders_are_never_granted(
        self, places: Places, home: Path, kind: str, name: str
    ) -> None:
        assert "never granted for writing" in str(_refusal(places, f"{kind}:{(home / name).resolve()}"))

    def test_a_folder_in_home_may_be_granted(self, places: Places, home: Path) -> None:
        assert (Grant("write", f"{home}/plans"),) == _allow(places, f"write:{home}/plans").grants

    def test_a_folder_that_programs_come_from_is_never_granted(self, places: Places, tmp_path: Path) -> None:
        tools = tmp_path.resolve() / "tools"
        (tools / "bin/sub").mkdir()

        assert f"{tools}/bin is a folder on PATH: never granted for writing" in str(
            _refusal(places, f"write:{tools}/bin")
        )
        assert f"{tools}/bin/sub lies in {tools}/bin, a folder on PATH" in str(
            _refusal(places, f"write:{tools}/bin/sub")
        )
        assert f"{tools} holds {tools}/bin, a folder on PATH" in str(_refusal(places, f"write:{tools}"))

    def test_a_path_that_must_not_be_written_may_be_read(self, places: Places, tmp_path: Path) -> None:
        assert _allow(places, f"read:{tmp_path.resolve()}/tools/bin").grants

    def test_the_project_itself_may_be_granted(self, places: Places, project: Path) -> None:
        assert (Grant("write", str(project)),) == _allow(places, "write:.").grants

    @pytest.mark.parametrize(
        ("name", "path"),
        [
            (".git", ".git"),
            (".git", ".git/hooks"),
            (".github/workflows", ".github/workflows"),
            ("conftest.py", "conftest.py"),
        ],
    )
    @pytest.mark.parametrize("kind", ["write", "write-through"])
    def test_a_protected_name_takes_a_grant_of_that_name(self, places: Places, kind: str, name: str, path: str) -> None:
        assert f"if that is meant, use --allow write!:{name}" == _refusal(places, f"{kind}:{path}").hint
        assert (name,) == _allow(places, f"{kind}:{path}", f"write!:{name}").unprotected

    def test_a_link_to_a_protected_name_is_one(self, places: Places, project: Path) -> None:
        (project / "harmless").symlink_to(".git/hooks")

        assert ".git is a protected name" in str(_refusal(places, "write:harmless"))

    def test_a_project_beneath_a_protected_name_is_where_the_user_put_it(self, places: Places, tmp_path: Path) -> None:
        below = tmp_path.resolve() / ".claude/worktrees/one"
        (below / "src").mkdir(parents=True)

        assert _allow(replace(places, project=str(below)), "write:src").grants
        assert ".claude is a protected name" in str(_refusal(places, f"write:{below}"))


class TestLiftingNames:
    def test_a_name_is_lifted_and_what_bears_it_may_be_written(self, places: Places, project: Path) -> None:
        allowed = _allow(places, "write!:.github/workflows")

        assert (".github/workflows",) == allowed.unprotected
        assert (Grant("write", str(project / ".github/workflows"), forced=True),) == allowed.grants

    def test_a_name_that_nothing_bears_yet_is_lifted(self, places: Places) -> None:
        assert Allowed((), ("mise.toml",)) == _allow(places, "write!:mise.toml")

    def test_names_are_compared_folded(self, places: Places) -> None:
        assert _allow(places, "write!:CONFTEST.py").spares("Conftest.py")

    def test_a_trailing_slash_means_nothing(self, places: Places) -> None:
        assert (".git",) == _allow(places, "write!:.git/").unprotected

    @pytest.mark.parametrize(
        ("hint", "text"),
        [
            ("write --allow write:src", "write!:src"),
            ("write --allow write!:.git", "write!:.git/hooks"),
            ("write --allow write:src/conftest.py --allow write!:conftest.py", "write!:src/conftest.py"),
            ("write --allow write!:*.pth", "write!:*.pth"),
        ],
    )
    def test_what_is_not_one_protected_name_is_refused_with_a_way_out(
        self, places: Places, hint: str, text: str
    ) -> None:
        refusal = _refusal(places, text)

        assert "takes one protected name" in str(refusal)
        assert hint == refusal.hint


class TestOtherKinds:
    def test_a_host_is_written_in_one_way(self, places: Places) -> None:
        assert (Grant("net", "api.example.org:443"),) == _allow(places, "net:API.Example.org.:443").grants
        refusal = _refusal(places, "net:example.org")
        assert ("--allow net:example.org: the port is missing", "write net:example.org:443") == (
            str(refusal),
            refusal.hint,
        )

    @pytest.mark.parametrize("name", ["time/now", "sage-research/*", "a.b_c/tool.name"])
    def test_tools_are_named_with_their_server(self, places: Places, name: str) -> None:
        assert (Grant("tool", name),) == _allow(places, f"tool:{name}").grants

    @pytest.mark.parametrize(
        "name", ["*", "*/*", "time", "time/", "/now", "t?me/now", "time/n*", "time/[a-z]", "a b/c", "a/b/c"]
    )
    def test_a_server_is_never_a_pattern(self, places: Places, name: str) -> None:
        with pytest.raises(UsageError, match=r"takes SERVER/TOOL or SERVER/\*"):
            parse_grant(f"tool:{name}")
        with pytest.raises(UsageError, match=r"neither server/tool nor server/\*"):
            resolve(Grant("tool", name), places)

    def test_environment_names_are_checked(self, places: Places) -> None:
        assert (Grant("env", "CI"),) == _allow(places, "env:CI").grants
        assert "--allow env:LD_PRELOAD: " in str(_refusal(places, "env:LD_PRELOAD"))

    def test_loopback_is_itself(self, places: Places) -> None:
        assert Grant("loopback") == resolve(Grant("loopback"), places)
        assert demands(Grant("loopback"), "", places) == ()

    def test_the_same_grant_twice_is_one(self, places: Places) -> None:
        assert len(_allow(places, "read:src", "read:./src", "loopback", "loopback").grants) == 2


def test_protected_names_are_found_at_any_depth(project: Path) -> None:
    path = str(project / "a/.Git/x/.github/WORKFLOWS/conftest.py")

    assert (".Git", "conftest.py", ".github/WORKFLOWS") == protected_names(path, str(project))
    assert protected_names(str(project), str(project)) == ()
