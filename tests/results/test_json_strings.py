from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.results.json_strings import JsonStrings

DATA: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
LAYOUTS = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1]), "separators": st.just((" ,", " : "))}
)


def strings_in(data: Any) -> list[tuple[bool, str]]:
    """Every string in its order, and whether it is a key."""
    if isinstance(data, str):
        return [(False, data)]
    if isinstance(data, list):
        return [found for item in data for found in strings_in(item)]
    if isinstance(data, dict):
        return [found for key, value in data.items() for found in ((True, key), *strings_in(value))]
    return []


@given(DATA, LAYOUTS)
def test_strings_are_numbered_in_their_order_and_keys_told_from_values(data: Any, layout: dict[str, Any]) -> None:
    strings = JsonStrings(json.dumps(data, **layout))

    assert strings_in(data) == [(strings.is_key(number), strings[number]) for number in range(len(strings))]


@given(DATA, LAYOUTS)
def test_what_is_not_replaced_stays_as_it_is(data: Any, layout: dict[str, Any]) -> None:
    text = json.dumps(data, **layout)

    assert text == JsonStrings(text).joined()


@given(DATA, LAYOUTS, st.text())
def test_one_string_is_replaced_and_no_other(data: Any, layout: dict[str, Any], new: str) -> None:
    strings = JsonStrings(json.dumps(data, **layout))
    expected = strings_in(data)
    for number in range(0, len(strings), 2):
        strings[number] = new
        expected[number] = (expected[number][0], new)
    replaced = JsonStrings(strings.joined())

    assert expected == [(replaced.is_key(number), replaced[number]) for number in range(len(replaced))]


def test_numbers_and_spaces_keep_the_bytes_they_have() -> None:
    strings = JsonStrings('{"a":1.50e+2, "b" :\t"x" , "b":1}')
    strings[2] = "y"

    assert '{"a":1.50e+2, "b" :\t"y" , "b":1}' == strings.joined()


def test_an_offset_is_found_in_its_string() -> None:
    text = '["a\\"b", 1, "\\\\"]'
    strings = JsonStrings(text)

    assert [0, 0, -1, 1] == [strings.at(text.index(part)) for part in ("a", "b", " 1", "\\\\")]


def test_a_name_belongs_to_what_stands_right_behind_it() -> None:
    strings = JsonStrings('{"a": "b", "c": ["d"], "e": 1}')

    assert [(1, True), (3, False), (5, False)] == [(number, strings.is_named(number)) for number in (1, 3, 5)]
    assert not strings.is_named(0)
    assert '"a"' == JsonStrings('"a"').joined()


def test_a_string_that_does_not_end_is_no_json() -> None:
    with pytest.raises(ValueError, match="a string does not end"):
        JsonStrings('["a')
