"""`import sage_sandbox as sage` is a promise: these names, typed, and no work until one is used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from commands import loaded_by

import sage_sandbox as sage

SOURCE = Path(sage.__file__)
NAMES = [name for name in sage.__all__ if not name.startswith("__")]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_had(name):
    assert getattr(sage, name) is not None


def test_public_names_are_sorted_and_listed_by_dir():
    assert sorted(sage.__all__) == sage.__all__
    assert set(sage.__all__) <= set(dir(sage))


def test_type_checkers_see_the_names_that_run_time_gives():
    checked = {
        alias.name: node.module
        for block in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8")))
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert {name: f"sage_sandbox.{home}" for name, home in sage._HOMES.items()} == checked
    assert set(NAMES) == set(sage._HOMES)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sandwich'"):
        _ = sage.sandwich


def test_version_is_known():
    assert sage.__version__[0].isdigit()


def test_importing_the_package_imports_nothing_else_of_ours():
    loaded = loaded_by("import sage_sandbox")

    assert [name for name in loaded if name.startswith("sage_sandbox.")] == []
    assert {"click", "pydantic", "loky", "yaml", "dataclasses"}.isdisjoint(loaded)


@pytest.mark.parametrize("name", ["Policy", "Limits", "Outcome", "SageError"])
def test_plain_records_load_no_dependency(name):
    loaded = loaded_by(f"import sage_sandbox as sage; sage.{name}")

    assert {"click", "pydantic", "loky", "yaml", "psutil"}.isdisjoint(loaded)
