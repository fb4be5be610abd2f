"""``${…}``: put in once, with its type, and nothing that comes out of a value is read again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import ReferenceMissing
from sage_sandbox.workflow.definition import Operation
from sage_sandbox.workflow.references import Reference, parse, resolve, resolve_argv, resolve_operation, scope

ROOTS = scope(
    {"top": 10, "name": "x", "list": [1, {"a": None}], "yes": True, "ref": "${feature}", "dash": "-rf", "nul": "a\0"},
    "release",
    {"survey": {"languages": {"files": 12, "0": "zero"}}, "lost": None},
)
NAMES = st.text("abc_-019é", min_size=1, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${params.top}", 10),
        ("${params.list}", [1, {"a": None}]),
        ("${params.list.1.a}", None),
        ("${params.yes}", True),
        ("${feature}", "release"),
        ("${survey.languages.files}", 12),
        ("${survey.languages.0}", "zero"),
        ("${lost}", None),
        ("${params.top} of ${feature}", "10 of release"),
        ("is ${params.yes} or ${lost}", "is true or null"),
        ("$${feature}", "${feature}"),
        ("$$${feature}", "$${feature}"),
        ("$${a} ${feature} $${b}", "${a} release ${b}"),
        ("${params.ref}", "${feature}"),
        ("<${params.ref}>", "<${feature}>"),
        ("costs $5 {a} $a", "costs $5 {a} $a"),
        ("", ""),
    ],
)
def test_reference_is_replaced(text, expected):
    assert [expected] == resolve([text], ROOTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${params.nope}", "leads nowhere: there is no 'nope'"),
        ("${nope}", "there is no 'nope'"),
        ("${lost.a}", "there is no 'a'"),
        ("${params.list.2}", "there is no '2'"),
        ("${params.list.-1}", "there is no '-1'"),
        ("${params.list.a}", "there is no 'a'"),
        ("${feature.0}", "there is no '0'"),
        ("a ${params.list}", "is a list, and only a scalar fits inside text"),
        ("a ${survey}", "is a mapping, and only a scalar fits"),
    ],
)
def test_reference_that_cannot_be_filled_is_refused(text, said):
    with pytest.raises(ReferenceMissing) as caught:
        resolve({"a": text}, ROOTS)

    assert said in caught.value.message


@pytest.mark.parametrize(
    "text", ["${", "${}", "a ${b", "${a b}", "${a..b}", "${.a}", "${a.}", "${a${b}}", "${a{b}}", "${a\n}"]
)
def test_what_is_no_reference_is_an_error(text):
    with pytest.raises(ValueError, match="is no reference"):
        parse(text)


@given(st.lists(st.text("a$ ", max_size=4) | st.lists(NAMES, min_size=1, max_size=3).map(tuple), max_size=6))
def test_pieces_are_found_where_they_were_put(pieces):
    steps = [piece for piece in pieces if isinstance(piece, tuple)]
    text = "".join(piece + " " if isinstance(piece, str) else f"${{{'.'.join(piece)}}}" for piece in pieces)

    assert steps == [piece.steps for piece in parse(text) if isinstance(piece, Reference)]
    assert text == "".join(map(str, parse(text)))


@given(st.text())
def test_escaped_text_comes_back_as_it_was(text):
    literal = text.replace("${", "$${") if "$$" not in text else text.replace("$", "")

    assert literal.replace("$${", "${") == resolve(literal, {})


@given(JSON)
def test_a_value_is_put_in_untouched_whatever_it_holds(value):
    assert value == resolve("${a.b}", {"a": {"b": value}})
    assert [value, {"k": value}] == resolve(["${a.b}", {"k": "${a.b}"}], {"a": {"b": value}})


@given(st.text())
def test_text_from_a_value_is_never_scanned(value):
    assert f"<{value}>" == resolve("<${a}>", {"a": value})


@given(JSON)
def test_data_without_references_is_unchanged(value):
    if "${" not in json.dumps(value):
        assert value == resolve(value, {})


def test_keys_are_never_replaced():
    assert {"${feature}": "release"} == resolve({"${feature}": "${feature}"}, ROOTS)


def test_text_that_grows_without_end_is_refused():
    with pytest.raises(ReferenceMissing, match="more than 16 MiB of text"):
        resolve(["-${a}"] * 20, {"a": "x" * (1 << 20)})


def test_params_and_inputs_cannot_take_each_others_place():
    assert {"params": {"a": 1}, "feature": "f"} == scope({"a": 1}, "f", {"params": 2, "feature": 3})


def test_arguments_are_text():
    assert ("git", "-n10", "release", "null", "${x}") == resolve_argv(
        ["git", "-n${params.top}", "${feature}", "${lost}", "$${x}"], ROOTS
    )


@pytest.mark.parametrize("text", ["${params.dash}", "${params.dash}.txt", "${params.list.1.a}${params.dash}"])
def test_argument_that_turns_into_an_option_is_refused(text):
    roots = scope({"dash": "-rf", "list": [1, {"a": ""}]}, "f", {})

    with pytest.raises(ReferenceMissing) as caught:
        resolve_argv(["rm", text], roots)

    assert "which the program would take for an option" in caught.value.message
    assert f"--option={text}" in caught.value.hint


def test_argument_after_two_hyphens_may_start_with_one():
    assert ("rm", "--", "-rf") == resolve_argv(["rm", "--", "${params.dash}"], ROOTS)


def test_option_of_the_template_itself_is_kept():
    assert ("a", "-x-rf") == resolve_argv(["a", "-x${params.dash}"], ROOTS)


def test_argument_with_a_nul_is_refused():
    with pytest.raises(ReferenceMissing, match="NUL"):
        resolve_argv(["a", "x${params.nul}"], ROOTS)


def test_argument_that_would_be_a_list_is_refused():
    with pytest.raises(ReferenceMissing, match="only a scalar"):
        resolve_argv(["a", "${params.list}"], ROOTS)


def test_an_operation_is_resolved_as_a_copy():
    operation = Operation("a", "command", params={"n": "${params.top}"}, argv=("echo", "${feature}"))

    resolved = resolve_operation(operation, ROOTS)

    assert ({"n": 10}, ("echo", "release")) == (resolved.params, resolved.argv)
    assert {"n": "${params.top}"} == operation.params
