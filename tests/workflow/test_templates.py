"""Where templates are looked for, and what is not trusted there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sage_sandbox.errors import UsageError
from sage_sandbox.workflow import templates
from sage_sandbox.workflow.templates import find, names


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the template release, and a built-in one named builtin-one."""
    folder = tmp_path / "project" / ".sage" / "templates"
    folder.mkdir(parents=True)
    (folder / "release.yaml").write_text("name: r\n")
    (tmp_path / "builtin").mkdir()
    (tmp_path / "builtin" / "builtin-one.json").write_text("{}")
    monkeypatch.setattr(templates, "BUILTIN", tmp_path / "builtin")
    return tmp_path / "project"


@pytest.mark.parametrize("path", ["a.yaml", "./a", "/x/y.toml", "a/b", "A.YML", "../a.json"])
def test_what_looks_like_a_path_is_one(path, project):
    assert Path(path) == find(path, project)


def test_name_is_found_in_the_project(project):
    assert project / ".sage/templates/release.yaml" == find("release", project)


def test_name_is_found_among_our_own(project, tmp_path):
    assert tmp_path / "builtin/builtin-one.json" == find("builtin-one", project)


def test_names_are_listed(project):
    (project / ".sage/templates/not a name.yaml").touch()
    (project / ".sage/templates/README.md").touch()

    assert ["builtin-one", "release"] == names(project)


def test_project_comes_before_our_own(project):
    ours = project / ".sage/templates/builtin-one.toml"
    ours.touch()

    assert ours == find("builtin-one", project)


def test_misspelt_name_gets_a_suggestion(project):
    with pytest.raises(UsageError) as caught:
        find("relaese", project)

    assert "there is no template 'relaese', did you mean 'release'?" == caught.value.message
    assert "known here: builtin-one, release" == caught.value.hint


def test_without_any_template_a_path_is_suggested(tmp_path, monkeypatch):
    monkeypatch.setattr(templates, "BUILTIN", tmp_path / "none")

    with pytest.raises(UsageError) as caught:
        find("release", tmp_path)

    assert "write a path such as ./flow.yaml" == caught.value.hint


@pytest.mark.parametrize("name", ["", "..", "-x", "a b", "a\0", "~", "a" * 65, "ä", "a.b"])
def test_what_is_neither_path_nor_name_is_refused(name, project):
    with pytest.raises(UsageError, match="neither a template's path nor a name"):
        find(name, project)


def test_link_in_place_of_a_template_is_refused(project):
    (project / ".sage/templates/evil.yaml").symlink_to("/etc/passwd")

    with pytest.raises(UsageError, match="'evil' is not a regular file"):
        find("evil", project)


def test_folder_in_place_of_a_template_is_refused(project):
    (project / ".sage/templates/evil.yaml").mkdir()

    with pytest.raises(UsageError, match="'evil' is not a regular file"):
        find("evil", project)


@pytest.mark.parametrize("link", [".sage", ".sage/templates"])
def test_linked_folder_is_refused(link, project):
    real = project.parent / "elsewhere"
    (project / link).rename(real)
    (project / link).symlink_to(real)

    with pytest.raises(UsageError, match="lies behind a link"):
        find("release", project)


def test_template_of_another_user_is_refused(project, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)

    with pytest.raises(UsageError, match="belongs to another user"):
        find("release", project)
