"""``--param``: text becomes values of the declared types, and everything wrong is said at once."""

from __future__ import annotations

import pytest

from sage_sandbox.errors import UsageError
from sage_sandbox.workflow.definition import Parameter, Workflow
from sage_sandbox.workflow.parameters import resolve_params


def resolved(kind, text):
    return resolve_params(Workflow("w", (), parameters={"p": Parameter(kind)}), {"p": text})["p"]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("string", "", ""),
        ("string", "12", "12"),
        ("integer", "-12", -12),
        ("integer", "+007", 7),
        ("number", "3", 3),
        ("number", "2.5e3", 2500.0),
        ("boolean", "true", True),
        ("boolean", "false", False),
        ("array", '[1, "a"]', [1, "a"]),
        ("object", '{"a": null}', {"a": None}),
    ],
)
def test_text_becomes_a_value(kind, text, expected):
    value = resolved(kind, text)

    assert (expected, type(expected)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("string", "\udc80", "is not UTF-8"),
        ("integer", "1.5", "must be an integer, not '1.5'"),
        ("integer", "1_000", "must be an integer"),
        ("integer", "٣", "must be an integer"),
        ("integer", "9" * 5_000, "must be an integer"),
        ("number", "nan", "must be a number"),
        ("number", "1e999", "must be a number"),
        ("number", "1_0.0", "must be a number"),
        ("number", "x", "must be a number, not 'x'"),
        ("boolean", "yes", "must be true or false, not 'yes'"),
        ("array", "1", "must be of type array"),
        ("array", "[1", "must be JSON: not JSON: expecting"),
        ("array", "[NaN]", "must be JSON: must be a finite number"),
        ("array", f"[{'1e999,' * 20_000}1]", "must be JSON: must be a finite number"),
        ("object", '{"a": 1, "a": 2}', "must be JSON: the key is there twice"),
        ("object", "[]", "must be of type object"),
    ],
)
def test_text_that_does_not_fit_is_refused(kind, text, said):
    with pytest.raises(UsageError) as caught:
        resolved(kind, text)

    assert f"parameter 'p' {said}" in caught.value.message


def test_defaults_fill_what_is_not_given():
    workflow = Workflow("w", (), parameters={"a": Parameter("integer", 3, required=False), "b": Parameter("string")})

    assert {"a": 3, "b": "x"} == resolve_params(workflow, {"b": "x"})


def test_everything_wrong_is_said_at_once():
    workflow = Workflow("w", (), parameters={"top": Parameter("integer"), "name": Parameter("string")})

    with pytest.raises(UsageError) as caught:
        resolve_params(workflow, {"top": "x", "nane": "y"})

    assert (
        "there is no parameter 'nane', did you mean 'name'?; parameter 'top' must be an integer, not 'x'; "
        "parameter 'name' is required" == caught.value.message
    )
    assert "--param NAME=VALUE, with NAME one of top, name" == caught.value.hint


def test_a_workflow_without_parameters_says_so():
    with pytest.raises(UsageError) as caught:
        resolve_params(Workflow("w", ()), {"a": "b"})

    assert "this workflow takes no parameters" == caught.value.hint
