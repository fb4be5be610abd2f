"""Schemas of answers: what may be asked, and that an answer is judged as JSON Schema judges it."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.workflow.answers import is_strict, mismatch, schema_troubles, with_single_types

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 1.5, -2.5]) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"])
_SMALL = st.integers(0, 3)
_PLAIN = st.fixed_dictionaries(
    {},
    optional={
        "type": KINDS | st.lists(KINDS, min_size=1, max_size=3, unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "minLength": _SMALL,
        "maxLength": _SMALL,
        "minItems": _SMALL,
        "maxItems": _SMALL,
        "minimum": st.integers(-2, 2),
        "maximum": st.sampled_from([0, 1, 1.5]),
        "exclusiveMinimum": st.integers(-2, 2),
        "exclusiveMaximum": st.integers(-2, 2),
        "title": st.just("t"),
    },
)


def _deeper(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    more = st.fixed_dictionaries(
        {},
        optional={
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "additionalProperties": st.booleans(),
        },
    )
    return st.builds(lambda plain, deep: {**plain, **deep}, _PLAIN, more)


SCHEMAS = st.recursive(_PLAIN, _deeper, max_leaves=5)


@given(schema=SCHEMAS, value=VALUES)
def test_an_answer_is_judged_as_json_schema_judges_it(schema: dict[str, Any], value: Any) -> None:
    fits = jsonschema.Draft202012Validator(schema).is_valid(value)

    assert (mismatch(value, schema) == "") is fits


@given(schema=SCHEMAS)
def test_a_schema_without_trouble_is_a_schema(schema: dict[str, Any]) -> None:
    schema = {**schema, "type": "object"}

    if not list(schema_troubles(schema)):
        jsonschema.Draft202012Validator.check_schema(schema)


@given(schema=st.dictionaries(st.sampled_from(["type", "items", "anyOf", "enum", "required", "minimum", "x"]), VALUES))
def test_whatever_is_given_as_a_schema_has_an_end(schema: dict[str, Any]) -> None:
    troubles = list(schema_troubles(schema))

    if not troubles:
        jsonschema.Draft202012Validator.check_schema(schema)
        mismatch({"a": [1]}, schema)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "tags": {"type": "array", "items": {"enum": ["x", 1]}}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"name": "Ann", "tags": ["x", 1, 1.0]}, ""),
        ([], "the answer must be object, not []"),
        ({}, "the answer lacks 'name'"),
        ({"name": 1}, "the answer.'name' must be string, not 1"),
        ({"name": "too long"}, "the answer.'name' is too long: 8 of at most 5"),
        ({"name": "a", "tags": ["x", True]}, "the answer.'tags'[1] must be one of [\"x\", 1], not true"),
        ({"name": "a", "age": 1}, "the answer has 'age', which the schema does not name"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(value: Any, text: str) -> None:
    assert mismatch(value, PERSON) == text


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ([], "must be a schema, a mapping"),
        ({"type": "array"}, "an answer is an object: write type: object"),
        ({"type": "object", "pattern": "(a+)+$"}, "'pattern' cannot be asked of an answer"),
        ({"type": "object", "$ref": "http://127.0.0.1/"}, "'$ref' cannot be asked of an answer"),
        ({"type": "object", "propertys": {}}, "did you mean 'properties'?"),
        ({"type": "object", "properties": {"a": {}}}, "must say type, enum, const or anyOf"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "must be one of object, array"),
        ({"type": "object", "properties": []}, "must be a mapping"),
        ({"type": "object", "required": "a"}, "must be a list of names"),
        ({"type": "object", "additionalProperties": {}}, "must be true or false"),
        ({"type": "object", "minItems": -1}, "must be a whole number from 0"),
        ({"type": "object", "minimum": "1"}, "must be a number"),
        ({"type": "object", "title": 1}, "must be text"),
        ({"type": "object", "enum": []}, "must be a list of 1 to 1,000"),
        ({"type": "object", "enum": [{}]}, "must be a list of 1 to 1,000 texts, numbers"),
        ({"type": "object", "properties": {"a": {"const": []}}}, "must be a text, a number"),
        ({"type": "object", "properties": {str(n): {"type": "null"} for n in range(1000)}}, "the schema is too large"),
    ],
)
def test_what_cannot_be_asked_is_said(schema: Any, text: str) -> None:
    assert any(text in found for _, found in schema_troubles(schema))


def test_a_schema_nests_only_so_deep() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(25):
        schema = {"type": "object", "properties": {"a": schema}}

    assert "nested 20 deep" in list(schema_troubles(schema))[-1][1]


def test_strict_is_what_names_all_it_may_have() -> None:
    loose = {"type": "object", "properties": {"a": {"type": "object"}}, "required": ["a"]}

    assert is_strict({**PERSON, "required": ["name", "tags"]})
    assert not is_strict(PERSON)
    assert not is_strict({**loose, "additionalProperties": False})
    assert json.dumps(PERSON)  # it was not changed


@given(schema=SCHEMAS)
def test_any_schema_that_can_be_asked_can_be_asked_over_the_messages_api(schema: dict[str, Any]) -> None:
    schema = {**schema, "type": "object"}

    if not list(schema_troubles(schema)):
        anthropic.transform_schema(with_single_types(schema))


@given(schema=SCHEMAS, value=VALUES)
def test_single_types_mean_the_same(schema: dict[str, Any], value: Any) -> None:
    plain = {word: part for word, part in schema.items() if word != "anyOf"}

    assert mismatch(value, with_single_types(plain)) == "" or mismatch(value, plain) != ""
