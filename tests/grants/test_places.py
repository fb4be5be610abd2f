from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from sage_sandbox.disk.places import runtime_folders
from sage_sandbox.grants.places import Place, find_places, in_dot_folder, is_beneath


def _steering(project: Path, **environ: str) -> dict[str, str]:
    return {place.path: place.why for place in find_places(project, environ).steering}


@pytest.mark.parametrize(
    ("expected", "path", "folder"),
    [
        (True, "/a/b", "/a"),
        (True, "/a", "/a"),
        (True, "/a", "/"),
        (True, "/", "/"),
        (False, "/ab", "/a"),
        (False, "/a", "/a/b"),
    ],
)
def test_beneath_compares_whole_names(expected: bool, path: str, folder: str) -> None:
    assert expected is is_beneath(path, folder)


@pytest.mark.parametrize(
    ("expected", "path"),
    [
        (True, "/h/.ssh"),
        (True, "/h/.ssh/id"),
        (True, "/h/.netrc"),
        (False, "/h/plans/.venv"),
        (False, "/h"),
        (False, "/x"),
    ],
)
def test_only_the_hidden_entries_of_home_itself_are_its_dot_folders(expected: bool, path: str) -> None:
    assert expected is in_dot_folder(path, ("/h",))


def test_a_home_that_is_the_root_has_dot_folders_too() -> None:
    assert in_dot_folder("/.cache", ("/",))
    assert not in_dot_folder("/srv", ("/",))


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests has an entry in the password database."""
    found = pwd.struct_passwd(("me", "x", 1, 1, "", "/nowhere/me", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: found)


def test_both_homes_count_when_the_environment_names_another_one(tmp_path: Path, entry: None) -> None:
    assert (str((tmp_path / "h").resolve()), "/nowhere/me") == find_places(
        tmp_path, {"HOME": str(tmp_path / "h")}
    ).homes


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}])
def test_home_comes_from_the_password_database_when_unset(tmp_path: Path, entry: None, environ: dict[str, str]) -> None:
    assert ("/nowhere/me",) == find_places(tmp_path, environ).homes


def test_a_user_without_an_entry_and_without_home_has_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)

    assert find_places(tmp_path, {}).homes == ()


def test_the_environment_of_the_process_is_the_default(own_home: Path, tmp_path: Path) -> None:
    assert str(own_home.resolve()) == find_places(tmp_path).homes[0]


def test_folders_on_path_are_steering_and_relative_ones_are_left_out(tmp_path: Path) -> None:
    found = _steering(tmp_path, PATH=f"{tmp_path}/bin:.:node_modules/.bin::/")

    assert found[str(tmp_path.resolve() / "bin")] == "a folder on PATH"
    assert "/" not in found
    assert str(tmp_path.resolve()) not in found
    assert os.path.realpath("node_modules/.bin") not in found


def test_the_first_reason_for_a_folder_is_kept(tmp_path: Path) -> None:
    assert _steering(tmp_path, PATH="/usr")["/usr"] == "part of the system"


def test_links_on_path_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    assert str(tmp_path.resolve() / "real") in _steering(tmp_path, PATH=str(tmp_path / "link"))


def test_the_python_that_runs_us_is_steering(tmp_path: Path) -> None:
    assert os.path.realpath(sys.prefix) in _steering(tmp_path)
    assert os.path.realpath(sys.base_prefix) in _steering(tmp_path)


def test_folders_on_the_import_path_are_steering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "relative", str(tmp_path / "lib")])

    assert str(tmp_path.resolve() / "lib") in _steering(tmp_path)
    assert str(tmp_path.resolve()) not in _steering(tmp_path)


def test_a_script_in_the_project_does_not_make_the_project_ungrantable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert (str(tmp_path.resolve()) in _steering(tmp_path)) is bool(sys.flags.safe_path)


def test_a_project_that_a_pth_file_put_on_the_import_path_stays_steering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", ["/elsewhere", str(tmp_path)])

    assert str(tmp_path.resolve()) in _steering(tmp_path)


def test_the_import_path_may_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])

    assert os.path.realpath(sys.prefix) in _steering(tmp_path)


def test_our_own_folders_are_private_and_steering_wherever_they_are_put(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "c"), "XDG_CACHE_HOME": "relative"}
    found = find_places(tmp_path, environ)
    ours = (str(tmp_path.resolve() / "c/sage-sandbox"), *map(os.path.realpath, runtime_folders(environ)))

    assert tuple(Place(path, "where sage-sandbox keeps its own files") for path in ours) == found.private
    assert set(found.private) <= set(found.steering)


def test_autostart_and_unit_folders_are_steering_wherever_they_are_put(tmp_path: Path) -> None:
    base = str(tmp_path.resolve())

    found = _steering(tmp_path, XDG_CONFIG_HOME=f"{base}/c", XDG_DATA_HOME=f"{base}/d", XDG_CONFIG_DIRS=f"{base}/e:rel")

    for path in ("c/systemd", "c/autostart", "d/systemd", "e/autostart"):
        assert f"{base}/{path}" in found
