"""Distributions by their RECORD: a made one in a folder of the test's own, with everything a hostile one may list."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import sys

import pytest

from sage_sandbox.errors import UsageError
from sage_sandbox.outcome import Outcome
from sage_sandbox.sandbox import packages
from sage_sandbox.sandbox.job import Job


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution where this interpreter finds it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])

    def make(name, files, requires=(), record=True):
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        metadata = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            "Version: 1.0",
            *(f"Requires-Dist: {line}" for line in requires),
        ]
        (info / "METADATA").write_text("\n".join(metadata) + "\n")
        for path, text in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text)
        if record:
            (info / "RECORD").write_text("".join(f"{path},,\n" for path in (*files, f"{info.name}/METADATA")))
        return site

    return make


def test_top_level_names_of_the_record_are_bound(install):
    site = install(
        "fake-one", {"fakeone/__init__.py": "", "fakeone/data/x": "", "fakeone_mod.py": "", "__pycache__/m.pyc": ""}
    )

    assert (
        (str(site / "fake_one-1.0.dist-info"), "/packages/fake_one-1.0.dist-info", True),
        (str(site / "fakeone"), "/packages/fakeone", True),
        (str(site / "fakeone_mod.py"), "/packages/fakeone_mod.py", False),
    ) == packages.binds(("fake-one",))


@pytest.mark.parametrize("name", ["fake-two", "fake_two", "Fake.Two"])
def test_a_name_is_found_however_it_is_spelled(name, install):
    install("fake_two", {"faketwo.py": ""})

    assert packages.binds((name,)) == packages.binds((name, "fake-two"))


def test_pth_files_and_what_lies_elsewhere_are_never_bound(install):
    install("fake3", {"fake3.py": "", "evil.pth": "import os", "../bin/tool": ""})

    assert {"/packages/fake3.py", "/packages/fake3-1.0.dist-info"} == {
        path for _, path, _ in packages.binds(("fake3",))
    }


def test_a_listed_name_that_is_not_there_is_left_out(install):
    site = install("fake4", {"fake4.py": "", "gone.py": ""})
    (site / "gone.py").unlink()

    assert "/packages/gone.py" not in {path for _source, path, _folder in packages.binds(("fake4",))}


def test_what_a_distribution_requires_comes_along_once(install):
    install("fake5", {"fake5.py": ""}, ("fake6 >= 1", "fake7; python_version < '3'", "fake8; extra == 'more'"))
    install("fake6", {"fake6.py": ""}, ("fake5",))
    paths = [path for _source, path, _folder in packages.binds(("fake5", "fake6"))]

    assert paths == sorted(set(paths))
    assert {"/packages/fake5.py", "/packages/fake6.py"} == {path for path in paths if path.endswith(".py")}


def test_a_distribution_without_a_record_has_nothing_to_bind(install):
    install("fake9", {"fake9.py": ""}, record=False)

    assert () == packages.binds(("fake9",))


def test_everything_that_is_missing_is_named_with_the_command_that_installs_it(install):
    install("fake10", {"fake10.py": ""}, ("no-such-required",))

    with pytest.raises(UsageError, match="package no-such-dist, no-such-required is not installed") as caught:
        packages.binds(("no-such-dist", "fake10", "no-such-dist"))
    assert "pip install no-such-dist no-such-required" == caught.value.hint


def test_a_package_can_be_imported_only_where_it_is_asked_for(install, supervisor):
    install(
        "fake-pack", {"fakepack/__init__.py": "word = 'imported'\n", "fakepack.pth": "import sys; sys.hooked = 1\n"}
    )
    code = "def run():\n    import sys, fakepack\n    return [fakepack.word, hasattr(sys, 'hooked'), sys.path[-1]]\n"

    def call(*names) -> Outcome:
        return supervisor.run(Job("python", code=code, packages=names, project=supervisor.project))

    without, asked, again = call(), call("fake-pack"), call()

    assert ["imported", False, "/packages"] == asked.value()
    for outcome in (without, again):
        assert ("error", "packages: [fakepack]") == (outcome.reason, outcome.hint)


def test_a_package_that_is_not_installed_rejects(supervisor):
    outcome = supervisor.run(
        Job("python", code="def run(): pass", packages=("no-such-dist",), project=supervisor.project)
    )

    assert ("error", "package no-such-dist is not installed") == (outcome.reason, outcome.error)
    assert "pip install no-such-dist" == outcome.hint
