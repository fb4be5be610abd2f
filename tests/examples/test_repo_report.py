"""Each operation of the repo_report example over small repositories whose contents are known, value by value.

The operations run here as plain functions; `test_repo_report_end_to_end.py` runs the whole template in the sandbox.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

REPO_REPORT = Path(__file__).parents[2] / "examples" / "repo_report"
TEMPLATE = REPO_REPORT / "repo_report.yaml"
MODULES = ("sources", *sorted(path.stem for path in REPO_REPORT.glob("*.py") if path.stem != "sources"))

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

Load = Callable[[str], ModuleType]


@pytest.fixture
def load() -> Iterator[Load]:
    """Import an operation as the sandbox does: its siblings are top-level modules."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(REPO_REPORT))
    yield importlib.import_module
    sys.path.remove(str(REPO_REPORT))
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, which is the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(project: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


class Git:
    """A repository whose commits have the authors and dates a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self("init", "-q", "-b", "trunk")

    def __call__(self, *arguments: str, **environment: str) -> str:
        argv = ["git", "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", *arguments]
        clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **environment}
        return subprocess.run(argv, cwd=self.folder, env=clean, check=True, capture_output=True, text=True).stdout

    def commit(self, author: str, when: str) -> None:
        self("add", "-A")
        who = {"NAME": author, "EMAIL": f"{author.lower()}@example.org", "DATE": when}
        names = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in who.items()}
        self("commit", "-q", "--allow-empty", "-m", "a change", **names)


def argv_of(operation: str) -> list[str]:
    """A command of the template's history phase, exactly as it stands there."""
    template = yaml.safe_load(TEMPLATE.read_text())
    history = next(phase for phase in template["phases"] if phase["id"] == "history")
    argv: list[str] = next(one["argv"] for one in history["operations"] if one["id"] == operation)
    return argv


def history_of(git: Git, load: Load) -> dict[str, Any]:
    """The inputs of the timeline: what the template's own git commands print here, None where they fail."""
    said: dict[str, Any] = {}
    for operation in ("log", "count"):
        try:
            said[operation] = git(*argv_of(operation)[1:])
        except subprocess.CalledProcessError:
            said[operation] = None
    said["log"] = said["log"] if said["log"] is None else said["log"].splitlines()
    return {"history": {**said, "repository": load("repository").run()}}


# --- languages


def test_languages_are_counted_in_files_lines_and_bytes(project: Path, load: Load) -> None:
    write(
        project, {"a.py": "x = 1\ny = 2\n", "sub/b.py": "z = 3", "README.md": "# t\n\ntext\n", "run": "#!/bin/sh\n:\n"}
    )

    result = load("languages").run({"top": 10})

    assert result == {
        "languages": [
            {"language": "Markdown", "files": 1, "lines": 3, "bytes": 10},
            {"language": "Python", "files": 2, "lines": 3, "bytes": 17},
            {"language": "Shell", "files": 1, "lines": 2, "bytes": 12},
        ],
        "more_languages": 0,
        "total": {"files": 4, "lines": 8, "bytes": 39},
        "listed_files": 4,
        "skipped": {},
    }


def test_languages_beyond_the_top_are_a_number_and_stay_in_the_total(project: Path, load: Load) -> None:
    write(project, {"a.py": "1\n2\n", "b.c": "1\n", "c.go": "1\n"})

    result = load("languages").run({"top": 1})

    assert [one["language"] for one in result["languages"]] == ["Python"]
    assert result["more_languages"] == 2
    assert result["total"]["lines"] == 4


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("Makefile", b"all:\n", "Makefile"),
        ("CMakeLists.txt", b"project(x)\n", "CMake"),
        ("x.TXT", b"t\n", "Text"),
        ("tool", b"#!/usr/bin/env -S A=1 python3.12 -I\n", "Python"),
        ("tool", b"#!/usr/bin/perl -w\n", "Perl"),
        ("tool", b"#!\n", "Other"),
        ("tool", b"plain\n", "Other"),
        (".py", b"x\n", "Other"),
        ("strange.qqq", b"x\n", "Other"),
    ],
)
def test_language_is_told_by_name_suffix_or_first_line(
    project: Path, load: Load, name: str, content: bytes, expected: str
) -> None:
    write(project, {name: content})

    result = load("languages").run({})

    assert [one["language"] for one in result["languages"]] == [expected]


@pytest.mark.parametrize(("content", "expected"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\n\nb", 3), (b"\r\n\r\n", 2)])
def test_lines_are_counted_as_an_editor_numbers_them(load: Load, content: bytes, expected: int) -> None:
    assert load("languages").lines(content) == expected


# --- what is looked at


def test_links_binaries_large_files_and_tool_folders_are_counted_and_not_read(project: Path, load: Load) -> None:
    outside = project.parent / "outside.py"
    outside.write_text("secret = 1\n")
    write(
        project,
        {
            "seen.py": "x = 1\n",
            "image.png": b"\x89PNG\0\0",
            "large.txt": b"a" * 2001,
            "exactly.txt": b"b" * 2000,
            "node_modules/m.js": "1\n",
            ".git/config": "1\n",
            "venv/pyvenv.cfg": "home = /usr\n",
            "venv/lib.py": "y = 1\n",
            "target/CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n",
        },
    )
    (project / "link.py").symlink_to(outside)
    (project / "linked").symlink_to(project.parent)
    (project / "loop").symlink_to("loop")
    os.mkfifo(project / "pipe")

    result = load("languages").run({"max_file_bytes": 2000})

    assert result["total"]["files"] == 2
    assert result["skipped"] == {"binary": 1, "large": 1, "links": 3, "special": 1, "tool folders": 4}


def test_a_file_that_cannot_be_read_is_counted(project: Path, load: Load) -> None:
    write(project, {"a.py": "x = 1\n"})
    sources = load("sources")
    tree = sources.tree()
    (project / "a.py").unlink()

    assert list(tree.texts(lambda _: True)) == []
    assert tree.skipped == {"unreadable": 1}


def test_a_file_replaced_by_a_link_or_a_fifo_after_the_listing_is_not_followed(project: Path, load: Load) -> None:
    write(project, {"a": "x", "b": "x"})
    sources = load("sources")
    for name in ("a", "b"):
        (project / name).unlink()
    (project / "a").symlink_to("/etc/passwd")
    os.mkfifo(project / "b")

    assert [sources.read(name, 100) for name in ("a", "b")] == [None, None]


def test_at_most_so_many_files_are_listed_and_the_rest_is_said(project: Path, load: Load) -> None:
    write(project, {f"{n}.txt": "x" for n in range(5)})

    tree = load("sources").tree(max_files=3)

    assert [file.path for file in tree.files] == ["0.txt", "1.txt", "2.txt"]
    assert tree.skipped == {"over the total": 2}


def test_files_come_folder_by_folder_in_the_order_of_their_names(project: Path, load: Load) -> None:
    write(project, {"b": "", "a/z": "", "a/b/c": "", "c/a": "", "a.txt": ""})

    assert [file.path for file in load("sources").tree().files] == ["a.txt", "b", "a/z", "a/b/c", "c/a"]


def test_names_that_are_no_utf8_leave_as_json_can_carry_them(project: Path, load: Load) -> None:
    Path(os.fsdecode(os.fsencode(project) + b"/\xff\xfe.txt")).write_bytes(b"TODO: \xe9crire\n")

    first = load("marks").run({})["first"]

    assert first == [{"path": "\\xff\\xfe.txt", "line": 1, "kind": "TODO", "text": "\ufffdcrire"}]
    assert json.loads(json.dumps(first).encode()) == first


@pytest.mark.parametrize("value", [0, -1, 1001, "5", 1.5, True, None])
def test_a_parameter_that_is_no_count_is_refused(project: Path, load: Load, value: object) -> None:
    with pytest.raises(ValueError, match="top must be a whole number from 1 to 1000"):
        load("languages").run({"top": value})


# --- marks


def test_marks_are_indexed_by_kind_file_and_line(project: Path, load: Load) -> None:
    write(
        project,
        {
            "a.py": "# TODO: first\nx = 1  # FIXME(ada): second\n# TODO and TODO: counted once\n",
            "b.c": "int x; /* XXX */\n// HACK\n",
            "c.txt": "TODO_LIST autodoc XXXX mktemp.XXXXXX TODO/FIXME\nfixme: no\nMYTODO: no\n",
        },
    )

    result = load("marks").run({"top": 10})

    # "TODO/FIXME" ends in a FIXME at the end of its line, which is a mark.
    assert result == {
        "kinds": {"TODO": 2, "FIXME": 2, "XXX": 1, "HACK": 1},
        "total": 6,
        "files": [{"path": "a.py", "marks": 3}, {"path": "b.c", "marks": 2}, {"path": "c.txt", "marks": 1}],
        "first": [
            {"path": "a.py", "line": 1, "kind": "TODO", "text": "first"},
            {"path": "a.py", "line": 2, "kind": "FIXME", "text": "(ada): second"},
            {"path": "a.py", "line": 3, "kind": "TODO", "text": "and TODO: counted once"},
            {"path": "b.c", "line": 1, "kind": "XXX", "text": "*/"},
            {"path": "b.c", "line": 2, "kind": "HACK", "text": ""},
            {"path": "c.txt", "line": 1, "kind": "FIXME", "text": ""},
        ],
        "skipped": {},
    }


def test_the_text_of_a_mark_is_cut(project: Path, load: Load) -> None:
    write(project, {"a.js": "TODO: " + "y" * 500_000})

    (mark,) = load("marks").run({})["first"]

    assert mark["text"] == "y" * 119 + "…"


# --- functions

SOURCE = '''\
def short(): pass

class Box:
    @property
    def width(self):
        """Three lines."""
        return 1

    async def wait(self):
        def inner():
            return [
                1,
            ]
        return inner
'''


def test_the_longest_functions_are_found_with_their_place_and_length(project: Path, load: Load) -> None:
    write(
        project,
        {"m.py": SOURCE, "pkg/n.py": "if True:\n    def late():\n        return 2\n", "x.txt": "def no(): pass"},
    )

    result = load("functions").run({"top": 3})

    # Lengths by hand: wait 6 (9-14), inner 4 (10-13), width 3 (5-7), late 2 (2-3), short 1 (1).
    assert result == {
        "longest": [
            {"name": "Box.wait", "path": "m.py", "line": 9, "lines": 6},
            {"name": "Box.wait.inner", "path": "m.py", "line": 10, "lines": 4},
            {"name": "Box.width", "path": "m.py", "line": 5, "lines": 3},
        ],
        "functions": 5,
        "median_lines": 3,
        "files_parsed": 2,
        "not_parsed": [],
        "not_parsed_total": 0,
        "skipped": {},
    }


def test_what_is_no_python_of_this_version_is_named_and_the_rest_is_measured(project: Path, load: Load) -> None:
    write(
        project,
        {
            "broken.py": "def f(:\n",
            "deep.py": "x = " + "(" * 5000 + ")" * 5000,
            "encoding.py": "# -*- coding: no-such -*-\n",
            "latin.py": "# -*- coding: latin-1 -*-\ndef \u00e9t\u00e9(): pass\n".encode("latin-1"),
            "nul.py": b"x = 1\n" * 2000 + b"\0",
            "two.py": "print 'python 2'\n",
            "warns.py": "def g():\n    return '\\d' is 'x'\n",
        },
    )

    result = load("functions").run({})

    assert result["not_parsed"] == ["broken.py", "deep.py", "encoding.py", "nul.py", "two.py"]
    assert result["not_parsed_total"] == 5
    assert [one["name"] for one in result["longest"]] == ["g", "été"]


def test_a_deeply_nested_module_is_walked_without_recursion(project: Path, load: Load) -> None:
    write(project, {"deep.py": "x = " + "+".join(["1"] * 900) + "\n" + "def f():\n    " + "x = 1\n"})

    assert load("functions").run({})["functions"] == 1


def test_no_python_at_all_is_no_function(project: Path, load: Load) -> None:
    result = load("functions").run({})

    assert (result["functions"], result["median_lines"], result["longest"]) == (0, 0, [])


# --- licences

MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software\n"
    "The above copyright notice and this permission notice shall be included in all copies\n"
)
BSD2 = "Redistribution and use in source and binary forms, with or without modification, are permitted\n"
ISC = "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MIT, ["MIT"]),
        (MIT.splitlines()[0], ["MIT-0"]),
        (BSD2, ["BSD-2-Clause"]),
        (BSD2 + "3. Neither the name of the copyright holder nor the names of its contributors", ["BSD-3-Clause"]),
        (BSD2 + "3. All advertising materials mentioning features or use of this software", ["BSD-4-Clause"]),
        (ISC + " is hereby granted, provided that the above copyright notice appear", ["ISC"]),
        (ISC + " is hereby granted.", ["0BSD"]),
        ("        Apache License\n    Version 2.0, January 2004\n", ["Apache-2.0"]),
        ("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\n the GNU Affero General Public License", ["GPL-3.0"]),
        ("GNU GENERAL PUBLIC LICENSE\n Version 2, June 1991\n", ["GPL-2.0"]),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 2.1, February 1999\n GNU General Public License", ["LGPL-2.1"]),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007\n", ["AGPL-3.0"]),
        ("Mozilla Public License Version 2.0\n", ["MPL-2.0"]),
        ("Mozilla Public License, version 2.0\n", ["MPL-2.0"]),
        (
            "Boost Software License - Version 1.0\nPermission is hereby granted, free of charge, to any person",
            ["BSL-1.0"],
        ),
        ("This is free and unencumbered software released into the public domain.", ["Unlicense"]),
        ("# Apache License Version 2.0 or\n# " + MIT.replace("\n", "\n# "), ["Apache-2.0", "MIT"]),
        ("all rights reserved", []),
        ("", []),
    ],
)
def test_a_licence_is_told_by_its_words(load: Load, text: str, expected: list[str]) -> None:
    assert load("licences").licences(text) == expected


def test_the_licence_of_this_project_is_recognised(load: Load) -> None:
    text = (Path(__file__).parents[2] / "LICENSE").read_text()

    assert load("licences").licences(text) == ["Apache-2.0"]


def test_licence_files_tags_and_declarations_are_listed(project: Path, load: Load) -> None:
    write(
        project,
        {
            "LICENSE": MIT,
            "vendor/x/COPYING.LESSER": "mine",
            "license.py": "# no licence file\n",
            "a.py": "# SPDX-License-Identifier: MIT\n",
            "b.c": "/* SPDX-License-Identifier: MIT OR Apache-2.0 */\n",
            "c.c": "// SPDX-License-Identifier: MIT\n",
            "late.c": "\n" * 5000 + "// SPDX-License-Identifier: 0BSD\n",
            "pyproject.toml": '[project]\nlicense = {text = "Apache-2.0"}\n',
            "web/package.json": '{"license": "ISC"}',
            "old/package.json": '{"licenses": [1]}',
            "list/composer.json": '{"license": ["MIT", "GPL-2.0"]}',
            "bad/Cargo.toml": "[package\n",
            "odd/package.json": "[1]",
        },
    )

    result = load("licences").run({"top": 10})

    assert result == {
        "files": [
            {"path": "LICENSE", "licences": ["MIT"]},
            {"path": "vendor/x/COPYING.LESSER", "licences": ["unrecognised"]},
        ],
        "files_total": 2,
        "tags": [{"licence": "MIT", "files": 2}, {"licence": "MIT OR Apache-2.0", "files": 1}],
        "declared": [
            {"path": "pyproject.toml", "licence": "Apache-2.0"},
            {"path": "list/composer.json", "licence": "MIT OR GPL-2.0"},
            {"path": "web/package.json", "licence": "ISC"},
        ],
        "skipped": {},
    }


# --- manifests


PYPROJECT = """
[project]
dependencies = ["Click>=8", "ruamel.yaml ; python_version>'3'"]
[project.optional-dependencies]
x = ["dask[array]"]
[dependency-groups]
test = ["pytest", {include-group = "y"}]
"""
POETRY = """
[tool.poetry.dependencies]
python = "^3.11"
HttpX = "*"
[tool.poetry.group.dev.dependencies]
ruff = "*"
"""
REQUIREMENTS = """
# note
-r base.txt
A_b==1 # why
https://x.example/y.whl
z @ https://x.example/z.whl
"""
SETUP_CFG = """
[options]
install_requires =
  foo>1
  bar
[options.extras_require]
q = baz
"""
CARGO = """
[dependencies]
serde = '1'
[target.'cfg(unix)'.dependencies]
libc = '0'
[dev-dependencies]
x = '1'
"""
GO_MOD = """
module example.org/m

go 1.22

require example.org/one v1.0.0

require (
	golang.org/x/sys v0.1.0 // indirect
)
replace example.org/one => ../one
"""


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("pyproject.toml", PYPROJECT, ["click", "dask", "pytest", "ruamel-yaml"]),
        ("pyproject.toml", POETRY, ["httpx", "ruff"]),
        ("requirements-dev.txt", REQUIREMENTS, ["a-b", "z"]),
        ("setup.cfg", SETUP_CFG, ["bar", "baz", "foo"]),
        ("package.json", '{"dependencies": {"@a/b": "1"}, "devDependencies": {"c": "2"}}', ["@a/b", "c"]),
        ("Cargo.toml", CARGO, ["libc", "serde", "x"]),
        ("go.mod", GO_MOD, ["example.org/one", "golang.org/x/sys"]),
        ("composer.json", '{"require": {"php": ">=8", "ext-json": "*", "a/b": "1"}}', ["a/b"]),
    ],
)
def test_dependencies_are_read_by_name(project: Path, load: Load, name: str, content: str, names: list[str]) -> None:
    write(project, {name: content})

    (manifest,) = load("manifests").run({})["manifests"]

    assert (manifest["path"], manifest["dependencies"], manifest["names"]) == (name, len(names), names)


def test_what_only_running_would_tell_is_unknown_and_what_is_broken_says_so(project: Path, load: Load) -> None:
    write(
        project,
        {
            "setup.py": "raise SystemExit\n",
            "a/package.json": "{",
            "b/package.json": "[]",
            "c/pyproject.toml": "[project\n",
            "d/package.json": "[" * 100_000,
            "e/setup.cfg": "no section\n",
            "f/Cargo.toml": "dependencies = 3\n",
            "g/pyproject.toml": "\xff".encode("latin-1"),
        },
    )

    result = load("manifests").run({})

    by_path = {one.pop("path"): one for one in result["manifests"]}
    assert by_path.pop("setup.py") == {"ecosystem": "Python", "dependencies": None, "names": []}
    assert {path: one["dependencies"] for path, one in by_path.items()} == dict.fromkeys(by_path)
    assert {path: one["problem"].split(":")[0] for path, one in by_path.items()} == {
        "a/package.json": "JSONDecodeError",
        "b/package.json": "AttributeError",
        "c/pyproject.toml": "TOMLDecodeError",
        "d/package.json": "RecursionError",
        "e/setup.cfg": "MissingSectionHeaderError",
        "f/Cargo.toml": "AttributeError",
        "g/pyproject.toml": "UnicodeDecodeError",
    }
    assert result["ecosystems"] == {"Python": 4, "JavaScript": 3, "Rust": 1}
    assert result["total"] == 8


def test_names_in_a_manifest_cannot_smuggle_lone_surrogates(project: Path, load: Load) -> None:
    write(project, {"package.json": '{"dependencies": {"\\ud800": "1"}}'})

    (manifest,) = load("manifests").run({})["manifests"]

    assert manifest["names"] == ["?"]


# --- duplicates


def test_duplicates_are_equal_bytes_and_the_most_wasteful_come_first(project: Path, load: Load) -> None:
    write(
        project,
        {
            "a.txt": "same\n",
            "b/a.txt": "same\n",
            "c.txt": "same\n",
            "d.txt": "diff\n",
            "big1.bin": b"\0" * 100,
            "big2.bin": b"\0" * 100,
            "empty1": "",
            "empty2": "",
        },
    )
    (project / "link.txt").symlink_to("a.txt")

    result = load("duplicates").run({"top": 10})

    assert result == {
        "groups": [
            {
                "bytes": 100,
                "copies": 2,
                "wasted": 100,
                "sha256": hashlib.sha256(b"\0" * 100).hexdigest(),
                "paths": ["big1.bin", "big2.bin"],
            },
            {
                "bytes": 5,
                "copies": 3,
                "wasted": 10,
                "sha256": hashlib.sha256(b"same\n").hexdigest(),
                "paths": ["a.txt", "b/a.txt", "c.txt"],
            },
        ],
        "groups_total": 2,
        "wasted": 110,
        "skipped": {"links": 1},
    }


def test_groups_beyond_the_top_are_counted(project: Path, load: Load) -> None:
    write(project, {f"{n}{side}": "x" * (n + 1) for n in range(3) for side in "ab"})

    result = load("duplicates").run({"top": 1})

    assert [(group["bytes"], group["paths"]) for group in result["groups"]] == [(3, ["2a", "2b"])]
    assert (result["groups_total"], result["wasted"]) == (3, 6)


# --- history


@needs_git
def test_history_is_counted_by_author_and_by_month(project: Path, load: Load) -> None:
    git = Git(project)
    git.commit("Ada", "2024-01-31T23:30:00+0000")
    git.commit("Bob", "2024-02-01T00:30:00+0200")
    git.commit("Ada", "2024-02-29T12:00:00+0000")
    git.commit("Ünal", "2025-01-01T00:00:00+0000")

    result = load("timeline").run({"top": 2}, history_of(git, load))

    # The author's own clock counts: Bob's commit is of February although it is still January in UTC.
    assert result == {
        "known": True,
        "commits": 4,
        "commits_total": 4,
        "authors_total": 3,
        "authors": [{"author": "Ada", "commits": 2}, {"author": "Bob", "commits": 1}],
        "months": [
            {"month": "2024-01", "commits": 1},
            {"month": "2024-02", "commits": 2},
            {"month": "2025-01", "commits": 1},
        ],
        "first": "2024-01-31",
        "last": "2025-01-01",
        "shallow": False,
    }


@needs_git
def test_authors_are_joined_by_the_mailmap_of_head(project: Path, load: Load) -> None:
    git = Git(project)
    write(
        project, {".mailmap": "Ada Lovelace <ada@example.org>\nAda Lovelace <ada@example.org> <countess@example.org>\n"}
    )
    git.commit("Ada", "2024-01-01T00:00:00+0000")
    git.commit("Countess", "2024-01-02T00:00:00+0000")
    (project / ".mailmap").unlink()

    result = load("timeline").run({}, history_of(git, load))

    assert result["authors"] == [{"author": "Ada Lovelace", "commits": 2}]


@needs_git
def test_a_shallow_clone_is_said_to_be_shallow(project: Path, tmp_path: Path, load: Load) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git = Git(origin)
    for day in (1, 2, 3):
        git.commit("Ada", f"2024-01-0{day}T00:00:00+0000")
    git("clone", "-q", "--depth", "2", f"file://{origin}", str(project))
    clone = Git(project)

    result = load("timeline").run({}, history_of(clone, load))

    assert (result["commits"], result["shallow"], result["first"]) == (2, True, "2024-01-02")
    assert load("repository").run() == {"state": "ready", "branch": "trunk", "shallow": True}


@needs_git
def test_a_repository_without_commits_has_a_history_that_says_so(project: Path, load: Load) -> None:
    result = load("timeline").run({}, history_of(Git(project), load))

    assert result == {"known": False, "why": "no commits yet", "commits": 0}
    assert load("repository").run() == {"state": "empty", "branch": "trunk", "shallow": False}


@needs_git
def test_packed_refs_and_a_detached_head_are_ready(project: Path, load: Load) -> None:
    git = Git(project)
    git.commit("Ada", "2024-01-01T00:00:00+0000")
    git("pack-refs", "--all")

    packed = load("repository").run()
    git("checkout", "-q", "--detach")
    detached = load("repository").run()

    assert packed == {"state": "ready", "branch": "trunk", "shallow": False}
    assert detached == {"state": "ready", "branch": None, "shallow": False}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {"state": "none", "branch": None, "shallow": False}),
        ({".git": "gitdir: /elsewhere\n"}, {"state": "elsewhere", "branch": None, "shallow": False}),
        ({".git/x": ""}, {"state": "empty", "branch": None, "shallow": False}),
        ({".git/HEAD": "ref: refs/heads/../../../etc/passwd\n"}, {"state": "empty", "branch": "../../../etc/passwd"}),
        ({".git/HEAD": "ref: refs/heads/a\0b\n"}, {"state": "empty", "branch": "a\0b"}),
        ({".git/HEAD": "ref: refs/heads/.invalid\n"}, {"state": "ready", "branch": None}),
    ],
)
def test_repository_is_read_without_git(
    project: Path, load: Load, files: dict[str, str | bytes], expected: dict[str, object]
) -> None:
    write(project, files)

    result = load("repository").run()

    assert result == {"shallow": False, **expected}


def test_a_linked_git_folder_is_not_followed(project: Path, load: Load) -> None:
    write(project.parent, {"real/HEAD": "ref: refs/heads/main\n"})
    (project / ".git").symlink_to(project.parent / "real")

    assert load("repository").run()["state"] == "none"


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ({"state": "none"}, "no git repository here"),
        ({"state": "elsewhere"}, "the repository lies outside of what was granted"),
        ({"state": "ready"}, "git could not read it, or is not installed"),
        (None, "unknown"),
    ],
)
def test_a_missing_history_says_why(load: Load, repository: object, expected: str) -> None:
    inputs = {"history": {"log": None, "count": None, "repository": repository}}

    assert load("timeline").run({}, inputs) == {"known": False, "why": expected, "commits": 0}


def test_lines_that_are_none_of_ours_are_left_out(load: Load) -> None:
    log = ["", "garbage", "2024-01-01\x1f", "2024-01-02\x1fA\x1fB", "2024-1-1\x1fC", "x2024-01-01\x1fD"]

    result = load("timeline").run({}, {"history": {"log": log, "count": None, "repository": None}})

    assert result["authors"] == [{"author": "(no name)", "commits": 1}, {"author": "A\x1fB", "commits": 1}]
    assert (result["commits"], result["commits_total"], result["first"]) == (2, 2, "2024-01-01")


def test_the_total_is_what_git_counted_where_the_log_was_cut(load: Load) -> None:
    inputs = {"history": {"log": ["2024-01-01\x1fA"], "count": "70000\n", "repository": {"shallow": False}}}

    assert load("timeline").run({}, inputs)["commits_total"] == 70000


# --- the digest


@needs_git
def test_the_digest_joins_what_the_others_found(project: Path, load: Load) -> None:
    git = Git(project)
    write(
        project,
        {
            "LICENSE": MIT,
            "a.py": "# TODO: x\ndef f():\n    return 1\n",
            "b.py": "# TODO: x\ndef f():\n    return 1\n",
            "requirements.txt": "click\n",
            "logo.png": b"\0",
        },
    )
    git.commit("Ada", "2024-01-31T12:00:00+0000")
    git.commit("Bob", "2024-02-01T12:00:00+0000")
    survey = {
        name: load(name).run({}) for name in ("languages", "marks", "functions", "licences", "manifests", "duplicates")
    }
    inputs = history_of(git, load)
    inputs |= {"survey": survey, "timeline": load("timeline").run({}, inputs)}

    result = load("digest").run(inputs)

    assert result["summary"] == {
        "languages": "4 text files, 9 lines: Python 67 %, Other 22 %, Text 11 %",
        "history": "2 commits by 2 authors, 2024-01-31 to 2024-02-01; busiest: Ada 1, Bob 1; most in 2024-01 (1)",
        "marks": "2 TODO; most in a.py (1)",
        "functions": "2 Python functions, median 2 lines; longest: f (a.py:2) 2, f (b.py:2) 2",
        "licences": "MIT (LICENSE)",
        "manifests": "requirements.txt (Python, 1 dependency)",
        "duplicates": "1 group of equal files, 32 B in copies; worst: 2 of 32 B, a.py = b.py",
        "not read": "1 binary, 1 tool folders",
    }
    assert result["branch"] == "trunk"
    assert result["report"]["languages"] == survey["languages"]
    assert result["report"]["history"] == inputs["timeline"]


def test_an_empty_folder_has_a_report_too(project: Path, load: Load) -> None:
    survey = {
        name: load(name).run({}) for name in ("languages", "marks", "functions", "licences", "manifests", "duplicates")
    }
    inputs: dict[str, Any] = {"history": {"log": None, "count": None, "repository": load("repository").run()}}
    inputs |= {"survey": survey, "timeline": load("timeline").run({}, inputs)}

    assert load("digest").run(inputs)["summary"] == {
        "languages": "no text files",
        "history": "none to tell: no git repository here",
        "marks": "none",
        "functions": "no Python functions",
        "licences": "none found",
        "manifests": "none found",
        "duplicates": "none",
        "not read": "nothing",
    }


def test_the_digest_names_what_was_rejected(load: Load) -> None:
    names = ("languages", "marks", "functions", "licences", "manifests", "duplicates")
    nothing: dict[str, Any] = {
        "survey": dict.fromkeys(names),
        "history": dict.fromkeys(("log", "count", "repository")),
        "timeline": None,
    }

    summary = load("digest").run(nothing)["summary"]

    assert {summary[name] for name in (*names, "history")} == {"not known: the operation was rejected"}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 20, "1 MiB"), (5 << 30, "5 GiB"), (5 << 40, "5120 GiB")],
)
def test_sizes_read_well(load: Load, count: int, expected: str) -> None:
    assert load("digest").size(count) == expected


# --- the template


def test_every_file_the_template_names_lies_beside_it_and_no_other_does() -> None:
    operations = [
        one
        for phase in yaml.safe_load(TEMPLATE.read_text())["phases"]
        for one in (phase["operations"] if isinstance(phase["operations"], list) else [phase["operations"]])
    ]
    named = {one["file"] for one in operations if "file" in one} | {
        name for one in operations for name in one.get("files", [])
    }

    assert {path.name for path in REPO_REPORT.glob("*.py")} == named
    assert len(operations) == 11


def test_the_template_asks_for_the_project_and_nothing_else() -> None:
    asked = [
        one["policy"]
        for phase in yaml.safe_load(TEMPLATE.read_text())["phases"]
        for one in (phase["operations"] if isinstance(phase["operations"], list) else [phase["operations"]])
        if "policy" in one
    ]

    assert len(asked) == 9
    assert all(policy == {"read": ["."]} for policy in asked)
