"""Places in JSON and TOML, worked out after the fact."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.workflow.findings import Findings
from sage_sandbox.workflow.parsing import _deep_place
from sage_sandbox.workflow.positions import JsonLocator, TomlLocator, place_at, show_path, walk
from sage_sandbox.workflow.strict_yaml import read_yaml

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


@given(JSON, st.sampled_from([None, 1, "\t"]))
def test_every_json_value_is_found_where_it_starts(value, indent):
    text = json.dumps(value, indent=indent)
    locator = JsonLocator(text)

    for path, item in walk(value):
        line, column = locator.place(path)
        rest = "\n".join(text.split("\n")[line - 1 :])[column - 1 :]
        assert item == json.JSONDecoder().raw_decode(rest)[0]
        if path and isinstance(path[-1], str):
            line, column = locator.place(path, key=True)
            rest = "\n".join(text.split("\n")[line - 1 :])[column - 1 :]
            assert path[-1] == json.JSONDecoder().raw_decode(rest)[0]


@pytest.mark.parametrize("path", [("a", "x"), ("a", 1), ("a", "b", "c"), (0,)])
def test_what_is_missing_has_the_place_of_what_holds_it(path):
    locator = JsonLocator('{"a":\n {"b": 1}}')

    assert {("a", "x"): (2, 2), ("a", 1): (2, 2), ("a", "b", "c"): (2, 8), (0,): (1, 1)}[path] == locator.place(
        path, key=True
    )


def test_json_hides_the_lines_of_code():
    assert (None, 0) == (JsonLocator("{}").code_place((), 1, 1), JsonLocator("{}").line(()))


TOML = '''\
name = "n"          # 1
a.b = 1

[table]
key = """
first [no.header]
second = 1
"""
'quoted key' = 2

[[list]]
x = 1
[list.inner]
y = 1
[[list]]
x = \'\'\'one\'\'\'
[[list.deep]]
z = 1
[[list.deep]]
z = 2
'''


@pytest.mark.parametrize(
    ("path", "key", "expected"),
    [
        ((), False, (1, 1)),
        (("name",), True, (1, 1)),
        (("name",), False, (1, 8)),
        (("a", "b"), True, (3 - 1, 1)),
        (("table",), False, (4, 1)),
        (("table", "key"), True, (5, 1)),
        (("table", "second"), False, (4, 1)),
        (("table", "quoted key"), True, (9, 1)),
        (("list", 0, "x"), True, (12, 1)),
        (("list", 0, "inner", "y"), True, (14, 1)),
        (("list", 1), False, (15, 1)),
        (("list", 1, "x"), True, (16, 1)),
        (("list", 1, "deep", 1, "z"), True, (20, 1)),
        (("no", "such"), False, (1, 1)),
    ],
)
def test_toml_places(path, key, expected):
    assert expected == TomlLocator(TOML).place(path, key=key)


def test_toml_lines_of_code_are_known_in_a_multi_line_string():
    locator = TomlLocator(TOML)

    assert ((7, 3), None, 0) == (
        locator.code_place(("table", "key"), 2, 3),
        locator.code_place(("name",), 1, 1),
        locator.line(()),
    )


def test_walk_stops_at_the_depth_it_is_given():
    assert [(), ("a",), ("a", 0)] == [path for path, _ in walk({"a": [[1]]}, 2)]


def test_walk_of_a_leaf_is_the_leaf():
    assert [((), 1)] == list(walk(1))


def test_paths_are_fit_for_a_terminal():
    assert "phases[2].operations[0].\\x1b[m" == show_path(("phases", 2, "operations", 0, "\x1b[m"))


def test_places_count_from_one():
    assert [(1, 1), (1, 2), (2, 1), (2, 2)] == [place_at("a\nb", offset) for offset in range(4)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("a", 0), (2, 4)),
        (("a", 0, "x"), (2, 4)),
        (("a", 9), (2, 2)),
        (("a", "x"), (2, 2)),
        (("b", 0), (1, 1)),
        ((0,), (1, 1)),
    ],
)
def test_yaml_places(path, expected):
    assert expected == read_yaml("a:\n - 1\n", "", Findings())[1].place(path)


def test_an_empty_yaml_text_has_one_place():
    locator = read_yaml("", "", Findings())[1]

    assert ((1, 1), None) == (locator.place(("a",)), locator.code_place(("a",), 1, 1))


def test_code_with_odd_line_ends_has_the_place_of_its_field():
    assert None is read_yaml("code: |\r  a\r  b\r", "", Findings())[1].code_place(("code",), 2, 1)


def test_code_with_windows_line_ends_is_placed():
    assert (3, 3) == read_yaml("code: |\r\n  a\r\n  b\r\n", "", Findings())[1].code_place(("code",), 2, 1)


def test_text_that_is_not_deep_has_no_deep_place():
    assert (1, 1) == _deep_place("[[]]")
