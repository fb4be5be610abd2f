"""What the project promises about itself: its layers, its settings, what it ships."""

from __future__ import annotations

import ast
import configparser
import os
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sage_sandbox
from sage_sandbox import errors

ROOT = Path(__file__).parents[1]
PACKAGE = Path(sage_sandbox.__file__).parent
STRANGERS = {PACKAGE / "demo" / name for name in ("hostile", "repo_report", "sample")}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if STRANGERS.isdisjoint(path.parents))
TRACKED = [
    path
    for path in ROOT.rglob("*")
    if path.is_file()
    and not any(
        part in ("__pycache__", "build", "dist")
        or part.endswith(".egg-info")
        or (part.startswith(".") and part not in (".ci", ".sage", ".gitignore"))
        for part in path.relative_to(ROOT).parts
    )
]


def imports_of(path: Path) -> set[str]:
    """The absolute names a module imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_ctypes_is_imported_by_one_module_only():
    importers = [
        path.relative_to(PACKAGE) for path in MODULES if any(n.split(".")[0] == "ctypes" for n in imports_of(path))
    ]

    assert [Path("sandbox/inside/syscalls.py")] == importers


@pytest.mark.parametrize("path", sorted((PACKAGE / "sandbox" / "inside").glob("*.py")), ids=lambda path: path.name)
def test_inside_imports_the_standard_library_and_itself_only(path):
    foreign = {
        name
        for name in imports_of(path)
        if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("sage_sandbox.sandbox.inside")
    }

    assert set() == foreign


def declared_names(requirements: list[str | dict[str, str]]) -> set[str]:
    """What is imported for each requirement, as far as the two differ from a lower-case name with underscores."""
    names = {re.split(r"[^\w-]", text)[0].lower().replace("-", "_") for text in requirements if isinstance(text, str)}
    return {{"pyyaml": "yaml"}.get(name, name) for name in names} | {"pydantic_core"}  # pydantic pins its core


def foreign_imports(paths: list[Path]) -> set[str]:
    own = {"sage_sandbox", "benchmarks", *(path.stem for path in (ROOT / "tests").iterdir())}
    own |= {path.stem for path in paths}
    return {name.split(".")[0] for path in paths for name in imports_of(path)} - sys.stdlib_module_names - own


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    extras = project["project"]["optional-dependencies"].values()
    ours = declared_names([*project["project"]["dependencies"], *(name for extra in extras for name in extra)])
    tests = ours | declared_names(groups["test"] + groups["coverage"])

    assert foreign_imports(MODULES) <= ours
    assert foreign_imports(sorted((ROOT / "tests").rglob("*.py"))) <= tests
    assert foreign_imports(sorted((ROOT / "benchmarks").rglob("*.py"))) <= ours | declared_names(groups["bench"])


def test_only_faces_import_the_public_package():
    faces = {"__main__.py", "cli", "mcp_server"}
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(alias.name == "sage_sandbox" for alias in node.names)
    }

    assert importers <= faces


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.name == "__init__.py" and path.parent != PACKAGE],
    ids=lambda path: path.parent.name,
)
def test_a_rooms_init_holds_a_docstring_only(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body

    assert [ast.Expr] == [type(node) for node in body]


def test_every_module_of_the_package_has_a_place_in_the_layers():
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / "setup.cfg", encoding="utf-8")
    layers = contracts["importlinter:contract:layers"]
    named = set(re.findall(r"\w+", layers["layers"]))
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }

    assert modules - {"__init__"} == named


def test_every_ignored_rule_stands_on_its_own_line_with_its_reason():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ruff = tomllib.loads(text)["tool"]["ruff"]["lint"]
    rules = [*ruff["ignore"], *(rule for rules in ruff["per-file-ignores"].values() for rule in rules)]

    for rule in rules:
        assert re.search(rf'"{rule}",?\]? *# \S', text), f"{rule} has no reason"


@pytest.mark.parametrize(
    "error", [errors.SageError, *errors.SageError.__subclasses__()], ids=lambda error: error.__name__
)
def test_errors_survive_the_pool(error):
    """CPython issue 32696: one that cannot be unpickled breaks the process pool it crosses."""
    sent = error("it broke", "mend it")

    received = pickle.loads(pickle.dumps(sent))

    assert (error, "it broke", "mend it", vars(sent)) == (
        type(received),
        received.message,
        received.hint,
        vars(received),
    )


def test_the_same_setting_has_one_home():
    """setup.cfg has packages and contracts, tox.ini environments: no tool reads a second file."""
    sections = configparser.ConfigParser()
    sections.read([ROOT / "setup.cfg", ROOT / "tox.ini"], encoding="utf-8")
    homeless = [
        name for name in sections.sections() if not name.startswith(("options", "importlinter", "tox", "testenv"))
    ]

    strays = [name for name in (".coveragerc", "mypy.ini", "pytest.ini", "ruff.toml") if (ROOT / name).exists()]

    assert [] == homeless
    assert [] == strays


@pytest.mark.parametrize("needle", [r"/root\b(?!/?\))", r"index[-_]url", r"\bpypi\.[a-z]+"])
def test_no_file_names_a_registry_or_a_machine(needle):
    offenders = [
        path.relative_to(ROOT).as_posix()
        for path in TRACKED
        if path.suffix in (".toml", ".cfg", ".ini", ".md", "") and re.search(needle, path.read_text("utf-8", "replace"))
    ]

    assert [] == offenders


@pytest.mark.parametrize("script", ["run", "as-user"])
def test_ci_scripts_are_executable_and_parse(script):
    path = ROOT / ".ci" / script

    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_the_installed_package_brings_its_data():
    shipped = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    source = ROOT / "sage_sandbox"
    wanted = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml", ".json", ".txt", ".md", ".typed")
    }

    assert wanted - shipped == set()
